"""`reconcile` while the API server fails: no half state that the next reconcile does not mend."""

import pytest
from tests.operator.clusters import TRIES, Cluster, owned
from tests.operator.resources import OWN_TOKEN, operator_settings

from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.names import KIND

CHILDREN = ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment")


def live_image(cluster: Cluster, name: str = "events") -> str:
    containers = cluster.api.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return str(containers[0]["image"])


@pytest.mark.parametrize(("status", "done_first"), [(0, True), (409, False), (503, False)])
async def test_whatever_request_fails_the_next_reconcile_mends_it(
    cluster: Cluster, status: int, done_first: bool
) -> None:
    cluster.secret()
    cluster.resource(OWN_TOKEN)
    await cluster.reconcile()
    requests = [(asked.method, asked.path) for asked in cluster.api.asked]
    times = 1 if status == 409 else TRIES
    wanted = {(kind, name) for kind in (*CHILDREN, "Secret") for name in cluster.api.names(kind)}
    for method, path in sorted(set(requests)):
        for kind in (*CHILDREN, "Secret", KIND):
            for name in cluster.api.names(kind):
                cluster.api.remove(kind, name)
        cluster.secret()
        cluster.reconciler = cluster.operator()
        cluster.resource(OWN_TOKEN)
        cluster.api.heal()
        cluster.api.fail(status, method=method, path=path, done_first=done_first, times=times)
        for _ in range(6):
            cluster.forget()
            try:
                await cluster.reconcile()
            except KubeError:
                continue
            if not cluster.api.writes:
                break
        made = {(kind, name) for kind in (*CHILDREN, "Secret") for name in cluster.api.names(kind)}
        assert made == wanted, (method, path)
        assert cluster.condition("Degraded") == ("False", "AsExpected"), (method, path)
        assert cluster.api.writes == [], (method, path)


async def test_while_the_api_server_refuses_everything_nothing_is_concluded(cluster: Cluster) -> None:
    await cluster.installed()
    before = cluster.status()
    cluster.api.fail(503, times=1000)
    with pytest.raises(KubeError):
        await cluster.reconcile()
    cluster.api.heal()
    assert cluster.status() == before
    assert operator_settings().proxy_image == live_image(cluster)


async def test_a_child_replaced_by_a_stranger_between_read_and_write_is_not_written_to(cluster: Cluster) -> None:
    await cluster.installed()
    live = cluster.api.get("Deployment", "events")
    cluster.api.remove("Deployment", "events")
    metadata = owned("events", {}, cluster.api.get(KIND, "events"))
    theirs = cluster.api.put({"kind": "Deployment", "metadata": {**metadata, "uid": "new"}, "spec": {}})
    with pytest.raises(KubeError):
        await cluster.kube.apply(
            {**live, "metadata": {key: live["metadata"][key] for key in ("name", "namespace", "labels")}},
            uid=live["metadata"]["uid"],
        )
    assert cluster.api.get("Deployment", "events") == theirs
