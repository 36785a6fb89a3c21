"""Traffic rises and pods are added; it falls and they go, and not a row with them. With the built-in metrics API."""

import json
import signal
import time
from contextlib import ExitStack
from typing import Any, Final

import pytest
from tests.e2e.custom_metrics import figures
from tests.e2e.kubectl import CommandFailed, Namespace, run, token_secret, until
from tests.e2e.processes import process

DRAINING: Final = "tinybird-proxy.io/draining"
SMALL: Final = {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}}}
# Rows wait two seconds for their answer, so that what is buffered says how much comes in.
SLOW: Final = {"delay_s": 2}
QUICK_PAUSE_S: Final = 0.01
LAZY_PAUSE_S: Final = 0.6


def _autoscaled(namespace: Namespace, *, rows_per_pod: int, most: int, least: int = 1, **more: Any) -> dict[str, Any]:
    asked = {"minReplicas": least, "maxReplicas": most, "targets": {"bufferRowsPerPod": rows_per_pod}}
    asked |= {"behavior": more.pop("behavior", {"scaleDown": {"stabilizationWindowSeconds": 2}}), **more}
    spec = {"autoscaling": asked, "pod": SMALL, "drain": {"shutdownTimeoutSeconds": 15, "deadlineSeconds": 120}}
    proxy = namespace.forwarding_to_tinybird(**spec)
    del proxy["spec"]["replicas"]
    return proxy


def _until_it_works(namespace: Namespace) -> None:
    until("autoscaling works", lambda: namespace.condition("Autoscaling")[0] == "True", timeout_s=60)


def _replicas(namespace: Namespace) -> int:
    """Of the Deployment."""
    return int(namespace.get("deployment", "events")["spec"]["replicas"])


def _ready(namespace: Namespace) -> int:
    return int(namespace.get("deployment", "events")["status"].get("readyReplicas", 0))


def _victims(namespace: Namespace) -> list[str]:
    return [pod["metadata"]["name"] for pod in namespace.find("pods", f"tinybird-proxy.io/proxy=events,{DRAINING}")]


def _two_victims(namespace: Namespace) -> list[str]:
    found = _victims(namespace)
    return found if len(found) == 2 else []


def _hpa(namespace: Namespace) -> dict[str, Any]:
    return namespace.get("horizontalpodautoscaler", "events")


@pytest.mark.timeout(400)
def test_three_waves_of_load_add_pods_and_take_them_away_and_every_row_arrives(namespace: Namespace) -> None:
    namespace.apply(token_secret(), _autoscaled(namespace, rows_per_pod=80, most=3))
    namespace.wait_ready()
    _until_it_works(namespace)
    namespace.faults(SLOW)
    reactions = []
    with namespace.load(pause_s=LAZY_PAUSE_S) as load:
        for wave in range(3):
            began = time.monotonic()
            load.pause(QUICK_PAUSE_S)
            until(f"three pods at work, wave {wave}", lambda: _ready(namespace) == 3, timeout_s=60)
            reactions.append(time.monotonic() - began)
            load.pause(LAZY_PAUSE_S)
            until(f"one pod, wave {wave}", lambda: _replicas(namespace) == 1 == len(namespace.pods()), timeout_s=90)
    print("from the rise to three pods at work, s:", *(f"{each:.1f}" for each in reactions))
    print("the client was told:", load["other"])
    namespace.faults()
    namespace.all_arrived(load)
    assert not namespace.events("WrongPodRemoved")
    assert not namespace.events("RowsDropped")
    assert namespace.restarts() == 0


@pytest.mark.timeout(240)
def test_replicas_replaced_by_autoscaling_in_one_apply_stay_as_many_and_the_hpa_takes_over(
    namespace: Namespace,
) -> None:
    proxy = _autoscaled(namespace, rows_per_pod=80, most=5, behavior={"scaleDown": {"selectPolicy": "Disabled"}})
    fixed = {**proxy, "spec": {key: value for key, value in proxy["spec"].items() if key != "autoscaling"}}
    namespace.apply(token_secret(), {**fixed, "spec": {**fixed["spec"], "replicas": 5}})
    namespace.wait_ready()
    with namespace.watched("deployment", "events", ".spec.replicas") as versions:
        namespace.apply(proxy)
        until("the HPA sees five", lambda: _hpa(namespace)["status"].get("currentReplicas") == 5, timeout_s=60)
        until("it is active", lambda: _active(namespace) == "True", timeout_s=60)
        namespace.until_condition("Progressing", "False", "UpToDate", timeout_s=90)
    assert {replicas for [replicas] in versions} == {"5"}
    assert namespace.get("tbp", "events")["spec"]["replicas"] == 5
    scale_down = {"stabilizationWindowSeconds": 0, "selectPolicy": None}
    namespace.patch("tbp", "events", {"spec": {"autoscaling": {"behavior": {"scaleDown": scale_down}}}})
    until("the HPA takes some away", lambda: _replicas(namespace) == 1, timeout_s=90)


