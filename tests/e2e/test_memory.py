"""A proxy that the kernel ends for want of memory: what that cost is told, and what to do works."""

from typing import Any, Final

import pytest
from tests.e2e.kubectl import CommandFailed, Namespace, token_secret, until

# The least that goes with a buffer of 32Mi, so that there is little to fill.
TIGHT: Final = {"resources": {"limits": {"memory": "288Mi"}}}
AMPLE: Final = {"resources": {"limits": {"memory": "320Mi"}}}
# Run in the proxy's container. The memory is the container's and no process's, so that the kernel ends the largest one,
# which is the proxy, as if that had grown by itself.
_FILL_MEMORY: Final = """
import os
file = os.memfd_create("filler")
while True:
    os.write(file, bytes(2**20))
"""


def _run_out_of_memory(namespace: Namespace) -> str:
    """The pod to which it happened, when its container runs again."""
    [pod] = namespace.pods()
    with pytest.raises(CommandFailed):
        namespace.kubectl("exec", pod, "--", "python", "-c", _FILL_MEMORY)
    until(f"{pod} ended for want of memory", lambda: _last_end(namespace, pod).get("reason") == "OOMKilled")
    namespace.kubectl("wait", "--for=condition=Ready", "--timeout=40s", f"pod/{pod}")
    return pod


def _last_end(namespace: Namespace, pod: str) -> dict[str, Any]:
    [container] = namespace.get("pod", pod)["status"]["containerStatuses"]
    found: dict[str, Any] = container["lastState"].get("terminated", {})
    return found


def test_what_a_proxy_held_when_it_ran_out_of_memory_is_told_as_a_condition_and_an_event(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(pod=TIGHT))
    namespace.wait_ready()
    namespace.faults({"status": 503})
    namespace.post("a", "b", "c")
    until("3 rows in the status", lambda: namespace.get("tbp", "events")["status"]["buffer"]["rows"] == 3, timeout_s=40)
    pod = _run_out_of_memory(namespace)
    message = namespace.until_condition("BufferHealthy", "False", "OutOfMemory")
    assert pod in message
    assert "3 rows" in message
    told = until("an Event", lambda: [each for each in namespace.find("events") if each["reason"] == "OutOfMemory"])
    assert [(each["type"], each["involvedObject"]["kind"]) for each in told] == [("Warning", "TinybirdProxy")]
    assert "3 rows" in told[0]["message"]


def test_after_it_ran_out_of_memory_a_proxy_goes_on_and_is_healthy_with_a_higher_limit(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(pod=TIGHT))
    namespace.wait_ready()
    pod = _run_out_of_memory(namespace)
    message = namespace.until_condition("BufferHealthy", "False", "OutOfMemory")
    assert "Raise pod.resources.limits.memory." in message
    namespace.wait_ready()
    namespace.post("after")
    namespace.until_arrived("after")
    namespace.apply(namespace.forwarding_to_tinybird(pod=AMPLE))
    namespace.until_condition("BufferHealthy", "True", "Healthy", timeout_s=60)
    assert pod not in namespace.pods()
    namespace.until_condition("Ready", "True", "Ready")
