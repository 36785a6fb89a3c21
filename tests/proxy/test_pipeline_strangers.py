"""Tokens and names that are wrong, by mistake or by guessing: who is told what, what is kept, and who still gets in.

Clients' own tokens unless said otherwise. What a guesser does is on a scale that keeps its proportions: it makes as
many destinations every two seconds as there may be at once (500 a second where MAX_DESTINATIONS is 1,000).
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.proxy.running import TOKEN, ask, post, running_world, until

from tinybird_proxy.admission import Occupancy, Refusal
from tinybird_proxy.ledger import Ledger, LetterReason
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.testing.fake_upstream import Attempt, FakeUpstream, Known, Script, after, timed_out, unreachable
from tinybird_proxy.testing.pipelines import Client, Setup, delete_letters, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed, NotTaken, Outcome

in_simulated_time = pytest.mark.looptime(idle_timeout=1)

MAX_DESTINATIONS = 16
GUESSES_PER_S = 8
TEN_MINUTES_S = 600.0
HOUR_S = 3600.0


@asynccontextmanager
async def running(tinybird: FakeUpstream, setup: Setup | None = None) -> AsyncIterator[Pipeline]:
    try:
        async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
            yield pipeline
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


def now() -> float:
    return asyncio.get_running_loop().time()


def times(attempts: list[Attempt]) -> list[float]:
    return [attempt.at for attempt in attempts]


# Mistakes.


@in_simulated_time
async def test_a_token_that_is_good_for_one_data_source_only_hears_403_for_the_other() -> None:
    tinybird = FakeUpstream()
    tinybird.will(then=after(0.1, 403), name="theirs")
    async with running(tinybird) as pipeline:
        mine, theirs = Client(pipeline, "mine", token="p.one"), Client(pipeline, "theirs", token="p.one")
        for number in range(300):
            assert not isinstance(await mine.send(numbered([number])), NotTaken | Refusal)
            heard = await theirs.send(numbered([number]), wait=number % 2 == 0)
            assert isinstance(heard, NotTaken | Refusal)
            assert (heard.status, heard.message) == (403, "status 403 by script")
            await asyncio.sleep(1)
        await asyncio.sleep(3)
        assert numbers_of(tinybird.taken()) == list(range(300))
        assert len(tinybird.of("theirs")) == 5  # one a minute
        assert (theirs.destination.ledger, pipeline.ledger().dead_lettered) == (Ledger(), 0)
        assert imbalances(pipeline) == []


@in_simulated_time
@pytest.mark.parametrize("token", [None, "p.client"], ids=["our own token", "a client's token"])
async def test_who_mistypes_a_data_source_hears_404_at_once_and_tinybird_is_asked_once_a_minute(
    token: str | None,
) -> None:
    tinybird = FakeUpstream()
    tinybird.will(then=after(0.1, 404), name="hist")
    async with running(tinybird) as pipeline:
        hits, hist = Client(pipeline, "hits", token=token), Client(pipeline, "hist", token=token)
        for number in range(600):
            asked_at = now()
            heard = await hist.send(numbered([-number]))
            assert isinstance(heard, NotTaken | Refusal)
            assert heard.status == 404
            assert now() - asked_at < 0.2
            assert not isinstance(await hits.send(numbered([number])), NotTaken | Refusal)
            await asyncio.sleep(0.5)
        asked = times(tinybird.of("hist"))
        assert min(later - earlier for earlier, later in itertools.pairwise(asked)) >= 60
        assert len(asked) <= 6
        await asyncio.sleep(3)
        assert numbers_of(tinybird.taken()) == list(range(600))
        assert pipeline.ledger().accepted == 600
        # Somebody makes the data source: the next minute's request goes in.
        tinybird.will(then=200, name="hist")
        await asyncio.sleep(60)
        assert await hist.send(numbered([1])) == Confirmed(1, 0)


@in_simulated_time
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_was_promised_to_a_token_that_turns_out_bad_is_a_dead_letter_after_an_hour(status: int) -> None:
    tinybird = FakeUpstream()
    tinybird.will(unreachable(), unreachable(), then=status, name="theirs")
    async with running(tinybird) as pipeline:
        good, bad = Client(pipeline, "mine", token="p.one"), Client(pipeline, "theirs", token="p.one")
        assert await good.send(numbered([0])) == Confirmed(1, 0)
        assert await bad.send(numbered([1])) == Buffered()
        assert bad.offer(numbered([2])) is None
        await asyncio.sleep(60)
        refused_at = next(attempt.ended_at for attempt in tinybird.of("theirs") if not _failed(attempt))
        assert refused_at is not None
        while now() < refused_at + HOUR_S - 1:
            refusal = bad.offer(numbered([3]))
            assert isinstance(refusal, Refusal)
            assert (refusal.status, refusal.reason) == (status, "refused_by_tinybird")
            assert bad.destination.buffered_rows() == 2
            await asyncio.sleep(10)
            assert not isinstance(good.offer(numbered([4])), Refusal)
        await asyncio.sleep(12)
        letters = list(pipeline.surroundings.letters.select())
        assert {(letter.reason, letter.status, letter.key.name) for letter in letters} == {
            (LetterReason.UNAUTHORIZED, status, "theirs")
        }
        assert sum(letter.row_count for letter in letters) == 2
        asked = times(tinybird.of("theirs"))[3:]
        assert min(later - earlier for earlier, later in itertools.pairwise(asked)) >= 59.9
        assert bad.destination.idle
        assert not {1, 2, 3} & set(numbers_of(tinybird.taken()))
        assert pipeline.check_ledger() == 0


def _failed(attempt: Attempt) -> bool:
    return isinstance(attempt.answer, Exception)


@in_simulated_time
async def test_an_old_refusal_does_not_make_dead_letters_of_what_comes_with_a_good_contact() -> None:
    """The token was bad two hours ago and somebody has mended it, and says so: both requests are good."""
    tinybird = FakeUpstream([403], then=after(0.2, 200))
    async with running(tinybird) as pipeline:
        client = Client(pipeline, token="p.client")
        assert isinstance(await client.send(numbered([0])), NotTaken)
        await asyncio.sleep(2 * HOUR_S)
        first = client.post(numbered([1]))
        await asyncio.sleep(0.1)
        pipeline.probe_all()
        assert client.offer(numbered([2])) is None
        assert await first == Confirmed(1, 0)
        await asyncio.sleep(5)
        assert numbers_of(tinybird.taken()) == [1, 2]
        assert pipeline.ledger().dead_lettered == 0


@in_simulated_time
async def test_what_is_promised_long_after_the_first_refusal_is_kept_for_an_hour_too() -> None:
    tinybird = FakeUpstream([403], then=after(2, 403))
    async with running(tinybird) as pipeline:
        client = Client(pipeline, token="p.client")
        assert isinstance(await client.send(numbered([0])), NotTaken)
        await asyncio.sleep(2 * HOUR_S)
        assert await client.send(numbered([1])) == Buffered()
        await asyncio.sleep(HOUR_S / 2)
        assert client.destination.buffered_rows() == 1
        await asyncio.sleep(HOUR_S / 2 + 10)
        assert pipeline.ledger().dead_lettered == 1


# Guessing.


class Guesser:
    """A stranger with a new token and a new name each time. ``times_each``: requests one after the other with each."""

    def __init__(self, pipeline: Pipeline, *, times_each: int = 1) -> None:
        self._pipeline = pipeline
        self._times_each = times_each
        self._numbers = itertools.count(1_000_000)
        self._hearing: set[asyncio.Task[None]] = set()
        self.heard: Counter[str] = Counter()
        self.promised_rows = 0
        self.most_tasks = 0

    async def run(self, seconds: float, each_second: Callable[[], None] = lambda: None) -> None:
        """Guess for so long. ``each_second`` is called that often."""
        for turn in range(round(seconds * GUESSES_PER_S)):
            number = next(self._numbers)
            client = Client(self._pipeline, f"guess{number}", token=f"p.guess{number}")
            for _ in range(self._times_each):
                task = asyncio.create_task(self._hear(client.post(numbered([number]))))
                self._hearing.add(task)
                task.add_done_callback(self._hearing.discard)
            await asyncio.sleep(1 / GUESSES_PER_S)
            if turn % GUESSES_PER_S == 0:
                assert len(self._pipeline.destinations()) <= self._pipeline.limits.max_destinations
                self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
                each_second()

    async def _hear(self, posted: asyncio.Task[Outcome | Refusal | None]) -> None:
        answer = await posted
        match answer:
            case NotTaken():
                self.heard[f"{answer.status} of Tinybird"] += 1
            case Refusal():
                self.heard[f"{answer.status} {answer.reason}"] += 1
            case _:
                self.heard["promised"] += 1
                self.promised_rows += 1


def of_guesses(status: int = 403, *, after_s: float = 0.1) -> Script:
    """Guessed tokens are answered with ``status`` after a moment, everybody else's with 200."""

    def answer(attempt: Attempt) -> Known:
        return after(after_s, status if attempt.token.startswith("p.guess") else 200)

    return answer


