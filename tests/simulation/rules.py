"""The operator's rules, as a model of their own: what to drain and when to shrink, and when to freeze scale-up. Pure.

``decide_shrink`` stands for the operator's own decision and has its meaning; the simulation knows no more than these
types, so that either can be put behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DEADLINE_S: Final = 300.0
AGAIN_AFTER_S: Final = 300.0
# Share of 429s among the answers of a minute that freezes scale-up, and how long it must be below the other again.
# With a fifth the freeze comes after the HPA: see test_a_freeze_at_a_fifth_of_429s_comes_too_late.
LEAST_THROTTLED: Final = 3
THROTTLED_SHARE: Final = 0.05
CALM_SHARE: Final = 0.05
CALM_FOR_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """What the operator knows of a pod.

    ``running``: there is a process in it. ``rows``: None while it does not answer. ``labelled``: it is to go, and
    carries the deletion cost. ``refusing``: it drains, and its DRAIN_DELAY is over.
    """

    name: str
    ready: bool
    running: bool
    rows: int | None
    labelled: bool
    draining_since_s: float | None
    refusing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkView:
    """``wanted`` is the resource's ``spec.replicas``, ``replicas`` that of the Deployment.

    ``delivers_again``: rows were delivered since the deadline of a drain was exceeded, at ``gave_up_at_s``.
    """

    now_s: float
    wanted: int
    replicas: int
    pods: Sequence[PodView]
    gave_up_at_s: float | None = None
    delivers_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """What should be: the Deployment's replicas, who carries the label, and when a drain was given up, if one was."""

    replicas: int
    labelled: frozenset[str]
    gave_up_at_s: float | None = None


def decide_shrink(view: ShrinkView) -> Shrink:
    """Drain before shrinking, with ``onDeadline: Keep``: no pod that holds a row is let go."""
    surplus = len(view.pods) - view.wanted
    if view.wanted >= view.replicas or surplus <= 0:
        return Shrink(replicas=view.wanted, labelled=frozenset())
    if view.gave_up_at_s is not None and not (view.delivers_again or view.now_s - view.gave_up_at_s >= AGAIN_AFTER_S):
        return Shrink(replicas=view.replicas, labelled=frozenset(), gave_up_at_s=view.gave_up_at_s)
    victims = sorted(view.pods, key=_rank)[:surplus]
    names = frozenset(pod.name for pod in victims)
    others_ready = all(pod.ready or not pod.running for pod in view.pods if pod.name not in names)
    if others_ready and all(pod.labelled and _may_leave(pod) for pod in victims):
        return Shrink(replicas=view.wanted, labelled=names)
    if any(_overdue(pod, view.now_s) for pod in victims):
        return Shrink(replicas=view.replicas, labelled=frozenset(), gave_up_at_s=view.now_s)
    return Shrink(replicas=view.replicas, labelled=names)


def _rank(pod: PodView) -> tuple[bool, bool, bool, int, str]:
    """Who holds nothing for sure goes first, then who is not ready, who is labelled already, who holds least."""
    return pod.running, pod.ready, not pod.labelled, pod.rows or 0, pod.name


def _may_leave(pod: PodView) -> bool:
    return not pod.ready and (pod.rows == 0 and pod.refusing if pod.running else True)


def _overdue(pod: PodView, now_s: float) -> bool:
    return pod.draining_since_s is not None and now_s - pod.draining_since_s >= DEADLINE_S


@dataclass(slots=True)
class Freeze:
    """``UpstreamThrottled``: on at once, off after two calm minutes."""

    share: float = THROTTLED_SHARE
    on: bool = False
    _calm_since_s: float | None = None

    def look(self, now_s: float, replies_1m: int, throttled_1m: int) -> bool:
        """Judge the answers of the last minute of all pods; return whether scale-up is frozen."""
        share = throttled_1m / replies_1m if replies_1m else 0.0
        if share > self.share and throttled_1m >= LEAST_THROTTLED:
            self.on, self._calm_since_s = True, None
        elif share >= CALM_SHARE:
            self._calm_since_s = None
        elif self.on:
            if self._calm_since_s is None:
                self._calm_since_s = now_s
            self.on = now_s - self._calm_since_s < CALM_FOR_S
        return self.on
