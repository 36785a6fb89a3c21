"""Answers for a moment: asked for once, whoever wants them, and no more of them than there is room for."""

import asyncio

import pytest

from tinybird_proxy_operator.recent import Recent

pytestmark = pytest.mark.looptime(idle_timeout=1)


class Questions:
    """Counts what is asked; an answer takes a second."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.fails = False

    async def ask(self, key: str) -> int:
        self.asked.append(key)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(1)
        finally:
            self.at_once -= 1
        if self.fails:
            raise ConnectionError(key)
        return len(self.asked)


def recent(questions: Questions, *, capacity: int = 10, at_once: int = 10) -> Recent[str, int]:
    now = asyncio.get_running_loop().time
    return Recent(questions.ask, keep_s=5, capacity=capacity, at_once=at_once, now=now)


async def test_many_who_ask_at_the_same_time_ask_once() -> None:
    questions = Questions()
    answers = recent(questions)
    assert await asyncio.gather(*(answers.get("a") for _ in range(20))) == [1] * 20
    assert questions.asked == ["a"]


async def test_an_answer_is_as_old_as_its_question() -> None:
    questions = Questions()
    answers = recent(questions)
    assert await answers.get("a") == 1
    await asyncio.sleep(3.9)
    assert await answers.get("a") == 1
    await asyncio.sleep(0.2)
    assert await answers.get("a") == 2


async def test_what_fails_is_told_to_all_who_wait_and_asked_anew() -> None:
    questions = Questions()
    questions.fails = True
    answers = recent(questions)
    failed = await asyncio.gather(answers.get("a"), answers.get("a"), return_exceptions=True)
    assert [type(each) for each in failed] == [ConnectionError, ConnectionError]
    questions.fails = False
    assert await answers.get("a") == 2


async def test_one_who_no_longer_waits_ends_nobody_elses_question() -> None:
    answers = recent(Questions())
    first, second = asyncio.create_task(answers.get("a")), asyncio.create_task(answers.get("a"))
    await asyncio.sleep(0.5)
    first.cancel()
    assert await second == 1


async def test_there_is_never_more_than_there_is_room_for() -> None:
    questions = Questions()
    answers = recent(questions, capacity=3, at_once=2)
    await asyncio.gather(*(answers.get(str(number)) for number in range(8)))
    assert (len(answers), questions.most_at_once) == (3, 2)


async def test_what_is_too_old_is_not_kept_until_there_is_no_room() -> None:
    answers = recent(Questions())
    await answers.get("a")
    await asyncio.sleep(10)
    await answers.get("b")
    assert len(answers) == 1


async def test_closing_ends_what_is_asked() -> None:
    questions = Questions()
    answers = recent(questions)
    waiting = asyncio.create_task(answers.get("a"))
    await asyncio.sleep(0.5)
    await answers.close()
    await answers.close()
    assert questions.at_once == 0
    with pytest.raises(asyncio.CancelledError):
        await waiting
