"""The eleven bugs of the first tinybird-proxy (Unkey's, in Go, 2024), each as what must hold here instead."""

import asyncio
import gzip
import hashlib
import json
import logging
import random
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from tests.proxy.running import (
    TOKEN,
    Answer,
    World,
    ask,
    connected,
    environment,
    plain_tinybird,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    until,
)

from tinybird_proxy import codec
from tinybird_proxy.batch import Payload
from tinybird_proxy.emulator import Emulator, Fault
from tinybird_proxy.emulator.request_log import ReceivedRequest
from tinybird_proxy.emulator.tokens import token_hash

LATER = {"FLUSH_INTERVAL": "1h"}
GZIPPED = {"Content-Encoding": "gzip"}


async def _confirm(port: int, *names: str) -> None:
    """Have a first row delivered to each data source; those wait for no flush interval."""
    for name in names:
        assert (await post(port, f"name={name}&wait=true", b'{"first":1}')).status == 200


async def _metric(world: World, name: str) -> float:
    text = (await ask(world.proxy.admin_port, "/metrics", method="GET")).body.decode()
    (value,) = [line.split()[-1] for line in text.splitlines() if line.startswith(f"tinybird_proxy_{name} ")]
    return float(value)


async def _status(world: World) -> dict[str, Any]:
    status: dict[str, Any] = (await ask(world.proxy.admin_port, "/status", method="GET")).json()
    return status


def _to(tinybird: Emulator, name: str) -> list[ReceivedRequest]:
    return [received for received in tinybird.requests if received.datasource == name]


def _facts(status: dict[str, Any], name: str) -> dict[str, Any]:
    (facts,) = [facts for facts in status["destinations"] if facts["data_source"] == name]
    return dict(facts)


# 1


async def test_bug_1_sigterm_delivers_the_buffer_answers_who_waits_and_ends_with_status_0() -> None:
    """The original left main as soon as it stopped listening: buffer and open requests were lost, exit status 1."""
    rows = [b'{"n":%d}' % n for n in range(200)]
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **LATER)) as proxy:
        await _confirm(proxy.port, "hits")
        async with connected(proxy.port) as client, connected(proxy.port) as waiting:
            for row in rows:
                await client.send(request("/v0/events?name=hits", row))
                assert (await client.answer()).status == 202
            await waiting.send(request("/v0/events?name=hits&wait=true", b'{"waits":1}'))
            await proxy.status_until(lambda status: status["requests"]["waiting"] == 1)
            assert (await proxy.status())["buffer"]["rows"] == 201
            proxy.terminate()
            answer = await waiting.answer()
            assert (answer.status, answer["X-Ack"]) == (200, "delivered")
        assert await proxy.ended() == 0
        assert await tinybird.rows("hits") == [b'{"first":1}', *rows, b'{"waits":1}']


# 2

MALFORMED = (
    b'{"n":1',
    b'{"n":1}}',
    b"nonsense",
    b'{"n":1}{"n":2}',
    b'{"n":"\xff"}',
    b'{"n":' + b"[" * 5000,
    b"\0",
    b"1",
    b'[{"n":1},',
)


