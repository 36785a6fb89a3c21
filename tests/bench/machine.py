"""Processes on this machine and what they cost: started here, measured through /proc, ended by their own handle."""

import http.client
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOOLS = ROOT / ".cache" / "bench"
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 20.0
# A proxy may use its whole SHUTDOWN_TIMEOUT of 25 s.
STOP_TIMEOUT_S = 40.0
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Below the ports that the kernel gives to outgoing connections: a connection to a port of that range with nobody
# behind it can connect to itself.
_PORTS = range(20000, 32000)
_T = TypeVar("_T")


class BenchFailed(Exception):
    """A measurement could not be made; the message says why."""


def build() -> None:
    """Compile the tools in Go. Needs no network."""
    if shutil.which("go") is None:
        raise BenchFailed("go was not found: the load generator, the sink and the yardstick are written in Go")
    TOOLS.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    subprocess.run(["go", "build", "-o", f"{TOOLS}/", "./..."], cwd=HERE, env=env, check=True)


def describe() -> str:
    """The machine, in a line: figures mean nothing without it."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.+)", cpuinfo)
    return (
        f"{os.cpu_count()} CPUs ({model[1] if model else platform.machine()}), Linux {platform.release()},"
        f" Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f} at the start"
    )


def tinybird_proxy() -> str:
    """The command under test: that of the environment, else that of the checkout."""
    found = shutil.which("tinybird-proxy") or shutil.which(str(ROOT / ".venv" / "bin" / "tinybird-proxy"))
    if found is None:
        raise BenchFailed("tinybird-proxy was not found: run it through `make bench`, or activate the environment")
    return found


def proxy_environment(*, port: int, admin_port: int, upstream: str) -> dict[str, str]:
    """Our proxy with its defaults, on loopback."""
    return {
        "HOST": LOOPBACK,
        "PORT": str(port),
        "ADMIN_PORT": str(admin_port),
        "TINYBIRD_URL": upstream,
        "TINYBIRD_TOKEN": "t",
        "AUTHORIZATION_TOKEN": "secret",
        "LOG_FORMAT": "json",
    }


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on just now."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise BenchFailed("no port is free")


class Server:
    """A running process that listens. Made by `running`."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self.log = log
        self._process = process

    def check(self) -> None:
        """Raise `BenchFailed` if it has ended."""
        if self._process.poll() is not None:
            raise BenchFailed(f"{self.name} ended with status {self._process.returncode}; see {self.log}")

    def stop(self) -> int:
        """SIGTERM, and its exit status; SIGKILL if it takes too long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode

    def cpu_s(self) -> float:
        """Seconds of CPU, user and system, of the process and its children."""
        ticks = 0
        for pid in self._tree():
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if fields else 0
        return ticks / _CLOCK_TICKS_PER_S

    def peak_rss_mb(self) -> float:
        """The most memory it ever had resident, children included, in MB."""
        return self._status_mb("VmHWM")

    def rss_mb(self) -> float:
        """The memory that it has resident now, children included, in MB."""
        return self._status_mb("VmRSS")

    def _status_mb(self, field: str) -> float:
        found = (re.search(rf"{field}:\s+(\d+) kB", _read(f"/proc/{pid}/status")) for pid in self._tree())
        return sum(int(match[1]) * 1024 / 1e6 for match in found if match)

    def _tree(self) -> list[int]:
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                todo += map(int, _read(str(children)).split())
        return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # it has just ended


@contextmanager
def running(name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run ``command`` until the block ends; what it writes goes to a log beside the tools."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    log = TOOLS / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    server = Server(name, process, log)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def listening_server(
    name: str, command: Sequence[str], port: int, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The same, ready to be connected to."""
    with running(name, command, env) as server:
        until(lambda: _listens(port) or None, START_TIMEOUT_S, f"{name} to listen on {port}", server)
        yield server


@contextmanager
def running_sink(port: int, delay: str) -> Iterator[Server]:
    """The counting upstream."""
    command = [str(TOOLS / "sink"), "-listen", f"{LOOPBACK}:{port}", "-delay", delay]
    with listening_server("sink", command, port) as sink:
        yield sink


def sink_stats(port: int) -> dict[str, Any]:
    """What the sink has counted so far."""
    return get_json(port, "/stats")


def get_json(port: int, path: str) -> dict[str, Any]:
    """The JSON object that a server on loopback answers with. Raises OSError or `BenchFailed`."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise BenchFailed(f"GET {path} on port {port}: {answer.status}")
    found: dict[str, Any] = json.loads(body)
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def until(look: Callable[[], _T | None], timeout_s: float, what: str, *servers: Server, every_s: float = 0.02) -> _T:
    """The first thing that ``look`` sees. Raises `BenchFailed` in time, or when one of ``servers`` has ended."""
    deadline = time.monotonic() + timeout_s
    while (seen := look()) is None:
        for server in servers:
            server.check()
        if time.monotonic() > deadline:
            raise BenchFailed(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(every_s)
    return seen


def run_load(port: int, *, rate: float, rows: int, connections: int, slice_s: float) -> dict[str, Any]:
    """Our open loop; answers with its report."""
    command = [str(TOOLS / "load"), "-rate", str(rate), "-rows", str(rows), "-connections", str(connections)]
    url = f"http://{LOOPBACK}:{port}/v0/events?name=key_verifications"
    ended = subprocess.run(
        [*command, "-slice", f"{slice_s}s", url],
        stdout=subprocess.PIPE,
        check=True,
        # Twice as long as it should take: a proxy that cannot keep up is a finding, one that hangs is not waited for.
        timeout=2 * rows / rate + 120,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def end_well(main: Callable[[], int]) -> None:
    """Run a tool's ``main``; what cannot be measured is said in a sentence."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = main()
    except (BenchFailed, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
