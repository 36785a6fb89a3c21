"""What the clients are made to live through, case by case, on the direct way and in the same way through the proxy."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from tests.proxy.conformance.drivers import CLIENTS, Client, Driver, Heard, Job, Returned
from tests.proxy.conformance.worlds import CLIENT_TOKEN, NARROW_TOKEN, TOKEN, Setting, Way

from tinybird_proxy.emulator import Fault

ONE: Final[Sequence[Any]] = ({"n": 1, "path": "/pricing", "took_s": 0.25, "tags": ["a", None], "nested": {"ok": True}},)
MANY: Final[Sequence[Any]] = tuple(
    {"n": n, "text": 'Größe, 日本語, 🐦 \u2028 "quoted" \\ \t\n', "big": 2**53 - 1, "tiny": -1.5e-7, "empty": {}}
    for n in range(500)
)
FIT: Final[Sequence[Any]] = ({"n": 1, "path": "/"}, {"n": 3, "path": "/docs"})
UNFIT: Final[Sequence[Any]] = ({"n": "two", "path": "/"},)
SCHEMA: Final = {"n": "Int64", "path": "String"}
BUFFER_ROWS: Final = 10
HEADROOM_ROWS: Final = 1
_PRIMER: Final = b'{"primer":true}'


@dataclass(frozen=True, slots=True)
class Sender:
    """One client on one way, with a data source that nothing else writes to."""

    driver: Driver
    way: Way
    datasource: str

    async def send(
        self,
        rows: Sequence[Any] = ONE,
        *,
        token: str = TOKEN,
        datasource: str | None = None,
        on_status: Callable[[int], None] = lambda status: None,
        **options: Any,
    ) -> Heard:
        """Have the client send ``rows`` in one call; ``options`` are those of a `Job`."""
        name = self.datasource if datasource is None else datasource
        job = Job(base_url=self.way.url, token=token, datasource=name, rows=list(rows), **options)
        return await self.driver.do(job, on_status=on_status)

    def set_fault(self, **fault: Any) -> None:
        """Have this way's Tinybird answer so."""
        self.way.tinybird.set_faults(Fault(datasource=self.datasource, **fault))

    def clear_faults(self) -> None:
        """Have this way's Tinybird answer honestly."""
        self.way.tinybird.set_faults()

    async def put(self, row_count: int, *, wait: bool = False) -> int:
        """Send rows of our own, those that `arrived` leaves out; return the status."""
        query = {"name": self.datasource, "wait": str(wait).lower()}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = b"\n".join([_PRIMER] * row_count)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.way.url}/v0/events", params=query, headers=headers, data=body) as reply,
        ):
            return reply.status

    async def arrived(self, row_count: int) -> list[bytes]:
        """The rows at Tinybird, once there are ``row_count`` besides our own."""
        own = (await self.way.tinybird.rows(self.datasource)).count(_PRIMER)
        rows = await self.way.tinybird.wait_for_rows(self.datasource, own + row_count)
        return [row for row in rows if row != _PRIMER]


async def one_row(sender: Sender) -> Heard:
    """As the client sends if nothing is said."""
    return await sender.send()


async def wait(sender: Sender) -> Heard:
    """``wait`` is asked for."""
    return await sender.send(wait=True)


async def no_wait(sender: Sender) -> Heard:
    """``wait`` is declined."""
    return await sender.send(wait=False)


async def many_rows(sender: Sender) -> Heard:
    """Several rows in one call, with all that JSON has."""
    return await sender.send(MANY)


async def many_calls(sender: Sender) -> Heard:
    """Call after call, as a service does: what the proxy is for."""
    return await sender.send(MANY[:20], one_by_one=True, wait=False)


async def no_rows(sender: Sender) -> Heard:
    """An empty list of rows."""
    return await sender.send([])


async def quarantine(sender: Sender) -> Heard:
    """One row does not fit the schema; ``wait`` is asked for."""
    return await sender.send([FIT[0], *UNFIT, FIT[1]], wait=True)


async def quarantine_no_wait(sender: Sender) -> Heard:
    """One row does not fit the schema; ``wait`` is declined."""
    return await sender.send([FIT[0], *UNFIT, FIT[1]], wait=False)


async def wrong_token(sender: Sender) -> Heard:
    """A token that nobody knows, and once more: the answer stays."""
    first = await sender.send(token="wrong")
    assert await sender.send(token="wrong") == first
    return first


async def narrow_token(sender: Sender) -> Heard:
    """A token that is good for another data source only."""
    return await sender.send(token=NARROW_TOKEN)


async def client_token(sender: Sender) -> Heard:
    """A token of the application's: the proxy's, if it has its own for Tinybird."""
    return await sender.send(token=CLIENT_TOKEN)


async def rate_limited(sender: Sender) -> Heard:
    """Tinybird answers 429 once; a client that can be told to retry is."""
    sender.set_fault(status=429, retry_after=1, times=1)
    return await sender.send(max_retries=3)


async def unavailable(sender: Sender) -> Heard:
    """Tinybird answers 503 once; a client that can be told to retry is."""
    sender.set_fault(status=503, retry_after=1, times=1)
    return await sender.send(max_retries=3)


async def no_name(sender: Sender) -> Heard:
    """The data source's name is empty."""
    return await sender.send(datasource="")


async def bad_name(sender: Sender) -> Heard:
    """No data source can have this name."""
    return await sender.send(datasource=f"{sender.datasource}-%")


async def bad_row(sender: Sender) -> Heard:
    """One of the rows is not JSON, as Python writes it, or no object, which no type holds JavaScript back from."""
    row = {"ratio": float("nan")} if sender.driver.client.runtime == "python" else None
    return await sender.send([*ONE, row])


