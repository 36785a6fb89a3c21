"""Batches: what leaves together, and when.

A batch is **open** while items are added, then **frozen**: its composition and id are fixed for ever, and every attempt
sends the same bytes. Pure: nothing here reads a clock or touches a socket; ``now`` is in seconds.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from tinybird_proxy.rows import Rows
from tinybird_proxy.ticket import Place

MAX_LINKS = 128
MAX_VIAS = 8
# An instance: a node's name of at most 128 characters and some more. Whatever else stands there is not sent on.
_VIA = re.compile(r"[A-Za-z0-9._-]{1,160}")


class Trigger(StrEnum):
    """Why a batch was frozen."""

    ROWS = "rows"
    BYTES = "bytes"
    INTERVAL = "interval"
    FIRST_CONTACT = "first_contact"
    DRAIN = "drain"
    SPLIT = "split"
    REPLAY = "replay"


class DestinationKey(NamedTuple):
    """What items must share to leave in one request. ``token`` is the client's own, or None for ours."""

    path: str
    name: str
    params: tuple[tuple[str, str], ...]
    token: str | None

    def __repr__(self) -> str:
        # A key is shown in errors and debug logs: the token is never part of that.
        token = "ours" if self.token is None else "the client's"
        return f"DestinationKey({self.path!r}, {self.name!r}, {self.params!r}, token={token})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """When an open batch is full (rows, bytes before compression) or due (seconds)."""

    max_rows: int
    max_bytes: int
    flush_interval_s: float


@dataclass(frozen=True, slots=True)
class Payload:
    """A frozen batch as it goes over the wire, the same in every attempt."""

    body: bytes = field(repr=False)
    encoding: str | None


class Replayed(NamedTuple):
    """Where the rows of a dead letter that was sent again stand in a batch: from row ``first``, counted from 0."""

    letter: Any  # a dead_letter.DeadLetter
    first: int
    row_count: int


_P = TypeVar("_P", Place, Replayed)


class OpenBatch:
    """Items gathered for one destination: one list entry an item, no object a row.

    ``size_bytes`` is that of the rows with one line feed after each item.
    """

    __slots__ = (
        "bodies",
        "last_at",
        "link_count",
        "links",
        "opened_at",
        "replays",
        "row_count",
        "row_counts",
        "size_bytes",
        "tickets",
        "vias",
    )

    def __init__(self, now: float) -> None:
        self.bodies: list[bytes] = []
        self.row_counts = array("I")
        self.row_count = 0
        self.size_bytes = 0
        self.opened_at = now
        self.last_at = now
        self.tickets: list[Place] = []
        self.replays: list[Replayed] = []
        self.links: list[str] = []
        self.link_count = 0
        self.vias: set[str] = set()

    def would_exceed(self, rows: Rows, limits: BatchLimits) -> Trigger | None:
        """Which limit ``rows`` would break here, if any."""
        if self.row_count + rows.row_count > limits.max_rows:
            return Trigger.ROWS
        if self.size_bytes + len(rows.body) > limits.max_bytes:
            return Trigger.BYTES
        return None

    def add(self, rows: Rows, now: float) -> None:
        """Take an item in."""
        self.bodies.append(rows.body)
        self.row_counts.append(rows.row_count)
        self.row_count += rows.row_count
        self.size_bytes += len(rows.body) + 1
        self.last_at = now

    def link(self, traceparent: str) -> None:
        """Remember a sampled request's ``traceparent``; beyond ``MAX_LINKS`` only their number."""
        self.link_count += 1
        if len(self.links) < MAX_LINKS:
            self.links.append(traceparent)

    def came_via(self, vias: str) -> None:
        """Remember which proxies an item has passed, so that a loop over several of them is noticed."""
        for via in map(str.strip, vias.split(",")):
            if len(self.vias) < MAX_VIAS and _VIA.fullmatch(via):
                self.vias.add(via)


