"""The cluster's own processes: started, watched and stopped by id.

A process is known by its id, its start time and the machine's boot, written down when it starts. An id that belongs to
somebody else by now is never signalled.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.cluster.refusal import Refusal

_POLL_S: Final = 0.1
_STOP_S: Final = 10.0
_TAIL_LINES: Final = 15


class Processes:
    """Processes by name, with one file each in `records` and one log each in `logs`."""

    def __init__(self, records: Path, logs: Path) -> None:
        self._records = records
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # those that are to be reaped here

    def start(self, name: str, *command: str | Path, path: str) -> None:
        """Start a program in a session of its own, its output in `logs/<name>.log`."""
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PATH": path},
            )
        self._children[name] = process
        record: dict[str, object] = {"pid": process.pid, "started": _started(process.pid), "boot": _boot()}
        record |= {"command": [str(part) for part in command], "path": path}
        (self._records / name).write_text(json.dumps(record))

    def restart(self, name: str) -> None:
        """Stop it and start it as it was started."""
        try:
            record = json.loads((self._records / name).read_text())
        except FileNotFoundError:
            known = ", ".join(self.alive()) or "none"
            raise Refusal(f"there is no part {name} that runs; these do: {known}") from None
        self.stop(name)
        self.start(name, *record["command"], path=record["path"])

    def alive(self) -> dict[str, bool]:
        """Each process that was started and not stopped, and whether it still runs."""
        if not self._records.is_dir():
            return {}
        return {file.name: self._pid(file.name) is not None for file in sorted(self._records.iterdir())}

    def wait(self, what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Return as soon as `ready()`; a process that ended meanwhile, or the time, raises with the log's end."""
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [name for name, alive in self.alive().items() if not alive]
            if ended:
                raise Refusal(f"{ended[0]} ended; the end of {self._logs / ended[0]}.log:\n{self._tail(ended[0])}")
            if time.monotonic() > deadline:
                raise Refusal(f"{what} was not ready after {seconds:.0f} s; see {self._logs}")
            time.sleep(_POLL_S)

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL after 10 s; nothing if it is not ours any more."""
        pid = self._pid(name)
        if pid is not None:
            _signal(pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while self._pid(name) is not None and time.monotonic() < deadline:
                time.sleep(_POLL_S / 2)
            if self._pid(name) is not None:
                _signal(pid, signal.SIGKILL)
        if name in self._children:
            self._children.pop(name).wait()
        (self._records / name).unlink(missing_ok=True)

    def _pid(self, name: str) -> int | None:
        """The id of this process while it runs and is the one that was started here."""
        try:
            record: Mapping[str, str | int] = json.loads((self._records / name).read_text())
            pid = int(record["pid"])
        except (FileNotFoundError, ValueError, KeyError):
            return None
        started = _started(pid)
        is_ours = started is not None and started == record["started"] and record["boot"] == _boot()
        return pid if is_ours else None

    def _tail(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


def end_programs_with(argument: str, program: str) -> None:
    """End the programs of this name that were started with exactly this argument: containerd's shims outlive it."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            command = (directory / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if Path(command[0]).name == program and argument in command:
            _signal(int(directory.name), signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _started(pid: int) -> str | None:
    """The start time in clock ticks since boot; None if there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
