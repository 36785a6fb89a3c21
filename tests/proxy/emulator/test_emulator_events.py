"""`tinybird_proxy.emulator.events`: who may post, what is answered, and what faults make of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
import pytest

from tinybird_proxy.emulator import Emulator, Fault, TokenEntry

Start = Callable[..., Awaitable[Emulator]]
_RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


async def _post(
    session: aiohttp.ClientSession, emulator: Emulator, query: str = "name=hits", body: bytes = b'{"a":1}'
) -> tuple[int, str, Mapping[str, str]]:
    async with session.post(f"{emulator.url}/v0/events?{query}", data=body) as reply:
        return reply.status, await reply.text(), reply.headers


@pytest.mark.parametrize(
    ("sentence", "query", "token", "status"),
    [
        ("no token is 401", "name=hits", None, 401),
        ("a wrong token is 403", "name=hits", "wrong", 403),
        ("an ADMIN token may append", "name=hits", "T", 202),
        ("an append token may append to its data source", "name=hits", "hits-only", 202),
        ("and to no other", "name=clicks", "hits-only", 403),
        ("a token in the query is as good", "name=hits&token=T", None, 202),
        ("the header wins", "name=hits&token=T", "wrong", 403),
        ("without a name there is nothing to do", "", "T", 400),
        ("a name must be one", "name=a-b", "T", 400),
        ("unknown parameters are ignored", "name=hits&from=ts-sdk&mode=append&utm_x=1", "T", 202),
    ],
)
async def test_who_may_post_where(start: Start, sentence: str, query: str, token: str | None, status: int) -> None:
    emulator = await start(tokens=(TokenEntry("hits-only", ("DATASOURCES:APPEND:hits",)),))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        answered, text, _ = await _post(session, emulator, query)
    assert answered == status, sentence
    assert ('"error"' in text) == (status >= 400), sentence


async def test_a_data_source_that_does_not_exist_is_404_if_none_may_be_created(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start(create_datasources=False, schemas={"known": {}})
    assert (await _post(session, emulator, "name=unknown"))[0] == 404
    assert (await _post(session, emulator, "name=known"))[0] == 202


async def test_without_wait_the_answer_is_202_at_once_and_the_rows_are_stored(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start(wait_delay_s=3600.0)
    status, text, headers = await _post(session, emulator)
    assert (status, text) == (202, '{"successful_rows": 1, "quarantined_rows": 0}')
    assert headers["Content-Type"].startswith("application/json")
    assert await emulator.rows("hits") == [b'{"a":1}']


async def test_wait_is_answered_with_200_after_the_delay_and_the_rows_are_stored_before(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start(wait_delay_s=0.2)
    posting = asyncio.create_task(_post(session, emulator, "name=hits&wait=true"))
    await emulator.wait_for_rows("hits", 1)
    assert not posting.done()
    assert (await posting)[0] == 200
    received = emulator.requests[0]
    assert received.answered_loop_s is not None
    assert received.answered_loop_s - received.received_loop_s >= 0.2


async def test_the_rate_limit_refuses_what_exceeds_it_and_says_so_in_integers(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start(requests_per_s=2)
    replies = [await _post(session, emulator) for _ in range(3)]
    assert [status for status, _, _ in replies] == [202, 202, 429]
    remaining = [int(headers["X-RateLimit-Remaining"]) for _, _, headers in replies]
    assert remaining == [1, 1, 0]
    assert all(int(headers["X-RateLimit-Reset"]) == 1 for _, _, headers in replies)
    assert int(replies[2][2]["Retry-After"]) == 1
    assert len(await emulator.rows("hits")) == 2


async def test_without_a_rate_limit_there_are_no_rate_headers(start: Start, session: aiohttp.ClientSession) -> None:
    _, _, headers = await _post(session, await start(requests_per_s=0))
    assert not any(name in headers for name in _RATE_HEADERS)


async def test_a_browser_may_post_from_anywhere(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    url = f"{emulator.url}/v0/events?name=hits&token=T"
    async with aiohttp.ClientSession() as browser, browser.options(url) as reply:
        assert reply.status == 204
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert "Authorization" in reply.headers["Access-Control-Allow-Headers"]
    for query in ("name=hits", ""):
        assert (await _post(session, emulator, query))[2]["Access-Control-Allow-Origin"] == "*"


async def test_vercels_verification_is_echoed_unless_it_could_split_the_head(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start()
    assert (await _post(session, emulator, "name=hits&x-vercel-verify=v1"))[2]["x-vercel-verify"] == "v1"
    assert "x-vercel-verify" not in (await _post(session, emulator, "name=hits&x-vercel-verify=a%0D%0Ab"))[2]


async def test_errors_may_be_plain_text(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(text_errors=True)
    status, text, headers = await _post(session, emulator, body=b"x")
    assert (status, text) == (400, "line 1 is not valid JSON")
    assert headers["Content-Type"].startswith("text/plain")


async def test_a_status_fault_answers_and_stores_nothing(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(requests_per_s=100)
    emulator.set_faults(Fault(status=429, retry_after=7, times=1))
    status, text, headers = await _post(session, emulator)
    assert (status, text) == (429, '{"error": "fault: 429"}')
    assert (headers["Retry-After"], headers["X-RateLimit-Remaining"], headers["X-RateLimit-Reset"]) == ("7", "0", "7")
    assert (await _post(session, emulator))[0] == 202
    assert len(await emulator.rows("hits")) == 1


async def test_a_fault_may_answer_like_a_load_balancer(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(requests_per_s=100)
    emulator.set_faults(Fault(status=503, body="<html>", headers={"Content-Type": "text/html"}, rate_headers=False))
    status, text, headers = await _post(session, emulator)
    assert (status, text, headers["Content-Type"]) == (503, "<html>", "text/html")
    assert not any(name in headers for name in (*_RATE_HEADERS, "Retry-After"))


@pytest.mark.parametrize(
    ("fault", "status", "text", "stored_count"),
    [
        (Fault(status=500, ingest=True), 500, '{"error": "fault: 500"}', 1),
        (Fault(status=500, text=True), 500, "fault: 500", 0),
        (Fault(status=202), 202, '{"successful_rows": 1, "quarantined_rows": 0}', 0),
        (Fault(body="ok", text=True), 202, "ok", 1),
        (Fault(body=""), 202, "", 1),
        (Fault(status=204), 204, "", 0),
        (Fault(counts={"successful_rows": 5}), 202, '{"successful_rows": 5, "quarantined_rows": 0}', 1),
        (Fault(ingest=False), 202, '{"successful_rows": 1, "quarantined_rows": 0}', 0),
        (Fault(status=302, headers={"Location": "/"}, body=""), 302, "", 0),
    ],
)
async def test_what_a_fault_answers_and_whether_it_stores(
    start: Start, session: aiohttp.ClientSession, fault: Fault, status: int, text: str, stored_count: int
) -> None:
    emulator = await start()
    emulator.set_faults(fault)
    url = f"{emulator.url}/v0/events?name=hits&token=T"
    async with session.post(url, data=b"{}", allow_redirects=False) as reply:
        assert (reply.status, await reply.text()) == (status, text)
    assert len(await emulator.rows("hits")) == stored_count
    assert emulator.requests[0].fault == fault.to_json()


async def test_a_delay_is_added_to_that_of_wait(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(wait_delay_s=0.1)
    emulator.set_faults(Fault(delay_s=0.1))
    assert (await _post(session, emulator, "name=hits&wait=true"))[0] == 200
    received = emulator.requests[0]
    assert received.answered_loop_s is not None
    assert received.answered_loop_s - received.received_loop_s >= 0.2


@pytest.mark.parametrize(
    ("fault", "was_read", "stored_count"),
    [
        (Fault(reset="before_body"), False, 0),
        (Fault(reset="during_body"), False, 0),
        (Fault(reset="after_body"), True, 0),
        (Fault(reset="after_body", ingest=True), True, 1),
    ],
)
async def test_a_reset_breaks_the_connection_instead_of_answering(
    start: Start, fault: Fault, was_read: bool, stored_count: int
) -> None:
    emulator = await start()
    emulator.set_faults(fault)
    reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
    writer.write(b"POST /v0/events?name=hits&token=T HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()
    await emulator.wait_for_requests(1)
    received = emulator.requests[0]
    assert (received.status, received.body_bytes is not None) == (None, was_read)
    assert len(await emulator.rows("hits")) == stored_count


async def test_a_reset_during_the_body_waits_for_its_first_piece_and_not_for_the_rest(start: Start) -> None:
    emulator = await start()
    emulator.set_faults(Fault(reset="during_body"))
    reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
    writer.write(b"POST /v0/events?name=hits&token=T HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    await emulator.wait_until(lambda: emulator.faults[0][1] == 1)
    assert emulator.requests[0].answered_loop_s is None
    writer.write(b"{")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()


async def test_a_request_that_hangs_is_reset_when_the_faults_change(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start()
    emulator.set_faults(Fault(hang=True))
    posting = asyncio.create_task(_post(session, emulator))
    await emulator.wait_until(lambda: emulator.faults[0][1] == 1)
    assert not posting.done()
    emulator.set_faults()
    with pytest.raises(aiohttp.ClientError):
        await posting
    assert emulator.requests[0].status is None


async def test_a_request_that_hangs_ends_when_its_client_leaves(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    emulator.set_faults(Fault(hang=True))
    posting = asyncio.create_task(_post(session, emulator))
    await emulator.wait_until(lambda: emulator.faults[0][1] == 1)
    posting.cancel()
    await emulator.wait_for_requests(1)
    assert emulator.requests[0].answered_loop_s is not None


async def test_rows_are_stored_even_if_the_client_leaves_before_the_answer(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start(wait_delay_s=3600.0)
    posting = asyncio.create_task(_post(session, emulator, "name=hits&wait=true"))
    await emulator.wait_for_rows("hits", 1)
    posting.cancel()
    await emulator.wait_for_requests(1)
    assert emulator.requests[0].status is None


async def test_faults_strike_the_data_source_they_name(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    emulator.set_faults({"datasource": "hits", "status": 503})
    assert (await _post(session, emulator, "name=hits"))[0] == 503
    assert (await _post(session, emulator, "name=clicks"))[0] == 202