@dataclass(slots=True, kw_only=True)
class FrozenBatch:
    """A batch whose composition is fixed. Times are the clock's seconds; ``size_bytes`` is before compression.

    A piece of another batch has a ``split``, with which its rows are counted.

    ``bodies`` are kept until ``payload`` is made from them, once. ``promised`` is False only while a first contact has
    not been answered: then its rows are nobody's yet. ``attempts`` counts requests begun; ``exposed``: of the
    latest one, a byte of the payload may be with Tinybird. ``ambiguous`` says whether one of them may have been taken
    although no reply said so.
    """

    id: str
    key: DestinationKey
    bodies: list[bytes] = field(repr=False)
    row_counts: "array[int]"
    row_count: int
    size_bytes: int
    oldest_at: float
    youngest_at: float
    frozen_at: float
    trigger: Trigger
    tickets: list[Place]
    replays: list[Replayed]
    links: list[str]
    link_count: int
    vias: tuple[str, ...]
    promised: bool = True
    payload: Payload | None = None
    attempts: int = 0
    exposed: bool = False
    ambiguous: bool = False
    piece_count: int = 0
    split: Any = None  # the destination.splitting.Split that this is a piece of
    span: Any = field(default=None, repr=False)  # the telemetry.tracing.FlushSpan of this batch, once it is sent

    def next_piece_id(self) -> str:
        """``<parent>.<n>``, never the same twice."""
        self.piece_count += 1
        return f"{self.id}.{self.piece_count}"

    def expose(self) -> None:
        """Tinybird may have taken it from now on."""
        self.exposed = True

    def end_span(self, verdict: str) -> None:
        """The flush span ends with ``verdict``, if there is one; a later attempt would begin another."""
        if self.span is not None:
            self.span.end(verdict=verdict, attempts=self.attempts)
            self.span = None

    @property
    def item_count(self) -> int:
        """Items in the batch."""
        return len(self.row_counts)


def freeze(batch: OpenBatch, *, batch_id: str, key: DestinationKey, trigger: Trigger, now: float) -> FrozenBatch:
    """Fix ``batch`` for ever under ``batch_id``. The open batch must not be used after it."""
    return FrozenBatch(
        id=batch_id,
        key=key,
        bodies=batch.bodies,
        row_counts=batch.row_counts,
        row_count=batch.row_count,
        size_bytes=batch.size_bytes,
        oldest_at=batch.opened_at,
        youngest_at=batch.last_at,
        frozen_at=now,
        trigger=trigger,
        tickets=batch.tickets,
        replays=batch.replays,
        links=batch.links,
        link_count=batch.link_count,
        vias=tuple(sorted(batch.vias)),
    )


class ItemBounds:
    """Where the items of a batch end, in rows: made once, so that each of many pieces is cut in no time."""

    def __init__(self, row_counts: Sequence[int]) -> None:
        self.ends = array("L", accumulate(row_counts))
        self._row_counts = row_counts

    def row_counts(self, first: int, end: int) -> "array[int]":
        """Rows of each item, or part of one, between rows ``first`` and ``end``."""
        low, high = bisect_right(self.ends, first), bisect_right(self.ends, end - 1)
        if low == high:
            return array("I", [end - first])
        counts = array("I", self._row_counts[low : high + 1])
        counts[0] = self.ends[low] - first
        counts[-1] = end - self.ends[high - 1]
        return counts


def piece(parent: FrozenBatch, bounds: ItemBounds, *, batch_id: str, first: int, end: int, body: bytes) -> FrozenBatch:
    """Rows ``first`` up to, not including, ``end`` of ``parent`` as a batch of its own. ``body`` holds their lines.

    Sizes add up to the parent's: each has one line feed more than its body, as if it were an item.
    """
    return FrozenBatch(
        id=batch_id,
        key=parent.key,
        bodies=[body],
        row_counts=bounds.row_counts(first, end),
        row_count=end - first,
        size_bytes=len(body) + 1,
        oldest_at=parent.oldest_at,
        youngest_at=parent.youngest_at,
        frozen_at=parent.frozen_at,
        trigger=Trigger.SPLIT,
        tickets=[Place(place.ticket, *_clip(place, first, end)) for place in _between(parent.tickets, first, end)],
        replays=[Replayed(place.letter, *_clip(place, first, end)) for place in _between(parent.replays, first, end)],
        links=parent.links,
        link_count=parent.link_count,
        vias=parent.vias,
        ambiguous=parent.ambiguous,
    )


def _between(places: list[_P], first: int, end: int) -> list[_P]:
    """Those of ``places``, in the order of their rows, that have some between rows ``first`` and ``end``."""
    low = bisect_right(places, first, key=lambda place: place.first)
    high = bisect_left(places, end, lo=low, key=lambda place: place.first)
    if low and places[low - 1].first + places[low - 1].row_count > first:
        low -= 1
    return places[low:high]


def _clip(place: Place | Replayed, first: int, end: int) -> tuple[int, int]:
    """The part of ``place`` between rows ``first`` and ``end``, counted from ``first``."""
    begins, ends = max(place.first, first), min(place.first + place.row_count, end)
    return begins - first, ends - begins
