"""What ``/status`` and ``/metrics`` show: everything the proxy knows about itself, at one moment."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tinybird_proxy import __version__, health
from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.server.availability import Availability
from tinybird_proxy.server.events import Gate
from tinybird_proxy.server.receive import Receiver
from tinybird_proxy.telemetry.gauges import drain_time_s, utilization_percent
from tinybird_proxy.telemetry.prometheus import Snapshot
from tinybird_proxy.tokens import Secret, WatchedFile

# A readiness probe's body must stay short, however much is wrong.
NOT_DELIVERING_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Reads the state of everything that was built."""

    pipeline: Pipeline
    availability: Availability
    receiver: Receiver
    gate: Gate
    files: Sequence[WatchedFile]
    now: Callable[[], float]
    started_at: float
    origin: str
    self_metrics: Callable[[], dict[str, Any]] | None = None

    def utilisation(self) -> float:
        """The fuller of rows and bytes, as a share of its capacity."""
        held = self.pipeline.surroundings.buffer.occupancy
        capacity = self.pipeline.limits.capacity
        return max(held.row_count / capacity.max_rows, held.size_bytes / capacity.max_bytes)

    def sentence(self) -> str:
        """How the proxy is, in one sentence."""
        return self._sentence(self.snapshot())

    def _sentence(self, s: Snapshot) -> str:
        return health.overall(
            s.destinations,
            phase=self.availability.phase,
            utilisation=s.utilisation,
            letters_rows=s.letters_rows,
            lost_rows=s.ledger.dropped_total + s.ledger.letters_evicted,
            imbalance=s.imbalance,
        )

    def not_delivering(self) -> list[dict[str, Any]]:
        """Destinations whose rows wait, or whose requests are refused, and why: those with the most rows first."""
        found = [(why, facts) for facts in self.pipeline.facts() if (why := health.cause(facts)) is not None]
        found.sort(key=lambda pair: -pair[1].buffered_rows)
        return [
            {
                "data_source": facts.data_source,
                "cause": why,
                "rows": facts.buffered_rows,
                "oldest_age_s": _rounded(facts.oldest_age_s),
                "delivered_ago_s": _rounded(facts.delivered_ago_s),
                "sentence": health.sentence(facts),
            }
            for why, facts in found[:NOT_DELIVERING_MAX]
        ]

    def snapshot(self) -> Snapshot:
        """Everything for a scrape."""
        pipeline, capacity = self.pipeline, self.pipeline.limits.capacity
        held, meters = pipeline.surroundings.buffer.occupancy, pipeline.surroundings.meters
        rows, oldest_age_s, now = pipeline.buffered_rows(), pipeline.oldest_age_s(), self.now()
        # What is held waits for a person, and no other proxy would deliver it sooner.
        moving = [facts for facts in pipeline.facts() if facts.state is not State.HELD]
        return Snapshot(
            version=__version__,
            instance=pipeline.surroundings.upstream.instance,
            meters=meters,
            ledger=pipeline.ledger(),
            imbalance=pipeline.check_ledger(),
            letters_rows=pipeline.surroundings.letters.held_rows(),
            letters_bytes=pipeline.surroundings.letters.held_bytes,
            letters_max_bytes=pipeline.surroundings.letters.max_bytes,
            destinations=pipeline.facts(),
            buffer_rows=rows,
            buffer_bytes=held.size_bytes,
            capacity_rows=capacity.max_rows,
            capacity_bytes=capacity.max_bytes,
            utilisation=self.utilisation(),
            utilization_percent=utilization_percent(held.row_count, held.size_bytes, capacity),
            oldest_age_s=oldest_age_s,
            seconds_to_drain=pipeline.seconds_to_drain(),
            drain_time_s=drain_time_s(
                sum(facts.buffered_rows for facts in moving),
                max((facts.oldest_age_s or 0.0 for facts in moving), default=None),
                flush_interval_s=pipeline.surroundings.limits.flush_interval_s,
                delivered_per_s=meters.recent_delivered.per_second(now),
            ),
            receiving_bytes=self.receiver.reserved_bytes,
            waiting_requests=pipeline.waiter_count,
            ready=self.availability.ready,
            uptime_s=now - self.started_at,
        )

    def status(self) -> dict[str, Any]:
        """The body of ``/status``."""
        s = self.snapshot()
        meters, now = s.meters, self.now()
        return {
            "sentence": self._sentence(s),
            "phase": self.availability.phase,
            "ready": s.ready,
            "instance": s.instance,
            "version": s.version,
            "uptime_s": round(s.uptime_s, 1),
            "upstream": self.origin,
            "drain": {
                "draining": self.availability.draining_since is not None,
                "refusing": self.availability.refusing,
                # Those of a first contact too: they may be promised yet.
                "rows_left": self.pipeline.surroundings.buffer.occupancy.row_count,
                "seconds_to_drain": _rounded(s.seconds_to_drain),
            },
            "drain_time_s": s.drain_time_s,
            "cpu_percent": meters.cpu.percent(),
            "buffer": {
                "rows": s.buffer_rows,
                "bytes": s.buffer_bytes,
                "held_bytes": sum(facts.held_bytes for facts in s.destinations),
                "capacity_rows": s.capacity_rows,
                "capacity_bytes": s.capacity_bytes,
                "utilisation": round(s.utilisation, 4),
                "utilization_percent": s.utilization_percent,
                "oldest_age_s": _rounded(s.oldest_age_s),
            },
            "ledger": {**s.ledger.as_dict(s.buffer_rows, s.letters_rows), "balances": s.imbalance == 0},
            "dead_letters": {
                "rows": s.letters_rows,
                "bytes": s.letters_bytes,
                "capacity_bytes": s.letters_max_bytes,
                "rows_by_reason_so_far": dict(meters.dead_letters),
            },
            "requests": {
                "accepted": meters.requests_accepted,
                "refused": dict(meters.refused),
                "waiting": s.waiting_requests,
                "waits": dict(meters.waits),
            },
            "upstream_requests": {
                "settled_batches": meters.sent_batches,
                "replies": dict(meters.upstream_replies),
                "raw_bytes": meters.sent_raw_bytes,
                "wire_bytes": meters.sent_wire_bytes,
                "delivered_rows_per_s": round(meters.recent_delivered.per_second(now), 1),
                "replies_1m": meters.recent_replies.total(now),
                "throttled_1m": meters.recent_throttled.total(now),
                "delivered_rows_1m": meters.recent_delivered.total(now),
            },
            "tokens": self._tokens(),
            "self_metrics": None if self.self_metrics is None else self.self_metrics(),
            "destinations": [
                {**_plain(asdict(facts)), "cause": health.cause(facts), "sentence": health.sentence(facts)}
                for facts in sorted(s.destinations, key=lambda f: (-f.buffered_rows, f.data_source))
                if not health.was_never_taken(facts)
            ],
        }

    def _tokens(self) -> dict[str, Any]:
        own, clients = self.pipeline.surroundings.own_token, self.gate.clients
        found: dict[str, Any] = {
            "mode": "own" if self.gate.own_token_mode else "clients",
            "clients": None if clients is None else {"entries": len(clients), "hash": clients.hash},
            "files": [{"variable": file.variable, "path": file.path, "problem": file.problem} for file in self.files],
        }
        if own is not None:
            found["tinybird"] = None if own.current is None else _secret(own.current)
            found["candidate"] = (
                None if own.candidate is None else {**_secret(own.candidate), "rejected": own.rejected_at is not None}
            )
        return found


def _secret(secret: Secret) -> dict[str, Any]:
    return {
        "hash": secret.hash,
        "since": _when(secret.since),
        "accepted_at": _when(secret.accepted_at),
        "denied_at": _when(secret.denied_at),
    }


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in values.items()}
