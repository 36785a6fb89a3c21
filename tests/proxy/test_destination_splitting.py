"""``destination.splitting`` (and ``exits``) at work in a destination: simulated time and a scripted Tinybird."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from tinybird_proxy import codec
from tinybird_proxy.batch import Payload
from tinybird_proxy.dead_letter import EVERY_LETTER, DeadLetter, LetterFilter
from tinybird_proxy.destination import Surroundings
from tinybird_proxy.destination.surroundings import BatchUpstream
from tinybird_proxy.health import DestinationFacts
from tinybird_proxy.ledger import LetterReason
from tinybird_proxy.pacing import State
from tinybird_proxy.rows import Rows
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
)
from tinybird_proxy.testing.pipelines import Client, Setup, delete_letters, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed, Refused
from tinybird_proxy.verdict import Reply

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime(idle_timeout=0.05, noop_cycles=0)]
MANY = 100_000


def refusing(bad: Iterable[int], *, status: int = 400, then: Script = 200) -> Callable[[Attempt], Script]:
    """A Tinybird that refuses every request with one of these rows."""
    known = set(bad)

    def judge(attempt: Attempt) -> Script:
        return status if any(n in known for n in numbers_of(attempt.rows)) else then

    return judge


def larger_than(max_bytes: int) -> Callable[[Attempt], Script]:
    """A Tinybird that takes requests up to so many bytes, as sent."""
    return lambda attempt: 413 if len(attempt.payload.body) > max_bytes else 200


@asynccontextmanager
async def delivering(tinybird: FakeUpstream, setup: Setup | None = None) -> AsyncIterator[Client]:
    async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
        client = Client(pipeline, "hits")
        await client.confirm()
        tinybird.forget()
        yield client
        assert imbalances(pipeline) == []
        assert pipeline.check_ledger() == 0
    assert pipeline.ledger().imbalance(0) == 0
    assert pipeline.ledger().letters_imbalance(0) == 0


def letters(client: Client) -> list[DeadLetter]:
    return list(client.pipeline.surroundings.letters.select())


def statuses(tinybird: FakeUpstream) -> list[int]:
    return [attempt.answer.status for attempt in tinybird.attempts if isinstance(attempt.answer, Reply)]


def rows_in(*found: DeadLetter) -> list[int]:
    bodies = codec.rows_in([letter.payload for letter in found])
    return [json.loads(line)["n"] for body in bodies for line in body.split(b"\n")]


@dataclass(frozen=True)
class Searched:
    """What is left after a batch was searched: its dead letters' rows, and how the destination stands."""

    tinybird: FakeUpstream
    bad: list[int]
    facts: DestinationFacts

    @property
    def taken(self) -> list[int]:
        return sorted(numbers_of(self.tinybird.taken()))


async def searched(bad: Iterable[int], items: Iterable[Rows] | None = None) -> Searched:
    """Send a batch of ``items`` with these bad rows, by default ``MANY`` rows in one, and wait for its end."""
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_bytes=10**9, buffer_bytes=10**9)) as client:
        tinybird.will(then=refusing(bad))
        for item in items or [numbered(range(MANY))]:
            client.offer(item)
        await asyncio.sleep(59)
        return Searched(tinybird, sorted(rows_in(*letters(client))), client.destination.facts())


# 400: the bounds.


@pytest.mark.parametrize("bad", [0, 1, 49_999, 50_000, 65_536, MANY - 1])
async def test_one_bad_row_of_a_hundred_thousand_is_found_in_at_most_40_requests(bad: int) -> None:
    found = await searched([bad])
    assert len(found.tinybird.attempts) <= 40
    assert found.bad == [bad]
    assert found.taken == [n for n in range(MANY) if n != bad]


async def test_ten_bad_rows_are_found_in_at_most_280_requests() -> None:
    bad = random.Random(3).sample(range(MANY), 10)
    found = await searched(bad)
    assert len(found.tinybird.attempts) <= 280
    assert found.bad == sorted(bad)
    assert len(found.taken) == MANY - 10


