"""Starting, running, draining, stopping: when the proxy wants traffic, and when it refuses it."""

import asyncio

import pytest

from tinybird_proxy.server.availability import Availability


def started(*, drain_delay_s: float = 0.0) -> Availability:
    availability = Availability(drain_delay_s=drain_delay_s, now=asyncio.get_running_loop().time)
    availability.started = True
    return availability


def seen(availability: Availability) -> tuple[str, bool, bool]:
    """Phase, ready, refusing."""
    return availability.phase, availability.ready, availability.refusing


async def test_a_proxy_that_is_starting_is_not_ready_and_refuses_nobody() -> None:
    availability = Availability(drain_delay_s=0.0, now=lambda: 0.0)
    assert seen(availability) == ("starting", False, False)


async def test_a_running_proxy_is_ready() -> None:
    assert seen(started()) == ("running", True, False)


async def test_without_a_delay_a_drain_refuses_at_once() -> None:
    availability = started()
    availability.begin_drain()
    assert seen(availability) == ("draining", False, True)


@pytest.mark.looptime
async def test_with_a_delay_a_drain_is_unready_first_and_refuses_later() -> None:
    availability = started(drain_delay_s=5.0)
    availability.begin_drain()
    assert seen(availability) == ("draining", False, False)
    await asyncio.sleep(4.9)
    assert not availability.refusing
    await asyncio.sleep(0.2)
    assert seen(availability) == ("draining", False, True)


@pytest.mark.looptime
async def test_a_short_delay_is_a_delay_too() -> None:
    availability = started(drain_delay_s=0.5)
    availability.begin_drain()
    assert not availability.refusing
    await asyncio.sleep(0.6)
    assert availability.refusing


@pytest.mark.looptime
async def test_beginning_twice_does_not_begin_again() -> None:
    availability = started(drain_delay_s=5.0)
    availability.begin_drain()
    since = availability.draining_since
    await asyncio.sleep(3.0)
    availability.begin_drain()
    assert availability.draining_since == since
    await asyncio.sleep(2.1)
    assert availability.refusing


@pytest.mark.looptime
async def test_a_drain_that_is_cancelled_in_time_never_refuses() -> None:
    availability = started(drain_delay_s=5.0)
    availability.begin_drain()
    await asyncio.sleep(3.0)
    assert availability.cancel_drain()
    assert seen(availability) == ("running", True, False)
    await asyncio.sleep(10.0)
    assert seen(availability) == ("running", True, False)


@pytest.mark.looptime
async def test_a_drain_after_a_cancelled_one_has_the_whole_delay() -> None:
    availability = started(drain_delay_s=5.0)
    availability.begin_drain()
    await asyncio.sleep(3.0)
    availability.cancel_drain()
    availability.begin_drain()
    await asyncio.sleep(4.9)
    assert not availability.refusing
    await asyncio.sleep(0.2)
    assert availability.refusing


async def test_a_drain_that_refuses_already_can_be_cancelled() -> None:
    availability = started()
    availability.begin_drain()
    assert availability.cancel_drain()
    assert seen(availability) == ("running", True, False)


async def test_cancelling_no_drain_changes_nothing() -> None:
    availability = started()
    assert availability.cancel_drain()
    assert seen(availability) == ("running", True, False)


async def test_a_process_that_stops_cannot_be_called_back() -> None:
    availability = started()
    availability.stopping = True
    availability.begin_drain()
    assert not availability.cancel_drain()
    assert seen(availability) == ("stopping", False, True)


@pytest.mark.looptime
async def test_the_delay_may_be_cut_short() -> None:
    availability = started(drain_delay_s=60.0)
    availability.begin_drain()
    availability.refuse()
    assert availability.refusing


@pytest.mark.looptime
async def test_listeners_hear_once_that_requests_are_refused_and_once_that_they_are_not() -> None:
    availability, heard = started(drain_delay_s=5.0), list[bool]()
    availability.on_refusing(heard.append)
    availability.begin_drain()
    assert availability.cancel_drain()
    await asyncio.sleep(10.0)
    assert heard == []
    availability.begin_drain()
    await asyncio.sleep(5.1)
    availability.begin_drain()
    availability.refuse()
    assert heard == [True]
    for _ in range(2):
        assert availability.cancel_drain()
    assert heard == [True, False]


@pytest.mark.looptime
async def test_a_delay_that_was_cut_short_is_not_heard_of_when_it_ends() -> None:
    availability, heard = started(drain_delay_s=5.0), list[bool]()
    availability.on_refusing(heard.append)
    availability.begin_drain()
    availability.refuse()
    await asyncio.sleep(10.0)
    assert heard == [True]