async def test_bug_2_a_malformed_body_is_answered_once_takes_nothing_and_the_next_request_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the original a body that could not be decoded made its handler loop for ever, adding a row each time."""
    async with running_world() as world, connected(world.port) as client:
        await _confirm(world.port, "hits")
        for body in MALFORMED:
            for query, sent in (("", body), ("", b'{"good":1}\n' + body), ("&format=json", body)):
                await client.send(request(f"/v0/events?name=hits{query}", sent))
                refused = await client.answer()
                assert refused.status == 400, sent
                assert refused.error
        await client.send(request("/v0/events?name=hits&wait=true", b'{"good":2}'))
        assert (await client.answer()).status == 200
        status = await _status(world)
        assert sum(status["requests"]["refused"].values()) == 3 * len(MALFORMED)
        assert (status["buffer"]["rows"], status["ledger"]["accepted"]) == (0, 2)
        assert await world.tinybird.rows("hits") == [b'{"first":1}', b'{"good":2}']
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# 3


async def test_bug_3_a_batch_of_100_000_rows_is_joined_once_and_not_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The original made a body by ``body += row``: a terabyte of copying for 100,000 rows, while all else waited."""
    joined: list[tuple[list[int], bool]] = []
    compress = codec.compress

    def watched(bodies: list[bytes], compression: Any) -> Payload:
        joined.append(([len(body) for body in bodies], threading.current_thread() is threading.main_thread()))
        return compress(bodies, compression)

    monkeypatch.setattr(codec, "compress", watched)
    row_of = b'{"n":%d,"of":"' + b"x" * 30 + b'"}'
    singles = [row_of % n for n in range(10_000)]
    large = [b"\n".join(row_of % n for n in range(first, first + 9_000)) for first in range(10_000, 100_000, 9_000)]
    async with running_world(BATCH_SIZE="100000", FLUSH_INTERVAL="1h") as world, connected(world.port) as client:
        await _confirm(world.port, "hits")
        joined.clear()
        for row in singles:
            client.writer.write(request("/v0/events?name=hits", row))
        for _ in singles:
            assert (await client.answer()).status == 202
        for body in large:
            await client.send(request("/v0/events?name=hits", body))
            assert (await client.answer()).status == 202
        await world.tinybird.wait_for_rows("hits", 100_001)
        first, batch = _to(world.tinybird, "hits")
        assert (first.row_count, batch.row_count) == (1, 100_000)
        ((sizes, on_loop),) = joined
        assert sizes == [len(body) for body in (*singles, *large)]  # each as it came: nothing was joined before
        assert not on_loop
        raw = b"\n".join((*singles, *large))
        assert batch.raw_sha256 == hashlib.sha256(raw).hexdigest()


# 4


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(hang=True, times=1), id="hangs"),
        pytest.param(Fault(reset="before_body", times=1), id="resets"),
        *(pytest.param(Fault(status=status, times=1), id=str(status)) for status in (429, 500, 502, 503, 504, 408)),
    ],
)
async def test_bug_4_what_tinybird_does_not_take_is_sent_again_the_same_bytes_until_it_does(fault: Fault) -> None:
    """The original waited for ever for a Tinybird that hung, and dropped the batch at any error."""
    rows = b'{"n":1}\n{"n":2}'
    async with running_world(UPSTREAM_TIMEOUT="200ms") as world:
        await _confirm(world.port, "hits")
        world.tinybird.set_faults(fault)
        assert (await post(world.port, body=rows)).status == 202
        await world.tinybird.wait_for_rows("hits", 3)
        _, failed, again = _to(world.tinybird, "hits")
        assert failed.headers["X-Batch-Id"] == again.headers["X-Batch-Id"]
        assert failed.body_sha256 in (again.body_sha256, None)  # None: the connection was reset before the body
        assert await world.tinybird.rows("hits") == [b'{"first":1}', *rows.split(b"\n")]
        await until(lambda: world.status()["ledger"]["delivered"] == 3)
        assert world.status()["ledger"]["dropped"] == {}
        world.tinybird.set_faults()


async def test_bug_4_while_tinybird_hangs_rows_are_taken_and_they_arrive_when_it_is_back() -> None:
    """The original's one sender had no timeout: a Tinybird that hung once stopped everything until a restart."""
    async with running_world(UPSTREAM_TIMEOUT="200ms") as world:
        await _confirm(world.port, "hits")
        world.tinybird.set_faults(Fault(hang=True))
        rows = [b'{"n":%d}' % n for n in range(50)]
        for row in rows:
            assert (await post(world.port, body=row)).status == 202
        await until(lambda: world.status()["upstream_requests"]["replies"].get("timeout", 0) >= 1)
        assert "no answer" in _facts(await _status(world), "hits")["sentence"]
        world.tinybird.set_faults()
        arrived = await world.tinybird.wait_for_rows("hits", 51)
        assert sorted(arrived[1:]) == sorted(rows)


# 5


async def test_bug_5_a_data_source_that_hangs_fails_or_is_refused_delays_no_other() -> None:
    """The original sent its data sources one after the other: a slow or broken one stopped all that came after it."""
    async with running_world(UPSTREAM_CONCURRENCY="1") as world:
        await _confirm(world.port, "hangs", "fails", "refused", "good")
        world.tinybird.set_faults(
            Fault(datasource="hangs", hang=True),
            Fault(datasource="fails", status=503, retry_after=300),
            Fault(datasource="refused", status=403),
        )
        for name in ("hangs", "fails", "refused"):
            for _ in range(20):
                assert (await post(world.port, f"name={name}")).status == 202
        await until(lambda: _facts(world.status(), "fails")["state"] == "throttled")
        await until(lambda: _facts(world.status(), "refused")["state"] == "held")
        await until(lambda: _facts(world.status(), "hangs")["in_flight"] == 1)
        for n in range(5):  # one flush after the other
            answer = await post(world.port, "name=good&wait=true", b'{"n":%d}' % n)
            assert (answer.status, answer["X-Ack"]) == (200, "delivered")
        status = await _status(world)
        assert _facts(status, "hangs")["in_flight"] == 1  # all that time
        assert {_facts(status, name)["buffered_rows"] for name in ("hangs", "fails", "refused")} == {20}
        assert len(await world.tinybird.rows("good")) == 6
        world.tinybird.set_faults()


