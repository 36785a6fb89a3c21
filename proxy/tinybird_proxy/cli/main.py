"""Commands and their exit statuses. Each imports what it needs when it runs: ``run`` loads nothing for show."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from tinybird_proxy import __version__
from tinybird_proxy.config import Config, describe, from_env, suspicious_variables
from tinybird_proxy.errors import ConfigError, Problem

CONFIGURATION_STATUS = 2
# Commands that stand in modules of their own, loaded when they are asked for.
_ELSEWHERE = {
    "dead-letters": ("tinybird_proxy.cli.dead_letters", "dead_letters"),
    "probe": ("tinybird_proxy.cli.dead_letters", "probe"),
}
_T = TypeVar("_T")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, name = _ELSEWHERE[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="tinybird-proxy", message="%(prog)s %(version)s")
def main() -> None:
    """A batching proxy for Tinybird's Events API. Options are environment variables: see `check`."""


@main.command()
def run() -> None:
    """Serve until SIGTERM, then deliver what is left. Exit status: 0 nothing lost, 1 rows lost, 2 configuration."""
    # First of all: as a container's first process it would not even notice a signal that nobody handles.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # nothing was taken yet; ``serve`` drains from then on
    from tinybird_proxy.app import serve

    config = _config_or_exit()
    _configure_logs(config)
    _warn_of_typos()
    try:
        status = _run_loop(serve(config, os.environ))
    except ConfigError as error:
        _exit_with(error.problems)
    sys.exit(status)


@main.command()
@click.option("--upstream", is_flag=True, help="Also ask Tinybird, with an empty body, whether URL and token are good.")
def check(upstream: bool) -> None:
    """Check the configuration and show it; nothing is started and no row is sent."""
    from tinybird_proxy.app.secrets import load_secrets

    config = _config_or_exit()
    try:
        secrets = load_secrets(config, utc_now=lambda: 0.0, hash_key=b"check", on_new_token=lambda: None)
    except ConfigError as error:
        _exit_with(error.problems)
    for variable, value in describe(config):
        click.echo(f"{variable:26} {value}")
    _warn_of_typos()
    for file in secrets.files:
        if file.problem is not None:  # of one that `run` starts without
            click.echo(f"{file.variable}: {file.path}: {file.problem}; it is read again each second", err=True)
    if upstream:
        from tinybird_proxy.app.ask import ask_upstream

        good, sentence = _run_loop(ask_upstream(config, secrets.own_token))
        click.echo(f"\n{sentence}", err=not good)
        if not good:
            sys.exit(CONFIGURATION_STATUS)
    click.echo("\nThe configuration is good.")


@main.command()
@click.option("--markdown", is_flag=True, help="As the README shows them.")
def options(markdown: bool) -> None:
    """List every option, its default and what it means."""
    from tinybird_proxy.cli.options import as_markdown, as_text

    click.echo(as_markdown() if markdown else as_text())


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=7181, show_default=True, help="0: any free one.")
@click.option("--token", default=None, help="The admin token; without it one is made up and printed.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), default=None, help="Where rows survive.")
@click.option(
    "--schemas",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="JSON: {data source: {column: type}}.",
)
@click.option("--wait-delay", default=1.0, show_default=True, help="Seconds that wait=true takes, as with Tinybird.")
@click.option(
    "--rate-limit", default=100, show_default=True, help="Requests a second for each data source; 0: no limit."
)
def emulator(
    host: str, port: int, token: str | None, data: Path | None, schemas: Path | None, wait_delay: float, rate_limit: int
) -> None:
    """A Tinybird look-alike on this machine, to develop against."""
    from tinybird_proxy.cli.emulator import run_emulator

    _run_loop(
        run_emulator(
            host=host,
            port=port,
            token=token,
            data=data,
            schemas=schemas,
            wait_delay_s=wait_delay,
            rate_limit=rate_limit,
        )
    )


@main.command()
@click.option("--seconds", envvar="DEMO_SECONDS", type=float, default=None, help="Stop by itself after so long.")
@click.option("--rate", default=500, show_default=True, help="Events a second.")
def demo(seconds: float | None, rate: int) -> None:
    """Emulator, proxy and a client on this machine, and a live view of what happens."""
    from tinybird_proxy.cli.demo import run_demo

    sys.exit(_run_loop(run_demo(seconds=seconds, rate=rate)))


def _run_loop(job: Coroutine[Any, Any, _T]) -> _T:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(job)


def _config_or_exit() -> Config:
    from tinybird_proxy.telemetry.otel_env import problems as otel_problems

    found: list[Problem] = list(otel_problems(os.environ))
    try:
        config = from_env(os.environ)
    except ConfigError as error:
        _exit_with([*error.problems, *found])
    if found:
        _exit_with(found)
    return config


def _exit_with(problems: "list[Problem] | tuple[Problem, ...]") -> Any:
    noun = "problem" if len(problems) == 1 else "problems"
    click.echo(f"The configuration has {len(problems)} {noun}:", err=True)
    for problem in problems:
        click.echo(f"  {problem}", err=True)
    for typo in suspicious_variables(os.environ):
        click.echo(f"  {typo} (a warning)", err=True)
    sys.exit(CONFIGURATION_STATUS)


def _configure_logs(config: Config) -> None:
    import socket

    from tinybird_proxy.telemetry import logs

    logs.configure(config.log_level, config.log_format, node=config.node_id or socket.gethostname(), stream=sys.stderr)


def _warn_of_typos() -> None:
    from tinybird_proxy.telemetry.logs import get_logger

    for problem in suspicious_variables(os.environ):
        get_logger("config").warning(str(problem))
