"""The API server with faults: what the operator must survive without anybody's help.

    with fault_proxy(in_front_of(Path(os.environ["KUBECONFIG"]))) as faults:
        patch = redirection(faults.host, faults.port)
        run("kubectl", "--namespace", OPERATOR_NAMESPACE, "patch", "deployment", OPERATOR, "--patch", json.dumps(patch))
        faults.inject({"status": 429, "retry_after_s": 1, "share": 0.3}, {"watch_error": 410, "times": 3})
        …
        assert faults.counts()["injected"]["429"] > 0

A fault says *which* requests it is for and *what* happens to them, see ``Fault``. The first of the list that is for a
request applies to it, alone. ``watch_error`` and ``reset: during_answer`` also strike, as soon as they are set, the
watches that are open then.
"""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.e2e.api_faults import BadFault
from tests.e2e.fault_proxy import Settings

# What kopf calls the API server wherever there is a service account; it cannot be told otherwise.
SERVICE_NAME: Final = "kubernetes.default.svc"
SERVICE_PORT: Final = 443
_CONTROL_TIMEOUT_S: Final = 10.0


class Faults:
    """The proxy of another process, from a test. ``fault_proxy`` makes one."""

    def __init__(self, host: str, port: int, control_port: int) -> None:
        self.host = host
        self.port = port
        self._control_port = control_port

    def inject(self, *faults: Mapping[str, Any]) -> None:
        """These from now on, see ``Fault``; without any all is well. Raises ``BadFault``."""
        self._ask("PUT", "/faults", json.dumps(faults))

    def counts(self) -> dict[str, Any]:
        """What has come and what was injected: see ``Proxy.counts``."""
        return self._ask("GET", "/counts", None)

    def _ask(self, method: str, path: str, body: str | None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._control_port, timeout=_CONTROL_TIMEOUT_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise BadFault(said["error"])
        return said


def in_front_of(kubeconfig: Path, *, port: int = SERVICE_PORT, seed: int = 0) -> Settings:
    """A proxy before the API server of tests/cluster, whose certificates are beside its kubeconfig."""
    cluster = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]
    pki = Path(cluster["certificate-authority"]).parent
    host = urlsplit(cluster["server"]).hostname or ""
    return Settings(
        host=host,
        port=port,
        upstream=cluster["server"],
        ca=pki / "ca.crt",
        certificate=pki / "apiserver.crt",
        key=pki / "apiserver.key",
        seed=seed,
    )


def redirection(host: str, port: int, container: str = "operator") -> dict[str, Any]:
    """The strategic merge patch of a Deployment whose pods are to find the API server there.

    kopf goes to ``SERVICE_NAME``, and only at ``SERVICE_PORT``; the Kubernetes client to what the variables say.
    """
    alias = {"ip": host, "hostnames": [SERVICE_NAME]}
    variables = {"KUBERNETES_SERVICE_HOST": SERVICE_NAME, "KUBERNETES_SERVICE_PORT": str(port)}
    env = [{"name": name, "value": value} for name, value in variables.items()]
    return _pod_patch({"hostAliases": [alias], "containers": [{"name": container, "env": env}]})


def redirection_undone(container: str = "operator") -> dict[str, Any]:
    """The patch that takes it back; `helm upgrade` does not know of it and would leave it."""
    names = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    env = [{"name": name, "$patch": "delete"} for name in names]
    return _pod_patch({"hostAliases": None, "containers": [{"name": container, "env": env}]})


def _pod_patch(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"spec": {"template": {"spec": spec}}}


@contextmanager
def fault_proxy(settings: Settings) -> Iterator[Faults]:
    """A proxy in a process of its own, which ends with the block, with this process, or after its lifetime."""
    options = {"host": settings.host, "port": settings.port, "upstream": settings.upstream, "ca": settings.ca}
    options |= {"certificate": settings.certificate, "key": settings.key, "seed": settings.seed}
    options |= {"lifetime-s": settings.lifetime_s}
    command = [sys.executable, "-m", "tests.e2e.fault_proxy", *(f"--{name}={value}" for name, value in options.items())]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            if not ready:
                raise RuntimeError(f"the fault proxy did not start, exit status {process.wait()}; see its words above")
            ports = json.loads(ready)
            yield Faults(settings.host, ports["port"], ports["control"])
        finally:
            process.stdin.close()
            try:
                process.wait(_CONTROL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