# 6

ROWS_AS_WRITTEN = (
    b'{"id":9007199254740993,"big":123456789012345678901234567890,"minus":-9223372036854775809}',
    b'{"z":1,"a":2,"m":{"y":1,"b":2}}',
    b'{"html":"<a href=\\"x?a=1&b=2\\">\'</a>"}',
    b'{"k":1,"k":2,"k":{"k":3,"k":4}}',
    b'{"u":"\\u00e9\\u003c\\ud83d\\ude00\\/","raw":"\xc3\xa9\xe2\x80\xa8\xf0\x9f\x98\x80"}',
    b'{"f":1.0,"e":1e400,"E":1E-7,"zero":-0.0,"long":0.1000000000000000055511151231257827}',
    b'{ "spaces" :\t[ 1 ,  2 ] }',
    b'{"":null,"deep":[[[[{}]]]],"t":true}',
)


@pytest.mark.parametrize("form", ["one by one", "lines", "crlf", "array", "gzip"])
async def test_bug_6_rows_arrive_byte_for_byte(form: str) -> None:
    """The original decoded and encoded rows: large integers were rounded, keys sorted and merged, ``<>&`` rewritten."""
    bodies: Sequence[bytes] = ROWS_AS_WRITTEN
    if form != "one by one":
        bodies = [{"crlf": b"\r\n", "array": b","}.get(form, b"\n").join(ROWS_AS_WRITTEN)]
    async with running_world() as world:
        for body in bodies:
            if form == "array":
                body = b"[" + body + b"]"
            elif form == "gzip":
                body = gzip.compress(body)
            answer = await post(world.port, "name=hits&wait=true", body, headers=GZIPPED if form == "gzip" else {})
            assert answer.status == 200
        assert await world.tinybird.rows("hits") == list(ROWS_AS_WRITTEN)


# 7


async def test_bug_7_a_full_buffer_answers_a_status_at_once_and_its_bytes_are_bounded() -> None:
    """The original counted rows, whatever their size, and when these were too many it let every client hang."""
    chance = random.Random(7)
    env = {"BUFFER_BYTES": "10MB", "COMPRESSION": "none", "BATCH_BYTES": "1MB", "MAX_BODY_BYTES": "1MB"}
    body = b'{"n":"%s"}' % chance.randbytes(250_000).hex().encode()
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        await _confirm(proxy.port, "hits")
        tinybird.set_faults(Fault(hang=True))
        before_bytes = proxy.peak_bytes
        answers: list[Answer] = []

        async def send() -> None:
            async with connected(proxy.port) as client:
                for _ in range(5):
                    await client.send(request("/v0/events?name=hits", body))
                    answers.append(await client.answer())

        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(send())
        assert len(answers) == 200  # every one of 100 MB
        refused = [answer for answer in answers if answer.status != 202]
        assert {answer.status for answer in refused} == {503}
        assert all(1 <= int(answer["Retry-After"]) <= 60 and answer.error for answer in refused)
        status = await proxy.status()
        assert status["ledger"]["accepted"] == 1 + len(answers) - len(refused)
        assert 9_000_000 < status["buffer"]["bytes"] <= 11_000_000
        assert status["requests"]["waiting"] == 0
        assert status["buffer"]["rows"] < 30  # far from BUFFER_SIZE
        assert proxy.peak_bytes - before_bytes < 60_000_000
        tinybird.set_faults()
        await tinybird.wait_for_rows("hits", status["ledger"]["accepted"])


