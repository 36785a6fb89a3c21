"""Build everything, in the order of acquisition; serve; stop in the reverse order, each step bounded."""

import asyncio
import gc
import itertools
import os
import random
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import process_time as process_cpu_s
from time import time as utc_seconds
from typing import cast
from urllib.request import getproxies, proxy_bypass

from aiohttp import web

from tinybird_proxy import __version__, codec
from tinybird_proxy.admin.app import SERVER_LOGGER, make_admin_app
from tinybird_proxy.admin.status import Reporter
from tinybird_proxy.admission import Capacity
from tinybird_proxy.app.background import background, check_ledger, watch_loop
from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.app.last_words import LastWords
from tinybird_proxy.app.open_files import allowed_connections
from tinybird_proxy.app.secrets import Secrets, load_secrets, watch_files
from tinybird_proxy.app.self_metrics import INTERVAL_S as SELF_METRICS_INTERVAL_S
from tinybird_proxy.app.self_metrics import SelfMetrics, read_snapshot
from tinybird_proxy.app.sockets import BACKLOG, listen_on_both
from tinybird_proxy.batch import BatchLimits, Payload
from tinybird_proxy.buffer import MemoryBuffer
from tinybird_proxy.config import Compression, Config
from tinybird_proxy.dead_letter import DeadLetters
from tinybird_proxy.destination import BatchCodec, Surroundings
from tinybird_proxy.pacing import PacingLimits
from tinybird_proxy.pipeline import Pipeline, PipelineLimits
from tinybird_proxy.server.availability import Availability
from tinybird_proxy.server.doorkeeper import Doorkeeper
from tinybird_proxy.server.events import EventsRoute
from tinybird_proxy.server.fast_lane import FastLane
from tinybird_proxy.server.handler import PublicHandler
from tinybird_proxy.server.http import ConnectionLimits, HttpServer
from tinybird_proxy.server.passthrough import PassThrough
from tinybird_proxy.server.receive import ReceiveLimits, Receiver
from tinybird_proxy.server.tls_door import TlsDoor
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.telemetry.otel_env import wants_tracing
from tinybird_proxy.telemetry.tracing import Tracer, no_tracer
from tinybird_proxy.upstream import Upstream, UpstreamSettings

TRACER_CLOSE_S = 3.0
# Both once SHUTDOWN_TIMEOUT is over, and the first one twice: less than the 5 s that most leave before SIGKILL.
HANDLERS_END_S = 1.0
ADMIN_HANDLERS_END_S = 0.5
# So long a row that came after SIGTERM may be missing in the termination message, if SIGKILL comes in DRAIN_DELAY; or
# so many times as long as it takes to count, which with a thousand destinations is some milliseconds.
COUNT_AT_RISK_S = 0.02
COUNT_AT_RISK_PAUSES = 10
# The admin port: for probes, a scraper and a person or two. An idle connection outlives the usual scrape interval.
ADMIN_KEEPALIVE_S = 75.0
ADMIN_MAX_CONNECTIONS = 64
_log = get_logger("app")


@dataclass(slots=True)
class Proxy:
    """A running proxy: where it listens, and what its parts are."""

    host: str
    port: int
    admin_host: str
    admin_port: int
    pipeline: Pipeline
    availability: Availability
    reporter: Reporter
    secrets: Secrets
    self_metrics: SelfMetrics | None


def make_instance(config: Config, *, host_name: str, chance: str) -> str:
    """The name of this process: the node's, and something that no restart repeats."""
    return f"{config.node_id or host_name}-{chance}"


