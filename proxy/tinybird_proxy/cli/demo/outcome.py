"""What became of the rows: three accounts of the same thing, and whether they agree. Pure."""

from dataclasses import dataclass

from tinybird_proxy.cli.demo.figures import LedgerStatus, Tally

_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What the emulator counted by itself: ``promised_count`` distinct rows that the proxy had answered for."""

    row_count: int
    distinct_count: int
    promised_count: int
    request_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a demo. None: it could not be learnt."""

    tally: Tally
    ledger: LedgerStatus | None
    left_at_stop: int | None
    proxy_status: int | None
    arrived: Arrived | None

    @property
    def exactly_once(self) -> bool:
        """Whether every accepted row arrived, none of them twice, and the proxy's books say so too."""
        return self._objection() is None

    def sentence(self) -> str:
        """The result for a person."""
        objection = self._objection()
        if objection is not None:
            return objection
        assert self.arrived is not None  # noqa: S101 - else there is an objection
        rows, requests = self.tally.promised, self.arrived.request_count
        return (
            f"Every one of the {rows:,} accepted rows arrived exactly once: {rows:,} requests became {requests:,},"
            f" and {rows - requests:,} requests to Tinybird were saved."
        )

    def _objection(self) -> str | None:
        """Why it may not be said that every accepted row arrived exactly once."""
        promised, arrived, ledger = self.tally.promised, self.arrived, self.ledger
        if arrived is None:
            return "The emulator could not be asked what arrived, so nobody can say what became of the rows."
        if promised == 0:
            return "No row was accepted, so there is nothing to prove."
        if arrived.promised_count < promised:
            return f"{promised - arrived.promised_count:,} of the {promised:,} accepted rows did NOT arrive."
        if arrived.row_count != arrived.distinct_count:
            return f"{arrived.row_count - arrived.distinct_count:,} rows arrived MORE THAN ONCE."
        if ledger is None:
            return "All accepted rows arrived, but the proxy ended without its ledger."
        if ledger.delivered != arrived.row_count or ledger.accepted != ledger.delivered or ledger.buffered != 0:
            return "All accepted rows arrived, but the proxy's ledger says something else."
        if self.proxy_status != 0:
            return f"All accepted rows arrived, but the proxy ended with status {self.proxy_status}."
        return None

    def table(self) -> list[tuple[str, str, str]]:
        """Who counted, what, and how many."""
        return [
            *(("client", what, count) for what, count in _counted_by_client(self.tally)),
            *(("proxy", what, count) for what, count in self._counted_by_proxy()),
            *(("emulator", what, count) for what, count in self._counted_by_emulator()),
        ]

    def _counted_by_proxy(self) -> list[tuple[str, str]]:
        if (ledger := self.ledger) is None:
            return [("accepted and delivered", _UNKNOWN)]
        elsewhere = {
            "quarantined": ledger.quarantined,
            "unverified": ledger.unverified,
            "dead-lettered": ledger.dead_lettered,
            "still buffered": ledger.buffered,
        }
        return [
            ("accepted", f"{ledger.accepted:,}"),
            ("in the buffer when told to stop", _UNKNOWN if self.left_at_stop is None else f"{self.left_at_stop:,}"),
            ("delivered", f"{ledger.delivered:,}"),
            *((what, f"{count:,}") for what, count in elsewhere.items() if count),
            ("lost", f"{sum(ledger.dropped.values()):,}"),
        ]

    def _counted_by_emulator(self) -> list[tuple[str, str]]:
        if (arrived := self.arrived) is None:
            return [("rows in the data source", _UNKNOWN)]
        return [
            ("rows in the data source", f"{arrived.row_count:,}"),
            ("distinct ids", f"{arrived.distinct_count:,}"),
            ("requests received", f"{arrived.request_count:,}"),
        ]


def _counted_by_client(tally: Tally) -> list[tuple[str, str]]:
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(tally.refused.items()))
    refused = f"{sum(tally.refused.values()):,}" + (f" ({reasons})" if reasons else "")
    found = [
        ("rows posted, one in each request", f"{tally.posted:,}"),
        ("answered with 2xx: accepted", f"{tally.promised:,}"),
        ("refused or not answered", refused),
    ]
    if (latency := tally.percentiles()) is not None:
        found.append(("answered within, p50 and p99", f"{latency[0] * 1e3:.1f} ms, {latency[1] * 1e3:.1f} ms"))
    if waits := tally.wait_latencies:
        found.append((f"wait=true answered within, {len(waits)} times", f"{min(waits):.1f} s to {max(waits):.1f} s"))
    return found
