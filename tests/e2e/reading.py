"""Objects, by one `kubectl proxy` for all looks: tests look all the time, and a kubectl for each takes 0.1 s of CPU.

By a proxy, so that whatever a kubeconfig may say works here too.
"""

import atexit
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import quote, urlencode

_TIMEOUT_S: Final = 30
_ALL_KINDS: Final = ",".join(
    f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList" for version in ("v2", "v2beta1")
)


class CannotRead(Exception):
    """There is no such object or kind, or the API server does not say; the message is what it said."""


@dataclass(frozen=True, slots=True)
class _Kind:
    root: str
    plural: str
    namespaced: bool

    def path(self, namespace: str) -> str:
        return f"{self.root}/namespaces/{namespace}/{self.plural}" if self.namespaced else f"{self.root}/{self.plural}"


def get(kind: str, namespace: str, name: str) -> dict[str, Any]:
    """An object; the kind by any name that kubectl knows. Raises ``CannotRead``."""
    return _proxy().read(f"{_proxy().kind(kind).path(namespace)}/{name}")


def find(kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
    """The objects of a kind, or of kinds with commas between, that labels select. Raises ``CannotRead``."""
    query = urlencode({"labelSelector": selector} if selector else {})
    found = [_proxy().read(f"{_proxy().kind(each).path(namespace)}?{query}") for each in kind.split(",")]
    # A list says it once for all of its items.
    about = [{"apiVersion": each["apiVersion"], "kind": each["kind"].removesuffix("List")} for each in found]
    return [{**what, **item} for what, each in zip(about, found, strict=True) for item in each["items"]]


class _Proxy:
    """A `kubectl proxy`; it is begun anew if it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._connection: HTTPConnection | None = None
        self._kinds: dict[str, _Kind] = {}

    def kind(self, name: str) -> _Kind:
        """By its plural, singular, short or CamelCase name. Raises ``CannotRead``."""
        if name.lower() not in self._kinds:  # also for a kind that has come meanwhile
            for root in ("/api", "/apis"):
                self._kinds = dict(_names(root, self.read(root, accept=_ALL_KINDS))) | self._kinds
        try:
            return self._kinds[name.lower()]
        except KeyError as error:
            raise CannotRead(f"the API server has no kind {name}") from error

    def read(self, path: str, *, accept: str = "application/json") -> dict[str, Any]:
        """What is there. Raises ``CannotRead``."""
        try:
            connection = self._connect()
            connection.request("GET", quote(path, safe="/?&=%"), headers={"Accept": accept})
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            self.end()  # the next read begins another
            raise CannotRead(f"GET {path}: {error!r}") from error
        if response.status != 200:
            raise CannotRead(f"GET {path}: {response.status} {_reason(body)}")
        found: dict[str, Any] = json.loads(body)
        return found

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _connect(self) -> HTTPConnection:
        if self._process is not None and self._process.poll() is not None:
            self.end()
        if self._process is None or self._connection is None:
            self.end()
            command = ("kubectl", "proxy", "--port=0")
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            address = self._process.stdout.readline().split()[-1]  # "Starting to serve on 127.0.0.1:PORT"
            self._connection = HTTPConnection(address, timeout=_TIMEOUT_S)
        return self._connection


@cache
def _proxy() -> _Proxy:
    proxy = _Proxy()
    atexit.register(proxy.end)
    return proxy


def _names(root: str, discovered: Mapping[str, Any]) -> Iterator[tuple[str, _Kind]]:
    """Each name of each kind. Later ones are those that kubectl prefers: earlier groups, and their first versions."""
    for group in reversed(discovered["items"]):
        group_name = group["metadata"].get("name", "")
        for version in reversed(group["versions"]):
            at = "/".join(filter(None, (root, group_name, version["version"])))
            for each in version.get("resources", []):
                kind = _Kind(at, each["resource"], each["scope"] == "Namespaced")
                names = each["resource"], each["singularResource"], each["responseKind"]["kind"].lower()
                for name in (*each.get("shortNames", ()), *names):
                    yield name, kind


def _reason(body: bytes) -> str:
    try:
        said = json.loads(body)
        return f"{said['reason']}: {said['message']}"
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