def small(buffer_rows: int = 1_000_000) -> Setup:
    return Setup(max_destinations=MAX_DESTINATIONS, buffer_rows=buffer_rows)


async def get_in(client: Client, number: int, *, tries: int) -> int:
    """How many tries a newcomer needs that comes back when it was told to."""
    for tried in range(1, tries + 1):
        heard = await client.send(numbered([number]))
        if not isinstance(heard, Refusal):
            assert not isinstance(heard, NotTaken)
            return tried
        assert heard.status in (429, 503)
        assert heard.retry_after_s is not None
        assert 1 <= heard.retry_after_s <= 60
        await asyncio.sleep(heard.retry_after_s)
    raise AssertionError(f"a newcomer with a good token was refused {tries} times")


async def newcomers(pipeline: Pipeline, count: int, *, between_s: float, tries: int = 3) -> list[int]:
    """One newcomer after the other; the tries that each needed."""
    needed = []
    for number in range(count):
        await asyncio.sleep(between_s)
        client = Client(pipeline, f"new{number}", token=f"p.new{number}")
        needed.append(await get_in(client, number, tries=tries))
    return needed


def check_nothing_leaks(pipeline: Pipeline, guesser: Guesser, tinybird: FakeUpstream) -> None:
    assert len(pipeline.destinations()) <= MAX_DESTINATIONS
    assert len(pipeline.supervisor._tasks) == len(pipeline.destinations())
    assert len(pipeline.supervisor.with_letters) <= len(list(pipeline.surroundings.letters.select()))
    assert guesser.most_tasks < 8 * MAX_DESTINATIONS
    assert not [row for row in tinybird.taken() if row["n"] >= 1_000_000]
    assert imbalances(pipeline) == []
    assert pipeline.check_ledger() == 0