async def test_one_percent_bad_rows_end_at_the_budget_and_a_replay_finishes_them() -> None:
    bad = set(random.Random(5).sample(range(10_000), 100))
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing(bad))
        client.offer(numbered(range(10_000)))
        await asyncio.sleep(59)
        assert len(tinybird.attempts) == 401
        undecided = [letter for letter in letters(client) if letter.reason is LetterReason.UNDECIDED]
        assert undecided
        assert client.destination.buffered_rows() == 0
        assert client.destination.facts().state is State.DELIVERING
        outcome = await client.pipeline.replay(LetterFilter(reason=LetterReason.UNDECIDED))
        assert outcome.replayed_rows == sum(letter.row_count for letter in undecided)
        assert imbalances(client.pipeline) == []
        await asyncio.sleep(600)
        assert {letter.reason for letter in letters(client)} == {"rejected"}
        assert sorted(rows_in(*letters(client))) == sorted(bad)
        assert sorted(numbers_of(tinybird.taken())) == [n for n in range(10_000) if n not in bad]


async def test_when_every_row_is_bad_the_batch_is_put_back_whole_and_held_after_at_most_40_requests() -> None:
    found = await searched(range(MANY))
    assert len(found.tinybird.attempts) <= 40
    assert found.bad == []
    assert (found.facts.state, found.facts.buffered_rows) == (State.HELD, MANY)
    assert "no part of its rows is taken either" in found.facts.reason


async def test_twenty_bad_rows_at_the_front_are_found_without_a_hold() -> None:
    found = await searched(range(20))
    assert found.bad == list(range(20))
    assert found.facts.state is State.DELIVERING
    assert len(found.taken) == MANY - 20


async def test_a_bad_item_of_a_thousand_rows_spoils_nobody_elses() -> None:
    items = [numbered([n]) for n in range(2000)]
    items.insert(700, numbered(range(10_000, 11_000)))
    found = await searched(range(10_000, 11_000), items)
    assert found.facts.state is State.DELIVERING
    assert found.taken == list(range(2000))
    assert found.bad == list(range(10_000, 11_000))


async def test_uneven_items_are_searched_too() -> None:
    number, items = 0, []
    for size in [1, 5000, 1, 1, 800, 3, 40, 1]:
        items.append(numbered(range(number, number + size)))
        number += size
    bad = [0, 5001, 5803, number - 1]
    found = await searched(bad, items)
    assert found.bad == bad
    assert len(found.taken) == number - len(bad)


# 400: how it goes about it.


async def test_at_most_ten_pieces_a_second_are_asked_and_other_batches_go_on() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.05)) as client:
        tinybird.will(then=refusing([77]))
        client.offer(numbered(range(1000)))
        for n in range(1000, 1040):
            await asyncio.sleep(0.1)
            client.offer(numbered([n]))
        await asyncio.sleep(0.1)
        pieces = [attempt.at for attempt in tinybird.attempts if "." in attempt.batch_id]
        assert all(later - earlier >= 0.1 - 1e-6 for earlier, later in itertools.pairwise(pieces))
        waits = [a.at for a in tinybird.attempts if numbers_of(a.rows) and numbers_of(a.rows)[0] >= 1000]
        assert len(waits) == 40  # each went by itself, none had to wait for the search
        await asyncio.sleep(5)
        assert rows_in(*letters(client)) == [77]


async def test_pieces_are_named_after_their_batch_and_sent_again_byte_for_byte() -> None:
    tinybird = FakeUpstream()
    judge = refusing([5])
    async with delivering(tinybird) as client:
        flaky = iter([400, 500, broken(), 429, *[None] * 100])

        def script(attempt: Attempt) -> Script:
            step = next(flaky)
            return step if step is not None else judge(attempt)

        tinybird.will(then=script)
        client.offer(numbered(range(16)))
        await asyncio.sleep(59)
        first, piece = tinybird.attempts[0], tinybird.attempts[1]
        assert piece.batch_id == f"{first.batch_id}.1"
        same = [attempt for attempt in tinybird.attempts if attempt.batch_id == piece.batch_id]
        assert len(same) == 4
        assert len({attempt.payload.body for attempt in same}) == 1
        assert client.destination.ledger.ambiguous == 8
        assert rows_in(*letters(client)) == [5]


async def test_a_row_is_not_condemned_before_something_of_its_batch_was_accepted() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=lambda attempt: 400)
        client.offer(numbered(range(50)))
        await asyncio.sleep(30)
        assert (client.destination.ledger.dead_lettered, letters(client)) == (0, [])
        assert client.destination.facts().state is State.HELD
        assert client.destination.buffered_rows() == 50
        tinybird.will(then=200)  # somebody mended the data source
        await asyncio.sleep(60)
        assert numbers_of(tinybird.taken())[-50:] == list(range(50))
        assert tinybird.attempts[-1].batch_id == tinybird.attempts[0].batch_id
        assert tinybird.attempts[-1].payload.body == tinybird.attempts[0].payload.body


