"""What the log says of a destination, in simulated time: trouble when it begins, not each time."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import delivering, new

from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, quarantining, reply
from tinybird_proxy.testing.pipelines import Setup, numbered

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """The beginning of each warning, and the rows it speaks of."""
    return [
        (record.getMessage().split(":")[0].split(";")[0], record.__dict__["fields"]["rows"])
        for record in caplog.records
        if record.name == "tinybird_proxy.destination" and record.levelname == "WARNING"
    ]


async def test_trouble_is_told_when_it_begins_and_when_it_gets_worse_and_not_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "tinybird_proxy")
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(503, 503, 503, 403, 403, 200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(300)
        assert warnings(caplog) == [("a destination is not delivering", 2), ("a destination is held", 2)]
        assert "a destination delivers again" in caplog.messages


async def test_rows_of_a_first_contact_that_are_kept_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for step, words in ((503, "a destination is not delivering"), (402, "a destination is held")):
        caplog.clear()
        async with new(FakeUpstream([step]), token="p.client") as client:
            await client.send(numbered([1, 2]))
        assert warnings(caplog) == [(words, 2)]


async def test_the_log_does_not_claim_to_keep_what_was_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    async with new(FakeUpstream(then=403), token="p.client") as client:
        await client.send(numbered([1, 2]))
    assert warnings(caplog) == [("Tinybird refuses a destination's first rows", 0)]
    assert "p.client" not in caplog.text


@pytest.mark.parametrize(("step", "words"), [(reply(200, b"OK"), "somebody has to act"), (402, "probed each minute")])
async def test_the_log_says_whether_a_hold_is_probed(
    step: Script, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.counts_seen = False  # as if this URL had never answered like Tinybird
        tinybird.will(step)
        client.offer(numbered([1]))
        await asyncio.sleep(2)
    assert words in caplog.text


async def test_quarantined_rows_are_told_at_intervals_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0)) as client:
        tinybird.will(then=quarantining(1))
        for number in range(23):
            client.offer(numbered([number, -number]))
            await asyncio.sleep(1)
    assert warnings(caplog) == [("Tinybird put rows into quarantine", rows) for rows in (1, 10, 10)]
