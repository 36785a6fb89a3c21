"""Build everything and run: kopf watches, the queue's workers reconcile, a small server shows how it goes."""

import asyncio
import logging
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import aiohttp
import click
import kopf
from aiohttp import web

from tinybird_proxy import __version__
from tinybird_proxy_operator import handlers
from tinybird_proxy_operator.doctor_command import doctor
from tinybird_proxy_operator.election import Election
from tinybird_proxy_operator.errors import KubeError, SettingsError
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, kubernetes_connection
from tinybird_proxy_operator.logs import set_up_logging
from tinybird_proxy_operator.metrics import Meters, Telemetry
from tinybird_proxy_operator.metrics_api.command import metrics_api
from tinybird_proxy_operator.names import ADMIN_PORT, GROUP
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key, WorkQueue
from tinybird_proxy_operator.reconcile import Reconciler
from tinybird_proxy_operator.release_command import release
from tinybird_proxy_operator.settings import OperatorSettings, from_env
from tinybird_proxy_operator.webhook.command import webhook

WORKERS = 4
# Its calls have time limits of their own; this one keeps a key from holding a worker for ever.
RECONCILE_TIMEOUT_S = 240.0
# So long the watches may take to end.
WATCHES_STOP_S = 8.0
# Exit statuses: the watches ended by themselves, the settings are wrong, and somebody else may lead.
WATCHES_ENDED_STATUS = 1
CONFIGURATION_STATUS = 2
LEASE_LOST_STATUS = 4
_log = logging.getLogger("tinybird_proxy_operator")


@click.group(invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Look after TinybirdProxies until SIGTERM; settings are environment variables, which the chart writes.

    Exit status 1: it ended by itself, and should be started again; 2: the settings are wrong; 4: another leads now.
    """
    if context.invoked_subcommand is None:
        run_operator()


main.add_command(doctor)
main.add_command(metrics_api)
main.add_command(release)
main.add_command(webhook)


def run_operator() -> None:
    """Run, and exit."""
    try:
        settings = from_env(os.environ)
    except SettingsError as error:
        sys.stderr.write("The settings have problems:\n" + "".join(f"  {problem}\n" for problem in error.problems))
        sys.exit(CONFIGURATION_STATUS)
    set_up_logging(settings.log_level, settings.log_format)
    # kopf's own debug log shows whole objects, Secrets among them: it never goes below INFO.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    sys.exit(asyncio.run(_run_and_leave(settings)))


async def _run_and_leave(settings: OperatorSettings) -> int:
    status = await run(settings)
    if status == WATCHES_ENDED_STATUS:
        os._exit(status)  # what is left of the watches might keep the loop from ending
    return status


async def run(settings: OperatorSettings) -> int:
    """Own every task until a signal comes or the watches end. Returns the exit status."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    stop_on_signals(stop)
    meters = Meters()
    queue = WorkQueue(now=loop.time, jitter=lambda limit: random.uniform(0.0, limit))  # noqa: S311 - no secret

    def heard() -> None:
        meters.heard_at = loop.time()

    timing = settings.lease_timing
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(
            kubernetes_connection(
                os.environ.get("KUBECONFIG"),
                fence=lambda: election.fence(),
                write_timeout_s=timing.lease_duration_s - timing.renew_deadline_s,
            )
        )
        election = make_election(kube, settings)
        # Without a limit of its own: whoever asks has one, and pods that are silent must not take others' turn.
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False, connector=connector))
        reconciler = make_reconciler(kube, session, settings, loop.time)
        stack.push_async_callback(reconciler.close)
        changed = noticing(reconciler, queue)
        watches = handlers.Watches(changed=changed, alive=heard, saw_pod=reconciler.lost.saw)
        telemetry = Telemetry(
            meters,
            queue_depth=lambda: len(queue),
            queue_age_s=queue.oldest_age_s,
            resources=lambda: len(watches.known()),
            is_leader=lambda: election.is_leader,
            now=loop.time,
            may_lead=lambda: election.answered,
            rows_lost=lambda: reconciler.lost.rows_told,
        )
        runner = web.AppRunner(telemetry.app(), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, port=settings.metrics_port).start()
        _log.info("started: version %s, proxy image %s", __version__, settings.proxy_image)

        async def lead() -> None:
            # What writes ends inside of the block: the Lease is released after it.
            async with election.leading(), asyncio.TaskGroup() as work:
                tasks = [
                    work.create_task(queue.run(measured(reconciler, meters, loop.time), workers=WORKERS)),
                    work.create_task(resync(changed, watches, settings.resync_seconds)),
                ]
                await watch(watches, meters, settings, stop)
                for task in tasks:
                    task.cancel()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stop.wait()), group.create_task(lead())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    if stop.is_set():
        return 0
    _log.error("the watches ended by themselves: the operator would notice nothing more, and exits to be started again")
    return WATCHES_ENDED_STATUS


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set ``stop``, and do nothing else."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def make_election(kube: Kube, settings: OperatorSettings) -> Election:
    """The election with real time, chance and exit."""

    def now() -> float:
        # It goes on while the process is frozen and while the machine sleeps. macOS has no such clock.
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    return Election(
        kube,
        namespace=settings.operator_namespace,
        lease_name=settings.lease_name,
        identity=f"{settings.operator_pod_name}_{secrets.token_hex(4)}",  # a restarted container is another holder
        timing=settings.lease_timing,
        now=now,
        utc_now=lambda: datetime.now(UTC),
        jitter=lambda limit: random.uniform(0.0, limit),  # noqa: S311 - no secret
        exit_process=lambda: os._exit(LEASE_LOST_STATUS),
    )


