"""Never two that may write, whatever happens to processes, network, clocks and the Lease; and in the end one leads."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import looptime
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.operator.simulated_processes import Replica, World, install

from tinybird_proxy_operator.lease import Timing

TIMING = Timing()
FAULTS_UNTIL_S = 90.0
# For the worst end: a lease is lost, a process starts anew, and the Lease has been deleted.
QUIET_S = 60.0
RESTART_S = 3.0
LOOK_EVERY_S = 0.1
PROCESS_FAULTS = ("freeze", "cut", "deaf", "slow")
ENDS = ("kill", "stop")
EDITS = ("annotate", "empty", "rename", "shorten", "delete")


@dataclass(frozen=True)
class Fault:
    """``kind`` happens to the replica in place ``who`` at ``at_s``, for ``for_s``."""

    at_s: float
    kind: str
    who: int
    for_s: float


@dataclass(frozen=True)
class Clock:
    """A monotonic clock that began somewhere and runs a little fast or slow, and a wall clock that is off."""

    offset_s: float
    rate: float
    wall_offset_s: float


TIMES = st.floats(0, FAULTS_UNTIL_S).map(lambda at: round(at, 2))
WHO = st.integers(0, 1)
FAULTS = st.lists(
    st.builds(Fault, TIMES, st.sampled_from(PROCESS_FAULTS), WHO, st.floats(0.1, 40).map(lambda at: round(at, 2)))
    | st.builds(Fault, TIMES, st.sampled_from(ENDS), WHO, st.just(0.0)),
    max_size=8,
)
# Nobody who looks now and then can see that a Lease was there for a moment between two absences.
EDIT = st.lists(st.builds(Fault, TIMES, st.sampled_from(EDITS), WHO, st.just(0.0)), max_size=1)
CLOCKS = st.builds(Clock, st.floats(-1e6, 1e6), st.floats(0.9, 1.1), st.floats(-1e6, 1e6))


class Story:
    """Two places, as of a Deployment: who ends is followed by another."""

    def __init__(self, clocks: tuple[Clock, Clock], seed: int, timing: Timing) -> None:
        self.world = World()
        self.leaders: list[str] = []
        self.places: list[Replica] = []
        self.overlaps: list[tuple[float, list[str]]] = []
        self._clocks, self._random, self._timing = clocks, Random(seed), timing
        self._most_delay_s = [0.05, 0.05]
        self._started = 0

    async def tell(self, faults: list[Fault]) -> None:
        loop = asyncio.get_running_loop()
        install(loop)
        self.places = [self._start(0), self._start(1)]
        for fault in faults:
            loop.call_at(loop.time() + fault.at_s, self._begin, fault)
        while loop.time() < FAULTS_UNTIL_S + QUIET_S:
            if len(now := self.world.may_write()) > 1:
                self.overlaps.append((loop.time(), now))
            await asyncio.sleep(LOOK_EVERY_S)
        self.leaders = self.world.may_write()
        await self.world.end()

    def _start(self, place: int) -> Replica:
        self._started += 1
        clock = self._clocks[place]
        return Replica(
            self.world,
            f"{'ab'[place]}-{self._started}",
            self._timing,
            clock=lambda time: clock.offset_s + clock.rate * time,
            wall_clock=lambda time: time + clock.wall_offset_s,
            delay_s=lambda: self._random.uniform(0.0, self._most_delay_s[place]),
            random=self._random,
            ended=lambda: self._follow(place),
        )

    def _follow(self, place: int) -> None:
        asyncio.get_running_loop().call_later(RESTART_S, self._replace, place)

    def _replace(self, place: int) -> None:
        self.places[place] = self._start(place)

    def _begin(self, fault: Fault) -> None:
        replica, leases = self.places[fault.who], self.world.leases
        end: Callable[[], None] | None = None
        if fault.kind == "freeze" and not replica.is_dead:
            replica.freeze()
            end = replica.thaw
        elif fault.kind in ("cut", "deaf"):
            setattr(replica.link, f"is_{fault.kind}", True)
            end = lambda: setattr(replica.link, f"is_{fault.kind}", False)  # noqa: E731
        elif fault.kind == "slow":
            self._most_delay_s[fault.who] = 12.0
            end = lambda: self._most_delay_s.__setitem__(fault.who, 0.05)  # noqa: E731
        elif fault.kind == "kill":
            replica.kill()
        elif fault.kind == "stop":
            replica.stop()
        elif fault.kind == "annotate":
            leases.edit(annotations={"seen": str(fault.at_s)})
        elif fault.kind == "empty":
            leases.edit(holderIdentity="")
        elif fault.kind == "rename":
            leases.edit(holderIdentity=replica.name)
        elif fault.kind == "shorten":
            leases.edit(leaseDurationSeconds=1)
        elif fault.kind == "delete":
            leases.delete()
        if end is not None:
            asyncio.get_running_loop().call_later(min(fault.for_s, FAULTS_UNTIL_S + 1 - fault.at_s), end)


def told(faults: list[Fault], clocks: tuple[Clock, Clock], seed: int, timing: Timing = TIMING) -> Story:
    story = Story(clocks, seed, timing)
    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0, noop_cycles=2)) as runner:
        runner.run(story.tell(faults))
    return story


EVEN = (Clock(0, 1, 0), Clock(0, 1, 0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(FAULTS, EDIT).map(lambda both: both[0] + both[1]), st.tuples(CLOCKS, CLOCKS), st.integers(0, 2**32))
@example([Fault(40, "freeze", 0, 30), Fault(40, "freeze", 1, 5)], EVEN, 1)
@example([Fault(40, "deaf", 0, 30), Fault(41, "slow", 1, 30)], EVEN, 2)
@example([Fault(40, "cut", 0, 30), Fault(40, "cut", 1, 11), Fault(42, "delete", 0, 0)], EVEN, 3)
@example([Fault(40, "stop", 0, 0), Fault(40.1, "stop", 1, 0)], EVEN, 4)
def test_never_two_may_write_and_in_the_end_one_does(
    faults: list[Fault], clocks: tuple[Clock, Clock], seed: int
) -> None:
    story = told(faults, clocks, seed)
    assert story.overlaps == []
    writers = story.world.writers()
    assert len(writers) == len(set(writers)), "nobody writes again after another has begun"
    assert len(story.leaders) == 1
    assert writers[-1:] == story.leaders


def test_the_stories_would_show_a_leader_that_trusts_its_lease_too_long() -> None:
    faults = [Fault(40, "cut", 0, 40), Fault(80, "cut", 1, 10)]
    assert told(faults, EVEN, 5, Timing(renew_deadline_s=40)).overlaps