async def test_a_hold_is_probed_with_a_search_so_that_a_mended_data_source_is_noticed() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=400)
        client.offer(numbered(range(50)))
        await asyncio.sleep(30)
        assert client.destination.facts().state is State.HELD
        client.offer(numbered([100]))
        tinybird.will(then=refusing([7]))
        await asyncio.sleep(61)
        assert client.destination.facts().state is State.DELIVERING
        assert rows_in(*letters(client)) == [7]
        assert 100 in numbers_of(tinybird.taken())


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_the_third_small_batch_in_a_row_of_which_every_row_is_refused_is_held(size: int) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=400)
        for n in range(2):
            client.offer(numbered(range(n * size, (n + 1) * size)))
            await asyncio.sleep(20)
            assert client.destination.facts().state is not State.HELD
        assert sorted(rows_in(*letters(client))) == list(range(2 * size))
        client.offer(numbered(range(100, 100 + size)))
        await asyncio.sleep(20)
        assert (client.destination.facts().state, client.destination.buffered_rows()) == (State.HELD, size)
        assert len(rows_in(*letters(client))) == 2 * size


async def test_an_accepted_batch_between_them_begins_the_count_anew() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing(range(100)))
        for n in range(5):
            client.offer(numbered([n]))
            await asyncio.sleep(5)
            client.offer(numbered([1000 + n]))
            await asyncio.sleep(5)
        assert client.destination.facts().state is State.DELIVERING
        assert rows_in(*letters(client)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("step", [401, 403, 402, 508], ids=repr)
async def test_a_piece_may_be_held_and_the_search_goes_on_when_that_is_mended(step: int) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(400, step, then=refusing([3]))
        client.offer(numbered(range(16)))
        await asyncio.sleep(30)
        assert (client.destination.facts().state, client.destination.buffered_rows()) == (State.HELD, 16)
        await asyncio.sleep(60)
        assert rows_in(*letters(client)) == [3]
        assert sorted(numbers_of(tinybird.taken())) == [n for n in range(16) if n != 3]


async def test_a_piece_taken_in_part_becomes_a_partial_letter_and_the_search_goes_on() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(400, 422, then=refusing([12]))
        client.offer(numbered(range(16)))
        await asyncio.sleep(30)
        found = {letter.reason: rows_in(letter) for letter in letters(client)}
        assert found == {"partial": list(range(8)), "rejected": [12]}


async def test_a_batch_whose_rows_are_all_refused_does_not_keep_others_from_being_tried() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing([1, 2, 3]))
        for n in (1, 2, 3):
            client.offer(numbered([n]))
            await asyncio.sleep(3)
        assert client.destination.facts().state is State.HELD
        for n in range(10, 20):
            client.offer(numbered([n]))
        await asyncio.sleep(130)
        assert client.destination.facts().state is State.DELIVERING
        assert numbers_of(tinybird.taken()) == list(range(10, 20))
        assert rows_in(*letters(client)) == [1, 2, 3]


async def test_a_slow_pace_leaves_other_batches_their_turn() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(rate=5.0, batch_rows=1000)) as client:
        tinybird.will(then=refusing(range(0, 1000, 5)))
        client.offer(numbered(range(1000)))
        await asyncio.sleep(3)
        for n in range(10_000, 10_010):
            client.offer(numbered([n]))
            await asyncio.sleep(3)
        assert client.destination.facts().splitting is not None
        others = [attempt.rows for attempt in tinybird.attempts if "." not in attempt.batch_id]
        assert [numbers_of(rows) for rows in others[1:]] == [[n] for n in range(10_000, 10_010)]


async def test_the_end_of_a_search_in_rows_from_before_a_hold_does_not_send_again_what_might_double() -> None:
    tinybird = FakeUpstream()  # never gives counts: after 202s, a 200 that cannot be read is held without probes
    async with Setup(upstream_wait=False).pipeline(tinybird).running() as pipeline:
        client = Client(pipeline)
        tinybird.will(202, 202, after(5, reply(200, b"<html>")), after(6, 400), then=202)
        for n in (0, 99):
            await client.send(numbered([n]))
            await asyncio.sleep(2)
        for n in (1, 2):
            client.offer(numbered([n]))
            await asyncio.sleep(1.2)
        assert len(tinybird.attempts) == 4
        await asyncio.sleep(3600)
        assert client.destination.facts().state is State.HELD
        assert [numbers_of(attempt.rows) for attempt in tinybird.attempts].count([1]) == 1
        assert imbalances(pipeline) == []


