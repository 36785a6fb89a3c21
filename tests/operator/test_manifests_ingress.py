"""A way in from outside the cluster."""

from tests.operator.resources import EVERYTHING, desired

from tinybird_proxy_operator.manifests.ingress import build

PATH = {
    "path": "/",
    "pathType": "Prefix",
    "backend": {"service": {"name": "events", "port": {"name": "events"}}},
}


def test_a_managed_ingress_leads_its_host_to_the_service() -> None:
    manifest = build(desired({"ingress": {"policy": "Managed", "host": "events.example.com"}}))
    assert manifest is not None
    assert (manifest["apiVersion"], manifest["kind"]) == ("networking.k8s.io/v1", "Ingress")
    assert manifest["spec"] == {"rules": [{"host": "events.example.com", "http": {"paths": [PATH]}}]}


def test_class_tls_and_annotations_are_what_the_spec_says() -> None:
    manifest = build(desired(EVERYTHING))
    assert manifest is not None
    assert manifest["metadata"]["annotations"] == {"example.com/body-size": "10m"}
    assert manifest["spec"] == {
        "ingressClassName": "nginx",
        "rules": [{"host": "events.example.com", "http": {"paths": [PATH]}}],
        "tls": [{"hosts": ["events.example.com"], "secretName": "events-tls"}],
    }


def test_there_is_none_unless_asked_for_and_never_one_without_a_host() -> None:
    assert build(desired()) is None
    assert build(desired({"ingress": {"host": "events.example.com"}})) is None
    assert build(desired({"ingress": {"policy": "Managed"}})) is None
