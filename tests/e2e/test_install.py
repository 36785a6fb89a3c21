"""What the README promises: install, apply an example, post, and the rows are in Tinybird."""

import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.e2e.kubectl import HERE, OPERATOR_CHART, TINYBIRD_TOKEN, Namespace, documents, until

EXAMPLES: Final = sorted((OPERATOR_CHART / "examples").glob("*.yaml"))
# It has an app of its own, and delivers in test_sidecars.
SIDECAR: Final = "sidecar"
RESOURCES: Final = yaml.safe_load((HERE / "bad_resources.yaml").read_text())
COLLECTOR: Final = """
from tinybird_proxy.testing.otlp_receiver import OtlpReceiver

class Receiver(OtlpReceiver):
    def server_bind(self):
        self.server_address = ("0.0.0.0", 4318)
        super().server_bind()

with Receiver(4318) as server:
    server.serve_forever()
"""
# Posts one row, with the id `one`: URL DATA_SOURCE TOKEN
POST: Final = """
import sys, urllib.request

url, name, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"}
request = urllib.request.Request(f"{url}/v0/events?name={name}", data=b'{"id":"one"}', headers=headers)
print(urllib.request.urlopen(request, timeout=10).status)
"""
# Four pods of `tuned` ask for a CPU each, and the cluster of tests/cluster may be a machine with two.
SMALL_REPLICAS: Final = 1
SMALL_REQUESTS: Final = {"cpu": "50m", "memory": "128Mi"}
# The tests' operator has the chart's own rbac.podMonitors, which is false.
POD_MONITORS_OFF: Final = (
    "spec.monitoring.podMonitor: the operator has no right to make PodMonitors. Set it to Disabled, or ask whoever runs"
    " the operator to set its chart's rbac.podMonitors to true."
)


def _here(example: Path, namespace: Namespace) -> list[dict[str, Any]]:
    """An example with the addresses, the token and the clients of this namespace, and no more CPUs than it has."""
    objects = documents(example)
    for each in objects:
        if each["kind"] == "TinybirdProxy":
            _place(each["spec"], namespace)
        elif "p.YOUR-TOKEN" in each["stringData"].values():
            each["stringData"]["token"] = TINYBIRD_TOKEN
    return objects


def _place(spec: dict[str, Any], namespace: Namespace) -> None:
    spec.setdefault("tinybird", {})["url"] = namespace.tinybird_url
    if "telemetry" in spec:
        spec["telemetry"]["otlpEndpoint"] = f"http://collector.{namespace.name}.svc:4318"
    for direction in spec.get("networkPolicy", {}).keys() & {"from", "metricsFrom"}:
        here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}}
        spec["networkPolicy"][direction] = [here]
    if "requests" in spec.get("pod", {}).get("resources", {}):
        spec["pod"]["resources"]["requests"] = SMALL_REQUESTS
        spec["replicas"] = SMALL_REPLICAS


