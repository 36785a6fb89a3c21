"""Scaling down, at the edge: what ``scaling.shrink`` decides is done to pods and to the Deployment.

Labels come first, then drains, then the number of pods. Whatever does not succeed is decided anew by the next look.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from tinybird_proxy_operator import drains
from tinybird_proxy_operator.children import is_ours
from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NamespaceTerminating, NotFound, SpecError
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.live_objects import read_workload
from tinybird_proxy_operator.names import (
    DELETION_COST_ANNOTATION,
    DRAINING_LABEL,
    DRAINING_SINCE_ANNOTATION,
    Reason,
)
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.scaling import shrink
from tinybird_proxy_operator.scaling.shrink import DELETION_COST, Fall, Plan, Situation, Stage, Verdict
from tinybird_proxy_operator.spec import Proxy, parse
from tinybird_proxy_operator.workloads import read_pods

# How soon to look again: while pods drain, and while it is waited for pods that deliver again.
DRAINING_S: Final = 1.0
RESTING_S: Final = 2.0
# So often pods are read and told to serve again before they are left as they are.
_LETTING_GO_MAX: Final = 3
_log = logging.getLogger("tinybird_proxy_operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """``replicas``: what the Deployment is to have in this look. ``fell``: it has fewer now, and was written for that.

    ``deployment`` and ``pods``: as they are after it; ``pods`` None: there is no Deployment of ours to have any.
    ``verdict``: the condition ``Draining``. ``again_s``: how soon to look again.
    """

    replicas: int
    deployment: Object | None
    pods: list[PodFacts] | None = None
    verdict: Verdict | None = None
    fell: bool = False
    again_s: float = float("inf")

    @property
    def rises(self) -> bool:
        """Whether the Deployment is to have more pods than it has."""
        return self.deployment is not None and self.replicas > self.deployment["spec"].get("replicas", 1)


@dataclass(slots=True)
class Shrinks:
    """Of all resources. ``utc_now`` is the wall's clock, ``now`` one in seconds that only goes forward."""

    kube: Kube
    pods: Pods
    events: Events
    utc_now: Callable[[], datetime]
    now: Callable[[], float]
    _labelled_at: dict[Key, dict[str, float]] = field(default_factory=dict)  # since when each victim is seen to be one
    _fell: dict[Key, Fall] = field(default_factory=dict)
    _stood_still: dict[Key, set[str]] = field(default_factory=dict)  # since a drain was given up
    _gave_up: dict[Key, tuple[datetime, Verdict]] = field(default_factory=dict)  # until the status says it
    _dropped: dict[Key, Verdict] = field(default_factory=dict)  # likewise

    def forget(self, key: Key) -> None:
        """The resource is no more, or no longer ours."""
        self._labelled_at.pop(key, None)
        self._fell.pop(key, None)
        self._stood_still.pop(key, None)
        self._gave_up.pop(key, None)
        self._dropped.pop(key, None)

    async def look(self, key: Key, proxy: Proxy, live: Object | None, body: Object, *, wanted: int | None) -> Scaling:
        """Read the pods, and go one step towards ``wanted`` of them; None: as many as there are.

        ``live``: the Deployment; ``body``: the resource, with its last status.
        """
        if live is None or not is_ours(live, proxy):
            return Scaling(replicas=wanted or 0, deployment=live)
        status: Mapping[str, Any] = body.get("status") or {}
        found = await read_pods(self.kube, self.pods, proxy, live)
        situation = self._situation(key, proxy, live, found, status, wanted)
        await self._tell_wrong(key, proxy, situation)
        plan = shrink.decide(situation)
        pods, hindrance = await self._tell_pods(proxy, plan, found)
        self._labelled_for_s(key, pods)
        fell = None
        if plan.falls:
            await self._tell_fall(key, proxy, situation, plan, pods, hindrance)
            fell, refused = await self._let_fall(key, live, plan, pods)
            hindrance = hindrance or refused
            if fell is None:
                plan = replace(plan, stage=Stage.DRAINING, replicas=situation.live)
        said = shrink.verdict(situation, plan, pods, status, hindrance=hindrance)
        if plan.stage is Stage.GIVING_UP and said is not None:
            self._gave_up[key] = situation.now, said
        elif plan.stage is not Stage.RESTING:
            self._gave_up.pop(key, None)
        elif shrink.gave_up_at(status) is None:
            said = self._gave_up[key][1]
        said = self._with_dropped(key, plan, status, said)
        if plan.stage is Stage.GIVING_UP and said is not None:
            await self._warn(proxy, said, f"{situation.now:%Y-%m-%dT%H:%M:%SZ}")  # each time that it happens
        return Scaling(
            replicas=plan.replicas,
            deployment=fell or live,
            pods=pods,
            verdict=said,
            fell=fell is not None,
            again_s=_again_s(situation, plan, pods),
        )

    async def let_go(self, key: Key, body: Object) -> None:
        """The operator leaves the workload alone from here on: who drains serves again, or would refuse rows for good.

        Only victims: others are somebody's. What cannot be done is logged, and keeps nobody waiting.
        """
        victims: set[str] = set()
        try:
            proxy = parse({**body, "spec": {}})
            for _ in range(_LETTING_GO_MAX):
                live = await self.kube.find("Deployment", key.namespace, key.name)
                if live is None or not is_ours(live, proxy):
                    break
                found = await read_pods(self.kube, self.pods, proxy, live)
                victims |= {pod.name for pod in found if pod.labelled}
                plan = shrink.decide(self._situation(key, proxy, live, found, {}, None))
                plan = replace(plan, cancel=tuple(name for name in plan.cancel if name in victims))
                pods, hindrance = await self._tell_pods(proxy, plan, found)
                if not (left := [pod.name for pod in pods if pod.name in victims and _drains(pod)]):
                    break
            else:
                _log.warning("%s is let go while %s drain: %s", key, ", ".join(left), hindrance or "they may go yet.")
        except (Forbidden, NotFound, SpecError) as refused:
            _log.warning("%s is let go, and pods may drain on: %s", key, refused)
        self.forget(key)

    def _situation(
        self,
        key: Key,
        proxy: Proxy,
        live: Object,
        pods: list[PodFacts],
        status: Mapping[str, Any],
        wanted: int | None,
    ) -> Situation:
        workload, replicas, gave_up_at = read_workload(live), live["spec"].get("replicas", 1), shrink.gave_up_at(status)
        if gave_up_at is None and key in self._gave_up:
            gave_up_at = self._gave_up[key][0]
        if gave_up_at is None:
            self._stood_still.pop(key, None)
        still = self._stood_still.setdefault(key, set()) if gave_up_at is not None else set()
        delivers_again = shrink.deliver_again(still, pods)
        still |= shrink.standing_still(pods)
        return Situation(
            wanted=replicas if wanted is None else wanted,
            live=replicas,
            generation_seen=workload.generation_seen,
            rolling=not workload.rolled_out,
            pods=pods,
            drain=proxy.spec.drain,
            now=self.utc_now(),
            gave_up_at=gave_up_at,
            delivers_again=delivers_again,
            labelled_for_s=self._labelled_for_s(key, pods),
        )

    def _labelled_for_s(self, key: Key, pods: list[PodFacts]) -> dict[str, float]:
        """For how long each victim is seen to be one. After a restart the count begins anew."""
        now, known = self.now(), self._labelled_at.get(key, {})
        self._labelled_at[key] = at = {pod.name: known.get(pod.name, now) for pod in pods if pod.labelled}
        return {name: now - since for name, since in at.items()}

    async def _tell_pods(self, proxy: Proxy, plan: Plan, found: list[PodFacts]) -> tuple[list[PodFacts], str | None]:
        """Labels and drains as planned; the pods then, and what was in the way, as a sentence."""
        token = await drains.admin_token(self.kube, proxy) if plan.begin or plan.cancel else None
        limit, refusals = asyncio.Semaphore(drains.TOLD_AT_ONCE), list[str]()

        async def tell(pod: PodFacts) -> PodFacts:
            async with limit:
                try:
                    if pod.name in (*plan.label, *plan.unlabel):
                        pod = await self._mark(proxy, pod, pod.name in plan.label)
                except (Conflict, NotFound):
                    return pod  # it has changed since it was read
                except NamespaceTerminating:
                    raise
                except (Forbidden, Invalid) as refused:
                    refusals.append(str(refused))
                    return pod
                if token is not None and pod.labelled and pod.name in plan.begin:
                    return await drains.begin(self.pods, pod, token)
                if token is not None and not pod.labelled and pod.name in plan.cancel:
                    return await drains.cancel(self.pods, pod, token)
                return pod

        pods = list(await asyncio.gather(*map(tell, found)))
        if refusals:
            return pods, refusals[0]
        if token is None:
            return pods, drains.no_token(proxy) if plan.begin or plan.cancel else None
        deaf = [each.name for each in pods if each.name in plan.begin and each.report and not each.report.draining]
        return pods, drains.deaf(proxy, deaf) if deaf else None

    async def _mark(self, proxy: Proxy, pod: PodFacts, is_to_go: bool) -> PodFacts:
        """Write on the pod whether it is to go; the pod then. Raises ``Conflict`` if it has changed meanwhile."""
        identity = {"name": pod.name, "namespace": proxy.namespace}
        versions = {"uid": pod.uid, "resourceVersion": pod.resource_version}
        since = (pod.draining_since or self.utc_now()).replace(microsecond=0)
        said = {
            DRAINING_SINCE_ANNOTATION: f"{since:%Y-%m-%dT%H:%M:%SZ}",
            DELETION_COST_ANNOTATION: str(DELETION_COST),
        }
        patch: Object = {
            "labels": {DRAINING_LABEL: "true" if is_to_go else None},
            "annotations": said if is_to_go else dict.fromkeys(said),
        }
        await self.kube.change({"kind": "Pod", "metadata": {**identity, **versions}}, {"metadata": patch})
        if not is_to_go:
            return replace(pod, labelled=False, draining_since=None, deletion_cost=0)
        return replace(pod, labelled=True, draining_since=since, deletion_cost=DELETION_COST)

    async def _tell_fall(
        self, key: Key, proxy: Proxy, situation: Situation, plan: Plan, pods: list[PodFacts], hindrance: str | None
    ) -> None:
        """What goes with the pods. Told before: the answer may be lost, and then the next look sees nothing of it."""
        going = [pod for pod in pods if pod.name in plan.may_go]
        if letters := drains.dead_letters(going):
            await self.events.tell(proxy, Reason.DEAD_LETTERS_DROPPED, letters.strip(), warning=True)
        self._dropped.pop(key, None)
        said = shrink.verdict(situation, plan, pods, {}, hindrance=hindrance)
        if plan.stage is Stage.DROPPING and said is not None:
            self._dropped[key] = said
            # Each drain once, however often the number has to be written.
            since = min(pod.draining_since for pod in going if pod.draining_since is not None)
            await self._warn(proxy, said, f"{since:%Y-%m-%dT%H:%M:%SZ}")

    async def _warn(self, proxy: Proxy, said: Verdict, about: str) -> None:
        _log.warning("%s/%s: %s", proxy.namespace, proxy.name, said[2])
        await self.events.tell(proxy, said[1], said[2], warning=True, about=about)

    def _with_dropped(self, key: Key, plan: Plan, status: Mapping[str, Any], said: Verdict | None) -> Verdict | None:
        """``said``, or that rows were dropped, where nothing has happened since and no status says it yet."""
        dropped = self._dropped.get(key)
        if dropped is not None and (plan.stage is Stage.DRAINING or shrink.says(status, dropped)):
            del self._dropped[key]
        elif dropped is not None and plan.stage is Stage.IDLE:
            return dropped
        return said

    async def _let_fall(
        self, key: Key, live: Object, plan: Plan, pods: list[PodFacts]
    ) -> tuple[Object | None, str | None]:
        """The Deployment with fewer pods, if it is as it was read; or None, and what was in the way, if there was."""
        rows = {pod.name: None if pod.report is None else pod.report.rows for pod in pods if not pod.terminating}
        self._fell[key] = Fall(plan.may_go, rows)  # before: any other error may be that of a number that was written
        try:
            fell = await self.kube.change(live, {"spec": {"replicas": plan.replicas}})
        except NamespaceTerminating:
            raise
        except (Conflict, NotFound, Forbidden, Invalid) as refused:
            del self._fell[key]
            self._dropped.pop(key, None)
            return None, str(refused) if isinstance(refused, (Forbidden, Invalid)) else None
        _log.info("%s has %d pods now; it may take %s", key, plan.replicas, ", ".join(sorted(plan.may_go)) or "none")
        return fell, None

    async def _tell_wrong(self, key: Key, proxy: Proxy, situation: Situation) -> None:
        """Of pods that went in place of victims, once Kubernetes has done what it was asked."""
        fall, active = self._fell.get(key), situation.active
        if fall is None or not situation.generation_seen or len(active) > situation.live:
            return
        del self._fell[key]
        if wrong := shrink.wrong_pods(fall, active):
            message = shrink.wrong(wrong, fall, active)
            _log.warning("%s/%s: %s", proxy.namespace, proxy.name, message)
            about = ", ".join(sorted(wrong))
            await self.events.tell(proxy, Reason.WRONG_POD_REMOVED, message, warning=True, about=about)


def _drains(pod: PodFacts) -> bool:
    return not pod.terminating and (pod.labelled or (pod.report is not None and pod.report.draining))


def _again_s(situation: Situation, plan: Plan, pods: list[PodFacts]) -> float:
    if plan.stage is Stage.RESTING:
        return RESTING_S
    if any(map(_drains, pods)) or plan.stage is not Stage.IDLE or situation.wanted < plan.replicas:
        return DRAINING_S
    return float("inf")
