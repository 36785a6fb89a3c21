"""A pipeline to which anything may happen, in simulated time: every row is accounted for."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from looptime import new_event_loop
from tests.proxy.simulated import FragileBuffer, Reports, now

from tinybird_proxy.admission import Occupancy, Refusal
from tinybird_proxy.dead_letter import EVERY_LETTER, LetterFilter, Replay
from tinybird_proxy.ledger import DropReason, Ledger, LetterReason
from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.testing.fake_upstream import (
    Attempt,
    FakeUpstream,
    Script,
    Step,
    after,
    broken,
    counts,
    quarantining,
    reply,
    timed_out,
    unreachable,
)
from tinybird_proxy.testing.pipelines import Client, Setup, delete_letters, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Confirmed, Dropped, NotTaken, Outcome
from tinybird_proxy.tokens import OwnToken
from tinybird_proxy.waiting import Waiting

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@dataclass(frozen=True)
class Offer:
    """A request, for one of four destinations. ``leaves_s``: its client goes away so long after it was answered."""

    who: int
    row_count: int
    padding: int
    wait: bool
    leaves_s: float | None


@dataclass(frozen=True)
class Pass:
    """So much time."""

    seconds: float


class Happening(Enum):
    """What else may come to pass between two requests."""

    NEW_TOKEN = "new token"
    PROBE = "probe"
    CLOCK_FORWARD = "clock forward"
    CLOCK_BACK = "clock back"
    FREEZING_FAILS = "freezing fails"
    RECORDING_FAILS = "recording fails"
    REPLAY = "replay"
    REPLAY_ALL = "replay what doubles, and what clients were told of, too"
    DELETE = "delete"


@dataclass(frozen=True)
class Ending:
    """Whether all is well again at last; how long the drain may take, and when a second signal comes, if one does."""

    heals: bool
    drain_s: float | None
    stop_now_s: float | None


KNOWN: list[Script] = [200, 200, 200, 200, 202, quarantining(1), counts(0, 0), reply(200, b"OK"), 400, 401, 403, 404]
KNOWN += [
    400,
    413,
    422,
    422,
    429,
    reply(429, Retry_After="7"),
    reply(429, Retry_After="900"),
    503,
    reply(503, Retry_After="2"),
]
KNOWN += [500, 504, 508, 302, 418, unreachable(), broken(), broken(takes=True), timed_out(), timed_out(takes=True)]
KNOWN += [Step(500, takes=True), Step(502, takes=True), Step(422, takes=True), 408]
REPLIES = st.lists(st.tuples(st.sampled_from(KNOWN), st.sampled_from([0.0, 0.0, 0.2, 0.9, 3.0, 40.0])), max_size=25)
OFFERS = st.builds(
    Offer,
    who=st.integers(0, 3),
    row_count=st.sampled_from([1, 1, 2, 3, 7, 13]),
    padding=st.sampled_from([0, 0, 30, 150]),
    wait=st.booleans(),
    leaves_s=st.sampled_from([None, None, 0.0, 0.5, 10.0]),
)
TIMES = st.builds(Pass, st.sampled_from([0.0, 0.001, 0.3, 0.3, 1.1, 1.1, 5.0, 31.0, 61.0, 301.0, 3700.0]))
STEPS = st.lists(st.one_of(OFFERS, OFFERS, TIMES, st.sampled_from(Happening)), min_size=1, max_size=25)
ENDINGS = st.builds(
    Ending,
    heals=st.booleans(),
    drain_s=st.sampled_from([None, 0.5, 8.0, 25.0, 60.0]),
    stop_now_s=st.sampled_from([None, None, 0.0, 6.0]),
)


class Play:
    """One run of a pipeline through whatever happens, and what must be true at every moment of it."""

    def __init__(self, replies: list[tuple[Script, float]], seed: int, max_age_s: float | None) -> None:
        self.own = OwnToken("p.own", 0.0)
        self.buffer = FragileBuffer()
        self.tinybird = FakeUpstream(then=self._reply)
        chance = random.Random(seed)
        self.setup = Setup(
            batch_rows=5,
            batch_bytes=120,
            buffer_rows=40,
            buffer_bytes=3000,
            max_body_bytes=1000,
            rate=20.0,
            concurrency=3,
            max_waiters=4,
            max_destinations=3,
            max_age_s=max_age_s,
            dead_letter_bytes=5000,  # four letters, or five
            own_token=self.own,
            buffer=self.buffer,
            jitter=lambda limit: chance.uniform(0.0, limit),
        )
        self._replies = iter(replies)
        self._numbers = itertools.count()
        self._pipeline: Pipeline | None = None
        self.replaying: list[asyncio.Task[Replay]] = []
        self.doubling: list[int] = []  # rows of letters that somebody wanted to be sent twice
        self.states: set[State] = set()
        self.promised: set[int] = set()
        self.refused: set[int] = set()
        self.heard: list[tuple[set[int], bool, asyncio.Task[Outcome | None]]] = []

    def _reply(self, attempt: Attempt) -> Script:
        self.audit()
        step, delay_s = next(self._replies, (200, 0.0))
        while callable(step):
            step = step(attempt)
        return after(delay_s, step)

    def audit(self) -> None:
        """True at every moment."""
        if self._pipeline is not None:
            assert imbalances(self._pipeline) == []
            assert self._pipeline.check_ledger() == 0
            occupancy = self.buffer.occupancy
            assert min(occupancy.row_count, occupancy.size_bytes) >= 0
            assert min(occupancy.unconfirmed_row_count, occupancy.unconfirmed_size_bytes) >= 0
            letters = self._pipeline.surroundings.letters
            assert 0 <= letters.held_bytes <= letters.max_bytes
            self.states |= {destination.pacing.state for destination in self._pipeline.destinations()}

    async def run(self, steps: list[Offer | Pass | Happening], ending: Ending) -> None:
        async with self.setup.pipeline(self.tinybird).running() as pipeline:
            self._pipeline = pipeline
            everybody = [
                Client(pipeline, "a"),
                Client(pipeline, "b"),
                Client(pipeline, "a", token="p.one"),
                Client(pipeline, "b", token="p.two"),
            ]
            for step in steps:
                match step:
                    case Offer():
                        self._offer(everybody[step.who], step)
                    case Pass():
                        await asyncio.sleep(step.seconds)
                    case Happening():
                        self._happen(step)
                self.audit()
            await asyncio.gather(*self.replaying)
            if ending.heals:
                await self._heal(pipeline)
            if ending.drain_s is not None:
                await self._drain(pipeline, ending.drain_s, ending.stop_now_s)
        self.audit()
        await asyncio.gather(*(task for _, _, task in self.heard))
        self._settle_accounts(pipeline)

    def _offer(self, client: Client, step: Offer) -> None:
        numbers = set(itertools.islice(self._numbers, step.row_count))
        offered = client.offer(numbered(sorted(numbers), padding=step.padding), wait=step.wait)
        if isinstance(offered, Refusal):
            self.refused |= numbers
        elif offered is None:
            self.promised |= numbers
        else:
            hearing = asyncio.create_task(self._hear(client.pipeline, offered, step.leaves_s))
            self.heard.append((numbers, offered.contact, hearing))

    async def _hear(self, pipeline: Pipeline, waiting: Waiting, leaves_s: float | None) -> Outcome | None:
        """What the client heard; None if it had left by then."""
        began = now()
        try:
            async with asyncio.timeout(leaves_s):
                outcome = await pipeline.hear(waiting)
        except TimeoutError:
            return None
        assert now() - began <= self.setup.wait_timeout_s + 0.01
        return outcome

    def _happen(self, what: Happening) -> None:
        assert self._pipeline is not None
        match what:
            case Happening.NEW_TOKEN:
                if self.own.offer(f"p.own-{now()}", now()):
                    self._pipeline.probe_all()
            case Happening.PROBE:
                self._pipeline.probe_all()
            case Happening.CLOCK_FORWARD:
                self.setup.wall.step(86400.0)
            case Happening.CLOCK_BACK:
                self.setup.wall.step(-86400.0)
            case Happening.FREEZING_FAILS:
                self.buffer.freezing = 1
            case Happening.RECORDING_FAILS:
                self.buffer.recording = 1
            case Happening.REPLAY:
                self.replaying.append(asyncio.create_task(self._pipeline.replay(EVERY_LETTER)))
            case Happening.REPLAY_ALL:
                for wanted in (LetterFilter(reason=LetterReason.PARTIAL), LetterFilter(client_told=True)):
                    self.doubling += [one.row_count for one in self._pipeline.surroundings.letters.select(wanted)]
                    self.replaying.append(asyncio.create_task(self._pipeline.replay(wanted)))
            case Happening.DELETE:
                delete_letters(self._pipeline)

    async def _heal(self, pipeline: Pipeline) -> None:
        """Nothing goes wrong any more and a person has looked at every hold: then everything is delivered."""
        self._replies = iter(())
        self.buffer.freezing = self.buffer.recording = 0
        await asyncio.sleep(100)  # whatever is still on its way ends
        pipeline.probe_all()
        await asyncio.sleep(500)
        assert pipeline.buffered_rows() == 0
        assert self.buffer.occupancy == Occupancy()
        for facts in pipeline.facts():
            expired = self.setup.max_age_s is not None and facts.buffered_rows == 0
            assert facts.state in (State.DELIVERING, State.NEW) or not facts.confirmed or expired

    async def _drain(self, pipeline: Pipeline, seconds: float, stop_now_s: float | None) -> None:
        stop_now, reports = asyncio.Event(), Reports()
        if stop_now_s is not None:
            asyncio.get_running_loop().call_later(stop_now_s, stop_now.set)
        began = now()
        await pipeline.drain(began + seconds, stop_now=stop_now, report=reports)
        assert now() - began <= min(seconds, seconds if stop_now_s is None else stop_now_s) + 0.01
        assert reports.heard[-1][1] == pipeline.buffered_rows()

    def _settle_accounts(self, pipeline: Pipeline) -> None:
        """True in the end."""
        ledger, in_doubt = pipeline.ledger(), set[int]()
        assert pipeline.buffered_rows() == 0
        assert pipeline.waiter_count == 0
        assert self.buffer.occupancy == Occupancy()
        arrived = Counter(numbers_of(self.tinybird.taken()))
        for numbers, contact, task in self.heard:
            match task.result():
                case NotTaken():
                    self.refused |= numbers
                case Dropped() | None if contact:
                    in_doubt |= numbers  # promised or not: the client heard neither
                case Confirmed() as confirmed:
                    self.promised |= numbers
                    assert confirmed.delivered + confirmed.quarantined == len(numbers)
                    assert len(numbers & set(arrived)) >= confirmed.delivered
                case _:
                    self.promised |= numbers
        assert not self.refused & set(arrived)
        assert len(self.promised) <= ledger.accepted <= len(self.promised | in_doubt)
        assert ledger.imbalance(0) == 0
        assert ledger.letters_imbalance(0) == 0
        lost = self.promised - set(arrived)
        letters_gone = ledger.letters_deleted + ledger.letters_evicted + ledger.letters_lost_at_exit
        assert len(lost) <= ledger.dropped_total + letters_gone
        doubled = [number for number, times in arrived.items() if times > 1]
        assert len(doubled) <= ledger.ambiguous + sum(self.doubling)
        self._check_batches(ledger)
        self._note(pipeline)

    def _check_batches(self, ledger: Ledger) -> None:
        by_id: dict[str, list[Attempt]] = {}
        for attempt in self.tinybird.attempts:
            by_id.setdefault(attempt.batch_id, []).append(attempt)
        seen: set[int] = set()
        for batch_id, attempts in by_id.items():
            numbers = numbers_of(attempts[0].rows)
            assert len({attempt.payload.body for attempt in attempts}) == 1
            assert len({attempt.name for attempt in attempts}) == 1
            assert numbers == sorted(numbers) or ledger.replayed
            assert len(numbers) <= 5
            assert len(attempts[0].body) <= 120 or len(numbers) == 1
            if "." in batch_id:
                parent = by_id.get(batch_id.rpartition(".")[0])  # None: known to be too large, and never sent
                assert parent is None or set(numbers) < set(numbers_of(parent[0].rows))
            else:
                assert not seen & set(numbers) or ledger.replayed
                seen |= set(numbers)

    def _note(self, pipeline: Pipeline) -> None:
        """What occurred in this run: the whole test shows that it leaves nothing out."""
        SEEN.update(f"reply {status}" for status in pipeline.surroundings.meters.upstream_replies)
        terms = pipeline.ledger().as_dict(0, 0)
        SEEN.update(f"term {term}" for term, value in terms.items() if value)
        SEEN.update(f"dropped {reason}" for reason in pipeline.ledger().dropped)
        SEEN.update(f"letter {reason}" for reason in pipeline.surroundings.meters.dead_letters)
        SEEN.update(f"state {state}" for state in self.states)
        SEEN.update(f"heard {type(task.result()).__name__}" for _, _, task in self.heard)


SEEN: Counter[str] = Counter()
EVERYTHING = {
    *(f"reply {status}" for status in (200, 202, 302, 400, 401, 403, 404, 413, 418, 422, 429, 500, 502, 503, 504, 508)),
    *("reply connect_failed", "reply broken", "reply timeout"),
    *("term accepted", "term replayed", "term delivered", "term quarantined", "term unverified", "term dead_lettered"),
    *("term dropped", "term ambiguous", "term letters_deleted", "term letters_evicted", "term letters_lost_at_exit"),
    *(f"dropped {reason}" for reason in DropReason),
    *(f"letter {reason}" for reason in LetterReason if reason is not LetterReason.UNDECIDED),  # small batches never are
    *(f"state {state}" for state in State),
    *(f"heard {name}" for name in ("Confirmed", "Buffered", "NotTaken", "Refused", "Dropped", "NoneType")),
}


def offer(who: int, *, wait: bool = False) -> Offer:
    return Offer(who=who, row_count=3, padding=0, wait=wait, leaves_s=None)


# What chance alone would bring too seldom: a bad token that is found out too late, and rows that are too large.
RARE: dict[str, Any] = {"ending": Ending(heals=False, drain_s=None, stop_now_s=None), "seed": 0, "max_age_s": None}


@example(steps=[offer(2), Pass(5.0), Pass(3700.0), Pass(61.0)], replies=[(403, 3.0)] * 80, **RARE)
@example(steps=[offer(0), Pass(5.0), offer(0), Pass(61.0)], replies=[(200, 0.0)] + [(413, 0.0)] * 8, **RARE)
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=STEPS,
    replies=REPLIES,
    ending=ENDINGS,
    seed=st.integers(0, 5),
    max_age_s=st.sampled_from([None, None, 20.0]),
)
def whatever_happens(
    steps: list[Offer | Pass | Happening],
    replies: list[tuple[Script, float]],
    ending: Ending,
    seed: int,
    max_age_s: float | None,
) -> None:
    # No idle turns of the loop before its clock goes on: nothing here needs them, and there are many clocks.
    with asyncio.Runner(loop_factory=lambda: new_event_loop(noop_cycles=0, idle_timeout=0.05)) as runner:
        runner.run(Play(replies, seed, max_age_s).run(steps, ending))


def test_whatever_happens_every_row_is_accounted_for() -> None:
    SEEN.clear()
    whatever_happens()
    assert set(SEEN) >= EVERYTHING
