"""Deletion drains first: pods deliver what they hold before their workload goes, where Kubernetes leaves room for that.

A finalizer keeps a resource until then. ``at_once``, ``decide``, ``verdict`` and ``farewells`` are pure; ``Deletions``
takes the steps. Each look compares what is with what should be, so a step that was not finished, or not remembered, is
taken again. Meanwhile the operator applies, scales and creates nothing.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from tinybird_proxy_operator import drains
from tinybird_proxy_operator.errors import Forbidden, NamespaceTerminating, NotFound
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.names import DELETE_ANNOTATION, ConditionType, Reason, finalizer, two_digits
from tinybird_proxy_operator.observed import NOT_KNOWN, Observed, PodFacts, not_known
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.spec import Drain, Proxy

# How soon to look again: while pods drain, and when that takes longer than it should.
DRAINING_S: Final = 1.0
OVERDUE_S: Final = 5.0
_log = logging.getLogger("tinybird_proxy_operator")
_Verdict = tuple[str, Reason, str]  # status, reason, message
_Farewell = tuple[Reason, str]


class Release(StrEnum):
    """Why nothing keeps a resource that is being deleted any longer."""

    FOREGROUND = "foreground deletion takes the pods at the same time"
    ORPHANED = "its workload stays, and goes on working"
    NAMESPACE = "its namespace is being deleted, and the pods with it"
    UNMANAGED = "managementState is Unmanaged"
    NOW = f"the annotation {DELETE_ANNOTATION}=now"
    NO_WORKLOAD = "it has no Deployment"
    EMPTY = "no pod holds a row"
    DROPPED = "spec.drain.deadlineSeconds is over, and spec.drain.onDeadline is Drop"


# Nobody waits for the rows then, so what is known of them is told.
_WITH_ROWS: Final = (Release.NOW, Release.DROPPED)


def is_held(body: Mapping[str, Any], controller_class: str) -> bool:
    """Whether the finalizer of this operator's class is on the resource."""
    return finalizer(controller_class) in (body["metadata"].get("finalizers") or [])


