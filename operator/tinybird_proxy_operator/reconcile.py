"""Reconcile one TinybirdProxy from the whole state: read, decide, apply, prune, observe, tell. Same result twice.

Nothing here depends on which event came, only on whether one did: while everything is applied and none comes, a look
is for the figures, and reads no more than the token, the Deployment and the pods. What decides is pure (``checks``,
``manifests``, ``status``); what is read and written goes through ``kube`` and ``pods``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from tinybird_proxy_operator import checks, deletion
from tinybird_proxy_operator.applying import Applier, Outcome, tried
from tinybird_proxy_operator.autoscalers import Autoscalers
from tinybird_proxy_operator.children import is_ours
from tinybird_proxy_operator.credentials import (
    Rotations,
    Token,
    headers_stay_out,
    read_headers,
    read_tokens,
)
from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NamespaceTerminating, NotFound, SpecError
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.last_rows import Held, remember, with_lost_rows
from tinybird_proxy_operator.live_objects import read_workload
from tinybird_proxy_operator.lost_rows import LostRows
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.names import KIND, Reason
from tinybird_proxy_operator.observed import Observed, PodFacts, Problem, accepted_by
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.preflight import Step
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.rollouts import Rollouts, Verdict
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.shrinking import Scaling, Shrinks
from tinybird_proxy_operator.sidecar_looks import SidecarLooks
from tinybird_proxy_operator.sidecar_pods import SidecarPods
from tinybird_proxy_operator.spec import Proxy, parse, without_headers, without_spec
from tinybird_proxy_operator.status import differs, make_status
from tinybird_proxy_operator.telling import tell
from tinybird_proxy_operator.workloads import read_pods

# How soon to look again: while something is on its way, and for the figures of the pods.
SOON_S = 2.0
FIGURES_S = 10.0
# uid, generation and annotations of a resource, what its HPA is made from, what is wrong with its collector's headers
_Asked = tuple[Any, ...]


@dataclass(slots=True)
class Reconciler:
    """``make_token`` makes a secret token; ``utc_now`` is the wall's clock, ``now`` one that only goes forward."""

    kube: Kube
    pods: Pods
    events: Events
    settings: OperatorSettings
    make_token: Callable[[], str]
    utc_now: Callable[[], datetime]
    now: Callable[[], float]
    deletions: deletion.Deletions = field(init=False)
    lost: LostRows = field(init=False)
    _figures_at: dict[Key, float] = field(default_factory=dict)
    _changed: set[Key] = field(default_factory=set)
    _in_order: dict[Key, tuple[_Asked, bool]] = field(default_factory=dict)  # what is all applied; or but an upgrade
    _held: dict[Key, dict[str, Held]] = field(default_factory=dict)
    _ending: dict[Key, str] = field(default_factory=dict)  # uid of a resource whose namespace is being deleted

    _rotations: Rotations = field(init=False)
    _rollouts: Rollouts = field(init=False)
    _shrinks: Shrinks = field(init=False)
    _autoscalers: Autoscalers = field(init=False)
    applier: Applier = field(init=False)
    _sidecars: SidecarLooks = field(init=False)

    def __post_init__(self) -> None:
        self.lost = LostRows(self.events)
        self._rotations = Rotations(self.kube, self.events, self.make_token, self.utc_now, self.now)
        self._rollouts = Rollouts(self.kube, self.events, self.settings, self.utc_now, self.now)
        self._shrinks = Shrinks(self.kube, self.pods, self.events, self.utc_now, self.now)
        self._autoscalers = Autoscalers(self.kube, self.settings, self.now)
        self.applier = Applier(self.kube, self.events, self.settings, self._rollouts, self.make_token)
        app_pods = SidecarPods(self.kube, self.pods, self.events, self.now)
        self._sidecars = SidecarLooks(self.kube, app_pods, self.events, self.settings, self.now)
        self.deletions = deletion.Deletions(
            self.kube, self.pods, self.events, self.settings.controller_class, self.utc_now, self.now
        )

    async def close(self) -> None:
        """Read no more for anybody."""
        self.lost.end()
        await self._autoscalers.close()

    def changed(self, key: Key) -> None:
        """Something happened, or may have: the next look is at everything."""
        self._changed.add(key)

    async def reconcile(self, key: Key) -> float | None:
        """Make the cluster what the resource asks. Answers when to look again; raises ``KubeError`` to try again."""
        if key in self._changed:  # what happens from here on is for the next look
            self._changed.discard(key)
            self._in_order.pop(key, None)
        body = await self.kube.find(KIND, key.namespace, key.name)
        spec = None if body is None else body.get("spec") or {}
        controller_class = spec.get("controllerClass", "") if isinstance(spec, Mapping) else ""
        if body is not None and "deletionTimestamp" in body["metadata"]:
            return await self._delete(key, body)
        if body is None or controller_class != self.settings.controller_class:
            if body is not None:
                self.lost.forget(key)
            self._forget(key)
            return None if body is None else await self._let_go(key, body)
        if self._ending.get(key) == body["metadata"]["uid"]:
            self.lost.gone(key)
            return None
        try:
            return await self._look(key, body)
        except NamespaceTerminating:
            self._forget(key)
            self._ending[key] = body["metadata"]["uid"]  # that is never taken back, and everything goes with it
            return None

    async def _look(self, key: Key, body: Object) -> float | None:
        try:
            proxy = parse(body)
        except SpecError as error:
            proxy = without_spec(body)
            problems = [Problem(reason=Reason.INVALID_SPEC, message=text) for text in error.problems]
            if proxy.spec.mode == "Sidecar":
                return await self._look_at_sidecars(key, proxy, body, problems)
            observed = await self._observe(proxy, problems, await self._deployment(proxy))
            return await self._report(key, proxy, body, replace(observed, uses_own_token=None))
        if proxy.spec.mode == "Sidecar":
            return await self._look_at_sidecars(key, proxy, body, None)
        if proxy.spec.management_state == "Unmanaged":
            if await self._let_go(key, body) is not None:
                return 0.0
            self.applier.forget(key)
            observed = await self._observe(proxy, [], await self._deployment(proxy), managed=False)
            return await self._report(key, proxy, body, observed)
        if proxy.spec.replicas is None:
            await self._seed_replicas(proxy)
            return 0.0
        return await self._carry_out(key, proxy, body)

    async def _look_at_sidecars(
        self, key: Key, proxy: Proxy, body: Object, problems: Sequence[Problem] | None
    ) -> float | None:
        found = await self._sidecars.look(key, proxy, body, problems)
        again_s = await self._report(key, proxy, body, found.observed)
        return max(again_s, found.again_s) if again_s else 0.0  # there is more to count, or somebody was faster

    def _forget(self, key: Key) -> None:
        """The resource is no more, or no longer ours: nobody waits for it."""
        self._figures_at.pop(key, None)
        self.applier.forget(key)
        self._changed.discard(key)
        self._in_order.pop(key, None)
        self._ending.pop(key, None)
        self._held.pop(key, None)
        self.lost.gone(key)
        self._rotations.forget(key)
        self._rollouts.forget(key)
        self._shrinks.forget(key)
        self._autoscalers.forget(key)
        self._sidecars.forget(key)
        self.deletions.forget(key)

    async def _let_go(self, key: Key, body: Object) -> float | None:
        """Nothing of ours keeps the resource; 0.0: it has changed since it was read."""
        try:
            if deletion.is_held(body, self.settings.controller_class):
                await self._shrinks.let_go(key, body)
            await self.deletions.let_go(body)
        except Conflict:
            return 0.0
        return None

    async def _delete(self, key: Key, body: Object) -> float | None:
        """Wait until its pods have delivered, then let it go. Whatever was applied stays as it is until then."""
        self._rollouts.forget(key)
        if (body.get("spec") or {}).get("controllerClass", "") != self.settings.controller_class:
            self.lost.forget(key)
            self._forget(key)
            return await self._let_go(key, body)
        if deletion.at_once(body) is deletion.Release.ORPHANED and deletion.is_held(
            body, self.settings.controller_class
        ):
            await self._shrinks.let_go(key, body)
        try:
            proxy, problems = parse(body), []
        except SpecError as error:
            proxy = without_spec(body)
            problems = [Problem(reason=Reason.INVALID_SPEC, message=text) for text in error.problems]

        async def observe() -> Observed:
            token = await read_tokens(self.kube, proxy)
            return await self._observe(proxy, problems, await self._deployment(proxy), token=token)

        try:
            observed = await self.deletions.look(key, proxy, body, observe)
        except Conflict:
            return 0.0
        if observed is None:
            self._forget(key)
            return None
        again_s = await self._report(key, proxy, body, observed)
        overdue = observed.draining is not None and observed.draining[0] == "False"
        return min(again_s, deletion.OVERDUE_S if overdue else deletion.DRAINING_S)

    async def _carry_out(self, key: Key, proxy: Proxy, body: Object) -> float | None:
        problems = [Problem(reason=reason, message=text) for reason, text in checks.problems(proxy, self.settings)]
        token = await read_tokens(self.kube, proxy)
        if token.problem is not None:
            problems.append(token.problem)
        headers, headers_ref = await read_headers(self.kube, proxy), proxy.spec.telemetry.otlp_headers_secret_ref
        known, was_queued = self._in_order.pop(key, (None, False))
        plan = await self._autoscalers.plan(key, proxy, body.get("status") or {})
        why = None if headers is None else headers.reason
        present = proxy.uid, proxy.generation, proxy.annotations, plan.targets, plan.throttled, why
        queued = self._rollouts.queued(key) if was_queued else None
        in_order = known == present and was_queued == (queued is not None)  # or its turn has come
        client = await self._rotations.read(key, proxy, changed=bool(problems) or known != present)
        wanted = None if problems else proxy.spec.replicas
        scaling = await self._shrinks.look(key, proxy, await self._deployment(proxy), body, wanted=wanted)
        refused: list[Problem] = []
        live, stands = await self._pace(proxy, scaling, refused)
        given = without_headers(proxy) if headers_stay_out(headers, headers_ref, live) else proxy
        desired = Desired(
            proxy=given, replicas=scaling.replicas, settings=self.settings, plan=plan, paused=stands is not None
        )
        if problems or scaling.fell:  # a changed template goes out when the pods that are too many have gone
            outcome = Outcome(problems=problems, deployment=live)
        elif in_order and live is not None and scaling.pods is not None and not scaling.rises:
            outcome = Outcome(deployment=live, verdict=Verdict(queued=queued))
            self._in_order[key] = present, was_queued
        else:
            outcome = await self.applier.apply(key, desired, body, token, client, replace(scaling, deployment=live))
            verdict = outcome.verdict
            if not outcome.problems and verdict.held is None and verdict.preflight is None and not outcome.rest:
                self._in_order[key] = present, verdict.queued is not None
        if outcome.deployment is not None and is_ours(outcome.deployment, proxy):
            try:
                await self.deletions.hold(body)
            except (Conflict, NotFound):
                return 0.0
            except (Forbidden, Invalid) as error:
                outcome.problems.append(Problem(reason=Reason.APPLY_REFUSED, message=str(error)))
        verdict, problems = outcome.verdict, [*outcome.problems, *refused]
        observed = await self._observe(proxy, problems, outcome.deployment, token=token, pods=scaling.pods)
        if client is not None:
            await tried(self._rotations.go_on(key, desired, client, accepted_by(observed)), problems)
        if token.note is not None:
            await self.events.tell(proxy, Reason.SECRET_IMMUTABLE, token.note, warning=False, about=token.note)
        notes = [note for note in (token.note, self._rotations.note(key, proxy)) if note is not None]
        observed = replace(observed, held=stands or verdict.held, queued=verdict.queued, preflight=verdict.preflight)
        observed = replace(observed, problems=problems, notes=notes, shrinking=scaling.verdict, otlp_headers=headers)
        if not scaling.fell:
            await tried(self._rollouts.end_at_once(proxy, body, observed), problems)
        observed = await self._autoscalers.judged(proxy, body, plan, observed)
        again_s = min(await self._report(key, proxy, body, observed), self._rotations.again_s(key), scaling.again_s)
        return min(again_s, self._autoscalers.again_s(key, plan))

    async def _pace(self, proxy: Proxy, scaling: Scaling, problems: list[Problem]) -> tuple[Object | None, str | None]:
        """The Deployment, its rollout stopped or going on, whatever else there is to do; and why it stands."""
        live = scaling.deployment
        if live is None or scaling.pods is None:
            return live, None
        return await tried(self._rollouts.pace(proxy, live, scaling.pods), problems) or (live, None)

    async def _deployment(self, proxy: Proxy) -> Object | None:
        return await self.kube.find("Deployment", proxy.namespace, proxy.name)

    async def _seed_replicas(self, proxy: Proxy) -> None:
        """Write ``spec.replicas`` where it is absent: what runs, else the least. Without it ``/scale`` answers 500."""
        live, autoscaling = await self._deployment(proxy), proxy.spec.autoscaling
        replicas = 1 if autoscaling is None else autoscaling.min_replicas
        if live is not None and is_ours(live, proxy):
            replicas = live["spec"].get("replicas", 1)
        await self.kube.set_scale(proxy.namespace, proxy.name, replicas, resource_version=proxy.resource_version)

    # Looking.

    async def _observe(
        self,
        proxy: Proxy,
        problems: Sequence[Problem],
        live: Object | None,
        *,
        token: Token | None = None,
        pods: Sequence[PodFacts] | None = None,
        managed: bool = True,
    ) -> Observed:
        ours = live if live is not None and is_ours(live, proxy) else None
        ref = proxy.spec.tinybird.token_secret_ref
        if ours is not None and pods is None:
            pods = await read_pods(self.kube, self.pods, proxy, ours)
        key = Key(proxy.namespace, proxy.name)
        self._held[key] = known = remember(self._held.get(key, {}), pods or (), self.now())
        pods = with_lost_rows(known, pods or ())
        leaving = sum(pod.labelled and not pod.terminating for pod in pods)
        return Observed(
            wanted_replicas=proxy.spec.replicas,
            workload=None if ours is None else replace(read_workload(ours), draining=leaving),
            pods=pods if ours is not None else [],
            problems=problems,
            held=None,
            uses_own_token=ref is not None,
            token_secret=None if ref is None else ref.name,
            expected_token_hash=None if token is None else token.hash,
            managed=managed,
        )

    # Telling.

    async def _report(self, key: Key, proxy: Proxy, body: Object, observed: Observed) -> float:
        self._rollouts.saw(key, observed)
        self.lost.heard(observed.pods)
        old = body.get("status") or {}
        observed = self._autoscalers.saw(key, old, observed)
        at = self.utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
        status = make_status(proxy, replace(observed, lost=self.lost.judge(key, body)), old, now=at)
        now = self.now()
        figures_due = now - self._figures_at.get(key, float("-inf")) >= FIGURES_S
        if differs(status, old) or (figures_due and status != old):
            try:
                await self.kube.apply_status(proxy.namespace, proxy.name, proxy.uid, status)
            except (Conflict, NotFound):
                return 0.0  # deleted meanwhile, and perhaps made again
            self._figures_at[key] = now
        await tell(self.events, proxy, observed, status)
        if await self.lost.tell(key, proxy):
            return 0.0
        tried = observed.preflight
        workload = observed.workload
        moving = workload is not None and (not workload.settled or workload.available < (observed.wanted_replicas or 0))
        trying = tried is not None and tried.step is not Step.FAILED
        return SOON_S if moving or trying or observed.held is not None else FIGURES_S
