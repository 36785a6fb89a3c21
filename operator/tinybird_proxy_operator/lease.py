"""Who may lead, and until when: decisions over a ``coordination.k8s.io`` Lease. Pure; ``election`` carries them out.

The clock's seconds that are called ``now`` go on while the process is frozen and while its machine sleeps. The times
that stand in the Lease are for people; nobody decides by them, so clocks may differ as they like.

- A leader may write until ``renew_deadline_s`` after it *sent* its last successful claim.
- A candidate claims the Lease when it has *seen* it unchanged, or absent, for ``lease_duration_s``, or released.
- The API server carries out a claim only if nothing has changed since the claimant read the Lease.

What a candidate has seen was written after it was sent, so a leader stops at least ``lease_duration_s`` less
``renew_deadline_s`` before another begins. That rest is for writes on their way and for clocks that run unevenly.
An absent Lease counts as held, for somebody may have deleted it under a leader; and so does one whose holder was
emptied by hand. Only the mark of a release, which a leader leaves after its last write, lets another begin at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tinybird_proxy_operator.errors import OperatorError

Object = dict[str, Any]
# The retry period is shortened by up to this part of it.
JITTER: Final = 0.2
# As client-go leaves it behind; zero is refused.
_RELEASED_DURATION_S: Final = 1


class NotLeader(OperatorError):
    """This process must not write: it does not hold the Lease, or somebody else may have taken it by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a Lease is good for, when its leader gives up, and how often both sides try; client-go's defaults."""

    lease_duration_s: int = 15
    renew_deadline_s: int = 10
    retry_period_s: int = 2

    @property
    def attempt_timeout_s(self) -> float:
        """How long a request may take: a renewal that hangs leaves time for another."""
        return self.renew_deadline_s / 2

    def problem(self) -> str | None:
        """Why these times do not go together, if so."""
        if self.lease_duration_s <= self.renew_deadline_s:
            return "LEASE_DURATION_SECONDS must be greater than LEASE_RENEW_DEADLINE_SECONDS"
        if self.renew_deadline_s < 2 * self.retry_period_s:
            return "LEASE_RENEW_DEADLINE_SECONDS must be at least twice LEASE_RETRY_PERIOD_SECONDS"
        return None


@dataclass(frozen=True, slots=True)
class Observation:
    """The Lease as it was when an answer showed it, and since when (``now``) it has been seen like that."""

    lease: Object | None
    since: float

    @property
    def holder(self) -> str:
        """Who holds the Lease; empty: nobody."""
        return str(_spec(self.lease).get("holderIdentity") or "")

    @property
    def released(self) -> bool:
        """Whether its last leader has done its last write."""
        return not self.holder and _spec(self.lease).get("leaseDurationSeconds") == _RELEASED_DURATION_S


def observe(before: Observation | None, lease: Object | None, now: float) -> Observation:
    """What was seen. ``now`` is after the answer came.

    Only another Lease, or a change of its spec, is a change: an annotation must not keep a dead leader in office.
    """
    if before is not None and _seen(before.lease) == _seen(lease):
        return Observation(lease, before.since)
    return Observation(lease, now)


def free_at(seen: Observation, timing: Timing, *, claim: Object | None) -> float:
    """From when on the Lease may be claimed, in the clock's seconds.

    ``claim`` is the last one of this process, which may have been carried out although no answer came. The longer of
    two durations counts: the leader may be of a release with another one.
    """
    if seen.released or (claim is not None and seen.lease is not None and _spec(seen.lease) == _spec(claim)):
        return seen.since
    stated_s = _spec(seen.lease).get("leaseDurationSeconds") or 0
    return seen.since + max(timing.lease_duration_s, stated_s)


def claimed(seen: Observation, *, namespace: str, name: str, identity: str, timing: Timing, at: datetime) -> Object:
    """The Lease to write, to take it or to renew it. All else in it stays as somebody made it."""
    spec, time = _spec(seen.lease), _micro_time(at)
    is_renewal = seen.holder == identity
    changes_hands = seen.lease is not None and not is_renewal
    return _with_spec(
        seen.lease or {"metadata": {"name": name, "namespace": namespace}},
        {
            "holderIdentity": identity,
            "leaseDurationSeconds": timing.lease_duration_s,
            "acquireTime": (spec.get("acquireTime") or time) if is_renewal else time,
            "renewTime": time,
            "leaseTransitions": (spec.get("leaseTransitions") or 0) + int(changes_hands),
        },
    )


def released(lease: Object, *, at: datetime) -> Object:
    """The Lease to write after the last write."""
    time = _micro_time(at)
    return _with_spec(
        lease,
        {
            "holderIdentity": "",
            "leaseDurationSeconds": _RELEASED_DURATION_S,
            "acquireTime": time,
            "renewTime": time,
        },
    )


def later(at: datetime, before: datetime | None) -> datetime:
    """``at``, or just after ``before`` if a clock stands still or goes back: each renewal must change the Lease."""
    return at if before is None or at > before else before + timedelta(microseconds=1)


def _with_spec(lease: Mapping[str, Any], changes: Mapping[str, Any]) -> Object:
    spec = {**_spec(lease), **changes}
    return {**lease, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}


def _seen(lease: Object | None) -> tuple[Any, Mapping[str, Any]] | None:
    return None if lease is None else (lease["metadata"].get("uid"), _spec(lease))


def _spec(lease: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (lease or {}).get("spec") or {}


def _micro_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