def at_once(body: Mapping[str, Any]) -> Release | None:
    """Why there is nothing to wait for, as far as the resource itself tells."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    finalizers = metadata.get("finalizers") or []
    # These two are Kubernetes' own. Orphaned pods must not be drained: they would refuse rows for good.
    if "orphan" in finalizers:
        return Release.ORPHANED
    if "foregroundDeletion" in finalizers:
        return Release.FOREGROUND
    if spec.get("managementState") == "Unmanaged":
        return Release.UNMANAGED
    if (metadata.get("annotations") or {}).get(DELETE_ANNOTATION) == "now":
        return Release.NOW
    return None


def decide(pods: Sequence[PodFacts], drain: Drain, *, has_workload: bool, overdue: bool) -> Release | None:
    """Why it may go now, as far as its workload and its pods tell; None: it is waited for."""
    if not has_workload:
        return Release.NO_WORKLOAD
    if all(pod.holds_nothing for pod in pods):
        return Release.EMPTY
    return Release.DROPPED if overdue and drain.on_deadline == "Drop" else None


def verdict(proxy: Proxy, pods: Sequence[PodFacts], *, overdue: bool, hindrance: str | None) -> _Verdict:
    """The condition ``Draining``. ``hindrance``: why pods could not be told to drain."""
    left = _what_is_left(pods, hindrance)
    if not overdue:
        return "True", Reason.DELETING, f"{left} It goes when no pod holds a row.{drains.dead_letters(pods)}"
    message = (
        f"Not empty after {proxy.spec.drain.deadline_seconds} s: {left} It goes by itself when no pod holds a row."
        f" To delete it with what is left: kubectl annotate tbp {proxy.name} {DELETE_ANNOTATION}=now, or set"
        f" spec.drain.onDeadline to Drop.{drains.dead_letters(pods)}"
    )
    return "False", Reason.DRAIN_DEADLINE_EXCEEDED, message


def farewells(
    why: Release, proxy: Proxy, pods: Sequence[PodFacts], old: Mapping[str, Any], *, hindrance: str | None = None
) -> list[_Farewell]:
    """What is told when a resource goes: rows that nobody waits for, and dead letters. ``old``: its last status.

    ``pods``: empty where they were not asked.
    """
    told = []
    grace = f" Its pods go on delivering for up to {proxy.spec.drain.shutdown_timeout_seconds} s and log what is lost."
    if why in _WITH_ROWS and pods:
        told.append((Reason.ROWS_DROPPED, f"Deleted, for {why}. {_what_is_left(pods, hindrance)}{grace}"))
    elif why in _WITH_ROWS and (left := _what_was_left(old)):
        told.append((Reason.ROWS_DROPPED, f"Deleted, for {why}. {left}{grace}"))
    if letters := drains.dead_letters(pods):
        told.append((Reason.DEAD_LETTERS_DROPPED, letters.strip()))
    return told


def was_overdue(old: Mapping[str, Any]) -> bool:
    """Whether the last status says that the deadline was over."""
    draining = [found for found in old.get("conditions", []) if found.get("type") == ConditionType.DRAINING]
    return any(found.get("reason") == Reason.DRAIN_DEADLINE_EXCEEDED for found in draining)


@dataclass(slots=True)
class Deletions:
    """``utc_now`` is the wall's clock, ``now`` one in seconds that only goes forward."""

    kube: Kube
    pods: Pods
    events: Events
    controller_class: str
    utc_now: Callable[[], datetime]
    now: Callable[[], float]
    _seen: dict[Key, tuple[str, float]] = field(default_factory=dict)  # uid, and since when it is seen being deleted

    def forget(self, key: Key) -> None:
        """The resource is no more."""
        self._seen.pop(key, None)

    async def hold(self, body: Object) -> None:
        """Put the finalizer on, beside those of others. Raises ``Conflict`` if the resource has changed meanwhile."""
        if not is_held(body, self.controller_class):
            finalizers = body["metadata"].get("finalizers") or []
            await self.kube.set_finalizers(body, [*finalizers, finalizer(self.controller_class)])

    async def let_go(self, body: Object) -> None:
        """Take the finalizer off, and no other. Raises ``Conflict`` if the resource has changed meanwhile."""
        if is_held(body, self.controller_class):
            ours = finalizer(self.controller_class)
            try:
                await self.kube.set_finalizers(body, [each for each in body["metadata"]["finalizers"] if each != ours])
            except NotFound:
                return

    async def look(
        self, key: Key, proxy: Proxy, body: Object, observe: Callable[[], Awaitable[Observed]]
    ) -> Observed | None:
        """One look at a resource that is being deleted. None: it was released; else what is to be told of it.

        Raises ``Conflict`` if the resource has changed meanwhile.
        """
        if not is_held(body, self.controller_class):
            return None
        old = body.get("status") or {}
        why = at_once(body)
        if why is None and await self._namespace_goes(proxy.namespace):
            why = Release.NAMESPACE
        if why is not None:
            await self._release(why, proxy, body, farewells(why, proxy, [], old))
            return None
        overdue = self._is_overdue(key, proxy, body)
        observed = await observe()
        pods, hindrance = await self._drain(proxy, observed.pods)
        why = decide(pods, proxy.spec.drain, has_workload=observed.workload is not None, overdue=overdue)
        if why is not None:
            await self._release(why, proxy, body, farewells(why, proxy, pods, old, hindrance=hindrance))
            return None
        said = verdict(proxy, pods, overdue=overdue, hindrance=hindrance)
        if overdue:
            await self._tell(proxy, said[1], said[2])
        return replace(observed, pods=pods, draining=said)

    def _is_overdue(self, key: Key, proxy: Proxy, body: Object) -> bool:
        """Whether the deadline is over, for certain.

        It is counted on our own clock from when we first saw the deletion: ``deletionTimestamp`` is the API server's,
        and where its clock and ours differ, rows would be dropped early. After a restart the count begins anew, unless
        the status says that it had come to its end.
        """
        uid, since = self._seen.get(key, ("", 0.0))
        if uid != proxy.uid:
            self._seen[key] = (proxy.uid, since := self.now())
        deadline_s = proxy.spec.drain.deadline_seconds
        if self.now() - since >= deadline_s:
            return True
        deleted_at = datetime.fromisoformat(body["metadata"]["deletionTimestamp"])
        # The second part: somebody may have raised the deadline since.
        return was_overdue(body.get("status") or {}) and (self.utc_now() - deleted_at).total_seconds() >= deadline_s

    async def _namespace_goes(self, namespace: str) -> bool:
        try:
            found = await self.kube.find("Namespace", None, namespace)
        except Forbidden:
            return False  # the pods go with it in any case, and then there is nothing left to wait for
        return found is not None and "deletionTimestamp" in found["metadata"]

    async def _drain(self, proxy: Proxy, found: Sequence[PodFacts]) -> tuple[list[PodFacts], str | None]:
        """Tell every pod that answers and does not drain yet; what the pods say then, and what was in the way."""
        if all(pod.report is None or pod.report.draining for pod in found):
            return list(found), None
        token = await drains.admin_token(self.kube, proxy)
        if token is None:
            return list(found), drains.no_token(proxy)
        limit = asyncio.Semaphore(drains.TOLD_AT_ONCE)

        async def tell(pod: PodFacts) -> PodFacts:
            if pod.report is None or pod.report.draining:
                return pod
            async with limit:
                return await drains.begin(self.pods, pod, token)

        told = list(await asyncio.gather(*map(tell, found)))
        deaf = [pod.name for pod in told if pod.report is not None and not pod.report.draining]
        return told, drains.deaf(proxy, deaf) if deaf else None

    async def _release(self, why: Release, proxy: Proxy, body: Object, told: Sequence[_Farewell]) -> None:
        # Told before: afterwards there may be nobody left who knows.
        for reason, message in told:
            _log.warning("%s/%s: %s", proxy.namespace, proxy.name, message)
            await self._tell(proxy, reason, message)
        await self.let_go(body)
        _log.info("%s/%s is deleted: %s", proxy.namespace, proxy.name, why)

    async def _tell(self, proxy: Proxy, reason: Reason, message: str) -> None:
        try:
            await self.events.tell(proxy, reason, message, warning=True)
        except NamespaceTerminating:
            return  # nobody is left to tell, and the next look releases it


