"""What a failed run leaves for a person to read, and who was refused what."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.cluster.refusal import Refusal

_TIMEOUT_S: Final = 60
_WIDE: Final = "nodes,all,events,pvc,pv,ingresses,networkpolicies,configmaps,serviceaccounts"


def bundle(kubectl: Path, kubeconfig: Path, target: Path, run: Path | None) -> None:
    """Write into `target` what kubectl can tell about any cluster and, with `run`, what the parts of ours wrote.

    Secrets are left out. What cannot be had is said in its file instead, and does not stop the rest.
    """
    target.mkdir(parents=True, exist_ok=True)
    if run is not None:
        for log in sorted((run / "logs").glob("*.log")):
            shutil.copy(log, target / log.name)
        lines = [str(entry) for entry in refused(run / "logs" / "audit.log")]
        (target / "refused.txt").write_text("".join(f"{line}\n" for line in lines))

    def ask(*arguments: str) -> str:
        command = [str(kubectl), f"--kubeconfig={kubeconfig}", "--request-timeout=20s", *arguments]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"kubectl {' '.join(arguments)}: no answer in {_TIMEOUT_S} s\n"
        return asked.stdout + asked.stderr

    (target / "objects.txt").write_text(ask("get", _WIDE, "--all-namespaces", "--output=wide"))
    (target / "pods.txt").write_text(ask("describe", "pods,nodes", "--all-namespaces"))
    (target / "objects.yaml").write_text(ask("get", _WIDE, "--all-namespaces", "--output=yaml"))
    own = ask("api-resources", "--api-group=tinybird-proxy.io", "--output=name").split()
    if own:
        (target / "resources.yaml").write_text(ask("get", ",".join(own), "--all-namespaces", "--output=yaml"))
    (target / "pods").mkdir(exist_ok=True)
    for namespace, pod, restarted in _pods(ask("get", "pods", "--all-namespaces", "--output=json")):
        said = ("logs", "--namespace", namespace, pod, "--timestamps", "--prefix", "--ignore-errors")
        (target / "pods" / f"{namespace}.{pod}.log").write_text(ask(*said, "--all-containers"))
        for container in restarted:
            file = target / "pods" / f"{namespace}.{pod}.{container}.previous.log"
            file.write_text(ask(*said, "--container", container, "--previous"))


def _pods(listed: str) -> Iterator[tuple[str, str, list[str]]]:
    """Namespace and name of each pod, and those of its containers that ran before."""
    try:
        pods: list[dict[str, Any]] = json.loads(listed)["items"]
    except ValueError:
        return
    for pod in pods:
        status = pod["status"]
        containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        restarted = [container["name"] for container in containers if container["restartCount"]]
        yield pod["metadata"]["namespace"], pod["metadata"]["name"], restarted


class Refused:
    """One request that was answered with 403."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self._entry = entry
        self.user: str = entry["user"]["username"]

    def __str__(self) -> str:
        asked = f"{self._entry['verb']} {self._entry['requestURI']}"
        reason = self._entry["responseStatus"].get("message") or self._entry.get("annotations", {})
        return f"{self._entry['requestReceivedTimestamp']} {self.user}: {asked}: {reason}"


def refused(audit_log: Path, user: str = "") -> Iterator[Refused]:
    """The requests in an audit log that were answered with 403, of users whose name contains `user`."""
    try:
        lines = audit_log.open()
    except FileNotFoundError:
        raise Refusal(f"there is no audit log {audit_log}; it is there while the cluster is up") from None
    with lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that is being written
            if entry.get("responseStatus", {}).get("code") == 403 and user in entry["user"]["username"]:
                yield Refused(entry)
