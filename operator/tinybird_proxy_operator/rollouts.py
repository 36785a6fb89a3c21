"""Whether a resource's template goes out now: the reads that it takes, in order; what decides is pure.

rows that wait, or a pod that does not tell      held; a rollout that goes on stands half-way, see ``pace``
a check that failed                              held, whether it has a turn or not
the operator's own change, and no turn for it    queued; what its author changed goes out, with the live image
a check that has not ended well                  held
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from tinybird_proxy_operator import preflight_jobs
from tinybird_proxy_operator.children import (
    applied_template,
    contains,
    controller_uid,
    image_of,
    is_ours,
    template_hash,
    with_template_hash,
)
from tinybird_proxy_operator.errors import Conflict, Forbidden, NotFound
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.live_objects import read_workload
from tinybird_proxy_operator.manifests import Desired, deployment
from tinybird_proxy_operator.names import CONTAINER, FIELD_MANAGER, KIND, MANAGED_BY_LABEL, ROLL_ANNOTATION, Reason
from tinybird_proxy_operator.observed import Observed, PodFacts, Workload
from tinybird_proxy_operator.preflight import Decision, Step
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy
from tinybird_proxy_operator.upgrades import Upgrades, author_mark, is_for_another, pauses, rows_at_risk, with_marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``manifest``: the Deployment to apply; None: its template stays, for one of the next three.

    ``queued`` may come with a manifest, which then has the live image.
    """

    manifest: Object | None = None
    held: str | None = None
    queued: str | None = None
    preflight: Decision | None = None


