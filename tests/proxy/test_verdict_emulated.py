"""Every verdict through the real thing: a proxy and the emulated Tinybird, real ports, real faults.

What Tinybird has then, the ledger, the dead letters, what the client heard, and what a person is told meanwhile.
"""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.proxy.running import (
    TOKEN,
    Answer,
    Peer,
    ask,
    environment,
    make_authority,
    make_certificate,
    post,
    running_proxy,
    running_tinybird,
    server_tls,
    serving,
    until,
)
from tests.proxy.said import SAID, plain

from tinybird_proxy.app.run import Proxy
from tinybird_proxy.emulator import Emulator, Fault, TokenEntry
from tinybird_proxy.testing.pipelines import imbalances

FIRST = b'{"n":"first"}'
CLIENT = "a-client-s-token"


@dataclass(frozen=True, slots=True)
class Scene:
    """A proxy, and the emulator if there is one."""

    proxy: Proxy
    tinybird: Emulator

    async def post(self, *rows: bytes, query: str = "name=hits", token: str | None = TOKEN) -> Answer:
        """One request with these rows."""
        return await post(self.proxy.port, query, b"\n".join(rows), token=token)

    async def confirm(self, token: str | None = TOKEN) -> None:
        """Have a first row delivered."""
        answer = await self.post(FIRST, query="name=hits&wait=true", token=token)
        assert (answer.status, answer["X-Ack"]) == (200, "delivered")

    def end_faults(self) -> int:
        """Clear the faults; to how many requests the first of them was applied."""
        applied = self.tinybird.faults[0][1]
        self.tinybird.set_faults()
        return applied

    async def is_empty(self) -> None:
        """Wait until nothing is buffered any more."""
        await until(lambda: self.proxy.pipeline.buffered_rows() == 0)

    async def arrived(self) -> Counter[bytes]:
        """How often Tinybird has which row, without the first one."""
        found = Counter(await self.tinybird.rows("hits"))
        assert found.pop(FIRST, 1) == 1
        return found


async def _told(proxy: Proxy) -> dict[str, Any]:
    """What every place says at the moment."""
    status = (await ask(proxy.admin_port, "/status", method="GET", token=None)).json()
    ready = await ask(proxy.admin_port, "/readyz", method="GET", token=None)
    page = await ask(proxy.admin_port, "/metrics", method="GET", token=None)
    assert (ready.status, ready.json()["ready"]) == (200, True)
    shown = [found for found in status["destinations"] if found["data_source"] == "hits"]
    return {
        "sentences": [plain(found["sentence"]) for found in shown],
        "causes": [found["cause"] for found in shown],
        "overall": plain(status["sentence"]),
        "readyz": plain(ready.json()["sentence"]),
        "not_delivering": [(found["cause"], plain(found["sentence"])) for found in ready.json()["not_delivering"]],
        "metrics": {
            sample.labels["cause"]: sample.value
            for family in text_string_to_metric_families(page.body.decode())
            if family.name == "tinybird_proxy_destinations_not_delivering"
            for sample in family.samples
            if sample.value
        },
    }


async def says(proxy: Proxy, name: str) -> None:
    """Wait until ``/status``, ``/readyz`` and ``/metrics`` all say what ``SAID[name]`` is."""
    said = SAID[name]
    expected = {
        "sentences": [said.sentence],
        "causes": [said.cause],
        "overall": said.overall,
        "readyz": said.overall,
        "not_delivering": [] if said.cause is None else [(said.cause, said.sentence)],
        "metrics": {} if said.cause is None else {said.cause: 1.0},
    }
    told: dict[str, Any] = {}

    async def as_expected() -> bool:
        told.update(await _told(proxy))
        return told == expected

    try:
        await until(as_expected, within_s=8)
    except TimeoutError:
        assert told == expected


