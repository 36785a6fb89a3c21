"""The built-in custom metrics API: who reads it, who may not, and what happens when a part of it goes."""

import json
import signal
from collections.abc import Iterator
from typing import Any, Final

import pytest
from tests.e2e.custom_metrics import METRIC, SERVICE, available, figures, registrations, values
from tests.e2e.kubectl import (
    OPERATOR,
    OPERATOR_NAMESPACE,
    CommandFailed,
    Namespace,
    install_operator,
    run,
    token_secret,
    until,
)
from tests.e2e.processes import container, process

SYSTEM: Final = Namespace(OPERATOR_NAMESPACE)
TLS_PORT: Final = 6443
# Whether somebody with these headers, and without a certificate, is let in: HOST PATH [TOKEN]
SPOOF: Final = """
import ssl, sys, urllib.error, urllib.request

host, path, *token = sys.argv[1:]
context = ssl._create_unverified_context()
headers = {"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"}
headers |= {"Authorization": f"Bearer {each}" for each in token}
try:
    answer = urllib.request.urlopen(urllib.request.Request(f"https://{host}{path}", headers=headers), context=context)
    print(answer.status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def _api_pods() -> list[dict[str, Any]]:
    selector = f"app.kubernetes.io/name={OPERATOR},app.kubernetes.io/component=metrics-api"
    return [pod for pod in SYSTEM.find("pods", selector) if "deletionTimestamp" not in pod["metadata"]]


def _autoscaled(namespace: Namespace, **more: Any) -> dict[str, Any]:
    autoscaling = {"minReplicas": 1, "maxReplicas": 2, "targets": {"bufferRowsPerPod": 1000}}
    proxy = namespace.forwarding_to_tinybird(autoscaling=autoscaling, **more)
    del proxy["spec"]["replicas"]
    return proxy


def _scaling_active(namespace: Namespace) -> str:
    conditions = namespace.get("horizontalpodautoscaler", "events").get("status", {}).get("conditions", [])
    return next((each["status"] for each in conditions if each["type"] == "ScalingActive"), "")


def test_pods_and_resources_tell_their_figures_in_both_versions(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=2))
    namespace.wait_ready()
    namespace.faults({"status": 503})
    namespace.spread("one", "two", "three")
    held = namespace.pods_rows()
    for version in ("v1beta1", "v1beta2"):
        until(f"the rows, {version}", lambda version=version: values(namespace, version=version) == held)  # type: ignore[misc]
    for metric in ("buffer_utilization_percent", "drain_time_seconds", "cpu_percent"):
        assert set(values(namespace, f"tinybird_proxy_{metric}")) == set(held)
    path = figures(namespace).replace("pods/%2A", "tinybirdproxies.tinybird-proxy.io/events")
    [whole] = json.loads(run("kubectl", "get", "--raw", path))["items"]
    assert int(whole["value"]) == 3
    with pytest.raises(CommandFailed, match="NotFound"):
        run("kubectl", "get", "--raw", figures(namespace, "no_such_metric"))


def test_who_may_not_read_the_figures_is_refused_and_headers_alone_make_nobody_somebody(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    with pytest.raises(CommandFailed, match=r"(?i)forbidden"):
        run("kubectl", "get", "--raw", figures(namespace), "--as=somebody")
    host = f"{SERVICE}.{OPERATOR_NAMESPACE}.svc"
    asked = ("exec", "tinybird", "--", "python", "-c", SPOOF, host, figures(namespace))
    assert namespace.kubectl(*asked).strip() == "401"
    # Whoever shows a token is known by it, and not by what else is said.
    token = namespace.kubectl("create", "token", "default").strip()
    assert namespace.kubectl(*asked, token).strip() == "403"


class TestAlone:
    """What all others need goes meanwhile."""

    pytestmark = pytest.mark.alone

    @pytest.fixture(autouse=True)
    def _as_before(self) -> Iterator[None]:
        yield
        SYSTEM.kubectl("rollout", "status", f"deployment/{SERVICE}", "--timeout=80s")
        until("the API", available, timeout_s=60)

    @pytest.mark.control_plane
    def test_with_one_replica_killed_or_frozen_the_hpa_sees_on(self, namespace: Namespace) -> None:
        namespace.apply(token_secret(), _autoscaled(namespace))
        namespace.wait_ready()
        until("the HPA is active", lambda: _scaling_active(namespace) == "True", timeout_s=40)
        condition = ".status.conditions[?(@.type=='ScalingActive')].status"
        first, second = _api_pods()
        with namespace.watched("horizontalpodautoscaler", "events", condition, ".metadata.resourceVersion") as versions:
            with process(first) as send:
                send(signal.SIGKILL)
            until("it is back", lambda: all(container(pod)["ready"] for pod in _api_pods()), timeout_s=60)
            with process(second) as send:
                send(signal.SIGSTOP)
                try:
                    until("it is unready", lambda: not all(container(pod)["ready"] for pod in _api_pods()))
                    until("the other answers", lambda: values(namespace), timeout_s=30)
                finally:
                    send(signal.SIGCONT)
            until("the HPA is active", lambda: _scaling_active(namespace) == "True", timeout_s=20)
        # The HPA looks each second, and writes what differs: once without figures, and at the next look with them.
        statuses = [status for status, _ in versions]
        print(f"ScalingActive, version by version: {statuses}")
        assert statuses.count("False") <= 1

    def test_another_adapter_that_was_first_is_left_alone_and_named(self, namespace: Namespace) -> None:
        install_operator("--set", "metricsAPI.enabled=false")
        until("no API", lambda: not registrations(), timeout_s=40)
        theirs = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.custom.metrics.k8s.io"},
            "spec": {
                "group": "custom.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"namespace": namespace.name, "name": "their-adapter"},
            },
        }
        try:
            namespace.apply(theirs)
            before = registrations()
            install_operator()
            namespace.apply(token_secret(), _autoscaled(namespace))
            message = namespace.until_condition("Autoscaling", "False", "MetricsAPIOwnedByOther", timeout_s=60)
            assert f"{namespace.name}/their-adapter" in message
            after = registrations()
            assert {name: each["spec"] for name, each in after.items()} == {
                name: each["spec"] for name, each in before.items()
            }
        finally:
            run("kubectl", "delete", "apiservice", "v1beta1.custom.metrics.k8s.io")
        until("our API in its place", available, timeout_s=90)
        until("autoscaling works", lambda: namespace.condition("Autoscaling")[0] == "True", timeout_s=60)

    def test_switched_off_or_uninstalled_nothing_of_it_is_left_and_namespaces_can_be_deleted(
        self, namespace: Namespace
    ) -> None:
        install_operator("--set", "metricsAPI.enabled=false")
        until("no API", lambda: not registrations(), timeout_s=40)
        install_operator()
        until("the API", available, timeout_s=60)
        run("helm", "uninstall", OPERATOR, "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "60s")
        try:
            until("no API", lambda: not registrations(), timeout_s=40)
            run("kubectl", "delete", "namespace", namespace.name, "--timeout=60s")
        finally:
            install_operator()
        assert METRIC not in run("kubectl", "get", "--raw", "/apis")
