"""Scaling down through the whole operator, before a fake API, controllers as Kubernetes has them, and proxies."""

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.operator.clusters import EPOCH, IPS, TRIES, Clock, Cluster, connection
from tests.operator.draining_proxies import Drainable, running_drainable

from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.names import (
    DELETION_COST_ANNOTATION,
    DRAINING_LABEL,
    DRAINING_SINCE_ANNOTATION,
    KIND,
    selector_labels,
)
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.reconcile import FIGURES_S
from tinybird_proxy_operator.scaling.shrink import RETRY_S
from tinybird_proxy_operator.shrinking import DRAINING_S, RESTING_S
from tinybird_proxy_operator.testing.fake_api import running_api
from tinybird_proxy_operator.testing.field_owners import Object

A, B, C = (f"events-1-{number}" for number in range(3))
RUNNING = {"containerStatuses": [{"name": "proxy", "state": {"running": {}}}]}
NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"


class Scaled(Cluster):
    """A cluster whose controllers and kubelet can be let do their part."""

    proxies: Drainable

    async def with_pods(self, *rows: int, **spec: Any) -> None:
        """Three pods that run and hold so many rows."""
        await self.installed({"replicas": 3, **spec}, pods=3)
        self.proxies.token = self.admin_token()
        self.proxies.hold(*rows)
        self.kubernetes()
        await self.reconcile()
        self.forget()
        self.proxies.asked.clear()

    def admin_token(self) -> str:
        return base64.b64decode(self.api.get("Secret", "events-admin")["data"]["token"]).decode()

    def scale(self, replicas: int, **spec: Any) -> None:
        """As an autoscaler does, or an author."""
        body = self.api.get(KIND, "events")
        self.api.put({**body, "spec": {**body["spec"], "replicas": replicas, **spec}})

    def ip(self, pod: str) -> str:
        return str(self.api.get("Pod", pod)["status"]["podIP"])

    def set_ready(self, pod: str, ready: bool, **status: Any) -> None:
        found = self.api.get("Pod", pod)
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        self.api.put({**found, "status": {**found["status"], **RUNNING, **status, "conditions": conditions}})

    def kubelet(self) -> None:
        """Every pod is ready, but one that drains."""
        for pod in self.pods():
            self.set_ready(pod, not self.proxies.buffers[self.ip(pod)].draining)

    def kubernetes(self) -> None:
        """The kubelet's part, and that of the controllers."""
        self.kubelet()
        self.controllers()

    def controllers(self) -> None:
        """As many pods as the Deployment asks, by Kubernetes' own order, and what is told of them."""
        deployment = self.api.get("Deployment", "events")
        wanted = deployment["spec"]["replicas"]
        pods = sorted((self.api.get("Pod", pod) for pod in self.pods()), key=_order)
        for pod in pods[: max(0, len(pods) - wanted)]:
            self.api.remove("Pod", pod["metadata"]["name"])
        self.replica_set(wanted)
        names = [f"events-1-{number}" for number in range(3)]
        for name in [name for name in names if name not in self.pods()][: max(0, wanted - len(self.pods()))]:
            ip = next(ip for ip in IPS if ip not in [self.ip(pod) for pod in self.pods()])
            self.pod(name, self.api.get("ReplicaSet", "events-1"), labels=selector_labels("events"), ip=ip, **RUNNING)
        ready = sum(_is_ready(self.api.get("Pod", pod)) for pod in self.pods())
        counts = {"replicas": len(self.pods()), "updatedReplicas": len(self.pods())}
        counts |= {"readyReplicas": ready, "availableReplicas": ready}
        seen = {"observedGeneration": self.api.get("Deployment", "events")["metadata"]["generation"]}
        self.api.put({**self.api.get("Deployment", "events"), "status": {**counts, **seen}})

    def replica_set(self, replicas: int) -> None:
        """What it is to have, as its controller has seen."""
        found = self.api.put({**self.api.get("ReplicaSet", "events-1"), "spec": {"replicas": replicas}})
        self.api.put({**found, "status": {"observedGeneration": found["metadata"]["generation"]}})

    def pods(self) -> list[str]:
        return sorted(self.api.names("Pod"))

    def labelled(self) -> list[str]:
        pods = [self.api.get("Pod", pod)["metadata"] for pod in self.pods()]
        return [pod["name"] for pod in pods if DRAINING_LABEL in (pod.get("labels") or {})]

    def draining(self) -> list[str]:
        return [pod for pod in self.pods() if self.proxies.buffers[self.ip(pod)].draining]

    @property
    def replicas(self) -> int:
        return int(self.api.get("Deployment", "events")["spec"]["replicas"])

    async def turn(self, *, seconds: float = 1.0) -> float | None:
        """A look, and then time in which everybody else does their part."""
        again_s = await self.look()
        self.kubernetes()
        self.clock.seconds += seconds
        return again_s

    def conditions(self) -> list[str]:
        return [each["type"] for each in self.status()["conditions"]]

    def reasons(self) -> list[str]:
        return [reason for kind, reason, _ in self.told() if kind == "Warning"]