@asynccontextmanager
async def scene(settings: dict[str, Any] | None = None, /, **env: str | None) -> AsyncIterator[Scene]:
    """Both run until the block ends, and then no row is missing anywhere."""
    async with running_tinybird(**(settings or {})) as tinybird:
        async with running_proxy(environment(tinybird.url, **env)) as proxy:
            yield Scene(proxy, tinybird)
            assert imbalances(proxy.pipeline) == []
            assert proxy.pipeline.check_ledger() == 0
        tinybird.set_faults()


def numbered(count: int, *, bad: Sequence[int] = ()) -> list[bytes]:
    """Different rows, some of them bad."""
    return [b'{"n":%d%s}' % (n, b',"bad":1' if n in bad else b"") for n in range(count)]


def terms(proxy: Proxy) -> dict[str, Any]:
    """The terms of the ledger that are not 0."""
    ledger = proxy.pipeline.ledger()
    letters = proxy.pipeline.surroundings.letters.held_rows()
    found = ledger.as_dict(proxy.pipeline.buffered_rows(), letters)
    return {name: value for name, value in found.items() if value}


def letters(proxy: Proxy) -> list[tuple[str, int | None, str, int]]:
    """Reason, status, message and rows of each dead letter."""
    found = proxy.pipeline.surroundings.letters.select()
    return [(str(letter.reason), letter.status, letter.message, letter.row_count) for letter in found]


def free_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


# Answers that say where the rows are.


@dataclass(frozen=True, slots=True, kw_only=True)
class Settles:
    """A 2xx for three rows after a first one that was confirmed."""

    name: str
    fault: Fault | None = None
    client: tuple[int, dict[str, int]]
    terms: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[bytes] = tuple(numbered(3))
    arrived: Sequence[bytes] = tuple(numbered(3))


TAKEN = (202, {"successful_rows": 3, "quarantined_rows": 0})


@pytest.mark.parametrize(
    "case",
    [
        Settles(
            name="200",
            client=(200, {"successful_rows": 3, "quarantined_rows": 0}),
            terms={"accepted": 4, "delivered": 4},
        ),
        Settles(
            name="200 with quarantine",
            settings={"schemas": {"hits": {"n": "String", "bad": "Nullable(String)"}}},
            rows=[b'{"n":"1"}', b'{"n":[]}', b'{"n":"3"}'],
            client=(200, {"successful_rows": 2, "quarantined_rows": 1}),
            terms={"accepted": 4, "delivered": 3, "quarantined": 1},
            arrived=[b'{"n":"1"}', b'{"n":"3"}'],
        ),
        Settles(
            name="200 with too few",
            fault=Fault(counts={"successful_rows": 1}),
            client=TAKEN,
            terms={"accepted": 4, "delivered": 2, "unverified": 2},
        ),
        Settles(
            name="200 with too many",
            fault=Fault(counts={"successful_rows": 9}),
            client=(200, {"successful_rows": 3, "quarantined_rows": 0}),
            terms={"accepted": 4, "delivered": 4},
        ),
        Settles(
            name="202",
            fault=Fault(status=202, ingest=True),
            client=TAKEN,
            terms={"accepted": 4, "delivered": 1, "unverified": 3},
        ),
        Settles(
            name="200 unreadable after readable ones",
            fault=Fault(body="<html>", text=True),
            client=TAKEN,
            terms={"accepted": 4, "delivered": 1, "unverified": 3},
        ),
    ],
    ids=lambda case: case.name,
)
async def test_a_2xx_settles_the_rows_by_what_it_says(case: Settles) -> None:
    async with scene(case.settings) as it:
        await it.confirm()
        it.tinybird.set_faults(*([] if case.fault is None else [case.fault]))
        answer = await it.post(*case.rows, query="name=hits&wait=true")
        assert (answer.status, answer.json()) == case.client
        await says(it.proxy, case.name)
        assert await it.arrived() == Counter(case.arrived)
        assert terms(it.proxy) == case.terms
        assert letters(it.proxy) == []