async def test_a_second_refused_batch_is_searched_after_the_first() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=10)) as client:
        tinybird.will(then=refusing([3, 13, 23]))
        for start in (0, 10, 20):
            client.offer(numbered(range(start, start + 10)))
        await asyncio.sleep(0.3)
        facts = client.destination.facts()
        assert facts.splitting is not None
        assert (facts.splitting.waiting, client.destination.delivering) == (2, False)
        await asyncio.sleep(20)
        assert rows_in(*letters(client)) == [3, 13, 23]
        assert client.destination.facts().splitting is None


async def test_what_is_given_up_on_after_a_look_is_later_although_the_clock_was_set_back() -> None:
    tinybird, setup = FakeUpstream(), Setup()
    async with delivering(tinybird, setup) as client:
        tinybird.will(then=refusing([1, 2]))
        client.offer(numbered([1]))
        await asyncio.sleep(5)
        as_of = client.pipeline.surroundings.letters.as_of(setup.wall.now().timestamp())
        setup.wall.step(-3600)
        client.offer(numbered([2]))
        await asyncio.sleep(5)
        before, after = (LetterFilter(until=as_of).matches(letter) for letter in letters(client))
        assert (before, after) == (True, False), "dropping what was exported would delete what was not"


# What waiting clients hear.


async def test_who_waits_hears_how_many_of_its_rows_were_rejected() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing([1, 2, 3, 30]))
        some = client.post(numbered([0, 1]), wait=True)
        every = client.post(numbered([2, 3]), wait=True)
        none = client.post(numbered(range(10, 20)), wait=True)
        client.offer(numbered([30]))
        assert await some == Confirmed(1, 1)
        refused = await every
        assert isinstance(refused, Refused)
        assert (refused.status, refused.message) == (400, "status 400 by script; the rows are kept as dead letters")
        assert await none == Confirmed(10, 0)
        await asyncio.sleep(10)
        told = {n: letter.client_told for letter in letters(client) for n in rows_in(letter)}
        assert told == {1: False, 2: True, 3: True, 30: False}


async def test_who_waits_is_not_told_that_rows_are_kept_for_which_there_is_no_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(dead_letter_bytes=0)) as client:
        tinybird.will(then=refusing([2]))
        refused = await client.post(numbered([2]), wait=True)
        assert isinstance(refused, Refused)
        lost = "the rows are lost: DEAD_LETTER_BYTES has no room for them"
        assert (refused.status, refused.message) == (400, f"status 400 by script; {lost}")
        assert client.pipeline.ledger().letters_evicted == 1
    assert "given up on and are lost" in caplog.text
    assert "kept as dead letters" not in caplog.text


async def test_a_client_that_has_left_was_not_told() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing([1]))
        leaving = client.post(numbered([1]), wait=True)
        client.offer(numbered([2]))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.sleep(20)
        (letter,) = letters(client)
        assert not letter.client_told


# Replays.


async def test_a_replay_sends_letters_again_and_forgets_them_when_they_settle() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing([1, 2]))
        client.offer(numbered(range(10)))
        await asyncio.sleep(20)
        assert len(letters(client)) == 2
        tinybird.will(then=Step(200, after_s=5))
        outcome = await client.pipeline.replay(EVERY_LETTER)
        assert (outcome.replayed_letters, outcome.replayed_rows) == (2, 2)
        assert [letter.replaying for letter in letters(client)] == [True, True]
        assert client.destination.buffered_rows() == 2
        assert (await client.pipeline.replay(EVERY_LETTER)).replaying_rows == 2
        assert delete_letters(client.pipeline) == 0
        assert imbalances(client.pipeline) == []
        await asyncio.sleep(6)
        assert letters(client) == []
        ledger = client.destination.ledger
        assert (ledger.dead_lettered, ledger.replayed, ledger.delivered) == (2, 2, 11)
        assert sorted(numbers_of(tinybird.taken())) == list(range(10))


