"""`tinybird_proxy.emulator.request_log`: the last requests, and waking those who wait for them."""

import asyncio

from tinybird_proxy.emulator.request_log import MAX_REQUESTS, ReceivedRequest, RequestLog


def _received(number: int) -> ReceivedRequest:
    return ReceivedRequest(
        request_id=str(number),
        received_at=0.0,
        received_loop_s=0.0,
        method="POST",
        path="/v0/events",
        query={},
        headers={},
    )


def test_the_log_keeps_the_last_requests_only() -> None:
    log = RequestLog()
    for number in range(MAX_REQUESTS + 1):
        log.add(_received(number))
    assert len(log.requests) == MAX_REQUESTS
    assert log.requests[0].request_id == "1"


async def test_arrival_and_end_of_a_request_wake_those_who_wait() -> None:
    log = RequestLog()
    received = _received(1)
    progress = log.progress
    log.add(received)
    assert progress.is_set()
    progress = log.progress
    log.finish(received, now=2.5)
    async with asyncio.timeout(1):
        await progress.wait()
    assert (log.finished_count, received.answered_loop_s) == (1, 2.5)