async def test_a_2xx_that_nobody_can_read_from_a_url_that_never_answered_like_tinybird_is_held_unprobed() -> None:
    async with scene() as it:
        it.tinybird.set_faults(Fault(body="It works!", text=True))
        answer = await it.post(*numbered(3))
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(it.proxy, "200 unreadable at first")
        assert terms(it.proxy) == {"accepted": 3, "buffered": 3, "ambiguous": 3}
        assert it.end_faults() == 1
        it.proxy.pipeline.probe_all()
        await it.is_empty()
        assert await it.arrived() == Counter(dict.fromkeys(numbered(3), 2))
        assert terms(it.proxy) == {"accepted": 3, "delivered": 3, "ambiguous": 3}
        await says(it.proxy, "200 after an unreadable one")


# The same batch again.


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Trouble that ends, for three rows after a first one that was confirmed."""

    name: str
    fault: Callable[[], Fault]
    ambiguous: bool = False
    env: dict[str, str] = field(default_factory=dict)


def in_two_seconds() -> str:
    """A date for ``Retry-After``."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize(
    "case",
    [
        Again(name="429 with seconds", fault=lambda: Fault(status=429, retry_after=1)),
        Again(name="429 with a date", fault=lambda: Fault(status=429, retry_after=in_two_seconds())),
        Again(name="429 without", fault=lambda: Fault(status=429)),
        Again(name="503 of Tinybird", fault=lambda: Fault(status=503, retry_after=1)),
        Again(name="503 of Tinybird without", fault=lambda: Fault(status=503)),
        Again(name="503 of a gateway", fault=lambda: Fault(status=503, text=True, ingest=True), ambiguous=True),
        Again(name="408", fault=lambda: Fault(status=408), ambiguous=True),
        Again(name="500", fault=lambda: Fault(status=500, ingest=True), ambiguous=True),
        Again(name="502", fault=lambda: Fault(status=502), ambiguous=True),
        Again(name="504", fault=lambda: Fault(status=504), ambiguous=True),
        Again(
            name="no answer",
            fault=lambda: Fault(hang=True, ingest=True),
            ambiguous=True,
            env={"UPSTREAM_TIMEOUT": "100ms"},
        ),
        Again(name="reset before the body", fault=lambda: Fault(reset="before_body"), ambiguous=True),
        Again(name="reset during the body", fault=lambda: Fault(reset="during_body"), ambiguous=True),
        Again(name="reset after the body", fault=lambda: Fault(reset="after_body", ingest=True), ambiguous=True),
    ],
    ids=lambda case: case.name,
)
async def test_trouble_that_ends_costs_no_row_and_doubles_only_what_was_ambiguous(case: Again) -> None:
    rows = numbered(3)
    async with scene(**case.env) as it:
        await it.confirm()
        fault = case.fault()
        it.tinybird.set_faults(fault)
        answer = await it.post(*rows)
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        assert answer.json() == {"successful_rows": 3, "quarantined_rows": 0}
        await says(it.proxy, case.name)
        applied = it.end_faults()
        assert applied > 0
        await it.is_empty()
        copies = 1 + applied if fault.ingests else 1
        assert await it.arrived() == Counter(dict.fromkeys(rows, copies))
        ambiguous = {"ambiguous": 3} if case.ambiguous else {}
        assert terms(it.proxy) == {"accepted": 4, "delivered": 4, **ambiguous}
        assert letters(it.proxy) == []
        ids = [request.headers["X-Batch-Id"] for request in it.tinybird.requests if request.path == "/v0/events"]
        assert len(set(ids)) == 2
        await says(it.proxy, "200 after ambiguous ones" if case.ambiguous else "200")


async def test_a_reset_in_the_middle_of_a_large_body_is_ambiguous_and_costs_no_row() -> None:
    rows = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * 500_000) for n in range(10)]
    async with scene(COMPRESSION="none") as it:
        await it.confirm()
        it.tinybird.set_faults(Fault(reset="during_body", times=1))
        assert (await it.post(*rows)).status == 202
        await it.is_empty()
        assert await it.arrived() == Counter(rows)
        assert terms(it.proxy) == {"accepted": 11, "delivered": 11, "ambiguous": 10}


