"""``destination.expiry`` in a destination: simulated time and a scripted Tinybird."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tinybird_proxy.admission import Refusal
from tinybird_proxy.dead_letter import EVERY_LETTER, DeadLetter
from tinybird_proxy.pacing import State
from tinybird_proxy.testing.fake_upstream import FakeUpstream, after, broken, hang, unreachable
from tinybird_proxy.testing.pipelines import Client, Setup, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed, Refused

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime(idle_timeout=0.05, noop_cycles=0)]


@asynccontextmanager
async def running(tinybird: FakeUpstream, setup: Setup, *, token: str | None = None) -> AsyncIterator[Client]:
    async with setup.pipeline(tinybird).running() as pipeline:
        yield Client(pipeline, "hits", token=token)
        assert imbalances(pipeline) == []


def letters(client: Client) -> list[DeadLetter]:
    return list(client.pipeline.surroundings.letters.select())


async def test_without_max_age_rows_are_tried_for_ever() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup()) as client:
        await client.confirm()
        tinybird.will(then=unreachable())
        client.offer(numbered([1]))
        await asyncio.sleep(2 * 86400)
        assert (letters(client), client.destination.buffered_rows()) == ([], 1)
        tinybird.will(then=200)
        await asyncio.sleep(61)
        assert numbers_of(tinybird.taken()[1:]) == [1]


async def test_a_batch_expires_when_its_youngest_row_is_too_old() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=100.0)) as client:
        await client.confirm()
        tinybird.will(then=unreachable())
        client.offer(numbered([1]))
        await asyncio.sleep(50)
        client.offer(numbered([2]))  # of another batch: the first was tried by then
        await asyncio.sleep(49.9)
        assert letters(client) == []
        await asyncio.sleep(0.2)
        (letter,) = letters(client)
        assert (letter.row_count, letter.reason, letter.status, letter.ambiguous) == (1, "expired", None, False)
        assert letter.message == "older than MAX_AGE; no connection to tinybird.test:443: connection refused"
        assert client.destination.buffered_rows() == 1
        await asyncio.sleep(50)
        assert len(letters(client)) == 2
        assert client.destination.idle


async def test_rows_of_an_open_batch_expire_too() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=5.0)) as client:
        await client.confirm()
        tinybird.will(403)
        client.offer(numbered([1]))
        await asyncio.sleep(2)  # held: what comes now stays open
        client.offer(numbered([2]))
        await asyncio.sleep(5.1)
        assert sorted(letter.row_count for letter in letters(client)) == [1, 1]
        assert client.destination.facts().state is State.HELD


async def test_what_is_in_flight_expires_when_it_comes_back_and_says_that_it_may_have_arrived() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=10.0)) as client:
        await client.confirm()
        tinybird.will(after(30, broken()), then=200)
        client.offer(numbered([1]))
        await asyncio.sleep(20)
        assert letters(client) == []
        await asyncio.sleep(12)
        (letter,) = letters(client)
        assert (letter.reason, letter.ambiguous) == ("expired", True)
        assert len(tinybird.attempts) == 2  # the first contact's, and one


async def test_what_arrives_in_time_does_not_expire_although_its_answer_is_late() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=10.0)) as client:
        await client.confirm()
        tinybird.will(after(30, 200))
        client.offer(numbered([1]))
        await asyncio.sleep(35)
        assert (letters(client), client.destination.ledger.delivered) == ([], 2)


async def test_a_batch_being_searched_expires_with_what_is_undecided() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=20.0)) as client:
        await client.confirm()
        tinybird.will(400, 200, then=unreachable())
        client.offer(numbered(range(16)))
        await asyncio.sleep(30)
        assert client.destination.ledger.delivered == 1 + 8
        assert {letter.reason for letter in letters(client)} == {"expired"}
        assert sum(letter.row_count for letter in letters(client)) == 8
        assert client.destination.idle


async def test_a_letter_of_a_search_that_expired_says_that_a_piece_may_have_arrived() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=30.0)) as client:
        await client.confirm()
        tinybird.will(400, broken(takes=True), then=unreachable())
        client.offer(numbered(range(16)))
        await asyncio.sleep(60)
        assert numbers_of(tinybird.taken()[1:]) == list(range(8))
        assert client.pipeline.ledger().ambiguous == 8
        assert sum(letter.row_count for letter in letters(client)) == 16
        assert all(letter.ambiguous for letter in letters(client))


async def test_a_letter_of_a_search_that_expired_says_what_tinybird_refused_it_for() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=5.0)) as client:
        await client.confirm()
        bad = set(range(0, 1000, 5))
        tinybird.will(then=lambda attempt: 400 if bad.intersection(numbers_of(attempt.rows)) else 200)
        client.offer(numbered(range(1000)))
        await asyncio.sleep(30)
        (message,) = {letter.message for letter in letters(client) if letter.reason == "expired"}
        assert message.startswith("older than MAX_AGE; ")
        assert "400" in message
        assert "had not answered" not in message


async def test_a_waiting_client_hears_of_an_expiry() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=5.0)) as client:
        await client.confirm()
        tinybird.will(then=unreachable())
        outcome = await client.send(numbered([1]), wait=True)
        assert isinstance(outcome, Refused)
        assert (outcome.status, letters(client)[0].client_told) == (503, True)


async def test_what_was_promised_to_a_token_that_tinybird_never_accepted_is_given_up_after_an_hour() -> None:
    tinybird = FakeUpstream(then=after(2, 403))
    async with running(tinybird, Setup(), token="p.bad") as client:
        assert await client.send(numbered([1])) == Buffered()
        await asyncio.sleep(3500)
        assert (letters(client), client.destination.buffered_rows()) == ([], 1)
        assert isinstance(client.offer(numbered([2])), Refusal)
        await asyncio.sleep(110)
        (letter,) = letters(client)
        assert (letter.reason, letter.status, letter.row_count) == ("unauthorized", 403, 1)
        assert client.destination.idle
        tinybird.will(then=200)  # the token was mended
        await asyncio.sleep(60)
        assert await client.send(numbered([3]), wait=True) == Confirmed(1, 0)
        await client.pipeline.replay(EVERY_LETTER)
        await asyncio.sleep(5)
        assert sorted(numbers_of(tinybird.taken())) == [1, 3]


async def test_tinybird_is_asked_about_a_replay_although_the_hour_of_the_refusal_is_over() -> None:
    tinybird = FakeUpstream([unreachable()], then=403)
    async with running(tinybird, Setup(), token="p.client") as client:
        assert await client.send(numbered([1])) == Buffered()
        await asyncio.sleep(3700)
        (letter,) = letters(client)
        assert letter.reason == "unauthorized"
        tinybird.will(then=200)  # a person has mended the token's rights
        tinybird.forget()
        assert (await client.pipeline.replay(EVERY_LETTER)).replayed_rows == 1
        await asyncio.sleep(5)
        assert [numbers_of(attempt.rows) for attempt in tinybird.attempts] == [[1]]
        assert letters(client) == []


async def test_an_unauthorized_letter_of_a_search_has_the_status_that_its_message_is_about() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(), token="p.client") as client:
        tinybird.will(unreachable(), 400, then=403)
        assert await client.send(numbered(range(100))) == Buffered()
        await asyncio.sleep(3800)
        assert {(letter.reason, letter.status) for letter in letters(client)} == {("unauthorized", 403)}
        assert all("403" in letter.message for letter in letters(client))
        assert client.destination.idle


async def test_a_confirmed_destination_keeps_what_it_holds_however_long_it_is_refused() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(), token="p.good") as client:
        await client.confirm()
        tinybird.will(then=403)
        client.offer(numbered([1]))
        await asyncio.sleep(86400)
        assert (letters(client), client.destination.buffered_rows()) == ([], 1)


async def test_nothing_spins_while_an_attempt_of_expired_rows_is_in_flight() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_age_s=1.0)) as client:
        await client.confirm()
        tinybird.will(hang())
        client.offer(numbered([1]))
        await asyncio.sleep(3)
        turns = client.destination.sender._turns
        await asyncio.sleep(1000)
        assert client.destination.sender._turns == turns  # nothing was due
