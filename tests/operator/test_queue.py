"""The work queue, in simulated time: each key once, serial, again after a backoff."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.queue import BACKOFF_MAX_S, Key, WorkQueue

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime(idle_timeout=1)]

A, B, C = Key("shop", "a"), Key("shop", "b"), Key("shop", "c")


def queue(*, chance: float = 0.0) -> WorkQueue:
    return WorkQueue(now=asyncio.get_running_loop().time, jitter=lambda limit: limit * chance)


@asynccontextmanager
async def working(
    keys: WorkQueue, work: Callable[[Key], Awaitable[float | None]], *, workers: int = 2
) -> AsyncIterator[None]:
    task = asyncio.create_task(keys.run(work, workers=workers))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class Diary:
    """Notes when which key was worked on, ``takes_s`` each; ``answers`` are given in order, errors raised."""

    def __init__(self, *answers: float | Exception | None, takes_s: float = 0.0) -> None:
        self.notes: list[tuple[float, Key]] = []
        self.at_once: dict[Key, int] = {}
        self.most_at_once = 0
        self._answers = list(answers)
        self._takes_s = takes_s

    async def work(self, key: Key) -> float | None:
        self.notes.append((round(asyncio.get_running_loop().time(), 3), key))
        self.at_once[key] = self.at_once.get(key, 0) + 1
        assert self.at_once[key] == 1, "a key must be worked on by one worker at a time"
        self.most_at_once = max(self.most_at_once, sum(self.at_once.values()))
        try:
            await asyncio.sleep(self._takes_s)
        finally:
            self.at_once[key] -= 1
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.notes]


async def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    keys, diary = queue(), Diary()
    for _ in range(100):
        keys.add(A)
    assert len(keys) == 1
    async with working(keys, diary.work):
        await asyncio.sleep(100)
    assert diary.notes == [(0.0, A)]
    assert len(keys) == 0


async def test_the_sooner_of_two_times_counts() -> None:
    keys, diary = queue(), Diary()
    keys.add(A, 10)
    keys.add(A, 3)
    keys.add(A, 7)
    async with working(keys, diary.work):
        await asyncio.sleep(100)
    assert diary.times == [3.0]


async def test_a_key_that_comes_sooner_while_a_worker_sleeps_wakes_it() -> None:
    keys, diary = queue(), Diary()
    keys.add(A, 50)
    async with working(keys, diary.work, workers=1):
        await asyncio.sleep(5)
        keys.add(B)
        await asyncio.sleep(100)
    assert diary.notes == [(5.0, B), (50.0, A)]


async def test_a_key_is_never_worked_on_twice_at_a_time_and_what_comes_meanwhile_is_not_lost() -> None:
    keys, diary = queue(), Diary(takes_s=4)
    keys.add(A)
    async with working(keys, diary.work, workers=3):
        for _ in range(3):
            await asyncio.sleep(1)
            keys.add(A)
        await asyncio.sleep(100)
    assert diary.times == [0.0, 4.0]


async def test_different_keys_are_worked_on_side_by_side_as_far_as_there_are_workers() -> None:
    keys, diary = queue(), Diary(takes_s=10)
    for key in (A, B, C):
        keys.add(key)
    async with working(keys, diary.work, workers=2):
        await asyncio.sleep(100)
    assert diary.notes == [(0.0, A), (0.0, B), (10.0, C)]
    assert diary.most_at_once == 2


async def test_work_says_when_to_come_again() -> None:
    keys, diary = queue(), Diary(10.0, 2.0, None)
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(100)
    assert diary.times == [0.0, 10.0, 12.0]


async def test_a_key_added_during_work_that_asks_to_come_later_comes_at_once() -> None:
    keys, diary = queue(), Diary(60.0, takes_s=4)
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(1)
        keys.add(A)
        await asyncio.sleep(30)
    assert diary.times == [0.0, 4.0]


async def test_failures_wait_twice_as_long_each_time_up_to_a_limit() -> None:
    keys, diary = queue(chance=1.0), Diary(*[ValueError()] * 12)
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(600)
    waits = [round(later - sooner, 3) for sooner, later in zip(diary.times, diary.times[1:], strict=False)]
    assert waits[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, BACKOFF_MAX_S]
    assert set(waits[8:]) == {BACKOFF_MAX_S}


async def test_chance_takes_away_up_to_half_of_a_wait() -> None:
    keys, diary = queue(chance=0.0), Diary(ValueError(), ValueError())
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(100)
    assert diary.times == [0.0, 0.25, 0.75]


async def test_a_success_forgets_the_failures_before_it() -> None:
    keys, diary = queue(chance=1.0), Diary(ValueError(), ValueError(), 5.0, ValueError())
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(100)
    assert diary.times == [0.0, 0.5, 1.5, 7.0, 7.5]


async def test_a_server_that_says_when_to_come_again_is_given_that_time() -> None:
    keys, diary = queue(chance=1.0), Diary(Unavailable("429", retry_after_s=30.0))
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(100)
    assert diary.times == [0.0, 30.5]


async def test_a_worker_survives_what_it_works_on() -> None:
    keys, diary = queue(), Diary(*[ValueError()] * 3)
    for key in (A, B, C):
        keys.add(key)
    async with working(keys, diary.work, workers=1):
        await asyncio.sleep(100)
    assert {key for _, key in diary.notes[3:]} == {A, B, C}


async def test_the_oldest_age_is_that_of_the_key_that_waits_longest_for_a_worker() -> None:
    keys, diary = queue(), Diary(takes_s=20)
    keys.add(A)
    keys.add(B, 5)
    keys.add(C, 90)
    async with working(keys, diary.work, workers=1):
        await asyncio.sleep(4)
        keys.add(A)  # it is being worked on: it does not wait for a worker
        assert keys.oldest_age_s() == 0.0
        await asyncio.sleep(8)
        assert keys.oldest_age_s() == 7.0
        await asyncio.sleep(60)
        assert keys.oldest_age_s() == 0.0


async def test_a_key_reads_like_in_kubectl() -> None:
    assert str(A) == "shop/a"


@pytest.mark.parametrize(("asked_s", "chance", "waited_s"), [(10.0, 0.0, 10.0), (10.0, 0.5, 10.5), (10.0, 1.0, 11.0)])
async def test_what_is_to_come_again_comes_up_to_a_tenth_later_and_never_sooner(
    asked_s: float, chance: float, waited_s: float
) -> None:
    keys, diary = queue(chance=chance), Diary(asked_s)
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(60)
    assert diary.times == [0, waited_s]


async def test_what_is_to_come_again_at_once_does() -> None:
    keys, diary = queue(chance=1.0), Diary(0.0, 0.0)
    keys.add(A)
    async with working(keys, diary.work):
        await asyncio.sleep(60)
    assert diary.times == [0, 0, 0]


async def test_resources_that_a_new_leader_looks_at_together_are_spread_after_a_while() -> None:
    chance = random.Random(7)
    keys, diary = WorkQueue(now=asyncio.get_running_loop().time, jitter=lambda limit: chance.uniform(0, limit)), Diary()

    async def work(key: Key) -> float:
        await diary.work(key)
        return 10.0

    for number in range(20):
        keys.add(Key("shop", str(number)))
    async with working(keys, work):
        await asyncio.sleep(600)
    last = {key: at for at, key in diary.notes}
    assert max(last.values()) - min(last.values()) > 5
    gaps = [
        later - sooner for key in last for sooner, later in pairwise([at for at, each in diary.notes if each == key])
    ]
    assert min(gaps) >= 9.999
    assert max(gaps) <= 11.001
