"""Which paths, targets and methods the public port takes, and what it tells browsers."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.proxy.running import World, ask, connected, request, running_world

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    """One proxy with a token of ours, which passes nothing through."""
    async with running_world() as running:
        yield running
        assert running.status()["ledger"]["accepted"] == 0, "nothing here is an events request that could be taken"
        assert [*running.tinybird.requests] == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE"])
async def test_events_are_posted_and_nothing_else(world: World, method: str) -> None:
    answer = await ask(world.port, "/v0/events?name=hits", method=method)
    assert (answer.status, answer["Allow"]) == (405, "POST, OPTIONS")
    assert answer["Access-Control-Allow-Origin"] == "*"
    if method != "HEAD":
        assert answer.error == "this path takes POST"


async def test_a_browser_may_post_from_anywhere_with_the_headers_that_it_names(world: World) -> None:
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-private",
    }
    answer = await ask(world.port, "/v0/events?name=hits&token=x", method="OPTIONS", headers=headers, token=None)
    assert (answer.status, answer.body) == (204, b"")
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert answer["Access-Control-Allow-Headers"] == "authorization,content-type,x-private"
    assert int(answer["Access-Control-Max-Age"]) > 0
    assert "Content-Length" not in answer
    assert "Access-Control-Allow-Credentials" not in answer


async def test_a_preflight_that_names_no_headers_is_offered_the_usual_ones(world: World) -> None:
    for version in ("1.1", "1.0"):
        answer = await ask(world.port, "/v0/events", method="OPTIONS", token=None, version=version)
        assert answer.status == 204
        assert answer["Access-Control-Allow-Headers"] == "Authorization, Content-Type, Content-Encoding"


async def test_a_preflight_repeats_nothing_that_is_not_a_header(world: World) -> None:
    for version in ("1.1", "1.0"):
        async with connected(world.port) as peer:
            head = request("/v0/events", method="OPTIONS", version=version)
            await peer.send(head[:-2] + b"Access-Control-Request-Headers: \xff\xfe\xe2\x80\xa8x\r\n\r\n")
            assert (await peer.answer()).status in (204, 400)


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost/v0/events?name=hits",
        "https://api.tinybird.co/v0/events?name=hits",
        "http://localhost/v1/liveness",
        "http://localhost/v0/pipes/top.json",
        "//v0/events?name=hits",
        "//localhost/v0/events?name=hits",
        "//localhost/v1/liveness",
        "///v0/sql",
        "*",
        "localhost:80",
        "v0/events?name=hits",
        "?name=hits",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
async def test_a_target_that_is_no_plain_path_is_refused_on_every_path(world: World, method: str, target: str) -> None:
    answer = await ask(world.port, target, b"{}" if method == "POST" else None, method=method)
    assert answer.status == 400
    assert answer.error in (
        "the request's target must be a path that begins with one slash",
        "the request is not valid HTTP",
    )


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/v0/events/", "/V0/EVENTS?name=hits", "/v0/%65vents?name=hits", "/v0//events?name=hits"),
        *("/v0/events;a=b?name=hits", "/v0/../v0/events?name=hits", "/v0/sql?q=select%201", "/metrics", "/status"),
        *("/livez", "/readyz", "/drain", "/v1/liveness/", "/v0/pipes/top.json?token=x"),
    ],
)
async def test_with_a_token_of_ours_every_other_path_is_404_and_says_what_to_do(world: World, target: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await ask(world.port, target, method=method)
        assert answer.status == 404
        assert "PASS_THROUGH=true" in answer.error


async def test_liveness_is_answered_as_ever(world: World) -> None:
    for target in ("/v1/liveness", "/v1/liveness?x=y"):
        answer = await ask(world.port, target, method="GET", token=None)
        assert (answer.status, answer.body) == (200, b"OK")
        assert answer["Content-Type"].startswith("text/plain")
    answer = await ask(world.port, "/v1/liveness", b"{}")
    assert (answer.status, answer["Allow"]) == (405, "GET, HEAD")
    assert answer.error


async def test_every_refusal_can_be_read_by_every_client(world: World) -> None:
    """JSON with an ``error``, a Content-Type, and a length: some clients crash without."""
    for answer in [
        await ask(world.port, "/v0/events", b"{}"),
        await ask(world.port, "/v0/events?name=hits", b"x"),
        await ask(world.port, "/v0/events?name=hits", b"x", headers={"Content-Encoding": "br"}),
        await ask(world.port, "/v0/events?name=hits", headers={"Content-Length": "999999999"}),
        await ask(world.port, "/v0/events?name=hits", method="GET"),
        await ask(world.port, "/elsewhere", method="GET"),
        await ask(world.port, "//x", method="GET"),
    ]:
        assert answer.error
        assert int(answer["Content-Length"]) == len(answer.body)
        assert answer["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("target", ["example.com:443", "127.0.0.1:80"])
async def test_no_tunnel_is_opened_where_requests_are_passed_through(target: str) -> None:
    async with running_world(TINYBIRD_TOKEN=None) as open_world:
        for sent in (target, "/v0/pipes", "/v0/events?name=x"):
            answer = await ask(open_world.port, sent, method="CONNECT")
            assert answer.status in (400, 405)
            assert answer.error
        assert [*open_world.tinybird.requests] == []
