"""What ``/status`` says: everything that somebody at three in the morning asks, and no secret."""

import asyncio
import gzip
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.proxy.running import (
    TOKEN,
    Peer,
    World,
    answer_bytes,
    ask,
    asked,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    serving,
    until,
)

from tinybird_proxy import __version__
from tinybird_proxy.admin.status import NOT_DELIVERING_MAX
from tinybird_proxy.emulator import Fault, TokenEntry
from tinybird_proxy.telemetry.gauges import BACKLOG_LEAST_AGE_S

LATER = {"FLUSH_INTERVAL": "1h"}
TRACEPARENT = f"00-{'1' * 32}-{'2' * 16}-01"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def _is_recent(when: str) -> bool:
    return timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(when) < timedelta(minutes=5)


async def _status(world: World) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(world.proxy.admin_port, "/status", method="GET", token=None)).json()
    return found


async def test_an_idle_proxy_says_that_all_is_well() -> None:
    async with running_world() as world:
        status = await _status(world)
        assert status["sentence"] == "All is well."
        assert (status["phase"], status["ready"]) == ("running", True)
        assert (status["instance"], status["version"]) == ("proxy-1", __version__)
        assert status["upstream"] == world.tinybird.url
        assert 0 <= status["uptime_s"] < 60
        assert status["buffer"] == {
            **{"rows": 0, "bytes": 0, "held_bytes": 0, "utilisation": 0.0, "utilization_percent": 0},
            "oldest_age_s": None,
            **{"capacity_rows": 1_000_000, "capacity_bytes": 512_000_000},
        }
        assert status["ledger"]["balances"] is True
        assert status["destinations"] == []
        assert status["drain"] == {
            **{"draining": False, "refusing": False},
            **{"rows_left": 0, "seconds_to_drain": 0.0},
        }
        assert (status["drain_time_s"], type(status["cpu_percent"])) == (0, int)
        upstream = status["upstream_requests"]
        assert (upstream["replies_1m"], upstream["throttled_1m"], upstream["delivered_rows_1m"]) == (0, 0, 0)


async def test_the_ledger_and_the_counters_add_up() -> None:
    async with running_world({"schemas": {"hits": {"n": "Int64"}}}) as world:
        await post(world.port, "name=hits&wait=true", b'{"n":1}\n{"n":"two"}\n{"n":3}')
        await post(world.port, "name=hits", b"broken")
        await post(world.port, "name=clicks", b"{}\n{}")
        await world.tinybird.wait_for_rows("clicks", 2)
        await until(lambda: world.status()["buffer"]["rows"] == 0)
        status = await _status(world)
        assert status["ledger"] == {
            **{"accepted": 5, "recovered": 0, "replayed": 0, "delivered": 4, "quarantined": 1, "unverified": 0},
            **{"dead_lettered": 0, "dropped": {}, "buffered": 0, "ambiguous": 0, "balances": True},
            **{"letters_recovered": 0, "letters_deleted": 0, "letters_evicted": 0, "letters_lost_at_exit": 0},
            "letters_held": 0,
        }
        assert status["requests"]["accepted"] == 2
        assert status["requests"]["refused"] == {"http_400": 1}
        assert status["requests"]["waiting"] == 0
        upstream = status["upstream_requests"]
        assert (upstream["settled_batches"], upstream["replies"]) == (2, {"200": 2})
        assert upstream["raw_bytes"] > 0
        assert upstream["wire_bytes"] > 0
        assert upstream["delivered_rows_per_s"] > 0
        # Quarantined rows left the buffer too.
        assert (upstream["replies_1m"], upstream["throttled_1m"], upstream["delivered_rows_1m"]) == (2, 0, 5)


