"""Injection by real admission: the table of tests/operator/injection_cases.py, by each way that the chart has.

The pods are not made (`--dry-run=server`): what the API server would make of them is compared with what it would make
of what sidecars/injection.py makes of them. A copy of the chart's policies answers to a label of its own, so that no
webhook gets in between; the webhook is the one of the operator that the tests run with, if their values ask for it.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.e2e.conftest import LABEL
from tests.e2e.kubectl import OPERATOR_CHART, OPERATOR_NAMESPACE, OPERATOR_VALUES, CommandFailed, Namespace, run, until
from tests.e2e.mesh import SIDECAR as MESH
from tests.e2e.mesh import mesh
from tests.operator.injection_cases import CASES, Case
from tests.operator.injection_pods import SIDECAR, SIDECARS, Pod, container, injected, pod, seen

from tinybird_proxy_operator.names import INJECT_LABEL, SIDECAR_CONTAINER

_VALUES: Final = yaml.safe_load(Path(OPERATOR_VALUES[1]).read_text())
WAYS: Final = ["Policy", *(way for way in [_VALUES.get("injection")] if way == "Webhook")]
_POLICIES: Final = "templates/injection/policy.yaml"
_REQUIRED: Final = "templates/injection/required.yaml"
_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
# What the API server gives every pod anew, whoever asks.
_ANEW: Final = re.compile(r"kube-api-access-[a-z0-9]{5}")


@dataclass(frozen=True)
class Way:
    """``label``: what asks for a sidecar."""

    name: str
    label: str

    def asking(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Labels with this way's own instead of the one that the table has."""
        return {self.label if key == INJECT_LABEL else key: value for key, value in labels.items()}

    def of(self, given: Pod) -> Pod:
        """The pod, asking in this way."""
        metadata = given["metadata"]
        return {**given, "metadata": {**metadata, "labels": self.asking(metadata.get("labels") or {})}}


@contextmanager
def copies(name: str, *templates: str, values: Sequence[str] = ()) -> Iterator[Way]:
    """Policies of the chart under another name, which answer to another label."""
    unique = f"{name}-{uuid.uuid4().hex[:8]}"
    label = INJECT_LABEL.replace("tinybird", f"{unique}.tinybird")
    shown = [argument for template in templates for argument in ("--show-only", template)]
    chosen = ("--namespace", OPERATOR_NAMESPACE, "--set", "injection=Policy", *values)
    rendered = run("helm", "template", unique, OPERATOR_CHART, *chosen, *shown)
    rendered = re.sub(rf"{re.escape(INJECT_LABEL)}\b(?!ed)", label, rendered)
    run("kubectl", "apply", "--filename", "-", stdin=rendered)
    try:
        yield Way(name, label)
    finally:
        run("kubectl", "delete", "--wait=false", "--filename", "-", stdin=rendered)


@contextmanager
def namespace_with(labels: Mapping[str, str], *objects: Mapping[str, Any]) -> Iterator[Namespace]:
    """A namespace with these labels, and the table's TinybirdProxies, which no operator looks at."""
    made = Namespace(f"e2e-{uuid.uuid4().hex[:8]}")
    run("kubectl", "create", "namespace", made.name)
    try:
        run("kubectl", "label", "namespace", made.name, LABEL, *(f"{key}={value}" for key, value in labels.items()))
        spec = {
            "mode": "Sidecar",
            "controllerClass": "nobodys",
            "tinybird": {"url": "https://api.tinybird.co", "tokenSecretRef": {"name": "tinybird"}},
        }
        proxies = [
            {
                "apiVersion": "tinybird-proxy.io/v1alpha1",
                "kind": "TinybirdProxy",
                "metadata": {"name": name},
                "spec": spec,
            }
            for name in SIDECARS
        ]
        made.apply(*proxies, *objects)
        for name, sidecar in SIDECARS.items():
            if sidecar is not None:
                status = json.dumps({"status": {"sidecar": sidecar}})
                made.kubectl("patch", "tinybirdproxy", name, "--subresource=status", "--type=merge", "--patch", status)
        yield made
    finally:
        run("kubectl", "delete", "namespace", made.name, "--wait=false")


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    if request.param == "Webhook":
        yield Way("Webhook", INJECT_LABEL)
        return
    needs_policies()
    with copies("policy", _POLICIES) as found:
        yield found


