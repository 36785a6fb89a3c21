"""`tinybird-proxy` as a process: the version, `check`, and what it says of a bad configuration."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tinybird_proxy import __version__
from tinybird_proxy.config import OPTIONS
from tinybird_proxy.emulator import Emulator, EmulatorSettings, Fault, running_emulator

_COMMAND = (sys.executable, "-m", "tinybird_proxy")


def _run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing but ``env`` for its configuration."""
    return subprocess.run(
        [*_COMMAND, *arguments],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with running_emulator(EmulatorSettings(token="good", port=0)) as running:
        yield running


async def _check_upstream(url: str, **env: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(_run, "check", "--upstream", TINYBIRD_URL=url, **env)


def test_the_version_is_that_of_the_package() -> None:
    ended = _run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"tinybird-proxy {__version__}\n")


def test_the_help_names_every_command() -> None:
    ended = _run("--help")
    assert ended.returncode == 0
    for command in ("run", "check", "emulator", "demo"):
        assert f"\n  {command} " in ended.stdout


def test_check_shows_every_option_and_no_secret() -> None:
    ended = _run("check", TINYBIRD_TOKEN="s3cret", BATCH_SIZE="500", FLUSH_INTERVAL="250")
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines() if line[:1].isupper() and "_" in line)
    assert {option.variable for option in OPTIONS} - {"PORT", "HOST", "COMPRESSION"} <= set(shown)
    assert shown["BATCH_SIZE"] == "500"
    assert shown["FLUSH_INTERVAL"] == "250ms"
    assert shown["TINYBIRD_TOKEN"] == "(set, not shown)"
    assert "s3cret" not in ended.stdout
    assert ended.stdout.endswith("\nThe configuration is good.\n")


def test_check_tells_of_a_file_that_run_would_start_without(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("s3cret")
    ended = _run("check", OTEL_EXPORTER_OTLP_HEADERS_FILE=str(tmp_path / "headers"))
    assert ended.returncode == 0
    assert ended.stderr == (
        f"OTEL_EXPORTER_OTLP_HEADERS_FILE: {tmp_path / 'headers'}: header 1 is not key=value, as in"
        " OTEL_EXPORTER_OTLP_HEADERS; it is read again each second\n"
    )
    assert ended.stdout.endswith("\nThe configuration is good.\n")


@pytest.mark.parametrize("command", ["check", "run"])
def test_every_problem_of_a_configuration_is_listed_at_once(command: str) -> None:
    ended = _run(
        command, PORT="80a", BATCH_BYTES="many", LOG_LEVEL="loud", TINYBIRD_TOKEN="", OTEL_EXPORTER_OTLP_PROTOCOL="grpc"
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    first, *problems = ended.stderr.splitlines()
    assert first == f"The configuration has {len(problems)} problems:"
    named = {problem.split(":")[0].strip() for problem in problems}
    assert {"PORT", "BATCH_BYTES", "LOG_LEVEL", "TINYBIRD_TOKEN"} <= named


def test_run_names_the_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = _run("run", HOST="127.0.0.1", PORT=port, ADMIN_PORT="0", TINYBIRD_TOKEN="t")
    assert ended.returncode == 2
    assert f"PORT: 127.0.0.1:{port} is already in use" in ended.stderr


async def test_upstream_is_good_when_tinybird_accepts_the_token(emulator: Emulator) -> None:
    ended = await _check_upstream(emulator.url, TINYBIRD_TOKEN="good")
    assert ended.returncode == 0, ended.stderr
    assert f"{emulator.url} answers and accepts the token (202)." in ended.stdout
    assert ended.stdout.endswith("The configuration is good.\n")
    assert [(request.path, request.row_count) for request in emulator.requests] == [("/v0/events", 0)]


async def test_upstream_is_bad_when_tinybird_refuses_the_token(emulator: Emulator) -> None:
    ended = await _check_upstream(emulator.url, TINYBIRD_TOKEN="wrong")
    assert ended.returncode == 2
    assert f"{emulator.url} answers, but refuses the token of TINYBIRD_TOKEN (403: " in ended.stderr
    assert "The configuration is good." not in ended.stdout


async def test_upstream_is_good_without_a_token_of_ours_if_it_answers_like_tinybird(emulator: Emulator) -> None:
    ended = await _check_upstream(emulator.url)
    assert ended.returncode == 0, ended.stderr
    assert "clients bring their own tokens" in ended.stdout


async def test_upstream_is_bad_when_something_else_answers(emulator: Emulator) -> None:
    emulator.set_faults(Fault(status=301, body="moved", text=True))
    ended = await _check_upstream(emulator.url, TINYBIRD_TOKEN="good")
    assert ended.returncode == 2
    assert f"{emulator.url} does not answer like Tinybird (301" in ended.stderr


@pytest.mark.parametrize("status", [200, 401, 404])
async def test_any_web_servers_page_is_not_tinybird(emulator: Emulator, status: int) -> None:
    emulator.set_faults(Fault(status=status, body="<html>hello</html>", text=True))
    ended = await _check_upstream(emulator.url, TINYBIRD_TOKEN="good")
    assert ended.returncode == 2
    assert f"{emulator.url} does not answer like Tinybird ({status}" in ended.stderr


async def test_upstream_is_bad_when_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and connecting is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ended = await _check_upstream(url, TINYBIRD_TOKEN="good")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"\n{url}: ")
    assert "no connection to 127.0.0.1" in ended.stderr


_SLOW_IMPORT = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "tinybird_proxy.app":
            print("importing", flush=True)
            time.sleep(20)

sys.meta_path.insert(0, Slow())
"""


def test_a_signal_that_comes_while_it_starts_ends_it_with_status_0(tmp_path: Path) -> None:
    """As a container's first process it would not notice a signal without a handler, and be killed a minute later."""
    (tmp_path / "sitecustomize.py").write_text(_SLOW_IMPORT)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "TINYBIRD_TOKEN": "p.token"}
    process = subprocess.Popen([*_COMMAND, "run"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.terminate()
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (0, "")
