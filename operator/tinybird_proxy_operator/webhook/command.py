"""``tinybird-proxy-operator webhook``: builds everything and runs, until SIGTERM."""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial

import aiohttp
import click
from aiohttp import web

from tinybird_proxy import __version__
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.serving import process
from tinybird_proxy_operator.serving.connections import Limits
from tinybird_proxy_operator.serving.listening import listen
from tinybird_proxy_operator.serving.self_check import self_check
from tinybird_proxy_operator.serving.tls import ServerTLS
from tinybird_proxy_operator.webhook.injector import Injector
from tinybird_proxy_operator.webhook.server import LIMITS, Server, app_runner
from tinybird_proxy_operator.webhook.settings import WebhookSettings, from_env
from tinybird_proxy_operator.webhook.telemetry import Standing, Telemetry
from tinybird_proxy_operator.webhook.upkeep import FileUpkeep, OwnUpkeep

_log = logging.getLogger(__name__)


@click.command("webhook")
def webhook() -> None:
    """Put sidecars into pods that ask, until SIGTERM; settings are environment variables, which the chart writes.

    Exit status 2: the settings are wrong.
    """
    process.run(from_env, partial(serve, unready_s=process.UNREADY_S))


async def serve(
    kube: Kube,
    settings: WebhookSettings,
    stop: asyncio.Event,
    *,
    unready_s: float,
    started: Callable[[int, int], None] = lambda port, metrics_port: None,
    host: str | None = None,
    limits: Limits = LIMITS,
) -> None:
    """Own every task until ``stop``, and then for ``unready_s`` more. ``started`` is told the ports that it listens on.

    ``host``: the address that it listens on, None: every one.
    """
    loop = asyncio.get_running_loop()

    def utc_now() -> datetime:
        return datetime.now(UTC)

    def jitter(limit: float) -> float:
        return random.uniform(0.0, limit)  # noqa: S311 - no secret

    standing, tls = Standing(), ServerTLS(asks_for_certificates=False)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        server = Server(Injector(kube), count=standing.count, now=loop.time)
        probes = web.AppRunner(Telemetry(standing, utc_now=utc_now).app(), access_log=None)
        metrics_port = await listen(stack, probes, host, settings.metrics_port)
        port = await listen(stack, app_runner(server, limits), host, settings.port, tls=tls)
        upkeep = (
            FileUpkeep(settings.certificates, tls=tls, standing=standing, jitter=jitter)
            if isinstance(settings.certificates, str)
            else OwnUpkeep(
                kube,
                settings,
                settings.certificates,
                tls=tls,
                standing=standing,
                now=loop.time,
                utc_now=utc_now,
                jitter=jitter,
                check_self=self_check(session, port=lambda: port, server_name=settings.server_names[0]),
            )
        )
        _log.info("started: version %s, TLS port %d, metrics port %d", __version__, port, metrics_port)
        started(port, metrics_port)

        def stopping() -> None:
            standing.not_ready = "It stops."
            _log.info("stopping")

        await process.keep_until(stop, upkeep.run, stopping=stopping, unready_s=unready_s)