def _is_ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])


def _order(pod: Object) -> tuple[Any, ...]:
    """Who goes first."""
    annotations = pod["metadata"].get("annotations") or {}
    cost = int(annotations.get(DELETION_COST_ANNOTATION, "0"))
    return pod["status"]["phase"] != "Pending", _is_ready(pod), cost


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Scaled]:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        kube = await stack.enter_async_context(connection(api, tmp_path))
        proxies = await stack.enter_async_context(running_drainable())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        api.put({"kind": "Namespace", "metadata": {"name": "shop"}, "spec": {}})
        yield Scaled(api, kube, proxies, session, Clock())


async def test_the_emptiest_pod_is_marked_told_to_drain_and_let_go_when_it_is_empty(cluster: Scaled) -> None:
    await cluster.with_pods(5, 3, 9)
    cluster.scale(2)
    assert await cluster.turn() == DRAINING_S
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([B], [B], 3)
    metadata = cluster.api.get("Pod", B)["metadata"]
    since = f"{EPOCH + timedelta(seconds=1000):%Y-%m-%dT%H:%M:%SZ}"
    assert metadata["annotations"] == {DRAINING_SINCE_ANNOTATION: since, DELETION_COST_ANNOTATION: "-1000"}
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    assert cluster.message("Draining").startswith("1 of 3 pods drains: 3 rows are left in events-1-1.")
    await cluster.turn()
    assert cluster.status()["draining"] == [{"pod": B, "rows": 3, "since": since}]
    assert (cluster.status()["replicas"], cluster.status()["readyReplicas"]) == (2, 2)
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("Progressing") == ("False", "UpToDate")
    cluster.proxies.hold(5, 0, 9)
    assert await cluster.turn() == DRAINING_S
    assert cluster.replicas == 2
    assert cluster.pods() == [A, C]
    await cluster.turn()
    assert "Draining" not in cluster.conditions()
    assert "draining" not in cluster.status()
    assert cluster.reasons() == []


async def test_dead_letters_that_go_with_an_emptied_pod_are_told(cluster: Scaled) -> None:
    await cluster.with_pods(0, 0, 0)
    for buffer in cluster.proxies.buffers.values():
        buffer.dead_letters = 7
    cluster.scale(2)
    await cluster.turn()
    await cluster.turn()
    assert len(cluster.pods()) == 2
    [(kind, reason, message)] = cluster.told()
    assert (kind, reason) == ("Warning", "DeadLettersDropped")
    assert message.startswith("7 rows are in dead letters")


