"""``tinybird-proxy emulator``: says where it listens and what to try, then serves until a signal."""

import errno
import re
import secrets
import shlex
from pathlib import Path

import click

from tinybird_proxy.cli.main import CONFIGURATION_STATUS
from tinybird_proxy.emulator import Emulator, EmulatorSettings, StoreError, serve

URL_LABEL = "URL"
TOKEN_LABEL = "Token"  # noqa: S105 - a label of the banner
_LABEL_WIDTH = 12
_OPTION_OF = {
    "port": "--port",
    "wait_delay_s": "--wait-delay",
    "requests_per_s": "--rate-limit",
    "schema_file": "--schemas",
    "schemas": "--schemas",
    "a token must not be empty": "--token",
}


class CannotStart(click.ClickException):
    """The emulator cannot start as it was told to; the message says why and what to do."""

    exit_code = CONFIGURATION_STATUS


async def run_emulator(
    *,
    host: str,
    port: int,
    token: str | None,
    data: Path | None,
    schemas: Path | None,
    wait_delay_s: float,
    rate_limit: int,
) -> None:
    """Serve until SIGINT or SIGTERM. Raises `CannotStart`."""
    listening = False

    def announce(emulator: Emulator) -> None:
        nonlocal listening
        listening = True
        click.echo(banner(emulator))

    try:
        settings = EmulatorSettings(
            host=host,
            port=port,
            token=secrets.token_urlsafe(24) if token is None else token,
            data_dir=data,
            schema_file=schemas,
            wait_delay_s=wait_delay_s,
            requests_per_s=rate_limit,
        )
        await serve(settings, on_ready=announce)
    except (ValueError, StoreError, OSError) as error:
        if listening:
            raise
        raise CannotStart(_explained(error, host, port)) from error


def banner(emulator: Emulator) -> str:
    """What a person wants to know first; its commands work as they are printed."""
    settings = emulator.settings
    bearer = shlex.quote(f"Authorization: Bearer {settings.token}")
    limit = f"{settings.requests_per_s} requests a second for each data source, then 429"
    facts = {
        URL_LABEL: emulator.url,
        TOKEN_LABEL: settings.token,
        "wait=true": f"takes {settings.wait_delay_s:g} s here, Tinybird takes about 4 s",
        "Rate limit": limit if settings.requests_per_s else "none",
        "Data": f"kept in {settings.data_dir.absolute()}" if settings.data_dir else "deleted when the emulator ends",
    }
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        facts["Careful"] = "whoever reaches this address may set faults: the paths under /emulator need no token"
    lines = [
        "The emulator answers like Tinybird. Nothing leaves this machine.",
        "",
        *(f"  {label:{_LABEL_WIDTH}}{value}" for label, value in facts.items()),
        "",
        "Send a row, count the rows, and see 503 instead of an answer:",
        "",
        f"""  curl -H {bearer} -d '{{"path":"/"}}' '{emulator.url}/v0/events?name=hits'""",
        f"""  curl -H {bearer} -d 'SELECT count() AS hits FROM hits' {emulator.url}/v0/sql""",  # noqa: S608 - for a person
        f"""  curl -X PUT -d '{{"faults":[{{"status":503}}]}}' {emulator.url}/emulator/faults""",
        "",
        f"Without faults again: curl -X DELETE {emulator.url}/emulator/faults",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def announced(label: str, line: str) -> str | None:
    """What a line of the banner says after ``label``; None if it is another line."""
    found = re.fullmatch(rf"  {re.escape(label)} +(\S+)", line.rstrip("\n"))
    return found[1] if found else None


def _explained(error: Exception, host: str, port: int) -> str:
    """One sentence in the words of the command line."""
    if isinstance(error, OSError):
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            return f"{where} is already in use: choose another port with --port, or any free one with --port 0."
        return f"the emulator cannot listen on {where}: {error.strerror or error}."
    setting, _, rest = str(error).partition(":")
    option = _OPTION_OF.get(setting)
    return str(error) if option is None else f"{option}:{rest}" if rest else f"{option}: {error}"
