"""kubectl and helm as functions, and a namespace with a Tinybird in it."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, TypeVar

import yaml
from tests.e2e import reading
from tests.e2e.inside import Failed, Inside, command

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
OPERATOR_CHART: Final = ROOT / "charts" / "tinybird-proxy-operator"
PROXY_CHART: Final = ROOT / "charts" / "tinybird-proxy"
OPERATOR_NAMESPACE: Final = "tinybird-system"
OPERATOR: Final = "tinybird-proxy-operator"
# Beside the charts' defaults: what the tests need themselves, and a Lease for which nobody waits long.
OPERATOR_VALUES: Final = ("--values", str(HERE / "operator-values.yaml"))
TINYBIRD_TOKEN: Final = "p.admin"
SECOND_TINYBIRD_TOKEN: Final = "p.second"
# Elsewhere than in tests/cluster kubelet may look at mounted Secrets once a minute only.
SECRET_TIMEOUT_S: Final = 90
_COMMAND_TIMEOUT_S: Final = 90
_T = TypeVar("_T")


class CommandFailed(Exception):
    """A command ended with another status than 0; the message is what it said."""


def in_url(ip: str) -> str:
    """A pod's address as the host of a URL."""
    return f"[{ip}]" if ":" in ip else ip


def run(*command: str | Path, stdin: str | None = None, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
    """What the command prints. Raises ``CommandFailed``."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(map(str, command[:8]))}: {done.stderr.strip()}")
    return done.stdout


def until(what: str, ask: Callable[[], _T], *, timeout_s: float = 30.0, every_s: float = 0.3) -> _T:
    """The first answer that is true. Fails with ``what`` and the last answer or error."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            last: object = ask()
            if last:
                return last  # type: ignore[return-value]
        except CommandFailed as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}; at last: {last}")
        time.sleep(every_s)


