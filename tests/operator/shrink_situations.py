"""Situations in which pods are to go, for tests of what is decided then."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tinybird_proxy_operator.observed import PodFacts, ProxyReport
from tinybird_proxy_operator.scaling.shrink import DELETION_COST, Situation
from tinybird_proxy_operator.spec import Drain

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def said(**changes: Any) -> ProxyReport:
    well: dict[str, Any] = {"rows": 0, "size_bytes": 0, "utilisation": 0.0, "oldest_age_s": None, "stuck_rows": 0}
    token = {"token_hash": None, "token_accepted": False, "token_denied": False, "candidate_rejected": False}
    return ProxyReport(**{**well, "stuck": [], **token, **changes})


def pod(name: str, rows: int | None = 0, **changes: Any) -> PodFacts:
    """A ready pod that serves; ``rows`` None: it does not answer."""
    facts: dict[str, Any] = {"ip": "::1", "ready": True, "waiting": None, "out_of_memory": False}
    return PodFacts(**{"name": name, **facts, "report": None if rows is None else said(rows=rows), **changes})


def victim(name: str, rows: int | None = 0, **changes: Any) -> PodFacts:
    """A pod that drains, as Kubernetes has seen, since ``since_s``."""
    report = None if rows is None else said(rows=rows, draining=True, refusing=True)
    since_s = changes.pop("since_s", 10.0)
    marks = {"labelled": True, "deletion_cost": DELETION_COST, "draining_since": NOW - timedelta(seconds=since_s)}
    return pod(name, **{"ready": False, "report": report, **marks, **changes})


def absent(name: str, **changes: Any) -> PodFacts:
    """A pod in which no process runs."""
    return pod(name, None, ready=False, running=False, **changes)


def situation(*pods: PodFacts, wanted: int, **changes: Any) -> Situation:
    drain = changes.pop("drain", {})
    live = len([each for each in pods if not each.terminating])
    since = {each.name: each.draining_since for each in pods if each.draining_since is not None}
    facts: dict[str, Any] = {"live": live, "generation_seen": True, "rolling": False, "now": NOW}
    facts["labelled_for_s"] = {name: (NOW - at).total_seconds() for name, at in since.items()}
    return Situation(**{"wanted": wanted, "pods": pods, "drain": Drain(**drain), **facts, **changes})


A, B, C = pod("a", 5), pod("b", 3), pod("c", 9)
OVERDUE = 300.0