def make_reconciler(
    kube: Kube, session: aiohttp.ClientSession, settings: OperatorSettings, now: Callable[[], float]
) -> Reconciler:
    """The reconciler with real time and chance."""

    def utc_now() -> datetime:
        return datetime.now(UTC)

    events = Events(kube, settings.operator_pod_name, now=now, utc_now=utc_now, chance=lambda: secrets.token_hex(8))
    return Reconciler(
        kube,
        Pods(session, port=ADMIN_PORT),
        events,
        settings,
        make_token=lambda: secrets.token_urlsafe(32),
        utc_now=utc_now,
        now=now,
    )


def noticing(reconciler: Reconciler, queue: WorkQueue) -> Callable[..., None]:
    """What is called with a resource about which there is news, and with how many seconds that may wait."""

    def changed(key: Key, after_s: float = 0.0) -> None:
        reconciler.changed(key)
        queue.add(key, after_s)

    return changed


def measured(
    reconciler: Reconciler, meters: Meters, now: Callable[[], float]
) -> Callable[[Key], Awaitable[float | None]]:
    """``reconcile``, counted and with its errors told."""

    async def work(key: Key) -> float | None:
        began_at = now()
        try:
            async with asyncio.timeout(RECONCILE_TIMEOUT_S):
                again_s = await reconciler.reconcile(key)
        except (KubeError, TimeoutError) as error:
            meters.reconciles["error"] += 1
            _log.warning("%s could not be reconciled and is tried again: %s", key, str(error) or type(error).__name__)
            raise
        except Exception:
            meters.reconciles["error"] += 1
            _log.exception("%s could not be reconciled, by a fault of the operator's, and is tried again", key)
            raise
        finally:
            meters.reconciled_at = now()
            meters.reconcile_seconds += now() - began_at
        meters.reconciles["ok"] += 1
        return again_s

    return work


async def resync(changed: Callable[[Key, float], None], watches: handlers.Watches, interval_s: float) -> None:
    """Look at everything now and then, whatever the watches say; spread, so that it is no wave.

    ``changed`` is called with a resource and in how many seconds it is to be looked at.
    """
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.9, 1.1))  # noqa: S311 - no secret
        for key in watches.known():
            changed(key, random.uniform(0.0, interval_s / 10))  # noqa: S311 - no secret


async def watch(watches: handlers.Watches, meters: Meters, settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Let kopf watch until ``stop``. It ends by itself only when something is beyond repair."""
    registry = kopf.OperatorRegistry()
    handlers.register(registry, watches)
    ready = asyncio.Event()
    options = kopf.OperatorSettings()
    options.posting.enabled = False
    options.peering.standalone = True
    options.networking.request_timeout = 20
    options.networking.enforce_retry_after = True
    options.networking.error_backoffs = (1, 2, 3, 5, 8, 13, 20, 30)
    options.watching.server_timeout = 300
    options.queueing.worker_limit = 50
    options.scanning.disabled = True  # it would watch CRDs and namespaces, which the role has no right to
    options.persistence.finalizer = f"{GROUP}/kopf"
    options.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    options.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)

    async def note_sync() -> None:
        await ready.wait()
        meters.synced = True

    noting = asyncio.create_task(note_sync())
    try:
        before = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=options,
            # kopf would look for the user's name, and the image's user has none.
            identity=settings.operator_pod_name,  # type: ignore[arg-type]
            standalone=True,
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
            stop_flag=stop,
            ready_flag=ready,
        )
        stop_on_signals(stop)  # kopf has just taken them for itself, and would not say that it ended with one
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("the watches failed", exc_info=error)
        # kopf cancels the others and waits for all, which some watches that broke never let it see the end of.
        ending = asyncio.ensure_future(kopf.run_tasks(tasks, ignored=before))
        await asyncio.wait({ending}, timeout=WATCHES_STOP_S)
        if ending.done() and not ending.cancelled():
            ending.exception()  # it has been told
    except Exception:  # noqa: BLE001 - whatever it is, the caller sees that they ended
        _log.exception("the watches failed")
    finally:
        noting.cancel()


if __name__ == "__main__":
    main()