def documents(path: Path) -> list[dict[str, Any]]:
    """The objects of a YAML file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def resource(name: str = "events", **spec: Any) -> dict[str, Any]:
    """A TinybirdProxy."""
    metadata = {"name": name}
    return {"apiVersion": "tinybird-proxy.io/v1alpha1", "kind": "TinybirdProxy", "metadata": metadata, "spec": spec}


def token_secret(token: str = TINYBIRD_TOKEN, name: str = "tinybird") -> dict[str, Any]:
    """A Secret that proxies may use."""
    metadata = {"name": name, "labels": {"tinybird-proxy.io/use": "token"}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"token": token}}


class Load(dict[str, Any]):
    """Clients at work. When they have ended, what came of their rows: ``accepted`` and ``other``, see client.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__()
        self._process = process

    def pause(self, seconds: float) -> None:
        """From now on each client waits so long after each row."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()


class Namespace:
    """A namespace of the cluster, one for each test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tinybird_url = f"http://tinybird.{name}.svc:7181"
        self._inside = Inside(name)

    def kubectl(self, *args: str | Path, stdin: str | None = None, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """What `kubectl` prints. Raises ``CommandFailed``."""
        return run("kubectl", "--namespace", self.name, *args, stdin=stdin, timeout_s=timeout_s)

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """`kubectl apply` of these."""
        return self.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(objects))

    def create(self, *objects: Mapping[str, Any]) -> str:
        """`kubectl create` of these."""
        return self.kubectl("create", "--filename", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object. Raises ``CommandFailed`` if there is none."""
        try:
            return reading.get(kind, self.name, name)
        except reading.CannotRead as error:
            raise CommandFailed(str(error)) from error

    def find(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of a kind. Raises ``CommandFailed`` if there is no such kind."""
        try:
            return reading.find(kind, self.name, selector)
        except reading.CannotRead as error:
            raise CommandFailed(str(error)) from error

    def patch(self, kind: str, name: str, patch: Any) -> None:
        """A merge patch, or a JSON patch if it is a list."""
        kind_of_patch = "json" if isinstance(patch, list) else "merge"
        self.kubectl("patch", kind, name, "--type", kind_of_patch, "--patch", json.dumps(patch))

    def forwarding_to_tinybird(self, **spec: Any) -> dict[str, Any]:
        """A TinybirdProxy `events` with the token in the Secret `tinybird`; one pod, unless the spec says otherwise."""
        upstream = {"url": self.tinybird_url, "tokenSecretRef": {"name": "tinybird"}}
        asked = {"replicas": 1, "tinybird": upstream, "batch": {"flushIntervalMilliseconds": 200}}
        return resource(**{**asked, "buffer": {"maxSize": "32Mi"}, "drain": {"shutdownTimeoutSeconds": 15}, **spec})

    def pods(self, proxy: str = "events") -> list[str]:
        """Names of a proxy's pods that are not on their way out, sorted."""
        found = self.find("pods", f"tinybird-proxy.io/proxy={proxy}")
        return sorted(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])

    def condition(self, kind: str, name: str = "events") -> tuple[str, str, str]:
        """Status, reason and message of a TinybirdProxy's condition."""
        conditions = self.get("tinybirdproxy", name).get("status", {}).get("conditions", [])
        found: dict[str, str] = next((each for each in conditions if each["type"] == kind), {})
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def until_condition(
        self, kind: str, status: str, reason: str, *, timeout_s: float = 30, name: str = "events"
    ) -> str:
        """Wait for it; its message."""
        seen: tuple[str, str, str] = ("", "", "")

        def as_wanted() -> bool:
            nonlocal seen
            seen = self.condition(kind, name)
            return seen[:2] == (status, reason)

        try:
            until(f"{kind}={status}, reason {reason}, in {self.name}", as_wanted, timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the condition is {seen}") from error
        return seen[2]

    def wait_ready(self, name: str = "events", timeout_s: int = 60) -> None:
        """As the README says it."""
        target = f"tinybirdproxy/{name}"
        try:
            self.kubectl("wait", "--for=condition=Ready", f"--timeout={timeout_s}s", target)
        except CommandFailed as error:
            raise AssertionError(f"{error}: {self.condition('Ready', name)}") from error

    def events(self, reason: str) -> list[str]:
        """Messages of the Events with that reason."""
        return [event["message"] for event in self.find("events") if event["reason"] == reason]

    def restarts(self) -> int:
        """Of all containers in the namespace."""
        return sum(
            status["restartCount"]
            for pod in self.find("pods")
            for status in pod.get("status", {}).get("containerStatuses", [])
        )

    @contextmanager
    def watched(self, kind: str, name: str, *fields: str) -> Iterator[list[list[str]]]:
        """Every version that an object has from now on: what is at these JSON paths. In the list afterwards."""
        output = "jsonpath=" + "|".join(f"{{{field}}}" for field in fields) + '{"\\n"}'
        command = ["kubectl", "--namespace", self.name, "get", kind, name, "--watch", "--output", output]
        versions: list[list[str]] = []
        with TemporaryFile("w+") as file, subprocess.Popen(command, stdout=file) as process:
            try:
                until("the version of now", lambda: os.fstat(file.fileno()).st_size)
                yield versions
            finally:
                process.kill()
                process.wait()
                file.seek(0)
                versions += [line.split("|") for line in file.read().splitlines()]

    # From inside of the cluster.

    def client(self, *args: str) -> Any:
        """A command of client.py. Raises ``CommandFailed``."""
        try:
            return self._inside.ask(*args, timeout_s=_COMMAND_TIMEOUT_S)
        except Failed as error:
            raise CommandFailed(f"{args[0]} in {self.name}: {error}") from error

    def leave(self) -> None:
        """No command comes any more."""
        self._inside.end()

    def client_token(self, name: str = "events") -> str:
        """The token for apps, as the Secret has it."""
        return base64.b64decode(self.get("secret", f"{name}-client")["data"]["token"]).decode()

    def service_url(self, name: str = "events") -> str:
        """Where apps post to."""
        return f"http://{name}.{self.name}.svc"

    def post(self, *ids: str, name: str = "events", token: str | None = None) -> None:
        """Rows with these ids, through the Service; each must be taken."""
        statuses = self.client("post", self.service_url(name), token or self.client_token(name), *ids)
        assert [status // 100 for status in statuses] == [2] * len(ids), statuses

    def spread(self, *ids: str, name: str = "events") -> None:
        """``post``, each row by a connection of its own, so that they come to all pods."""
        statuses = self.client("spread", self.service_url(name), self.client_token(name), *ids)
        assert [status // 100 for status in statuses] == [2] * len(ids), statuses

    def post_to_pod(self, pod: str, *ids: str, name: str = "events") -> None:
        """``post``, to this pod and not to the Service."""
        url = f"http://{in_url(self.get('pod', pod)['status']['podIP'])}:8000"
        statuses = self.client("post", url, self.client_token(name), *ids)
        assert [status // 100 for status in statuses] == [2] * len(ids), statuses

    def pods_rows(self, proxy: str = "events") -> dict[str, int]:
        """Rows that each pod holds, as it says itself; the pods that run."""
        found = self.find("pods", f"tinybird-proxy.io/proxy={proxy}")
        ips = {pod["metadata"]["name"]: pod["status"].get("podIP") for pod in found}
        return {
            name: int(self.client("get", f"http://{in_url(ip)}:8001/status")["buffer"]["rows"])
            for name, ip in ips.items()
            if ip
        }

    def rows(self) -> list[str]:
        """Ids of the rows that Tinybird has."""
        found: list[str] = self.client("rows")
        return found

    def until_arrived(self, *ids: str, timeout_s: float = 30) -> None:
        """Wait until Tinybird has rows with these ids."""
        until(f"rows {', '.join(ids)} in Tinybird", lambda: set(ids) <= set(self.rows()), timeout_s=timeout_s)

    @contextmanager
    def load(self, *, pause_s: float = 0.02) -> Iterator["Load"]:
        """Rows without end meanwhile, by four clients that each wait so long after each row."""
        args = ("load", self.service_url(), self.client_token(), str(pause_s))
        with subprocess.Popen(
            command(self.name, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield (load := Load(process))
                load.update(json.loads(process.communicate(timeout=_COMMAND_TIMEOUT_S)[0]))
            finally:
                process.kill()

    def all_arrived(self, said: Mapping[str, Any]) -> None:
        """Every row that was taken is in Tinybird, sooner or later."""
        accepted = set(said["accepted"])
        assert len(accepted) > 50, f"that was no load: {said['other']}"
        missing: set[str] = accepted
        print(f"taken: {len(accepted)} rows; not taken: {said['other']}")

        def none_is_missing() -> bool:
            nonlocal missing
            missing = accepted - set(self.rows())
            return not missing

        try:
            until("every accepted row in Tinybird", none_is_missing, timeout_s=20)
        except AssertionError as error:
            raise AssertionError(f"lost {len(missing)} of {len(accepted)} rows: {sorted(missing)[:5]}") from error

    def faults(self, *faults: Mapping[str, Any]) -> None:
        """What Tinybird does to requests from now on; without any it is well."""
        self.client("faults", json.dumps(faults))


def operator_pods() -> list[dict[str, Any]]:
    """The operator's pods."""
    selector = f"app.kubernetes.io/name={OPERATOR},app.kubernetes.io/component=operator"
    return Namespace(OPERATOR_NAMESPACE).find("pods", selector)


def doctor(namespace: Namespace, name: str = "events") -> tuple[int, str]:
    """Exit status of the operator's doctor, and all that it says."""
    command = ("exec", f"deployment/{OPERATOR}", "--", OPERATOR, "doctor", f"{namespace.name}/{name}")
    done = subprocess.run(
        ("kubectl", "--namespace", OPERATOR_NAMESPACE, *command),
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def scale_operator(replicas: int) -> None:
    """And wait until it is so. The chart's number is 2."""
    namespace = Namespace(OPERATOR_NAMESPACE)
    namespace.kubectl("scale", f"deployment/{OPERATOR}", f"--replicas={replicas}")
    if replicas:
        namespace.kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
    else:
        until("no operator", lambda: not operator_pods(), timeout_s=40)


def install_operator(*more: str) -> None:
    """`helm upgrade --install`, and wait until it is ready."""
    where = ("--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "60s")
    run("helm", "upgrade", "--install", OPERATOR, OPERATOR_CHART, *where, *OPERATOR_VALUES, *more)