def _what_is_left(pods: Sequence[PodFacts], hindrance: str | None) -> str:
    """Rows, pods that do not answer, and why rows are not delivered, in sentences."""
    answers = [pod.report for pod in pods if pod.report is not None]
    rows, holders = sum(report.rows for report in answers), sum(report.rows > 0 for report in answers)
    sentences = []
    if rows:
        sentences.append(f"{_rows(rows)} left in {holders} pods.")
    elif answers or not not_known(pods):
        sentences.append("No row is left in the pods that answer.")
    if unknown := not_known(pods):
        sentences.append(unknown)
    if hindrance is not None:
        sentences.append(hindrance)
    sentences += [sentence for report in answers for sentence in report.stuck][:1]
    return " ".join(sentences)


def _what_was_left(old: Mapping[str, Any]) -> str:
    """The same of the last look, as the status tells; empty: no row, and no pod that did not answer."""
    conditions = old.get("conditions", [])
    said = [str(each.get("message")) for each in conditions if each.get("type") == ConditionType.BUFFER_HEALTHY]
    found = re.search(rf"[^.]*{re.escape(NOT_KNOWN)}", " ".join(said))
    unknown = "" if found is None else f" At the last look {found[0].strip()}"
    if "buffer" not in old:
        return "No pod answered at the last look: what they hold is not known." if old else ""
    rows = int(old["buffer"].get("rows", 0))
    return f"{_rows(rows)} left at the last look.{unknown}" if rows else unknown.strip()


def _rows(rows: int) -> str:
    return "1 row is" if rows == 1 else f"{two_digits(rows):,} rows are"
