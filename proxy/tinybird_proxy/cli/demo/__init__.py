"""``tinybird-proxy demo``: emulator, proxy and client as separate processes, a live view, and the proof at the end."""

import click

from tinybird_proxy.cli.main import CONFIGURATION_STATUS


async def run_demo(*, seconds: float | None, rate: int) -> int:
    """Run for ``seconds``, or until a signal; return the exit status: 0 if every accepted row arrived exactly once."""
    for option, value in (("--seconds", seconds), ("--rate", rate)):
        if value is not None and not value > 0:
            click.echo(f"{option}: {value}, must be more than 0", err=True)
            return CONFIGURATION_STATUS
    try:
        from tinybird_proxy.cli.demo.performance import perform
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        click.echo("The demo needs rich for its screen: pip install 'tinybird-proxy[demo]'", err=True)
        return CONFIGURATION_STATUS
    return await perform(seconds=seconds, rate=rate)
