"""The operator itself comes and goes; what it runs stays. These tests change what all share."""

import json
import os
from typing import Any

import pytest
from tests.e2e.kubectl import (
    OPERATOR,
    OPERATOR_NAMESPACE,
    ROOT,
    CommandFailed,
    Namespace,
    install_operator,
    run,
    scale_operator,
    token_secret,
    until,
)

pytestmark = pytest.mark.alone


def _pods(namespace: Namespace) -> dict[str, Any]:
    """Each pod and since when its container runs."""
    return {
        pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["state"]
        for pod in namespace.find("pods", "tinybird-proxy.io/proxy")
    }


def test_what_changed_while_the_operator_was_down_is_carried_out_when_it_is_back(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    token = namespace.client_token()
    scale_operator(0)
    try:
        namespace.apply(namespace.forwarding_to_tinybird(replicas=2, service={"port": 8080}))
        namespace.kubectl("delete", "networkpolicy", "events")
        namespace.apply(
            token_secret(name="other"), namespace.forwarding_to_tinybird() | {"metadata": {"name": "other"}}
        )
        namespace.post("meanwhile")
        namespace.until_arrived("meanwhile")
    finally:
        scale_operator(2)
    until("two pods", lambda: len(namespace.pods()) == 2)
    until("the port", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == 8080)
    until("the policy", lambda: namespace.get("networkpolicy", "events"))
    namespace.wait_ready("other")
    namespace.wait_ready()
    assert namespace.client_token() == token


@pytest.mark.control_plane
def test_the_operator_was_refused_nothing_in_the_whole_run() -> None:
    refused = run(ROOT / "tests" / "cluster" / "cluster", "refused", f"{OPERATOR_NAMESPACE}:{OPERATOR}").splitlines()
    since = os.environ.get("E2E_BEGAN_AT", "")
    # Of the other parts, whose names begin like the operator's, test_privileges tells.
    own = [line for line in refused if f":{OPERATOR}: " in line]
    # Nobody may make anything in a namespace that is on its way out.
    assert not [line for line in own if line > since and not line.endswith("because it is being terminated")]


def test_the_operator_tells_of_no_fault_of_its_own() -> None:
    logs = run(
        *("kubectl", "--namespace", OPERATOR_NAMESPACE, "logs"),
        *("--selector", f"app.kubernetes.io/name={OPERATOR}", "--tail", "-1"),
    )
    lines = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    assert not [line["message"] for line in lines if line["levelname"] in ("ERROR", "CRITICAL")]
    assert "Traceback" not in logs


# The last one: while it is uninstalled, the operator's rights go before it does.
def test_upgrade_uninstall_and_installing_again_roll_nothing(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    before = _pods(namespace)
    install_operator("--set", "log.level=debug", "--set", "resyncSeconds=60")
    namespace.until_condition("Ready", "True", "Ready")
    assert _pods(namespace) == before
    run("helm", "uninstall", OPERATOR, "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "60s")
    try:
        run("kubectl", "get", "customresourcedefinition", "tinybirdproxies.tinybird-proxy.io")
        assert namespace.get("tinybirdproxy", "events")
        with pytest.raises(CommandFailed, match="not found"):
            Namespace(OPERATOR_NAMESPACE).get("deployment", OPERATOR)
        assert _pods(namespace) == before
        namespace.post("without an operator")
        namespace.until_arrived("without an operator")
    finally:
        install_operator()
    run("helm", "test", OPERATOR, "--namespace", OPERATOR_NAMESPACE, "--timeout", "60s")
    namespace.patch("tinybirdproxy", "events", {"spec": {"service": {"port": 8080}}})
    until("the port", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == 8080)
    namespace.until_condition("Ready", "True", "Ready")
    assert _pods(namespace) == before