def _collector(namespace: Namespace) -> list[dict[str, Any]]:
    pod = namespace.get("pod", "tinybird")["spec"]["containers"][0]
    container = {"name": "collector", "image": pod["image"], "imagePullPolicy": "IfNotPresent"}
    container |= {"command": ["python", "-c", COLLECTOR], "ports": [{"containerPort": 4318}]}
    container |= {"readinessProbe": {"tcpSocket": {"port": 4318}, "periodSeconds": 1}}
    metadata = {"name": "collector", "labels": {"app": "collector"}}
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    service = {"selector": {"app": "collector"}, "ports": [{"port": 4318}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]


def test_the_example_delivers_what_is_posted_through_its_service_and_its_traces_reach_a_collector(
    namespace: Namespace,
) -> None:
    secret, proxy = _here(OPERATOR_CHART / "examples" / "minimal.yaml", namespace)
    collector = f"http://collector.{namespace.name}.svc:4318"
    proxy["spec"]["telemetry"] = {"otlpEndpoint": collector, "otlpHeadersSecretRef": {"name": "collector"}}
    headers = {**secret, "metadata": {**secret["metadata"], "name": "collector"}}
    headers["stringData"] = {"headers": "x-api-key=of-the-secret"}
    namespace.apply(*_collector(namespace), secret, headers, proxy)
    namespace.wait_ready()
    namespace.kubectl("wait", "--for=condition=Ready", "--timeout=30s", "pod/collector")
    namespace.post("one", "two", "three")
    namespace.until_arrived("one", "two", "three")
    assert namespace.rows() == ["one", "three", "two"]
    namespace.until_condition("TokenValid", "True", "Accepted")
    spans = until("spans at the collector", lambda: namespace.client("get", f"{collector}/spans"))
    assert {span["resource"]["service.name"] for span in spans} == {"tinybird-proxy"}
    assert any(span["kind"] == "CLIENT" for span in spans), [span["name"] for span in spans]
    requests = namespace.client("get", f"{collector}/requests")
    assert {request.get("x-api-key") for request in requests} == {"of-the-secret"}


def test_a_client_without_the_token_is_refused(namespace: Namespace) -> None:
    namespace.apply(*_here(OPERATOR_CHART / "examples" / "minimal.yaml", namespace))
    namespace.wait_ready()
    assert namespace.client("post", namespace.service_url(), "wrong", "x") == [403]
    assert namespace.rows() == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_taken_as_it_is_printed(namespace: Namespace, example: Path) -> None:
    namespace.kubectl("apply", "--filename", example, "--dry-run=server")


def _way_in(objects: list[dict[str, Any]], namespace: Namespace) -> tuple[str, str]:
    """A data source and a token that the example lets clients use for it."""
    proxy, secrets = objects[-1], {each["metadata"]["name"]: each["stringData"] for each in objects[:-1]}
    if "clients" in proxy["spec"]:
        first = secrets[proxy["spec"]["clients"]["tokenSecretRef"]["name"]]["token"].splitlines()[0].split()
        [allowed] = [word.removeprefix("allow=") for word in first if word.startswith("allow=")]
        return allowed.split(",")[0], first[0]
    if "tokenSecretRef" in proxy["spec"]["tinybird"]:
        return "events", namespace.client_token(proxy["metadata"]["name"])
    return "events", TINYBIRD_TOKEN


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each.stem != SIDECAR], ids=lambda path: path.stem)
def test_every_example_becomes_ready_and_delivers(namespace: Namespace, example: Path) -> None:
    objects = _here(example, namespace)
    proxy, name = objects[-1], objects[-1]["metadata"]["name"]
    namespace.apply(*objects)
    if "monitoring" in proxy["spec"]:
        assert namespace.until_condition("Ready", "False", "ApplyRefused", name=name) == POD_MONITORS_OFF
        proxy["spec"]["monitoring"]["podMonitor"] = "Disabled"  # as the sentence says
        namespace.apply(proxy)
    namespace.wait_ready(name, timeout_s=80)
    namespace.until_condition("Degraded", "False", "AsExpected", name=name)
    least = proxy["spec"].get("autoscaling", {}).get("minReplicas")
    assert len(namespace.pods(name)) == proxy["spec"].get("replicas", least)
    data_source, token = _way_in(objects, namespace)

    def taken() -> bool:
        # kube-proxy hears of a pod that has become ready a moment after everybody else.
        args = (namespace.service_url(name), data_source, token)
        return namespace.kubectl("exec", "tinybird", "--", "python", "-c", POST, *args).strip() == "202"

    until("a row is taken", taken)
    url = f"http://127.0.0.1:7181/v0/sql?q=SELECT%20id%20FROM%20{data_source}%20FORMAT%20JSON&token={TINYBIRD_TOKEN}"
    until("the row in Tinybird", lambda: {row["id"] for row in namespace.client("get", url)["data"]} == {"one"})
    if "ingress" in proxy["spec"]:
        rules = namespace.get("ingress", name)["spec"]["rules"]
        assert [rule["host"] for rule in rules] == [proxy["spec"]["ingress"]["host"]]


def test_what_cannot_be_is_refused_with_a_sentence_and_what_can_be_is_taken(namespace: Namespace) -> None:
    wrong = []
    for case in RESOURCES["good"] + RESOURCES["bad"]:
        body = {"apiVersion": "tinybird-proxy.io/v1alpha1", "kind": "TinybirdProxy", **case["resource"]}
        body["metadata"] = {"name": "events", **body.get("metadata", {})}
        done = subprocess.run(
            ["kubectl", "--namespace", namespace.name, "create", "--dry-run=server", "--validate=strict", "-f", "-"],
            input=yaml.safe_dump(body),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        message = case.get("message")
        if message is None and done.returncode != 0:
            wrong.append(f"{case['name']}: refused: {done.stderr.strip()}")
        elif message is not None and done.returncode == 0:
            wrong.append(f"{case['name']}: taken, and should be refused with: {message}")
        elif message is not None and message not in done.stderr:
            wrong.append(f"{case['name']}: refused with {done.stderr.strip()!r} instead of {message!r}")
    assert not wrong, "\n".join(wrong)
