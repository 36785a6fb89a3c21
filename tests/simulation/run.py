"""Runs a scenario in steps of a second: clients, proxies, Tinybird, the HPA, the operator and the Deployment. Pure.

A step: proxies deliver, clients send, the HPA looks if its sync is due, the operator decides, the Deployment acts.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from tests.simulation.curves import sampled
from tests.simulation.decided import labelled_for_s, seen, utc
from tests.simulation.hpa import Autoscaler, PodsMetric, PodState
from tests.simulation.outcome import Outcome
from tests.simulation.pods import Deployment, Pod
from tests.simulation.proxy import Proxy
from tests.simulation.scenarios import Scenario, Target
from tests.simulation.tinybird import Tinybird

from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.scaling import shrink, throttle
from tinybird_proxy_operator.scaling.shrink import Plan, Situation, Stage, deliver_again, standing_still
from tinybird_proxy_operator.scaling.throttle import Throttle
from tinybird_proxy_operator.spec import Drain

# How unevenly clients' connections lie, as a share of an even one.
_UNEVEN: Final = 0.1
# Before the first second, so that the windows of the metrics are full then.
WARM_UP_S: Final = 60

Decide = Callable[[Situation], Plan]
Look = Callable[[Throttle, Sequence[PodFacts], float], Throttle]


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
    """One run. ``decide`` and ``look`` are the operator's decisions: who goes, and whether scale-up is frozen.

    ``decide`` None is a Deployment that the HPA scales without draining.
    """

    def __init__(
        self, scenario: Scenario, seed: int, *, decide: Decide | None = shrink.decide, look: Look = throttle.look
    ) -> None:
        self._scenario = scenario
        self._decide = decide
        self._look = look
        dice = random.Random(seed)
        self._load, self._upstream, self._chance, self._made, self._clients = (
            random.Random(dice.getrandbits(64)) for _ in range(5)
        )
        share = max(1, 90 // scenario.most)
        self._deployment = Deployment(replace(scenario.proxy, upstream_rate=float(share)), self._made)
        self._tinybird = Tinybird(scenario.upstream, self._upstream)
        self._hpa = Autoscaler(scenario.least, scenario.most, scenario.behavior)
        self._weights = _Weights(self._clients, scenario.connection_age_s, {}, {})
        self._throttle = Throttle()
        self._wanted = self._replicas = scenario.least
        self._gave_up_at: datetime | None = None
        self._stood_still = set[str]()  # since then
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
        frozen = self._throttle.throttled and self._scenario.freeze
        self._hpa.behavior = self._scenario.behavior.frozen() if frozen else self._scenario.behavior
        self._wanted = self._hpa.sync(now_s, self._wanted, states, metrics)

    def _operate(self, now_s: float) -> None:
        if now_s % self._scenario.look_s == 0:
            self._throttle = self._look(self._throttle, [seen(pod, now_s) for pod in self._pods], now_s)
        if self._decide is None:
            self._replicas = self._wanted
        else:
            self._shrink(now_s, self._decide)
        for pod in self._deployment.scale(now_s, self._replicas):
            self.outcome.rows_at_risk += pod.proxy.rows

    def _shrink(self, now_s: float, decide: Decide) -> None:
        views = [seen(pod, now_s) for pod in self._pods]
        again = deliver_again(self._stood_still, views)
        self._stood_still |= standing_still(views) if self._gave_up_at is not None else set()
        plan = decide(
            Situation(
                wanted=self._wanted,
                live=self._replicas,
                generation_seen=True,
                rolling=False,
                pods=views,
                drain=Drain(),
                now=utc(now_s),
                gave_up_at=self._gave_up_at,
                delivers_again=again,
                labelled_for_s=labelled_for_s(self._pods, now_s),
            )
        )
        self._replicas = plan.replicas
        if plan.stage is Stage.GIVING_UP:
            self._gave_up_at = utc(now_s)
            self.outcome.gave_up += 1
        elif plan.stage is not Stage.RESTING:
            self._gave_up_at, self._stood_still = None, set()
        for pod in self._pods:
            if pod.name in plan.unlabel:
                pod.unlabel()
            if pod.name in plan.label:
                pod.label(now_s)
            if pod.name in plan.cancel:
                pod.proxy.stop_draining()
            if pod.name in plan.begin:
                pod.proxy.drain(now_s)

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
        outcome.frozen.append(self._throttle.throttled)
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


def simulate(
    scenario: Scenario, seed: int, *, decide: Decide | None = shrink.decide, look: Look = throttle.look
) -> Outcome:
    """Run ``scenario`` with the dice of ``seed``."""
    return Simulation(scenario, seed, decide=decide, look=look).run()