@dataclass(slots=True)
class Rollouts:
    """Of all resources. ``utc_now`` is the wall's clock, ``now`` one in seconds that only goes forward."""

    kube: Kube
    events: Events
    settings: OperatorSettings
    utc_now: Callable[[], datetime]
    now: Callable[[], float]
    _upgrades: Upgrades = field(init=False)
    _begun: dict[Key, set[str]] = field(default_factory=dict)  # templates that must be tried, seen since the start

    def __post_init__(self) -> None:
        self._upgrades = Upgrades(self.settings.proxy_image, self.settings.upgrade_max_concurrent)

    async def pace(self, proxy: Proxy, live: Object, pods: Sequence[PodFacts]) -> tuple[Object, str | None]:
        """Have the rollout of our Deployment stand, or go on; the Deployment then, and why it stands, as a sentence."""
        why = pauses(read_workload(live), pods, at_once=is_at_once(proxy))
        fields = deployment.pace(paused=why is not None)
        is_paused = bool(live["spec"].get("paused"))
        if is_paused != (why is not None) or (is_paused and not contains(live["spec"], fields)):
            uid = live["metadata"]["uid"]
            live = await self.kube.set_fields(proxy.namespace, proxy.name, fields, uid=uid)
        return live, why

    async def end_at_once(self, proxy: Proxy, body: Object, observed: Observed) -> None:
        """Take the annotation that let something out off, once every pod has it, and tell of that.

        Nothing else is touched. Whoever puts it back with each sync, as GitOps may, has it taken off each time, and no
        template of theirs is ever held: it is harmless, but then it is their choice and no longer a single word.
        """
        waits = observed.held or observed.queued or observed.preflight
        if not is_at_once(proxy) or observed.problems or waits:
            return
        if observed.workload is None or not observed.workload.rolled_out:
            return
        try:
            await self.kube.change(body, {"metadata": {"annotations": {ROLL_ANNOTATION: None}}})
        except (Conflict, NotFound):
            return  # it has changed since it was read: the next look is at what it is then
        text = f"The annotation {ROLL_ANNOTATION}=now has worked and was taken off: every pod has the present template."
        await self.events.tell(proxy, Reason.ROLL_ANNOTATION_REMOVED, text, warning=False)

    async def judge(
        self,
        key: Key,
        desired: Desired,
        wanted: Object,
        live: Object | None,
        body: Object,
        *,
        token_hash: str | None,
        pods: Sequence[PodFacts],
    ) -> Verdict:
        """What of the wanted Deployment goes out now. A check that is due is begun."""
        proxy, mark = desired.proxy, author_mark(body)
        ours = live if live is not None and is_ours(live, proxy) else None
        applied = None if ours is None else applied_template(ours)
        changed = applied not in (None, template_hash(wanted))
        at_once = is_at_once(proxy)
        if ours is not None and changed and not at_once and (risk := rows_at_risk(pods)) is not None:
            return Verdict(held=risk)
        upgrade = ours is not None and changed and _is_an_upgrade(desired, ours, wanted, mark)
        candidate, queued = wanted, None
        if ours is not None and upgrade and not at_once:
            await self._take_over()
            queued = self._upgrades.why_not(str(key), self.now())
            if queued is not None and is_for_another(ours, mark):
                candidate, upgrade = _with_live_image(desired, ours), False
                changed = applied != template_hash(candidate)
        goes = queued is None or not upgrade
        begun = self._begun.setdefault(key, set())
        trial = await preflight_jobs.look(
            self.kube,
            desired,
            ours,
            candidate,
            changed=changed,
            begun=template_hash(candidate) in begun,
            may_retry=goes,
            token_hash=token_hash,
            now=self.utc_now(),
        )
        if trial is not None:
            begun.add(template_hash(candidate))
            if trial.decision.step is Step.FAILED:
                return Verdict(preflight=trial.decision)
        elif candidate is wanted and not changed:
            begun.clear()
        if upgrade and not at_once:  # with no wait after it: others look at the same time
            queued = self._upgrades.claim(str(key), self.now())
            if queued is not None:
                return Verdict(queued=queued)
        if trial is not None:
            decision = await preflight_jobs.begin(self.kube, desired, trial)
            if decision.step is not Step.GO:
                return Verdict(preflight=decision, queued=queued)
        upgraded_to = self.settings.proxy_image if upgrade else _upgraded_to(ours, changed=changed)
        manifest = with_marks(with_template_hash(candidate), made_for=mark, upgraded_to=upgraded_to)
        return Verdict(manifest=manifest, queued=queued)

    def queued(self, key: Key) -> str | None:
        """Why an upgrade of the resource must wait, as a sentence."""
        return self._upgrades.why_not(str(key), self.now())

    def saw(self, key: Key, observed: Observed) -> None:
        """A look at the resource has ended."""
        if not observed.managed or observed.draining is not None:
            self.forget(key)
            return
        tried = observed.preflight
        self._upgrades.see(
            str(key),
            observed.workload,
            self.now(),
            failing=any(pod.waiting is not None for pod in observed.pods),
            trying=tried is not None and tried.step is not Step.FAILED,
        )

    def forget(self, key: Key) -> None:
        """The resource is no more, or no longer ours: nobody waits for it."""
        self._upgrades.forget(str(key))
        self._begun.pop(key, None)

    async def _take_over(self) -> None:
        """Read once what an earlier leader began, before anything is added to it."""
        if self._upgrades.known:
            return
        found: dict[str, Workload] = {}
        for namespace in self.settings.watch_namespaces or (None,):
            with suppress(Forbidden, NotFound):  # where nothing can be read nothing can be rolled
                bodies = await self.kube.list(KIND, namespace)
                labels = {MANAGED_BY_LABEL: FIELD_MANAGER}
                deployments = await self.kube.list("Deployment", namespace, labels=labels)
                owned = {controller_uid(each): each for each in deployments}
                for body in filter(self._is_managed, bodies):
                    metadata = body["metadata"]
                    if (live := owned.get(metadata["uid"])) is not None:
                        found[str(Key(metadata["namespace"], metadata["name"]))] = read_workload(live)
        self._upgrades.take_over(found, self.now())

    def _is_managed(self, body: Object) -> bool:
        spec = body.get("spec") or {}
        return (
            spec.get("controllerClass", "") == self.settings.controller_class
            and spec.get("managementState") != "Unmanaged"
            and "deletionTimestamp" not in body["metadata"]
        )


def is_at_once(proxy: Proxy) -> bool:
    """Whether what is held back is to go out now, with the rows that this costs."""
    return proxy.annotations.get(ROLL_ANNOTATION) == "now"


def _is_an_upgrade(desired: Desired, live: Object, wanted: Object, mark: str) -> bool:
    """Whether it is the operator, and not the resource's author, that changed the template."""
    default_image = desired.proxy.spec.image is None
    return (default_image and image_of(live) != image_of(wanted)) or not is_for_another(live, mark)


def _with_live_image(desired: Desired, live: Object) -> Object:
    """What its author asks now, with the image that the pods have."""
    containers, settings = live["spec"]["template"]["spec"]["containers"], desired.settings
    proxy: Object = next((each for each in containers if each["name"] == CONTAINER), {})
    settings = replace(
        settings,
        proxy_image=proxy.get("image", settings.proxy_image),
        proxy_image_pull_policy=proxy.get("imagePullPolicy", settings.proxy_image_pull_policy),
    )
    return deployment.build(replace(desired, settings=settings))


def _upgraded_to(live: Object | None, *, changed: bool) -> str | None:
    """Whether the template still counts as an upgrade's, when its author's change goes out, or none."""
    if live is None:
        return None
    workload = read_workload(live)
    return workload.upgraded_to if not changed or not workload.settled else None
