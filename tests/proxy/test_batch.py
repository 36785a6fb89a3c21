"""What leaves together: the limits of an open batch, what freezing keeps, and what a batch never shows."""

from array import array
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.batch import (
    MAX_LINKS,
    MAX_VIAS,
    BatchLimits,
    DestinationKey,
    FrozenBatch,
    ItemBounds,
    OpenBatch,
    Payload,
    Replayed,
    Trigger,
    freeze,
    piece,
)
from tinybird_proxy.rows import Rows
from tinybird_proxy.ticket import Place, Ticket

OURS = DestinationKey("/v0/events", "clicks", (("__tb__x", "1"),), None)
THEIRS = OURS._replace(token="p.sEcReT")
LIMITS = BatchLimits(max_rows=5, max_bytes=20, flush_interval_s=1.0)


def rows(*lengths: int) -> Rows:
    return Rows(b"\n".join(b"x" * length for length in lengths), len(lengths))


def opened(*items: Rows, now: float = 0.0) -> OpenBatch:
    batch = OpenBatch(now)
    for item in items:
        batch.add(item, now)
    return batch


def frozen(batch: OpenBatch, key: DestinationKey = OURS) -> FrozenBatch:
    return freeze(batch, batch_id="node-1", key=key, trigger=Trigger.INTERVAL, now=9.0)


# Limits.


@pytest.mark.parametrize(
    ("held", "item", "trigger"),
    [
        pytest.param([], rows(2), None, id="an empty batch takes a row"),
        pytest.param([rows(2, 2, 2, 2)], rows(2), None, id="the last row that fits"),
        pytest.param([rows(2, 2, 2, 2)], rows(2, 2), Trigger.ROWS, id="a row too many"),
        pytest.param([rows(9)], rows(10), None, id="the last byte that fits"),
        pytest.param([rows(9)], rows(11), Trigger.BYTES, id="a byte too many"),
        pytest.param([rows(4), rows(4)], rows(10), None, id="each item's line feed counts"),
        pytest.param([rows(4), rows(4)], rows(11), Trigger.BYTES, id="and makes one too many"),
        pytest.param([], rows(20), None, id="a row as large as a batch"),
        pytest.param([rows(1)], rows(1, 1, 1, 1, 20), Trigger.ROWS, id="both limits at once count as rows"),
    ],
)
def test_an_item_that_would_exceed_a_limit_is_noticed_before_it_joins(
    held: list[Rows], item: Rows, trigger: Trigger | None
) -> None:
    assert opened(*held).would_exceed(item, LIMITS) is trigger


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=5), max_size=20))
def test_a_batch_that_is_asked_first_never_exceeds_its_limits(items: list[list[int]]) -> None:
    batch = OpenBatch(0.0)
    for lengths in items:
        item = rows(*lengths)
        if batch.bodies and batch.would_exceed(item, LIMITS):
            batch = OpenBatch(0.0)
        batch.add(item, 0.0)
        joined = b"\n".join(batch.bodies)
        assert batch.size_bytes == len(joined) + 1
        assert batch.row_count == joined.count(b"\n") + 1 == sum(batch.row_counts)
        if len(batch.bodies) > 1:
            assert len(joined) <= LIMITS.max_bytes
            assert batch.row_count <= LIMITS.max_rows


# Freezing.


def test_freezing_keeps_everything_and_adds_who_when_and_why() -> None:
    batch = OpenBatch(1.0)
    batch.add(rows(2), 1.0)
    batch.add(rows(3, 4), 2.5)
    place = Place(Ticket(lambda outcome: None, 2, contact_only=False), 1, 2)
    batch.tickets.append(place)
    replayed = Replayed(object(), 0, 1)
    batch.replays.append(replayed)
    batch.link("00-a")
    batch.came_via("b, a")
    done = freeze(batch, batch_id="node-7", key=THEIRS, trigger=Trigger.ROWS, now=3.0)
    assert (done.id, done.key, done.trigger, done.frozen_at) == ("node-7", THEIRS, Trigger.ROWS, 3.0)
    assert (done.bodies, list(done.row_counts)) == ([b"xx", b"xxx\nxxxx"], [1, 2])
    assert (done.item_count, done.row_count, done.size_bytes) == (2, 3, 12)
    assert (done.oldest_at, done.youngest_at) == (1.0, 2.5)
    assert (done.tickets, done.links, done.link_count, done.vias) == ([place], ["00-a"], 1, ("a", "b"))
    assert done.replays == [replayed]
    assert (done.promised, done.payload, done.attempts, done.ambiguous, done.split) == (True, None, 0, False, None)


