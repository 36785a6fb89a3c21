"""A proxy with nothing to do: how long it takes to start, and what it costs to be there.

Reports the time until /readyz answers, the memory some seconds later, and the CPU that it uses, in thousandths of one.
Exit status 1 if start or memory miss their targets.

With --sidecar it looks at one that runs in a pod, through kubectl: the CPU and working set that kubelet tells, what the
probes cost included, and the memory of its process. Exit status 1 if memory or CPU miss their targets.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import time
from typing import NamedTuple

from tests.bench import machine
from tests.bench.figures import verdict

READY_TARGET_S = 0.7
RSS_TARGET_MB = 50.0
SIDECAR_TARGET_MILLICORES = 2.0
SIDECAR = "tinybird-proxy"
_LOOK_EVERY_S = 0.005
# kubelet looks at a container every 10 s or so.
_KUBELET_TIMEOUT_S = 60.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--starts", type=int, default=5, help="how often it is started")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds before memory is looked at")
    parser.add_argument("-s", "--seconds", type=float, default=10.0, help="how long CPU is looked at")
    parser.add_argument("--sidecar", metavar="NAMESPACE/POD", help="look at this pod's sidecar instead")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and answer with the exit status."""
    options = arguments()
    if options.sidecar is not None:
        namespace, _, pod = options.sidecar.partition("/")
        return _sidecar(namespace, pod, options.seconds)
    starts_s = [_time_to_ready() for _ in range(options.starts)]
    quick, line = verdict("ready after", statistics.median(starts_s), "s", at_most=READY_TARGET_S)
    print(f"{line}; each start: {', '.join(f'{start_s:.2f}' for start_s in starts_s)}")
    rss_mb, millicores = _cost(options.settle, options.seconds)
    light, line = verdict(f"memory after {options.settle:g} s", rss_mb, "MB", at_most=RSS_TARGET_MB)
    print(line)
    print(f"CPU over {options.seconds:g} s: {millicores:.1f} millicores")
    return 0 if quick and light else 1


class Told(NamedTuple):
    """What kubelet tells of a container, and when it looked, in seconds."""

    at_s: float
    cpu_s: float
    working_set_mb: float


def _sidecar(namespace: str, pod: str, seconds: float) -> int:
    node = _kubectl("get", "pod", pod, "--namespace", namespace, "--output", "jsonpath={.spec.nodeName}")

    def told_after(at_s: float) -> Told | None:
        said = _kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/metrics/resource")
        told = _told(said, namespace, pod)
        return told if told.at_s > at_s else None

    before = machine.until(lambda: told_after(0.0), _KUBELET_TIMEOUT_S, "kubelet's figures", every_s=1.0)
    time.sleep(seconds)
    after = machine.until(
        lambda: told_after(before.at_s + seconds), _KUBELET_TIMEOUT_S, "kubelet's next figures", every_s=1.0
    )
    took_s = after.at_s - before.at_s
    # Last of all: what runs in the container counts as the container's.
    memory = _kubectl(
        "exec", pod, "--namespace", namespace, "--container", SIDECAR, "--", "cat", "/proc/1/smaps_rollup"
    )
    match = re.search(r"^Rss: +(\d+) kB", memory, re.MULTILINE)
    if match is None:
        raise machine.BenchFailed(f"no Rss in /proc/1/smaps_rollup of {namespace}/{pod}: {memory}")
    light, line = verdict("memory (RSS)", int(match[1]) * 1024 / 1e6, "MB", at_most=RSS_TARGET_MB)
    print(line)
    print(f"working set, as kubelet counts it: {after.working_set_mb:.1f} MB")
    millicores = (after.cpu_s - before.cpu_s) / took_s * 1000
    calm, line = verdict(f"CPU over {took_s:.0f} s", millicores, "millicores", at_most=SIDECAR_TARGET_MILLICORES)
    print(line)
    return 0 if light and calm else 1


def _told(said: str, namespace: str, pod: str) -> Told:
    """The container's lines in kubelet's /metrics/resource. Raises `BenchFailed` if there are none."""
    labels = re.escape(f'{{container="{SIDECAR}",namespace="{namespace}",pod="{pod}"}}')
    found = []
    for metric in ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes"):
        match = re.search(rf"^{metric}{labels} (\S+) (\d+)$", said, re.MULTILINE)
        if match is None:
            raise machine.BenchFailed(f"kubelet tells no {metric} of a container {SIDECAR} in {namespace}/{pod}")
        found.append((float(match[1]), int(match[2]) / 1000))
    (cpu_s, at_s), (working_set, _) = found
    return Told(at_s, cpu_s, working_set / 1e6)


def _kubectl(*arguments: str) -> str:
    if shutil.which("kubectl") is None:
        raise machine.BenchFailed("kubectl was not found")
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise machine.BenchFailed(f"kubectl {' '.join(arguments[:4])}: {done.stderr.strip()}")
    return done.stdout


def _command() -> tuple[list[str], dict[str, str], int]:
    """The proxy, its environment, and its admin port. Its upstream does not exist, and is never asked."""
    port, admin_port, upstream_port = machine.free_ports(3)
    upstream = f"http://{machine.LOOPBACK}:{upstream_port}"
    env = machine.proxy_environment(port=port, admin_port=admin_port, upstream=upstream)
    return [machine.tinybird_proxy(), "run"], env, admin_port


def _ready(admin_port: int) -> bool | None:
    try:
        return machine.get_json(admin_port, "/readyz")["ready"] is True or None
    except (OSError, machine.BenchFailed):
        return None


def _time_to_ready() -> float:
    command, env, admin_port = _command()
    began_at = time.monotonic()
    with machine.running("ours", command, env) as proxy:
        machine.until(
            lambda: _ready(admin_port), machine.START_TIMEOUT_S, "/readyz to answer", proxy, every_s=_LOOK_EVERY_S
        )
        return time.monotonic() - began_at


def _cost(settle_s: float, seconds: float) -> tuple[float, float]:
    """Memory in MB after ``settle_s``, and millicores over the ``seconds`` after that."""
    command, env, admin_port = _command()
    with machine.running("ours", command, env) as proxy:
        machine.until(lambda: _ready(admin_port), machine.START_TIMEOUT_S, "/readyz to answer", proxy)
        time.sleep(settle_s)
        proxy.check()
        rss_mb = proxy.rss_mb()
        before_s, began_at = proxy.cpu_s(), time.monotonic()
        time.sleep(seconds)
        proxy.check()
        return rss_mb, (proxy.cpu_s() - before_s) / (time.monotonic() - began_at) * 1000


if __name__ == "__main__":
    machine.end_well(main)
