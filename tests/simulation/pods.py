"""Pods as Kubernetes sees them, and the Deployment's controller that makes and removes them. Pure."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tests.simulation.proxy import Proxy, ProxyModel

from tinybird_proxy_operator.scaling.shrink import DELETION_COST

# From the pod's creation to its process: scheduled, image there.
STARTING_S: Final = 2
# From creation to ready; the process answers metrics a second earlier.
READY_AFTER_S: Final = (5, 10)
# The kubelet's probe every 2 s with threshold 1, and a second until clients' nodes know.
UNREADY_AFTER_S: Final = 2
OUT_OF_SERVICE_AFTER_S: Final = 3


@dataclass(slots=True, eq=False)
class Pod:
    """One pod. ``unready_until_s`` is a probe that fails although nothing is wrong."""

    name: str
    created_s: float
    ready_s: float
    proxy: Proxy
    labelled_at_s: float | None = None  # when it was chosen to go
    deletion_cost: int = 0
    unready_until_s: float = -math.inf

    @property
    def labelled(self) -> bool:
        """Whether it is to go."""
        return self.labelled_at_s is not None

    def label(self, now_s: float) -> None:
        """It is to go: it carries all that the operator gives a victim."""
        self.labelled_at_s, self.deletion_cost = now_s, DELETION_COST

    def unlabel(self) -> None:
        """It may stay."""
        self.labelled_at_s, self.deletion_cost = None, 0

    def pending(self, now_s: float) -> bool:
        return now_s < self.created_s + STARTING_S

    def answers(self, now_s: float) -> bool:
        """Whether the process tells its metrics and status."""
        return now_s >= self.ready_s - 1

    def ready(self, now_s: float) -> bool:
        """The condition in the API."""
        since_s = self.proxy.draining_since_s
        drained = since_s is not None and now_s >= since_s + UNREADY_AFTER_S
        return now_s >= self.ready_s and now_s >= self.unready_until_s and not drained

    def serves(self, now_s: float) -> bool:
        """Whether clients are sent to it."""
        since_s = self.proxy.draining_since_s
        gone = since_s is not None and now_s >= since_s + OUT_OF_SERVICE_AFTER_S
        return now_s > self.ready_s and now_s >= self.unready_until_s and not gone


def removal_order(pods: Iterable[Pod], now_s: float) -> list[Pod]:
    """Pods in the order in which a ReplicaSet of Kubernetes 1.36 removes them.

    Pending first, then not ready, then the lower deletion cost, then who has been ready or there for the shorter time.
    All are on one node here, so that their rank is the same; the logarithmic buckets of ages are left out.
    """
    return sorted(
        pods,
        key=lambda pod: (not pod.pending(now_s), pod.ready(now_s), pod.deletion_cost, -pod.ready_s, -pod.created_s),
    )


class Deployment:
    """Makes and removes pods until there are ``replicas``: at once, it takes no longer than a step."""

    def __init__(self, model: ProxyModel, rng: random.Random) -> None:
        self._model = model
        self._rng = rng
        self._made = 0
        self.pods: list[Pod] = []

    def scale(self, now_s: float, replicas: int) -> list[Pod]:
        """Return the pods that were removed."""
        while len(self.pods) < replicas:
            self._made += 1
            ready_s = now_s + self._rng.randint(*READY_AFTER_S)
            self.pods.append(Pod(f"pod-{self._made}", now_s, ready_s, Proxy(self._model)))
        surplus = len(self.pods) - replicas
        removed = removal_order(self.pods, now_s)[:surplus] if surplus > 0 else []
        self.pods = [pod for pod in self.pods if pod not in removed]
        return removed
