"""Who asks: the API server before us says it in headers, and is believed only for its certificate; or a bearer token.

The API server's own configuration says which CA signs its certificate, which names it may have and what the headers are
called: the ConfigMap kube-system/extension-apiserver-authentication. Whatever else comes in such headers is ignored.
A client with a certificate of any other CA does not get through the TLS handshake.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.api import Refused
from tinybird_proxy_operator.recent import Recent

CONFIGURATION_NAMESPACE: Final = "kube-system"
CONFIGURATION_NAME: Final = "extension-apiserver-authentication"
ANONYMOUS: Final = "system:anonymous"
_AUTHENTICATED: Final = "system:authenticated"
_UNAUTHENTICATED: Final = "system:unauthenticated"
REVIEW_KEEP_S: Final = 10.0
_REVIEWS_KEPT: Final = 1000
_REVIEWS_AT_ONCE: Final = 10
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who was authenticated."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHeaders:
    """Whose headers are believed, and what they are called. Without ``client_ca`` nobody's are.

    ``allowed_names`` empty: any name that the CA has signed.
    """

    client_ca: str = ""
    allowed_names: tuple[str, ...] = ()
    username: tuple[str, ...] = ()
    uid: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """The certificate that a client has shown and TLS has verified. ``common_name`` None: it has none, or several."""

    common_name: str | None


def read_configuration(config_map: Mapping[str, Any]) -> RequestHeaders:
    """The API server's configuration. Raises ``ValueError`` if it cannot be understood."""
    data = config_map.get("data") or {}

    def names(key: str) -> tuple[str, ...]:
        try:
            return tuple(msgspec.json.decode(data.get(key) or "[]", type=list[str]))
        except msgspec.DecodeError as error:
            raise ValueError(f"{key} is not a list in JSON: {error}") from error

    return RequestHeaders(
        client_ca=(data.get("requestheader-client-ca-file") or "").strip(),
        allowed_names=names("requestheader-allowed-names"),
        username=names("requestheader-username-headers"),
        uid=names("requestheader-uid-headers"),
        group=names("requestheader-group-headers"),
        extra_prefixes=names("requestheader-extra-headers-prefix"),
    )


def peer_of(certificate: Mapping[str, Any] | None, *, resumed: bool) -> Peer | None:
    """What ``SSLObject.getpeercert`` tells. A resumed session shows nothing: its certificate was verified long ago."""
    if not certificate or resumed:
        return None
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return Peer(names[0] if len(names) == 1 else None)


def user_by_headers(configuration: RequestHeaders, peer: Peer | None, headers: Headers) -> User | None:
    """Who the API server says it is. None: it is not the API server that asks, or it does not say."""
    if peer is None or not configuration.client_ca:
        return None
    if configuration.allowed_names and peer.common_name not in configuration.allowed_names:
        return None
    name = next(iter(_values(headers, configuration.username)), None)
    if name is None:
        return None
    extra: dict[str, list[str]] = {}
    for prefix in configuration.extra_prefixes:
        for header, value in headers:
            if header.lower().startswith(prefix.lower()):
                extra.setdefault(unquote(header[len(prefix) :].lower()), []).append(value)
    return User(
        name,
        _with_authenticated(name, _values(headers, configuration.group)),
        next(iter(_values(headers, configuration.uid)), ""),
        tuple((key, tuple(values)) for key, values in sorted(extra.items())),
    )


def bearer_token(headers: Headers) -> str | None:
    """The token of a request, if it has one."""
    for header, value in headers:
        kind, _, token = value.strip().partition(" ")
        if header.lower() == "authorization" and kind.lower() == "bearer" and token.strip():
            return token.strip()
    return None


def read_review(review: Mapping[str, Any]) -> User | None:
    """Whose token it is, as the API server answers a TokenReview. None: nobody's."""
    status = review.get("status") or {}
    user = status.get("user") or {}
    if status.get("authenticated") is not True or not user.get("username"):
        return None
    extra = {str(key): tuple(map(str, values or ())) for key, values in (user.get("extra") or {}).items()}
    groups = [str(group) for group in user.get("groups") or ()]
    name = str(user["username"])
    return User(name, _with_authenticated(name, groups), str(user.get("uid") or ""), tuple(sorted(extra.items())))


def _values(headers: Headers, names: Iterable[str]) -> list[str]:
    return [value for name in names for header, value in headers if header.lower() == name.lower() and value]


def _with_authenticated(name: str, groups: Sequence[str]) -> tuple[str, ...]:
    if name == ANONYMOUS or _UNAUTHENTICATED in groups or _AUTHENTICATED in groups:
        return tuple(groups)
    return (*groups, _AUTHENTICATED)


@dataclass(slots=True)
class _Token:
    """A token as a key: known by its digest, and never shown."""

    text: str = field(repr=False)
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256(self.text.encode()).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Token) and self.digest == other.digest


class Authenticator:
    """Knows the API server's configuration once it was read, and asks it about tokens."""

    def __init__(self, kube: Kube, *, now: Callable[[], float]) -> None:
        self._kube = kube
        self._reviews: Recent[_Token, User | None] = Recent(
            self._review, keep_s=REVIEW_KEEP_S, capacity=_REVIEWS_KEPT, at_once=_REVIEWS_AT_ONCE, now=now
        )
        self.configuration: RequestHeaders | None = None

    async def read(self) -> RequestHeaders:
        """Read the API server's configuration anew. Raises ``KubeError``; ``ValueError`` if it cannot be understood."""
        found = await self._kube.get("ConfigMap", CONFIGURATION_NAMESPACE, CONFIGURATION_NAME)
        self.configuration = read_configuration(found)
        return self.configuration

    async def identify(self, peer: Peer | None, headers: Headers) -> User:
        """Who asks. Raises ``Refused``: 401 for nobody, 503 while it cannot be known."""
        if self.configuration is None:
            raise Refused(503, "the API server's configuration was not read yet, so nobody can be known")
        if (user := user_by_headers(self.configuration, peer, headers)) is not None:
            return user
        if (token := bearer_token(headers)) is None:
            raise Refused(401, "Unauthorized")
        try:
            user = await self._reviews.get(_Token(token))
        except KubeError as error:
            raise Refused(503, f"the API server did not say whose token this is: {error}") from error
        if user is None:
            raise Refused(401, "Unauthorized")
        return user

    async def close(self) -> None:
        """Ask no more."""
        await self._reviews.close()

    def _review(self, token: _Token) -> Awaitable[User | None]:
        return self._reviewed(token.text)

    async def _reviewed(self, token: str) -> User | None:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        return read_review(await self._kube.create({**review, "metadata": {}}))
