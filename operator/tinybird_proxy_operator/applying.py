"""Make the children of a resource what it asks: create, apply, prune. What is refused is told, and the rest goes on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tinybird_proxy_operator import manifests, optional_kinds
from tinybird_proxy_operator.children import NameTaken, is_ours, labelled, part, prune, put
from tinybird_proxy_operator.credentials import Token, ensure_generated, generates_client_token, mounts
from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NamespaceTerminating, NotFound, SpecError
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.names import Reason, client_secret
from tinybird_proxy_operator.observed import Problem
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.rollouts import Rollouts, Verdict
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.shrinking import Scaling
from tinybird_proxy_operator.spec import Proxy

# No pod goes out without them: it could not start, or more could reach it than its resource allows.
_BEFORE_PODS: Final = ("ServiceAccount", "NetworkPolicy")
_Result = TypeVar("_Result")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of applying. ``verdict``: whether the template went out. ``rest``: there is more to do."""

    problems: list[Problem] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    deployment: Object | None = None
    rest: bool = False


@dataclass(slots=True)
class Applier:
    """``make_token`` makes a secret token."""

    kube: Kube
    events: Events
    settings: OperatorSettings
    rollouts: Rollouts
    make_token: Callable[[], str]
    _applied: dict[Key, dict[str, str]] = field(default_factory=dict)

    def forget(self, key: Key) -> None:
        """What was applied is not known to be so any more."""
        self._applied.pop(key, None)

    async def apply(
        self, key: Key, desired: Desired, body: Object, token: Token, client: Object | None, scaling: Scaling
    ) -> Outcome:
        """Create, apply and prune, all that goes: what is refused is told, and keeps nothing else waiting."""
        out, proxy = Outcome(), desired.proxy
        try:
            wanted, applied = manifests.build(desired), self._applied.setdefault(key, {})
        except SpecError as error:
            problems = [Problem(reason=Reason.INVALID_SPEC, message=text) for text in error.problems]
            return Outcome(problems=problems, deployment=scaling.deployment)
        found: list[Object] = []
        for kind in optional_kinds.granted_kinds(self.settings):
            found += await tried(labelled(self.kube, proxy, kind), out.problems) or []
        lives = {part(each): each for each in found}
        live = out.deployment = lives.get(f"Deployment {proxy.name}") or scaling.deployment
        if any(each["kind"] == "ScaledObject" for each in wanted) and self.settings.scaled_objects:
            # KEDA takes no workload that an HPA scales already.
            hpas = [each for each in found if each["kind"] == "HorizontalPodAutoscaler"]
            await tried(prune(self.kube, proxy, wanted, hpas), out.problems)
        wanting = generates_client_token(proxy) and client is None
        secrets = ensure_generated(self.kube, desired, self.make_token, client=wanting)
        made = await tried(secrets, out.problems)
        if client_secret(proxy.name) in (made or ()) and live is not None and mounts(live, client_secret(proxy.name)):
            text = f"Secret {client_secret(proxy.name)} was gone; there is a new one: apps need its token."
            await self.events.tell(proxy, Reason.CLIENT_TOKEN_REPLACED, text, warning=True)
        complete = made is not None
        for manifest in wanted:
            kind = manifest["kind"]
            if kind == "Deployment":
                if complete:
                    judging = self.rollouts.judge(
                        key, desired, manifest, live, body, token_hash=token.hash, pods=scaling.pods or ()
                    )
                    out.verdict = await tried(judging, out.problems) or out.verdict
                step = self._put_deployment(proxy, scaling.replicas, live, applied, out)
            else:
                step = self.put(proxy, manifest, applied, lives.get(part(manifest)))
            complete &= await tried(step, out.problems) is not None or kind not in _BEFORE_PODS
        stays = out.verdict.manifest is None  # its template is not applied on purpose
        out.rest = not all(applied.get(part(each)) or (stays and each["kind"] == "Deployment") for each in wanted)
        # What goes may be all that there is until what was refused takes its place.
        for unwanted in [] if out.problems else found:
            for what in await tried(prune(self.kube, proxy, wanted, [unwanted]), out.problems) or ():
                await self.events.tell(proxy, Reason.PRUNED, f"Deleted: {what}.", warning=False, about=what)
        return out

    async def put(self, proxy: Proxy, manifest: Object, applied: dict[str, str], live: Object | None) -> Object:
        kind: str = manifest["kind"]
        if not optional_kinds.is_granted(kind, self.settings):
            raise Invalid(optional_kinds.no_right(kind))
        try:
            try:
                return await put(self.kube, proxy, manifest, applied, live=live)
            except Conflict:  # replaced since it was read
                return await put(self.kube, proxy, manifest, applied)
        except NotFound as error:
            if (text := optional_kinds.not_there(kind)) is None:
                raise
            raise Invalid(text) from error

    async def _put_deployment(
        self, proxy: Proxy, replicas: int, live: Object | None, applied: dict[str, str], out: Outcome
    ) -> Object | None:
        """The Deployment as it was judged, or only its number of pods."""
        if out.verdict.manifest is not None:
            out.deployment = await self.put(proxy, out.verdict.manifest, applied, live)
        elif live is not None:
            if not is_ours(live, proxy):
                raise NameTaken("Deployment", proxy.name)
            if live["spec"].get("replicas") != replicas:
                uid = live["metadata"]["uid"]
                out.deployment = await self.kube.set_replicas(proxy.namespace, proxy.name, replicas, uid=uid)
        return out.deployment


async def tried(step: Awaitable[_Result], problems: list[Problem]) -> _Result | None:
    """The result, or None and one more problem: what comes after is tried nevertheless. No other error is a refusal."""
    try:
        return await step
    except NamespaceTerminating:
        raise
    except NameTaken as taken:
        problems.append(Problem(reason=Reason.NAME_TAKEN, message=str(taken)))
    except (Invalid, Forbidden, Conflict) as refused:
        problems.append(Problem(reason=Reason.APPLY_REFUSED, message=str(refused)))
    return None
