"""The ownership rule: only what carries our resource's UID as its controller is ever written or deleted."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from tinybird_proxy_operator.errors import Conflict, Invalid, NotFound
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.names import CONTAINER, GROUP, child_labels
from tinybird_proxy_operator.spec import Proxy

# On the Deployment itself, not on its template: says which template was applied last.
TEMPLATE_ANNOTATION: Final = f"{GROUP}/template-hash"


class NameTaken(Exception):
    """An object of the child's name is somebody else's; nothing was written."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"{kind} {name} exists and does not belong to this resource: it is left untouched."
            f" Delete or rename it, or rename the resource."
        )


def is_ours(live: Mapping[str, Any], proxy: Proxy) -> bool:
    """Whether ``live`` is controlled by this very resource."""
    return controller_uid(live) == proxy.uid


def controller_uid(live: Mapping[str, Any]) -> str | None:
    """UID of the object that controls ``live``."""
    owners = live["metadata"].get("ownerReferences", [])
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def template_hash(deployment: Mapping[str, Any]) -> str:
    """What tells one pod template from another."""
    return _digest(deployment["spec"]["template"])


def image_of(deployment: Mapping[str, Any]) -> str | None:
    """The image of the proxy's container."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return next((container.get("image") for container in containers if container["name"] == CONTAINER), None)


def with_template_hash(deployment: Object) -> Object:
    """The Deployment, saying which template it has."""
    metadata = deployment["metadata"]
    annotations = {**metadata.get("annotations", {}), TEMPLATE_ANNOTATION: template_hash(deployment)}
    return {**deployment, "metadata": {**metadata, "annotations": annotations}}


def applied_template(live: Mapping[str, Any]) -> str | None:
    """The hash of the template that was applied last."""
    annotations: Mapping[str, str] = live["metadata"].get("annotations") or {}
    return annotations.get(TEMPLATE_ANNOTATION)


def part(child: Mapping[str, Any]) -> str:
    """What tells the children of one resource apart: there may be several of a kind."""
    return f"{child['kind']} {child['metadata']['name']}"


async def put(
    kube: Kube, proxy: Proxy, manifest: Object, applied: dict[str, str], *, live: Object | None = None
) -> Object:
    """Make the child, or make it like ``manifest`` again; return it. Raises ``NameTaken``.

    ``applied`` remembers by ``part`` what was applied last, so that nothing is written while nothing differs; empty
    where it is to be applied once more. ``live``: the child, where it was read already.
    """
    metadata, created = manifest["metadata"], False
    if live is None:
        live = await kube.find(manifest["kind"], metadata["namespace"], metadata["name"])
    if live is None:
        try:
            live = await kube.create(manifest)
            created = True
        except Conflict:
            live = await kube.get(manifest["kind"], metadata["namespace"], metadata["name"])
    if not is_ours(live, proxy):
        raise NameTaken(manifest["kind"], metadata["name"])
    uid = live["metadata"]["uid"]
    said = f"{uid} {_digest(manifest)}"
    if applied.pop(part(manifest), None) == said and contains(live, manifest):
        applied[part(manifest)] = said
        return live
    try:
        live = await kube.own_by_apply(live)
    except Conflict:
        said = ""  # a controller was faster with its status, for instance: once more next time
    if not created:
        try:
            live = await kube.apply(manifest, uid=uid)
        except Invalid:
            live = await kube.overwrite(manifest, uid=uid)
            said = ""  # its fields are owned by an update now: once more next time
    applied[part(manifest)] = said
    return live


def contains(live: Any, wanted: Any) -> bool:
    """Whether everything of ``wanted`` is in ``live``. What the API server adds does not count, nor what is empty."""
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return all(
            contains(live[key], value) if key in live else _may_be_absent(key, value) for key, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) == len(live) and all(map(contains, live, wanted))
    return bool(live == wanted)


def _may_be_absent(key: str, value: Any) -> bool:
    """Whether an object without the key says the same. A Deployment that is not paused does not say so."""
    return value in ({}, [], "", None) or (key == "paused" and value is False)


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


async def labelled(kube: Kube, proxy: Proxy, kind: str) -> list[Object]:
    """What of a kind carries the labels of the resource's children, ours or not. Empty: nothing, or no such kind."""
    try:
        return await kube.list(kind, proxy.namespace, labels=child_labels(proxy.name))
    except NotFound:
        return []


async def prune(kube: Kube, proxy: Proxy, wanted: Sequence[Object], found: Sequence[Object]) -> list[str]:
    """Delete what is ours of ``found`` and not wanted; return what that was."""
    keep = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
    gone = []
    for live in found:
        kind, metadata = live["kind"], live["metadata"]
        if not is_ours(live, proxy) or (kind, metadata["name"]) in keep or "deletionTimestamp" in metadata:
            continue
        with suppress(Conflict):  # another one of that name by now
            await kube.delete(kind, proxy.namespace, metadata["name"], uid=metadata["uid"])
            gone.append(f"{kind} {metadata['name']}")
    return gone
