"""A small API server on loopback: objects in memory, over plain HTTP, and failures by script.

    async with running_api() as api:                      # write api.kubeconfig() to a file and name it in KUBECONFIG
        api.put({"kind": "Pod", ...})                     # as if a controller had written it
        api.fail(429, method="PATCH", retry_after_s=1)    # the next such request, and no other
        api.terminating.add("shop")                       # nothing can be made in that namespace any more
        api.documents["/apis/metrics/v1"] = {…}           # another server's API: no more than what it has
    api.writes                                        # every request since that was no read

What it knows of Kubernetes: uid, resourceVersion, generation, field owners (``managedFields``) of updates and of
server-side apply, merge patches, ``/status`` and ``/scale``, evictions, which nothing stands in the way of, label
selectors, pages, preconditions, and the garbage collector, which here is done at once. What it does not do: schemas,
defaults, admission, watches; namespaces need not exist. Lists are one value: it does not merge them by key, but for the
ports of a Service that somebody else changed, and the entries of a MutatingWebhookConfiguration. What it cannot do it
refuses, with 501.
"""

import copy
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from tinybird_proxy_operator.testing.field_owners import Object, fields_of, owned_by
from tinybird_proxy_operator.testing.patches import (
    Refused,
    applied,
    check_precondition,
    finalizers_of,
    merge_patched,
    scale_of,
)
from tinybird_proxy_operator.testing.served import KINDS, Served, kubeconfig, selector

_Id = tuple[str, str, str]  # kind, namespace, name
_NOW: Final = "2026-01-01T00:00:00Z"


_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as it came."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    body: Object | None
    authorization: str | None


@dataclass(slots=True)
class _Fault:
    status: int
    method: str | None
    path: str
    times: int
    message: str
    retry_after_s: int | None
    done_first: bool