async def test_a_full_buffer_a_waiting_client_and_an_age_are_shown() -> None:
    async with running_world(BUFFER_SIZE="10", BATCH_SIZE="10", **LATER) as world:
        await post(world.port)
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b"{}\n" * 5))
            await until(lambda: world.status()["requests"]["waiting"] == 1)
            status = await _status(world)
        buffer = status["buffer"]
        assert (buffer["rows"], buffer["bytes"], buffer["utilisation"]) == (5, 15, 0.5)
        assert buffer["held_bytes"] > 0
        assert 0 <= buffer["oldest_age_s"] < 60
        assert status["drain"]["rows_left"] == 5
        (destination,) = status["destinations"]
        assert (destination["buffered_rows"], destination["state"]) == (5, "delivering")
        assert "5 rows are waiting" in destination["sentence"]


@pytest.mark.looptime
async def test_a_scaler_hears_that_rows_pile_up_and_that_tinybird_throttles() -> None:
    async with running_world(BUFFER_SIZE="10", BATCH_SIZE="10", FLUSH_INTERVAL="10ms") as world:
        await post(world.port, "name=hits&wait=true", b"{}\n{}")
        world.tinybird.set_faults(Fault(status=429, retry_after=60))
        await post(world.port, body=b"{}\n" * 3)
        await until(lambda: world.status()["upstream_requests"]["throttled_1m"] == 1)
        assert world.status()["drain_time_s"] == 0
        await asyncio.sleep(BACKLOG_LEAST_AGE_S)
        status = await _status(world)
        assert status["buffer"]["utilization_percent"] == 30
        assert 1 <= status["drain_time_s"] <= 90
        upstream = status["upstream_requests"]
        assert (upstream["replies_1m"], upstream["throttled_1m"], upstream["delivered_rows_1m"]) == (2, 1, 2)
        assert 0 <= status["cpu_percent"] <= 800


@pytest.mark.looptime
async def test_a_scaler_hears_nothing_of_rows_that_wait_for_a_person() -> None:
    async with running_world(BUFFER_SIZE="10", BATCH_SIZE="10", FLUSH_INTERVAL="10ms") as world:
        await post(world.port, "name=hits&wait=true", b"{}\n{}")
        world.tinybird.set_faults(Fault(status=403))
        await post(world.port, body=b"{}\n" * 3)
        await until(lambda: [each["state"] for each in world.status()["destinations"]] == ["held"])
        await asyncio.sleep(BACKLOG_LEAST_AGE_S)
        status = await _status(world)
        assert (status["buffer"]["rows"], status["drain_time_s"]) == (3, 0)


async def test_the_destination_with_most_rows_comes_first_and_each_says_what_holds_it_up() -> None:
    settings = {"tokens": (TokenEntry("one"), TokenEntry("two"))}
    async with running_world(settings, TINYBIRD_TOKEN=None, **LATER) as world:
        for token, name, row_count in (("one", "b", 1), ("two", "b", 3), ("one", "a", 1)):
            await post(world.port, f"name={name}&wait=true", token=token)
            assert (await post(world.port, f"name={name}", b"{}\n" * row_count, token=token)).status == 202
        assert (await post(world.port, "name=c&__tb__min_deployment=7", token="nobody")).status == 403
        destinations = (await _status(world))["destinations"]
        shown = [(d["data_source"], d["buffered_rows"], d["token_hash"], d["refusing"]) for d in destinations]
        assert shown == [
            ("b", 3, _hash("two"), None),
            ("a", 1, _hash("one"), None),
            ("b", 1, _hash("one"), None),
            ("c", 0, _hash("nobody"), 403),
        ]
        assert destinations[3]["params"] == {"__tb__min_deployment": "7"}
        assert "refused with 403" in destinations[3]["sentence"]
        assert "invalid authentication token" in destinations[3]["sentence"]


async def test_a_hold_is_told_with_its_reason_and_the_next_attempt() -> None:
    async with running_world() as world:
        await post(world.port)
        await world.tinybird.wait_for_rows("hits", 1)
        world.tinybird.set_tokens()
        await post(world.port, body=b"{}\n{}")
        await until(lambda: world.status()["destinations"][0]["state"] == "held")
        status = await _status(world)
        assert status["sentence"] == (
            "1 destination is not delivering (hits): 2 rows are kept. Somebody has to act on hits: `/status` says how."
        )
        (destination,) = status["destinations"]
        assert "does not accept the token" in destination["reason"]
        assert 50 < destination["next_attempt_in_s"] <= 60
        assert destination["not_delivering_for_s"] >= 0
        assert "To do: let TINYBIRD_TOKEN append to hits" in destination["sentence"]
        assert (destination["cause"], destination["status"]) == ("held", 403)


