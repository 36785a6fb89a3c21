"""kopf's part: it watches, and each event puts a key into the queue. No work is done here, and nothing is written.

kopf logs and drops what is raised in such a handler, so there is nothing in them that could raise.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf

from tinybird_proxy_operator.names import (
    FIELD_MANAGER,
    GROUP,
    MANAGED_BY_LABEL,
    PLURAL,
    PROXY_LABEL,
    USE_LABEL,
    VERSION,
)
from tinybird_proxy_operator.queue import Key

# Kinds of children whose change is drift, or news about the pods. Not PodMonitors and ScaledObjects: kopf looks once,
# as it starts, for what kinds the cluster has, and cannot be told of others without a right to watch all CRDs. What
# somebody changes in one is put right by the next look at everything, see ``RESYNC_SECONDS``.
CHILDREN: Final = (
    ("apps", "v1", "deployments"),
    ("", "v1", "services"),
    ("", "v1", "serviceaccounts"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("networking.k8s.io", "v1", "networkpolicies"),
    ("networking.k8s.io", "v1", "ingresses"),
    ("batch", "v1", "jobs"),
    ("", "v1", "pods"),
)
AUTOSCALERS: Final = ("autoscaling", "v2", "horizontalpodautoscalers")
_Body = Mapping[str, Any]


class Watches:
    """``changed`` is called with each resource that an event is about, a deleted one too, ``alive`` always.

    A Secret of a user's concerns the resources that name it, which only the resources' own specs say: they are kept.
    An event about nothing but a resource's status is our own write, and no news. Nor is one about an HPA's status: it
    comes with every metric, and each look reads it.
    """

    def __init__(self, *, changed: Callable[[Key], None], alive: Callable[[], None]) -> None:
        self._changed = changed
        self._alive = alive
        self._secrets: dict[Key, set[str]] = {}
        self._seen: dict[Key, Any] = {}
        self._autoscalers: dict[Key, Any] = {}

    def known(self) -> list[Key]:
        """Every resource that is known now."""
        return list(self._secrets)

    def resource(self, body: _Body, deleted: bool) -> None:
        """Something happened to a TinybirdProxy."""
        self._alive()
        key = Key(body["metadata"].get("namespace", ""), body["metadata"]["name"])
        if deleted:
            self._secrets.pop(key, None)
            self._seen.pop(key, None)
        else:
            self._secrets[key] = set(_named_secrets(body))
            if self._seen.get(key) == (seen := _news(body)):
                return
            self._seen[key] = seen
        self._changed(key)

    def child(self, body: _Body) -> None:
        """Something happened to an object that carries a resource's name."""
        self._alive()
        metadata = body["metadata"]
        if name := (metadata.get("labels") or {}).get(PROXY_LABEL):
            self._changed(Key(metadata.get("namespace", ""), name))

    def autoscaler(self, body: _Body, deleted: bool) -> None:
        """Something happened to an HPA that carries a resource's name."""
        metadata = body["metadata"]
        key = Key(metadata.get("namespace", ""), metadata["name"])
        said = (metadata.get("uid"), metadata.get("deletionTimestamp"), dict(metadata.get("labels") or {}))
        seen = (*said, [*(metadata.get("ownerReferences") or [])], dict(body.get("spec") or {}))
        if deleted:
            self._autoscalers.pop(key, None)
        elif self._autoscalers.get(key) == seen:
            self._alive()
            return
        else:
            self._autoscalers[key] = seen
        self.child(body)

    def secret(self, body: _Body) -> None:
        """Something happened to a Secret that a resource may use."""
        self._alive()
        namespace, name = body["metadata"].get("namespace", ""), body["metadata"]["name"]
        for key, secrets in self._secrets.items():
            if key.namespace == namespace and name in secrets:
                self._changed(key)


def register(registry: kopf.OperatorRegistry, watches: Watches) -> None:
    """Tell kopf what to watch."""

    def on_resource(body: kopf.Body, type: str | None, **_: Any) -> None:
        watches.resource(body, type == "DELETED")

    def on_child(body: kopf.Body, **_: Any) -> None:
        watches.child(body)

    def on_autoscaler(body: kopf.Body, type: str | None, **_: Any) -> None:
        watches.autoscaler(body, type == "DELETED")

    def on_secret(body: kopf.Body, **_: Any) -> None:
        watches.secret(body)

    # A registry of one's own has no way to log in, and kopf's default one would bring the whole client along.
    for login in (kopf.login_with_service_account, kopf.login_with_kubeconfig):
        kopf.on.login(registry=registry, id=login.__name__)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(on_resource)
    ours = {MANAGED_BY_LABEL: FIELD_MANAGER}
    for group, version, plural in CHILDREN:
        # Pods carry the proxy's label; what we make carries who manages it.
        labels = {PROXY_LABEL: kopf.PRESENT} if plural == "pods" else ours
        kopf.on.event(group, version, plural, labels=labels, registry=registry, id=f"child-{plural}")(on_child)
    kopf.on.event(*AUTOSCALERS, labels=ours, registry=registry, id="autoscalers")(on_autoscaler)
    kopf.on.event("", "v1", "secrets", labels={USE_LABEL: kopf.PRESENT}, registry=registry, id="shared")(on_secret)
    kopf.on.event("", "v1", "secrets", labels=ours, registry=registry, id="made")(on_child)


def _news(body: _Body) -> tuple[Any, ...]:
    """What differs when more than the status has changed. The generation stands for the spec."""
    metadata = body["metadata"]
    said = [metadata.get(name) for name in ("uid", "generation", "deletionTimestamp")]
    labels, annotations = (dict(metadata.get(name) or {}) for name in ("labels", "annotations"))
    return (*said, labels, annotations, [*(metadata.get("finalizers") or [])])


def _named_secrets(body: _Body) -> list[str]:
    refs = [_map(_map(_map(body.get("spec")).get(part)).get("tokenSecretRef")) for part in ("tinybird", "clients")]
    return [str(ref["name"]) for ref in refs if "name" in ref]


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
