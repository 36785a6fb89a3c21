"""How many pods: whoever says it last, and nobody fights."""

from tests.e2e.kubectl import Namespace, until

SMALL = {"buffer": {"maxSize": "16Mi"}, "batch": {"maxSize": "1M"}}


def _replicas(namespace: Namespace) -> tuple[int, int]:
    """Of the resource and of its Deployment."""
    asked = namespace.get("tinybirdproxy", "events")["spec"].get("replicas")
    return asked, namespace.get("deployment", "events")["spec"]["replicas"]


def test_kubectl_scale_then_an_edit_of_something_else_keeps_the_number(namespace: Namespace) -> None:
    proxy = namespace.forwarding_to_tinybird(**SMALL)
    del proxy["spec"]["tinybird"]["tokenSecretRef"], proxy["spec"]["replicas"]
    namespace.apply(proxy)
    until("one pod, seeded", lambda: _replicas(namespace) == (1, 1))
    namespace.kubectl("scale", "tinybirdproxy/events", "--replicas=3")
    until("three", lambda: _replicas(namespace) == (3, 3))
    proxy["spec"]["service"] = {"port": 8080}
    namespace.apply(proxy)
    until("the port", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == 8080)
    namespace.wait_ready()
    assert _replicas(namespace) == (3, 3)
    until(
        "the scale subresource says three", lambda: namespace.get("tinybirdproxy", "events")["status"]["replicas"] == 3
    )
    namespace.kubectl("scale", "tinybirdproxy/events", "--replicas=0")
    until("no pod", lambda: _replicas(namespace) == (0, 0) and not namespace.pods())


def test_replicas_removed_from_the_manifest_stay_as_many(namespace: Namespace) -> None:
    proxy = namespace.forwarding_to_tinybird(**SMALL, replicas=5)
    del proxy["spec"]["tinybird"]["tokenSecretRef"]
    namespace.apply(proxy)
    namespace.wait_ready()
    pods = namespace.pods()
    assert len(pods) == 5
    del proxy["spec"]["replicas"]
    namespace.apply(proxy)
    until("five, seeded again", lambda: _replicas(namespace) == (5, 5))
    assert namespace.pods() == pods
