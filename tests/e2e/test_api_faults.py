"""The operator before an API server that answers badly, or not at all: it recovers without anybody's help."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from tests.e2e.faulty_api import Faults, fault_proxy, in_front_of, redirection, redirection_undone
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE, ROOT, Namespace, token_secret, until

pytestmark = [pytest.mark.alone, pytest.mark.control_plane]

# Not of the Lease, which is good for some seconds only in these tests.
PATH: Final = r"^(?!.*/leases/)"
# A look at everything makes some 13 requests, and begins anew when one fails.
FAULTS: Final[Mapping[str, list[Mapping[str, Any]]]] = {
    "429": [{"status": 429, "retry_after_s": 1, "share": 0.12, "path": PATH}],
    "410": [{"watch_error": 410, "watch": True, "times": 8}, {"status": 410, "watch": True, "times": 4}],
    "resets": [
        {"reset": "during_answer", "watch": True, "times": 8},
        {"reset": "before_answer", "share": 0.08, "path": PATH},
        {"reset": "before_request", "share": 0.08, "path": PATH},
    ],
    "5xx": [{"status": 503, "share": 0.12, "path": PATH}],
}


@pytest.fixture
def faults() -> Iterator[Faults]:
    """A proxy before the API server, and the operator led through it."""
    operator = Namespace(OPERATOR_NAMESPACE)

    def lead(patch: Mapping[str, Any]) -> None:
        operator.kubectl("patch", "deployment", OPERATOR, "--patch", json.dumps(patch))
        operator.kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=80s")

    with fault_proxy(in_front_of(Path(os.environ["KUBECONFIG"]))) as made:
        try:
            lead(redirection(made.host, made.port))
            yield made
        finally:
            made.inject()
            lead(redirection_undone())


def test_through_429_410_resets_and_5xx_it_does_its_work_and_rolls_nothing(
    namespace: Namespace, faults: Faults
) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods, token = namespace.pods(), namespace.client_token()
    ports = count(8000)
    for name, kinds in FAULTS.items():
        faults.inject(*kinds)
        before = sum(faults.counts()["injected"].values())
        # Chance decides what is struck: until something of each kind was.
        while sum(faults.counts()["injected"].values()) == before:
            _change_through(namespace, name, next(ports))
        faults.inject()
    print(f"injected: {faults.counts()['injected']}")
    namespace.until_condition("Ready", "True", "Ready", timeout_s=60)
    assert namespace.pods() == pods
    assert namespace.client_token() == token
    namespace.patch("tinybirdproxy", "events", {"spec": {"service": {"port": 80}}})
    url = namespace.service_url()
    until("a way in", lambda: namespace.client("post", url, token, "after") == [202], timeout_s=40)
    namespace.until_arrived("after")


def _change_through(namespace: Namespace, name: str, port: int) -> None:
    """One thing that differs and one that is gone; both are put right through these faults."""
    namespace.patch("tinybirdproxy", "events", {"spec": {"service": {"port": port}}})
    namespace.kubectl("delete", "networkpolicy", "events")
    until(
        f"the port, through {name}",
        lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == port,
        timeout_s=60,
    )
    until(f"the policy, through {name}", lambda: namespace.get("networkpolicy", "events"), timeout_s=60)


def test_an_api_server_that_is_started_anew_is_found_again(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    subprocess.run([ROOT / "tests" / "cluster" / "cluster", "restart", "kube-apiserver"], check=True, timeout=90)
    until("the API server", lambda: namespace.get("tinybirdproxy", "events"), timeout_s=60)
    namespace.patch("tinybirdproxy", "events", {"spec": {"service": {"port": 8080}}})
    until("the port", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == 8080, timeout_s=60)
    namespace.until_condition("Ready", "True", "Ready", timeout_s=60)
    assert namespace.pods() == pods
