"""A proxy with nothing to do: how long it takes to start, and what it costs to be there.

Reports the time until /readyz answers, the memory some seconds later, and the CPU that it uses, in thousandths of one.
Exit status 1 if start or memory miss their targets.
"""

import argparse
import statistics
import time

from tests.bench import machine
from tests.bench.figures import verdict

READY_TARGET_S = 0.7
RSS_TARGET_MB = 50.0
_LOOK_EVERY_S = 0.005


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--starts", type=int, default=5, help="how often it is started")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds before memory is looked at")
    parser.add_argument("-s", "--seconds", type=float, default=10.0, help="how long CPU is looked at")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and answer with the exit status."""
    options = arguments()
    starts_s = [_time_to_ready() for _ in range(options.starts)]
    quick, line = verdict("ready after", statistics.median(starts_s), "s", at_most=READY_TARGET_S)
    print(f"{line}; each start: {', '.join(f'{start_s:.2f}' for start_s in starts_s)}")
    rss_mb, millicores = _cost(options.settle, options.seconds)
    light, line = verdict(f"memory after {options.settle:g} s", rss_mb, "MB", at_most=RSS_TARGET_MB)
    print(line)
    print(f"CPU over {options.seconds:g} s: {millicores:.1f} millicores")
    return 0 if quick and light else 1


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
