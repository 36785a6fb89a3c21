"""The preflight's hands: look at its Job and pod, make it, delete it, as ``preflight`` decides."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from tinybird_proxy_operator import preflight
from tinybird_proxy_operator.children import NameTaken, is_ours, template_hash
from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NamespaceTerminating
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.manifests.preflight import PREFLIGHT_LABEL, build
from tinybird_proxy_operator.preflight import Decision, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A check that is needed: of which fields, as what its Job says it checks, the Job that is there, what to do."""

    fields: Sequence[str]
    checks: str
    job: Object | None
    decision: Decision


async def look(
    kube: Kube,
    desired: Desired,
    live: Object | None,
    wanted: Object,
    *,
    changed: bool,
    begun: bool,
    may_retry: bool,
    token_hash: str | None,
    now: datetime,
) -> Trial | None:
    """How the check of the wanted Deployment stands; None: it needs none, and what is left of one is deleted.

    ``live``: the Deployment, if it is ours; ``changed``: the wanted template is not the one that was applied last;
    ``begun``: it was to be tried before. Nothing is made yet: see ``begin``.
    """
    proxy = desired.proxy
    job = await kube.find("Job", proxy.namespace, preflight.job_name(proxy.name))
    ours = job if job is not None and is_ours(job, proxy) else None
    begun = begun or preflight.is_about(ours, template_hash(wanted))
    if not preflight.is_needed(proxy, live, wanted, changed=changed, begun=begun):
        if ours is not None:
            await _delete(kube, ours)
        return None
    fields = preflight.changes(live, wanted)
    checks = preflight.checks(template_hash(wanted), token_hash)
    if job is not None and ours is None:
        taken = preflight.failed(fields, str(NameTaken("Job", job["metadata"]["name"])))
        return Trial(fields=fields, checks=checks, job=job, decision=taken)
    pods = [] if job is None else await kube.list("Pod", proxy.namespace, labels={PREFLIGHT_LABEL: proxy.name})
    decision = preflight.decide(fields, checks, job, pods, now=now, may_retry=may_retry)
    return Trial(fields=fields, checks=checks, job=job, decision=decision)


async def begin(kube: Kube, desired: Desired, trial: Trial) -> Decision:
    """Make the Job, if that is what is to be done. Answers what comes of it: only with GO the template may go out."""
    if trial.decision.step is not Step.START:
        return trial.decision
    if trial.job is not None:
        await _delete(kube, trial.job)
    try:
        with suppress(Conflict):  # the one before it is not gone yet: once more at the next look
            await kube.create(build(desired, trial.checks))
    except NamespaceTerminating:
        raise
    except (Invalid, Forbidden) as refused:
        return preflight.failed(trial.fields, f"its Job could not be made: {refused}")
    return trial.decision


async def _delete(kube: Kube, job: Object) -> None:
    metadata = job["metadata"]
    with suppress(Conflict):  # another one of that name by now
        await kube.delete("Job", metadata["namespace"], metadata["name"], uid=metadata["uid"])