async def test_a_name_that_was_never_taken_is_shown_while_it_is_refused_and_forgotten_after() -> None:
    async with running_world({"create_datasources": False}) as world:
        assert (await post(world.port)).status == 404
        status = await _status(world)
        (refused,) = status["destinations"]
        assert (refused["cause"], refused["refusing"], refused["ledger"]["accepted"]) == ("refused", 404, 0)
        assert status["sentence"] == "Tinybird refuses 1 destination (hits): its clients are told."
        world.proxy.pipeline.probe_all()  # as a changed token does
        status = await _status(world)
        assert (status["destinations"], status["sentence"]) == ([], "All is well.")
        assert world.proxy.reporter.not_delivering() == []


async def test_those_that_do_not_deliver_are_listed_by_their_rows_and_no_more_than_a_probe_can_read() -> None:
    count = NOT_DELIVERING_MAX + 2
    async with running_world({"tokens": (TokenEntry("client"),)}, TINYBIRD_TOKEN=None, MAX_DESTINATIONS="200") as world:
        names = [f"d{n}" for n in range(count)]
        for name in names:
            assert (await post(world.port, f"name={name}&wait=true", token="client")).status == 200
        world.tinybird.set_faults(Fault(status=508))
        for n, name in enumerate(names):
            assert (await post(world.port, f"name={name}", b"{}\n" * (n + 1), token="client")).status == 202
        await until(lambda: all(found["state"] == "held" for found in world.status()["destinations"]))
        body = (await ask(world.proxy.admin_port, "/readyz", method="GET", token=None)).json()
        listed = body["not_delivering"]
        assert [found["rows"] for found in listed] == list(range(count, count - NOT_DELIVERING_MAX, -1))
        assert {found["cause"] for found in listed} == {"held"}
        assert listed[0]["sentence"].startswith("Held for ")
        assert listed[0]["oldest_age_s"] >= 0
        assert listed[0]["delivered_ago_s"] >= 0
        assert body["sentence"].startswith(f"{count} destinations are not delivering (d0, d1, d10, d11, d12, …): ")


async def test_dead_letters_are_counted_in_status_also_those_of_forgotten_destinations() -> None:
    async with running_world(MAX_DESTINATIONS="1", TINYBIRD_TOKEN=TOKEN) as world:
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        world.tinybird.set_faults(Fault(status=422, times=1))
        assert (await post(world.port, "name=hits&wait=true", b"{}\n{}")).status == 422
        assert (await post(world.port, "name=clicks&wait=true")).status == 200
        status = await _status(world)
        assert [found["data_source"] for found in status["destinations"]] == ["clicks"]
        assert status["dead_letters"]["rows"] == 2
        assert status["dead_letters"]["rows_by_reason_so_far"] == {"partial": 2}
        assert status["dead_letters"]["bytes"] > 0
        assert status["sentence"].startswith("2 rows are in dead letters, in memory only: ")
        assert status["ledger"]["letters_held"] == 2
        assert status["ledger"]["balances"] is True


async def test_the_token_in_use_is_shown_by_its_hash_since_when_and_what_tinybird_said_to_it() -> None:
    async with running_world() as world:
        tokens = (await _status(world))["tokens"]
        assert tokens["mode"] == "own"
        assert (tokens["clients"], tokens["files"], tokens["candidate"]) == (None, [], None)
        own = tokens["tinybird"]
        assert (own["hash"], own["accepted_at"], own["denied_at"]) == (_hash(TOKEN), None, None)
        assert _is_recent(own["since"])
        await post(world.port, "name=hits&wait=true")
        own = (await _status(world))["tokens"]["tinybird"]
        assert _is_recent(own["accepted_at"])
        assert own["denied_at"] is None
        world.tinybird.set_tokens()
        await post(world.port)
        await until(lambda: world.status()["destinations"][0]["state"] == "held")
        own = (await _status(world))["tokens"]["tinybird"]
        assert _is_recent(own["denied_at"])
        assert own["accepted_at"] is not None