async def test_a_pod_that_still_takes_rows_is_not_let_go(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.proxies.delays = True
    cluster.scale(2)
    for _ in range(4):
        await cluster.turn()
    assert cluster.replicas == 3
    cluster.proxies.refuse()
    await cluster.turn()
    assert cluster.replicas == 2


async def test_a_pod_that_kubernetes_counts_as_ready_is_not_let_go(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    for _ in range(3):
        await cluster.look()
    assert cluster.replicas == 3
    cluster.kubernetes()
    await cluster.look()
    assert cluster.replicas == 2


async def test_a_pod_that_may_promise_the_rows_of_a_first_contact_yet_is_not_let_go(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.proxies.buffers[IPS[0]].not_promised = 4
    cluster.scale(2)
    for _ in range(4):
        await cluster.turn()
    assert (cluster.draining(), cluster.replicas) == ([A], 3)
    cluster.proxies.buffers[IPS[0]].not_promised = 0
    await cluster.turn()
    assert cluster.pods() == [B, C]


async def test_all_pods_drain_before_there_are_none(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(0)
    await cluster.turn()
    assert cluster.draining() == [A, B, C]
    cluster.proxies.hold(0, 0, 1)
    await cluster.turn()
    assert cluster.replicas == 3
    cluster.proxies.hold(0, 0, 0)
    await cluster.turn()
    assert (cluster.replicas, cluster.pods()) == (0, [])


async def test_nothing_is_read_twice_in_a_look_while_pods_drain(cluster: Scaled) -> None:
    await cluster.with_pods(1, 1, 1)
    cluster.scale(2)
    await cluster.turn()
    await cluster.reconcile()
    cluster.forget()
    cluster.proxies.asked.clear()
    await cluster.look()
    read = [asked.path for asked in cluster.api.asked if asked.method == "GET"]
    assert len(read) == len(set(read)) == 4  # the resource, its Deployment, ReplicaSets and pods
    assert sorted(cluster.proxies.asked) == sorted(IPS)


async def test_a_scale_up_cancels_the_drains_before_there_are_more_pods(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1)
    await cluster.turn()
    assert cluster.draining() == [A, B]
    cluster.forget()
    cluster.scale(4)
    await cluster.look()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 4)
    metadata = cluster.api.get("Pod", A)["metadata"]
    assert not metadata["annotations"]
    patched = [path.rsplit("/", 2)[1] for method, path in cluster.api.writes if method == "PATCH"]
    assert patched.index("deployments") > max(n for n, plural in enumerate(patched) if plural == "pods")


async def test_when_fewer_are_too_many_the_fullest_serves_again(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1)
    await cluster.turn()
    cluster.scale(2)
    await cluster.turn()
    assert (cluster.labelled(), cluster.draining()) == ([A], [A])


async def test_a_victim_whose_container_was_restarted_is_told_once_more(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    buffer = cluster.proxies.buffers[IPS[0]]
    buffer.draining = buffer.refusing = False
    await cluster.turn()
    assert buffer.draining
    assert buffer.orders == 2


async def test_another_operator_goes_on_where_the_one_before_was_ended(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.reconciler = cluster.operator()
    await cluster.turn()
    assert cluster.labelled() == [A]
    cluster.proxies.hold(0, 2, 3)
    await cluster.turn()
    assert cluster.pods() == [B, C]


async def test_a_pod_that_somebody_told_to_drain_serves_again(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.proxies.buffers[IPS[1]].draining = True
    await cluster.turn()
    assert cluster.proxies.told == [("DELETE", IPS[1])]
    assert cluster.draining() == []


async def test_a_process_that_stops_is_no_error(cluster: Scaled) -> None:
    await cluster.with_pods()
    buffer = cluster.proxies.buffers[IPS[1]]
    buffer.draining = buffer.stopping = True
    assert await cluster.turn() == DRAINING_S
    assert buffer.draining
    assert cluster.reasons() == []


async def test_pods_that_are_terminating_are_left_alone(cluster: Scaled) -> None:
    await cluster.with_pods()
    pod = cluster.api.get("Pod", B)
    cluster.api.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:16:40Z"}})
    cluster.proxies.buffers[IPS[1]].draining = True
    await cluster.look()
    assert cluster.proxies.told == []


async def test_an_unready_pod_goes_in_place_of_a_ready_one(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 300)
    cluster.set_ready(C, False)
    cluster.scale(2)
    await cluster.look()
    assert cluster.draining() == [C]
    assert cluster.replicas == 3


async def test_beside_an_unready_pod_nothing_goes(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 300)
    cluster.scale(2)
    await cluster.turn()
    cluster.set_ready(C, False)
    await cluster.look()
    assert (cluster.labelled(), cluster.replicas) == ([A], 3)
    assert "events-1-2 is not ready, and would go in their place" in cluster.message("Draining")
    cluster.kubernetes()
    await cluster.turn()
    assert cluster.pods() == [B, C]


async def test_during_a_rollout_nobody_drains(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "status": {**deployment["status"], "updatedReplicas": 1}})
    await cluster.look()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)


async def test_a_template_that_is_held_back_keeps_no_pod_from_going(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 3)
    cluster.scale(2, image=NEW_IMAGE, preflight="Disabled")
    await cluster.turn()
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    await cluster.turn()
    assert cluster.pods() == [B, C]
    await cluster.turn()
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")


async def test_a_changed_template_does_not_go_out_with_fewer_pods(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    await cluster.turn()
    cluster.scale(2, image=NEW_IMAGE, preflight="Disabled")
    await cluster.look()
    deployment = cluster.api.get("Deployment", "events")
    assert deployment["spec"]["replicas"] == 2
    assert NEW_IMAGE not in str(deployment)
    cluster.kubernetes()
    await cluster.look()
    assert NEW_IMAGE in str(cluster.api.get("Deployment", "events"))


async def test_nobody_drains_for_a_resource_that_cannot_be_carried_out(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.scale(1, image="evil/proxy:1")
    await cluster.turn()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)


async def test_pods_of_an_unmanaged_resource_are_not_touched(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1, managementState="Unmanaged")
    cluster.proxies.buffers[IPS[0]].draining = True
    await cluster.reconcile()
    assert cluster.labelled() == []
    assert cluster.proxies.told == []
    assert cluster.replicas == 3


async def test_a_pod_that_only_carries_our_labels_is_not_counted_or_told(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2)
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "theirs", "namespace": "shop"}, "spec": {}})
    cluster.api.remove("Pod", C)
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "spec": {**deployment["spec"], "replicas": 2}})
    cluster.controllers()
    cluster.pod("theirs-1", stranger, labels=selector_labels("events"), ip=IPS[2], **RUNNING)
    cluster.scale(1)
    await cluster.look()
    assert IPS[2] not in [ip for ip, _ in cluster.proxies.shown]
    assert cluster.labelled() == [A]


