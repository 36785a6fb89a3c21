"""Admission: whether a request's rows may enter the buffer, and what the client is told if not.

Rows and raw bytes count from admission to settling, whatever compression saves. Pure.
"""

import math
from dataclasses import dataclass
from enum import Enum

# What a delivering destination may use on top of the capacity, so that one that does not deliver cannot shut it out.
HEADROOM = 0.10
# What all clients' own tokens that Tinybird has not confirmed may use together.
UNCONFIRMED_SHARE = 0.05
RETRY_AFTER_MIN_S = 1
RETRY_AFTER_MAX_S = 60
# An official SDK gives up 30 s after its first attempt, waiting included: leave it time for two more.
RETRY_AFTER_NOT_DELIVERING_S = 10
# A refused client should find room when it comes back: wait until this share of the capacity has been delivered.
ROOM_SHARE = 0.10


class Standing(Enum):
    """How a destination stands when it asks for room."""

    DELIVERING = "delivering"
    OVER_SHARE = "over_share"  # delivers, but has more than an even share: the headroom is the others'
    NOT_DELIVERING = "not_delivering"
    UNCONFIRMED = "unconfirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the buffer may hold: rows and bytes before compression."""

    max_rows: int
    max_bytes: int
    max_body_bytes: int


@dataclass(slots=True)
class Occupancy:
    """What the buffer holds, in all and of unconfirmed destinations."""

    row_count: int = 0
    size_bytes: int = 0
    unconfirmed_row_count: int = 0
    unconfirmed_size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why rows are not taken: ``status`` for the client, ``reason`` for the metric, ``message`` for a person."""

    status: int
    reason: str
    message: str
    retry_after_s: int | None = None


TOO_LARGE = "this request can never fit: it is larger than the proxy's whole buffer; send it in smaller requests"
FULL = "the proxy's buffer is full; send the same request again later"
NOT_DELIVERED = "this data source is not being delivered and the buffer is full; send the same request again later"
UNCONFIRMED = "too much is waiting for tokens that Tinybird has not confirmed yet; send the same request again later"


def has_room(row_count: int, size_bytes: int, held: Occupancy, capacity: Capacity) -> bool:
    """Whether rows of a confirmed destination fit in the plain capacity: then there is nothing more to ask."""
    return held.row_count + row_count <= capacity.max_rows and held.size_bytes + size_bytes <= capacity.max_bytes


def refuse(standing: Standing, row_count: int, size_bytes: int, held: Occupancy, capacity: Capacity) -> Refusal | None:
    """Return why ``row_count`` rows of ``size_bytes`` are refused, or None if they fit."""
    if row_count > capacity.max_rows or size_bytes > capacity.max_bytes:
        return Refusal(413, "too_large", TOO_LARGE)
    rows, size = held.row_count + row_count, held.size_bytes + size_bytes
    if standing in (Standing.DELIVERING, Standing.OVER_SHARE):
        most = 1.0 + (HEADROOM if standing is Standing.DELIVERING else 0.0)
        if rows <= capacity.max_rows * most and size <= capacity.max_bytes * most:
            return None
        return Refusal(503, "buffer_full", FULL)
    if standing is Standing.UNCONFIRMED:
        share_bytes = max(capacity.max_bytes * UNCONFIRMED_SHARE, capacity.max_body_bytes + 1)  # and its line feed
        share_rows = max(capacity.max_rows * UNCONFIRMED_SHARE, 1)
        if held.unconfirmed_size_bytes + size_bytes > share_bytes or (
            held.unconfirmed_row_count and held.unconfirmed_row_count + row_count > share_rows
        ):
            return Refusal(429, "unconfirmed_share", UNCONFIRMED)
    if rows > capacity.max_rows or size > capacity.max_bytes:
        return Refusal(429, "share", NOT_DELIVERED)
    return None


def is_over_share(row_count: int, size_bytes: int, sharers: int, capacity: Capacity) -> bool:
    """Whether a destination that holds so much has more than its even share of capacity and headroom.

    Such a one leaves the headroom to the others: it may fail before anybody knows, and keep for long what it took.
    """
    return max(row_count / capacity.max_rows, size_bytes / capacity.max_bytes) * sharers > 1 + HEADROOM


def retry_after_s(held_rows: int, capacity_rows: int, delivered_rows_per_s: float) -> int:
    """Whole seconds, 1 to 60, until there should be room again at the present delivery rate; 10 if there is none."""
    if delivered_rows_per_s <= 0 or not math.isfinite(delivered_rows_per_s):
        return RETRY_AFTER_NOT_DELIVERING_S
    wanted = max(1.0, min(held_rows, capacity_rows * ROOM_SHARE))
    return max(RETRY_AFTER_MIN_S, math.ceil(min(RETRY_AFTER_MAX_S, wanted / delivered_rows_per_s)))