@asynccontextmanager
async def running(
    config: Config,
    secrets: Secrets,
    *,
    instance: str,
    env: Mapping[str, str],
    self_metrics_interval_s: float = SELF_METRICS_INTERVAL_S,
) -> AsyncIterator[Proxy]:
    """Build and serve until the block ends. What is buffered then is dropped, counted and told: drain first."""
    loop = asyncio.get_running_loop()
    now = loop.time
    meters = Meters(now())
    availability = Availability(drain_delay_s=config.drain_delay_s, now=now)
    async with AsyncExitStack() as stack:
        # First of all: a port that is taken must stop the start before anything runs.
        admin_socket, public_socket = listen_on_both(config)
        stack.callback(admin_socket.close)
        stack.callback(public_socket.close)
        threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compress")
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        upstream = Upstream(make_upstream_settings(config, instance), tls=ssl.create_default_context(), now=now)
        stack.push_async_callback(upstream.close)
        tracer = _make_tracer(env, instance, upstream, secrets)
        stack.push_async_callback(_close_tracer, tracer)

        pipeline = _build_pipeline(
            config, secrets, upstream, tracer, meters, _codec_in(threads, config.compression), instance
        )
        availability.on_refusing(pipeline.flush_at_once)
        receiver = Receiver(
            ReceiveLimits(
                max_body_bytes=config.max_body_bytes,
                max_inflated_bytes=config.max_inflated_bytes,
                receive_bytes=config.receive_bytes,
                max_lines=config.buffer_size,
                body_timeout_s=config.body_timeout_s,
            )
        )
        route = EventsRoute(
            pipeline,
            secrets.gate,
            availability,
            honor_wait=config.client_wait == "honor",
            keep_traces=tracer.enabled,
        )
        passes = not config.own_token_mode or config.pass_through
        passthrough = PassThrough(upstream, secrets.gate, meters, enabled=passes, body_stall_s=config.body_timeout_s)
        server = HttpServer(
            PublicHandler(route, receiver, passthrough),
            lane=FastLane(route, small_max_bytes=receiver.small_max_bytes),
            limits=ConnectionLimits(
                max_header_bytes=config.max_header_bytes,
                header_timeout_s=config.header_timeout_s,
                send_timeout_s=config.body_timeout_s,
                keepalive_timeout_s=config.keepalive_timeout_s,
                max_age_s=config.keepalive_max_age_s,
            ),
            chance=random.random,
            draining=lambda: availability.draining,
        )
        stack.push_async_callback(_end_connections, server)
        # Ends before the server does, so that whoever still waits hears what became of the rows.
        await stack.enter_async_context(pipeline.running())
        self_metrics: SelfMetrics | None = None
        if config.tinybird_metrics_datasource is not None:
            node = config.node_id or socket.gethostname()
            self_metrics = SelfMetrics(
                config.tinybird_metrics_datasource,
                pipeline,
                lambda: read_snapshot(reporter.snapshot(), node=node, time_ms=int(utc_seconds() * 1000)),
            )
            await stack.enter_async_context(self_metrics.running())
        reporter = Reporter(
            pipeline=pipeline,
            availability=availability,
            receiver=receiver,
            gate=secrets.gate,
            files=secrets.files,
            now=now,
            started_at=now(),
            origin=config.tinybird_url,
            self_metrics=None if self_metrics is None else self_metrics.status,
        )
        runner = web.AppRunner(
            make_admin_app(reporter, availability, secrets.admin),
            access_log=None,
            logger=SERVER_LOGGER,
            keepalive_timeout=ADMIN_KEEPALIVE_S,
            shutdown_timeout=ADMIN_HANDLERS_END_S,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        at_admin_door = Doorkeeper(
            cast("web.Server", runner.server),
            max_connections=ADMIN_MAX_CONNECTIONS,
            option="of the admin port",
            now=now,
        )
        admin_listener = await loop.create_server(at_admin_door, sock=admin_socket)
        stack.callback(admin_listener.close)
        at_door = Doorkeeper(
            server, max_connections=allowed_connections(config.max_connections), option="MAX_CONNECTIONS", now=now
        )
        if (tls := secrets.server_tls) is not None:
            door = TlsDoor(at_door, tls, handshake_timeout_s=config.header_timeout_s, now=now)
            await stack.enter_async_context(door.open(public_socket))
        else:
            listener = await loop.create_server(at_door, sock=public_socket, backlog=BACKLOG)
            stack.callback(listener.close)
        await stack.enter_async_context(
            background(
                meters,
                lambda: watch_files(secrets.files),
                lambda: watch_loop(meters, now, process_cpu_s),
                lambda: check_ledger(pipeline),
                pipeline.supervisor.watch,
            )
        )
        if self_metrics is not None:
            await stack.enter_async_context(background(meters, lambda: self_metrics.run(self_metrics_interval_s)))
        availability.started = True
        host, port = public_socket.getsockname()[:2]
        admin_host, admin_port = admin_socket.getsockname()[:2]
        yield Proxy(host, port, admin_host, admin_port, pipeline, availability, reporter, secrets, self_metrics)


async def serve(config: Config, env: Mapping[str, str]) -> ExitStatus:
    """Run until SIGTERM or SIGINT, drain, and say how it went. A second signal stops now."""
    loop = asyncio.get_running_loop()
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal(name: str) -> None:
        if stop.is_set():
            _log.warning("a second signal: stopping now", extra=fields(signal=name))
            stop_now.set()
        stop.set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, on_signal, signal_number.name)
    instance = make_instance(config, host_name=socket.gethostname(), chance=os.urandom(4).hex())
    pipelines: list[Pipeline] = []

    def probe_all() -> None:
        for pipeline in pipelines:
            pipeline.probe_all()

    secrets = load_secrets(config, utc_now=utc_seconds, hash_key=os.urandom(32), on_new_token=probe_all)
    async with running(config, secrets, instance=instance, env=env) as proxy:
        pipelines.append(proxy.pipeline)
        _say_hello(config, proxy, instance)
        # Whatever lives now lives on: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await stop.wait()
        words = LastWords(
            proxy.pipeline, Path("/dev/termination-log"), deadline=loop.time() + config.shutdown_timeout_s
        )
        await drain(config, proxy, stop_now, words)
    return words.farewell()


