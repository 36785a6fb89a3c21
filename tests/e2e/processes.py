"""The first process of a pod, from the machine that is its node: what no command inside of the pod can do to it."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def container(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The status of the pod's one container."""
    [found] = pod["status"]["containerStatuses"]
    status: dict[str, Any] = found
    return status


@contextmanager
def process(pod: Mapping[str, Any]) -> Iterator[Callable[[signal.Signals], None]]:
    """What sends a signal to the first process of a pod's container, and to no process that gets its id later."""
    container_id = container(pod)["containerID"].partition("//")[2]
    [pid] = [pid for pid in _process_ids(container_id) if _id_inside(pid) == 1]
    descriptor = os.pidfd_open(pid)
    try:
        assert pid in _process_ids(container_id)
        yield lambda number: signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _process_ids(container_id: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and container_id in (entry / "cgroup").read_text():
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


def _id_inside(pid: int) -> int:
    """Of a process, in the innermost of its namespaces."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])
