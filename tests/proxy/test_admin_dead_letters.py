"""Dead letters on the admin port: who may see them, how they are shown, replayed and deleted."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.proxy.running import (
    Answer,
    World,
    ask,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    until,
)

from tinybird_proxy import codec
from tinybird_proxy.admin import dead_letters
from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.dead_letter import DeadLetter, LetterFilter
from tinybird_proxy.ledger import Ledger, LetterReason
from tinybird_proxy.pacing import State
from tinybird_proxy.tokens import fingerprint

DELIBERATE = {"X-Tinybird-Proxy": "1"}
ADMIN = "the-admin-token"
NDJSON = "application/x-ndjson"
ROUTES = [("GET", "/dead-letters"), ("DELETE", "/dead-letters?all=true"), ("POST", "/dead-letters/replay")]
ROUTES.append(("POST", "/probe"))


async def _ask(world: World, method: str, path: str, *pairs: tuple[str, str], **query: str) -> Answer:
    encoded = urlencode([*pairs, *query.items()])
    target = f"{path}?{encoded}" if encoded else path
    return await ask(world.proxy.admin_port, target, method=method, headers=DELIBERATE, token=None)


async def _listed(world: World, *pairs: tuple[str, str], **query: str) -> list[dict[str, Any]]:
    answer = await _ask(world, "GET", "/dead-letters", *pairs, **query)
    assert (answer.status, answer["Content-Type"], answer["Cache-Control"]) == (200, NDJSON, "no-store"), answer
    found = [json.loads(line) for line in answer.body.splitlines()]
    if query.get("format") != "rows":
        assert answer["X-Dead-Letters"] == str(len(found))
        assert answer["X-Dead-Letter-Rows"] == str(sum(letter["rows"] for letter in found))
        assert answer["X-Dead-Letter-Rows-Replaying"] == str(sum(one["rows"] for one in found if one["replaying"]))
    return found


async def _send(world: World, *rows: bytes, name: str = "hits", wait: bool = False, status: int = 202) -> Answer:
    answer = await post(world.port, f"name={name}{'&wait=true' * wait}", b"\n".join(rows))
    assert answer.status == status, answer
    return answer


@asynccontextmanager
async def _confirmed(*names: str, **env: str | None) -> AsyncIterator[World]:
    """A world whose data sources have taken a row each."""
    async with running_world(**env) as world:
        for name in names or ("hits",):
            await _send(world, b'{"first":true}', name=name)
            await world.tinybird.wait_for_rows(name, 1)
        yield world


async def _until_letters(world: World, count: int) -> list[dict[str, Any]]:
    letters = world.proxy.pipeline.surroundings.letters
    await until(lambda: len(letters) == count)
    return await _listed(world)


def _put(world: World, letter_id: str, *rows: bytes, compression: Any = "gzip", **changed: Any) -> DeadLetter:
    """A letter without a history."""
    body = b"\n".join(rows) or b"{}"
    given: dict[str, Any] = {
        **{"key": DestinationKey("/v0/events", "hits", (), None), "ledger": Ledger(), "message": "no"},
        **{"payload": codec.compress([body], compression), "row_count": max(1, len(rows)), "raw_bytes": len(body) + 1},
        **{"reason": LetterReason.REJECTED, "status": 400, "batch_id": letter_id, "first_at": 10.0, "last_at": 20.0},
        **changed,
    }
    letter = DeadLetter(id=letter_id, **given)
    world.proxy.pipeline.surroundings.letters.add(letter)
    return letter


# Who may.


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_nobody_may_look_or_act_without_being_allowed_to(method: str, path: str) -> None:
    async with running_world() as world:
        _put(world, "a-1", b'{"secret":1}')
        for headers in ({}, {"X-Tinybird-Proxy": "0"}, {**DELIBERATE, "Host": "evil.example"}):
            answer = await ask(world.proxy.admin_port, path, method=method, headers=headers, token=None)
            assert answer.status == 403
            assert answer.error
            assert b"secret" not in answer.body
        assert len(world.proxy.pipeline.surroundings.letters) == 1
    async with running_world(ADMIN_TOKEN=ADMIN) as world:
        for token, status in ((None, 401), ("wrong", 403), (ADMIN, 200)):
            answer = await ask(world.proxy.admin_port, path, method=method, token=token, headers=DELIBERATE)
            assert answer.status == status


async def test_other_methods_are_405_with_json() -> None:
    async with running_world() as world:
        for method, path, allowed in (
            ("HEAD", "/dead-letters", "DELETE,GET"),
            ("POST", "/dead-letters", "DELETE,GET"),
            ("GET", "/dead-letters/replay", "POST"),
            ("GET", "/probe", "POST"),
        ):
            answer = await ask(world.proxy.admin_port, path, method=method, headers=DELIBERATE, token=None)
            assert (answer.status, answer["Allow"]) == (405, allowed)
        assert (await _ask(world, "GET", "/dead-letters/a-1")).status == 404


# Looking.


async def test_without_dead_letters_the_list_is_empty() -> None:
    async with running_world() as world:
        assert await _listed(world) == []
        assert await _listed(world, format="rows") == []


async def test_a_letter_shows_everything_but_the_token() -> None:
    token = "p.a-clients-own-token"
    async with running_world({"token": token}, TINYBIRD_TOKEN=None, COMPRESSION="zstd") as world:
        query = "name=hits&__tb__delimiter=%7C"
        await post(world.port, query, b"{}", token=token)
        await world.tinybird.wait_for_rows("hits", 1)
        world.tinybird.set_faults({"status": 422, "body": '{"error":"a part is in"}'})
        rows = [b'{"n": 1.0}', b'{"n":"\\ud800"}', b'{"n":12345678901234567890123}']
        assert (await post(world.port, query, b"\n".join(rows), token=token)).status == 202
        (letter,) = await _until_letters(world, 1)
        (with_rows,) = await _listed(world, rows="true")
        answer = await _ask(world, "GET", "/dead-letters", rows="true")
    assert with_rows == {**letter, "data": [json.loads(row) for row in rows]}
    assert answer.body.endswith(b',"data":[' + b",".join(rows) + b"]}\n")
    assert token.encode() not in answer.body
    (first_at, last_at) = letter.pop("first_at"), letter.pop("last_at")
    assert first_at[10] == last_at[10] == "T"
    assert first_at <= last_at
    assert last_at.endswith("Z")
    assert letter == {
        **{"id": letter["batch_id"], "data_source": "hits", "params": {"__tb__delimiter": "|"}},
        **{"token_hash": fingerprint(token), "reason": "partial", "status": 422, "message": "a part is in"},
        **{"batch_id": letter["batch_id"], "rows": 3, "bytes": sum(map(len, rows)) + 3, "ambiguous": False},
        **{"client_told": False, "replaying": False, "replays": 0},
    }


async def test_the_oldest_come_first_and_a_limit_leaves_the_rest_out() -> None:
    async with running_world() as world:
        for number in range(5):
            _put(world, f"a-{number}", *[b'{"n":%d}' % number] * (number + 1))
        assert [letter["id"] for letter in await _listed(world)] == ["a-0", "a-1", "a-2", "a-3", "a-4"]
        assert [letter["id"] for letter in await _listed(world, limit="2")] == ["a-0", "a-1"]
        assert await _listed(world, limit="2", format="rows") == [{"n": 0}, {"n": 1}, {"n": 1}]
        assert await _listed(world, id="a-1", format="rows") == [{"n": 1}] * 2


async def test_rows_come_byte_for_byte_however_they_were_kept() -> None:
    rows = [b'{"a" : 1.10e2,\r"b":"\\ud800\\/"}', b'{"a":"\xc3\xbc\xc2\x9b\x7f"}', b'{"a":[1,{"b":"x,\\n"}]}', b"{}"]
    async with running_world() as world:
        for number, compression in enumerate(("gzip", "zstd", "none")):
            _put(world, f"a-{number}", *rows, compression=compression)
        only_rows = await _ask(world, "GET", "/dead-letters", format="rows")
        assert only_rows.body == b"".join(row + b"\n" for row in rows) * 3
        with_rows = await _ask(world, "GET", "/dead-letters", rows="true")
        for line in with_rows.body.split(b"\n")[:-1]:
            assert line.endswith(b',"data":[' + b",".join(rows) + b"]}")
            assert json.loads(line)["rows"] == 4


async def test_any_filter_chooses_what_it_chooses_in_python() -> None:
    chance = random.Random(20260101)
    seen_sizes = set()
    async with running_world() as world:
        names, tokens = ["hits", "clicks", "a b&c=ü"], [None, "p.one"]
        letters = [
            _put(
                world,
                f"a-{number}",
                key=DestinationKey("/v0/events", chance.choice(names), (), chance.choice(tokens)),
                reason=chance.choice(list(LetterReason)),
                status=chance.choice([None, 400, 413, 422]),
                batch_id=f"a-{number // 3}",
                last_at=1_000_000.0 + number // 2 + chance.choice([0.0, 0.5]),
                client_told=chance.random() < 0.3,
            )
            for number in range(60)
        ]
        for _ in range(250):
            ids = {letter.id for letter in chance.sample(letters, chance.randrange(1, 30))}
            times = [str(1_000_000 + chance.randrange(-1, 32)) for _ in range(2)]
            possible: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
                ({"ids": frozenset(ids)}, [("id", ",".join(ids))]),
                ({"ids": frozenset(ids)}, [("id", one) for one in ids]),
                *(({"data_source": name}, [("name", name)]) for name in [*names, "other"]),
                *(({"reason": reason}, [("reason", str(reason))]) for reason in LetterReason),
                *(({"status": status}, [("status", str(status))]) for status in (400, 413, 500)),
                ({"batch_id": "a-4"}, [("batch", "a-4")]),
                ({"since": float(times[0])}, [("since", times[0])]),
                ({"until": float(times[1])}, [("until", times[1])]),
                *(({"client_told": told}, [("client_told", str(told).lower())]) for told in (True, False)),
            ]
            wanted: dict[str, Any] = {}
            pairs: list[tuple[str, str]] = []
            for values, said in chance.sample(possible, chance.randrange(4)):
                if not values.keys() & wanted.keys():
                    wanted, pairs = {**wanted, **values}, [*pairs, *said]
            expected = [letter.id for letter in letters if LetterFilter(**wanted).matches(letter)]
            assert [letter["id"] for letter in await _listed(world, *pairs)] == expected, pairs
            seen_sizes.add(len(expected))
    assert {0, 1, 60} < seen_sizes


async def test_the_loop_turns_while_tens_of_thousands_of_letters_are_shown_and_deleted() -> None:
    count, turns, working = 60_000, 0, True

    async def count_turns() -> None:
        nonlocal turns
        while working:
            await asyncio.sleep(0)
            turns += 1

    async with running_world(DEAD_LETTER_BYTES="1GB") as world:
        payload = codec.compress([b'{"n":1}'], "gzip")
        ledger = Ledger()
        for number in range(count):
            _put(world, f"a-{number}", payload=payload, ledger=ledger)
        turning = asyncio.create_task(count_turns())
        for query, at_least in ({}, 300), ({"name": "none"}, 60), ({"format": "rows"}, 200), ({"rows": "true"}, 200):
            turns = 0
            target = f"/dead-letters?{urlencode(query)}"
            async with connected(world.proxy.admin_port) as peer:
                await peer.send(request(target, method="GET", headers=DELIBERATE, token=None))
                lines, largest = 0, 0
                assert (await peer.head())[0].split()[1] == "200"
                while piece := await peer.piece():
                    lines, largest = lines + piece.count(b"\n"), max(largest, len(piece))
            assert lines == (0 if query.get("name") else count)
            assert turns >= at_least
            assert largest <= 512 * 1024, "memory is bounded"
        turns = 0
        answer = await _ask(world, "DELETE", "/dead-letters", all="true")
        assert answer.json()["deleted_letters"] == count
        assert turns >= 60
        working = False
        await turning


async def test_a_large_letter_comes_in_pieces() -> None:
    rows = [b'{"n":%d,"pad":"%s"}' % (number, bytes(97 + number % 26 for _ in range(9000))) for number in range(700)]
    async with running_world() as world:
        _put(world, "a-1", *rows)
        for query, expected in (
            ("format=rows", b"".join(row + b"\n" for row in rows)),
            ("rows=true", b'"data":[' + b",".join(rows) + b"]}\n"),
        ):
            async with connected(world.proxy.admin_port) as peer:
                target = f"/dead-letters?{query}"
                await peer.send(request(target, method="GET", headers=DELIBERATE, token=None))
                await peer.head()
                pieces = []
                while piece := await peer.piece():
                    pieces.append(piece)
            assert b"".join(pieces).endswith(expected)
            assert max(map(len, pieces)) <= 512 * 1024


async def test_an_answer_that_breaks_midway_does_not_look_whole(caplog: pytest.LogCaptureFixture) -> None:
    async with running_world() as world:
        for number in range(3):
            _put(world, f"a-{number}", b'{"row":"sEcReT"}' * 20_000)
        _put(world, "a-3", payload=Payload(b"not gzip", "gzip"), raw_bytes=2_000_000)
        for query in ("format=rows", "rows=true"):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await ask(
                    world.proxy.admin_port, f"/dead-letters?{query}", method="GET", headers=DELIBERATE, token=None
                )
        assert (await _ask(world, "GET", "/dead-letters")).status == 200
    assert [record.message for record in caplog.records].count("reading dead letters broke inside the proxy") == 2
    assert "sEcReT" not in caplog.text


async def test_a_reader_that_leaves_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    async with running_world() as world:
        noise = random.Random(1).randbytes(4_000_000).hex().encode()
        for number in range(4):
            _put(world, f"a-{number}", b'{"n":"%s"}' % noise)
        async with connected(world.proxy.admin_port) as peer:
            await peer.send(request("/dead-letters?format=rows", method="GET", headers=DELIBERATE, token=None))
            await peer.head()
            peer.writer.transport.abort()
        assert len(await _listed(world)) == 4
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_reader_that_takes_nothing_is_cut_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_STALL_S", 0.1)
    async with running_world() as world:
        noise = random.Random(1).randbytes(4_000_000).hex().encode()
        for number in range(6):
            _put(world, f"a-{number}", b'{"n":"%s"}' % noise)
        async with connected(world.proxy.admin_port) as peer:
            await peer.send(request("/dead-letters?format=rows", method="GET", headers=DELIBERATE, token=None))
            await peer.head()
            peer.pause()
            await until(lambda: "a reader of dead letters took nothing for a while and was cut off" in caplog.messages)
        assert len(await _listed(world)) == 6


async def test_letters_that_go_meanwhile_are_still_shown_to_who_asked_before() -> None:
    async with running_world() as world:
        noise = random.Random(1).randbytes(4_000_000).hex().encode()
        for number in range(4):
            _put(world, f"a-{number}", b'{"n":"%s"}' % noise)
        async with connected(world.proxy.admin_port) as peer:
            await peer.send(request("/dead-letters?format=rows", method="GET", headers=DELIBERATE, token=None))
            await peer.head()
            assert (await _ask(world, "DELETE", "/dead-letters", all="true")).json()["deleted_letters"] == 4
            rows = 0
            while piece := await peer.piece():
                rows += piece.count(b"\n")
        assert rows == 4


# What means nothing for sure.


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/replay")])
async def test_a_filter_that_is_misspelt_is_refused_and_does_nothing(method: str, path: str) -> None:
    async with running_world() as world:
        _put(world, "a-1")
        for pairs, named in (
            ([("nmae", "hits")], "'nmae': is no parameter here"),
            ([("name", "")], "name: '', must be the name of a data source"),
            ([("reason", "bad")], "reason: 'bad', must be one of rejected,"),
            ([("status", "4xx")], "status: '4xx', must be an HTTP status"),
            ([("since", "yesterday")], "since: 'yesterday', must be a time such as"),
            ([("client_told", "maybe")], "client_told: 'maybe', must be true or false"),
            ([("name", "a"), ("name", "b")], "name: is given twice"),
        ):
            answer = await _ask(world, method, f"/dead-letters{path}", *pairs)
            assert answer.status == 400
            assert answer.error.startswith(named)
        assert [letter["id"] for letter in await _listed(world)] == ["a-1"]


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/dead-letters"), ("POST", "/dead-letters/replay")])
async def test_what_is_only_for_looking_is_refused_elsewhere(method: str, path: str) -> None:
    async with running_world() as world:
        for query in ({"limit": "1"}, {"rows": "true"}, {"format": "rows"}):
            assert (await _ask(world, method, path, **query)).status == 400


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_filter_in_the_body_is_refused_and_does_nothing(method: str, path: str) -> None:
    async with running_world() as world:
        _put(world, "a-1")
        headers = {**DELIBERATE, "Content-Type": "application/x-www-form-urlencoded"}
        answer = await ask(world.proxy.admin_port, path, b"name=other", method=method, headers=headers, token=None)
        assert answer.status == 400
        assert "body" in answer.error
        (letter,) = await _listed(world)
        assert (letter["replaying"], letter["replays"]) == (False, 0)


# Deleting.


async def test_deleting_needs_a_filter_or_says_all() -> None:
    async with running_world() as world:
        for number in range(3):
            _put(world, f"a-{number}", b"{}", b"{}", status=400 + number)
        answer = await _ask(world, "DELETE", "/dead-letters")
        assert answer.status == 400
        assert "all=true" in answer.error
        for query in ({"all": "false"}, {"all": ""}, {"all": "true", "name": "hits"}):
            assert (await _ask(world, "DELETE", "/dead-letters", **query)).status == 400
        assert len(await _listed(world)) == 3
        answer = await _ask(world, "DELETE", "/dead-letters", status="401")
        assert (answer.status, answer.json()) == (200, {"deleted_letters": 1, "deleted_rows": 2, "skipped": []})
        assert (await _ask(world, "DELETE", "/dead-letters", id="a-1")).json()["deleted_letters"] == 0
        assert (await _ask(world, "DELETE", "/dead-letters", all="true")).json()["deleted_rows"] == 4
        assert await _listed(world) == []


async def test_deleted_rows_are_in_the_ledger_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with _confirmed() as world:
        world.tinybird.set_faults({"status": 422})
        await _send(world, b'{"n":"sEcReT"}', b"{}")
        await _until_letters(world, 1)
        await _ask(world, "DELETE", "/dead-letters", name="hits")
        ledger = world.status()["ledger"]
        assert (ledger["dead_lettered"], ledger["letters_deleted"], ledger["letters_held"]) == (2, 2, 0)
        assert world.proxy.pipeline.check_ledger() == 0
    (record,) = [record for record in caplog.records if record.message == "dead letters were deleted on request"]
    assert record.__dict__["fields"] == {"letters": 1, "rows": 2}
    assert "sEcReT" not in repr([record.__dict__ for record in caplog.records])


# Replaying.


async def test_a_replay_sends_the_rows_again() -> None:
    async with _confirmed("hits", "clicks") as world:
        world.tinybird.set_faults({"row_matches": "bad"})
        await _send(world, b'{"n":"bad 1"}')
        await _until_letters(world, 1)
        await _send(world, b'{"n":"bad 2"}', name="clicks")
        first, second = await _until_letters(world, 2)
        assert (first["reason"], second["reason"]) == ("rejected", "rejected")
        world.tinybird.set_faults()
        answer = await _ask(world, "POST", "/dead-letters/replay", name="hits")
        assert (answer.status, answer.json()) == (200, {"replayed_letters": 1, "replayed_rows": 1, "skipped": []})
        await world.tinybird.wait_for_rows("hits", 2)
        assert [letter["id"] for letter in await _until_letters(world, 1)] == [second["id"]]
        await _ask(world, "POST", "/dead-letters/replay")
        await world.tinybird.wait_for_rows("clicks", 2)
        await _until_letters(world, 0)
        answer = await _ask(world, "POST", "/dead-letters/replay")
        assert answer.json() == {"replayed_letters": 0, "replayed_rows": 0, "skipped": []}
        assert world.proxy.pipeline.check_ledger() == 0


async def test_a_replay_that_is_refused_again_shows_it() -> None:
    async with _confirmed() as world:
        world.tinybird.set_faults({"row_matches": "bad"})
        await _send(world, b'{"n":"bad"}')
        (letter,) = await _until_letters(world, 1)
        await _ask(world, "POST", "/dead-letters/replay", id=letter["id"])

        async def is_back() -> bool:
            found = await _listed(world)
            return len(found) == 1 and not found[0]["replaying"] and found[0]["replays"] == 1

        await until(is_back)


def _skipped(answer: Answer) -> dict[str, int]:
    found = answer.json()["skipped"]
    for some in found:
        assert some["sentence"]
        if some["reason"] in ("client_told", "partial"):
            assert "by id" in some["sentence"]
    return {some["reason"]: some["rows"] for some in found}


async def test_what_a_replay_might_double_has_to_be_named() -> None:
    async with _confirmed() as world:
        world.tinybird.set_faults({"row_matches": "bad", "status": 400}, {"row_matches": "half", "status": 422})
        await _send(world, b'{"n":"bad"}', wait=True, status=400)
        await _send(world, b'{"n":"half 1"}', b"{}")
        told, partial = await _until_letters(world, 2)
        assert (told["client_told"], partial["reason"]) == (True, "partial")
        world.tinybird.set_faults({"hang": True})
        answer = await _ask(world, "POST", "/dead-letters/replay")
        assert answer.json()["replayed_letters"] == 0
        assert _skipped(answer) == {"client_told": 1, "partial": 2}
        assert "client_told=true" in answer.json()["skipped"][0]["sentence"]
        assert "reason=partial" in answer.json()["skipped"][1]["sentence"]
        assert (await _ask(world, "POST", "/dead-letters/replay", client_told="true")).json()["replayed_rows"] == 1
        assert (await _ask(world, "POST", "/dead-letters/replay", reason="partial")).json()["replayed_rows"] == 2
        assert _skipped(await _ask(world, "POST", "/dead-letters/replay")) == {"replaying": 3}
        deleted = await _ask(world, "DELETE", "/dead-letters", all="true")
        assert (deleted.json()["deleted_letters"], _skipped(deleted)) == (0, {"replaying": 3})
        assert [letter["replaying"] for letter in await _listed(world)] == [True, True]
        world.tinybird.set_faults()
        await world.tinybird.wait_for_rows("hits", 4)
        await _until_letters(world, 0)


async def test_a_replay_that_finds_no_room_says_so_and_keeps_the_letters() -> None:
    async with _confirmed(BUFFER_SIZE="4", BATCH_SIZE="4", FLUSH_INTERVAL="1ms") as world:
        world.tinybird.set_faults({"status": 422})
        await _send(world, b"{}", b"{}")
        (letter,) = await _until_letters(world, 1)
        world.tinybird.set_faults({"hang": True})
        await _send(world, b"{}", b"{}", b"{}")
        answer = await _ask(world, "POST", "/dead-letters/replay", id=letter["id"])
        assert (answer.json()["replayed_rows"], _skipped(answer)) == (0, {"no_room": 2})
        assert [one["replaying"] for one in await _listed(world)] == [False]
        world.tinybird.set_faults()
        await until(lambda: world.proxy.pipeline.buffered_rows() == 0)


async def test_a_draining_proxy_replays_nothing_but_still_shows_and_deletes() -> None:
    async with running_world() as world:
        _put(world, "a-1")
        _put(world, "a-2")
        availability = world.proxy.availability
        availability.begin_drain()
        answer = await _ask(world, "POST", "/dead-letters/replay")
        assert answer.status == 409
        assert "DELETE /drain" in answer.error
        availability.stopping = True
        answer = await _ask(world, "POST", "/dead-letters/replay")
        assert answer.status == 503
        assert "stopping" in answer.error
        assert [letter["replaying"] for letter in await _listed(world)] == [False, False]
        assert (await _ask(world, "DELETE", "/dead-letters", id="a-1")).json()["deleted_letters"] == 1
        assert await _listed(world, format="rows") == [{}]


# Probing.


def _states(world: World) -> Iterable[State]:
    return [destination.pacing.state for destination in world.proxy.pipeline.destinations()]


async def test_a_probe_tries_every_hold_again_now() -> None:
    async with _confirmed("hits", "clicks", "calm") as world:
        answer = await _ask(world, "POST", "/probe")
        assert (answer.status, answer.json()) == (200, {"held": 0, "sentence": "Nothing is held."})
        world.tinybird.set_faults({"status": 418})
        await _send(world, b"{}")
        await _send(world, b"{}", name="clicks")
        await until(lambda: sorted(_states(world)).count(State.HELD) == 2)
        world.tinybird.set_faults()
        answer = await _ask(world, "POST", "/probe")
        assert answer.json() == {"held": 2, "sentence": "2 destinations are held and are tried again now."}
        await world.tinybird.wait_for_rows("hits", 2)
        await world.tinybird.wait_for_rows("clicks", 2)
        for query in ({"name": "hits"}, {"all": "true"}):
            assert (await _ask(world, "POST", "/probe", **query)).status == 400


async def test_a_hold_that_only_a_person_ends_is_ended_by_a_probe() -> None:
    async with running_world() as world:
        world.tinybird.set_faults({"body": "thanks", "text": True, "ingest": False})
        await _send(world, b"{}")
        await until(lambda: _states(world) == [State.HELD])
        (facts,) = world.proxy.pipeline.facts()
        assert facts.next_attempt_in_s is None
        world.tinybird.set_faults()
        assert (await _ask(world, "POST", "/probe")).json()["held"] == 1
        await world.tinybird.wait_for_rows("hits", 1)


# What nobody else hears.


async def test_no_token_and_no_row_gets_into_the_log() -> None:
    marks = {name: f"MARK{name}KRAM" for name in ("client", "admin", "row", "query", "body", "wrong")}
    async with running_tinybird(token=marks["client"]) as tinybird:
        env = environment(tinybird.url, TINYBIRD_TOKEN=None, ADMIN_TOKEN=marks["admin"], LOG_LEVEL="debug")
        async with running_process(env) as proxy:
            await post(proxy.port, body=b"{}", token=marks["client"])
            await tinybird.wait_for_rows("hits", 1)
            tinybird.set_faults({"status": 422})
            await post(proxy.port, body=b'{"n":"%s"}' % marks["row"].encode(), token=marks["client"])
            await proxy.status_until(lambda status: status["dead_letters"]["rows"] == 1)
            said = b""
            for token in (marks["admin"], marks["wrong"], None):
                for method, target in (
                    ("GET", "/dead-letters"),
                    ("GET", f"/dead-letters?token={marks['query']}"),
                    ("POST", f"/dead-letters/replay?reason=partial&name={marks['query']}"),
                    ("POST", "/probe"),
                    ("DELETE", f"/dead-letters?id={marks['query']}"),
                ):
                    answer = await ask(proxy.admin_port, target, method=method, token=token)
                    said += repr(answer).encode()
                    body = marks["body"].encode()
                    said += repr(await ask(proxy.admin_port, target, body, method=method, token=token)).encode()
                if token == marks["admin"]:
                    rows = await ask(proxy.admin_port, "/dead-letters?format=rows", method="GET", token=token)
                    assert marks["row"].encode() in rows.body
                    replayed = await ask(proxy.admin_port, "/dead-letters/replay?reason=partial", token=token)
                    assert replayed.json()["replayed_rows"] == 1
            await proxy.stop()
    found = [name for name, mark in marks.items() if mark.encode() in said + proxy.output]
    assert found == []
    assert b"dead letters were replayed on request" in proxy.output
