"""Sidecars, by hand and by the operator: every Kubernetes that has native ones knows each of their fields."""

from copy import deepcopy
from typing import Any, Final

import pytest
import yaml
from jsonpatch import apply_patch
from tests.charts.kubernetes_api import SUMS, pod_problems
from tests.operator.resources import OWN_TOKEN, desired
from tests.test_readme import blocks

from tinybird_proxy import __version__
from tinybird_proxy_operator.manifests.sidecar import build
from tinybird_proxy_operator.sidecars.injection import inject

_FIELD_REF: Final = {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
every_version: Final = pytest.mark.parametrize("version", SUMS)


def by_hand() -> dict[str, Any]:
    """The README's pod."""
    [block] = blocks("yaml sidecar")
    return {"metadata": {"name": "app"}, "spec": yaml.safe_load("\n".join(block))}


@every_version
def test_the_sidecar_by_hand_has_no_field_that_kubernetes_does_not_know(version: str) -> None:
    assert pod_problems(version, by_hand()) == []


@every_version
@pytest.mark.parametrize("resources", [{}, {"limits": {"cpu": "1", "memory": "1Gi"}}], ids=["burstable", "guaranteed"])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"tinybird": {}, "sidecar": {"gracePeriod": "Raise"}, "drain": {"shutdownTimeoutSeconds": 60}},
        {"telemetry": {"otlpEndpoint": "http://collector.observability.svc:4318"}, "pod": {"env": [_FIELD_REF]}},
        {"telemetry": {"otlpEndpoint": "http://collector:4318", "otlpHeadersSecretRef": {"name": "collector"}}},
    ],
    ids=["defaults", "without a token", "more", "with headers for a collector"],
)
def test_what_the_operator_puts_into_a_pod_has_none_either(
    version: str, spec: dict[str, Any], resources: dict[str, Any]
) -> None:
    sidecar = build(desired({"mode": "Sidecar", **OWN_TOKEN, **spec}))
    app = {"name": "app", "image": "app", "resources": resources}
    pod = {"metadata": {"name": "app"}, "spec": {"containers": [app], "initContainers": [{**app, "name": "migrate"}]}}
    operations = inject(pod, "events", sidecar)
    assert operations
    assert pod_problems(version, apply_patch(pod, operations)) == []


@every_version
@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("restartpolicy",), "Always", "restartpolicy: no such field"),
        (("startupProbe", "httpGet", "url"), "/livez", "startupProbe.httpGet.url: no such field"),
        (("livenessProbe", "periodSeconds"), "10", "livenessProbe.periodSeconds: '10' is no integer"),
        (("securityContext", "runAsNonRoot"), "yes", "securityContext.runAsNonRoot: 'yes' is no boolean"),
        (("securityContext", "runAsUser"), True, "securityContext.runAsUser: True is no integer"),
        (("resources", "limits", "memory"), None, "memory: None is no io.k8s.apimachinery.pkg.api.resource.Quantity"),
        (("startupProbe", "httpGet", "port"), [], "port: [] is no io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
        (("terminationMessagePolicy",), "Logs", "'Logs' is none of FallbackToLogsOnError, File"),
        (("imagePullPolicy",), "always", "'always' is none of Always, IfNotPresent, Never"),
        (("securityContext", "seccompProfile", "type"), "Default", "'Default' is none of"),
        (("ports", 0, "protocol"), "tcp", "ports[0].protocol: 'tcp' is none of SCTP, TCP, UDP"),
        (("env", 0, "values"), "x", "env[0].values: no such field"),
        (("volumeMounts", 0), {"name": "x"}, "volumeMounts[0].mountPath: is missing"),
    ],
)
def test_a_wrong_field_in_a_sidecar_would_be_told(
    version: str, path: tuple[str | int, ...], value: object, told: str
) -> None:
    pod = deepcopy(by_hand())
    [place] = pod["spec"]["initContainers"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    said = pod_problems(version, pod)
    assert len(said) == 3  # of the pod, of the Deployment and of the Job
    assert all(told in each and ".initContainers[0]." in each for each in said), said


def test_a_field_that_came_with_a_later_version_is_unknown_to_an_earlier_one() -> None:
    pod = by_hand()
    pod["spec"]["initContainers"][0]["restartPolicyRules"] = []
    assert pod_problems("v1.36.3", pod) == []
    assert len(pod_problems("v1.29.6", pod)) == 3


def test_the_sidecar_by_hand_runs_the_image_of_this_version() -> None:
    [sidecar] = by_hand()["spec"]["initContainers"]
    assert sidecar["image"] == f"ghcr.io/tinybird-proxy/tinybird-proxy:{__version__}"