def test_an_empty_batch_is_as_young_as_it_is_old() -> None:
    done = frozen(OpenBatch(4.0))
    assert (done.oldest_at, done.youngest_at, done.item_count, done.size_bytes) == (4.0, 4.0, 0, 0)


# What travels along.


def test_beyond_so_many_links_only_their_number_is_kept() -> None:
    batch = OpenBatch(0.0)
    for number in range(MAX_LINKS + 3):
        batch.link(f"00-{number}")
    assert batch.links == [f"00-{number}" for number in range(MAX_LINKS)]
    assert batch.link_count == MAX_LINKS + 3


@pytest.mark.parametrize(
    ("header", "vias"),
    [
        pytest.param("a-1", {"a-1"}, id="one proxy"),
        pytest.param("a-1, b-2,c-3", {"a-1", "b-2", "c-3"}, id="several"),
        pytest.param("a-1,, ,a-1", {"a-1"}, id="empty ones and one twice"),
        pytest.param("x" * 128 + "-0a1b2c3d", {"x" * 128 + "-0a1b2c3d"}, id="the longest instance of ours, whole"),
        pytest.param("a b, \udcff, c\x00d, é, p.x<y>, good", {"good"}, id="what could break the next request"),
        pytest.param("x" * 4000, set(), id="something enormous"),
        pytest.param(",".join(f"n{number}" for number in range(99)), {f"n{n}" for n in range(MAX_VIAS)}, id="many"),
    ],
)
def test_the_proxies_that_an_item_has_passed_are_remembered_if_they_could_be_proxies(
    header: str, vias: set[str]
) -> None:
    batch = OpenBatch(0.0)
    batch.came_via(header)
    assert batch.vias == vias


# What is never shown.


def test_no_token_and_no_row_is_in_any_repr() -> None:
    batch = opened(Rows(b'{"a":"sEcReT"}', 1))
    done = frozen(batch, THEIRS)
    done.payload = Payload(b'{"a":"sEcReT"}', None)
    for shown in (repr(done), str(done), repr(THEIRS), str(THEIRS), f"{THEIRS}", repr(done.payload), repr(batch)):
        assert "sEcReT" not in shown


def test_a_key_says_whose_token_it_is_without_saying_which() -> None:
    assert repr(OURS) == "DestinationKey('/v0/events', 'clicks', (('__tb__x', '1'),), token=ours)"
    assert repr(THEIRS) == "DestinationKey('/v0/events', 'clicks', (('__tb__x', '1'),), token=the client's)"


@pytest.mark.parametrize(
    "other",
    [
        THEIRS,
        OURS._replace(name="views"),
        OURS._replace(path="/v1/events"),
        OURS._replace(params=()),
        THEIRS._replace(token="p.other"),
    ],
)
def test_keys_that_differ_in_anything_are_different_destinations(other: DestinationKey) -> None:
    assert other != OURS
    assert len({other, OURS, DestinationKey(*OURS)}) == 2


# Pieces.


def test_a_piece_has_its_own_rows_and_everything_else_of_its_parent() -> None:
    batch = OpenBatch(1.0)
    batch.add(rows(2), 1.0)
    batch.add(rows(3, 4, 5), 2.5)
    batch.link("00-a")
    batch.came_via("b")
    parent = freeze(batch, batch_id="node-7", key=THEIRS, trigger=Trigger.ROWS, now=3.0)
    parent.ambiguous, parent.attempts, parent.payload = True, 3, Payload(b"", None)
    made = piece(parent, ItemBounds(parent.row_counts), batch_id="node-7.1", first=2, end=4, body=b"xxxx\nxxxxx")
    assert (made.id, made.key, made.trigger) == ("node-7.1", THEIRS, Trigger.SPLIT)
    assert (made.bodies, list(made.row_counts), made.row_count, made.size_bytes) == ([b"xxxx\nxxxxx"], [2], 2, 11)
    assert (made.oldest_at, made.youngest_at, made.frozen_at) == (1.0, 2.5, 3.0)
    assert (made.links, made.link_count, made.vias) == (["00-a"], 1, ("b",))
    assert made.ambiguous, "one of its rows may have been taken with the parent"
    assert (made.promised, made.payload, made.attempts, made.span) == (True, None, 0, None)


