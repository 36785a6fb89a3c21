"""What prometheus-operator is told."""

from tests.operator.resources import desired
from tests.operator.test_manifests_service import SELECTOR

from tinybird_proxy_operator.manifests.deployment import build as build_deployment
from tinybird_proxy_operator.manifests.pod_monitor import build


def test_the_admin_port_is_scraped_by_its_name_in_the_pod() -> None:
    wanted = desired({"monitoring": {"podMonitor": "Enabled"}})
    manifest = build(wanted)
    assert manifest is not None
    assert (manifest["apiVersion"], manifest["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert manifest["spec"] == {
        "selector": {"matchLabels": SELECTOR},
        "podMetricsEndpoints": [{"port": "admin", "path": "/metrics"}],
    }
    ports = build_deployment(wanted)["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert {"name": "admin", "containerPort": 8001, "protocol": "TCP"} in ports


def test_there_is_none_unless_asked_for() -> None:
    assert build(desired()) is None