@pytest.fixture(scope="module")
def plain(way: Way) -> Iterator[Namespace]:
    """A namespace that asks for nothing. It is yielded when pods in it that ask get their sidecars."""
    with namespace_with({}) as made:
        until_it_works(way, made)
        yield made


def needs_policies() -> None:
    served = json.loads(run("kubectl", "get", "--raw", "/apis/admissionregistration.k8s.io/v1"))["resources"]
    if "mutatingadmissionpolicies" not in {each["name"] for each in served}:
        pytest.skip("the cluster does not serve MutatingAdmissionPolicy v1; Kubernetes 1.36 does")


def until_it_works(way: Way, namespace: Namespace) -> None:
    """What injects, and the TinybirdProxies, are known to an API server a moment after they were made."""
    for name, sidecar in SIDECARS.items():
        if sidecar is not None:
            asks = way.of(pod(asks=name))
            until(
                f"a sidecar of {name} by {way.name}",
                lambda asks=asks: seen(made_of(namespace, asks)[0])["injected"],  # type: ignore[misc]
            )


def made_of(namespace: Namespace, *pods: Pod) -> list[Pod]:
    """What the API server would make of these pods."""
    stream = yaml.safe_dump_all(pods)
    answer = namespace.kubectl("create", "--dry-run=server", "--output=json", "--filename=-", stdin=stream)
    decoder, found = json.JSONDecoder(), []
    while answer := answer.lstrip():
        one, end = decoder.raw_decode(answer)
        found.append(one)
        answer = answer[end:]
    assert len(found) == len(pods)
    return found


def comparable(given: Pod, way: Way) -> Pod:
    """Without what is another's with every request, and without what asks."""
    result: Pod = json.loads(_ANEW.sub("kube-api-access", json.dumps(given)))
    for key in ("uid", "creationTimestamp", "managedFields", "namespace", "name", "generateName", "generation"):
        result["metadata"].pop(key, None)
    labels = {key: value for key, value in result["metadata"].get("labels", {}).items() if key != way.label}
    return {**result, "metadata": {**result["metadata"], "labels": labels}}


def not_asking(given: Pod) -> Pod:
    labels = {key: value for key, value in (given["metadata"].get("labels") or {}).items() if key != INJECT_LABEL}
    return {**given, "metadata": {**given["metadata"], "labels": labels}}


def named(number: int, given: Pod) -> Pod:
    field = "generateName" if "generateName" in given["metadata"] else "name"
    return {**given, "metadata": {**given["metadata"], field: f"case-{number}"}}


def test_the_api_server_makes_of_each_pod_what_the_table_says(way: Way, plain: Namespace) -> None:
    expected = made_of(
        plain, *(named(i, not_asking(injected(case.pod, case.namespace))) for i, case in enumerate(CASES))
    )
    different = {}
    for labels in ({}, {INJECT_LABEL: "events"}, {INJECT_LABEL: "false"}):
        numbers = [i for i, case in enumerate(CASES) if case.namespace == labels]
        with namespace_with(way.asking(labels)) as namespace:
            until_it_works(way, namespace)
            actual = made_of(namespace, *(named(i, way.of(CASES[i].pod)) for i in numbers))
        for i, given in zip(numbers, actual, strict=True):
            one, other = comparable(given, way), comparable(expected[i], way)
            if one != other:
                different[CASES[i].name] = (one, other)
            assert_as_expected(CASES[i], given)
    assert not different


def assert_as_expected(case: Case, given: Pod) -> None:
    """What the table says itself, whatever sidecars/injection.py says."""
    if case.expected is not None:
        ours = {key: value for key, value in seen(given).items() if key in case.expected and key != "resources"}
        assert ours == {key: value for key, value in case.expected.items() if key != "resources"}, case.name


def test_the_sidecar_does_not_get_the_pods_service_account(way: Way, plain: Namespace) -> None:
    asks = way.of(pod(automountServiceAccountToken=True))
    [given] = made_of(plain, asks)
    [ours], [app] = given["spec"]["initContainers"], given["spec"]["containers"]
    assert [each["name"].split("-")[0] for each in app["volumeMounts"] if each["mountPath"] == _ACCOUNT] == ["kube"]
    mounted = [each["name"] for each in ours["volumeMounts"] if each["mountPath"] == _ACCOUNT]
    assert mounted == ["tinybird-proxy-no-account"]


