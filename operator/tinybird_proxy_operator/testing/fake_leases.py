"""The API server's Leases in memory, with its optimistic concurrency, and bad links to it.

server = FakeLeases()
link = Link(server)             # has what ``election.Leases`` asks for
link.is_cut = True              # requests get lost on the way; a request hangs until somebody gives it up
link.is_deaf = True             # requests are carried out, answers get lost
"""

import asyncio
import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinybird_proxy_operator.errors import Conflict, Invalid, KubeError

Object = dict[str, Any]
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(slots=True)
class FakeLeases:
    """One Lease, as the API server keeps it. ``holders`` are all that it had, in order."""

    lease: Object | None = None
    holders: list[str] = field(default_factory=list)
    _version: int = 0
    _uids: int = 0

    def find(self) -> Object | None:
        """The Lease as it is."""
        return copy.deepcopy(self.lease)

    def put(self, manifest: Object) -> Object:
        """PUT: make it, or replace the one that is meant, as the API server's strategy for Leases has it."""
        _check(manifest)
        new, old = copy.deepcopy(manifest), self.lease
        metadata = new["metadata"]
        if old is None:
            if "resourceVersion" in metadata or "uid" in metadata:
                raise Conflict("the object that was meant does not exist")
            self._uids += 1
            metadata["uid"] = f"uid-{self._uids}"
        else:
            if "resourceVersion" not in metadata:
                raise Invalid("metadata.resourceVersion: must be specified for an update")
            if any(metadata.get(name, known) != known for name, known in _identity(old).items()):
                raise Conflict("the object has been modified; please apply your changes to the latest version")
            metadata.update(_identity(old))
        if new != old:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
        self.lease = new
        holder = new["spec"].get("holderIdentity", "")
        if not self.holders or self.holders[-1] != holder:
            self.holders.append(holder)
        return copy.deepcopy(new)

    def edit(self, *, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        """As somebody with kubectl does."""
        if (lease := self.find()) is not None:
            lease["metadata"].setdefault("annotations", {}).update(annotations or {})
            lease["spec"].update(spec)
            self.put(lease)

    def delete(self) -> None:
        """As somebody with kubectl does."""
        self.lease = None


@dataclass(slots=True)
class Link:
    """One process's way to the API server. ``delay_s`` answers how long a request or an answer is under way."""

    server: FakeLeases
    delay_s: Callable[[], float] = lambda: 0.0
    is_cut: bool = False
    is_deaf: bool = False
    error: KubeError | None = None
    requests: list[str] = field(default_factory=list)

    async def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """``Leases.find``."""
        found: Object | None = await self._ask(f"GET {kind} {namespace}/{name}", self.server.find)
        return found

    async def put(self, manifest: Object) -> Object:
        """``Leases.put``."""
        body, metadata = copy.deepcopy(manifest), manifest["metadata"]
        request = f"PUT {manifest['kind']} {metadata['namespace']}/{metadata['name']}"
        written: Object = await self._ask(request, lambda: self.server.put(body))
        return written

    async def _ask(self, request: str, carry_out: Callable[[], Any]) -> Any:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def arrive() -> None:
            try:
                result = carry_out()
            except KubeError as error:
                loop.call_later(self.delay_s(), deliver, None, error)
            else:
                loop.call_later(self.delay_s(), deliver, result, None)

        def deliver(result: Any, error: KubeError | None) -> None:
            if self.is_cut or self.is_deaf or answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        # On its way it is out of its sender's hands: it arrives also if the sender stands still, gives up or dies.
        if not self.is_cut:
            loop.call_later(self.delay_s(), arrive)
        return await answer


def _identity(lease: Object) -> dict[str, str]:
    return {name: lease["metadata"][name] for name in ("uid", "resourceVersion")}


def _check(manifest: Object) -> None:
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("coordination.k8s.io/v1", "Lease"):
        raise Invalid("the body is no coordination.k8s.io/v1 Lease")
    spec = manifest["spec"]
    if spec.get("leaseDurationSeconds", 1) <= 0 or not isinstance(spec.get("leaseDurationSeconds", 1), int):
        raise Invalid("spec.leaseDurationSeconds: must be greater than 0")
    if spec.get("leaseTransitions", 0) < 0:
        raise Invalid("spec.leaseTransitions: must be greater than or equal to 0")
    for name in ("acquireTime", "renewTime"):
        if name in spec and not _MICRO_TIME.fullmatch(spec[name]):
            raise Invalid(f"spec.{name}: is no time with microseconds")