async def test_a_refused_connection_is_not_ambiguous_and_the_rows_arrive_once_somebody_listens() -> None:
    port = free_port()
    async with running_proxy(environment(f"http://127.0.0.1:{port}")) as proxy:
        answer = await post(proxy.port, body=b"\n".join(numbered(3)))
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(proxy, "refused connection")
        assert terms(proxy) == {"accepted": 3, "buffered": 3}
        async with running_tinybird(port=port) as tinybird:
            assert Counter(await tinybird.wait_for_rows("hits", 3)) == Counter(numbered(3))
            await until(lambda: proxy.pipeline.buffered_rows() == 0)
            assert terms(proxy) == {"accepted": 3, "delivered": 3}
            await says(proxy, "200")


async def test_a_name_that_cannot_be_resolved_is_not_ambiguous() -> None:
    async with running_proxy(environment("http://nowhere.invalid:80")) as proxy:
        assert (await post(proxy.port, body=b"\n".join(numbered(3)))).status == 202
        await says(proxy, "unknown name")
        assert terms(proxy) == {"accepted": 3, "buffered": 3}
        assert imbalances(proxy.pipeline) == []


async def test_a_certificate_that_nobody_vouches_for_is_not_ambiguous(tmp_path: Path) -> None:
    async def never(peer: Peer) -> None:
        raise AssertionError("a request came through")

    certificate = make_certificate(make_authority(tmp_path), "localhost")
    async with (
        serving(never, tls=server_tls(certificate)) as port,
        running_proxy(environment(f"https://localhost:{port}")) as proxy,
    ):
        assert (await post(proxy.port, body=b"\n".join(numbered(3)))).status == 202
        await says(proxy, "untrusted certificate")
        assert terms(proxy) == {"accepted": 3, "buffered": 3}


async def test_a_port_that_speaks_no_tls_is_not_ambiguous() -> None:
    async with running_tinybird() as tinybird:
        async with running_proxy(environment(f"https://127.0.0.1:{tinybird.port}")) as proxy:
            assert (await post(proxy.port, body=b"\n".join(numbered(3)))).status == 202
            await says(proxy, "no TLS")
            assert terms(proxy) == {"accepted": 3, "buffered": 3}
        assert await tinybird.rows("hits") == []


# What a person must put right.


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param("401", Fault(status=401), id="401"),
        pytest.param("403", Fault(status=403), id="403"),
        pytest.param("404", Fault(status=404), id="404"),
        pytest.param("508", Fault(status=508), id="508"),
        pytest.param(
            "307", Fault(status=307, headers={"Location": "https://api.us-east.tinybird.co/v0/events"}), id="307"
        ),
        pytest.param("301 to nowhere", Fault(status=301), id="301 to nowhere"),
        pytest.param("418", Fault(status=418, text=True, body="I'm a teapot"), id="418"),
    ],
)
async def test_a_hold_keeps_the_rows_and_a_probe_delivers_them_once(name: str, fault: Fault) -> None:
    async with scene() as it:
        await it.confirm()
        it.tinybird.set_faults(fault)
        answer = await it.post(*numbered(3))
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(it.proxy, name)
        more = await it.post(b'{"n":"more"}', query="name=hits&wait=true")
        assert (more.status, more["X-Ack"]) == (202, "memory")  # nobody waits for a hold
        assert terms(it.proxy) == {"accepted": 5, "delivered": 1, "buffered": 4}
        assert it.end_faults() == 1
        it.proxy.pipeline.probe_all()
        await it.is_empty()
        assert await it.arrived() == Counter([*numbered(3), b'{"n":"more"}'])
        assert terms(it.proxy) == {"accepted": 5, "delivered": 5}
        assert letters(it.proxy) == []


