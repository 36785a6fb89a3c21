"""What the operator's benchmark measures with: edits, watches, and the leader's process."""

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from tests.e2e.bench_operator_figures import Usage
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE, CommandFailed, Namespace, until

_METRICS_PORT: Final = 8080
_REQUEST_TIMEOUT_S: Final = 60
_LEADER_TIMEOUT_S: Final = 60
_SYSTEM: Final = Namespace(OPERATOR_NAMESPACE)


class BenchFailed(Exception):
    """Something could not be measured; the message says what."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``at``: the clock's seconds at which it was whole."""

    at: float
    body: Mapping[str, Any]


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_REQUEST_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Api:
    """Through `kubectl proxy`: a process for each edit would take longer than the edit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> Answer:
        """A merge patch, if it is a PATCH. Raises ``BenchFailed`` for every answer that is not 2xx."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        answer = self._ask(method, path, json.dumps(body), {"Content-Type": kind})
        at = time.monotonic()
        return Answer(at, json.loads(answer))

    def text(self, path: str) -> str:
        """What a GET is answered."""
        return self._ask("GET", path).decode()

    def _ask(self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _Connection(self._path)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            said: bytes = answer.read()
        except (OSError, HTTPException) as error:
            connection.close()
            raise BenchFailed(f"{method} {path}: {error!r}") from error
        if answer.status // 100 != 2:
            raise BenchFailed(f"{method} {path}: {answer.status}: {said.decode()[:500]}")
        return said


@contextmanager
def opened_api() -> Iterator[Api]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "socket"
        command = ["kubectl", "proxy", f"--unix-socket={path}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                until("kubectl proxy", path.exists, timeout_s=10, every_s=0.05)
                yield Api(path)
            finally:
                process.kill()


class Watch:
    """When each row of a watch was first seen."""

    def __init__(self, kind: str, lines: Iterable[str]) -> None:
        self._kind = kind
        self._lines = lines
        self._seen: dict[Hashable, float] = {}
        self._changed = threading.Condition()
        self._ended = False

    def read(self) -> None:
        """Until the watch ends."""
        for line in self._lines:
            at = time.monotonic()
            with self._changed:
                self._seen.setdefault(tuple(line.rstrip("\n").split(" ")), at)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, rows: Iterable[Hashable], timeout_s: float) -> Mapping[Hashable, float]:
        """When all rows were seen, or what was seen until now. Raises ``BenchFailed`` if the watch ended."""
        missing = set(rows)

        def done() -> bool:
            missing.difference_update(self._seen)
            return self._ended or not missing

        with self._changed:
            self._changed.wait_for(done, timeout_s)
            if missing and self._ended:
                raise BenchFailed(f"the watch of {self._kind} ended: did the API server restart?")
            return dict(self._seen)


@contextmanager
def watching(namespace: Namespace, kind: str, *fields: str, selector: str = "") -> Iterator[Watch]:
    # kubectl makes spaces of a tab.
    output = "jsonpath=" + '{" "}'.join(fields) + '{"\\n"}'
    where = ("--namespace", namespace.name, "--selector", selector)
    command = ["kubectl", "get", kind, *where, "--watch", "--output", output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watch = Watch(kind, process.stdout)
        thread = threading.Thread(target=watch.read)
        thread.start()
        try:
            yield watch
        finally:
            process.kill()
            thread.join()


# The operator's process.


def usage(api: Api) -> Usage:
    """Of the leader, now or when there is one again."""
    deadline = time.monotonic() + _LEADER_TIMEOUT_S
    while True:
        try:
            return _usage(api)
        except (BenchFailed, CommandFailed, OSError):
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def _usage(api: Api) -> Usage:
    lease = _SYSTEM.get("lease", OPERATOR)
    holder = str(lease["spec"].get("holderIdentity") or "")
    pod = holder.rpartition("_")[0]
    if not pod:
        raise BenchFailed(f"nobody holds the Lease {OPERATOR_NAMESPACE}/{OPERATOR}: is the operator installed?")
    process = Path(f"/proc/{_process_id(pod)}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    stat = (process / "stat").read_text().rpartition(")")[2].split()
    metrics = api.text(f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod}:{_METRICS_PORT}/proxy/metrics").splitlines()
    return Usage(
        at=datetime.now(UTC),
        holder=holder,
        cpu_s=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        peak_rss_mib=int(status["VmHWM"].split()[0]) / 1024,
        reconciles=_sum(metrics, "tinybird_proxy_operator_reconciles_total{"),
        reconcile_s=_sum(metrics, "tinybird_proxy_operator_reconcile_seconds_total "),
    )


def _sum(metrics: Sequence[str], begin: str) -> float:
    return sum(float(line.split()[-1]) for line in metrics if line.startswith(begin))


def _process_id(pod: str) -> int:
    """Of the first process of its container, as this machine counts."""
    [container] = _SYSTEM.get("pod", pod)["status"]["containerStatuses"]
    container_id = container.get("containerID", "").partition("//")[2]
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or not container_id or container_id not in (entry / "cgroup").read_text():
                continue
            ids = [line for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid:")]
        except OSError:
            continue  # it has ended
        if ids[0].split()[-1] == "1":
            return int(entry.name)
    raise BenchFailed(f"no process of the pod {pod} is on this machine")
