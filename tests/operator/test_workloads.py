"""The pods of a Deployment: whose they are, and whether one of them is about to go."""

from typing import Any

import pytest
from tests.operator.clusters import IPS, Cluster, owned

from tinybird_proxy_operator.names import selector_labels
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.spec import parse
from tinybird_proxy_operator.workloads import read_pods


async def pods(cluster: Cluster) -> list[PodFacts]:
    proxy = parse(cluster.api.get("TinybirdProxy", "events"))
    return await read_pods(cluster.kube, cluster.reconciler.pods, proxy, cluster.api.get("Deployment", "events"))


async def test_pods_are_ours_by_their_controllers_and_have_not_ended(cluster: Cluster) -> None:
    await cluster.installed()
    sets = cluster.api.get("ReplicaSet", "events-1")
    cluster.pod("events-1-9", sets, labels=selector_labels("events"), ip=IPS[2], phase="Failed")
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "theirs", "namespace": "shop"}, "spec": {}})
    cluster.pod("theirs-1", stranger, labels=selector_labels("events"), ip=IPS[2])
    assert [pod.name for pod in await pods(cluster)] == ["events-1-0", "events-1-1"]


@pytest.mark.parametrize(
    ("spec", "unseen", "terminating", "excess"),
    [
        ({}, 0, 0, False),
        ({"replicas": 2}, 0, 0, False),
        ({"replicas": 3}, 0, 0, False),
        ({"replicas": 1}, 0, 0, True),
        ({"replicas": 1}, 0, 1, False),
        ({"replicas": 2}, 1, 0, True),
    ],
)
async def test_pods_are_in_excess_while_their_set_has_too_many_or_has_not_seen_how_many(
    cluster: Cluster, spec: dict[str, Any], unseen: int, terminating: int, excess: bool
) -> None:
    await cluster.installed()
    sets = cluster.api.put({**cluster.api.get("ReplicaSet", "events-1"), "spec": spec})
    cluster.api.put({**sets, "status": {"observedGeneration": sets["metadata"]["generation"] - unseen}})
    for pod in cluster.api.all("Pod")[:terminating]:
        cluster.api.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:16:40Z"}})
    found = await pods(cluster)
    assert {pod.excess for pod in found} == {excess}
    assert sum(pod.terminating for pod in found) == terminating


@pytest.mark.parametrize(
    ("revisions", "newest"), [((None, None), []), (("nonsense", None), []), (("9", "10"), [2]), (("10", "9"), [1])]
)
async def test_the_pods_that_a_rollout_leads_to_are_those_of_the_highest_revision(
    cluster: Cluster, revisions: tuple[str | None, str | None], newest: list[int]
) -> None:
    await cluster.installed(pods=1)
    deployment, labels = cluster.api.get("Deployment", "events"), selector_labels("events")
    for number, revision in enumerate(revisions, start=1):
        metadata = owned(f"events-{number}", labels, deployment)
        if revision is not None:
            metadata["annotations"] = {"deployment.kubernetes.io/revision": revision}
        sets = cluster.api.put({"kind": "ReplicaSet", "metadata": metadata, "spec": {}})
        cluster.pod(f"events-{number}-0", sets, labels=labels, ip=IPS[number - 1])
    assert [pod.name for pod in await pods(cluster) if pod.newest] == [f"events-{number}-0" for number in newest]
