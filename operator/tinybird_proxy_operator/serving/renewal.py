"""When certificates are renewed, so that nobody is ever shown one that it does not know yet. Pure but for the keys.

    authority ──(2/3 of its life)──▶ next authority made ──(its CA is registered, for an overlap)──▶ it signs
    ──(an overlap later)──▶ the previous CA is forgotten

The bundle, which is what gets registered, holds every CA between the first and the last step. The serving certificate
alone is renewed by the same CA, and nobody has to be told. All replicas share one state; ``advance`` takes one step.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from tinybird_proxy_operator.serving.certificates import (
    Pair,
    ends_at,
    fits,
    is_signed_by,
    make_authority,
    make_serving,
    names_of,
)

# A CA lives so many times as long as what it signs.
_AUTHORITY_LIVES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """``serving_s``: a serving certificate's. ``overlap_s``: longer than any replica or API server takes to notice."""

    serving_s: int
    overlap_s: int

    @property
    def authority_s(self) -> int:
        """A CA's."""
        return self.serving_s * _AUTHORITY_LIVES


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """All certificates at a time. ``changed_at``: the last step; ``registered_at``: since when the next CA is known."""

    authority: Pair
    serving: Pair
    changed_at: datetime
    next_authority: Pair | None = None
    registered_at: datetime | None = None
    previous: str | None = None

    @property
    def bundle(self) -> str:
        """Every CA that clients are to know, in an order that does not depend on which of them signs."""
        following = None if self.next_authority is None else self.next_authority.certificate
        return "".join(sorted({each for each in (self.authority.certificate, following, self.previous) if each}))


def advance(
    issued: Issued | None,
    *,
    names: Sequence[str],
    lifetimes: Lifetimes,
    now: datetime,
    registered: str | None,
    held: Issued | None = None,
) -> Issued:
    """The state after the next step; ``issued`` itself if none is due.

    ``registered``: the bundle that clients know, None if they know none. ``held``: what this replica serves with; if
    the state was deleted it goes on from that, towards a new CA.
    """
    if issued is None and held is not None and now < ends_at(held.authority.certificate):
        return held if held.next_authority is not None else _with_next(held, names, lifetimes, now)
    if issued is None or now >= ends_at(issued.authority.certificate):
        authority = make_authority(names[0], now=now, lifetime_s=lifetimes.authority_s)
        return Issued(authority=authority, serving=_serving(authority, names, lifetimes, now), changed_at=now)
    overlap = timedelta(seconds=lifetimes.overlap_s)
    if issued.next_authority is not None:
        if issued.registered_at is None:
            if registered is None or issued.next_authority.certificate.strip() in registered:
                return replace(issued, registered_at=now)
        elif now >= issued.registered_at + overlap:
            return Issued(
                authority=issued.next_authority,
                serving=_serving(issued.next_authority, names, lifetimes, now),
                previous=issued.authority.certificate,
                changed_at=now,
            )
    elif issued.previous is not None:
        if now >= issued.changed_at + overlap:
            return replace(issued, previous=None, changed_at=now)
    elif _is_due(issued.authority.certificate, lifetimes.authority_s, now):
        return _with_next(issued, names, lifetimes, now)
    serving = issued.serving.certificate
    if _is_due(serving, lifetimes.serving_s, now) or set(names_of(serving)) != set(names):
        return replace(issued, serving=_serving(issued.authority, names, lifetimes, now))
    return issued


def to_data(issued: Issued) -> dict[str, str]:
    """As a Secret's ``data``."""
    texts = {
        "ca.crt": issued.authority.certificate,
        "ca.key": issued.authority.key,
        "tls.crt": issued.serving.certificate,
        "tls.key": issued.serving.key,
        "bundle.crt": issued.bundle,
        "changed-at": issued.changed_at.isoformat(),
    }
    if issued.next_authority is not None:
        texts |= {"next-ca.crt": issued.next_authority.certificate, "next-ca.key": issued.next_authority.key}
    if issued.registered_at is not None:
        texts["registered-at"] = issued.registered_at.isoformat()
    if issued.previous is not None:
        texts["previous-ca.crt"] = issued.previous
    return {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}


def from_data(data: Mapping[str, str]) -> Issued | None:
    """Read a Secret's ``data``. None if it is not what ``to_data`` makes: then everything is made anew."""
    try:
        texts = {key: base64.b64decode(text, validate=True).decode() for key, text in data.items()}
        following = Pair(texts["next-ca.crt"], texts["next-ca.key"]) if "next-ca.crt" in texts else None
        issued = Issued(
            authority=Pair(texts["ca.crt"], texts["ca.key"]),
            serving=Pair(texts["tls.crt"], texts["tls.key"]),
            next_authority=following,
            previous=texts.get("previous-ca.crt"),
            changed_at=_time(texts["changed-at"]),
            registered_at=_time(texts["registered-at"]) if "registered-at" in texts else None,
        )
        if issued.previous is not None:
            ends_at(issued.previous)
    except (KeyError, ValueError, UnicodeDecodeError, binascii.Error):
        return None
    pairs = [issued.authority, issued.serving, *([] if following is None else [following])]
    whole = all(map(fits, pairs)) and is_signed_by(issued.serving.certificate, issued.authority.certificate)
    return issued if whole else None


def _with_next(issued: Issued, names: Sequence[str], lifetimes: Lifetimes, now: datetime) -> Issued:
    following = make_authority(names[0], now=now, lifetime_s=lifetimes.authority_s)
    return replace(issued, next_authority=following, registered_at=None, changed_at=now)


def _serving(authority: Pair, names: Sequence[str], lifetimes: Lifetimes, now: datetime) -> Pair:
    return make_serving(authority, names, now=now, lifetime_s=lifetimes.serving_s)


def _is_due(certificate: str, lifetime_s: int, now: datetime) -> bool:
    return now >= ends_at(certificate) - timedelta(seconds=lifetime_s / 3)


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
