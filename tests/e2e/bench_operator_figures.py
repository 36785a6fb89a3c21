"""The arithmetic of the operator's benchmark: requests of the audit log, percentiles, tables. Pure."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import unquote

# What a resource of the benchmark is called, and so what all that is made for it begins with.
EMPTY: Final = "empty"
FILLED: Final = "filled"
_NAME: Final = re.compile(rf"\b(?:{EMPTY}|{FILLED})-\d{{4}}")
_READS: Final = frozenset({"get", "list", "watch"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the operator's. ``about``: the resource of the benchmark for which it was, or empty."""

    received_at: datetime
    pod: str
    verb: str
    resource: str
    namespace: str
    about: str
    status: int

    @property
    def is_write(self) -> bool:
        return self.verb not in _READS

    @property
    def is_status_write(self) -> bool:
        return self.is_write and self.resource == "tinybirdproxies/status"

    @property
    def is_refused(self) -> bool:
        """Answered with an error. That something is not there is an answer."""
        return self.status >= 400 and not (self.verb == "get" and self.status == 404)


def requests(lines: Iterable[str], user: str) -> list[Request]:
    """What the user asked, each once: a watch is told of when it begins and when it ends."""
    found: dict[str, Request] = {}
    for line in lines:
        if user not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that is being written
        if entry["user"]["username"] != user:
            continue
        asked = entry.get("objectRef", {})
        name = _NAME.search(unquote(entry["requestURI"])) or _NAME.match(asked.get("name", ""))
        parts = (asked.get("resource"), asked.get("subresource"))
        request = Request(
            received_at=datetime.fromisoformat(entry["requestReceivedTimestamp"]),
            pod=entry["user"].get("extra", {}).get("authentication.kubernetes.io/pod-name", [""])[0],
            verb=entry["verb"],
            resource="/".join(part for part in parts if part) or entry["requestURI"].partition("?")[0],
            namespace=asked.get("namespace", ""),
            about="" if name is None else name[0],
            status=entry.get("responseStatus", {}).get("code", 0),
        )
        found.setdefault(entry["auditID"], request)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Usage:
    """The leader at a moment: what its process used, and what its own metrics say. Counters are since its start."""

    at: datetime
    holder: str
    cpu_s: float
    rss_mib: float
    peak_rss_mib: float
    reconciles: float
    reconcile_s: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the benchmark, with what the operator asked meanwhile."""

    name: str
    before: Usage
    after: Usage
    requests: Sequence[Request]

    @property
    def is_good(self) -> bool:
        """One process led all the time; otherwise the figures are those of two."""
        return self.before.holder == self.after.holder

    def figures(self, namespace: str) -> dict[str, float]:
        """Of this namespace, what is not the whole operator's. Of another leader than at first: no counters."""
        before, after = self.before, self.after
        duration_s = (after.at - before.at).total_seconds()
        here = [request for request in self.requests if request.namespace == namespace]
        found = {
            "duration_s": duration_s,
            "requests": len(here),
            "requests_per_s": len(here) / duration_s,
            "elsewhere_per_s": (len(self.requests) - len(here)) / duration_s,
            "writes": sum(request.is_write for request in here),
            "status_writes": sum(request.is_status_write for request in here),
            "refused": sum(request.is_refused for request in here),
            "rss_mib": after.rss_mib,
            "peak_rss_mib": after.peak_rss_mib,
        }
        if self.is_good:
            reconciles = after.reconciles - before.reconciles
            found["cpu_s"] = after.cpu_s - before.cpu_s
            found["cpu_percent"] = 100 * found["cpu_s"] / duration_s
            found["reconciles"] = reconciles
            found["reconcile_ms"] = 1e3 * (after.reconcile_s - before.reconcile_s) / reconciles if reconciles else 0.0
        return {name: round(value, 3) for name, value in found.items()}


def within(asked: Iterable[Request], began_at: datetime, ended_at: datetime) -> list[Request]:
    """Those that came in from the one until before the other."""
    return [request for request in asked if began_at <= request.received_at < ended_at]


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many percent do not exceed; not a number if there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest in milliseconds."""
    cells = {"p50_ms": percentile(seconds, 50), "p99_ms": percentile(seconds, 99), "max_ms": percentile(seconds, 100)}
    return {"count": len(seconds)} | {name: round(1e3 * value, 1) for name, value in cells.items() if seconds}


def per_kind(asked: Iterable[Request], namespace: str) -> Counter[tuple[str, str, str]]:
    """How many of each verb and resource, and for which: `empty`, `filled`, `namespace`, or `elsewhere`."""
    return Counter((request.verb, request.resource, _whose(request, namespace)) for request in asked)


def _whose(request: Request, namespace: str) -> str:
    if request.namespace != namespace:
        return "elsewhere"
    return request.about.partition("-")[0] or "namespace"


def kinds_table(
    counts: Mapping[tuple[str, str, str], int], seconds: float, resources: Mapping[str, int]
) -> Iterator[str]:
    """The counts for a person: most first, with the rate, and for each resource and minute where it is one's."""
    yield f"{'verb':8}{'resource':42}{'for':12}{'requests':>10}{'/s':>9}{'/resource/min':>15}"
    for (verb, resource, whose), count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        number = resources.get(whose)
        share = f"{60 * count / seconds / number:15.2f}" if number else " " * 14 + "-"
        yield f"{verb:8}{resource:42}{whose:12}{count:10}{count / seconds:9.2f}{share}"


_COLUMNS: Final = {
    "duration_s": ("s", 1),
    "requests_per_s": ("requests/s", 1),
    "writes": ("writes", 0),
    "status_writes": ("of status", 0),
    "refused": ("refused", 0),
    "elsewhere_per_s": ("elsewhere/s", 1),
    "reconciles": ("reconciles", 0),
    "reconcile_ms": ("ms each", 1),
    "cpu_s": ("CPU s", 1),
    "cpu_percent": ("CPU %", 0),
    "rss_mib": ("RSS MiB", 1),
    "peak_rss_mib": ("peak MiB", 1),
}


def phases_table(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What came of each phase, one a line; `-`: another process led at its end."""
    width = max(map(len, found)) + 1
    yield " " * width + "".join(f"{title:>12}" for title, _ in _COLUMNS.values())
    for name, figures in found.items():
        cells = (
            f"{figures[column]:12,.{digits}f}" if column in figures else f"{'-':>12}"
            for column, (_, digits) in _COLUMNS.items()
        )
        yield f"{name:{width}}" + "".join(cells)