async def drain(config: Config, proxy: Proxy, stop_now: asyncio.Event, words: LastWords) -> None:
    """Unready, the delay, refuse, send everything: all within SHUTDOWN_TIMEOUT from the signal.

    ``words`` hear the rows at risk from the first moment on; in the delay, when rows still come, with a pause.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.shutdown_timeout_s
    proxy.availability.stopping = True
    words.at_risk(proxy.pipeline.buffered_rows())
    proxy.availability.begin_drain()
    if config.drain_delay_s > 0:
        refuse_at = (proxy.availability.draining_since or loop.time()) + config.drain_delay_s
        pause_s = COUNT_AT_RISK_S
        while (left_s := refuse_at - loop.time()) > 0 and not stop_now.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop_now.wait(), min(left_s, pause_s))
            began_at = loop.time()
            words.at_risk(proxy.pipeline.buffered_rows())
            pause_s = max(COUNT_AT_RISK_S, COUNT_AT_RISK_PAUSES * (loop.time() - began_at))
    proxy.availability.refuse()
    async with nullcontext() if proxy.self_metrics is None else proxy.self_metrics.finishing(deadline, stop_now):
        await proxy.pipeline.drain(deadline, stop_now=stop_now, report=words.at_risk)


def _say_hello(config: Config, proxy: Proxy, instance: str) -> None:
    _log.info(
        "ready",
        extra=fields(
            # As bound: ``::`` comes to 0.0.0.0 where there is no IPv6.
            host=proxy.host,
            port=proxy.port,
            admin_host=proxy.admin_host,
            admin_port=proxy.admin_port,
            upstream=config.tinybird_url,
            version=__version__,
            instance=instance,
            tokens="ours" if config.own_token_mode else "each client's own",
        ),
    )
    if config.own_token_mode and not config.checks_clients and config.host not in ("127.0.0.1", "::1", "localhost"):
        _log.warning(
            "anybody who reaches the public port may write to Tinybird: AUTHORIZATION_TOKEN is not set",
            extra=fields(host=proxy.host, port=proxy.port),
        )


def _build_pipeline(
    config: Config,
    secrets: Secrets,
    upstream: Upstream,
    tracer: Tracer,
    meters: Meters,
    batch_codec: BatchCodec,
    instance: str,
) -> Pipeline:
    numbers = itertools.count(1)
    chance = random.Random()  # noqa: S311 - jitter, not a secret
    built: list[Pipeline] = []
    surroundings = Surroundings(
        limits=BatchLimits(
            max_rows=config.batch_size, max_bytes=config.batch_bytes, flush_interval_s=config.flush_interval_s
        ),
        pacing=PacingLimits(rate=config.upstream_rate, concurrency=config.upstream_concurrency),
        upstream_wait=config.upstream_wait,
        wait_timeout_s=config.wait_timeout_s,
        buffer=MemoryBuffer(),
        upstream=upstream,
        own_token=secrets.own_token,
        codec=batch_codec,
        letters=DeadLetters(config.dead_letter_bytes, now=asyncio.get_running_loop().time),
        max_age_s=config.max_age_s,
        tracer=tracer,
        meters=meters,
        now=asyncio.get_running_loop().time,
        utc_now=lambda: datetime.now(UTC),
        jitter=lambda limit: chance.uniform(0.0, limit),
        next_batch_id=lambda: f"{instance}-{next(numbers)}",
        after_settling=lambda: built[0].after_settling(),
    )
    limits = PipelineLimits(
        capacity=Capacity(
            max_rows=config.buffer_size, max_bytes=config.buffer_bytes, max_body_bytes=config.max_body_bytes
        ),
        max_destinations=config.max_destinations,
        max_waiters=config.max_waiters,
        wait_timeout_s=config.wait_timeout_s,
    )
    built.append(Pipeline(surroundings, limits))
    return built[0]


def _codec_in(threads: ThreadPoolExecutor, compression: Compression) -> BatchCodec:
    loop = asyncio.get_running_loop()

    async def compress(bodies: list[bytes]) -> Payload:
        return await loop.run_in_executor(threads, codec.compress, bodies, compression)

    async def rows_of(payload: Payload, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return await loop.run_in_executor(threads, codec.rows_of, payload, ranges)

    async def rows_in(payloads: Sequence[Payload]) -> list[bytes]:
        return await loop.run_in_executor(threads, codec.rows_in, payloads)

    async def halves(payload: Payload) -> tuple[bytes, bytes]:
        return await loop.run_in_executor(threads, codec.halves, payload)

    return BatchCodec(compress=compress, rows_of=rows_of, rows_in=rows_in, halves=halves)


def make_upstream_settings(config: Config, instance: str) -> UpstreamSettings:
    """How Tinybird is reached: URL, timeouts, and the proxies that the environment names."""
    return UpstreamSettings(
        origin=config.tinybird_url,
        timeout_s=config.upstream_timeout_s,
        instance=instance,
        user_agent=f"tinybird-proxy/{__version__}",
        proxies=getproxies(),
        bypasses_proxy=lambda host: bool(proxy_bypass(host)),
    )


def _make_tracer(env: Mapping[str, str], instance: str, upstream: Upstream, secrets: Secrets) -> Tracer:
    if not wants_tracing(env):
        return no_tracer()
    from tinybird_proxy.telemetry.otlp import make_tracer  # heavy: only when a collector is configured

    return make_tracer(
        instance=instance,
        version=__version__,
        server_address=upstream.host,
        server_port=upstream.port,
        headers=None if secrets.collector_headers is None else lambda: secrets.collector_headers or {},
    )


async def _close_tracer(tracer: Tracer) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(tracer.close), TRACER_CLOSE_S)


async def _end_connections(server: HttpServer) -> None:
    """Close those on which nothing happens, at once, and give the others some time to end."""
    server.pre_shutdown()
    await server.shutdown(HANDLERS_END_S)