async def test_clients_tokens_are_counted_and_the_list_of_them_is_known_by_its_hash() -> None:
    listed = "one\ntwo name=x # comment\n\n# three\n"
    async with running_world(AUTHORIZATION_TOKEN=listed) as world:
        assert (await _status(world))["tokens"]["clients"] == {"entries": 2, "hash": _hash(listed.strip())}
    async with running_world(TINYBIRD_TOKEN=None) as world:
        tokens = (await _status(world))["tokens"]
        assert (tokens["mode"], tokens["clients"]) == ("clients", None)
        assert "tinybird" not in tokens


async def test_the_hash_of_clients_tokens_is_that_of_the_list_in_use_not_of_a_file_that_cannot_be_used(
    tmp_path: Path,
) -> None:
    file = tmp_path / "accepted"
    file.write_text("one\n")
    async with running_world(AUTHORIZATION_TOKEN_FILE=str(file)) as world:

        def shown() -> Any:
            return world.status()["tokens"]["clients"]["hash"]

        assert shown() == _hash("one")
        file.write_text("one\ntwo\n")
        await until(lambda: shown() == _hash("one\ntwo"))
        file.write_text("one two\n")
        await until(lambda: world.status()["tokens"]["files"][0]["problem"] is not None)
        assert shown() == _hash("one\ntwo")


async def test_pages_are_made_while_destinations_come_and_go() -> None:
    async with running_world(MAX_DESTINATIONS="2") as world:
        for n in range(6):
            await post(world.port, f"name=d{n}&wait=true")
            status = await _status(world)
            assert len(status["destinations"]) <= 2
            assert status["ledger"]["balances"] is True
        assert status["ledger"]["accepted"] == status["ledger"]["delivered"] == 6


# No secret, anywhere.


