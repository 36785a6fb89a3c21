"""The Service in front of the pods."""

from tests.operator.resources import EVERYTHING, desired

from tinybird_proxy_operator.manifests.service import build

SELECTOR = {
    "app.kubernetes.io/name": "tinybird-proxy",
    "app.kubernetes.io/instance": "events",
    "tinybird-proxy.io/proxy": "events",
}
PORT = {"name": "events", "port": 80, "targetPort": "events", "protocol": "TCP", "appProtocol": "http"}


def test_port_80_leads_to_the_events_port_and_the_admin_port_is_not_exposed() -> None:
    manifest = build(desired())
    assert manifest is not None
    assert (manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]) == ("v1", "Service", "events")
    assert manifest["spec"] == {"type": "ClusterIP", "selector": SELECTOR, "ports": [PORT]}
    assert "annotations" not in manifest["metadata"]


def test_type_port_and_annotations_are_what_the_spec_says() -> None:
    manifest = build(desired(EVERYTHING))
    assert manifest is not None
    assert manifest["spec"] == {"type": "LoadBalancer", "selector": SELECTOR, "ports": [{**PORT, "port": 8080}]}
    assert manifest["metadata"]["annotations"] == {"example.com/lb": "internal"}


def test_policy_none_means_no_service() -> None:
    assert build(desired({"service": {"policy": "None"}})) is None
