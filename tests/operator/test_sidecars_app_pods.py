"""How each pod that asks for a sidecar stands."""

from typing import Any

import pytest
from tests.operator.app_pods import HASH, SIDECAR, app_pod
from tests.operator.injection_cases import CASES

from tinybird_proxy_operator.names import INJECT_LABEL, PROXY_LABEL
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State, asking, owner, slim


def look(pod: dict[str, Any], *, namespace: str | None = None, sidecar: Any = SIDECAR) -> AppPod | None:
    labels = {} if namespace is None else {INJECT_LABEL: namespace}
    found = asking([pod], name="events", namespace_labels=labels, sidecar=sidecar, reports={})
    return found[0] if found else None


def state(pod: dict[str, Any], **options: Any) -> State | None:
    found = look(pod, **options)
    return None if found is None else found.state


@pytest.mark.parametrize(
    ("pod", "namespace", "expected"),
    [
        (app_pod(hash=HASH), None, State.CURRENT),
        (app_pod(hash="00000000"), None, State.STALE),
        (app_pod(), None, State.MISSED),
        (app_pod(asks=None), "events", State.MISSED),
        (app_pod(asks=None), None, None),
        (app_pod(asks=None), "false", None),
        (app_pod(asks="other"), "events", None),
        (app_pod(asks="false"), "events", None),
        (app_pod(spec={"hostNetwork": True}), None, State.REFUSED),
        (app_pod(asks=None, annotations={"kubernetes.io/config.mirror": "x"}), "events", None),
        (app_pod(asks=None, labels={PROXY_LABEL: "events"}), "events", None),
    ],
    ids=str,
)
def test_a_pod_stands_as(pod: dict[str, Any], namespace: str | None, expected: State | None) -> None:
    assert state(pod, namespace=namespace) is expected


def test_a_sidecar_counts_even_if_the_pod_asks_no_more() -> None:
    pod = app_pod(hash=HASH)
    pod["metadata"]["labels"][INJECT_LABEL] = "false"
    assert state(pod) is State.CURRENT


@pytest.mark.parametrize("label", ["false", "other"])
def test_a_stale_pod_that_asks_for_none_or_for_another_is_not_outdated_for_the_next_would_not_have_it(
    label: str,
) -> None:
    pods = app_pod(hash="0"), app_pod(hash="0", asks=None)
    pods[0]["metadata"]["labels"][INJECT_LABEL] = label
    found = look(pods[0]), look(pods[1], namespace=label), look(pods[1], namespace="events")
    assert [(each.asks, each.outdated) for each in found if each is not None] == [(False, False)] * 2 + [(True, True)]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_what_has_ended_does_not_count(phase: str) -> None:
    pod = app_pod(hash=HASH)
    pod["status"]["phase"] = phase
    assert look(pod) is None


def test_without_a_rendered_sidecar_nobody_is_refused_and_what_is_there_is_stale() -> None:
    assert state(app_pod(spec={"hostNetwork": True}), sidecar=None) is State.MISSED
    assert state(app_pod(hash=HASH), sidecar=None) is State.STALE


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (app_pod(), "Deployment app"),
        (app_pod(owner=("ReplicaSet", "plain")), "ReplicaSet plain"),
        (app_pod(owner=("StatefulSet", "db")), "StatefulSet db"),
        (app_pod(owner=("DaemonSet", "agent")), "DaemonSet agent"),
        (app_pod(owner=("Job", "nightly")), None),
        (app_pod(owner=("SparkApplication", "x")), None),
        (app_pod(owner=None), None),
    ],
    ids=str,
)
def test_a_pod_is_replaced_by(pod: dict[str, Any], expected: str | None) -> None:
    assert owner(pod) == expected


def test_a_sidecar_that_runs_and_does_not_answer_is_silent() -> None:
    running, waiting = look(app_pod(hash=HASH)), look(app_pod(hash=HASH, state={"waiting": {"reason": "x"}}))
    assert running is not None
    assert running.is_silent
    assert waiting is not None
    assert not waiting.is_silent


def test_the_grace_period_is_kubernetes_where_the_pod_says_none() -> None:
    found = [look(app_pod(spec=spec)) for spec in ({}, {"terminationGracePeriodSeconds": 0})]
    assert [each.grace_period_s for each in found if each is not None] == [30, 0]


_PODS = [
    app_pod(),
    app_pod(hash=HASH),
    app_pod(hash="0", state={"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
    app_pod(asks=None, owner=("Job", "nightly"), ready=False, ip=None),
    app_pod(deletionTimestamp="2026-01-01T00:00:00Z", annotations={"kubernetes.io/config.mirror": "x"}),
    *(case.pod for case in CASES),
]


@pytest.mark.parametrize("number", range(len(_PODS)))
@pytest.mark.parametrize("namespace", [None, "events", "false"])
def test_what_is_kept_of_a_pod_says_the_same_as_all_of_it(number: int, namespace: str | None) -> None:
    whole = {**_PODS[number], "metadata": {"name": "app", "uid": "u", **_PODS[number]["metadata"]}}
    whole["status"] = {"containerStatuses": [{"name": "app", "state": {}}], **whole.get("status", {})}
    little = slim(whole)
    assert look(little, namespace=namespace) == look(whole, namespace=namespace)
    assert "containerStatuses" not in little["status"]
    assert all(each.keys() <= {"name", "ports", "restartPolicy"} for each in little["spec"]["containers"])