async def test_a_replay_that_is_refused_again_goes_back_to_the_letters_and_holds_nothing() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing(range(20)))
        client.offer(numbered(range(300)))
        await asyncio.sleep(30)
        before = letters(client)
        assert len(before) == 20
        await client.pipeline.replay(EVERY_LETTER)
        await asyncio.sleep(30)
        assert client.destination.facts().state is State.DELIVERING
        assert letters(client) == before
        assert {(letter.replays, letter.replaying) for letter in before} == {(1, False)}
        assert client.destination.buffered_rows() == 0


async def test_a_replay_that_was_halved_and_of_which_a_half_is_refused_whole_keeps_the_ledger_in_balance() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(422)
        client.offer(numbered(range(16)))
        await asyncio.sleep(5)
        tinybird.will(
            then=lambda attempt: 413 if len(attempt.rows) > 8 else 400 if max(numbers_of(attempt.rows)) > 7 else 200
        )
        await client.pipeline.replay(LetterFilter(reason=LetterReason.PARTIAL))
        await asyncio.sleep(200)
        assert imbalances(client.pipeline) == []
        assert rows_in(*letters(client)) == list(range(8, 16))
        assert {letter.reason for letter in letters(client)} == {"partial"}  # a part of them may be there already
        assert sorted(numbers_of(tinybird.taken())) == list(range(8))


async def test_fresh_rows_do_not_wait_for_the_search_in_replayed_ones() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing({*range(0, 4000, 2), 50_000}))
        client.offer(numbered(range(4000)))
        await asyncio.sleep(120)
        await client.pipeline.replay(LetterFilter(reason=LetterReason.UNDECIDED))
        await asyncio.sleep(5)
        client.offer(numbered(range(50_000, 50_100)))
        await asyncio.sleep(60)
        taken = [n for n in numbers_of(tinybird.taken()) if n >= 50_000]
        assert sorted(taken) == list(range(50_001, 50_100))
        facts = client.destination.facts()
        assert facts.splitting is not None, "the search in the letters goes on after that"


async def test_letters_that_their_clients_know_of_or_that_would_double_are_replayed_only_if_asked_for() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=2)) as client:
        tinybird.will(422, 400, then=200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(5)
        await client.send(numbered([3]), wait=True)
        await asyncio.sleep(5)
        outcome = await client.pipeline.replay(EVERY_LETTER)
        assert (outcome.partial_rows, outcome.client_told_rows, outcome.replayed_rows) == (2, 1, 0)
        outcome = await client.pipeline.replay(LetterFilter(reason=LetterReason.PARTIAL))
        assert outcome.replayed_rows == 2
        outcome = await client.pipeline.replay(LetterFilter(client_told=True))
        assert outcome.replayed_rows == 1
        await asyncio.sleep(5)
        assert letters(client) == []


async def test_a_replay_takes_no_more_than_there_is_room_for() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=10, buffer_rows=20)) as client:
        for start in (0, 10, 20, 30):
            tinybird.will(422)
            client.offer(numbered(range(start, start + 10)))
            await asyncio.sleep(5)
        tinybird.will(then=Step(200, after_s=5))
        outcome = await client.pipeline.replay(LetterFilter(reason=LetterReason.PARTIAL))
        assert (outcome.replayed_rows, outcome.no_room_rows) == (20, 20)
        await asyncio.sleep(20)
        outcome = await client.pipeline.replay(LetterFilter(reason=LetterReason.PARTIAL))
        assert (outcome.replayed_rows, outcome.no_room_rows) == (20, 0)


