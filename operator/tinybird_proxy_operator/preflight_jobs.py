"""The preflight's hands: look at its Job and pod, make it, delete it, as ``preflight`` decides."""

from contextlib import suppress
from datetime import datetime

from tinybird_proxy_operator import preflight
from tinybird_proxy_operator.children import NameTaken, is_ours, template_hash
from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NamespaceTerminating
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.manifests.preflight import PREFLIGHT_LABEL, build
from tinybird_proxy_operator.preflight import Decision, Step


async def hold(
    kube: Kube,
    desired: Desired,
    live: Object | None,
    wanted: Object,
    *,
    changed: bool,
    token_hash: str | None,
    now: datetime,
) -> Decision | None:
    """Why the wanted Deployment must not be applied yet, after doing what is next for it; None if it may be applied.

    ``live``: the Deployment, if it is ours; ``changed``: the wanted template is not the one that was applied last.
    """
    proxy = desired.proxy
    job = await kube.find("Job", proxy.namespace, preflight.job_name(proxy.name))
    if not preflight.is_needed(proxy, live, wanted, changed=changed):
        if job is not None and is_ours(job, proxy):
            await _delete(kube, job)
        return None
    fields = preflight.changes(live, wanted)
    if job is not None and not is_ours(job, proxy):
        return preflight.failed(fields, str(NameTaken("Job", job["metadata"]["name"])))
    pods = [] if job is None else await kube.list("Pod", proxy.namespace, labels={PREFLIGHT_LABEL: proxy.name})
    checks = preflight.checks(template_hash(wanted), token_hash)
    decision = preflight.decide(fields, checks, job, pods, now=now)
    if decision.step is Step.START:
        if job is not None:
            await _delete(kube, job)
        try:
            with suppress(Conflict):  # the one before it is not gone yet: once more at the next look
                await kube.create(build(desired, checks))
        except NamespaceTerminating:
            raise
        except (Invalid, Forbidden) as refused:
            return preflight.failed(fields, f"its Job could not be made: {refused}")
    return None if decision.step is Step.GO else decision


async def _delete(kube: Kube, job: Object) -> None:
    metadata = job["metadata"]
    with suppress(Conflict):  # another one of that name by now
        await kube.delete("Job", metadata["namespace"], metadata["name"], uid=metadata["uid"])
