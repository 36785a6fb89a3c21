"""Somebody else's autoscaler: KEDA, and whoever scales by hand or by a tool of their own. No KEDA runs here."""

import json
from typing import Any

from tests.e2e import foreign_crds
from tests.e2e.kubectl import Namespace, token_secret, until

TARGET = {"apiVersion": "tinybird-proxy.io/v1alpha1", "kind": "TinybirdProxy", "name": "events"}


def _proxy(namespace: Namespace, provider: str, **more: Any) -> dict[str, Any]:
    autoscaling = {"minReplicas": 1, "maxReplicas": 3, "provider": provider, **more}
    proxy = namespace.forwarding_to_tinybird(autoscaling=autoscaling)
    del proxy["spec"]["replicas"]
    return proxy


def _hpa(name: str, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """One that asks for two pods at least, and has no figures."""
    metric = {"type": "External", "external": {"metric": {"name": "s0"}, "target": {"type": "AverageValue"}}}
    metric["external"]["target"]["averageValue"] = "10"  # type: ignore[index]
    metadata = {"name": name, **({} if owner is None else {"ownerReferences": [owner]})}
    spec = {"scaleTargetRef": TARGET, "minReplicas": 2, "maxReplicas": 3, "metrics": [metric]}
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}


def test_keda_gets_a_scaled_object_and_its_hpa_is_followed(namespace: Namespace) -> None:
    foreign_crds.install(foreign_crds.KEDA, "scaledobjects")
    namespace.apply(token_secret(), _proxy(namespace, "KEDA", targets={"bufferRowsPerPod": 100}))
    namespace.wait_ready()
    until("the ScaledObject", lambda: namespace.find("scaledobjects"), timeout_s=40)
    made = namespace.get("scaledobject", "events")
    assert {key: made["spec"]["scaleTargetRef"][key] for key in ("kind", "name")} == {
        "kind": "TinybirdProxy",
        "name": "events",
    }
    assert (made["spec"]["minReplicaCount"], made["spec"]["maxReplicaCount"]) == (1, 3)
    print(json.dumps(made["spec"], indent=1))
    assert not namespace.find("horizontalpodautoscalers")
    owner = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "events", "controller": True}
    namespace.create(_hpa("keda-hpa-events", {**owner, "uid": made["metadata"]["uid"]}))
    until("two pods", lambda: len(namespace.pods()) == 2, timeout_s=40)
    namespace.wait_ready()
    assert namespace.condition("Autoscaling")[1] != "ForeignHPA"
    namespace.patch("tbp", "events", {"spec": {"autoscaling": None}})
    until("no ScaledObject", lambda: not namespace.find("scaledobjects"), timeout_s=40)


def test_whoever_scales_from_outside_is_followed_and_no_hpa_is_made(namespace: Namespace) -> None:
    namespace.apply(token_secret(), _proxy(namespace, "External"))
    namespace.wait_ready()
    namespace.until_condition("Autoscaling", "Unknown", "External", timeout_s=40)
    namespace.create(_hpa("theirs"))
    until("two pods", lambda: len(namespace.pods()) == 2, timeout_s=40)
    namespace.wait_ready()
    assert [each["metadata"]["name"] for each in namespace.find("horizontalpodautoscalers")] == ["theirs"]
    print(namespace.until_condition("Autoscaling", "True", "External", timeout_s=40))