async def test_letters_of_a_forgotten_destination_are_accounted_for_and_can_be_replayed() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(max_destinations=1)) as client:
        tinybird.will(422, then=200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(5)
        other = Client(client.pipeline, "other")
        await other.confirm()
        assert [d.key.name for d in client.pipeline.destinations()] == ["other"]
        assert client.pipeline.check_ledger() == 0
        await client.pipeline.replay(LetterFilter(reason=LetterReason.PARTIAL))
        assert [d.key.name for d in client.pipeline.destinations()] == ["hits"]
        assert client.pipeline.check_ledger() == 0
        await asyncio.sleep(5)
        assert letters(client) == []
        assert client.pipeline.ledger().delivered == 4


# 413.


async def test_a_batch_that_is_too_large_is_halved_until_it_fits_and_the_ceiling_is_remembered() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(then=larger_than(200_000))
        client.offer(numbered(range(1000), padding=400))
        await asyncio.sleep(20)
        assert sorted(numbers_of(tinybird.taken())) == list(range(1000))
        assert 413 in statuses(tinybird)
        facts = client.destination.facts()
        assert facts.state is State.DELIVERING
        assert facts.ceiling_bytes is not None
        assert facts.ceiling_bytes <= 210_000
        tinybird.forget()
        client.offer(numbered(range(1000, 2000), padding=400))
        await asyncio.sleep(20)
        assert 413 not in statuses(tinybird)
        assert sorted(numbers_of(tinybird.taken())) == list(range(1000, 2000))
        assert (letters(client), client.destination.ledger.ambiguous) == ([], 0)


async def test_after_ten_minutes_without_a_413_twice_as_much_is_tried() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(then=larger_than(200_000))
        client.offer(numbered(range(1000), padding=400))
        await asyncio.sleep(20)
        low = client.destination.facts().ceiling_bytes
        await asyncio.sleep(601)
        assert low is not None
        assert client.destination.facts().ceiling_bytes in (2 * low, 2 * low + 1)


async def test_a_single_row_that_is_too_large_is_a_dead_letter() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(then=larger_than(200))
        for item in (numbered(range(5)), numbered([5], padding=500), numbered(range(6, 10))):
            client.offer(item)
        await asyncio.sleep(20)
        (letter,) = letters(client)
        assert (letter.reason, letter.status, rows_in(letter)) == ("too_large", 413, [5])
        assert sorted(numbers_of(tinybird.taken())) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_tinybird_that_finds_everything_too_large_does_not_turn_all_rows_into_letters() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=413)
        client.offer(numbered(range(5000)))
        await asyncio.sleep(300)
        facts = client.destination.facts()
        assert (facts.state, facts.status) == (State.HELD, 413)
        assert "however small it is" in facts.reason
        assert len(letters(client)) == 2
        assert len(tinybird.attempts) < 100
        tinybird.will(then=200)
        await asyncio.sleep(60)
        assert (client.destination.idle, len(tinybird.taken())) == (True, 4998)


async def test_a_single_row_that_is_too_large_and_was_sent_before_a_hold_does_not_end_it() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(after(3, 403), after(5, 413), then=403)
        for n in (1, 2):
            client.offer(numbered([n]))
            await asyncio.sleep(1.2)
        await asyncio.sleep(20)
        assert statuses(tinybird) == [403, 413]
        assert client.destination.facts().state is State.HELD


@dataclass(frozen=True, kw_only=True)
class FailingHalves(Setup):
    """The first time that a batch is halved something breaks."""

    def surroundings(self, upstream: BatchUpstream, after_settling: Callable[[], None] = lambda: None) -> Surroundings:
        made = super().surroundings(upstream, after_settling)
        works, calls = made.codec.halves, itertools.count()

        async def halves(payload: Payload) -> tuple[bytes, bytes]:
            if next(calls) == 0:
                raise MemoryError
            return await works(payload)

        return replace(made, codec=replace(made.codec, halves=halves))


async def test_a_batch_that_cannot_be_halved_is_kept_and_is_not_in_doubt() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, FailingHalves(compress=plain)) as client:
        tinybird.will(then=larger_than(200))
        client.offer(numbered(range(100)))
        await asyncio.sleep(20)
        assert client.pipeline.surroundings.meters.internal_errors == 1
        assert sorted(numbers_of(tinybird.taken())) == list(range(100))
        assert (letters(client), client.destination.ledger.ambiguous) == ([], 0)


async def plain(bodies: list[bytes]) -> Payload:
    await asyncio.sleep(0)
    return codec.compress(bodies, "none")


async def test_waiting_clients_of_a_halved_batch_hear_of_all_their_rows() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(413, then=quarantining(1))
        one, two = client.post(numbered(range(3)), wait=True), client.post(numbered(range(3, 10)), wait=True)
        assert await one == Confirmed(2, 1, 5, 1)
        assert isinstance(await two, Confirmed)


# Stopping.


async def test_a_drain_finishes_the_searches_that_it_has_time_for() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=refusing(range(0, 2000, 20)))
        for start in (0, 1000):
            client.offer(numbered(range(start, start + 1000)))
            await asyncio.sleep(1.1)
        deadline = client.pipeline.surroundings.now() + 25
        await client.pipeline.drain(deadline, stop_now=asyncio.Event(), report=lambda rows: None)
        assert client.pipeline.buffered_rows() == 0
        given_up = rows_in(*letters(client))
        assert set(range(0, 2000, 20)) <= set(given_up)
        assert sorted(given_up + numbers_of(tinybird.taken())) == list(range(2000))


