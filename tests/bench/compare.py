"""Measure batching proxies side by side, in one run on one machine.

  closed   wrk in a closed loop: as many requests as 64 connections can carry
  rate N   an open loop at N requests a second, each with an id of its own; latency counts from when a request was due

A contestant is `goproxy` (the yardstick: a small batching proxy in Go), `ours`, or NAME=COMMAND, in which {port} is the
port to listen on and {upstream} the URL of the counting sink. It is sent `Authorization: Bearer secret` on
/v0/events?name=key_verifications. Rounds alternate between the contestants; the medians are printed.

CPU is that of the whole process tree, user and system, the last flush included. `arrived %`: rows that reached the sink
of those that were answered with 2xx. `wire %`: bytes on the wire to the sink as a share of the raw ones.
"""

import argparse
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench import machine
from tests.bench.figures import Answers, Round, compared, parse_wrk, seconds, table

# How long the last flush may take: our own interval and a retry, then the sink's delay.
_LAST_FLUSH_S = 10.0


@dataclass(frozen=True, slots=True)
class Contestant:
    """A proxy to measure. ``command`` holds ``{port}`` and ``{upstream}``."""

    name: str
    command: str
    env: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self, port: int, admin_port: int, upstream: str) -> Iterator[machine.Server]:
        """Run it, ready for requests."""
        env = self.env
        if self.name == "ours":
            env = machine.proxy_environment(port=port, admin_port=admin_port, upstream=upstream)
        command = shlex.split(self.command.format(port=port, upstream=upstream))
        with machine.listening_server(self.name, command, port, env) as server:
            yield server


def contestant(text: str) -> Contestant:
    """Read one of the command line's."""
    if text == "ours":
        return Contestant("ours", f"{shlex.quote(machine.tinybird_proxy())} run")
    if text == "goproxy":
        tool = shlex.quote(str(machine.TOOLS / "goproxy"))
        return Contestant("goproxy", f"{tool} -listen {machine.LOOPBACK}:{{port}} -upstream {{upstream}}")
    name, equals, command = text.partition("=")
    if not (name and equals and command):
        raise machine.BenchFailed(f"{text!r}: must be ours, goproxy, or NAME=COMMAND with {{port}} and {{upstream}}")
    return Contestant(name, command)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in ("closed", "rate"):
        options = modes.add_parser(mode)
        if mode == "rate":
            options.add_argument("rate", type=float, help="requests a second")
        options.add_argument("-s", "--seconds", type=int, default=8)
        options.add_argument("-c", "--connections", type=int, default=64)
        options.add_argument("-n", "--rounds", type=int, default=3)
        options.add_argument("--delay", default="0s", help="how long the sink takes for wait=true, e.g. 4s")
        options.add_argument("--json", action="store_true", help="print the medians as JSON")
        options.add_argument("contestants", nargs="*", metavar="CONTESTANT", help="default: goproxy ours")
    # Contestants after the options are left over: argparse fills a list of positionals only once.
    found, left_over = parser.parse_known_args()
    if unknown := [text for text in left_over if text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    found.contestants = [*found.contestants, *left_over] or ["goproxy", "ours"]
    return found


def main() -> int:
    """Measure, print, and answer with the exit status: 1 if a contestant lost, doubled or refused rows."""
    options = arguments()
    machine.build()
    contestants = [contestant(text) for text in options.contestants]
    rounds: dict[str, list[Round]] = {one.name: [] for one in contestants}
    for _ in range(options.rounds):
        for one in contestants:
            rounds[one.name].append(measure(one, options))
    found = compared(rounds)
    print(json.dumps(found) if options.json else table(found))
    flawless = all(row["bad"] == 0 and row["doubled"] == 0 and row["arrived_percent"] >= 100 for row in found.values())
    return 0 if flawless else 1


def measure(one: Contestant, options: argparse.Namespace) -> Round:
    """One round."""
    port, admin_port, sink_port = machine.free_ports(3)
    upstream = f"http://{machine.LOOPBACK}:{sink_port}"
    with (
        machine.running_sink(sink_port, options.delay) as sink,
        one.running(port, admin_port, upstream) as proxy,
    ):
        before_s = proxy.cpu_s()
        answers = _closed(port, options) if options.mode == "closed" else _open(port, options)
        proxy.check()
        accepted = answers.request_count - answers.bad
        _wait_for_last_flush(sink_port, accepted, seconds(options.delay), sink)
        used_s = proxy.cpu_s() - before_s
        stats = machine.sink_stats(sink_port)
        # Rows of wrk have no ids, and some of its last requests are taken but not counted by it.
        arrived = stats["distinct"] if options.mode == "rate" else min(stats["rows"], accepted)
        return Round(
            requests_per_s=answers.request_count / answers.elapsed_s,
            cpu_us_per_request=used_s / answers.request_count * 1e6,
            peak_rss_mb=proxy.peak_rss_mb(),
            p50_ms=answers.p50_ms,
            p99_ms=answers.p99_ms,
            bad=answers.bad,
            arrived_percent=100 * arrived / max(1, accepted),
            doubled=stats["doubled"],
            upstream_requests=stats["requests"],
            wire_percent=100 * stats["wire_bytes"] / max(1, stats["raw_bytes"]),
        )


def _closed(port: int, options: argparse.Namespace) -> Answers:
    if shutil.which("wrk") is None:
        raise machine.BenchFailed("wrk was not found: the closed loop needs it")
    url = f"http://{machine.LOOPBACK}:{port}/v0/events?name=key_verifications"
    command = ["wrk", "-t1", f"-c{options.connections}", f"-d{options.seconds}s", "--timeout", "30s", "--latency"]
    ended = subprocess.run(
        [*command, "-s", str(machine.HERE / "post.lua"), url],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=options.seconds + 60,
    )
    return parse_wrk(ended.stdout)


def _open(port: int, options: argparse.Namespace) -> Answers:
    report = machine.run_load(
        port,
        rate=options.rate,
        rows=int(options.rate * options.seconds),
        connections=options.connections,
        slice_s=options.seconds + 1,
    )
    return Answers(
        request_count=report["sent"],
        bad=sum(report["bad"].values()),
        elapsed_s=report["elapsed_s"],
        p50_ms=report["p50_ms"],
        p99_ms=report["p99_ms"],
    )


def _wait_for_last_flush(sink_port: int, accepted: int, delay_s: float, sink: machine.Server) -> None:
    """What is still on its way belongs to the work; a contestant that loses rows is not waited for for ever."""

    def all_there() -> bool | None:
        return machine.sink_stats(sink_port)["rows"] >= accepted or None

    try:
        machine.until(all_there, _LAST_FLUSH_S + delay_s, "the last rows", sink)
    except machine.BenchFailed:
        sink.check()


if __name__ == "__main__":
    machine.end_well(main)