@pytest.mark.parametrize("status", [401, 403])
async def test_our_own_token_that_was_never_accepted_is_a_hold_and_refuses_nobody(status: int) -> None:
    async with scene() as it:
        it.tinybird.set_faults(Fault(status=status))
        for row in numbered(3):
            answer = await it.post(row)
            assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(it.proxy, f"{status} at first")
        assert it.end_faults() == 1
        it.proxy.pipeline.probe_all()
        await it.is_empty()
        assert await it.arrived() == Counter(numbered(3))
        assert terms(it.proxy) == {"accepted": 3, "delivered": 3}


async def test_a_data_source_that_never_took_a_row_is_refused_with_404() -> None:
    async with scene({"create_datasources": False}) as it:
        for _ in range(2):
            answer = await it.post(*numbered(3))
            assert (answer.status, answer.error) == (404, "Data Source 'hits' does not exist")
        await says(it.proxy, "404 at first")
        assert len(it.tinybird.requests) == 1
        assert terms(it.proxy) == {}


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_clients_token_that_was_never_accepted_is_refused_as_tinybird_does(status: int) -> None:
    async with scene({"tokens": (TokenEntry(CLIENT),)}, TINYBIRD_TOKEN=None) as it:
        it.tinybird.set_faults(Fault(status=status))
        for _ in range(2):
            answer = await it.post(*numbered(3), token=CLIENT)
            assert (answer.status, answer.error) == (status, f"fault: {status}")
        await says(it.proxy, f"{status} for a client at first")
        assert it.end_faults() == 1
        assert terms(it.proxy) == {}


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_clients_token_that_was_accepted_before_is_a_hold(status: int) -> None:
    async with scene({"tokens": (TokenEntry(CLIENT),)}, TINYBIRD_TOKEN=None) as it:
        await it.confirm(CLIENT)
        it.tinybird.set_faults(Fault(status=status))
        answer = await it.post(*numbered(3), token=CLIENT)
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(it.proxy, f"{status} for a client")
        assert it.end_faults() == 1
        it.proxy.pipeline.probe_all()
        await it.is_empty()
        assert await it.arrived() == Counter(numbered(3))
        assert terms(it.proxy) == {"accepted": 4, "delivered": 4}


async def test_rows_that_came_before_the_refusal_are_kept_while_their_clients_are_refused() -> None:
    async with scene({"tokens": (TokenEntry(CLIENT),)}, TINYBIRD_TOKEN=None) as it:
        it.tinybird.set_faults(Fault(status=500))
        assert (await it.post(*numbered(3), token=CLIENT)).status == 202
        it.tinybird.set_faults()
        it.tinybird.set_tokens()
        await says(it.proxy, "403 for a client with rows")
        answer = await it.post(*numbered(3), token=CLIENT)
        assert (answer.status, answer.error) == (403, "invalid authentication token")
        assert terms(it.proxy)["buffered"] == 3


# Loops.


async def test_a_proxy_that_is_pointed_at_itself_says_so_and_sends_nothing_round_again() -> None:
    port = free_port()
    async with running_proxy(environment(f"http://127.0.0.1:{port}", PORT=str(port))) as proxy:
        answer = await post(proxy.port, body=b"\n".join(numbered(3)))
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(proxy, "a loop of one")
        assert terms(proxy) == {"accepted": 3, "buffered": 3}
        assert proxy.pipeline.surroundings.meters.refused == {"loop": 1}
        assert imbalances(proxy.pipeline) == []


async def test_two_proxies_in_a_ring_hold_the_rows_where_the_ring_was_noticed() -> None:
    port = free_port()
    async with (
        running_proxy(environment(f"http://127.0.0.1:{port}"), instance="one") as one,
        running_proxy(environment(f"http://127.0.0.1:{one.port}", PORT=str(port)), instance="two") as two,
    ):
        answer = await post(one.port, body=b"\n".join(numbered(3)))
        assert answer.status == 202
        await says(two, "a loop of two")
        await until(lambda: one.pipeline.buffered_rows() == 0)
        await says(one, "taken by another proxy")
        assert terms(one) == {"accepted": 3, "unverified": 3}
        assert terms(two) == {"accepted": 3, "buffered": 3}
        assert one.pipeline.surroundings.meters.refused == {"loop": 1}


