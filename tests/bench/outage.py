"""An outage of the upstream: nobody listens there while rows keep coming, each in a request of its own.

Reports what clients felt in each slice of 10 s, the proxy's peak memory, and, once the upstream is back, how long it
took until everything was there, and whether anything was lost or came twice. Exit status 1 if something was, or if the
memory missed its target.
"""

import argparse
import json
import time
from typing import Any

from tests.bench import machine
from tests.bench.figures import verdict

PEAK_RSS_TARGET_MB = 600.0
_SLICE_S = 10.0
# The proxy may be pausing for 30 s when the upstream comes back.
_DELIVERY_TIMEOUT_S = 180.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="BUFFER_SIZE holds 1,000,000")
    parser.add_argument("--rate", type=float, default=8000.0, help="requests a second")
    parser.add_argument("-c", "--connections", type=int, default=64)
    parser.add_argument("--delay", default="0s", help="how long the upstream takes for wait=true once it is back")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and answer with the exit status."""
    options = arguments()
    machine.build()
    port, admin_port, sink_port = machine.free_ports(3)
    env = machine.proxy_environment(port=port, admin_port=admin_port, upstream=f"http://127.0.0.1:{sink_port}")
    with machine.listening_server("ours", [machine.tinybird_proxy(), "run"], port, env) as proxy:
        print(f"{options.rows:,} rows at {options.rate:,.0f} requests/s while nobody listens at the upstream:")
        before_s = proxy.cpu_s()
        report = machine.run_load(
            port, rate=options.rate, rows=options.rows, connections=options.connections, slice_s=_SLICE_S
        )
        proxy.check()
        used_s = proxy.cpu_s() - before_s
        _print_answers(report)
        accepted = report["sent"] - sum(report["bad"].values())
        print(f"CPU: {used_s / report['sent'] * 1e6:.1f} us a request, compression of what is buffered included")
        buffer = machine.get_json(admin_port, "/status")["buffer"]
        print(
            f"buffered: {buffer['rows']:,} rows, {buffer['bytes'] / 1e6:,.0f} MB,"
            f" which take {buffer['held_bytes'] / 1e6:,.0f} MB"
        )
        peak_during_mb = proxy.peak_rss_mb()
        up_at = time.time()
        with machine.running_sink(sink_port, options.delay) as sink:
            _wait_for_all(sink_port, accepted, proxy, sink)
            peak_mb = proxy.peak_rss_mb()
            # SIGTERM delivers what is left, if anything is: only then is the count final.
            status = proxy.stop()
            stats = machine.sink_stats(sink_port)
    _print_recovery(stats, up_at)
    light, line = verdict("peak memory", peak_mb, "MB", at_most=PEAK_RSS_TARGET_MB)
    print(f"{line}; {peak_during_mb:,.0f} MB before the upstream was back")
    complete = stats["distinct"] == accepted and stats["doubled"] == 0 and stats["rows"] == accepted
    print(
        f"arrived: {stats['distinct']:,} distinct rows of {accepted:,} accepted, {stats['doubled']:,} more than once,"
        f" in {stats['requests']:,} requests"
    )
    print(f"the proxy ended with status {status}: {_last_words(proxy)}")
    return 0 if light and complete and status == 0 and accepted == options.rows else 1


def _print_answers(report: dict[str, Any]) -> None:
    print(f"{'from s':>8}{'requests':>12}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
    for part in report["slices"]:
        print(
            f"{part['from_s']:8.0f}{part['sent']:12,}{part['p50_ms']:10.2f}{part['p99_ms']:10.2f}{part['max_ms']:10.1f}"
        )
    print(f"{'all':>8}{report['sent']:12,}{report['p50_ms']:10.2f}{report['p99_ms']:10.2f}{report['max_ms']:10.1f}")
    print(f"not answered with 2xx: {report['bad'] or 'none'}; {report['elapsed_s']:.1f} s in all")


def _wait_for_all(sink_port: int, accepted: int, *servers: machine.Server) -> None:
    """Wait until every row has arrived; say so if the time is up."""

    def all_there() -> bool | None:
        return machine.sink_stats(sink_port)["rows"] >= accepted or None

    try:
        machine.until(all_there, _DELIVERY_TIMEOUT_S, "all rows to arrive", *servers)
    except machine.BenchFailed as error:
        for server in servers:
            server.check()
        print(error)


def _print_recovery(stats: dict[str, Any], up_at: float) -> None:
    if not stats["rows"]:
        print("upstream back: nothing arrived")
        return
    first_s, last_s = stats["first_row_at"] - up_at, stats["last_row_at"] - up_at
    rate = stats["rows"] / max(0.001, last_s - first_s)
    print(
        f"upstream back: first rows after {first_s:.1f} s (the proxy's pause), all of them after {last_s:.1f} s,"
        f" {rate:,.0f} rows/s in between"
    )


def _last_words(proxy: machine.Server) -> str:
    """What the last line of its log says of the ledger."""
    lines = proxy.log.read_text().splitlines()
    try:
        entry = json.loads(lines[-1])
        return f"{entry['message']}, ledger {entry['ledger']}"
    except (IndexError, KeyError, ValueError):
        return f"no ledger in {proxy.log}"


if __name__ == "__main__":
    machine.end_well(main)
