"""A change of the resource reaches its sidecars: a token at once, all else with new pods, which evictions bring."""

from tests.e2e import sidecar_pods
from tests.e2e.injected_pods import app_deployment, pods, rendered, roll_out, sidecar, sidecar_of, until_counted
from tests.e2e.kubectl import (
    SECOND_TINYBIRD_TOKEN,
    SECRET_TIMEOUT_S,
    TINYBIRD_TOKEN,
    Namespace,
    token_secret,
    until,
)

from tinybird_proxy.config import token_hash


def _all_have(namespace: Namespace, token: str) -> bool:
    found = namespace.get("tinybirdproxy", "events")["status"]["token"]
    return bool(found["expectedHash"] == token_hash(token) and found["podsCurrent"] == found["podsTotal"] == 2)


def _budget(min_available: int) -> dict[str, object]:
    spec = {"minAvailable": min_available, "selector": {"matchLabels": {"app": "app"}}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "app"}, "spec": spec}


def test_a_rotated_token_reaches_every_sidecar_and_its_pods_stay(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    roll_out(namespace, app_deployment("app", replicas=2))
    before = sorted(each["metadata"]["name"] for each in pods(namespace))
    until("both use the first token", lambda: _all_have(namespace, TINYBIRD_TOKEN))
    namespace.until_condition("TokenValid", "True", "Accepted")
    namespace.apply(token_secret(SECOND_TINYBIRD_TOKEN))
    until("both use the second", lambda: _all_have(namespace, SECOND_TINYBIRD_TOKEN), timeout_s=SECRET_TIMEOUT_S)
    namespace.until_condition("TokenValid", "True", "Accepted")
    assert sorted(each["metadata"]["name"] for each in pods(namespace)) == before
    ids = [each for name in before for each in sidecar_pods.accepted(namespace, name)]
    sidecar_pods.all_arrive(namespace, ids, at_least=20)


def test_a_change_is_stale_in_old_pods_until_evictions_within_the_budget_make_them_current(
    namespace: Namespace,
) -> None:
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    stateful = app_deployment("store", name="store", grace_s=1)
    stateful = {**stateful, "kind": "StatefulSet", "spec": {**stateful["spec"], "serviceName": "store"}}
    roll_out(namespace, app_deployment("app", replicas=2), stateful)
    old = rendered(namespace)["hash"]
    until_counted(namespace, injected=3)
    namespace.apply(_budget(2), sidecar(namespace, batch={"maxRows": 500}))
    until_counted(namespace, injected=3, stale=3)
    message = namespace.until_condition("SidecarsCurrent", "False", "SidecarsStale")
    assert "Restart Deployment app, StatefulSet store, or set spec.sidecar.rollout to Evict." in message
    assert {sidecar_of(each)[1] for each in pods(namespace)} == {old}
    namespace.apply(sidecar(namespace, batch={"maxRows": 500}, sidecar={"rollout": "Evict"}))
    until(
        "the budget is named",
        lambda: "disruption budget" in namespace.condition("SidecarsCurrent")[2],
        timeout_s=40,
    )
    assert {sidecar_of(each)[1] for each in pods(namespace)} == {old}
    with namespace.watched("deployment", "app", ".status.readyReplicas") as versions:
        namespace.apply(_budget(1))
        until_counted(namespace, injected=3, timeout_s=80)
    # One at a time: a pod of the two was always there.
    assert min(int(ready or 0) for [ready] in versions) >= 1
    assert {sidecar_of(each)[1] for each in (*pods(namespace), *pods(namespace, "store"))} == {
        rendered(namespace)["hash"]
    }
    assert len(namespace.events("Evicted")) == 3
    namespace.until_condition("SidecarsCurrent", "True", "SidecarsCurrent")
