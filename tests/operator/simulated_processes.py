"""Processes in simulated time, in one loop, that can be frozen, thawed and killed: tasks that take no step meanwhile.

A timer of a frozen process goes off when it is thawed, as after SIGSTOP and SIGCONT; its clock goes on.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from tinybird_proxy_operator.election import Election
from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.lease import NotLeader, Timing
from tinybird_proxy_operator.testing.fake_leases import FakeLeases, Link

_current: ContextVar["Replica | None"] = ContextVar("_current", default=None)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
WRITE_EVERY_S = 0.25


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop's tasks belong to the process that makes them."""

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        replica = _current.get()
        return asyncio.Task(coro if replica is None else _driven(coro, replica), loop=loop, **options)

    loop.set_task_factory(factory)


async def _driven(coro: Coroutine[Any, Any, Any], replica: "Replica") -> Any:
    return await _steps(coro, replica)


@types.coroutine
def _steps(coro: Coroutine[Any, Any, Any], replica: "Replica") -> Generator[Any, Any, Any]:
    error: BaseException | None = None
    while True:
        while not replica.thawed.is_set():
            try:
                yield from replica.thawed.wait().__await__()
            except asyncio.CancelledError as cancelled:
                error = error or cancelled
        try:
            waited = coro.send(None) if error is None else coro.throw(error)
        except StopIteration as stop:
            return stop.value
        error = None
        try:
            yield waited
        except BaseException as thrown:  # noqa: BLE001 - it is thrown into the coroutine
            error = thrown


@dataclass(slots=True)
class World:
    """The Lease, who wrote when, and whoever takes part."""

    leases: FakeLeases = field(default_factory=FakeLeases)
    writes: list[tuple[float, str]] = field(default_factory=list)
    replicas: list["Replica"] = field(default_factory=list)

    def writers(self) -> list[str]:
        """Those that wrote, each time that it was another one."""
        names = [name for _, name in self.writes]
        return [name for name, before in zip(names, [None, *names], strict=False) if name != before]

    def may_write(self) -> list[str]:
        """Those that would write at this instant if they could take a step."""
        return [each.name for each in self.replicas if not each.is_dead and each.election.may_write(each.now())]

    async def end(self) -> None:
        """End everything that is left."""
        for replica in self.replicas:
            replica.kill()
        for replica in self.replicas:
            await replica.end()


class Replica:
    """A process that writes as often as it may, while it leads."""

    def __init__(
        self,
        world: World,
        name: str,
        timing: Timing,
        *,
        clock: Callable[[float], float] = lambda time: time,
        wall_clock: Callable[[float], float] = lambda time: time,
        delay_s: Callable[[], float] = lambda: 0.0,
        random: Random | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.world, self.name, self.is_dead = world, name, False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.link = Link(world.leases, delay_s=delay_s)
        self._loop, self._clock = asyncio.get_running_loop(), clock
        self.exits: list[float] = []
        self._ended = ended
        self.election = Election(
            self.link,
            namespace="ops",
            lease_name="operator",
            identity=name,
            timing=timing,
            now=self.now,
            utc_now=lambda: EPOCH + timedelta(seconds=wall_clock(self._loop.time())),
            jitter=lambda limit: random.uniform(0.0, limit) if random else 0.0,
            exit_process=self._exit,
        )
        token = _current.set(self)
        self._task = self._loop.create_task(self._main())
        _current.reset(token)
        self._task.add_done_callback(lambda _: self._has_ended())
        world.replicas.append(self)

    def now(self) -> float:
        """Its clock."""
        return self._clock(self._loop.time())

    def freeze(self) -> None:
        """SIGSTOP."""
        self.thawed.clear()

    def thaw(self) -> None:
        """SIGCONT."""
        if not self.is_dead:
            self.thawed.set()

    def kill(self) -> None:
        """SIGKILL: what is on its way arrives."""
        self.thawed.clear()
        self._has_ended()

    def stop(self) -> None:
        """SIGTERM."""
        self._task.cancel()

    async def end(self) -> None:
        """Let the tasks of a dead process come to their end, for the test's sake; nothing of it reaches anybody."""
        self.link.error = Unavailable("the test is over")
        self._task.cancel()
        self.thawed.set()
        await asyncio.wait({self._task})

    def _has_ended(self) -> None:
        if not self.is_dead:
            self.is_dead = True
            self._ended()

    def _exit(self) -> None:
        self.exits.append(self._loop.time())
        self.kill()

    async def _main(self) -> None:
        async with self.election.leading():
            while True:
                try:
                    self.election.fence()
                except NotLeader:
                    await asyncio.sleep(0)  # the process has ended here
                else:
                    self.world.writes.append((self._loop.time(), self.name))
                    await asyncio.sleep(WRITE_EVERY_S)