async def test_what_is_being_searched_at_the_end_is_dropped_and_counted_once() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(400, 200, then=Step(200, after_s=1000))
        client.offer(numbered(range(16)))
        await asyncio.sleep(3)
        assert client.destination.buffered_rows() == 8
    ledger = client.pipeline.ledger()
    assert ledger.delivered == 9
    assert ledger.dropped == {"shutdown": 4, "in_doubt": 4}


async def test_letters_that_are_left_at_the_end_are_lost_and_counted() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(422, 422, then=Step(200, after_s=1000))
        for start in (0, 10):
            client.offer(numbered(range(start, start + 10)))
            await asyncio.sleep(3)
        first, _ = letters(client)
        await client.pipeline.replay(LetterFilter(ids=frozenset([first.id])))
        await asyncio.sleep(1)
    ledger = client.pipeline.ledger()
    assert (ledger.letters_lost_at_exit, ledger.dropped_total, ledger.lost_at_exit) == (10, 10, 20)


async def test_buffered_rows_and_counts_that_do_not_add_up_in_a_piece() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(400, counts(1, 0), reply(200, b"OK"), then=200)
        waiting = client.post(numbered(range(16)), wait=True)
        assert await waiting == Buffered()
        await asyncio.sleep(20)
        assert client.destination.ledger.unverified == 11


async def test_three_rows_in_a_row_that_are_too_large_hold_nobody_for_long() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(then=larger_than(1000))
        for n in range(3):
            client.offer(numbered([n], padding=2000))
            await asyncio.sleep(2)
        assert client.destination.facts().state is State.HELD  # so far 413 is all that Tinybird says
        client.offer(numbered([10, 11]))
        await asyncio.sleep(130)
        assert client.destination.facts().state is State.DELIVERING
        assert sorted(rows_in(*letters(client))) == [0, 1, 2]
        assert numbers_of(tinybird.taken()) == [10, 11]


async def test_large_rows_at_the_front_of_a_batch_hold_its_others_for_a_probe_at_most() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(then=larger_than(1000))
        client.offer(numbered(range(4), padding=2000))
        client.offer(numbered(range(4, 100)))
        await asyncio.sleep(300)
        assert sorted(numbers_of(tinybird.taken())) == list(range(4, 100))
        assert sorted(rows_in(*letters(client))) == [0, 1, 2, 3]


async def test_a_replay_of_rows_that_are_too_large_holds_nothing() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(compress=plain)) as client:
        tinybird.will(then=larger_than(1000))
        for n in range(3):
            client.offer(numbered([n], padding=2000))
            await asyncio.sleep(2)
            client.offer(numbered([100 + n]))
            await asyncio.sleep(2)
        await client.pipeline.replay(EVERY_LETTER)
        await asyncio.sleep(10)
        client.offer(numbered([500]))
        await asyncio.sleep(5)
        assert 500 in numbers_of(tinybird.taken())
        assert sorted(rows_in(*letters(client))) == [0, 1, 2]


async def test_a_slow_drain_sends_what_waits_before_it_searches_on() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(rate=5.0)) as client:
        tinybird.will(then=refusing(range(0, 1000, 5)))
        client.offer(numbered(range(1000)))
        await asyncio.sleep(3)
        client.offer(numbered(range(5000, 15000)))
        pipeline = client.pipeline
        await pipeline.drain(pipeline.surroundings.now() + 25, stop_now=asyncio.Event(), report=lambda rows: None)
        assert pipeline.buffered_rows() <= 1000


async def test_what_was_ambiguous_in_pieces_and_then_whole_is_counted_once() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(400, broken(), then=400)
        client.offer(numbered(range(16)))
        await asyncio.sleep(30)
        assert client.destination.ledger.ambiguous == 16
        assert client.destination.facts().state is State.HELD


async def test_what_was_said_before_rows_were_judged_is_not_shown_any_more() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(403, 400, then=200)
        client.offer(numbered([1]))
        await asyncio.sleep(70)
        facts = client.destination.facts()
        assert (facts.status, facts.reason) == (None, "")
