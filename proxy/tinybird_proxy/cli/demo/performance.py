"""The demo from its start to its end: who is started, who does what at the same time, and in which order it stops.

stop the client → let the emulator recover → SIGTERM to the proxy → it drains → count what arrived
"""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import click
import msgspec

from tinybird_proxy.cli.demo.children import Child, ChildFailed, running_child
from tinybird_proxy.cli.demo.client import Client, connected_client
from tinybird_proxy.cli.demo.emulated import Emulated, EmulatorUnreachable
from tinybird_proxy.cli.demo.figures import History, Sample, Status
from tinybird_proxy.cli.demo.outcome import Arrived, Outcome
from tinybird_proxy.cli.demo.proxy_log import Ports, ProxyLog
from tinybird_proxy.cli.demo.scene import Outage, outages, words
from tinybird_proxy.cli.demo.screen import Screen, View
from tinybird_proxy.cli.emulator import TOKEN_LABEL, URL_LABEL, announced

WAIT_DELAY_S = 1.0
_STATUS_EVERY_S = 0.5
_STATUS_TIMEOUT_S = 5.0
# The proxy's own SHUTDOWN_TIMEOUT is 25 s; then it closes its connections.
_DRAIN_MAX_S = 40.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FAILED = 1
_decode_status = msgspec.json.Decoder(Status).decode


async def perform(*, seconds: float | None, rate: float) -> int:
    """Run the demo and print its result; return the exit status."""
    screen = Screen()
    try:
        async with AsyncExitStack() as stack:
            wishes = await stack.enter_async_context(_stop_wishes())
            session = await stack.enter_async_context(aiohttp.ClientSession())
            emulator, url, tinybird_token = await _start_emulator(stack)
            emulated = Emulated(session, url, tinybird_token)
            await emulated.create_data_source()
            client_token = secrets.token_urlsafe(24)
            log = ProxyLog()
            proxy, ports = await _start_proxy(stack, url, tinybird_token, client_token, log)
            performance = _Performance(
                seconds=seconds,
                screen=screen,
                wishes=wishes,
                session=session,
                emulator=emulator,
                emulated=emulated,
                proxy=proxy,
                log=log,
                status_url=f"http://127.0.0.1:{ports.admin}/status",
                client=await stack.enter_async_context(
                    connected_client(f"http://127.0.0.1:{ports.public}", client_token, rate)
                ),
            )
            if not screen.is_live:
                screen.say(_introduction(rate, seconds))
            outcome = await performance.run()
    except (ChildFailed, EmulatorUnreachable) as error:
        click.echo(str(error), err=True)
        return _FAILED
    screen.finish(outcome)
    return 0 if outcome.exactly_once else _FAILED


def _introduction(rate: float, seconds: float | None) -> str:
    so_long = "until Ctrl-C" if seconds is None else f"for {seconds:g} s"
    return (
        f"A client posts {rate:g} rows a second, one in each request, {so_long}."
        f" The emulator answers wait=true after {WAIT_DELAY_S:g} s; Tinybird takes about 4 s."
    )


async def _start_emulator(stack: AsyncExitStack) -> tuple[Child, str, str]:
    """The emulator, its URL and the token that it made up."""
    emulator = await stack.enter_async_context(
        running_child("emulator", "emulator", "--port", "0", "--wait-delay", str(WAIT_DELAY_S))
    )
    url = await emulator.hear(lambda line: announced(URL_LABEL, line))
    return emulator, url, await emulator.hear(lambda line: announced(TOKEN_LABEL, line))


