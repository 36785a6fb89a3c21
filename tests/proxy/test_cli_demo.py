"""`tinybird-proxy demo` as a process: what its final table says must be true, and it leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_COMMAND = (sys.executable, "-m", "tinybird_proxy", "demo")


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    """A demo without an end, not on a terminal."""
    with subprocess.Popen(
        [*_COMMAND, "--rate", "200"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)  # rather than a kill, after which nobody would end its children
            process.communicate(timeout=60)


def _table(text: str) -> dict[str, str]:
    """The final table: each count by who counted and what."""
    found, who = {}, ""
    for line in text.splitlines():
        if cells := re.fullmatch(r"[│|]\s*(\S*)\s*[│|]\s*(.+?)\s*[│|]\s*(.+?)\s*[│|]", line):
            who = cells[1] or who
            found[f"{who}: {cells[2]}"] = cells[3]
    return found


def _assert_everything_arrived(text: str) -> None:
    table = _table(text)
    accepted = table["client: answered with 2xx: accepted"]
    assert int(accepted.replace(",", "")) > 0
    for count in (
        "client: rows posted, one in each request",
        "proxy: accepted",
        "proxy: delivered",
        "emulator: rows in the data source",
        "emulator: distinct ids",
    ):
        assert table[count] == accepted, count
    assert table["client: refused or not answered"] == "0"
    assert table["proxy: lost"] == "0"
    assert f"Every one of the {accepted} accepted rows arrived exactly once" in text


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_short_demo_delivers_every_row_through_an_outage_and_says_so() -> None:
    hostile = {**os.environ, "TINYBIRD_TOKEN": "", "BATCH_SIZE": "none", "HTTP_PROXY": "http://127.0.0.1:1"}
    ended = subprocess.run(
        [*_COMMAND, "--seconds", "4", "--rate", "200"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=hostile,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "The emulator answers wait=true after 1 s" in ended.stdout
    assert "The emulator now answers 503" in ended.stdout
    assert "\x1b" not in ended.stdout
    _assert_everything_arrived(ended.stdout)
    requests = int(_table(ended.stdout)["emulator: requests received"])
    assert 2 <= requests <= 20


def test_ctrl_c_stops_it_in_order_and_ends_its_children(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    shown = [demo.stdout.readline(), demo.stdout.readline()]
    children = _children_of(demo.pid)
    assert len(children) == 2
    demo.send_signal(signal.SIGINT)
    shown.append(demo.communicate(timeout=60)[0])
    assert demo.returncode == 0, shown
    _assert_everything_arrived("".join(shown))
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_a_proxy_that_dies_is_told_and_fails_the_demo(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    demo.stdout.readline()
    demo.stdout.readline()
    emulator, proxy = _children_of(demo.pid)
    os.kill(proxy, signal.SIGKILL)
    shown = demo.communicate(timeout=60)[0]
    assert demo.returncode == 1
    assert "The proxy has ended, although nobody told it to." in shown
    assert "did NOT arrive" in shown
    assert not Path(f"/proc/{emulator}").exists()


def test_without_rich_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['rich'] = None; from tinybird_proxy.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, "demo"], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "The demo needs rich for its screen: pip install 'tinybird-proxy[demo]'\n"


@pytest.mark.parametrize(("option", "value"), [("--seconds", "0"), ("--seconds", "nan"), ("--rate", "-5")])
def test_a_demo_of_no_length_or_rate_is_refused(option: str, value: str) -> None:
    ended = subprocess.run([*_COMMAND, option, value], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{option}: ")
