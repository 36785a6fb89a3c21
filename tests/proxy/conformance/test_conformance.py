"""Unmodified clients, against Tinybird's emulator and against the proxy in front of it: both are held to one table.

Aspects: what the client is answered (retries included), what its caller gets, and what arrives: every row, exactly
once, with the bytes that the client wrote. What is allowed to differ is said in ``table``.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.proxy.conformance.cases import CASES, ONE, Case, Sender, datasource_of
from tests.proxy.conformance.drivers import CLIENTS, OLD_PYTHON_SDK, Client, Driver, Raised, Returned
from tests.proxy.conformance.table import TABLE, Allowed, Cell, Saw
from tests.proxy.conformance.worlds import CLIENT_TOKEN, Way, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

GetWorld = Callable[[str], Awaitable[World]]
GetDriver = Callable[[Client, Way], Awaitable[Driver]]

_CELLS = [pytest.param(name, client, id=f"{name}-{client.module}") for name in CASES for client in CLIENTS]


@pytest.mark.parametrize(("name", "client"), _CELLS)
async def test_both_ways_are_as_the_table_says(name: str, client: Client, world: GetWorld, driver: GetDriver) -> None:
    case, cell = CASES[name], TABLE[name][client]
    here = await world(case.world)
    datasource = datasource_of(name, client)
    senders = [Sender(await driver(client, way), way, datasource) for way in here.ways]
    try:
        heard = await asyncio.gather(*map(case.run, senders))
        differs = [saw.differs(found) for saw, found in zip((cell.direct, cell.proxied), heard, strict=True)]
        assert differs == [None, None]
        rows = [await _arrived(sender, case, saw) for sender, saw in zip(senders, _saws(cell), strict=True)]
    finally:
        for sender in senders:
            sender.clear_faults()
    for way in here.ways:
        here.note(way, datasource, await way.tinybird.rows(datasource))
    if cell.direct.arrives and cell.proxied.arrives:
        assert rows[0] == rows[1], "the proxy changed a byte"
    if cell.allowed is Allowed.ABSORBED:
        status = int(name)
        await here.proxied.tinybird.wait_until(lambda: _statuses_at(here.proxied, datasource) == [status, 200])


async def _arrived(sender: Sender, case: Case, saw: Saw) -> list[bytes]:
    """The rows that arrived, checked against those of the case; sorted unless the case has an order."""
    rows = await sender.arrived(len(case.rows) if saw.arrives else 0)
    if not case.in_order:
        rows.sort()
    expected = list(case.rows) if saw.arrives else []
    found = [json.loads(row) for row in rows]
    assert found == expected if case.in_order else _sorted(found) == _sorted(expected)
    quarantined = await sender.way.tinybird.quarantined_rows(sender.datasource)
    assert [json.loads(row) for row, _ in quarantined] == list(case.quarantined)
    return [*rows, *(row for row, _ in quarantined)]


def _sorted(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=json.dumps)


def _saws(cell: Cell) -> tuple[Saw, Saw]:
    return (cell.direct, cell.proxied)


def _statuses_at(way: Way, datasource: str) -> list[int | None]:
    return [request.status for request in way.tinybird.requests if request.datasource == datasource]


@pytest.mark.parametrize("by", ["AsyncDatasource", "TinybirdLitellmSyncHandler", "TinybirdLitellmAsyncHandler"])
async def test_the_old_python_sdk_by_its_other_ways(by: str, world: GetWorld, driver: GetDriver) -> None:
    here = await world("plain")
    senders = [Sender(await driver(OLD_PYTHON_SDK, way), way, by) for way in here.ways]
    direct, proxied = await asyncio.gather(*(sender.send(by=by) for sender in senders))
    assert direct.outcome == proxied.outcome == Returned(None if by == "AsyncDatasource" else 202)
    rows = [await sender.arrived(1) for sender in senders]
    assert rows[0] == rows[1]
    assert [json.loads(row) for row in rows[0]] == list(ONE)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.module)
async def test_a_query_that_may_not_pass_is_an_error_that_says_why(
    client: Client, world: GetWorld, driver: GetDriver
) -> None:
    here = (await world("own token")).proxied
    heard = await Sender(await driver(client, here), here, "query").send([], token=CLIENT_TOKEN, query="SELECT 1")
    assert heard.statuses == (404,)
    assert isinstance(heard.outcome, Raised)
    assert "this proxy serves POST /v0/events only" in heard.outcome.message


async def test_no_cell_of_the_table_is_empty() -> None:
    assert {name: set(cells) for name, cells in TABLE.items()} == {name: set(CLIENTS) for name in CASES}


async def test_the_table_has_no_differences_but_those_that_are_allowed() -> None:
    found = {
        (name, client.name): unexplained
        for name, cells in TABLE.items()
        for client, cell in cells.items()
        if (unexplained := cell.unexplained()) is not None
    }
    assert found == {}
    allowed = {name: {cell.allowed for cell in cells.values()} - {None} for name, cells in TABLE.items()}
    assert {name: reasons for name, reasons in allowed.items() if reasons} == {
        "quarantine, no wait": {Allowed.QUARANTINE_NOT_KNOWN},
        "429": {Allowed.ABSORBED},
        "503": {Allowed.ABSORBED},
    }


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.module)
async def test_the_client_is_the_released_version(client: Client) -> None:
    if client.missing is not None:
        pytest.skip(client.missing)
    assert client.installed_version() == client.version