# The deadline.


async def with_rows_that_stay(cluster: Scaled, on_deadline: str = "Keep") -> None:
    """Two of three pods hold rows that are not delivered until the deadline is over."""
    await cluster.with_pods(1200, 34, 5000, drain={"deadlineSeconds": 10, "onDeadline": on_deadline})
    cluster.scale(1)
    await cluster.turn(seconds=9.0)
    await cluster.turn()
    assert (cluster.draining(), cluster.replicas) == ([A, B], 3)


async def overdue(cluster: Scaled, on_deadline: str = "Keep") -> None:
    """The same, and the operator has seen it."""
    await with_rows_that_stay(cluster, on_deadline)
    await cluster.look()


async def test_at_the_deadline_the_drain_is_cancelled_the_pods_stay_and_the_status_says_why(cluster: Scaled) -> None:
    await overdue(cluster)
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    for words in ("1,200 rows are left in events-1-0, events-1-1.", "Tinybird does not answer", "tried again at"):
        assert words in cluster.message("Draining")
    assert cluster.reasons() == ["DrainDeadlineExceeded"]
    assert cluster.api.get("Pod", A)["metadata"]["annotations"] == {}
    cluster.kubernetes()
    message = cluster.message("Draining")
    assert await cluster.look() == RESTING_S
    assert cluster.labelled() == []
    assert cluster.message("Draining") == message
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.message("Ready") == "3 pods are ready, 1 are wanted."


async def test_a_drain_that_was_given_up_is_so_even_if_the_status_could_not_be_written(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster)
    cluster.api.fail(503, method="PATCH", path="/status", times=TRIES)
    with pytest.raises(Unavailable):
        await cluster.look()
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    assert await cluster.look() == RESTING_S
    assert cluster.labelled() == []
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    assert "1,200 rows are left in events-1-0, events-1-1." in cluster.message("Draining")


@pytest.mark.parametrize("restarts", [False, True])
async def test_it_is_tried_again_after_five_minutes_whichever_operator_gave_it_up(
    cluster: Scaled, restarts: bool
) -> None:
    await overdue(cluster)
    if restarts:
        cluster.reconciler = cluster.operator()
    cluster.clock.seconds += RETRY_S - 2
    await cluster.turn(seconds=2.0)
    assert cluster.labelled() == []
    await cluster.turn()
    assert cluster.labelled() == [A, B]
    assert cluster.condition("Draining") == ("True", "ScalingDown")


async def test_it_is_tried_again_at_once_when_a_pod_delivers_again(cluster: Scaled) -> None:
    await overdue(cluster)
    await cluster.turn()
    cluster.proxies.hold(0, 34, 5000)
    await cluster.turn()
    assert cluster.labelled() == [A, B]
    cluster.proxies.hold(0, 0, 0)
    await cluster.turn()
    assert cluster.pods() == [C]


async def test_rows_are_dropped_at_the_deadline_where_that_is_asked_and_are_counted(cluster: Scaled) -> None:
    await overdue(cluster, "Drop")
    assert cluster.replicas == 1
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert "1,200 rows are left in events-1-0, events-1-1." in cluster.message("Draining")
    assert cluster.reasons() == ["RowsDropped"]
    cluster.kubernetes()
    assert cluster.pods() == [C]
    await cluster.look()
    assert cluster.condition("Draining") == ("False", "RowsDropped")