def test_a_pod_of_kubectl_run_gets_it(way: Way, plain: Namespace) -> None:
    options = ("--image=registry.example.com/app:1", f"--labels={way.label}=events", "--dry-run=server", "-o", "json")
    given = json.loads(plain.kubectl("run", "app", *options))
    assert seen(given)["init"] == [SIDECAR_CONTAINER]


def test_the_pods_of_a_deployment_get_it(way: Way, plain: Namespace) -> None:
    """They stay Pending: no node has that label."""
    labels = {"app": "app", way.label: "events"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container()], "nodeSelector": {"tinybird-proxy.io/nowhere": "true"}},
    }
    plain.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "app"},
            "spec": {"selector": {"matchLabels": {"app": "app"}}, "template": template},
        }
    )
    [given] = until("a pod of the Deployment", lambda: plain.find("pods", "app=app"))
    assert seen(given)["init"] == [SIDECAR_CONTAINER]
    assert seen(given)["hash"] == SIDECAR["hash"]


def limit_range() -> dict[str, Any]:
    """Every container has a limit for CPU: a pod with one that has none is refused."""
    limits = {"type": "Container", "default": {"cpu": "500m"}, "max": {"cpu": "1"}}
    spec = {"limits": [limits]}
    return {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"}, "spec": spec}


def test_a_limit_range_gives_it_what_it_does_not_say(way: Way) -> None:
    with namespace_with({}, limit_range()) as namespace:
        until_it_works(way, namespace)
        [given] = made_of(namespace, way.of(pod()))
        assert seen(given)["resources"]["limits"] == {"cpu": "500m", "memory": "128Mi"}


@pytest.mark.control_plane
@pytest.mark.parametrize("first", [True, False])
def test_a_mesh_that_comes_in_afterwards_comes_before_it(way: Way, first: bool, tmp_path: Path) -> None:
    with namespace_with({}, limit_range()) as namespace, mesh(namespace, tmp_path, first=first) as asked:
        until_it_works(way, namespace)
        asks = way.of(pod(initContainers=[container("migrate")]))
        [given] = until("a mesh", lambda: [each for each in made_of(namespace, asks) if MESH in seen(each)["init"]])
        assert asked[-1] == [SIDECAR_CONTAINER, "migrate"]
        order = [MESH, SIDECAR_CONTAINER, "migrate"] if first else ["migrate", MESH, SIDECAR_CONTAINER]
        assert seen(given)["init"] == order
        assert seen(given)["env"][MESH] == []
        assert seen(given)["resources"]["limits"] == {"cpu": "500m", "memory": "128Mi"}


def test_with_fail_a_pod_that_asks_gets_it_or_is_refused_with_the_reason() -> None:
    needs_policies()
    values = ("--set", "injectionFailurePolicy=Fail")
    with (
        copies("required", _POLICIES, _REQUIRED, values=values) as required,
        namespace_with({}) as plain,
        namespace_with(required.asking({INJECT_LABEL: "nowhere"})) as asking,
    ):
        until_it_works(required, plain)
        until("a pod that is refused", lambda: "no sidecar" in refused(plain, required.of(pod(asks="nowhere"))))
        until("a pod that is refused", lambda: "no sidecar" in refused(asking, pod(asks=None)))
        for case in CASES:
            said = refused(plain, required.of(case.pod)) if not case.namespace else ""
            assert bool(said) == (case.refused is not None or case.pod in NOT_THERE), (case.name, said)
            assert f"no sidecar for this pod: {case.refused or ''}" in said or not said
        there_is_none = f"no TinybirdProxy nowhere in namespace {plain.name} gives one"
        assert there_is_none in refused(plain, required.of(pod(asks="nowhere")))
        assert not refused(asking, required.of(pod(asks="false")))
        assert not refused(asking, required.of(pod(asks="events")))


NOT_THERE: Final = [pod(asks="nowhere"), pod(asks="waiting")]


def refused(namespace: Namespace, given: Pod) -> str:
    """What the API server says when it refuses the pod; nothing if it would make it."""
    try:
        made_of(namespace, given)
    except CommandFailed as error:
        return str(error)
    return ""