# Too large.


async def test_a_413_halves_the_batch_remembers_the_size_and_gives_up_on_a_single_row() -> None:
    rows = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * 40_000) for n in range(8)]

    def refused() -> int:
        return [request.status for request in it.tinybird.requests].count(413)

    async with scene({"max_body_bytes": 100_000}, COMPRESSION="none") as it:
        await it.confirm()
        answer = await it.post(*rows, query="name=hits&wait=true")
        assert (answer.status, answer.json()) == (200, {"successful_rows": 8, "quarantined_rows": 0})
        assert await it.arrived() == Counter(rows)
        await says(it.proxy, "413 halved")
        assert 2 <= (before := refused()) <= 3  # the second half was on its way, or it was known
        assert (await it.post(*rows, query="name=hits&wait=true")).status == 200
        assert refused() == before  # it knew
        answer = await it.post(b'{"pad":"%s"}' % (b"x" * 110_000), query="name=hits&wait=true")
        message = "the body is larger than 100000 bytes; split it"
        assert (answer.status, answer.error) == (413, f"{message}; the rows are kept as dead letters")
        await says(it.proxy, "413 for a row")
        assert letters(it.proxy) == [("too_large", 413, message, 1)]
        assert await it.arrived() == Counter(rows * 2)
        assert terms(it.proxy) == {"accepted": 18, "delivered": 17, "dead_lettered": 1, "letters_held": 1}


# Not valid.

BAD = Fault(row_matches="bad")
REJECTED = ("rejected", 400, "fault: 400", 1)


@pytest.mark.parametrize(
    ("row_count", "bad", "name"),
    [
        pytest.param(16, [5], "400 for one row", id="one bad row of 16"),
        pytest.param(32, range(7, 17), "400 for ten rows", id="ten bad rows of 32"),
    ],
)
async def test_a_400_finds_the_bad_rows_and_delivers_all_the_others_once(
    row_count: int, bad: Sequence[int], name: str
) -> None:
    rows = numbered(row_count, bad=bad)
    async with scene() as it:
        await it.confirm()
        it.tinybird.set_faults(BAD)
        waiting = asyncio.create_task(it.post(*rows, query="name=hits&wait=true"))
        await says(it.proxy, f"{name}, searching")
        answer = await waiting
        good = row_count - len(bad)
        assert (answer.status, answer.json()) == (200, {"successful_rows": good, "quarantined_rows": len(bad)})
        await says(it.proxy, name)
        assert await it.arrived() == Counter(row for n, row in enumerate(rows) if n not in bad)
        assert letters(it.proxy) == [REJECTED] * len(bad)
        assert terms(it.proxy) == {
            **{"accepted": row_count + 1, "delivered": good + 1},
            **{"dead_lettered": len(bad), "letters_held": len(bad)},
        }


async def test_a_400_for_everything_is_a_hold_and_costs_no_row() -> None:
    rows = numbered(16, bad=range(16))
    async with scene() as it:
        await it.confirm()
        it.tinybird.set_faults(BAD)
        answer = await it.post(*rows, query="name=hits&wait=true")
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(it.proxy, "400 for all")
        assert letters(it.proxy) == []
        assert terms(it.proxy) == {"accepted": 17, "delivered": 1, "buffered": 16}
        it.end_faults()
        it.proxy.pipeline.probe_all()
        await it.is_empty()
        assert await it.arrived() == Counter(rows)
        assert terms(it.proxy) == {"accepted": 17, "delivered": 17}


