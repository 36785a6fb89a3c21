"""Every benchmark, one after the other: what `make bench` does. Some ten minutes; `--short` shows that it works."""

import argparse
import subprocess
import sys
import time

from tests.bench import machine

_FULL = (
    ("8,000 requests/s, open loop", "compare", "rate", "8000"),
    ("as fast as 64 connections can, closed loop", "compare", "closed"),
    ("8,000 requests/s, the upstream takes 4 s", "compare", "rate", "8000", "--delay", "4s"),
    ("an outage while 1,000,000 rows arrive", "outage"),
    ("idle", "idle"),
)
_SHORT = (
    ("1,000 requests/s, open loop", "compare", "rate", "1000", "-s", "2", "-n", "1"),
    ("as fast as 64 connections can, closed loop", "compare", "closed", "-s", "2", "-n", "1"),
    ("1,000 requests/s, the upstream takes 1 s", "compare", "rate", "1000", "-s", "2", "-n", "1", "--delay", "1s"),
    ("an outage while 20,000 rows arrive", "outage", "--rows", "20000", "--rate", "2000"),
    ("idle", "idle", "-n", "1", "--settle", "1", "-s", "2"),
)


def main() -> int:
    """Run them all, whatever one of them says; the exit status is 1 if any of them missed something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes; the figures mean little")
    benchmarks = _SHORT if parser.parse_args().short else _FULL
    machine.build()
    print(machine.describe())
    missed = []
    for title, tool, *options in benchmarks:
        print(f"\n== {title}", flush=True)
        began_at = time.monotonic()
        status = _run(tool, *options)
        print(f"({time.monotonic() - began_at:.0f} s)", flush=True)
        missed += [title] if status else []
    print(f"\nMissed something: {'; '.join(missed)}." if missed else "\nEverything met its targets.")
    return 1 if missed else 0


def _run(tool: str, *options: str) -> int:
    with subprocess.Popen([sys.executable, "-m", f"tests.bench.{tool}", *options], cwd=machine.ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()  # it ends what it started: to kill it would leave that behind
            process.wait()
            raise


if __name__ == "__main__":
    machine.end_well(main)
