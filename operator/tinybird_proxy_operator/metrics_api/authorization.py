"""What somebody may: the API server decides it, asked with a SubjectAccessReview. No answer is no permission."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.api import Refused
from tinybird_proxy_operator.metrics_api.authentication import User
from tinybird_proxy_operator.recent import Recent

ALWAYS_ALLOWED: Final = frozenset((("healthz",), ("livez",), ("readyz",)))
MASTERS: Final = "system:masters"
REVIEW_KEEP_S: Final = 10.0
_REVIEWS_KEPT: Final = 5000
_REVIEWS_AT_ONCE: Final = 20
_VERBS: Final = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What is to be done to what. ``path`` is empty for what is in a group and version."""

    verb: str
    path: str = ""
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    name: str = ""
    subresource: str = ""

    def spec(self) -> dict[str, Any]:
        """As a SubjectAccessReview has it."""
        if self.path:
            return {"nonResourceAttributes": {"path": self.path, "verb": self.verb}}
        fields = ("verb", "group", "version", "namespace", "resource", "name", "subresource")
        return {"resourceAttributes": {field: value for field in fields if (value := getattr(self, field))}}

    def __str__(self) -> str:
        if self.path:
            return f'{self.verb} path "{self.path}"'
        resource = "/".join(filter(None, (self.resource, self.subresource)))
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        return f'{self.verb} resource "{resource}" in API group "{self.group}" {where}'


def attributes(method: str, parts: Sequence[str]) -> Attributes:
    """As the API server reads a request: fewer than three parts after ``apis`` are a path, and no resource."""
    verb = _VERBS.get(method, method.lower())
    if len(parts) < 4 or parts[0] != "apis":
        return Attributes(verb=verb, path="/" + "/".join(parts))
    _, group, version, *rest = parts
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2:
            rest = rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    return Attributes(
        verb=verb if name or verb != "get" else "list",
        group=group,
        version=version,
        namespace=namespace,
        resource=resource,
        name=name,
        subresource=subresource,
    )


class Authorizer:
    """Asks the API server, and remembers its answers for a moment."""

    def __init__(self, kube: Kube, *, now: Callable[[], float]) -> None:
        self._kube = kube
        self._reviews: Recent[tuple[User, Attributes], str | None] = Recent(
            self._reviewed, keep_s=REVIEW_KEEP_S, capacity=_REVIEWS_KEPT, at_once=_REVIEWS_AT_ONCE, now=now
        )

    async def check(self, user: User, wanted: Attributes) -> None:
        """Raises ``Refused``: 403 if ``user`` may not, 503 while it cannot be known."""
        if MASTERS in user.groups:
            return
        try:
            denied = await self._reviews.get((user, wanted))
        except KubeError as error:
            raise Refused(503, f"the API server did not say whether {user.name} may {wanted}: {error}") from error
        if denied is not None:
            raise Refused(403, f'User "{user.name}" cannot {wanted}{f": {denied}" if denied else ""}')

    async def close(self) -> None:
        """Ask no more."""
        await self._reviews.close()

    async def _reviewed(self, asked: tuple[User, Attributes]) -> str | None:
        """Why not; None: it is allowed."""
        user, wanted = asked
        spec: dict[str, Any] = {"user": user.name, "groups": [*user.groups], **wanted.spec()}
        if user.uid:
            spec["uid"] = user.uid
        if user.extra:
            spec["extra"] = {key: [*values] for key, values in user.extra}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": spec}
        status = (await self._kube.create(review)).get("status") or {}
        return None if status.get("allowed") is True else str(status.get("reason") or "")