async def test_a_handful_of_rows_that_are_all_refused_become_dead_letters_and_the_third_such_batch_a_hold() -> None:
    rows = [numbered(2, bad=range(2)), [b'{"bad":3}', b'{"bad":4}'], [b'{"bad":5}']]
    async with scene() as it:
        await it.confirm()
        it.tinybird.set_faults(BAD)
        for number, name in enumerate(("400 for a handful", "400 for a second handful")):
            answer = await it.post(*rows[number], query="name=hits&wait=true")
            assert (answer.status, answer.error) == (400, "fault: 400; the rows are kept as dead letters")
            await says(it.proxy, name)
        answer = await it.post(*rows[2], query="name=hits&wait=true")
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        await says(it.proxy, "400 for a third handful")
        assert letters(it.proxy) == [REJECTED] * 4
        assert terms(it.proxy) == {
            **{"accepted": 6, "delivered": 1, "dead_lettered": 4},
            **{"letters_held": 4, "buffered": 1},
        }
        it.end_faults()
        it.proxy.pipeline.probe_all()
        await it.is_empty()
        assert await it.arrived() == Counter(rows[2])


async def test_a_422_is_never_sent_again() -> None:
    async with scene() as it:
        await it.confirm()
        it.tinybird.set_faults(Fault(status=422, body=json.dumps({"error": "a view failed"}), ingest=True))
        answer = await it.post(*numbered(3), query="name=hits&wait=true")
        assert (answer.status, answer.error) == (422, "a view failed; the rows are kept as dead letters")
        await says(it.proxy, "422")
        assert it.end_faults() == 1
        assert letters(it.proxy) == [("partial", 422, "a view failed", 3)]
        assert terms(it.proxy) == {"accepted": 4, "delivered": 1, "dead_lettered": 3, "letters_held": 3}
        assert await it.arrived() == Counter(numbered(3))


async def test_rows_older_than_max_age_become_dead_letters() -> None:
    async with scene(MAX_AGE="1s") as it:
        await it.confirm()
        it.tinybird.set_faults(Fault(status=500))
        answer = await it.post(*numbered(3))
        assert answer.status == 202
        await says(it.proxy, "expired")
        message = "older than MAX_AGE; Tinybird answered with an error (500: fault: 500)"
        assert letters(it.proxy) == [("expired", None, message, 3)]
        assert it.end_faults() > 0
        assert terms(it.proxy) == {
            **{"accepted": 4, "delivered": 1, "dead_lettered": 3},
            **{"letters_held": 3, "ambiguous": 3},
        }
        assert await it.arrived() == Counter()


def test_every_golden_sentence_is_brought_about() -> None:
    source = Path(__file__).read_text()
    families = {
        *(f"{status}{kind}" for status in (401, 403, 404) for kind in (" for a client", " for a client at first")),
        *(f"{status} at first" for status in (401, 403)),
        *(f"400 for {number}, searching" for number in ("one row", "ten rows")),
    }
    assert {name for name in SAID if f'"{name}"' not in source} <= families


# A first contact that Tinybird refuses for what is in it.


@pytest.mark.parametrize("status", [400, 413])
async def test_a_first_contact_that_is_rejected_is_the_clients_and_leaves_nothing_behind(status: int) -> None:
    async with scene() as it:
        it.tinybird.set_faults(Fault(status=status, times=1))
        answer = await it.post(*numbered(3))
        assert (answer.status, answer.error) == (status, f"fault: {status}")
        assert terms(it.proxy) == {}
        assert letters(it.proxy) == []
        assert it.proxy.reporter.status()["destinations"] == []
        assert it.proxy.reporter.sentence() == "All is well."
        assert (await it.post(*numbered(3), query="name=hits&wait=true")).status == 200
        assert await it.arrived() == Counter(numbered(3))


async def test_a_first_contact_of_which_tinybird_took_a_part_is_promised_and_a_dead_letter() -> None:
    async with scene() as it:
        it.tinybird.set_faults(Fault(status=422, ingest=True))
        answer = await it.post(*numbered(3))
        assert (answer.status, answer.error) == (422, "fault: 422; the rows are kept as dead letters")
        await says(it.proxy, "422")
        assert letters(it.proxy) == [("partial", 422, "fault: 422", 3)]
        assert terms(it.proxy) == {"accepted": 3, "dead_lettered": 3, "letters_held": 3}
        assert it.end_faults() == 1
        assert await it.arrived() == Counter(numbered(3))
