"""`tinybird-proxy emulator` as a process: its banner, and how it refuses to start."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tinybird_proxy.cli.emulator import announced

_COMMAND = (sys.executable, "-m", "tinybird_proxy", "emulator")
Start = Callable[..., tuple[subprocess.Popen[str], list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start emulators with more options; answers with the process and its whole banner."""
    with ExitStack() as stack:

        def start_one(*options: str) -> tuple[subprocess.Popen[str], list[str]]:
            process = stack.enter_context(
                subprocess.Popen([*_COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            banner: list[str] = []
            while not banner or banner[-1] != "Ctrl-C ends it.":
                line = process.stdout.readline()
                assert line, banner
                banner.append(line.rstrip("\n"))
            return process, banner

        yield start_one


def _refused(*options: str) -> str:
    """What an emulator says that does not start; it must be a sentence, with the status of a wrong configuration."""
    ended = subprocess.run([*_COMMAND, *options], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    return ended.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_of_the_banner_work_as_they_are_printed(start: Start) -> None:
    _, banner = start("--wait-delay", "0")
    commands = [line.strip() for line in banner if line.startswith("  curl")]
    commands.append(next(line for line in banner if line.startswith("Without faults")).partition(": ")[2])
    answers = [
        json.loads(subprocess.run(["sh", "-c", f"{command} -s"], capture_output=True, timeout=30, check=True).stdout)
        for command in [*commands, commands[0]]
    ]
    assert answers[0] == {"successful_rows": 1, "quarantined_rows": 0}
    assert answers[1]["data"] == [{"hits": 1}]
    assert answers[2] == {"faults": [{"status": 503, "applied": 0}]}
    assert answers[3] == {"faults": []}
    assert answers[4] == {"successful_rows": 1, "quarantined_rows": 0}


def test_a_token_with_quotes_and_spaces_is_quoted_for_the_shell(start: Start) -> None:
    _, banner = start("--token", "it's mine")
    assert any(line.startswith("""  curl -H 'Authorization: Bearer it'"'"'s mine' -d""") for line in banner)


def test_the_banner_says_what_differs_from_tinybird_and_where_rows_are(start: Start, tmp_path: Path) -> None:
    _, banner = start("--wait-delay", "0.5", "--rate-limit", "0", "--data", str(tmp_path))
    assert "  wait=true   takes 0.5 s here, Tinybird takes about 4 s" in banner
    assert "  Rate limit  none" in banner
    assert f"  Data        kept in {tmp_path}" in banner
    assert not any("Careful" in line for line in banner)


def test_whoever_listens_beyond_localhost_is_warned(start: Start) -> None:
    _, banner = start("--host", "0.0.0.0")  # noqa: S104 - the warning is about it
    assert any(line.startswith("  Careful") for line in banner)


def test_a_token_is_made_up_for_each_emulator(start: Start) -> None:
    tokens = {found for line in start()[1] + start()[1] if (found := announced("Token", line))}
    assert len(tokens) == 2
    assert all(re.fullmatch(r"[\w-]{32}", token) for token in tokens)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_status_0(start: Start, number: signal.Signals) -> None:
    process, _ = start()
    process.send_signal(number)
    assert process.wait(timeout=30) == 0


def test_a_port_that_is_taken_is_one_clear_sentence_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = _refused("--port", str(port))
    assert said == (
        f"Error: 127.0.0.1:{port} is already in use: choose another port with --port, or any free one with --port 0.\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--port", "99999"), "--port: 99999, must be from 0 to 65535"),
        (("--rate-limit", "-1"), "--rate-limit: -1, must be 0 or more"),
        (("--wait-delay", "-1"), "--wait-delay: -1.0, must be 0 or more"),
        (("--token", ""), "--token: a token must not be empty"),
    ],
)
def test_bad_settings_are_named_as_the_options_that_they_came_from(options: tuple[str, ...], says: str) -> None:
    assert _refused(*options) == f"Error: {says}\n"


def test_a_bad_schema_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "schemas.json"
    path.write_text('{"hits": {"path": "Text"}}')
    assert _refused("--port", "0", "--schemas", str(path)).startswith(f"Error: --schemas: {path}: schemas: hits:")


def test_a_data_directory_that_holds_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "emulator.db").write_bytes(b"something else" * 100)
    assert str(tmp_path) in _refused("--port", "0", "--data", str(tmp_path))