async def test_bug_7_rows_are_bounded_too_and_there_is_room_again_once_tinybird_has_them() -> None:
    """The original blocked the handler until there was room: clients saw a hang and no reason."""
    async with running_world(BUFFER_SIZE="100", BATCH_SIZE="50", **LATER) as world:
        await _confirm(world.port, "hits")
        world.tinybird.set_faults(Fault(hang=True))
        taken = 0
        while (answer := await post(world.port, body=b"{}\n{}\n{}\n{}\n{}")).status == 202:
            taken += 5
        assert 100 <= taken <= 110
        assert (answer.status, "Retry-After" in answer) == (503, True)
        world.tinybird.set_faults()
        await world.tinybird.wait_for_rows("hits", 101)
        await until(lambda: world.status()["buffer"]["rows"] <= 10)
        assert (await post(world.port)).status == 202


# 8


async def test_bug_8_without_authorization_token_any_token_is_welcome_and_ours_goes_to_tinybird() -> None:
    """The original without AUTHORIZATION_TOKEN refused who sent a token, as every SDK does, with 401."""
    async with running_world() as world:
        sent: list[tuple[str, str | None, dict[str, str]]] = [
            ("", None, {}),
            ("", "p.any-token-at-all", {}),
            ("&token=p.another", None, {}),
            ("", None, {"Authorization": "Basic eDp5"}),
            ("", None, {"Authorization": "Bearer"}),
        ]
        for query, token, headers in sent:
            answer = await post(world.port, f"name=hits&wait=true{query}", token=token, headers=headers)
            assert answer.status == 200, (query, token, headers)
        received = _to(world.tinybird, "hits")
        assert len(received) == len(sent)
        for asked in received:
            assert asked.headers["Authorization"] == f"Bearer {token_hash(TOKEN)}"
            assert "token" not in asked.query


# 9