async def too_large(sender: Sender) -> Heard:
    """A row above the limit, which is 1 MB in this world."""
    return await sender.send([{"text": "x" * 1_500_000}])


async def buffer_full_for_it(sender: Sender) -> Heard:
    """Tinybird does not take this data source's rows, and they fill the buffer; this ends at the first refusal.

    What a client without a proxy sees of that is 429.
    """
    proxy = sender.way.proxy
    if proxy is None:
        sender.set_fault(status=429, retry_after=1)
        return await sender.send(on_status=lambda status: sender.clear_faults())
    assert await sender.put(1, wait=True) == 200
    sender.set_fault(status=503, retry_after=1)
    assert await sender.put(1) == 202
    await sender.way.tinybird.wait_until(lambda: sender.way.tinybird.requests[-1].status == 503)
    assert await sender.put(BUFFER_ROWS - 1) == 202
    heard = await sender.send(on_status=lambda status: sender.clear_faults())
    await proxy.emptied()
    return heard


async def buffer_full(sender: Sender) -> Heard:
    """Tinybird takes rows more slowly than they come, and they fill the buffer; this ends soon.

    What a client without a proxy sees of that is 503.
    """
    proxy = sender.way.proxy
    if proxy is None:
        sender.set_fault(status=503, retry_after=1)
        return await sender.send(max_retries=10, on_status=lambda status: sender.clear_faults())
    assert await sender.put(1, wait=True) == 200
    sender.set_fault(delay_s=1.5)
    assert await sender.put(BUFFER_ROWS) == 202
    assert await sender.put(HEADROOM_ROWS) in (202, 503)  # of several data sources, one that has much gets no more
    heard = await sender.send(max_retries=10, on_status=lambda status: sender.clear_faults())
    await proxy.emptied()
    return heard


async def draining(sender: Sender) -> Heard:
    """The proxy is told to drain, and at the first refusal to serve again. Without a proxy it is 503."""
    proxy = sender.way.proxy
    if proxy is None:
        sender.set_fault(status=503, retry_after=1)
        return await sender.send(on_status=lambda status: sender.clear_faults())
    cancelling: list[asyncio.Task[None]] = []

    def cancel_once(status: int) -> None:
        if not cancelling:
            cancelling.append(asyncio.create_task(proxy.cancel_drain()))

    await proxy.begin_drain()
    heard = await sender.send(on_status=cancel_once)
    await asyncio.gather(*cancelling)
    return heard


async def query(sender: Sender) -> Heard:
    """A read: what the same base URL must serve as well."""
    heard = await sender.send([], query="SELECT 1 AS one FORMAT JSON")
    if isinstance(heard.outcome, Returned):
        heard.outcome.value.pop("statistics")  # how long it took
    return heard


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table."""

    run: Callable[[Sender], Awaitable[Heard]]
    world: str = "plain"
    rows: Sequence[Any] = ONE
    """What arrives if anything does."""
    quarantined: Sequence[Any] = ()
    in_order: bool = True


CASES: Final[Mapping[str, Case]] = {
    "one row": Case(run=one_row),
    "wait": Case(run=wait),
    "no wait": Case(run=no_wait),
    "many rows": Case(run=many_rows, rows=MANY),
    "many calls": Case(run=many_calls, rows=MANY[:20], in_order=False),
    "no rows": Case(run=no_rows),
    "quarantine": Case(run=quarantine, rows=FIT, quarantined=UNFIT),
    "quarantine, no wait": Case(run=quarantine_no_wait, rows=FIT, quarantined=UNFIT),
    "wrong token": Case(run=wrong_token),
    "token for another data source": Case(run=narrow_token),
    "proxy's token": Case(run=client_token, world="own token"),
    "wrong token, proxy's own": Case(run=wrong_token, world="own token"),
    "token for another data source, proxy's own": Case(run=narrow_token, world="own token"),
    "429": Case(run=rate_limited),
    "503": Case(run=unavailable),
    "400: no name": Case(run=no_name),
    "400: bad name": Case(run=bad_name),
    "400: bad row": Case(run=bad_row),
    "404: unknown data source": Case(run=one_row, world="nothing there"),
    "413": Case(run=too_large, world="small bodies"),
    "429 of the proxy's: buffer full of undelivered rows": Case(run=buffer_full_for_it, world="small buffer"),
    "503 of the proxy's: buffer full": Case(run=buffer_full, world="small buffer"),
    "503 of the proxy's: draining": Case(run=draining, world="draining"),
    "query": Case(run=query),
}


def datasource_of(case: str, client: Client) -> str:
    """The name of the data source that is this cell's alone."""
    return "cell_" + re.sub(r"\W+", "_", f"{case} {client.module}")


WORLDS: Final[Mapping[str, Setting]] = {
    "plain": Setting(
        tinybird={
            "schemas": {
                datasource_of(name, client): SCHEMA
                for name, case in CASES.items()
                for client in CLIENTS
                if case.quarantined
            }
        }
    ),
    "own token": Setting(
        proxy={
            "TINYBIRD_TOKEN": TOKEN,
            "AUTHORIZATION_TOKEN": f"{CLIENT_TOKEN} name=app\n{NARROW_TOKEN} name=other allow=elsewhere",
        }
    ),
    "nothing there": Setting(tinybird={"create_datasources": False}),
    "small bodies": Setting(tinybird={"max_body_bytes": 1_000_000}, proxy={"MAX_BODY_BYTES": "1MB"}),
    "small buffer": Setting(proxy={"BUFFER_SIZE": str(BUFFER_ROWS), "BATCH_SIZE": str(BUFFER_ROWS)}),
    "draining": Setting(),
    "plain text": Setting(tinybird={"text_errors": True, "create_datasources": False}),
}
