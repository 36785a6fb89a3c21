"""What keeps a changed template from going out now: rows that would go with the old pods, and others' turns. Pure.

A template that the operator itself changes, with the default image above all, is an upgrade. It goes out to so many
resources at a time, and to no other while one that has it is degraded. What part a resource has in it is decided anew
at each look, from what its Deployment and its pods say; so also by the leader after this one.

    its check runs                                            a turn
    the upgrade let its template out, which is not settled    a turn
    the same, settled for less than SOAK_S                    a turn
    the same, and a pod fails, or the rollout did             a turn, and nobody else's begins
    anything else                                             none

A template of an earlier upgrade, or one that its author has changed since, is no part of it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec

from tinybird_proxy_operator.names import MADE_FOR_ANNOTATION, ROLL_ANNOTATION, UPGRADED_ANNOTATION, some
from tinybird_proxy_operator.observed import PodFacts, Workload

# Pods that start may fail a moment later, of the very thing that is new in them.
SOAK_S: Final = 30.0
# How the sentence about a rollout that stands begins.
HALF_WAY: Final = "The rollout is paused half-way"
_AT_ONCE: Final = f"the annotation {ROLL_ANNOTATION}=now"
_MEANWHILE: Final = " What is changed in this resource goes out meanwhile, with the image that it has."


class Stage(StrEnum):
    """How far an upgrade has come with a resource that has a part in it."""

    TRYING = "Trying"
    ROLLING = "Rolling"
    SETTLED = "Settled"
    DEGRADED = "Degraded"


@dataclass(frozen=True, slots=True)
class _Part:
    stage: Stage
    settled_at: float | None = None

    def is_over(self, now: float) -> bool:
        return self.settled_at is not None and now - self.settled_at >= SOAK_S


def stage(workload: Workload | None, upgrade: str, *, failing: bool, trying: bool) -> Stage | None:
    """The part of a resource; None: it has none. ``failing``: a pod of it does; ``trying``: it is being checked."""
    if workload is None or workload.upgraded_to != upgrade:
        return Stage.TRYING if trying else None
    if failing or workload.failed is not None:
        return Stage.DEGRADED
    return Stage.SETTLED if workload.settled else Stage.ROLLING


@dataclass(slots=True)
class Upgrades:
    """Who has a turn. ``upgrade``: to what, which is the default image; ``now`` is a clock in seconds everywhere.

    ``known``: whether what an earlier leader began is in it.
    """

    upgrade: str
    max_concurrent: int
    known: bool = False
    _parts: dict[str, _Part] = field(default_factory=dict)

    def see(self, name: str, workload: Workload | None, now: float, *, failing: bool, trying: bool) -> None:
        """A look at the resource ``name`` has ended."""
        before, found = self._parts.pop(name, None), stage(workload, self.upgrade, failing=failing, trying=trying)
        if found is None or (found is Stage.TRYING and before is None):  # what its author changed may be what is tried
            return
        since = None if before is None else before.settled_at
        settled_at = None if found is not Stage.SETTLED else now if since is None else since
        self._parts[name] = _Part(found, settled_at)

    def take_over(self, workloads: Mapping[str, Workload], now: float) -> None:
        """These are all resources, as an earlier leader left them. What was seen since counts more."""
        for name, workload in workloads.items():
            if name not in self._parts and not self.known:
                self.see(name, workload, now, failing=False, trying=False)
        self.known = True

    def forget(self, name: str) -> None:
        """Nobody waits for it."""
        self._parts.pop(name, None)

    def claim(self, name: str, now: float) -> str | None:
        """Give ``name`` a turn; or why it must wait."""
        why = self.why_not(name, now)
        # One that has settled begins anew: something else goes out to it.
        if why is None and (not self._has_turn(name, now) or self._parts[name].stage is Stage.SETTLED):
            self._parts[name] = _Part(Stage.TRYING)
        return why

    def why_not(self, name: str, now: float) -> str | None:
        """Why ``name`` must wait, as a sentence; None: it may have a turn."""
        others = {each: self._parts[each] for each in self._parts if each != name and self._has_turn(each, now)}
        if degraded := [each for each, part in others.items() if part.stage is Stage.DEGRADED]:
            return (
                f"The upgrade to {self.upgrade} has stopped, because {some(sorted(degraded))} got it and is degraded."
                f" It goes on when that is put right, or here at once with {_AT_ONCE}.{_MEANWHILE}"
            )
        if not self._has_turn(name, now) and len(others) >= self.max_concurrent:
            return (
                f"The upgrade to {self.upgrade} waits for {some(sorted(others))}: {self.max_concurrent} at a time"
                f" (upgrade.maxConcurrent). It comes by itself, or at once with {_AT_ONCE}.{_MEANWHILE}"
            )
        return None

    def _has_turn(self, name: str, now: float) -> bool:
        part = self._parts.get(name)
        return part is not None and not part.is_over(now)


def rows_at_risk(pods: Sequence[PodFacts], *, half_way: bool = False) -> str | None:
    """Why no pod may be replaced, as a sentence. ``half_way``: some have been, by the rollout that goes on."""
    what = HALF_WAY if half_way else "The changed template is held back"
    goes = "goes on" if half_way else "goes out"
    stuck = sum(pod.report.stuck_rows for pod in pods if pod.report is not None)
    if stuck:
        where = " in pods of the template before" if half_way else ""
        return (
            f"{what}: {stuck:,} rows wait{where} and are not delivered, and a new pod would not have them. It {goes}"
            f" when they are delivered, or with {_AT_ONCE}."
        )
    silent = [pod.name for pod in pods if pod.ready and pod.report is None]
    if silent:
        return (
            f"{what}: of {some(sorted(silent))} it is not known whether rows wait there, for its admin port gives the"
            " operator no usable /status. Look for a NetworkPolicy or a mesh on the way. It"
            f" {goes} when that is put right, or with {_AT_ONCE}."
        )
    return None


def pauses(workload: Workload, pods: Sequence[PodFacts], *, at_once: bool) -> str | None:
    """Why a rollout that goes on is to stand, as a sentence; None: none goes on, or it may.

    A pod of the newest template is not taken away by it, and one that ends already is not saved by a pause. What the
    Deployment's controller has not seen yet may be a scaling: until then a rollout that stands goes on to stand, and no
    other is stopped.
    """
    if at_once or workload.replicas == workload.updated or not (workload.generation_seen or workload.paused):
        return None
    return rows_at_risk([pod for pod in pods if not pod.newest and not pod.terminating], half_way=True)


# What stands on a Deployment.


def author_mark(body: Mapping[str, Any]) -> str:
    """What its author asks of a resource, as given by the API server: the generation, and a digest without replicas."""
    spec = {key: value for key, value in (body.get("spec") or {}).items() if key != "replicas"}
    digest = hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()[:16]
    return f"{body['metadata'].get('generation', 0)}.{digest}"


def is_for_another(live: Mapping[str, Any], mark: str) -> bool:
    """Whether the author asks something else than what the Deployment was made for.

    A new default in the CRD changes the digest alone, and a scaling the generation alone.
    """
    made_for: str | None = (live["metadata"].get("annotations") or {}).get(MADE_FOR_ANNOTATION)
    return made_for is not None and not set(made_for.split(".")) & set(mark.split("."))


def with_marks(deployment: Mapping[str, Any], *, made_for: str, upgraded_to: str | None) -> dict[str, Any]:
    """The Deployment, saying for what it was made, and by which upgrade."""
    metadata = deployment["metadata"]
    annotations = {**metadata.get("annotations", {}), MADE_FOR_ANNOTATION: made_for}
    if upgraded_to is not None:
        annotations[UPGRADED_ANNOTATION] = upgraded_to
    return {**deployment, "metadata": {**metadata, "annotations": annotations}}
