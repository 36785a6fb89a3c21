"""Runs a scenario in steps of a second: clients, proxies, Tinybird, the HPA, the operator and the Deployment. Pure.

A step: proxies deliver, clients send, the HPA looks if its sync is due, the operator decides, the Deployment acts.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tests.simulation.curves import sampled
from tests.simulation.hpa import Autoscaler, PodsMetric, PodState
from tests.simulation.outcome import Outcome
from tests.simulation.pods import Deployment, Pod
from tests.simulation.proxy import Proxy
from tests.simulation.rules import Freeze, PodView, Shrink, ShrinkView, decide_shrink
from tests.simulation.scenarios import Scenario, Target
from tests.simulation.tinybird import Tinybird

# How unevenly clients' connections lie, as a share of an even one.
_UNEVEN: Final = 0.1
DELETION_COST: Final = -1000
# Before the first second, so that the windows of the metrics are full then.
WARM_UP_S: Final = 60

Decide = Callable[[ShrinkView], Shrink]


@dataclass(slots=True)
class _Weights:
    """How clients' connections lie on the pods; a connection moves when it ends.

    With ``connection_age_s`` 0 every second's load is spread anew.
    """

    rng: random.Random
    connection_age_s: float
    by_pod: dict[str, float]
    leaning: dict[str, float]

    def spread(self, names: Sequence[str]) -> dict[str, float]:
        for name in names:
            if name not in self.leaning:
                self.leaning[name] = 1 + self.rng.uniform(-_UNEVEN, _UNEVEN)
        total = sum(self.leaning[name] for name in names)
        even = {name: self.leaning[name] / total for name in names}
        if not self.connection_age_s or not self.by_pod:
            self.by_pod = even
            return even
        moved = 1 / self.connection_age_s
        stayed = {name: self.by_pod.get(name, 0.0) * (1 - moved) for name in names}
        free = 1 - sum(stayed.values())
        self.by_pod = {name: stayed[name] + free * even[name] for name in names}
        return self.by_pod


class Simulation:
    """One run. ``decide`` is the operator's decision; None is a Deployment that the HPA scales without draining."""

    def __init__(self, scenario: Scenario, seed: int, decide: Decide | None = decide_shrink) -> None:
        self._scenario = scenario
        self._decide = decide
        dice = random.Random(seed)
        self._load, self._upstream, self._chance, self._made, self._clients = (
            random.Random(dice.getrandbits(64)) for _ in range(5)
        )
        share = max(1, 90 // scenario.most)
        self._deployment = Deployment(replace(scenario.proxy, upstream_rate=float(share)), self._made)
        self._tinybird = Tinybird(scenario.upstream, self._upstream)
        self._hpa = Autoscaler(scenario.least, scenario.most, scenario.behavior)
        self._weights = _Weights(self._clients, scenario.connection_age_s, {}, {})
        self._freeze = Freeze(scenario.freeze_share)
        self._wanted = self._replicas = scenario.least
        self._gave_up_at_s: float | None = None
        self._delivered_at_s = -math.inf
        self.outcome = Outcome()

    def run(self) -> Outcome:
        self._deployment.scale(-2.0 * WARM_UP_S, self._wanted)
        seconds = range(-WARM_UP_S, self._scenario.duration_s)
        loads = sampled(self._scenario.curve, seconds, self._load)
        # The HPA's syncs have no phase that load knows of.
        phase_s = self._chance.randrange(int(self._scenario.sync_period_s))
        for second, rows in zip(seconds, loads, strict=True):
            now_s = float(second)
            delivered, refused = self._deliver(now_s), self._send(now_s, rows)
            if second < 0:
                self.outcome.held_at_start = sum(pod.proxy.rows for pod in self._pods)
                continue
            self.outcome.offered.append(rows)
            self.outcome.refused.append(refused)
            self.outcome.delivered.append(delivered)
            self._unready(now_s)
            if (second - phase_s) % self._scenario.sync_period_s == 0:
                self._sync(now_s)
            self._operate(now_s)
            self._note(now_s)
        return self.outcome

    @property
    def _pods(self) -> list[Pod]:
        return self._deployment.pods

    def _deliver(self, now_s: float) -> int:
        delivered = 0
        pods = [pod for pod in self._pods if pod.answers(now_s)]
        for pod in self._chance.sample(pods, len(pods)):
            delivered += pod.proxy.deliver(now_s, self._tinybird, self._chance)
        if delivered:
            self._delivered_at_s = now_s
        return delivered

    def _send(self, now_s: float, rows: int) -> int:
        serving = {pod.name: pod for pod in self._pods if pod.serves(now_s)}
        shares = self._weights.spread(list(serving)) if serving else {}
        refused, left, upto = 0 if serving else rows, rows, 0.0
        for name, share in shares.items():
            upto += share
            part = left - round(rows * (1 - min(1.0, upto)))
            left -= part
            refused += serving[name].proxy.take(now_s, part).refused
        for pod in self._pods:
            if pod.answers(now_s) and pod.name not in shares:
                pod.proxy.take(now_s, 0)
        return refused

    def _unready(self, now_s: float) -> None:
        for pod in self._pods:
            if self._scenario.probe_failures and self._chance.random() < self._scenario.probe_failures:
                pod.unready_until_s = now_s + self._chance.randint(2, 6)

    def _sync(self, now_s: float) -> None:
        pods = [pod for pod in self._pods if not pod.labelled]
        states = [PodState(pod.name, pending=pod.pending(now_s)) for pod in pods]
        metrics = [
            PodsMetric(
                target.value,
                1000 * value,
                {pod.name: 1000 * measured(pod.proxy, target, now_s) for pod in pods if pod.answers(now_s)},
            )
            for target, value in self._scenario.targets.items()
        ]
        frozen = self._freeze.on and self._scenario.freeze
        self._hpa.behavior = self._scenario.behavior.frozen() if frozen else self._scenario.behavior
        self._wanted = self._hpa.sync(now_s, self._wanted, states, metrics)

    def _operate(self, now_s: float) -> None:
        proxies = [pod.proxy for pod in self._pods]
        if now_s % self._scenario.look_s == 0:
            throttled = sum(one.throttled_1m for one in proxies)
            self._freeze.look(now_s, sum(one.replies_1m for one in proxies), throttled)
        if self._decide is None:
            self._replicas = self._wanted
        else:
            self._shrink(now_s, self._decide)
        for pod in self._deployment.scale(now_s, self._replicas):
            self.outcome.rows_at_risk += pod.proxy.rows

    def _shrink(self, now_s: float, decide: Decide) -> None:
        views = [
            PodView(
                name=pod.name,
                ready=pod.ready(now_s),
                running=not pod.pending(now_s),
                rows=pod.proxy.rows if pod.answers(now_s) else None,
                labelled=pod.labelled,
                draining_since_s=pod.proxy.draining_since_s,
                refusing=pod.proxy.refuses(now_s),
            )
            for pod in self._pods
        ]
        gave_up_at_s = self._gave_up_at_s
        view = ShrinkView(
            now_s=now_s,
            wanted=self._wanted,
            replicas=self._replicas,
            pods=views,
            gave_up_at_s=gave_up_at_s,
            delivers_again=gave_up_at_s is not None and self._delivered_at_s > gave_up_at_s,
        )
        decision = decide(view)
        if decision.gave_up_at_s not in (None, gave_up_at_s):
            self.outcome.gave_up += 1
        self._gave_up_at_s, self._replicas = decision.gave_up_at_s, decision.replicas
        for pod in self._pods:
            pod.labelled = pod.name in decision.labelled
            pod.deletion_cost = DELETION_COST if pod.labelled else 0
            if pod.labelled:
                pod.proxy.drain(now_s)
            else:
                pod.proxy.stop_draining()

    def _note(self, now_s: float) -> None:
        outcome, pods = self.outcome, self._pods
        proxies = [pod.proxy for pod in pods]
        serving = [pod.proxy for pod in pods if not pod.labelled] or proxies
        outcome.wanted.append(self._wanted)
        outcome.pods.append(len(pods))
        outcome.ready.append(sum(pod.serves(now_s) and not pod.labelled for pod in pods))
        outcome.draining.append(sum(pod.labelled for pod in pods))
        outcome.buffered.append(sum(one.rows for one in proxies))
        outcome.utilization_percent.append(max(one.buffer_utilization_percent() for one in proxies))
        outcome.cpu_percent.append(round(sum(one.cpu_percent() for one in serving) / len(serving)))
        outcome.drain_time_s.append(round(sum(one.drain_time_s(now_s) for one in serving) / len(serving)))
        outcome.frozen.append(self._freeze.on)
        outcome.requests, outcome.throttled = self._tinybird.requests, self._tinybird.refused


def measured(proxy: Proxy, target: Target, now_s: float) -> int:
    """The metric behind a target, as the proxy's /metrics tells it."""
    if target is Target.BUFFER_UTILIZATION_PERCENT:
        return proxy.buffer_utilization_percent()
    if target is Target.BUFFER_ROWS_PER_POD:
        return proxy.rows
    if target is Target.DRAIN_TIME_SECONDS:
        return proxy.drain_time_s(now_s)
    return proxy.cpu_percent()


def simulate(scenario: Scenario, seed: int, decide: Decide | None = decide_shrink) -> Outcome:
    """Run ``scenario`` with the dice of ``seed``."""
    return Simulation(scenario, seed, decide).run()
