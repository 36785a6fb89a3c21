"""Who may do what: tokens and their scopes, in Tinybird's spelling.

``ADMIN`` may do everything; ``DATASOURCES:APPEND:<name>`` may append to one data source, and to all of
them with ``*`` as the name. Does no I/O.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SCOPE = re.compile(r"ADMIN|DATASOURCES?:APPEND:(?:\*|[A-Za-z_][A-Za-z0-9_]{0,255})")
_ALLOWED_SCOPES = "ADMIN, DATASOURCES:APPEND:<data source> or DATASOURCES:APPEND:*"


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token and what it may do. Raises ``ValueError`` for a scope that is not known."""

    token: str = field(repr=False)
    scopes: tuple[str, ...] = ("ADMIN",)

    def __post_init__(self) -> None:
        if not self.token:
            raise ValueError("a token must not be empty")
        for scope in self.scopes:
            if not _SCOPE.fullmatch(scope):
                raise ValueError(f"scope {scope!r}: must be {_ALLOWED_SCOPES}")

    @property
    def is_admin(self) -> bool:
        """Whether this token may also query and list."""
        return "ADMIN" in self.scopes

    def may_append_to(self, datasource: str) -> bool:
        """Whether rows may be appended to ``datasource`` with this token."""
        return self.is_admin or any(scope.rpartition(":")[2] in ("*", datasource) for scope in self.scopes)


def token_hash(token: str) -> str:
    """The first 8 hex digits of the SHA-256: enough to tell tokens apart, too little to use them."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def token_of(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """The token of a request: ``Authorization: Bearer`` wins over ``?token=``; other schemes are ignored."""
    scheme, _, credential = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return query.get("token") or None


def find_token(entries: Iterable[TokenEntry], token: str) -> TokenEntry | None:
    """The entry of ``token``; every entry is compared, each in constant time."""
    found = None
    wanted = token.encode("utf-8", "surrogateescape")
    for entry in entries:
        if hmac.compare_digest(entry.token.encode("utf-8", "surrogateescape"), wanted):
            found = entry
    return found
