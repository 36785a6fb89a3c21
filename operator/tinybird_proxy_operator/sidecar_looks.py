"""Mode Sidecar: one look at a resource. It has no children: what it has to say is in its status."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from tinybird_proxy_operator import checks
from tinybird_proxy_operator.credentials import Token, read_headers, read_token, read_tokens
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.last_rows import Held, remember, with_lost_rows
from tinybird_proxy_operator.manifests import Desired, sidecar
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import Observed, PodFacts, Problem
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.sidecar_pods import SidecarPods
from tinybird_proxy_operator.sidecars import evidence, standing
from tinybird_proxy_operator.sidecars.app_pods import AppPod
from tinybird_proxy_operator.spec import Proxy, SecretKey, without_headers

# A look lists the namespace's pods, so a large one is looked at less often than each FIGURES_S.
_PODS_A_SECOND: Final = 50.0
# Of so many owners it is told in Events what is wrong: pods of Jobs have none, and may be thousands.
_TOLD_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """``again_s``: not before that is it worth another."""

    observed: Observed
    again_s: float


@dataclass(slots=True)
class SidecarLooks:
    """``now`` is a clock in seconds."""

    kube: Kube
    app_pods: SidecarPods
    events: Events
    settings: OperatorSettings
    now: Callable[[], float]
    _held: dict[Key, dict[str, Held]] = field(default_factory=dict)
    _evidence: dict[Key, evidence.Evidence] = field(default_factory=dict)
    _began_s: float | None = None

    def forget(self, key: Key) -> None:
        """The resource is no more, or not ours."""
        self._held.pop(key, None)
        self._evidence.pop(key, None)
        self.app_pods.forget(key)

    async def look(self, key: Key, proxy: Proxy, body: Object, problems: Sequence[Problem] | None) -> Look:
        """``problems``: why the spec cannot be read; None: it can."""
        old: Mapping[str, Any] = body.get("status") or {}
        managed = proxy.spec.management_state == "Managed"
        told = list(problems or ())
        if problems is None and managed:
            told += (Problem(reason=why, message=text) for why, text in checks.problems(proxy, self.settings))
        token = await read_tokens(self.kube, proxy)
        headers = await read_headers(self.kube, proxy) if managed else None
        rendered = old.get("sidecar")
        if managed and not told:
            rendered, told = self._rendered(proxy, token, headers, rendered)
        if managed and told and rendered is not None and (unshared := await self._unshared(proxy, rendered)):
            rendered, told = None, [*told, *(problem for problem in unshared if problem not in told)]
        pods = await self.app_pods.read(proxy, rendered)
        evicts = managed and problems is None and proxy.spec.sidecar.rollout == "Evict" and not proxy.deleting
        others = self._others(key, old, pods)
        off = "" if others else self._why_off(proxy)
        # What is not in the status yet is what a pod in the place of an evicted one would not get.
        hash = "" if rendered is None else str(rendered["hash"])
        given = not off and hash != "" and hash == (old.get("sidecar") or {}).get("hash")
        hindrances = await self.app_pods.evict(key, proxy, pods, hash) if evicts and given else []
        needed_s = standing.needed_grace_period_s(rendered)
        stands = standing.stand(
            pods,
            off=off,
            evicts=evicts,
            needed_grace_period_s=needed_s,
            told=[*([others] if others else []), *hindrances],
            rendered=rendered is not None,
        )
        await self._tell(proxy, pods, token, needed_s)
        ref = proxy.spec.tinybird.token_secret_ref
        observed = Observed(
            wanted_replicas=None,
            workload=None,
            pods=self._with_lost_rows(key, pods),
            problems=told,
            held=None,
            uses_own_token=None if problems is not None else ref is not None,
            token_secret=None if ref is None else ref.name,
            expected_token_hash=token.hash,
            managed=managed,
            notes=[] if token.note is None else [token.note],
            sidecar=rendered,
            sidecars=stands.counts,
            sidecars_current=stands.current,
            injected_by_others=others,
            otlp_headers=headers,
        )
        return Look(observed=observed, again_s=len(pods) / _PODS_A_SECOND)

    def _why_off(self, proxy: Proxy) -> str:
        return standing.why_off(self.settings.injection, proxy.namespace, self.settings.operator_namespace)

    def _others(self, key: Key, old: Mapping[str, Any], pods: Sequence[AppPod]) -> str:
        """What is told of what injects in the place of this operator; empty if it does itself, or nothing is known."""
        if self.settings.injection != standing.OFF:
            return ""
        if self._began_s is None:
            self._began_s = self.now()
        settled = self.now() - self._began_s >= evidence.SETTLING_S
        before, believed = self._evidence.get(key), evidence.is_believed(old)
        self._evidence[key] = found = evidence.weigh(pods, before, settled=settled, believed=believed)
        return evidence.sentence(found.witness)

    def _rendered(
        self, proxy: Proxy, token: Token, headers: Problem | None, old: Object | None
    ) -> tuple[Object | None, list[Problem]]:
        """What pods get from now on. A Secret that is not there yet is told, and waited for by the sidecars.

        One that is there and does not carry the label must not come into any pod: the sidecar stays as it was before,
        or, for the collector's headers, goes without them.
        """
        problem = token.problem
        if problem is not None and problem.reason is Reason.SECRET_NOT_SHARED:
            return old, [problem]
        try:
            unshared = headers is not None and headers.reason is Reason.SECRET_NOT_SHARED
            given = without_headers(proxy) if unshared else proxy
            rendered = sidecar.build(Desired(proxy=given, replicas=0, settings=self.settings))
        except SpecError as error:
            return old, [Problem(reason=Reason.INVALID_SPEC, message=text) for text in error.problems]
        return rendered, [] if problem is None else [problem]

    async def _unshared(self, proxy: Proxy, rendered: Object) -> list[Problem]:
        """Why no pod may get this one any longer, whatever else is wrong: the label was taken off its Secret."""
        tokens = [await read_token(self.kube, proxy.namespace, SecretKey(name)) for name in sidecar.secrets(rendered)]
        problems = [token.problem for token in tokens if token.problem is not None]
        return [problem for problem in problems if problem.reason is Reason.SECRET_NOT_SHARED]

    def _with_lost_rows(self, key: Key, pods: Sequence[AppPod]) -> list[PodFacts]:
        facts = [pod.facts for pod in pods if pod.facts is not None]
        self._held[key] = known = remember(self._held.get(key, {}), facts, self.now())
        return with_lost_rows(known, facts)

    async def _tell(self, proxy: Proxy, pods: Sequence[AppPod], token: Token, needed_s: int | None) -> None:
        for who, text in islice(standing.refusals(pods).items(), _TOLD_MAX):
            await self.events.tell(proxy, Reason.SIDECARS_REFUSED, text, warning=True, about=who)
        if token.note is not None:
            await self.events.tell(proxy, Reason.SECRET_IMMUTABLE, token.note, warning=False, about=token.note)
        short = [pod for pod in pods if pod.facts is not None and pod.grace_period_s < (needed_s or 0)]
        for who in islice(dict.fromkeys(pod.owner or f"Pod {pod.name}" for pod in short), _TOLD_MAX):
            text = f"{who}: {standing.grace_period_sentence(needed_s or 0)}"
            await self.events.tell(proxy, Reason.GRACE_PERIOD_TOO_SHORT, text, warning=True, about=who)
