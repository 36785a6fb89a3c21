"""Reviews as an API server answers them: whose token it is, and what somebody may.

reviews = FakeReviews(api)
reviews.users["a-token"] = {"username": "ann", "groups": ["team"]}
reviews.allowed.append({"user": "ann", "resource": "pods"})     # every attribute that is named must be so
"""

from dataclasses import dataclass, field

from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.field_owners import Object


@dataclass(slots=True)
class FakeReviews:
    """Answers for ``api``. ``asked``: the spec of every review, in order."""

    api: FakeApi
    users: dict[str, Object] = field(default_factory=dict)
    allowed: list[dict[str, str]] = field(default_factory=list)
    asked: list[Object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api.reviews["TokenReview"] = self._token
        self.api.reviews["SubjectAccessReview"] = self._access

    def _token(self, review: Object) -> Object:
        self.asked.append(review["spec"])
        user = self.users.get(review["spec"]["token"])
        return {"authenticated": False} if user is None else {"authenticated": True, "user": user}

    def _access(self, review: Object) -> Object:
        spec = review["spec"]
        self.asked.append(spec)
        asked = {**spec.get("resourceAttributes", {}), **spec.get("nonResourceAttributes", {}), "user": spec["user"]}
        allowed = any(rule.items() <= asked.items() for rule in self.allowed)
        return {"allowed": allowed, "reason": "" if allowed else "no rule says so"}
