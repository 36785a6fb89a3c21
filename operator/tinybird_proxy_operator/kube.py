"""The API server: the only module that knows the `kubernetes` package.

Objects are plain dictionaries. Every call has a time limit and ends in an answer or a ``KubeError``. The package's own
discovery is not used: it caches on disk, and the kinds that we touch are few and known.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, ApiException, Configuration

from tinybird_proxy_operator.api_resources import RESOURCES
from tinybird_proxy_operator.errors import (
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NamespaceTerminating,
    NotFound,
    Unavailable,
)
from tinybird_proxy_operator.managed_fields import applied_entries
from tinybird_proxy_operator.names import API_VERSION, FIELD_MANAGER, KIND

REQUEST_TIMEOUT_S: Final = 15.0
# Before a request that changes nothing when it is done twice is sent again: one failure in a look that takes a dozen
# requests must not cost the whole look.
AGAIN_AFTER_S: Final = (0.1, 0.4)
_AGAIN_AFTER_MAX_S: Final = 2.0  # what the API server may ask for; a longer wait is the queue's
_PAGE_SIZE: Final = 500
_SMALL_PAGE_SIZE: Final = 100
_MERGE_PATCH: Final = "application/merge-patch+json"
_APPLY_PATCH: Final = "application/apply-patch+yaml"
# What the leader election writes, at the end of the path: a prefix may stand before it.
_LEASE_PATH: Final = re.compile(r".*/apis/coordination\.k8s\.io/v1/namespaces/[^/]+/leases/[^/]+")
_WEBHOOK_FAILED: Final = "failed calling webhook"
Object = dict[str, Any]
_Page = list[Object]


class Kube:
    """Reads and writes objects. ``kubernetes_connection`` makes one.

    ``write_timeout_s``: after which the API server drops a write that still waits there. None: its own limit.
    """

    def __init__(self, client: ApiClient, write_timeout_s: int | None = None) -> None:
        self._client = client
        self._write_timeout_s = write_timeout_s

    async def get(self, kind: str, namespace: str | None, name: str) -> Object:
        """One object; ``namespace`` None for what is in none. Raises ``NotFound``."""
        return await self._call("GET", RESOURCES[kind].path(namespace, name))

    async def find(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """One object, or None if there is none."""
        try:
            return await self.get(kind, namespace, name)
        except NotFound:
            return None

    async def served(self, group_version: str) -> frozenset[str]:
        """Names of what a version of an API has, an aggregated one too. Raises ``NotFound`` if there is none."""
        answer = await self.read(f"/apis/{group_version}")
        return frozenset(str(found.get("name", "")) for found in answer.get("resources") or [])

    async def list(
        self, kind: str, namespace: str | None, *, labels: Mapping[str, str | None] | None = None, cached: bool = False
    ) -> list[Object]:
        """All objects of a kind with these labels, of one namespace or of all, each as ``get`` answers it.

        A label's value may be None: any.

        ``cached``: as the API server remembers them, in one page. That may be a moment old, and costs it far less.
        """
        query = {"resourceVersion": "0"} if cached else {"limit": str(_PAGE_SIZE)}
        return [each async for page in self._pages(kind, namespace, labels, query) for each in page]

    def pages(
        self, kind: str, namespace: str | None, *, labels: Mapping[str, str | None] | None = None
    ) -> AsyncIterator[_Page]:
        """The same, page by page: for what is large and of which little is kept."""
        return self._pages(kind, namespace, labels, {"limit": str(_SMALL_PAGE_SIZE)})

    async def _pages(
        self, kind: str, namespace: str | None, labels: Mapping[str, str | None] | None, query: dict[str, str]
    ) -> AsyncIterator[_Page]:
        its_type = {"apiVersion": RESOURCES[kind].api_version, "kind": kind}  # a list says that once, for all
        if labels:
            query["labelSelector"] = ",".join(
                key if value is None else f"{key}={value}" for key, value in labels.items()
            )
        while True:
            page = await self._call("GET", RESOURCES[kind].path(namespace), query=query)
            yield [{**its_type, **item} for item in page.get("items") or []]
            if not (token := page.get("metadata", {}).get("continue")):
                return
            query["continue"] = token

    async def create(self, manifest: Object) -> Object:
        """Make an object, or have a review answered. Raises ``Conflict`` if one of that name exists."""
        path = RESOURCES[manifest["kind"]].path(manifest["metadata"].get("namespace"))
        return await self._call("POST", path, body=manifest, query={"fieldManager": FIELD_MANAGER})

    async def put(self, manifest: Object) -> Object:
        """Replace the object with ``metadata.uid`` and ``resourceVersion``; a Lease without them is made.

        Raises ``Conflict`` if it is another by now, is gone, or is there already.
        """
        metadata = manifest["metadata"]
        path = RESOURCES[manifest["kind"]].path(metadata["namespace"], metadata["name"])
        return await self._call("PUT", path, body=manifest, query={"fieldManager": FIELD_MANAGER})

    async def own_by_apply(self, live: Object) -> Object:
        """Make the fields of an object that was created by us fields that we applied.

        Otherwise a field that a later apply leaves out would stay: its creation would own it for ever.
        """
        metadata = live["metadata"]
        if (entries := applied_entries(metadata.get("managedFields") or [])) is None:
            return live
        identity = {key: metadata[key] for key in ("uid", "resourceVersion")}
        body = {"metadata": {**identity, "managedFields": entries}}
        path = RESOURCES[live["kind"]].path(metadata["namespace"], metadata["name"])
        return await self._call("PATCH", path, body=body, content_type=_MERGE_PATCH)

    async def apply(self, manifest: Object, *, uid: str) -> Object:
        """Make the object with ``uid`` like ``manifest``, as far as that goes (server-side apply).

        Raises ``Conflict`` if there is another object of that name by now.
        """
        metadata = manifest["metadata"]
        body = {**manifest, "metadata": {**metadata, "uid": uid}}
        path = RESOURCES[manifest["kind"]].path(metadata["namespace"], metadata["name"])
        return await self._apply(path, body)

    async def apply_where(self, live: Object | None, manifest: Object) -> Object:
        """Make the object like ``manifest`` (server-side apply), unless it has changed since it was read as ``live``.

        None: there was none; if somebody has made another one since, that stays as it is. Raises ``Conflict``.
        """
        metadata = manifest["metadata"]
        identity = {} if live is None else {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {**manifest, "metadata": {**metadata, **identity}}
        path = RESOURCES[manifest["kind"]].path(metadata.get("namespace"), metadata["name"])
        return await self._apply(path, body, force=live is not None)

    async def overwrite(self, manifest: Object, *, uid: str) -> Object:
        """Replace the fields of the object with ``uid`` that are in ``manifest``, lists as a whole.

        To server-side apply the changed entry of a list, such as a Service's port, is another entry beside ours.
        """
        metadata = {"uid": uid, "labels": manifest["metadata"].get("labels", {})}
        body = {**manifest, "metadata": metadata}
        path = RESOURCES[manifest["kind"]].path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", path, body=body, query=query, content_type=_MERGE_PATCH)

    async def apply_status(self, namespace: str, name: str, uid: str, status: Object) -> Object:
        """Write the status of a TinybirdProxy."""
        metadata = {"name": name, "namespace": namespace, "uid": uid}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}
        return await self._apply(RESOURCES[KIND].path(namespace, name, "status"), body)

    async def set_finalizers(self, live: Object, finalizers: Sequence[str]) -> None:
        """Replace the finalizers of a TinybirdProxy, unless it has changed since it was read as ``live``."""
        metadata = live["metadata"]
        identity = {key: metadata[key] for key in ("uid", "resourceVersion")}
        body = {"metadata": {**identity, "finalizers": [*finalizers]}}
        path, query = RESOURCES[KIND].path(metadata["namespace"], metadata["name"]), {"fieldManager": FIELD_MANAGER}
        await self._call("PATCH", path, body=body, query=query, content_type=_MERGE_PATCH)

    async def set_scale(self, namespace: str, name: str, replicas: int, *, resource_version: str) -> None:
        """Write ``spec.replicas`` of a TinybirdProxy through ``/scale``, unless it has changed since it was read."""
        body = {"metadata": {"resourceVersion": resource_version}, "spec": {"replicas": replicas}}
        path, query = RESOURCES[KIND].path(namespace, name, "scale"), {"fieldManager": FIELD_MANAGER}
        await self._call("PATCH", path, body=body, query=query, content_type=_MERGE_PATCH)

    async def set_replicas(self, namespace: str, name: str, replicas: int, *, uid: str) -> Object:
        """Change nothing but the number of pods of a Deployment of ours."""
        return await self.set_fields(namespace, name, {"replicas": replicas}, uid=uid)

    async def set_fields(self, namespace: str, name: str, fields: Object, *, uid: str) -> Object:
        """Change nothing but these fields of a Deployment's ``spec``, whatever its controller wrote meanwhile."""
        body = {"metadata": {"uid": uid}, "spec": fields}
        path, query = RESOURCES["Deployment"].path(namespace, name), {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", path, body=body, query=query, content_type=_MERGE_PATCH)

    async def change(self, live: Object, patch: Object) -> Object:
        """Merge ``patch`` into the object ``live``; None takes a field away. Raises ``Conflict`` if it has changed."""
        metadata = live["metadata"]
        identity = {key: metadata[key] for key in ("uid", "resourceVersion")}
        body = {**patch, "metadata": {**patch.get("metadata", {}), **identity}}
        path = RESOURCES[live["kind"]].path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", path, body=body, query=query, content_type=_MERGE_PATCH)

    async def delete(self, kind: str, namespace: str | None, name: str, *, uid: str) -> None:
        """Delete the object with ``uid`` and what it owns, in the background; nothing if it is gone."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        with suppress(NotFound):
            await self._call("DELETE", RESOURCES[kind].path(namespace, name), body=body)

    async def evict(self, namespace: str, name: str, *, uid: str) -> None:
        """Have the pod with ``uid`` go, within its disruption budgets. Raises ``Unavailable`` while they do not let it.

        Raises ``NotFound`` if it is gone, ``Conflict`` if another of its name is there.
        """
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        await self._call("POST", RESOURCES["Pod"].path(namespace, name, "eviction"), body=body)

    async def read(self, path: str) -> Object:
        """What the API server answers at a path that is no object's."""
        return await self._call("GET", path)

    async def _apply(self, path: str, body: Object, *, force: bool = True) -> Object:
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
        return await self._call("PATCH", path, body=body, query=query, content_type=_APPLY_PATCH)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """The answer; reads and server-side applies are tried again shortly after a failure that may pass."""
        pauses_s = AGAIN_AFTER_S if method == "GET" or content_type == _APPLY_PATCH else ()
        for pause_s in pauses_s:
            try:
                return await self._send(method, path, body, query, content_type)
            except Unavailable as error:
                after_s = error.retry_after_s or 0.0
                if not error.soon or after_s > _AGAIN_AFTER_MAX_S:
                    raise
            await asyncio.sleep(max(pause_s, after_s))
        return await self._send(method, path, body, query, content_type)

    async def _send(
        self, method: str, path: str, body: Object | None, query: Mapping[str, str] | None, content_type: str
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        if method != "GET" and self._write_timeout_s is not None:
            query = {**(query or {}), "timeout": f"{self._write_timeout_s}s"}
        try:
            _, url, headers, _, _ = await self._client.param_serialize(
                method, path, header_params=headers, auth_settings=["BearerToken"]
            )
            if query:
                url = f"{url}?{urlencode(query)}"
            response = await self._client.call_api(method, url, headers, body, _request_timeout=REQUEST_TIMEOUT_S)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except ApiException as error:
            raise Unavailable(f"{method} {path}: {error.reason}") from error
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            in_time = not isinstance(error, TimeoutError)
            raise Unavailable(f"{method} {path}: {type(error).__name__}", soon=in_time) from error
        try:
            answer = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:  # a proxy on the way, not the API server
            if response.status < 300:
                raise Unavailable(f"{method} {path}: the answer is not JSON") from error
            answer = {}
        if response.status >= 300:
            raise _error(response.status, f"{method} {path}", answer, response.headers or {})
        return answer


@asynccontextmanager
async def kubernetes_connection(
    kubeconfig: str | None, *, fence: Callable[[], None] | None = None, write_timeout_s: int | None = None
) -> AsyncIterator[Kube]:
    """Connect as the pod's service account; outside of a pod as the file ``kubeconfig`` says, None: ~/.kube/config.

    ``fence`` is called right before the first byte of a write leaves, but the election's own: what it raises keeps it
    here. Raises ``Unavailable`` if neither says where the API server is.
    """
    configuration = Configuration()
    try:
        kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except kube_config.ConfigException:
        try:
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, client_configuration=configuration
            )
        except kube_config.ConfigException as error:
            raise Unavailable(f"no way to the API server: {error}") from error
    if fence is not None:
        configuration.trace_configs = [_checking(fence)]
    async with ApiClient(configuration) as client:
        yield Kube(client, write_timeout_s)


def _checking(fence: Callable[[], None]) -> aiohttp.TraceConfig:
    # A check before the call would be too early: a request may wait long for a connection.
    async def check(session: object, context: object, params: aiohttp.TraceRequestHeadersSentParams) -> None:
        if params.method not in ("GET", "HEAD") and not _LEASE_PATH.fullmatch(params.url.path):
            fence()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(check)
    return trace


def _error(status: int, what: str, answer: Mapping[str, Any], headers: Mapping[str, str]) -> KubeError:
    message = f"{what}: {answer.get('message') or status}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status == 403 and _is_about_a_namespace_that_goes(answer):
        return NamespaceTerminating(message)
    # A broken admission webhook answers with 500, but it is this object that is refused: others go on.
    if status in (401, 403) or (status == 500 and _WEBHOOK_FAILED in message):
        return Forbidden(message)
    # 410: a page's token has expired, and the list begins again.
    if status in (410, 429) or status >= 500:
        after = headers.get("Retry-After", "")
        after_s = float(after) if after.isdigit() else None
        # Whoever is overloaded says when to come again, or it is left to the queue's longer waits.
        return Unavailable(message, after_s, soon=status >= 500 or (status == 429 and after_s is not None))
    return Invalid(str(answer.get("message") or message))


def _is_about_a_namespace_that_goes(answer: Mapping[str, Any]) -> bool:
    causes = (answer.get("details") or {}).get("causes") or []
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