async def _start_proxy(
    stack: AsyncExitStack, tinybird_url: str, tinybird_token: str, client_token: str, log: ProxyLog
) -> tuple[Child, Ports]:
    """The proxy with its defaults, but on free ports and for this machine only."""
    env = {
        "HOST": "127.0.0.1",
        "PORT": "0",
        "ADMIN_PORT": "0",
        "TINYBIRD_URL": tinybird_url,
        "TINYBIRD_TOKEN": tinybird_token,
        "AUTHORIZATION_TOKEN": client_token,
        "LOG_FORMAT": "json",
    }
    proxy = await stack.enter_async_context(running_child("proxy", "run", env=env))
    return proxy, await proxy.hear(log.heed)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the user asks for by signals: the first means stop, the second stop now."""

    stop: asyncio.Event
    stop_now: asyncio.Event


@asynccontextmanager
async def _stop_wishes() -> AsyncIterator[_Wishes]:
    wishes = _Wishes(asyncio.Event(), asyncio.Event())
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (wishes.stop_now if wishes.stop.is_set() else wishes.stop).set()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield wishes
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


@dataclass(slots=True, kw_only=True)
class _Performance:
    """Everybody is there; `run` lets them play, once."""

    seconds: float | None
    screen: Screen
    wishes: _Wishes
    session: aiohttp.ClientSession
    emulator: Child
    emulated: Emulated
    proxy: Child
    log: ProxyLog
    client: Client
    status_url: str
    _status: Status | None = None
    _status_at: float = 0.0
    _history: History = field(default_factory=History)
    _scene: str = ""
    _began_at: float = 0.0

    async def run(self) -> Outcome:
        """Play until the time is over, a signal comes or a child ends; then stop in order and count."""
        self._began_at = asyncio.get_running_loop().time()
        with self.screen:
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(child.follow(heed)) for child, heed in self._children()]
                background = [group.create_task(job) for job in (self._watch(), self._show())]
                playing = group.create_task(self._play())
                posting = group.create_task(self.client.post_steadily())
                waiting = group.create_task(self.client.post_and_wait())
                await self._first_of(*ends, self.wishes.stop, timeout_s=self.seconds)
                playing.cancel()
                self.client.stop()
                self._say(self._why_it_ends(*ends))
                await self._first_of(posting, self.wishes.stop_now)
                posting.cancel()
                with suppress(EmulatorUnreachable):
                    await self.emulated.recover()
                await self._stop_proxy(ends[0])
                await self._first_of(waiting, self.wishes.stop_now)
                waiting.cancel()
                arrived = await self._count_arrived()
                for task in (*background, *ends):
                    task.cancel()
        if self.log.ledger is None:
            click.echo(f"The proxy ended with status {self.proxy.exit_status}. {self.proxy.said}", err=True)
        return Outcome(
            tally=self.client.tally,
            ledger=self.log.ledger,
            left_at_stop=self.log.left_at_stop,
            proxy_status=self.proxy.exit_status,
            arrived=arrived,
        )

    @staticmethod
    def _why_it_ends(proxy_end: asyncio.Task[None], emulator_end: asyncio.Task[None]) -> str:
        if proxy_end.done():
            return "The proxy has ended, although nobody told it to."
        if emulator_end.done():
            return "The emulator has ended, although nobody told it to; the proxy has SIGTERM."
        return "The client stopped; the proxy has SIGTERM."

    def _children(self) -> tuple[tuple[Child, Callable[[str], object]], ...]:
        return (self.proxy, self.log.heed), (self.emulator, lambda line: None)

    async def _stop_proxy(self, proxy_end: asyncio.Task[None]) -> None:
        """SIGTERM, and wait until it has delivered everything; at a second signal it may not take its time."""
        self.proxy.terminate()
        await self._first_of(proxy_end, self.wishes.stop_now, timeout_s=_DRAIN_MAX_S)
        if not proxy_end.done():
            await self.proxy.end()
            await proxy_end

    async def _first_of(self, *awaited: asyncio.Task[None] | asyncio.Event, timeout_s: float | None = None) -> None:
        """Return when one of them is done or set, or after ``timeout_s``."""
        events = [asyncio.create_task(event.wait()) for event in awaited if isinstance(event, asyncio.Event)]
        tasks = [task for task in awaited if isinstance(task, asyncio.Task)]
        try:
            await asyncio.wait([*events, *tasks], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()

    async def _count_arrived(self) -> Arrived | None:
        try:
            return await self.emulated.arrived(self.client.tally.not_promised)
        except EmulatorUnreachable as error:
            click.echo(str(error), err=True)
            return None

    async def _play(self) -> None:
        """Make the emulator fail and recover, as the scene has it."""
        try:
            for outage in outages(self.seconds):
                await self._until(outage.begins_s, outage)
                await self.emulated.fail()
                self._say(words(outage, self._elapsed_s()))
                await self._until(outage.ends_s, outage)
                await self.emulated.recover()
                self._say(words(None, self._elapsed_s()))
        except EmulatorUnreachable as error:
            self._say(f"The emulator does not do as it is told: {error}")

    async def _until(self, at_s: float, outage: Outage) -> None:
        """Wait until ``at_s``, counting down for whoever watches."""
        while (left_s := at_s - self._elapsed_s()) > 0:
            self._scene = words(outage, self._elapsed_s())
            await asyncio.sleep(min(left_s, self.screen.interval_s))

    async def _watch(self) -> None:
        """Ask the proxy how it is, again and again; while it cannot say, its last answer stays."""
        timeout = aiohttp.ClientTimeout(total=_STATUS_TIMEOUT_S)
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.session.get(self.status_url, timeout=timeout) as reply:
                    status = self._status = _decode_status(await reply.read())
                self._status_at = self._elapsed_s()
                self._history.add(
                    Sample(
                        at_s=self._elapsed_s(),
                        promised=self.client.tally.promised,
                        delivered=status.ledger.delivered,
                        buffered=status.buffer.rows,
                    )
                )
            await asyncio.sleep(_STATUS_EVERY_S)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(self.screen.interval_s)
            if not self.screen.is_live and self._elapsed_s() - self._status_at > self.screen.interval_s:
                continue  # nothing new to tell
            self.screen.show(
                View(
                    elapsed_s=self._elapsed_s(),
                    seconds=self.seconds,
                    tally=self.client.tally,
                    status=self._status,
                    history=self._history,
                    scene=self._scene,
                    said=tuple(self.log.recent),
                    wait_delay_s=WAIT_DELAY_S,
                )
            )

    def _say(self, sentence: str) -> None:
        """The scene changes: on the screen, or as a line of its own."""
        self._scene = sentence
        if not self.screen.is_live:
            self.screen.say(sentence)

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_at