@pytest.mark.parametrize("status", [500, 0])
async def test_dropped_rows_are_told_if_the_answer_to_the_lower_number_is_lost(cluster: Scaled, status: int) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(status, method="PATCH", path="/deployments/", done_first=True)
    with pytest.raises(Unavailable):
        await cluster.look()
    assert cluster.replicas == 1
    assert cluster.reasons() == ["RowsDropped"]
    cluster.kubernetes()
    await cluster.look()
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert "1,200 rows are left in events-1-0, events-1-1." in cluster.message("Draining")
    await cluster.turn()
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert cluster.reasons() == ["RowsDropped"]


async def test_dropped_rows_are_in_a_later_status_if_this_one_cannot_be_written(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(503, method="PATCH", path="/status", times=TRIES)
    with pytest.raises(Unavailable):
        await cluster.look()
    cluster.kubernetes()
    await cluster.look()
    assert cluster.condition("Draining") == ("False", "RowsDropped")


async def test_rows_that_were_not_dropped_after_all_are_in_no_status(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(500, method="PATCH", path="/deployments/")
    with pytest.raises(Unavailable):
        await cluster.look()
    cluster.proxies.hold(0, 0, 0)
    for _ in range(3):
        await cluster.turn()
    assert cluster.replicas == 1
    assert "Draining" not in cluster.conditions()


async def test_a_drop_that_meets_a_change_of_the_deployment_is_told_once(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(409, method="PATCH", path="/deployments/")
    await cluster.look()
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    await cluster.turn()
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert cluster.reasons() == ["RowsDropped"]


async def test_dead_letters_and_a_wrong_pod_are_told_if_the_answer_is_lost(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 300)
    cluster.proxies.buffers[IPS[0]].dead_letters = 7
    cluster.proxies.buffers[IPS[1]].dead_letters = cluster.proxies.buffers[IPS[2]].dead_letters = 9
    cluster.scale(2)
    await cluster.turn()
    cluster.api.fail(500, method="PATCH", path="/deployments/", done_first=True)
    with pytest.raises(Unavailable):
        await cluster.look()
    assert (cluster.replicas, cluster.reasons()) == (2, ["DeadLettersDropped"])
    cluster.api.remove("Pod", C)
    cluster.controllers()
    await cluster.look()
    assert cluster.reasons() == ["DeadLettersDropped", "WrongPodRemoved"]


async def test_a_deadline_is_counted_on_our_own_clock_whatever_another_operators_clock_wrote(cluster: Scaled) -> None:
    await cluster.with_pods(500, 700, 5000)
    cluster.scale(1, drain={"deadlineSeconds": 10, "onDeadline": "Drop"})
    await cluster.turn()
    for name in (A, B):
        found = cluster.api.get("Pod", name)
        annotations = {**found["metadata"]["annotations"], DRAINING_SINCE_ANNOTATION: "2025-12-31T00:00:00Z"}
        cluster.api.put({**found, "metadata": {**found["metadata"], "annotations": annotations}})
    for _ in range(9):
        await cluster.turn()
    assert cluster.replicas == 3
    await cluster.turn()
    assert cluster.replicas == 1


async def test_another_operator_counts_the_deadline_anew(cluster: Scaled) -> None:
    await cluster.with_pods(500, 700, 5000)
    cluster.scale(1, drain={"deadlineSeconds": 10, "onDeadline": "Drop"})
    await cluster.turn()
    cluster.clock.seconds += 100
    cluster.reconciler = cluster.operator()
    await cluster.turn(seconds=10)
    assert cluster.replicas == 3
    await cluster.turn()
    assert cluster.replicas == 1


@pytest.mark.parametrize("how", ["Unmanaged", "controllerClass", "orphaned"])
async def test_who_drains_serves_again_before_the_operator_lets_the_resource_go(cluster: Scaled, how: str) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1)
    await cluster.turn()
    assert cluster.draining() == [A, B]
    body = cluster.api.get(KIND, "events")
    match how:
        case "Unmanaged":
            body["spec"]["managementState"] = "Unmanaged"
        case "controllerClass":
            body["spec"]["controllerClass"] = "blue"
        case _:
            body["metadata"]["deletionTimestamp"] = "2026-01-01T00:16:40Z"
            body["metadata"]["finalizers"] += ["orphan"]
    cluster.api.put(body)
    cluster.api.fail(409, method="PATCH", path="/pods/")
    await cluster.look()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)
    assert not cluster.api.get("Pod", A)["metadata"]["annotations"]
    if how != "orphaned":
        assert not cluster.api.get(KIND, "events")["metadata"].get("finalizers")


async def test_pods_that_cannot_be_told_to_serve_again_keep_no_resource(
    cluster: Scaled, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.proxies.buffers[IPS[0]].stopping = True
    cluster.scale(2, managementState="Unmanaged")
    await cluster.look()
    assert cluster.labelled() == []
    assert not cluster.api.get(KIND, "events")["metadata"].get("finalizers")
    assert "is let go while events-1-0 drain" in caplog.text


async def test_a_resource_that_is_unmanaged_already_is_left_alone(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(3, managementState="Unmanaged")
    await cluster.look()
    cluster.proxies.buffers[IPS[1]].draining = True
    await cluster.turn()
    assert cluster.draining() == [B]


# What is in the way.


async def test_without_the_admin_token_nobody_goes_and_the_secret_is_named(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    secret = cluster.api.get("Secret", "events-admin")
    cluster.api.put({**secret, "data": {}})
    cluster.scale(2)
    for _ in range(3):
        await cluster.turn()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([A], [], 3)
    assert "Secret events-admin, with the token" in cluster.message("Draining")


async def test_a_pod_that_refuses_the_token_is_named(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.proxies.token = "another"
    cluster.scale(2)
    await cluster.turn()
    assert "events-1-0 did not begin to drain" in cluster.message("Draining")


async def test_a_pod_that_cannot_be_marked_is_not_told_and_the_reason_is_said(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    cluster.api.fail(403, method="PATCH", path="/pods/", message="pods is forbidden")
    await cluster.look()
    assert cluster.draining() == []
    assert "pods is forbidden" in cluster.message("Draining")
    await cluster.look()
    assert cluster.draining() == [A]


@pytest.mark.parametrize("status", [409, 404])
async def test_a_pod_that_changed_since_it_was_read_is_left_to_the_next_look(cluster: Scaled, status: int) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    cluster.api.fail(status, method="PATCH", path="/pods/")
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([], [])
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([A], [A])


@pytest.mark.parametrize("status", [409, 403])
async def test_a_number_that_could_not_be_written_is_written_by_a_later_look(cluster: Scaled, status: int) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    await cluster.turn()
    cluster.api.fail(status, method="PATCH", path="/deployments/", message="not now")
    await cluster.look()
    assert (cluster.replicas, cluster.labelled()) == (3, [A])
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    await cluster.look()
    assert cluster.replicas == 2


async def test_a_wrong_pod_that_went_is_told_with_its_rows_and_the_victim_serves_again(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 300)
    cluster.scale(2)
    await cluster.turn()
    await cluster.look()
    assert cluster.replicas == 2
    await cluster.look()
    assert cluster.labelled() == [A]  # its time has not come yet
    cluster.api.remove("Pod", C)
    cluster.controllers()
    await cluster.look()
    assert cluster.reasons() == ["WrongPodRemoved"]
    assert "removed events-1-2 (300 rows) and not events-1-0" in cluster.told()[-1][2]
    assert (cluster.labelled(), cluster.draining()) == ([], [])
    await cluster.look()
    assert cluster.reasons() == ["WrongPodRemoved"]


async def test_no_victim_serves_again_while_its_replica_set_has_pods_in_excess(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    await cluster.turn()
    await cluster.look()
    deployment = cluster.api.get("Deployment", "events")
    seen = {**deployment["status"], "observedGeneration": deployment["metadata"]["generation"]}
    cluster.api.put({**deployment, "status": seen})
    cluster.replica_set(2)
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([A], [A])
    cluster.replica_set(3)
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([], [])


async def test_a_deployment_that_somebody_scaled_up_is_drained_back(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.reconciler.changed(Key("shop", "events"))
    cluster.proxies.hold(0, 0, 0)
    await cluster.turn()
    assert cluster.pods() == [B, C]
    assert await cluster.turn() in (DRAINING_S, FIGURES_S)
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "spec": {**deployment["spec"], "replicas": 3}})
    cluster.controllers()
    for _ in range(4):
        await cluster.turn()
    assert (cluster.replicas, len(cluster.pods())) == (2, 2)


async def test_a_resource_that_is_no_longer_there_is_forgotten(cluster: Scaled) -> None:
    await overdue(cluster)
    cluster.api.remove(KIND, "events")
    assert await cluster.reconcile() is None