async def test_no_token_and_no_row_appears_in_anything_that_the_process_says() -> None:
    marks = {
        name: f"MARK{name}KRAM"
        for name in (
            "own",
            "client",
            "narrow",
            "admin",
            "header",
            "query",
            "basic",
            "passed",
            "cookie",
            "row",
            "broken",
        )
    }
    env = {
        **{"TINYBIRD_TOKEN": marks["own"], "ADMIN_TOKEN": marks["admin"], "LOG_LEVEL": "debug", "PASS_THROUGH": "true"},
        "SHUTDOWN_TIMEOUT": "300ms",
        "AUTHORIZATION_TOKEN": f"{marks['client']} name=app\n{marks['narrow']} allow=elsewhere",
    }
    encoding = "MARKencodingKRAM"  # whoever sends it hears it again, in a 415; nobody else does
    said = b""
    async with (
        running_tinybird(token=marks["own"]) as tinybird,
        running_process(environment(tinybird.url, **env)) as proxy,
    ):
        port, admin = proxy.port, proxy.admin_port
        row = b'{"n":"%s"}' % marks["row"].encode()
        bearers = {name: {"Authorization": f"Bearer {marks[name]}"} for name in marks}
        answers = [
            await post(port, body=row, token=marks["client"]),
            await post(port, f"name=hits&token={marks['client']}", row, token=None),
            await post(port, body=row, token=marks["narrow"]),
            await post(port, body=row, token=marks["header"]),
            await post(port, f"name=hits&token={marks['query']}", row, token=None),
            await post(port, f"name=%00&token={marks['client']}", row, token=None),
            await post(port, body=row, token=None, headers={"Authorization": f"Basic {marks['basic']}"}),
            await post(port, body=b'{"%s":' % marks["broken"].encode(), token=marks["client"]),
            await post(port, body=b'\xff"%s"' % marks["broken"].encode(), token=marks["client"]),
            await post(port, body=row, token=marks["client"], headers={"Content-Encoding": encoding}),
            await post(port, body=row, token=marks["client"], headers={"Content-Encoding": "gzip"}),
            await ask(port, f"/v0/x?token={marks['client']}", method="GET", token=None),
            await ask(port, f"//x?token={marks['query']}", method="GET", token=marks["header"]),
            await ask(admin, "/drain", headers=bearers["header"]),
            await ask(admin, f"/drain?token={marks['query']}", token=None),
            await ask(admin, "/elsewhere", headers=bearers["admin"]),
        ]
        for port_asked in (port, admin):
            async with connected(port_asked) as peer:
                await peer.send(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {marks['header']}\r\n\r\n".encode())
                await peer.rest()
        # What Tinybird says, and what becomes of the rows then: refused, quarantined, ambiguous, held, lost.
        await tinybird.wait_for_rows("hits", 2)
        passed = await ask(
            port, f"/v0/pipes?token={marks['passed']}", method="GET", headers={"Cookie": marks["cookie"]}
        )
        assert passed.status in (401, 403, 404)
        for fault in (Fault(quarantine="all"), Fault(status=500), Fault(reset="after_body"), Fault(status=400)):
            tinybird.set_faults(fault)
            answers.append(await post(port, "name=troubled", row, token=marks["client"]))
        tinybird.set_faults()
        tinybird.set_tokens()
        answers.append(await post(port, "name=held", row, token=marks["client"]))
        async with connected(port) as peer:
            await peer.send(request("/v0/events?name=hits", row, token=marks["client"])[:-5])
            await proxy.status()
            peer.writer.transport.abort()
        for path in ("/status", "/metrics", "/readyz", "/livez"):
            answers.append(await ask(admin, path, method="GET", token=None))
        assert await proxy.stop() == 1
        said = proxy.output + b"".join(repr(answer).encode() for answer in answers)
        assert b"rows lost" in said
    found = [name for name, mark in marks.items() if mark.encode() in said]
    assert found == []
    assert encoding.encode() not in proxy.output
    assert _hash(marks["own"]).encode() in said
    for received in tinybird.requests:
        if received.path == "/v0/events":
            assert "token" not in received.query
            assert marks["client"] not in repr(received)


async def test_no_token_and_no_row_appears_in_a_span_or_anything_else_with_clients_tokens_either() -> None:
    marks = ("MARKgoodKRAM", "MARKbadKRAM")
    spans: list[bytes] = []

    async def collect(peer: Peer) -> None:
        while True:
            head = await asked(peer)
            body = await peer.reader.readexactly(int(head["Content-Length"]))
            spans.append(gzip.decompress(body) if head.all("Content-Encoding") == ["gzip"] else body)
            await peer.send(answer_bytes(200, b"", ("Content-Type", "application/x-protobuf")))

    env: dict[str, str | None] = {"TINYBIRD_TOKEN": None, "LOG_LEVEL": "debug", "SHUTDOWN_TIMEOUT": "300ms"}
    async with (
        serving(collect) as collector,
        running_tinybird(tokens=(TokenEntry(marks[0]),)) as tinybird,
        running_process(
            environment(tinybird.url, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector}", **env)
        ) as proxy,
    ):
        for mark in marks:
            answers = [
                await post(proxy.port, body=b'{"row":"MARK"}', token=mark, headers={"traceparent": TRACEPARENT}),
                await post(proxy.port, f"name=clicks&token={mark}", token=None),
                await ask(proxy.port, f"/v0/datasources?token={mark}", method="GET", token=None),
            ]
        tinybird.set_faults(Fault(hang=True))
        answers.append(await post(proxy.port, token=marks[0]))
        answers += [await ask(proxy.admin_port, path, method="GET") for path in ("/status", "/metrics")]
        assert await proxy.stop() == 1
        tinybird.set_faults()
        said = proxy.output + b"".join(repr(answer).encode() for answer in answers)
        assert b"MARK" not in said
        assert _hash(marks[0]).encode() in said
    exported = b"".join(spans)
    assert b"/v0/events?name=clicks" in exported
    assert b"MARK" not in exported