@dataclass(slots=True)
class FakeApi:
    """The objects, the requests, and what is to fail. Made by ``running_api``."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    kinds: dict[str, Served] = field(default_factory=lambda: dict(KINDS))
    terminating: set[str] = field(default_factory=set)
    # By kind: what is answered to an object that is not kept, but filled in. See fake_reviews.
    reviews: dict[str, Callable[[Object], Object]] = field(default_factory=dict)
    # By path: what is answered where no objects are.
    documents: dict[str, Object] = field(default_factory=dict)
    _objects: dict[_Id, Object] = field(default_factory=dict)
    _version: int = 0
    _pages: dict[str, list[Object]] = field(default_factory=dict)
    _faults: list[_Fault] = field(default_factory=list)

    # For tests.

    @property
    def writes(self) -> list[tuple[str, str]]:
        """Method and path of every request that was no read."""
        return [(asked.method, asked.path) for asked in self.asked if asked.method != "GET"]

    def fail(
        self,
        status: int,
        *,
        method: str | None = None,
        path: str = "",
        times: int = 1,
        message: str = "by script",
        retry_after_s: int | None = None,
        done_first: bool = False,
    ) -> None:
        """Fail the next ``times`` such requests, ``path`` a pattern; 0: hang up. ``done_first``: after the work."""
        self._faults.append(_Fault(status, method, path, times, message, retry_after_s, done_first))

    def heal(self) -> None:
        """Fail no more."""
        self._faults.clear()

    def kubeconfig(self) -> str:
        """A file for clients."""
        return kubeconfig(self.url)

    def put(self, given: Object) -> Object:
        """Write an object, its status too, as somebody with every right does. Labels and owners are as given."""
        new = copy.deepcopy(given)
        metadata = new["metadata"]
        key = (new["kind"], metadata.get("namespace", ""), metadata["name"])
        new.setdefault("apiVersion", self.kinds[new["kind"]].api_version)
        old = self._objects.get(key)
        if old is not None:
            metadata.setdefault("uid", old["metadata"]["uid"])
        return self._store(key, new, old)

    def get(self, kind: str, name: str, namespace: str = "shop") -> Object:
        """An object as it is. Raises ``KeyError``."""
        return copy.deepcopy(self._objects[kind, namespace, name])

    def names(self, kind: str) -> list[str]:
        """Names of all objects of a kind."""
        return [name for found, _, name in self._objects if found == kind]

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [copy.deepcopy(found) for key, found in self._objects.items() if key[0] == kind]

    def remove(self, kind: str, name: str, namespace: str = "shop") -> None:
        """Delete an object and what it owns."""
        uid = self._objects.pop((kind, namespace, name))["metadata"]["uid"]
        for key, found in list(self._objects.items()):
            if uid in [owner["uid"] for owner in found["metadata"].get("ownerReferences", [])]:
                self.remove(key[0], key[2], key[1])

    # Over HTTP.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        text = await request.text()
        asked = Asked(
            request.method,
            request.path,
            dict(request.query),
            request.content_type,
            json.loads(text) if text else None,
            request.headers.get("Authorization"),
        )
        self.asked.append(asked)
        fault = self._next_fault(asked)
        if fault is None or fault.done_first:
            try:
                status, answer = self._answer(asked)
            except Refused as refused:
                status, answer = refused.status, _status(refused.status, str(refused), refused.cause)
        if fault is None:
            return web.json_response(answer, status=status)
        if fault.status == 0:
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
        return web.json_response(_status(fault.status, fault.message), status=fault.status, headers=headers)

    def _next_fault(self, asked: Asked) -> _Fault | None:
        for fault in self._faults:
            if fault.times > 0 and fault.method in (None, asked.method) and re.search(fault.path, asked.path):
                fault.times -= 1
                return fault
        return None

    def _answer(self, asked: Asked) -> tuple[int, Object]:
        if asked.method == "GET" and asked.path in self.documents:
            return 200, self.documents[asked.path]
        match = _PATH.fullmatch(asked.path)
        version = match and (match["core"] or match["group"])
        kind = match and next(
            (name for name, k in self.kinds.items() if (k.api_version, k.plural) == (version, match["plural"])), None
        )
        if match is None or kind is None:
            raise Refused(404, "the server could not find the requested resource")
        namespace, name, sub = match["namespace"], match["name"], match["sub"]
        known = self.kinds[kind]
        if (sub == "status" and not known.has_status) or (sub == "scale" and not known.has_scale):
            raise Refused(404, "the server could not find the requested resource")
        if sub not in (None, "status", "scale") and (kind, sub, asked.method) != ("Pod", "eviction", "POST"):
            raise Refused(501, f"the fake has no subresource {sub}")
        if name is None and asked.method == "GET":
            return 200, self._list(kind, namespace, asked.query)
        if namespace is None and known.namespaced:
            raise Refused(405, "the server does not allow this method on the requested resource")
        body = copy.deepcopy(asked.body) or {}
        namespace = namespace or ""
        if name is None and asked.method == "POST" and kind in self.reviews:
            self._check(kind, body)
            return 201, {**body, "status": self.reviews[kind](body)}
        if name is None and asked.method == "POST":
            return 201, self._create(kind, namespace, body, asked.query)
        if name is None:
            raise Refused(405, "the server does not allow this method on the requested resource")
        key = (kind, namespace, name)
        if asked.method == "PATCH" and asked.content_type == "application/apply-patch+yaml":
            return self._apply(key, sub, body, asked.query)
        if asked.method == "PUT" and kind == "Lease" and sub is None:
            return self._replace(key, body, asked.query)
        if (old := self._objects.get(key)) is None:
            raise Refused(404, f'{known.plural} "{name}" not found')
        if asked.method == "GET":
            return 200, scale_of(old, reading=True) if sub == "scale" else copy.deepcopy(old)
        if asked.method == "PATCH" and asked.content_type == "application/merge-patch+json":
            return 200, self._merge(key, sub, old, body, asked.query)
        if asked.method == "DELETE" and sub is None:
            return 200, self._delete(key, old, body)
        if sub == "eviction":
            if (body.get("apiVersion"), body.get("kind")) != ("policy/v1", "Eviction"):
                raise Refused(400, "the body is no policy/v1 Eviction")
            return 201, self._delete(key, old, body.get("deleteOptions") or {})
        raise Refused(501, f"the fake has no {asked.method} of {asked.content_type} for {asked.path}")

    def _list(self, kind: str, namespace: str | None, query: dict[str, str]) -> Object:
        if unknown := set(query) - {"labelSelector", "limit", "continue", "resourceVersion"}:
            raise Refused(501, f"the fake has no {sorted(unknown)}")
        if token := query.get("continue"):
            if token not in self._pages:
                raise Refused(410, "The provided continue parameter is too old")
            found = self._pages.pop(token)
        else:
            try:
                matches = selector(query.get("labelSelector", ""))
            except ValueError as error:
                raise Refused(501, str(error)) from error
            found = [
                {name: value for name, value in copy.deepcopy(each).items() if name not in ("kind", "apiVersion")}
                for key, each in sorted(self._objects.items())
                if key[0] == kind and namespace in (None, key[1]) and matches(each["metadata"].get("labels") or {})
            ]
        limit = int(query.get("limit", 0)) or len(found)
        metadata = {"resourceVersion": str(self._version)}
        if found[limit:]:
            metadata["continue"] = token = f"page-{uuid.uuid4()}"
            self._pages[token] = found[limit:]
        return {"kind": f"{kind}List", "metadata": metadata, "items": found[:limit]}

    def _create(self, kind: str, namespace: str, body: Object, query: dict[str, str]) -> Object:
        self._check(kind, body)
        metadata = body["metadata"]
        if not metadata.get("name"):
            raise Refused(501, "the fake has no generateName")
        key = (kind, namespace, metadata["name"])
        if metadata.get("namespace", namespace) != namespace:
            raise Refused(400, "the namespace of the provided object does not match the namespace sent on the request")
        if "uid" in metadata or "resourceVersion" in metadata:
            raise Refused(400, "uid and resourceVersion must not be set on objects to be created")
        if key in self._objects:
            raise Refused(409, f'{self.kinds[kind].plural} "{metadata["name"]}" already exists')
        self._check_namespace(key)
        metadata["namespace"] = namespace
        if self.kinds[kind].has_status:
            body.pop("status", None)
        manager = (query.get("fieldManager", "unknown"), "Update", "")
        return self._store(key, owned_by(body, manager, fields_of(body)), None)

    def _replace(self, key: _Id, body: Object, query: dict[str, str]) -> tuple[int, Object]:
        """A Lease may be made by name; nothing is replaced by somebody who does not say what it was."""
        self._check(key[0], body)
        metadata, old = body["metadata"], self._objects.get(key)
        if "resourceVersion" not in metadata:
            if old is not None:
                raise Refused(422, "metadata.resourceVersion: must be specified for an update")
            return 201, self._create(key[0], key[1], body, query)
        if old is None:
            raise Refused(409, f'{self.kinds[key[0]].plural} "{key[2]}" is gone')
        check_precondition(old, metadata)
        return 200, self._store(key, body, old)

    def _check(self, kind: str, body: Object) -> None:
        if (body.get("kind"), body.get("apiVersion")) != (kind, self.kinds[kind].api_version):
            raise Refused(400, f"the body is no {self.kinds[kind].api_version} {kind}")

    def _check_namespace(self, key: _Id) -> None:
        if key[1] in self.terminating:
            what = f'{self.kinds[key[0]].plural} "{key[2]}" is forbidden: unable to create new content in namespace'
            raise Refused(403, f"{what} {key[1]} because it is being terminated", "NamespaceTerminating")

    def _merge(self, key: _Id, sub: str | None, old: Object, patch: Object, query: dict[str, str]) -> Object:
        manager = query.get("fieldManager", "unknown")
        new = merge_patched(old, patch, sub=sub, manager=manager, known=self.kinds[key[0]])
        if "deletionTimestamp" in old["metadata"] and finalizers_of(old) and not finalizers_of(new):
            self.remove(key[0], key[2], key[1])
            return copy.deepcopy(old)
        stored = self._store(key, new, old)
        return scale_of(stored, reading=False) if sub == "scale" else stored

    def _apply(self, key: _Id, sub: str | None, body: Object, query: dict[str, str]) -> tuple[int, Object]:
        self._check(key[0], body)
        if not query.get("fieldManager") or sub == "scale":
            raise Refused(501, "the fake applies with a fieldManager, and not to /scale")
        metadata, manager = body.get("metadata") or {}, query["fieldManager"]
        if metadata.get("name") != key[2] or "managedFields" in metadata:
            raise Refused(400, "metadata.name must be the path's, and metadata.managedFields must be nil")
        if (old := self._objects.get(key)) is None:
            if sub is not None:
                raise Refused(404, f'{self.kinds[key[0]].plural} "{key[2]}" not found')
            if "uid" in metadata:
                raise Refused(
                    409, "uid mismatch: the provided object specified a uid, and no existing object was found"
                )
            self._check_namespace(key)
            metadata.setdefault("namespace", key[1])
            return 201, self._store(key, owned_by(body, (manager, "Apply", ""), fields_of(body)), None)
        force = query.get("force") == "true"
        new = applied(old, body, sub=sub, manager=manager, force=force, known=self.kinds[key[0]])
        return 200, self._store(key, new, old)

    def _delete(self, key: _Id, old: Object, options: Object) -> Object:
        check_precondition(old, options.get("preconditions") or {})
        if options.get("propagationPolicy") not in (None, "Background"):
            raise Refused(501, "the fake deletes in the background")
        if old["metadata"].get("finalizers"):
            new = copy.deepcopy(old)
            new["metadata"].setdefault("deletionTimestamp", _NOW)
            return self._store(key, new, old)
        self.remove(key[0], key[2], key[1])
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _store(self, key: _Id, new: Object, old: Object | None) -> Object:
        metadata = new["metadata"]
        kept = {} if old is None else old["metadata"]
        metadata["uid"] = kept.get("uid") or metadata.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = kept.get("creationTimestamp", _NOW)
        if "generation" in kept:
            metadata["generation"] = kept["generation"]
        if self.kinds[key[0]].has_generation:
            metadata.setdefault("generation", 1)
            if old is not None and old.get("spec") != new.get("spec"):
                metadata["generation"] += 1
        metadata["resourceVersion"] = kept.get("resourceVersion", "0")
        if old is None or new != old:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
        self._objects[key] = new
        return copy.deepcopy(new)


def _status(code: int, message: str, cause: str | None = None) -> Object:
    details = {} if cause is None else {"details": {"causes": [{"reason": cause, "message": message}]}}
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code, **details}


@asynccontextmanager
async def running_api() -> AsyncIterator[FakeApi]:
    """A server on a free port of loopback until the block ends."""
    api = FakeApi()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield api
    finally:
        await runner.cleanup()
