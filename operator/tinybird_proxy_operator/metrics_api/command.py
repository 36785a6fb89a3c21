"""``tinybird-proxy-operator metrics-api``: builds everything and runs, until SIGTERM."""

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
from tinybird_proxy_operator.metrics_api.authentication import Authenticator
from tinybird_proxy_operator.metrics_api.authorization import Authorizer
from tinybird_proxy_operator.metrics_api.inventory import Inventories
from tinybird_proxy_operator.metrics_api.scrape import PODS_AT_ONCE, Scraper
from tinybird_proxy_operator.metrics_api.server import Server, app_runner
from tinybird_proxy_operator.metrics_api.settings import MetricsApiSettings, from_env
from tinybird_proxy_operator.metrics_api.telemetry import Standing, Telemetry
from tinybird_proxy_operator.metrics_api.upkeep import Upkeep
from tinybird_proxy_operator.metrics_api.values import Values
from tinybird_proxy_operator.names import ADMIN_PORT
from tinybird_proxy_operator.serving import process
from tinybird_proxy_operator.serving.connections import Limits
from tinybird_proxy_operator.serving.listening import listen
from tinybird_proxy_operator.serving.self_check import self_check
from tinybird_proxy_operator.serving.tls import ServerTLS

_log = logging.getLogger(__name__)


@click.command("metrics-api")
def metrics_api() -> None:
    """Serve custom.metrics.k8s.io until SIGTERM; settings are environment variables, which the chart writes.

    Exit status 2: the settings are wrong.
    """
    process.run(from_env, partial(serve, unready_s=process.UNREADY_S))


async def serve(
    kube: Kube,
    settings: MetricsApiSettings,
    stop: asyncio.Event,
    *,
    unready_s: float,
    started: Callable[[int, int], None] = lambda port, metrics_port: None,
    host: str | None = None,
    admin_port: int = ADMIN_PORT,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> None:
    """Own every task until ``stop``, and then for ``unready_s`` more. ``started`` is told the ports that it listens on.

    ``host``: the address that it listens on, None: every one. ``admin_port``: the proxies'.
    """
    loop = asyncio.get_running_loop()

    def utc_now() -> datetime:
        return datetime.now(UTC)

    standing, tls = Standing(), ServerTLS()
    async with AsyncExitStack() as stack:
        # Proxies close what they hear nothing of; a connection is worth keeping from one scrape to the next.
        connector = aiohttp.TCPConnector(limit=PODS_AT_ONCE)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, trust_env=False))
        authenticator, authorizer = Authenticator(kube, now=loop.time), Authorizer(kube, now=loop.time)
        inventories = Inventories(kube, now=loop.time)

        def scraped(result: str) -> None:
            standing.scrapes[result] += 1

        def answered(code: int) -> None:
            standing.requests[code] += 1

        scraper = Scraper(session, port=admin_port, now=loop.time, utc_now=utc_now, count=scraped)
        for closing in (authenticator, authorizer, inventories, scraper):
            stack.push_async_callback(closing.close)
        server = Server(authenticator, authorizer, Values(inventories, scraper), count=answered)
        probes = web.AppRunner(Telemetry(standing, utc_now=utc_now).app(), access_log=None)
        metrics_port = await listen(stack, probes, host, settings.metrics_port)
        port = await listen(stack, app_runner(server, limits), host, settings.port, tls=tls)
        upkeep = Upkeep(
            kube,
            settings,
            tls=tls,
            authenticator=authenticator,
            standing=standing,
            now=loop.time,
            utc_now=utc_now,
            jitter=lambda limit: random.uniform(0.0, limit),  # noqa: S311 - no secret
            check_self=self_check(session, port=lambda: port, server_name=settings.server_names[0]),
        )
        _log.info("started: version %s, TLS port %d, metrics port %d", __version__, port, metrics_port)
        started(port, metrics_port)

        def stopping() -> None:
            standing.not_ready = "It stops."
            _log.info("stopping")

        await process.keep_until(stop, upkeep.run, stopping=stopping, unready_s=unready_s)
