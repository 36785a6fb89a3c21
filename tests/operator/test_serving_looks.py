"""Looks, one after the other: how often, and what is told of what fails."""

import asyncio
import logging

import pytest

from tinybird_proxy_operator.errors import Conflict, Forbidden
from tinybird_proxy_operator.serving.looks import Teller, look_again

LOG = logging.getLogger(__name__)


async def seconds_of_looks(*, overlap_s: float, ready_from: int, for_s: float) -> list[float]:
    """When there was a look, if it is ready from that one on."""
    loop, looks = asyncio.get_running_loop(), list[float]()

    async def look() -> None:
        looks.append(loop.time())

    looking = asyncio.create_task(
        look_again(look, is_ready=lambda: len(looks) >= ready_from, overlap_s=overlap_s, jitter=lambda limit: 0.0)
    )
    await asyncio.sleep(for_s)
    looking.cancel()
    return looks


@pytest.mark.looptime(idle_timeout=1)
async def test_it_looks_more_often_while_nothing_can_be_answered() -> None:
    assert await seconds_of_looks(overlap_s=600, ready_from=3, for_s=20) == [0, 2, 4, 14]


@pytest.mark.looptime(idle_timeout=1)
async def test_it_looks_several_times_in_an_overlap() -> None:
    assert await seconds_of_looks(overlap_s=5, ready_from=0, for_s=3.5) == [0, 1, 2, 3]


async def test_what_fails_is_told_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    teller, faults = Teller(LOG, "the test's"), [Forbidden("no"), Forbidden("no"), None, Forbidden("no")]

    async def work() -> None:
        if (fault := faults.pop(0)) is not None:
            raise fault

    for _ in range(4):
        await teller.attempt("certificates", work)
    assert [record.getMessage() for record in caplog.records] == ["certificates: no; it is tried again"] * 2


async def test_that_another_replica_was_faster_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise Conflict("it has changed")

    await Teller(LOG, "the test's").attempt("certificates", work)
    assert caplog.records == []


async def test_a_mistake_of_the_program_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise KeyError("uid")

    await Teller(LOG, "the test's").attempt("certificates", work)
    [record] = caplog.records
    assert record.getMessage() == "certificates: a fault of the test's; it is tried again"
    assert record.exc_info is not None