@in_simulated_time
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_guesser_takes_nothing_and_keeps_nobody_out(status: int) -> None:
    tinybird = FakeUpstream(then=of_guesses(status))
    async with running(tinybird, small()) as pipeline:
        guesser = Guesser(pipeline)
        seconds = TEN_MINUTES_S if status == 403 else 60.0
        guessing = asyncio.create_task(guesser.run(seconds))
        assert await newcomers(pipeline, 20, between_s=seconds / 21) == [1] * 20
        await guessing
        await asyncio.sleep(5)
        assert guesser.heard == {f"{status} of Tinybird": seconds * GUESSES_PER_S}
        assert sorted(numbers_of(tinybird.taken())) == list(range(20))
        assert (pipeline.ledger().accepted, pipeline.ledger().delivered) == (20, 20)
        assert pipeline.surroundings.buffer.occupancy == Occupancy()
        assert pipeline.supervisor.with_letters == {}
        check_nothing_leaks(pipeline, guesser, tinybird)


@in_simulated_time
async def test_at_full_scale_a_guesser_keeps_nobody_out_either() -> None:
    """500 a second for some seconds, more than MAX_DESTINATIONS in all."""
    tinybird = FakeUpstream(then=of_guesses())
    async with running(tinybird) as pipeline:
        guesser = Guesser(pipeline)
        for _ in range(4):
            guessing = [asyncio.create_task(guesser.run(1)) for _ in range(500 // GUESSES_PER_S)]
            coming = asyncio.create_task(newcomers(pipeline, 3, between_s=0.2))
            await asyncio.gather(*guessing)
            assert await coming == [1, 1, 1]


@in_simulated_time
async def test_a_guesser_does_not_disturb_those_who_flow() -> None:
    tinybird = FakeUpstream(then=of_guesses())
    async with running(tinybird, small()) as pipeline:
        busy, seldom = Client(pipeline, "busy", token="p.busy"), Client(pipeline, "seldom", token="p.seldom")
        await busy.confirm()
        await seldom.confirm()
        guesser = Guesser(pipeline)
        guessing = asyncio.create_task(guesser.run(120))
        for number in range(110):
            assert busy.offer(numbered([number])) is None
            if number % 30 == 29:
                # Not forgotten: no first contact again, and in an outage no share with strangers.
                assert pipeline.is_confirmed(seldom.key)
                assert seldom.offer(numbered([-number])) is None
            await asyncio.sleep(1)
        await guessing


@in_simulated_time
async def test_a_guesser_that_asks_twice_keeps_nobody_out() -> None:
    """The second request comes while the first is out, so it is promised, and its rows hold the destination."""
    tinybird = FakeUpstream(then=of_guesses())
    async with running(tinybird, small()) as pipeline:
        guesser = Guesser(pipeline, times_each=2)
        guessing = asyncio.create_task(guesser.run(120))
        try:
            assert max(await newcomers(pipeline, 5, between_s=20)) <= 3
        finally:
            guessing.cancel()
        check_nothing_leaks(pipeline, guesser, tinybird)


@in_simulated_time
@pytest.mark.parametrize("down", [timed_out(60.0), unreachable()], ids=["hangs", "unreachable"])
async def test_after_an_outage_that_a_guesser_has_used_newcomers_get_in_again(down: Known) -> None:
    """Without verdicts strangers and newcomers look alike; with the first verdicts they do not."""
    tinybird = FakeUpstream(then=down)
    async with running(tinybird, small()) as pipeline:
        guesser = Guesser(pipeline)
        await guesser.run(60)
        tinybird.will(then=of_guesses())
        await asyncio.sleep(95)  # the last timeouts and backoffs end
        assert await newcomers(pipeline, 3, between_s=1) == [1, 1, 1]


@in_simulated_time
@pytest.mark.parametrize("down", [timed_out(60.0), unreachable(), 503], ids=["hangs", "unreachable", "503"])
async def test_a_guesser_during_an_outage_is_bounded_and_what_it_was_promised_ends_as_dead_letters(down: Known) -> None:
    tinybird = FakeUpstream(then=down)
    async with running(tinybird, small(buffer_rows=1000)) as pipeline:
        mine = Client(pipeline, "mine", token="p.mine")
        tinybird.will(then=200, name="mine")
        assert await mine.send(numbered([0])) == Confirmed(1, 0)
        guesser = Guesser(pipeline)

        def nobody_is_shut_out() -> None:
            assert mine.offer(numbered([1])) is None
            assert pipeline.surroundings.buffer.occupancy.unconfirmed_row_count <= 50

        await guesser.run(60, nobody_is_shut_out)
        await asyncio.sleep(2)
        promised = pipeline.ledger().accepted - 61
        assert 0 < promised == guesser.promised_rows <= MAX_DESTINATIONS
        assert set(guesser.heard) <= {"promised", "503 destinations", "429 unconfirmed_share"}
        check_nothing_leaks(pipeline, guesser, tinybird)
        tinybird.will(then=of_guesses())
        await asyncio.sleep(HOUR_S + 200)
        letters = list(pipeline.surroundings.letters.select())
        assert {letter.reason for letter in letters} == {LetterReason.UNAUTHORIZED}
        assert sum(letter.row_count for letter in letters) == promised
        assert pipeline.buffered_rows() == 0
        assert await newcomers(pipeline, 3, between_s=1) == [1, 1, 1]
        await guesser.run(10)
        check_nothing_leaks(pipeline, guesser, tinybird)
        # Whoever deletes the letters frees the last trace of the destinations.
        delete_letters(pipeline)
        await guesser.run(10)
        assert pipeline.supervisor.with_letters == {}
        assert pipeline.check_ledger() == 0


@in_simulated_time
async def test_guessed_names_with_our_own_token_take_nothing_either() -> None:
    """Where no token is asked of clients, anybody may guess names."""
    known = {"hits"}
    tinybird = FakeUpstream(then=lambda attempt: after(0.1, 200 if attempt.name in known else 404))
    async with running(tinybird, small()) as pipeline:
        hits = Client(pipeline, "hits")
        await hits.confirm()
        for number in range(1000):
            guess = Client(pipeline, f"guess{number}")
            heard = await guess.send(numbered([number]))
            assert isinstance(heard, NotTaken)
            assert heard.status == 404
            assert hits.offer(numbered([-number])) is None
        await asyncio.sleep(3)
        assert pipeline.ledger().accepted == 1001
        assert len(pipeline.destinations()) <= MAX_DESTINATIONS
        assert len(pipeline.supervisor._tasks) == len(pipeline.destinations())
        assert imbalances(pipeline) == []


# For real.


async def test_guesses_leave_no_trace_in_the_metrics_for_real() -> None:
    async with running_world(TINYBIRD_TOKEN=None, MAX_DESTINATIONS="20") as world:
        assert (await post(world.port, "name=mine&wait=true", token=TOKEN)).status == 200
        for first in range(0, 200, 20):
            heard = await asyncio.gather(
                *(post(world.port, f"name=guess{n}", token=f"p.guess{n}") for n in range(first, first + 19))
            )
            # 202: on a busy machine Tinybird's 403 may take longer than a first contact waits.
            assert {answer.status for answer in heard} <= {202, 403, 503}
        assert 403 in {answer.status for answer in heard}
        page = (await ask(world.proxy.admin_port, "/metrics", method="GET")).body.decode()
        assert "guess" not in page
        assert 'datasource="(unconfirmed)"' in page
        assert 'datasource="mine"' in page
        status = world.status()
        assert len(status["destinations"]) <= 20
        assert [source.name for source in await world.tinybird.datasources()] == ["mine"]
        assert (await post(world.port, "name=mine&wait=true", token=TOKEN)).status == 200
        await until(lambda: world.proxy.pipeline.buffered_rows() == 0)
        assert world.proxy.pipeline.ledger().accepted == 2
