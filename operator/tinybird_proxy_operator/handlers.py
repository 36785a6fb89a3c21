"""kopf's part: it watches, and each event puts a key into the queue. No work is done here, and nothing is written.

kopf logs and drops what is raised in such a handler, so there is nothing in them that could raise.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf

from tinybird_proxy_operator.names import (
    FIELD_MANAGER,
    GROUP,
    INJECTED_LABEL,
    MANAGED_BY_LABEL,
    PLURAL,
    PROXY_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
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
)
AUTOSCALERS: Final = ("autoscaling", "v2", "horizontalpodautoscalers")
# Of so many apps' pods it is remembered how they were; an event about any other is news.
APP_PODS_MAX: Final = 20_000
# A look lists all of them, so it waits until a wave of changes is over, or for so long.
APP_PODS_SETTLE_S: Final = 2.0
_Body = Mapping[str, Any]


class Watches:
    """``changed`` is called with each resource that an event is about, a deleted one too, ``alive`` always.

    Where the news may wait, ``changed`` is told for how many seconds.

    ``saw_pod`` is given each pod, and whether it is gone: what its containers said last can be read nowhere else then.

    A Secret of a user's concerns the resources that name it, which only the resources' own specs say: they are kept.
    An event about nothing but a resource's status is our own write, and no news. Nor is one about an HPA's status: it
    comes with every metric, and each look reads it.
    """

    def __init__(
        self, *, changed: Callable[..., None], alive: Callable[[], None], saw_pod: Callable[[_Body, bool], None]
    ) -> None:
        self._changed = changed
        self._alive = alive
        self._saw_pod = saw_pod
        self._app_pods: dict[str, Any] = {}  # by uid; the one that changed last comes last
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

    def pod(self, body: _Body, deleted: bool) -> None:
        """Something happened to a pod that carries a resource's name."""
        self._saw_pod(body, deleted)
        self.child(body)

    def app_pod(self, body: _Body, deleted: bool) -> None:
        """Something happened to a pod that carries the name of the resource that its sidecar is of.

        There may be thousands, and most of what happens to them does not concern their sidecars.
        """
        self._alive()
        metadata = body["metadata"]
        uid, name = metadata.get("uid") or "", (metadata.get("labels") or {}).get(INJECTED_LABEL)
        before, now = self._app_pods.get(uid), None if deleted else _news_of_app_pod(body)
        if before == now is not None:
            return
        self._app_pods.pop(uid, None)
        if now is not None:
            self._app_pods[uid] = now
            if len(self._app_pods) > APP_PODS_MAX:
                del self._app_pods[next(iter(self._app_pods))]
        self._saw_pod(body, deleted)
        if name:
            self._changed(Key(metadata.get("namespace", ""), name), APP_PODS_SETTLE_S)

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

    def on_pod(body: kopf.Body, type: str | None, **_: Any) -> None:
        watches.pod(body, type == "DELETED")

    def on_app_pod(body: kopf.Body, type: str | None, **_: Any) -> None:
        watches.app_pod(body, type == "DELETED")

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
        kopf.on.event(group, version, plural, labels=ours, registry=registry, id=f"child-{plural}")(on_child)
    # Pods carry the proxy's label; what we make carries who manages it.
    proxys, injected = {PROXY_LABEL: kopf.PRESENT}, {INJECTED_LABEL: kopf.PRESENT}
    kopf.on.event("", "v1", "pods", labels=proxys, registry=registry, id="child-pods")(on_pod)
    kopf.on.event("", "v1", "pods", labels=injected, registry=registry, id="app-pods")(on_app_pod)
    kopf.on.event(*AUTOSCALERS, labels=ours, registry=registry, id="autoscalers")(on_autoscaler)
    kopf.on.event("", "v1", "secrets", labels={USE_LABEL: kopf.PRESENT}, registry=registry, id="shared")(on_secret)
    kopf.on.event("", "v1", "secrets", labels=ours, registry=registry, id="made")(on_child)


def _news(body: _Body) -> tuple[Any, ...]:
    """What differs when more than the status has changed. The generation stands for the spec."""
    metadata = body["metadata"]
    said = [metadata.get(name) for name in ("uid", "generation", "deletionTimestamp")]
    labels, annotations = (dict(metadata.get(name) or {}) for name in ("labels", "annotations"))
    return (*said, labels, annotations, [*(metadata.get("finalizers") or [])])


def _news_of_app_pod(body: _Body) -> tuple[Any, ...]:
    """What of an app's pod concerns its sidecar."""
    metadata, status = body["metadata"], _map(body.get("status"))
    labels, annotations = dict(metadata.get("labels") or {}), metadata.get("annotations") or {}
    ready = [each.get("status") for each in status.get("conditions") or () if each.get("type") == "Ready"]
    containers = status.get("initContainerStatuses") or ()
    states = [_news_of_state(each) for each in containers if each.get("name") == SIDECAR_CONTAINER]
    said = metadata.get("deletionTimestamp"), annotations.get(SIDECAR_HASH_ANNOTATION), status.get("phase")
    return (*said, labels, ready, states)


def _news_of_state(container: _Body) -> tuple[Any, ...]:
    states = [_map(container.get(name)) for name in ("state", "lastState")]
    ends = [_map(each.get("terminated")).get("finishedAt") for each in states]
    return (*map(tuple, states), *ends, container.get("ready"), container.get("restartCount"))


def _named_secrets(body: _Body) -> list[str]:
    fields = (("tinybird", "tokenSecretRef"), ("clients", "tokenSecretRef"), ("telemetry", "otlpHeadersSecretRef"))
    refs = [_map(_map(_map(body.get("spec")).get(part)).get(field)) for part, field in fields]
    return [str(ref["name"]) for ref in refs if "name" in ref]


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