async def test_bug_9_rows_that_tinybird_does_not_account_for_are_counted_shown_measured_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The original wrote one line when ``successful_rows`` was not what it had sent, and counted nothing."""
    async with running_world() as world:
        await _confirm(world.port, "hits")
        world.tinybird.set_faults(Fault(counts={"successful_rows": 3}, times=1))
        answer = await post(world.port, "name=hits&wait=true", b"{}\n{}\n{}\n{}\n{}")
        assert answer.status == 202  # nobody hears that all of them are delivered
        ledger = (await _status(world))["ledger"]
        assert (ledger["accepted"], ledger["delivered"], ledger["unverified"]) == (6, 4, 2)
        assert _facts(await _status(world), "hits")["ledger"]["unverified"] == 2
        assert await _metric(world, "rows_unverified_total") == 2
        (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "do not add up" in told.getMessage()
        said = told.__dict__["fields"]
        assert (said["data_source"], said["rows"], said["unverified"]) == ("hits", 5, 2)


async def test_bug_9_quarantined_rows_are_counted_shown_measured_logged_and_told_to_who_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The original took rows that Tinybird put into quarantine for delivered, and nobody ever heard of them."""
    schemas = {"hits": {"n": "Int64"}}
    async with running_world({"schemas": schemas}) as world:
        body = b'{"n":1}\n{"n":"no number"}\n{"m":3}'
        answer = await post(world.port, "name=hits&wait=true", body)
        assert answer.json() == {"successful_rows": 1, "quarantined_rows": 2}
        status = await _status(world)
        assert (status["ledger"]["delivered"], status["ledger"]["quarantined"]) == (1, 2)
        assert _facts(status, "hits")["ledger"]["quarantined"] == 2
        assert await _metric(world, "rows_quarantined_total") == 2
        (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        said = told.__dict__["fields"]
        assert ("quarantine" in told.getMessage(), said["data_source"], said["rows"]) == (True, "hits", 2)


# 10


async def test_bug_10_wait_true_is_answered_once_tinybird_has_the_rows_and_not_before() -> None:
    """The original ignored ``wait`` and answered 200 before anything was sent."""
    async with running_world() as world:
        await _confirm(world.port, "hits")
        world.tinybird.set_faults(Fault(hang=True, times=1))
        async with connected(world.port) as client:
            await client.send(request("/v0/events?name=hits&wait=true", b'{"n":1}'))
            await until(lambda: world.tinybird.faults[0][1] == 1)
            assert world.status()["requests"]["waiting"] == 1
            assert (await post(world.port)).status == 202
            world.tinybird.set_faults()
            answer = await client.answer()
            assert (answer.status, answer["X-Ack"]) == (200, "delivered")
            assert b'{"n":1}' in await world.tinybird.rows("hits")


async def test_bug_10_a_json_document_becomes_its_rows_and_a_compressed_body_is_read() -> None:
    """The original ignored ``format=json`` and took a gzip body for broken JSON."""
    async with running_world() as world:
        pretty = b'{\n  "n": 1,\n  "m": [\n    2\n  ]\n}'
        for query, body, headers in (
            ("&format=json", pretty, {}),
            ("&format=json", b'[{"n":2}, {"n":3}]', {}),
            ("&format=ndjson", gzip.compress(b'{"n":4}\n{"n":5}'), GZIPPED),
        ):
            answer = await post(world.port, f"name=hits&wait=true{query}", body, headers=headers)
            assert answer.status == 200, body
        arrived = await world.tinybird.rows("hits")
        assert list(map(json.loads, arrived)) == [{"n": 1, "m": [2]}, {"n": 2}, {"n": 3}, {"n": 4}, {"n": 5}]


async def test_bug_10_name_and_tb_parameters_reach_tinybird_escaped_and_rows_that_differ_in_them_never_mix() -> None:
    """The original dropped every parameter but ``name`` and put that into its URL as it was."""
    name = "a b&wait=false#/é%?+"
    spelled = "a%20b%26wait%3Dfalse%23%2F%C3%A9%25%3F%2B"
    async with plain_tinybird() as tinybird, running_process(environment(tinybird.url)) as proxy:
        for query, row in (
            (f"name={spelled}", b'{"n":1}'),
            (f"name={spelled}&__tb_min%20x=a%26b", b'{"n":2}'),
            ("name=hits&__tb_x=1&other=2", b'{"n":3}'),
        ):
            assert (await post(proxy.port, f"{query}&wait=true", row)).status == 200
        assert await proxy.stop() == 0
        found = [
            (parse_qsl(urlsplit(asked.target).query, strict_parsing=True), gzip.decompress(body))
            for asked, body in tinybird.asked
        ]
        wait = ("wait", "true")
        assert found == [
            ([("name", name), wait], b'{"n":1}'),
            ([("name", name), ("__tb_min x", "a&b"), wait], b'{"n":2}'),
            ([("name", "hits"), ("__tb_x", "1"), wait], b'{"n":3}'),
        ]


async def test_bug_10_what_goes_to_tinybird_is_compressed() -> None:
    """The original sent plain JSON: five to ten times the bytes."""
    row = b'{"time":"2024-05-01T00:00:00Z","path":"/pricing","n":%d}'
    async with running_world(**LATER, BATCH_SIZE="1000") as world:
        await _confirm(world.port, "hits")
        body = b"\n".join(row % n for n in range(1000))
        assert (await post(world.port, body=body)).status == 202
        await world.tinybird.wait_for_rows("hits", 1001)
        batch = _to(world.tinybird, "hits")[-1]
        assert batch.headers["Content-Encoding"] == "gzip"
        assert batch.raw_bytes == len(body)
        assert batch.body_bytes is not None
        assert batch.body_bytes * 5 < len(body)
        await until(lambda: world.status()["upstream_requests"]["settled_batches"] == 2)
        sent = (await _status(world))["upstream_requests"]
        assert sent["wire_bytes"] * 5 < sent["raw_bytes"]


# 11


async def test_bug_11_the_own_counters_reach_tinybird_while_the_buffer_is_full_and_a_data_source_is_down() -> None:
    """The original put its own counters into the same buffer as all rows: it went blind just when it mattered."""
    env = {"TINYBIRD_METRICS_DATASOURCE": "proxy_metrics", "BUFFER_SIZE": "20", "BATCH_SIZE": "20"}
    env |= {"SHUTDOWN_TIMEOUT": "2500ms"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        await _confirm(proxy.port, "hits")
        tinybird.set_faults(Fault(datasource="hits", status=503, retry_after=300))
        taken = 1
        while (await post(proxy.port)).status == 202:
            taken += 1
        await proxy.status_until(lambda status: _facts(status, "hits")["state"] == "throttled")
        assert await proxy.stop() == 1
        (own,) = map(json.loads, await tinybird.rows("proxy_metrics"))
        assert (own["rows"], own["delivered_rows"], own["buffered_rows"]) == (taken, 1, taken - 1)
        assert own["refused_requests"] == 1
        assert own["undelivered_destinations"] == 1
        assert own["failed_upstream_requests"] > 0
        assert own["stops"] == 1
        # And they are none of the rows that clients were promised.
        assert proxy.lines[-1]["ledger"]["accepted"] == taken
        assert proxy.lines[-1]["ledger"]["dropped"] == {"shutdown": taken - 1}
