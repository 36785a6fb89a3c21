"""Deletion: what is waited for, what is not, and that no row goes unseen. Against a fake API and proxies that drain."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.clusters import EPOCH, IPS, Clock, Cluster, connection
from tests.operator.draining_proxies import Buffer, Drainable, running_drainable
from tests.operator.resources import resource

from tinybird_proxy_operator.deletion import DRAINING_S, OVERDUE_S, Release, at_once, decide, farewells, verdict
from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import (
    DELETE_ANNOTATION,
    KIND,
    Reason,
    finalizer,
    selector_labels,
)
from tinybird_proxy_operator.observed import PodFacts, ProxyReport
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.spec import Drain
from tinybird_proxy_operator.testing.fake_api import running_api
from tinybird_proxy_operator.testing.field_owners import Object

OURS, THEIRS = finalizer(""), "example.com/theirs"
DELETED_AT = "2026-01-01T00:16:40Z"  # what the cluster's clock begins with
RUNNING = {"containerStatuses": [{"name": "proxy", "state": {"running": {}}}]}
WAITING = {"containerStatuses": [{"name": "proxy", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}


# What decides.


def facts(name: str = "p-1", *, running: bool = True, **said: Any) -> PodFacts:
    """A pod; without anything said it did not answer."""
    well: dict[str, Any] = {"rows": 0, "size_bytes": 0, "utilisation": 0.0, "oldest_age_s": None, "stuck_rows": 0}
    token = {"token_hash": None, "token_accepted": False, "token_denied": False, "candidate_rejected": False}
    answer = ProxyReport(**{**well, "stuck": [], **token, **said}) if said else None
    return PodFacts(
        name=name, ip=IPS[0], ready=False, waiting=None, out_of_memory=False, report=answer, running=running
    )


SILENT, ABSENT = facts(), facts(running=False)
EMPTY, HOLDING = facts(draining=True, refusing=True, rows=0), facts(draining=True, refusing=True, rows=7)


@pytest.mark.parametrize(
    ("metadata", "spec", "why"),
    [
        ({}, {}, None),
        ({"finalizers": [OURS, THEIRS]}, {"managementState": "Managed"}, None),
        ({"finalizers": [OURS, "foregroundDeletion"]}, {}, Release.FOREGROUND),
        ({"finalizers": ["orphan", OURS]}, {}, Release.ORPHANED),
        ({"annotations": {DELETE_ANNOTATION: "now"}}, {}, Release.NOW),
        ({"annotations": {DELETE_ANNOTATION: "later"}}, {}, None),
        ({"annotations": None, "finalizers": None}, None, None),
        ({}, {"managementState": "Unmanaged"}, Release.UNMANAGED),
    ],
)
def test_what_the_resource_itself_says_is_not_waited_for(
    metadata: Object, spec: Object | None, why: Release | None
) -> None:
    assert at_once({"metadata": metadata, "spec": spec}) is why


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("overdue", [False, True])
@pytest.mark.parametrize(
    ("pods", "empty"),
    [
        ([], True),
        ([EMPTY], True),
        ([EMPTY, EMPTY], True),
        ([ABSENT, EMPTY], True),
        ([HOLDING], False),
        ([EMPTY, HOLDING], False),
        ([facts(draining=False, rows=0)], False),
        ([facts(draining=False, rows=7)], False),
        ([SILENT], False),
        ([EMPTY, SILENT], False),
        ([facts(draining=True, rows=0)], False),
        ([facts(draining=True, refusing=True, rows=0, dead_letter_rows=9)], True),
        ([facts(running=False, draining=True, rows=7)], False),
    ],
)
def test_pods_are_waited_for_until_each_is_known_to_be_empty_or_the_deadline_drops_them(
    pods: list[PodFacts], empty: bool, overdue: bool, drop: bool
) -> None:
    drain = Drain(on_deadline="Drop" if drop else "Keep")
    assert decide(pods, drain, has_workload=False, overdue=overdue) is Release.NO_WORKLOAD
    found = decide(pods, drain, has_workload=True, overdue=overdue)
    assert found is (Release.EMPTY if empty else Release.DROPPED if overdue and drop else None)


def test_the_condition_says_what_is_left_why_and_what_to_do() -> None:
    proxy = resource({"drain": {"deadlineSeconds": 30}})
    pods = [facts(draining=True, rows=1234, stuck=["clicks: Tinybird answers 403."], dead_letter_rows=1), facts("p-2")]
    status, reason, message = verdict(proxy, pods, overdue=False, hindrance=None)
    assert (status, reason) == ("True", Reason.DELETING)
    assert message == (
        "1,200 rows are left in 1 pods. p-2 did not answer: what is there is not known. clicks: Tinybird answers 403."
        " It goes when no pod holds a row. 1 row is in dead letters, which are in the pods' memory and go with them;"
        " they are not waited for."
    )
    status, reason, message = verdict(proxy, pods, overdue=True, hindrance="The Secret is gone.")
    assert (status, reason) == ("False", Reason.DRAIN_DEADLINE_EXCEEDED)
    assert message.startswith("Not empty after 30 s: 1,200 rows are left")
    for part in (
        "The Secret is gone. clicks",
        "annotate tbp events tinybird-proxy.io/delete=now",
        "onDeadline to Drop",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("why", "pods", "rows", "reasons"),
    [
        (Release.EMPTY, [EMPTY], 5, []),
        (Release.EMPTY, [facts(draining=True, rows=0, dead_letter_rows=3)], 0, ["DeadLettersDropped"]),
        (Release.NOW, [], 5, ["RowsDropped"]),
        (Release.NOW, [], 0, []),
        (Release.FOREGROUND, [], 5, []),
        (Release.DROPPED, [HOLDING], 0, ["RowsDropped"]),
        (Release.DROPPED, [SILENT], 0, ["RowsDropped"]),
        (Release.DROPPED, [facts(draining=True, rows=7, dead_letter_rows=3)], 0, ["RowsDropped", "DeadLettersDropped"]),
    ],
)
def test_what_goes_unwaited_for_is_told(why: Release, pods: list[PodFacts], rows: int, reasons: list[str]) -> None:
    told = farewells(why, resource(), pods, {"buffer": {"rows": rows}})
    assert [str(reason) for reason, _ in told] == reasons
    assert all("pods" in message for _, message in told)


NOT_KNOWN = "p-2 did not answer: what is there is not known."


def last_look(message: str, rows: int | None) -> dict[str, Any]:
    buffer = {} if rows is None else {"buffer": {"rows": rows}}
    return {"conditions": [{"type": "BufferHealthy", "message": message}], **buffer}


@pytest.mark.parametrize(
    ("old", "said"),
    [
        ({}, None),
        (last_look("Nothing is buffered.", 0), None),
        (last_look("Rows are delivered.", 7), "7 rows are left at the last look."),
        (
            last_look(f"Rows are delivered. {NOT_KNOWN}", 7),
            f"7 rows are left at the last look. At the last look {NOT_KNOWN}",
        ),
        (last_look(f"Nothing is buffered. {NOT_KNOWN}", 0), f"At the last look {NOT_KNOWN}"),
        (last_look("As it was.", None), "No pod answered at the last look: what they hold is not known."),
    ],
)
def test_where_the_pods_are_not_asked_any_more_what_nobody_knew_of_them_is_told_and_not_nothing(
    old: dict[str, Any], said: str | None
) -> None:
    told = farewells(Release.NOW, resource(), [], old)
    assert [reason for reason, _ in told] == ([] if said is None else [Reason.ROWS_DROPPED])
    for _, message in told:
        assert message.startswith(f"Deleted, for {Release.NOW}. {said} Its pods go on delivering")


def test_of_pods_that_do_not_answer_and_are_dropped_it_is_told_that_nobody_knows_and_nothing_else() -> None:
    [(_, message)] = farewells(Release.DROPPED, resource(), [SILENT], {})
    assert f"{Release.DROPPED}. p-1 did not answer: what is there is not known. Its pods go on" in message


# What acts.


@dataclass(slots=True)
class SkewedClock(Clock):
    """A wall clock that may be wrong."""

    skew_s: float = 0.0

    def utc_now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds + self.skew_s)


class Deleting(Cluster):
    """A cluster with proxies that drain."""

    proxies: Drainable
    clock: SkewedClock

    async def installed_and_deleted(
        self, spec: Object | None = None, *, rows: tuple[int, ...] = (), **kept: Any
    ) -> None:
        """A resource with two pods that is being deleted in the background."""
        await self.installed({"replicas": 2, **(spec or {})})
        self.pods_run()
        self.proxies.hold(*rows)
        self.delete(**kept)

    def pods_run(self) -> None:
        """As their node says."""
        for pod in self.api.all("Pod"):
            self.api.put({**pod, "status": {**pod["status"], **RUNNING}})

    def delete(self, *more: str, annotations: dict[str, str] | None = None) -> None:
        """As kubectl does; ``more``: finalizers of Kubernetes."""
        body = self.api.get(KIND, "events")
        metadata = {**body["metadata"], "deletionTimestamp": f"{self.clock.utc_now():%Y-%m-%dT%H:%M:%SZ}"}
        metadata["finalizers"] = [*metadata.get("finalizers", []), *more]
        self.api.put({**body, "metadata": {**metadata, "annotations": annotations or {}}})

    def restart(self) -> None:
        """Another process of the operator."""
        self.reconciler = self.operator()

    def gone(self) -> bool:
        return "events" not in self.api.names(KIND)

    @property
    def finalizers(self) -> list[str]:
        found: list[str] = self.api.get(KIND, "events")["metadata"].get("finalizers", [])
        return found

    @property
    def written(self) -> list[str]:
        """Paths of all writes, but those of Events and of the resource itself."""
        return [path for _, path in self.api.writes if "/events" not in path or "/deployments/" in path]


@asynccontextmanager
async def running_deleting(directory: Path) -> AsyncIterator[Deleting]:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        kube = await stack.enter_async_context(connection(api, directory))
        proxies = await stack.enter_async_context(running_drainable())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        api.put({"kind": "Namespace", "metadata": {"name": "shop"}, "spec": {}})
        yield Deleting(api, kube, proxies, session, SkewedClock())


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Deleting]:
    async with running_deleting(tmp_path) as running:
        yield running


async def test_the_finalizer_is_put_beside_others_once_there_is_a_deployment(cluster: Deleting) -> None:
    cluster.resource({"replicas": 1}, finalizers=[THEIRS])
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS, OURS]
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_nothing_keeps_a_resource_that_the_operator_could_not_carry_out(cluster: Deleting) -> None:
    cluster.resource({"replicas": 1, "image": "evil/proxy:1"})
    await cluster.reconcile()
    assert cluster.finalizers == []


async def test_a_resource_that_changed_since_it_was_read_keeps_what_others_have_put_on_it(cluster: Deleting) -> None:
    cluster.resource({"replicas": 1})
    cluster.api.fail(409, method="PATCH", path="tinybirdproxies/events")
    assert await cluster.reconciler.reconcile(Key("shop", "events")) == 0.0
    cluster.resource({"replicas": 1}, finalizers=[THEIRS])
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS, OURS]


@pytest.mark.parametrize("spec", [{"managementState": "Unmanaged"}, {"controllerClass": "blue"}])
async def test_an_operator_that_no_longer_looks_after_a_resource_takes_its_finalizer_along(
    cluster: Deleting, spec: Object
) -> None:
    await cluster.installed({"replicas": 1})
    blue = finalizer("blue")
    cluster.resource({"replicas": 1, **spec}, finalizers=[THEIRS, OURS, blue])
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS, blue]


async def test_each_class_of_operators_has_a_finalizer_of_its_own(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.reconciler = cluster.operator(CONTROLLER_CLASS="blue")
    await cluster.reconcile()
    assert cluster.finalizers == [OURS]
    assert finalizer("blue") == "blue.tinybird-proxy.io/drain"


async def test_idle_pods_are_told_to_drain_and_the_resource_goes_in_the_same_look(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.forget()
    assert await cluster.reconcile() is None
    assert cluster.gone()
    assert [cluster.proxies.buffers[ip].orders for ip in IPS] == [1, 1, 0]
    assert cluster.told() == []
    assert [method for method, _ in cluster.api.writes] == ["PATCH"]  # the finalizer, and nothing else


async def test_only_our_finalizer_is_removed(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.api.put(
        {**(body := cluster.api.get(KIND, "events")), "metadata": {**body["metadata"], "finalizers": [OURS, THEIRS]}}
    )
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS]
    cluster.forget()
    assert await cluster.reconcile() is None
    assert cluster.api.writes == []


async def test_a_resource_with_rows_stays_until_they_are_delivered_and_says_so(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(1234, 0))
    assert await cluster.reconcile() == DRAINING_S
    assert cluster.condition("Draining") == ("True", "Deleting")
    assert "1,200 rows are left in 1 pods." in cluster.message("Draining")
    assert cluster.condition("Ready") == ("False", "Deleting")
    pods = [("events-1-0", 1200), ("events-1-1", 0)]
    assert cluster.status()["draining"] == [{"pod": name, "rows": rows, "since": DELETED_AT} for name, rows in pods]
    cluster.clock.seconds += 5
    cluster.proxies.hold(34)
    assert await cluster.reconcile() == DRAINING_S
    assert [buffer.orders for buffer in cluster.proxies.buffers.values()] == [1, 1, 0]
    assert not cluster.gone()
    cluster.proxies.hold(0)
    assert await cluster.reconcile() is None
    assert cluster.gone()
    assert cluster.told() == []


async def test_figures_alone_are_no_reason_to_write_the_status(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(500,))
    await cluster.reconcile()
    cluster.forget()
    cluster.proxies.hold(400)
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_nothing_is_applied_scaled_or_made_anew_meanwhile(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "spec": {**body["spec"], "replicas": 3, "batch": {"maxRows": 7}}})
    cluster.api.remove("Service", "events")
    cluster.forget()
    await cluster.reconcile()
    assert cluster.written == []
    assert "Service" not in {each["kind"] for each in cluster.api.all("Service")}


async def test_a_pod_that_does_not_answer_is_waited_for_and_named(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.proxies.buffers[IPS[1]].answers = False
    await cluster.reconcile()
    assert "events-1-1 did not answer: what is there is not known." in cluster.message("Draining")
    assert not cluster.gone()
    cluster.proxies.buffers[IPS[1]].answers = True
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_pod_whose_container_never_ran_holds_nothing(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    pod = cluster.api.get("Pod", "events-1-1")
    cluster.api.put({**pod, "status": {**pod["status"], **WAITING}})
    cluster.proxies.buffers[IPS[1]].answers = False
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_pod_that_comes_later_or_forgets_is_told_as_well(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5, 0))
    await cluster.reconcile()
    cluster.proxies.buffers[IPS[1]].draining = False
    sets = cluster.api.get("ReplicaSet", "events-1")
    cluster.pod("events-1-2", sets, labels=selector_labels("events"), ip=IPS[2], **RUNNING)
    await cluster.reconcile()
    assert [cluster.proxies.buffers[ip].orders for ip in IPS] == [1, 2, 1]


async def test_a_pod_that_only_carries_our_labels_is_neither_told_nor_waited_for(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "theirs", "namespace": "shop"}, "spec": {}})
    cluster.pod("theirs-1", stranger, labels=selector_labels("events"), ip=IPS[2], **RUNNING)
    cluster.proxies.buffers[IPS[2]].rows = 9
    await cluster.reconcile()
    assert cluster.gone()
    assert IPS[2] not in [ip for ip, _ in cluster.proxies.shown]


@pytest.mark.parametrize("more", [("foregroundDeletion",), ("orphan",)])
async def test_what_kubernetes_decides_by_itself_is_not_waited_for_and_no_pod_is_told(
    cluster: Deleting, more: tuple[str, ...]
) -> None:
    await cluster.installed({"replicas": 2})
    cluster.proxies.hold(5, 5)
    cluster.delete(*more)
    assert await cluster.reconcile() is None
    assert cluster.finalizers == [*more]
    assert cluster.proxies.shown == []


async def test_a_namespace_that_goes_takes_the_resource_along(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.api.put({"kind": "Namespace", "metadata": {"name": "shop", "deletionTimestamp": DELETED_AT}, "spec": {}})
    await cluster.reconcile()
    assert cluster.gone()
    assert cluster.proxies.shown == []


async def test_without_the_right_to_read_the_namespace_it_drains_as_ever(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.api.fail(403, path="/api/v1/namespaces/shop", times=1)
    await cluster.reconcile()
    assert not cluster.gone()
    assert cluster.proxies.shown != []


async def test_the_annotation_lets_it_go_and_the_rows_are_told(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    await cluster.reconcile()
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "metadata": {**body["metadata"], "annotations": {DELETE_ANNOTATION: "now"}}})
    await cluster.reconcile()
    assert cluster.gone()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "RowsDropped")
    assert "5 rows are left at the last look" in message


async def test_the_annotation_lets_it_go_with_pods_that_do_not_answer_and_that_is_told(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    for ip in IPS[:2]:
        cluster.proxies.buffers[ip].answers = False
    await cluster.reconcile()
    assert "buffer" not in cluster.status()
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "metadata": {**body["metadata"], "annotations": {DELETE_ANNOTATION: "now"}}})
    await cluster.reconcile()
    assert cluster.gone()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "RowsDropped")
    assert "No pod answered at the last look: what they hold is not known." in message


async def test_unmanaged_resources_and_those_without_a_workload_or_pods_go_at_once(cluster: Deleting) -> None:
    for step in ("unmanaged", "no deployment", "no pods", "foreign"):
        await cluster.installed_and_deleted(rows=(5, 5))
        deployment = cluster.api.get("Deployment", "events")
        if step == "unmanaged":
            body = cluster.api.get(KIND, "events")
            cluster.api.put({**body, "spec": {**body["spec"], "managementState": "Unmanaged"}})
        elif step == "no deployment":
            cluster.api.remove("Deployment", "events")
        elif step == "foreign":
            cluster.api.put({**deployment, "metadata": {**deployment["metadata"], "ownerReferences": []}})
        else:
            cluster.api.remove("ReplicaSet", "events-1")
        await cluster.reconcile()
        assert cluster.gone(), step
        assert cluster.proxies.shown == []
        if step == "foreign":
            cluster.api.remove("Deployment", "events")


async def test_a_resource_that_cannot_be_read_drains_with_the_defaults(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "spec": {"replicas": "many"}})
    assert await cluster.reconcile() == DRAINING_S
    assert cluster.condition("Draining") == ("True", "Deleting")
    cluster.proxies.hold(0)
    await cluster.reconcile()
    assert cluster.gone()


async def test_at_the_deadline_keep_stays_says_why_and_goes_by_itself_later(cluster: Deleting) -> None:
    await cluster.installed_and_deleted({"drain": {"deadlineSeconds": 60}}, rows=(5,))
    await cluster.reconcile()
    cluster.clock.seconds += 59
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("True", "Deleting")
    cluster.clock.seconds += 1
    assert await cluster.reconcile() == OVERDUE_S
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    assert "Tinybird does not answer" in cluster.message("Draining")
    assert [reason for _, reason, _ in cluster.told()] == ["DrainDeadlineExceeded"]
    cluster.clock.seconds += 10_000
    await cluster.reconcile()
    assert not cluster.gone()
    cluster.proxies.hold(0)
    await cluster.reconcile()
    assert cluster.gone()


async def test_at_the_deadline_drop_tells_the_rows_and_lets_go(cluster: Deleting) -> None:
    spec = {"drain": {"deadlineSeconds": 60, "onDeadline": "Drop", "shutdownTimeoutSeconds": 15}}
    await cluster.installed_and_deleted(spec, rows=(5,))
    await cluster.reconcile()
    cluster.clock.seconds += 60
    cluster.api.fail(409, method="PATCH", path="tinybirdproxies/events")
    await cluster.reconcile()
    assert cluster.gone()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "RowsDropped")
    assert message.startswith("Deleted, for spec.drain.deadlineSeconds is over")
    assert "5 rows are left in 1 pods. clicks: Tinybird does not answer" in message
    assert "up to 15 s" in message


@pytest.mark.parametrize("skew", [timedelta(days=400), timedelta(days=-400)])
async def test_a_wrong_clock_neither_drops_rows_early_nor_keeps_them_for_ever(
    cluster: Deleting, skew: timedelta
) -> None:
    await cluster.installed_and_deleted({"drain": {"deadlineSeconds": 60, "onDeadline": "Drop"}}, rows=(5,))
    body = cluster.api.get(KIND, "events")
    at = datetime.fromisoformat(DELETED_AT) + skew
    cluster.api.put({**body, "metadata": {**body["metadata"], "deletionTimestamp": f"{at:%Y-%m-%dT%H:%M:%SZ}"}})
    await cluster.reconcile()
    cluster.clock.seconds += 59
    await cluster.reconcile()
    assert not cluster.gone()
    cluster.clock.seconds += 1
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_restarted_operator_counts_anew_unless_the_deadline_was_over_by_then(cluster: Deleting) -> None:
    await cluster.installed_and_deleted({"drain": {"deadlineSeconds": 60}}, rows=(5,))
    await cluster.reconcile()
    cluster.clock.seconds += 59
    cluster.restart()
    await cluster.reconcile()
    cluster.clock.seconds += 59
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("True", "Deleting")
    cluster.clock.seconds += 1
    await cluster.reconcile()
    cluster.restart()
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "spec": {**body["spec"], "drain": {"deadlineSeconds": 600}}})
    cluster.restart()
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("True", "Deleting")


async def test_dead_letters_are_told_and_not_waited_for(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.proxies.buffers[IPS[1]].dead_letters = 3
    await cluster.reconcile()
    assert "3 rows are in dead letters" in cluster.message("Draining")
    cluster.proxies.hold(0)
    await cluster.reconcile()
    assert cluster.gone()
    assert [(kind, reason) for kind, reason, _ in cluster.told()] == [("Warning", "DeadLettersDropped")]


@pytest.mark.parametrize("data", [None, {}, {"token": "***"}, {"token": base64.b64encode(b"\xff").decode()}])
async def test_without_the_admin_token_it_waits_and_names_the_secret(cluster: Deleting, data: Object | None) -> None:
    await cluster.installed_and_deleted()
    secret = cluster.api.get("Secret", "events-admin")
    if data is None:
        cluster.api.remove("Secret", "events-admin")
    else:
        cluster.api.put({**secret, "data": data})
    await cluster.reconcile()
    assert "Secret events-admin, with the token that tells pods to drain, is gone" in cluster.message("Draining")
    assert cluster.proxies.shown == []
    cluster.api.put({**secret, "metadata": {**secret["metadata"], "ownerReferences": []}})
    await cluster.reconcile()
    assert cluster.proxies.shown == []
    cluster.api.put(secret)
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_pod_that_refuses_the_order_is_named(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.proxies.token = "another"
    await cluster.reconcile()
    text = "events-1-0, events-1-1 did not begin to drain with the token of Secret events-admin."
    assert text in cluster.message("Draining")
    assert "another" not in str(cluster.status())
    assert "token-1" not in str(cluster.status())


class Killed(BaseException):
    """The process ended."""


class Mortal(Kube):
    """A client whose process ends with its last request: before it, or with its answer still on the way."""

    def __init__(self, cluster: Cluster, *, requests: int, done: bool) -> None:
        super().__init__(cluster.kube._client)
        self.left = requests
        self.done = done

    async def _call(self, *args: Any, **kwargs: Any) -> Object:
        self.left -= 1
        if self.left < 0 and not self.done:
            raise Killed
        answer = await super()._call(*args, **kwargs)
        if self.left < 0:
            raise Killed
        return answer


@pytest.mark.parametrize("done", [False, True])
async def test_ended_at_any_request_the_next_operator_comes_to_the_same(cluster: Deleting, done: bool) -> None:
    survived, requests = False, 0
    while not survived:
        await cluster.installed_and_deleted(rows=(5,))
        real, cluster.kube = cluster.kube, Mortal(cluster, requests=requests, done=done)
        mortal, cluster.kube = cluster.operator(), real
        try:
            await mortal.reconcile(Key("shop", "events"))
            assert not cluster.gone()
            cluster.proxies.hold(0)
            await mortal.reconcile(Key("shop", "events"))
            survived = True
        except Killed:
            pass
        cluster.restart()
        if cluster.proxies.buffers[IPS[0]].rows:
            await cluster.reconcile()
            assert cluster.condition("Draining") == ("True", "Deleting")
            cluster.proxies.hold(0)
        await cluster.reconcile()
        assert cluster.gone()
        assert cluster.api.all("Deployment") == []
        assert cluster.told() == []
        cluster.proxies.buffers.update({ip: Buffer() for ip in IPS})
        requests += 1
    assert requests > 12


# Any history.


STEPS = st.one_of(
    st.tuples(st.just("look"), st.just(0)),
    st.tuples(st.just("time passes"), st.integers(1, 40)),
    st.tuples(st.just("the wall's clock jumps"), st.integers(-1000, 1000)),
    st.tuples(st.just("rows come"), st.integers(0, 2)),
    st.tuples(st.just("rows are delivered"), st.integers(0, 2)),
    st.tuples(st.just("silence"), st.integers(0, 2)),
    st.tuples(st.just("an answer again"), st.integers(0, 2)),
    st.tuples(st.just("the drain is cancelled"), st.integers(0, 2)),
    st.tuples(st.just("a new pod"), st.just(2)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("the API server fails"), st.sampled_from([0, 409, 429, 500])),
    st.tuples(st.just("Drop"), st.just(0)),
    st.tuples(st.just("Keep"), st.just(0)),
    st.tuples(st.just("now"), st.just(0)),
)
LIKELY_STEPS = st.lists(STEPS | st.tuples(st.just("look"), st.just(0)), max_size=25)


@settings(max_examples=40, deadline=None)
@given(on_deadline=st.sampled_from(["Keep", "Drop"]), steps=LIKELY_STEPS)
def test_it_never_goes_while_a_pod_holds_rows_before_the_deadline_drop_or_the_annotation(
    on_deadline: str, steps: list[tuple[str, int]]
) -> None:
    with TemporaryDirectory() as directory:
        asyncio.run(history(Path(directory), on_deadline, steps))


async def history(directory: Path, on_deadline: str, steps: list[tuple[str, int]]) -> None:
    """Take the steps; whenever the resource has gone, it must have been allowed to."""
    deadline_s = 60
    drain: dict[str, Any] = {"deadlineSeconds": deadline_s, "onDeadline": on_deadline}
    async with running_deleting(directory) as cluster:
        await cluster.installed_and_deleted({"drain": drain}, rows=(1,))
        began_s = passed_s = cluster.clock.seconds
        pods = {0, 1}
        for step, number in [*steps, ("look", 0)]:
            buffer = cluster.proxies.buffers[IPS[number]] if number in (0, 1, 2) else Buffer()
            body = cluster.api.get(KIND, "events")
            match step:
                case "time passes":
                    cluster.clock.seconds += number
                    passed_s += number
                case "the wall's clock jumps":
                    cluster.clock.skew_s += number
                case "rows come" if not buffer.draining and number in pods:
                    buffer.rows += 3
                case "rows are delivered":
                    buffer.rows = 0
                case "silence" | "an answer again":
                    buffer.answers = step != "silence"
                case "the drain is cancelled":
                    buffer.draining = False
                case "a new pod" if number not in pods:
                    pods.add(number)
                    sets = cluster.api.get("ReplicaSet", "events-1")
                    cluster.pod("events-1-2", sets, labels=selector_labels("events"), ip=IPS[number], **RUNNING)
                case "restart":
                    cluster.restart()
                case "the API server fails":
                    cluster.api.fail(number)
                case "Drop" | "Keep":
                    drain = {"deadlineSeconds": deadline_s, "onDeadline": step}
                    cluster.api.put({**body, "spec": {**body["spec"], "drain": drain}})
                case "now":
                    cluster.api.put(
                        {**body, "metadata": {**body["metadata"], "annotations": {DELETE_ANNOTATION: "now"}}}
                    )
                case "look":
                    with suppress(KubeError):
                        await cluster.reconciler.reconcile(Key("shop", "events"))
            if cluster.gone():
                spec, annotations = body["spec"], body["metadata"]["annotations"]
                dropped = spec["drain"]["onDeadline"] == "Drop" and passed_s - began_s >= deadline_s
                held = sum(cluster.proxies.buffers[IPS[pod]].rows for pod in pods)
                assert held == 0 or dropped or DELETE_ANNOTATION in annotations
                return
