"""More than one operator in a cluster: each looks after its own resources, and nobody else's."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from tests.e2e import foreign_crds
from tests.e2e.conftest import LABEL
from tests.e2e.kubectl import OPERATOR_CHART, OPERATOR_VALUES, CommandFailed, Namespace, run, token_secret, until

pytestmark = pytest.mark.timeout(240)
_RIGHTS = "clusterroles,clusterrolebindings"


@contextmanager
def _operator(namespace: Namespace, release: str, controller_class: str, **values: Any) -> Iterator[None]:
    """One more, in this namespace, until the block ends."""
    where = ("--namespace", namespace.name, "--wait", "--timeout", "80s")
    asked = {"crds.enabled": False, "replicas": 1, "controllerClass": controller_class, **values}
    asked["metricsAPI.enabled"] = False  # a cluster has one
    asked["injection"] = "None"
    settings = [part for key, value in asked.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
    try:
        run("helm", "install", release, OPERATOR_CHART, *where, *OPERATOR_VALUES, *settings)
        yield
    finally:
        try:
            run("helm", "uninstall", release, *where)
        except CommandFailed:
            # Or the namespace could not be deleted for ever: its own operator would be gone before its resources.
            run("helm", "uninstall", release, *where, "--no-hooks", "--ignore-not-found")
            for found in namespace.find("tinybirdproxies"):
                namespace.patch("tinybirdproxy", found["metadata"]["name"], {"metadata": {"finalizers": None}})
            raise


@contextmanager
def _another_namespace(name: str) -> Iterator[Namespace]:
    """Empty; it goes when the block ends."""
    run("kubectl", "create", "namespace", name)
    try:
        run("kubectl", "label", "namespace", name, LABEL)
        yield (made := Namespace(name))
        made.leave()
    finally:
        run("kubectl", "delete", "namespace", name, "--wait=false", "--ignore-not-found")


def _with_class(resource: dict[str, Any], name: str, controller_class: str) -> dict[str, Any]:
    return {**resource, "metadata": {"name": name}, "spec": {**resource["spec"], "controllerClass": controller_class}}


def _finalizers(namespace: Namespace, name: str) -> list[str]:
    found: list[str] = namespace.get("tinybirdproxy", name)["metadata"].get("finalizers", [])
    return found


def _of_release(release: str) -> list[str]:
    """What the whole cluster has of a release."""
    selector = ("--selector", f"app.kubernetes.io/instance={release}")
    return run("kubectl", "get", _RIGHTS, *selector, "--output", "name").split()


def test_each_operator_looks_after_the_resources_of_its_class_alone(namespace: Namespace) -> None:
    release = f"blue-{namespace.name}"
    everybodys = namespace.forwarding_to_tinybird()
    # The address that either operator allows, the other refuses: whoever looked at the wrong one would say so.
    blues = f"http://tinybird.{namespace.name}.svc.cluster.local:7181"
    tinybird = {"url": blues, "tokenSecretRef": {"name": "tinybird"}}
    blue = _with_class(namespace.forwarding_to_tinybird(tinybird=tinybird), "blue", "blue")
    with _operator(namespace, release, "blue", allowedUpstreams=["*.cluster.local"]):
        namespace.apply(token_secret(), everybodys, blue)
        namespace.wait_ready()
        namespace.wait_ready("blue")
        namespace.post("to-events")
        namespace.post("to-blue", name="blue")
        namespace.until_arrived("to-events", "to-blue")
        until("a finalizer on both", lambda: _finalizers(namespace, "events") and _finalizers(namespace, "blue"))
        assert _finalizers(namespace, "events") == ["tinybird-proxy.io/drain"]
        assert _finalizers(namespace, "blue") == ["blue.tinybird-proxy.io/drain"]
        # Without the blue one, nobody carries out what blue asks.
        namespace.kubectl("scale", f"deployment/{release}-tinybird-proxy-operator", "--replicas=0")
        blue_operator = f"app.kubernetes.io/instance={release}"
        until("no blue operator", lambda: not namespace.find("pods", blue_operator), timeout_s=40)
        for name in ("blue", "events"):
            namespace.patch("tinybirdproxy", name, {"spec": {"service": {"port": 8080}}})
        until("the port", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == 8080)
        assert namespace.get("service", "blue")["spec"]["ports"][0]["port"] == 80
        namespace.kubectl("scale", f"deployment/{release}-tinybird-proxy-operator", "--replicas=1")
        until("blue's port", lambda: namespace.get("service", "blue")["spec"]["ports"][0]["port"] == 8080, timeout_s=40)
        namespace.until_condition("Ready", "True", "Ready", name="blue")
        assert namespace.events("UpstreamNotAllowed") == []
    # Its uninstall has released its own and nothing else.
    assert _finalizers(namespace, "blue") == []
    assert _finalizers(namespace, "events") == ["tinybird-proxy.io/drain"]
    assert _of_release(release) == []
    assert len(namespace.pods("blue")) == 1


def test_an_operator_of_one_namespace_needs_no_right_beyond_it_and_does_nothing_beyond_it(namespace: Namespace) -> None:
    release = f"one-{namespace.name}"
    with _another_namespace(f"{namespace.name}-elsewhere") as elsewhere:
        # Earlier than those that it is to look after.
        elsewhere.apply(token_secret(), _with_class(elsewhere.forwarding_to_tinybird(), "events", release))
        with _operator(namespace, release, release, watchNamespaces=[namespace.name]):
            assert _of_release(release) == []
            assert namespace.find("roles", f"app.kubernetes.io/instance={release}")
            account = f"system:serviceaccount:{namespace.name}:{release}-tinybird-proxy-operator"
            assert _may(account, "create", "deployments", namespace)
            assert not _may(account, "get", "tinybirdproxies", elsewhere)
            namespace.apply(token_secret(), _with_class(namespace.forwarding_to_tinybird(), "events", release))
            namespace.wait_ready()
            namespace.post("one")
            namespace.until_arrived("one")
            namespace.patch("tinybirdproxy", "events", {"spec": {"replicas": 2}})
            until("two pods", lambda: len(namespace.pods()) == 2)
            assert _finalizers(namespace, "events") == [f"{release}.tinybird-proxy.io/drain"]
        assert _finalizers(namespace, "events") == []
        assert namespace.find("roles,rolebindings", f"app.kubernetes.io/instance={release}") == []
        untouched = elsewhere.get("tinybirdproxy", "events")
        assert "status" not in untouched
        assert "finalizers" not in untouched["metadata"]
        assert elsewhere.find("deployments,services,networkpolicies,pods,events") == []
        namespace.kubectl("delete", "tinybirdproxy", "events", "--wait", "--timeout=20s")


def test_an_operator_can_be_uninstalled_when_one_of_its_namespaces_is_no_more(namespace: Namespace) -> None:
    release = f"two-{namespace.name}"
    with (
        _another_namespace(f"{namespace.name}-gone") as gone,
        _operator(namespace, release, release, watchNamespaces=[namespace.name, gone.name]),
    ):
        run("kubectl", "delete", "namespace", gone.name, "--wait")
    assert namespace.find("deployments,roles,rolebindings", f"app.kubernetes.io/instance={release}") == []


def test_an_operator_that_may_make_pod_monitors_makes_such_as_the_api_server_takes(
    namespace: Namespace,
) -> None:
    foreign_crds.install(foreign_crds.PROMETHEUS_OPERATOR, "podmonitors", "prometheusrules")
    release = f"watched-{namespace.name}"
    proxy = namespace.forwarding_to_tinybird(monitoring={"podMonitor": "Enabled"})
    with _operator(namespace, release, release, watchNamespaces=[namespace.name], rbac={"podMonitors": True}):
        namespace.apply(token_secret(), _with_class(proxy, "events", release))
        namespace.wait_ready()
        made = until("the PodMonitor", lambda: namespace.find("podmonitors"))[0]
        assert made["spec"]["selector"]["matchLabels"]["tinybird-proxy.io/proxy"] == "events"
        namespace.patch("tinybirdproxy", "events", {"spec": {"monitoring": {"podMonitor": "Disabled"}}})
        until("no PodMonitor", lambda: not namespace.find("podmonitors"))
        namespace.kubectl("delete", "tinybirdproxy", "events", "--wait", "--timeout=20s")
    for chart in (OPERATOR_CHART, OPERATOR_CHART.parent / "tinybird-proxy"):
        values = ("--values", chart / "ci" / "everything-values.yaml", "--namespace", namespace.name)
        rendered = yaml.safe_load_all(run("helm", "template", "x", chart, *values))
        monitoring = [each for each in rendered if each and each["kind"] in ("PodMonitor", "PrometheusRule")]
        assert {each["kind"] for each in monitoring} == {"PodMonitor", "PrometheusRule"}
        namespace.kubectl("create", "--dry-run=server", "--filename", "-", stdin=yaml.safe_dump_all(monitoring))


def _may(account: str, verb: str, kind: str, namespace: Namespace) -> bool:
    try:
        return namespace.kubectl("auth", "can-i", verb, kind, "--as", account).strip() == "yes"
    except CommandFailed:
        return False
