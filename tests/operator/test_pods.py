"""Asking a proxy on its admin port, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.operator.clusters import IPS, Proxies, report, running_proxies
from tests.proxy.running import needs_ipv6, running_world

from tinybird_proxy_operator import pods as pods_module
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.proxy_answers import DrainState


@pytest.fixture
async def proxies() -> AsyncIterator[Proxies]:
    async with running_proxies() as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def test_a_proxy_is_asked_at_its_own_address(proxies: Proxies, session: aiohttp.ClientSession) -> None:
    proxies.says = {IPS[0]: report(rows=1), IPS[1]: report(rows=2)}
    pods = Pods(session, port=proxies.port)
    answers = [await pods.report(ip) for ip in IPS[:2]]
    assert [answer and answer.rows for answer in answers] == [1, 2]
    assert proxies.asked == [*IPS[:2]]


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=503, text="{}"),
        web.Response(text="no JSON"),
        web.Response(text=""),
        web.json_response([]),
        web.json_response({"buffer": 1}),
        web.json_response({**report(), "tokens": "many"}),
        web.json_response(report(utilisation="very")),
        web.json_response(report(destinations=["clicks"])),
        web.HTTPFound("/elsewhere"),
    ],
)
async def test_what_is_no_proxys_answer_is_no_report(
    proxies: Proxies, session: aiohttp.ClientSession, answer: Any
) -> None:
    proxies.says = {IPS[0]: answer}
    assert await Pods(session, port=proxies.port).report(IPS[0]) is None


async def test_an_answer_without_end_is_not_read_to_its_end(
    proxies: Proxies, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods_module, "ANSWER_MAX_BYTES", 10)
    assert await Pods(session, port=proxies.port).report(IPS[0]) is None


async def test_an_answer_is_read_when_it_is_its_turn(
    proxies: Proxies, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods_module, "ANSWER_TIMEOUT_S", 0.2)
    pods, reading = Pods(session, port=proxies.port), asyncio.Semaphore(0)
    assert await pods.report(IPS[0], reading=reading) is None
    reading.release()
    assert await pods.report(IPS[0], reading=reading) is not None
    assert await pods.report(IPS[0], reading=reading) is not None


async def test_a_pod_that_does_not_listen_has_no_report(proxies: Proxies, session: aiohttp.ClientSession) -> None:
    assert await Pods(session, port=proxies.port).report("127.0.0.99") is None
    assert await Pods(session, port=proxies.port).report("::1") is None


@pytest.mark.parametrize("ip", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_a_real_proxys_answer_is_understood(session: aiohttp.ClientSession, ip: str) -> None:
    async with running_world(ADMIN_HOST="::") as world:
        assert world.proxy.admin_port is not None
        answer = await Pods(session, port=world.proxy.admin_port).report(ip)
        status = world.status()
    assert answer is not None
    assert (answer.rows, answer.stuck, answer.token_denied) == (0, [], False)
    assert answer.token_hash == status["tokens"]["tinybird"]["hash"]


async def test_a_real_proxy_drains_and_serves_again_for_its_admin_token(session: aiohttp.ClientSession) -> None:
    async with running_world(None, ADMIN_TOKEN="of-the-admin") as world:
        assert world.proxy.admin_port is not None
        pods = Pods(session, port=world.proxy.admin_port)
        assert await pods.begin_drain("127.0.0.1", "wrong") is None
        said = await pods.begin_drain("127.0.0.1", "of-the-admin")
        answer = await pods.report("127.0.0.1")
        assert said == DrainState(draining=True, refusing=True, rows_left=0)
        assert answer is not None
        assert (answer.draining, answer.refusing) == (True, True)
        assert not await pods.cancel_drain("127.0.0.1", "wrong")
        assert await pods.cancel_drain("127.0.0.1", "of-the-admin")
        world.proxy.availability.begin_drain()
        world.proxy.availability.stopping = True
        assert not await pods.cancel_drain("127.0.0.1", "of-the-admin")


async def test_a_pod_that_does_not_listen_is_told_nothing(proxies: Proxies, session: aiohttp.ClientSession) -> None:
    pods = Pods(session, port=proxies.port)
    assert await pods.begin_drain("127.0.0.99", "token") is None
    assert not await pods.cancel_drain("127.0.0.99", "token")