def _active(namespace: Namespace) -> str:
    conditions = _hpa(namespace).get("status", {}).get("conditions", [])
    return next((each["status"] for each in conditions if each["type"] == "ScalingActive"), "")


@pytest.mark.timeout(240)
def test_while_pods_drain_more_load_cancels_the_drains(namespace: Namespace) -> None:
    namespace.apply(token_secret(), _autoscaled(namespace, rows_per_pod=100, most=5, least=5))
    namespace.wait_ready()
    pods = namespace.pods()
    namespace.faults({"status": 503})
    few = [f"few-{number}" for number in range(60)]
    namespace.spread(*few)
    held = namespace.pods_rows()
    assert all(held.values()), held
    namespace.patch("tbp", "events", {"spec": {"autoscaling": {"minReplicas": 3}}})
    victims = until("two victims", lambda: _two_victims(namespace), timeout_s=60)
    # 150 % of the target in each of the three that are left. Not by the Service: until everybody has heard that the
    # victims drain they take rows too, which do not count, and then three pods may be enough.
    many = []
    for left in (pod for pod in pods if pod not in victims):
        many += (its := [f"many-{left}-{number}" for number in range(150)])
        namespace.post_to_pod(left, *its)
    until("nobody drains", lambda: not _victims(namespace), timeout_s=80)
    until("five pods at work", lambda: _ready(namespace) == 5, timeout_s=60)
    assert namespace.pods() == pods
    assert set(victims) < set(pods)
    namespace.faults()
    namespace.until_arrived(*few, *many)


def test_a_tinybird_that_throttles_does_not_make_the_pods_as_many_as_may_be(namespace: Namespace) -> None:
    behavior = {"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}}
    namespace.apply(token_secret(), _autoscaled(namespace, rows_per_pod=20, most=5, behavior=behavior))
    namespace.wait_ready()
    namespace.faults({"status": 429, "retry_after": 1})
    with namespace.load(pause_s=0.05) as load:
        print(namespace.until_condition("UpstreamThrottled", "True", "Throttled", timeout_s=60))
        until(
            "the HPA may add no more",
            lambda: _hpa(namespace)["spec"]["behavior"]["scaleUp"].get("selectPolicy") == "Disabled",
        )
        replicas = _replicas(namespace)
        assert replicas < 5
        # The HPA has looked again, wants more, and does not get it.
        limited = until("the HPA wants more", lambda: _limited(namespace), timeout_s=30)
        print(limited)
        assert _replicas(namespace) <= replicas + 1
    namespace.faults()
    namespace.all_arrived(load)


def _limited(namespace: Namespace) -> str:
    conditions = _hpa(namespace).get("status", {}).get("conditions", [])
    found: dict[str, Any] = next((each for each in conditions if each["type"] == "ScalingLimited"), {})
    return json.dumps(found) if found.get("status") == "True" else ""


def test_an_hpa_on_the_deployment_is_named_and_nobody_fights_it(namespace: Namespace) -> None:
    proxy = _autoscaled(namespace, rows_per_pod=80, most=3)
    namespace.apply(token_secret(), proxy)
    namespace.wait_ready()
    namespace.kubectl("autoscale", "deployment/events", "--name=theirs", "--min=1", "--max=2", "--cpu=50%")
    message = namespace.until_condition("Autoscaling", "False", "ForeignHPA", timeout_s=40)
    assert "theirs" in message
    namespace.kubectl("delete", "horizontalpodautoscaler", "theirs")
    _until_it_works(namespace)
    namespace.patch("tbp", "events", {"spec": {"autoscaling": None}})
    until("no HPA", lambda: not namespace.find("horizontalpodautoscalers"), timeout_s=40)
    namespace.until_condition("Autoscaling", "", "")


@pytest.mark.control_plane
def test_when_no_proxy_tells_its_figures_nothing_is_scaled(namespace: Namespace) -> None:
    namespace.apply(token_secret(), _autoscaled(namespace, rows_per_pod=80, most=3, least=2))
    namespace.wait_ready()
    until("the HPA is active", lambda: _active(namespace) == "True", timeout_s=40)
    with ExitStack() as stack:
        for pod in namespace.pods():
            send = stack.enter_context(process(namespace.get("pod", pod)))
            send(signal.SIGSTOP)
            stack.callback(send, signal.SIGCONT)
        until("the HPA has no figures", lambda: _active(namespace) == "False", timeout_s=30)
        with pytest.raises(CommandFailed, match=r"(?i)no pod|NotFound|ServiceUnavailable"):
            run("kubectl", "get", "--raw", figures(namespace))
        assert _replicas(namespace) == 2
    until("the HPA is active again", lambda: _active(namespace) == "True", timeout_s=60)
    assert _replicas(namespace) == 2
