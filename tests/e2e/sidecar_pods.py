"""Pods with an app that sends rows to a sidecar (see sidecar_app.py), and what the app says it was told."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any, Final

from tests.e2e.kubectl import HERE, Namespace, until

from tinybird_proxy import __version__

IMAGE: Final = f"ghcr.io/tinybird-proxy/tinybird-proxy:{__version__}"
_CONFIG_MAP: Final = "sidecar-app"
_DIRECTORY: Final = "/app"


def app_script() -> dict[str, Any]:
    """The ConfigMap that `app` needs in its namespace."""
    script = (HERE / "sidecar_app.py").read_text()
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _CONFIG_MAP}, "data": {"app.py": script}}


def app_volume() -> dict[str, Any]:
    """The volume that `app` needs in its pod."""
    return {"name": _CONFIG_MAP, "configMap": {"name": _CONFIG_MAP}}


def app(*arguments: str, name: str = "app", **fields: Any) -> dict[str, Any]:
    """A container that runs sidecar_app.py with these arguments. It knows of no Tinybird unless ``env`` says so."""
    return {
        "name": name,
        "image": IMAGE,
        "command": ["python", f"{_DIRECTORY}/app.py", *arguments],
        "volumeMounts": [{"name": _CONFIG_MAP, "mountPath": _DIRECTORY}],
        **fields,
    }


def deployment(pod: Mapping[str, Any], name: str = "app") -> dict[str, Any]:
    """A Deployment of one such pod, with the label ``app``."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def job(pod: Mapping[str, Any], name: str = "app") -> dict[str, Any]:
    """A Job of one such pod, which gets no second chance."""
    template = {"metadata": {"labels": {"app": name}}, "spec": {**pod, "restartPolicy": "Never"}}
    spec = {"backoffLimit": 0, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def the_pod(namespace: Namespace, name: str = "app") -> str:
    """The name of the only pod with the label ``app``, once there is one."""
    [found] = until(f"a pod of {name}", lambda: namespace.find("pods", f"app={name}"))
    return str(found["metadata"]["name"])


def accepted_ids(log: str | Sequence[str]) -> list[str]:
    """The ids with a 2xx in what the app wrote."""
    lines = log.splitlines() if isinstance(log, str) else log
    return [line for line in lines if line and not line.startswith("#")]


def accepted(namespace: Namespace, pod: str, container: str = "app") -> list[str]:
    """The ids with a 2xx until now; the pod must be there."""
    return accepted_ids(namespace.kubectl("logs", pod, "--container", container))


@contextmanager
def followed(namespace: Namespace, pod: str, container: str = "app") -> Iterator[list[str]]:
    """The app's log while the block runs and until the container has ended; in the list afterwards."""
    command = ["kubectl", "--namespace", namespace.name, "logs", "--follow", pod, "--container", container]
    lines: list[str] = []
    with TemporaryFile("w+") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            yield lines
            process.wait(90)
        finally:
            process.kill()
            process.wait()
            file.seek(0)
            lines += file.read().splitlines()


def all_arrive(namespace: Namespace, ids: Sequence[str], *, at_least: int = 1, timeout_s: float = 30) -> None:
    """Every row with a 2xx comes to Tinybird, and there were enough of them to mean something."""
    assert len(ids) >= at_least, f"only {len(ids)} rows had a 2xx"
    missing = set(ids)

    def none_is_missing() -> bool:
        nonlocal missing
        missing = set(ids) - set(namespace.rows())
        return not missing

    try:
        until("every accepted row in Tinybird", none_is_missing, timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"lost {len(missing)} of {len(ids)} rows: {sorted(missing)[:5]}") from error
