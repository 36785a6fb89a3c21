"""A destination whose task dies at any instant of searches, halves and replays: nothing is lost, doubles are told."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable

import pytest

from tinybird_proxy import codec
from tinybird_proxy.dead_letter import DeadLetter, LetterFilter
from tinybird_proxy.testing.fake_upstream import Attempt, FakeUpstream, Known, Script, after, broken
from tinybird_proxy.testing.pipelines import Client, Setup, imbalances, numbered, numbers_of

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime(idle_timeout=0.05, noop_cycles=0)]
ROWS = 200
RESTARTS = 6


def moody(chance: random.Random) -> FakeUpstream:
    """A Tinybird that refuses some rows for good, may have a limit of size, and fails now and then."""
    bad = set(chance.sample(range(ROWS), chance.choice([1, 3, 20, 190])))
    max_bytes = chance.choice([10**9, 300])

    def judge(attempt: Attempt) -> Script:
        if len(attempt.payload.body) > max_bytes:
            return after(0.05, 413)
        if bad.intersection(numbers_of(attempt.rows)):
            return after(0.05, 400)
        answers: list[Known] = [*[200] * 9, 503, broken(takes=chance.random() < 0.5), 429]
        return after(0.05, chance.choice(answers))

    return FakeUpstream(then=judge)


def rows_in(letters: Iterable[DeadLetter]) -> list[int]:
    bodies = codec.rows_in([letter.payload for letter in letters])
    return numbers_of(json.loads(line) for body in bodies for line in body.split(b"\n"))


def nothing_is_off(client: Client) -> bool:
    return imbalances(client.pipeline) == [] and client.pipeline.check_ledger() == 0


@pytest.mark.parametrize("seed", range(60))
async def test_whenever_the_task_dies_no_row_is_lost_and_only_those_in_doubt_may_be_doubled(seed: int) -> None:
    chance = random.Random(seed)
    tinybird = moody(chance)
    setup = Setup(batch_rows=60, max_age_s=chance.choice([None, 8.0]), codec_delay_s=0.03)
    async with setup.pipeline(tinybird).running() as pipeline:
        client = Client(pipeline)
        await client.send(numbered([ROWS]))
        posts = []
        for first in range(0, ROWS, 10):
            posts.append(client.post(numbered(range(first, first + 10)), wait=chance.random() < 0.5))
            await asyncio.sleep(chance.random() * 0.1)
        for _ in range(RESTARTS):
            await asyncio.sleep(chance.uniform(0.3, 6))
            if chance.random() < 0.6:
                pipeline.supervisor._senders[client.key].cancel()  # as the watchdog does
            if chance.random() < 0.3:
                await pipeline.replay(LetterFilter())
            assert nothing_is_off(client)
        if chance.random() < 0.7:
            await asyncio.sleep(400)
            assert all(post.done() for post in posts)
        assert nothing_is_off(client)
        if client.destination.idle:
            letters = list(pipeline.surroundings.letters.select())
            taken, given_up = (
                Counter(numbers_of(tinybird.taken())),
                Counter(rows_in(letters)),
            )
            assert {*taken, *given_up} == set(range(ROWS + 1))
            doubled = [n for n in range(ROWS + 1) if taken[n] + given_up[n] > 1]
            assert len(doubled) <= pipeline.ledger().ambiguous
            assert not any(taken[n] for n in rows_in(letter for letter in letters if not letter.ambiguous))
    assert (pipeline.ledger().imbalance(0), pipeline.ledger().letters_imbalance(0)) == (0, 0)
