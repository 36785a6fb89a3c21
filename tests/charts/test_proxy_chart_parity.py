"""charts/tinybird-proxy makes the pods that the operator makes, from values that ask for the same."""

import re
from typing import Any

import pytest
from tests.charts.proxy_chart import PROXY, container, environment, template
from tests.charts.rendering import Object, render
from tests.operator.resources import EVERYTHING, OWN_TOKEN, desired, resource

from tinybird_proxy.config import from_env
from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests import build
from tinybird_proxy_operator.manifests.environment import RESERVED
from tinybird_proxy_operator.spec import quantity_bytes

HELM_LABELS = ("app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart")


def values_of(spec: dict[str, Any]) -> Object:
    """The chart's values that ask for what a TinybirdProxy `events` with `spec` asks for."""
    read = resource(spec).spec
    own, given = read.tinybird.token_secret_ref, read.clients.token_secret_ref
    headers = read.telemetry.otlp_headers_secret_ref
    clients = {"existingSecret": "events-client", "key": names.CLIENT_ACCEPTED_KEY}
    if given:
        clients = {"existingSecret": given.name, "key": given.key}
    image = read.image or desired(spec).settings.proxy_image
    pod = spec.get("pod", {})
    taken = ("resources", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName")
    switched = {
        part: dict(spec.get(part, {})) for part in ("service", "networkPolicy", "podDisruptionBudget", "ingress")
    }
    for part, holder in switched.items():
        holder["enabled"] = holder.pop("policy", "None" if part == "ingress" else "Managed") == "Managed"
    return {
        "fullnameOverride": "events",
        "replicas": 2,
        "image": {
            "repository": image.rpartition(":")[0],
            "tag": image.rpartition(":")[2],
            "pullPolicy": read.image_pull_policy or "IfNotPresent",
        },
        "imagePullSecrets": read.image_pull_secrets,
        "tinybird": {
            "url": read.tinybird.url,
            **({"token": {"existingSecret": own.name, "key": own.key}} if own else {}),
        },
        "clients": clients if own else {},
        "adminToken": {"existingSecret": "events-admin"},
        **{part: spec.get(part, {}) for part in ("batch", "buffer", "drain")},
        "telemetry": {
            "otlpEndpoint": read.telemetry.otlp_endpoint or "",
            **({"otlpHeaders": {"existingSecret": headers.name, "key": headers.key}} if headers else {}),
        },
        **switched,
        **{part: pod[part] for part in taken if part in pod},
        "podAnnotations": pod.get("annotations", {}),
        "podLabels": pod.get("labels", {}),
        "extraEnv": pod.get("env", []),
        "monitoring": {"podMonitor": {"enabled": read.monitoring.pod_monitor == "Enabled"}},
    }


def alike(built: Object) -> Object:
    """An object without what must differ: whose it is, in its labels and in every selector of them."""

    def stripped(value: Any) -> Any:
        if isinstance(value, list):
            return [stripped(each) for each in value]
        if not isinstance(value, dict):
            return value
        ours = (*names.child_labels(""), "app.kubernetes.io/component", "app.kubernetes.io/part-of", *HELM_LABELS)
        if value.keys() & {names.NAME_LABEL}:
            return {"(ours)": True, **{key: each for key, each in value.items() if key not in ours}}
        return {key: stripped(each) for key, each in value.items()}

    spec = stripped(built["spec"])
    assert isinstance(spec, dict)
    # Kubernetes' own defaults, which the operator says because it changes them to stop a rollout.
    return {key: each for key, each in spec.items() if key not in ("paused", "progressDeadlineSeconds")}


# An autoscaler is for the operator's proxies.
FIXED = {field: value for field, value in EVERYTHING.items() if field != "autoscaling"}
MORE_MEMORY = {
    **OWN_TOKEN,
    "buffer": {"maxSize": "0.5Gi"},
    "batch": {"maxSize": 1_000_000},
    "pod": {
        "env": [{"name": "RECEIVE_BYTES", "value": "128 MB"}, {"name": "DEAD_LETTER_BYTES", "value": "96Mi"}],
        "resources": {"limits": {"cpu": "1500m"}},
    },
}
LEAN = {
    "pod": {
        "env": [{"name": "DEAD_LETTER_BYTES", "value": "1kB"}],
        "resources": {"requests": {"memory": "64Mi"}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
    },
    "service": {"type": "NodePort"},
    "podDisruptionBudget": {"policy": "None"},
}


@pytest.mark.parametrize(
    "spec",
    [{}, OWN_TOKEN, FIXED, MORE_MEMORY, LEAN],
    ids=["nothing", "own token", "everything", "more memory", "lean"],
)
def test_the_chart_makes_what_the_operator_makes(spec: dict[str, Any]) -> None:
    by_operator = {each["kind"]: each for each in build(desired(spec)) if each["kind"] != "ServiceAccount"}
    rendered = render(PROXY, given=values_of(spec))
    by_chart = {each["kind"]: each for each in rendered if each["kind"] not in ("ServiceAccount", "Pod")}
    assert by_chart.keys() == by_operator.keys()
    for kind in sorted(by_chart.keys() - {"NetworkPolicy", "PodMonitor"}):
        assert alike(by_chart[kind]) == alike(by_operator[kind]), kind
        assert by_chart[kind]["metadata"]["name"] == by_operator[kind]["metadata"]["name"]
        assert by_chart[kind]["metadata"].get("annotations") == by_operator[kind]["metadata"].get("annotations")
    ours, theirs = by_chart["NetworkPolicy"]["spec"]["ingress"], by_operator["NetworkPolicy"]["spec"]["ingress"]
    assert ours[0]["ports"] == theirs[0]["ports"]
    # The chart's tests come on top, and there is no operator to let in.
    assert [peer for peer in ours[0].get("from", []) if "test" not in str(peer)] == theirs[0].get("from", [])
    admin = [{**each, "from": peers} for each in theirs[1:] if (peers := each["from"][1:])]
    assert ours[1:] == admin


@pytest.mark.parametrize(
    "size", ["64Mi", "0.1Gi", "1.001M", "007Mi", "1T", "900Gi", "123456789", 10**9, "2.5k", "0.7Ti"]
)
def test_a_size_means_what_it_means_to_kubernetes(size: str | int) -> None:
    given = {"buffer": {"maxSize": size}, "batch": {"maxSize": "1k"}}
    pod = template(render(PROXY, given=given))
    expected = quantity_bytes(size, field="")
    assert from_env(environment(pod)).buffer_bytes == expected
    limit = container(pod)["resources"]["limits"]["memory"]
    assert quantity_bytes(limit, field="") == expected + 384 * 2**20


def test_the_reserved_variables_are_those_of_the_operator() -> None:
    text = (PROXY / "templates" / "_checks.tpl").read_text()
    [listed] = re.findall(r'define "tinybird-proxy.reserved" -}}\n(.*?)\n{{- end }}', text, re.DOTALL)
    assert set(listed.split()) == set(RESERVED)
