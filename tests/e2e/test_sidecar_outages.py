"""Injection while the webhook, or all of the operator, is away: who is missed is counted, and made current."""

from collections.abc import Iterator
from typing import Any, Final

import pytest
from tests.e2e import sidecar_pods
from tests.e2e.injected_pods import (
    app_deployment,
    has_sidecar,
    pods,
    rendered,
    roll_out,
    sidecar,
    sidecar_of,
    until_counted,
    until_rows,
)
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE, Namespace, install_operator, run, token_secret, until

from tinybird_proxy_operator.names import INJECT_LABEL

pytestmark = pytest.mark.alone

SYSTEM: Final = Namespace(OPERATOR_NAMESPACE)
WEBHOOK: Final = f"{OPERATOR}-webhook"
WEBHOOK_PODS: Final = f"app.kubernetes.io/name={OPERATOR},app.kubernetes.io/component=webhook"


@pytest.fixture
def as_before() -> Iterator[None]:
    """Every Deployment of the operator's chart as the other tests have it, afterwards."""
    before = {each["metadata"]["name"]: each["spec"]["replicas"] for each in SYSTEM.find("deployments")}
    yield
    if before.keys() != {each["metadata"]["name"] for each in SYSTEM.find("deployments")}:
        install_operator()
    for name, replicas in before.items():
        SYSTEM.kubectl("scale", f"deployment/{name}", f"--replicas={replicas}")
    for name in before:
        SYSTEM.kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")


def _scale_to_zero(*names: str) -> None:
    for name in names:
        SYSTEM.kubectl("scale", f"deployment/{name}", "--replicas=0")
    until("no pods", lambda: not [each for each in SYSTEM.find("pods") if _is_of(each, names)], timeout_s=60)


def _is_of(pod: dict[str, Any], names: tuple[str, ...]) -> bool:
    own = pod["metadata"].get("labels", {}).get("pod-template-hash", "")
    return pod["metadata"]["name"].split(f"-{own}")[0] in names


def _budget() -> dict[str, Any]:
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "app"}}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "app"}, "spec": spec}


def test_pods_that_were_made_while_the_webhook_was_away_are_counted_and_made_current(
    namespace: Namespace, as_before: None
) -> None:
    namespace.apply(token_secret(), sidecar(namespace), _budget())
    namespace.wait_ready()
    _scale_to_zero(WEBHOOK)
    roll_out(namespace, app_deployment(replicas=2, command=["sleep", "600"], grace_s=1))
    assert not any(map(has_sidecar, pods(namespace)))
    until_counted(namespace, missed=2)
    assert "do not have it" in namespace.until_condition("SidecarsCurrent", "False", "SidecarsMissed")
    SYSTEM.kubectl("scale", f"deployment/{WEBHOOK}", "--replicas=2")
    SYSTEM.kubectl("rollout", "status", f"deployment/{WEBHOOK}", "--timeout=60s")
    with namespace.watched("deployment", "app", ".status.readyReplicas") as versions:
        namespace.apply(sidecar(namespace, sidecar={"rollout": "Evict"}))
        until_counted(namespace, injected=2, timeout_s=80)
    assert min(int(ready or 0) for [ready] in versions) >= 1
    assert all(map(has_sidecar, pods(namespace)))
    assert len(namespace.events("Evicted")) == 2


def test_by_policy_pods_get_it_while_every_part_of_the_operator_is_down(namespace: Namespace, as_before: None) -> None:
    install_operator("--set", "injection=Policy")
    assert not [each for each in SYSTEM.find("deployments") if each["metadata"]["name"] == WEBHOOK]
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    hash = rendered(namespace)["hash"]
    _scale_to_zero(*(each["metadata"]["name"] for each in SYSTEM.find("deployments")))
    early = sidecar_pods.app("init", "--count", "3", name="early")
    labelled = app_deployment("labelled", name="labelled")
    labelled["spec"]["template"]["spec"]["initContainers"] = [early]
    plain = app_deployment("plain", name="plain")
    del plain["spec"]["template"]["metadata"]["labels"][INJECT_LABEL]
    run("kubectl", "label", "namespace", namespace.name, f"{INJECT_LABEL}=events")
    roll_out(namespace, labelled, plain)
    for name in ("labelled", "plain"):
        [pod] = pods(namespace, name)
        assert sidecar_of(pod) == ("events", hash)
        until_rows(namespace, name)
    namespace.until_arrived("init-1", "init-2", "init-3")