class Watched(list[Replayed]):
    """Counts how often anything in it is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Replayed]:
        for place in super().__iter__():
            self.looks += 1
            yield place


def test_a_piece_is_made_without_looking_at_every_place_of_its_parent() -> None:
    parent = frozen(opened(*[rows(1)] * 60_000))
    parent.replays = watched = Watched(Replayed(object(), row, 1) for row in range(60_000))
    made = piece(parent, ItemBounds(parent.row_counts), batch_id="x", first=41_000, end=41_003, body=b"x\nx\nx")
    assert made.replays == [Replayed(list.__getitem__(watched, 41_000 + row).letter, row, 1) for row in range(3)]
    assert watched.looks < 100


def test_no_two_pieces_of_a_batch_have_the_same_name() -> None:
    parent = frozen(opened(rows(1, 1)))
    assert [parent.next_piece_id() for _ in range(3)] == ["node-1.1", "node-1.2", "node-1.3"]


@pytest.mark.parametrize(
    ("first", "end", "row_counts"),
    [
        pytest.param(0, 10, [2, 5, 3], id="all"),
        pytest.param(0, 2, [2], id="the first item"),
        pytest.param(2, 7, [5], id="one in the middle"),
        pytest.param(7, 10, [3], id="the last one"),
        pytest.param(0, 7, [2, 5], id="two of them"),
        pytest.param(3, 5, [2], id="inside one"),
        pytest.param(1, 3, [1, 1], id="the end of one and the beginning of the next"),
        pytest.param(1, 9, [1, 5, 2], id="across a whole one"),
        pytest.param(9, 10, [1], id="the last row"),
    ],
)
def test_the_items_of_a_piece_are_known_by_their_rows(first: int, end: int, row_counts: list[int]) -> None:
    assert list(ItemBounds(array("I", [2, 5, 3])).row_counts(first, end)) == row_counts


SHAPES = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(SHAPES, st.data())
def test_the_pieces_of_any_cut_add_up_to_their_parent(shape: list[list[int]], data: st.DataObject) -> None:
    batch = OpenBatch(0.0)
    for lengths in shape:
        kind = data.draw(st.sampled_from(("nobody waits", "somebody waits", "replayed")))
        if kind == "somebody waits":
            ticket = Ticket(lambda outcome: None, len(lengths), contact_only=False)
            batch.tickets.append(Place(ticket, batch.row_count, len(lengths)))
        elif kind == "replayed":
            batch.replays.append(Replayed(object(), batch.row_count, len(lengths)))
        batch.add(rows(*lengths), 0.0)
    parent = frozen(batch)
    bounds, lines = ItemBounds(parent.row_counts), b"\n".join(parent.bodies).split(b"\n")
    inner = data.draw(st.sets(st.integers(1, parent.row_count - 1))) if parent.row_count > 1 else set()
    cuts = [0, *sorted(inner), parent.row_count]
    pieces = [
        piece(parent, bounds, batch_id="x", first=first, end=end, body=b"\n".join(lines[first:end]))
        for first, end in pairwise(cuts)
    ]
    assert sum(made.row_count for made in pieces) == parent.row_count
    assert sum(made.size_bytes for made in pieces) == parent.size_bytes
    assert b"\n".join(body for made in pieces for body in made.bodies) == b"\n".join(lines)
    for made in pieces:
        assert sum(made.row_counts) == made.row_count == made.bodies[0].count(b"\n") + 1
        assert all(count > 0 for count in made.row_counts)
        for _, begin, row_count in [*made.tickets, *made.replays]:
            assert 0 <= begin < begin + row_count <= made.row_count
    ends = {first + end for first, made in zip(cuts, pieces, strict=False) for end in accumulate(made.row_counts)}
    assert ends == {*accumulate(parent.row_counts), *cuts[1:]}
    assert sorted(row for first, made in zip(cuts, pieces, strict=False) for row in whose_rows(made, first)) == sorted(
        whose_rows(parent, 0)
    )


def whose_rows(batch: FrozenBatch, first: int) -> list[tuple[int, int]]:
    """Each row of the parent that somebody waits for or that was replayed, and whose it is."""
    places: list[tuple[object, int, int]] = [*batch.tickets, *batch.replays]
    return [(first + begin + row, id(whose)) for whose, begin, row_count in places for row in range(row_count)]
