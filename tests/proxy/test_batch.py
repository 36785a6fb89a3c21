"""What leaves together: the limits of an open batch, what freezing keeps, and what a batch never shows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.batch import (
    MAX_LINKS,
    MAX_VIAS,
    BatchLimits,
    DestinationKey,
    FrozenBatch,
    OpenBatch,
    Payload,
    Replayed,
    Trigger,
    freeze,
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
