"""The arithmetic of the figures: what the tools print, medians, ratios, tables. Pure."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class UnexpectedOutput(Exception):
    """A tool did not print what it should have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a load generator heard. ``bad``: requests without a 2xx answer."""

    request_count: int
    bad: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One contestant, measured once."""

    requests_per_s: float
    cpu_us_per_request: float
    peak_rss_mb: float
    p50_ms: float
    p99_ms: float
    bad: float
    arrived_percent: float
    doubled: float
    upstream_requests: float
    wire_percent: float


COLUMNS: Mapping[str, tuple[str, int]] = {
    "requests_per_s": ("requests/s", 0),
    "cpu_us_per_request": ("CPU us/req", 1),
    "cpu_ratio": ("ratio", 2),
    "peak_rss_mb": ("peak MB", 0),
    "p50_ms": ("p50 ms", 2),
    "p99_ms": ("p99 ms", 2),
    "bad": ("bad", 0),
    "arrived_percent": ("arrived %", 2),
    "doubled": ("doubled", 0),
    "upstream_requests": ("to Tinybird", 0),
    "wire_percent": ("wire %", 1),
}


def seconds(text: str) -> float:
    """A duration as wrk prints it: ``850.00us``, ``1.23ms``, ``2.00s``, ``1.50m``."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if found is None:
        raise UnexpectedOutput(f"not a duration: {text!r}")
    return float(found[1]) * _UNITS_S[found[2]]


def parse_wrk(text: str) -> Answers:
    """What ``wrk --latency`` printed. Sockets that broke count as bad answers."""
    requests = _found(r"(\d+) requests in (\S+),", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return Answers(
        request_count=int(requests[1]),
        bad=sum(map(int, errors.groups() if errors else ())) + (int(refused[1]) if refused else 0),
        elapsed_s=seconds(requests[2]),
        p50_ms=seconds(_found(r"\s50%\s+(\S+)", text)[1]) * 1e3,
        p99_ms=seconds(_found(r"\s99%\s+(\S+)", text)[1]) * 1e3,
    )


def _found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise UnexpectedOutput(f"no {pattern!r} in:\n{text}")
    return match


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """The median of each figure, each for itself."""
    tables = [asdict(one) for one in rounds]
    return {name: statistics.median(table[name] for table in tables) for name in tables[0]}


def compared(rounds: Mapping[str, Sequence[Round]]) -> dict[str, dict[str, float]]:
    """Medians by contestant, each with the ratio of its CPU a request to the first contestant's."""
    found = {name: medians(several) for name, several in rounds.items()}
    first = next(iter(found.values()))["cpu_us_per_request"]
    for figures in found.values():
        figures["cpu_ratio"] = figures["cpu_us_per_request"] / first if first else 0.0
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """``compared`` for a person, one contestant a line."""
    width = max(map(len, found)) + 1
    lines = [" " * width + "".join(f"{title:>13}" for title, _ in COLUMNS.values())]
    for name, figures in found.items():
        cells = (f"{figures[column]:13,.{digits}f}" for column, (_, digits) in COLUMNS.items())
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)


def verdict(what: str, value: float, unit: str, *, at_most: float) -> tuple[bool, str]:
    """Whether ``value`` meets its target, and a line that says so."""
    good = value <= at_most
    return good, f"{what}: {value:,.4g} {unit} (target: at most {at_most:,.4g} {unit}: {'met' if good else 'MISSED'})"
