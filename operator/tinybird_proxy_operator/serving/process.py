"""A process that the API server connects to, from its environment to SIGTERM."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Literal, Protocol, TypeVar

import click

from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.kube import Kube, kubernetes_connection
from tinybird_proxy_operator.logs import set_up_logging

CONFIGURATION_STATUS: Final = 2
# So long nothing comes to an end after SIGTERM, while the Service's endpoints and the nodes' rules forget the pod.
UNREADY_S: Final = 5.0


class Settings(Protocol):
    """What every process's settings have."""

    @property
    def log_level(self) -> str:
        """Of the process's own lines."""

    @property
    def log_format(self) -> Literal["auto", "json", "console"]:
        """Of all lines."""


_Settings = TypeVar("_Settings", bound=Settings)


def run(
    from_env: Callable[[Mapping[str, str]], _Settings],
    serve: Callable[[Kube, _Settings, asyncio.Event], Coroutine[Any, Any, None]],
) -> None:
    """Read the settings, connect, and serve until SIGTERM sets the event. Exits with 2 if the settings are wrong."""
    try:
        settings = from_env(os.environ)
    except SettingsError as error:
        click.echo("The settings have problems:\n" + "\n".join(f"  {each}" for each in error.problems), err=True)
        sys.exit(CONFIGURATION_STATUS)
    set_up_logging(settings.log_level, settings.log_format)

    async def connected() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with kubernetes_connection(os.environ.get("KUBECONFIG")) as kube:
            await serve(kube, settings, stop)

    asyncio.run(connected())


async def keep_until(
    stop: asyncio.Event,
    upkeep: Callable[[], Coroutine[Any, Any, None]],
    *,
    stopping: Callable[[], None],
    unready_s: float,
) -> None:
    """Own the upkeep until ``stop``, call ``stopping``, and go on answering for ``unready_s`` more."""
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(upkeep())
        await stop.wait()
        keeping.cancel()
    stopping()
    await asyncio.sleep(unready_s)
