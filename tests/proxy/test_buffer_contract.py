"""What every buffer keeps to; each implementation is run through all of it."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.admission import Occupancy
from tinybird_proxy.batch import DestinationKey, FrozenBatch, ItemBounds, OpenBatch, Trigger, freeze, piece
from tinybird_proxy.buffer import Buffer, MemoryBuffer
from tinybird_proxy.rows import Rows
from tinybird_proxy.testing.pipelines import numbered

KEY = DestinationKey("/v0/events", "hits", (), None)
THEIRS = DestinationKey("/v0/events", "hits", (), "p.client")
BUFFERS: list[Callable[[], Buffer]] = [MemoryBuffer]
each_buffer = pytest.mark.parametrize("make_buffer", BUFFERS)
ids = (f"b{number}" for number in itertools.count())


def batch_of(*items: Rows, key: DestinationKey = KEY) -> FrozenBatch:
    batch = OpenBatch(0.0)
    for item in items:
        batch.add(item, 0.0)
    return freeze(batch, batch_id=next(ids), key=key, trigger=Trigger.INTERVAL, now=1.0)


def hold(buffer: Buffer, *items: Rows, key: DestinationKey = KEY, unconfirmed: bool = False) -> FrozenBatch:
    """Take ``items`` in and freeze them."""
    for item in items:
        buffer.hold(key, item, unconfirmed=unconfirmed)
    batch = batch_of(*items, key=key)
    buffer.freeze(batch)
    return batch


@each_buffer
def test_a_new_buffer_is_empty_and_says_what_its_promise_is(make_buffer: Callable[[], Buffer]) -> None:
    buffer = make_buffer()
    assert buffer.occupancy == Occupancy()
    assert buffer.ack in ("memory", "disk")


@each_buffer
async def test_an_item_counts_from_being_held_until_its_batch_is_released(make_buffer: Callable[[], Buffer]) -> None:
    buffer, items = make_buffer(), (numbered([1, 2]), numbered([3]))
    size_bytes = sum(len(item.body) + 1 for item in items)
    batch = hold(buffer, *items)
    assert buffer.occupancy == Occupancy(3, size_bytes)
    await buffer.commit()
    await buffer.record_outcome(batch)
    assert buffer.occupancy == Occupancy(3, size_bytes)
    buffer.release(batch, unconfirmed=False)
    assert buffer.occupancy == Occupancy()


@each_buffer
def test_unconfirmed_rows_count_twice_in_all_and_in_their_share(make_buffer: Callable[[], Buffer]) -> None:
    buffer = make_buffer()
    mine, theirs = hold(buffer, numbered([1])), hold(buffer, numbered([2, 3]), key=THEIRS, unconfirmed=True)
    both = mine.size_bytes + theirs.size_bytes
    assert buffer.occupancy == Occupancy(3, both, 2, theirs.size_bytes)
    buffer.release(theirs, unconfirmed=True)
    assert buffer.occupancy == Occupancy(1, mine.size_bytes)


@each_buffer
def test_what_a_confirmed_destination_holds_leaves_the_unconfirmed_share_and_stays_held(
    make_buffer: Callable[[], Buffer],
) -> None:
    buffer = make_buffer()
    first, second = (hold(buffer, numbered([number]), key=THEIRS, unconfirmed=True) for number in (1, 2))
    buffer.release(first, unconfirmed=True)
    buffer.confirm(second.row_count, second.size_bytes)
    assert buffer.occupancy == Occupancy(1, second.size_bytes)
    buffer.release(second, unconfirmed=False)
    assert buffer.occupancy == Occupancy()


@each_buffer
async def test_commit_returns_with_nothing_held(make_buffer: Callable[[], Buffer]) -> None:
    await make_buffer().commit()


@each_buffer
def test_a_first_contact_may_be_released_before_any_outcome(make_buffer: Callable[[], Buffer]) -> None:
    buffer = make_buffer()
    buffer.release(hold(buffer, numbered([1]), key=THEIRS, unconfirmed=True), unconfirmed=True)
    assert buffer.occupancy == Occupancy()


@each_buffer
def test_a_batch_may_leave_in_pieces_and_counts_until_the_last_one_is_released(
    make_buffer: Callable[[], Buffer],
) -> None:
    buffer = make_buffer()
    other = hold(buffer, numbered([1]))
    batch = hold(buffer, numbered([2, 3]), numbered([4]))
    bounds, lines = ItemBounds(batch.row_counts), b"\n".join(batch.bodies).split(b"\n")
    pieces = [piece(batch, bounds, batch_id=f"p{n}", first=n, end=n + 1, body=line) for n, line in enumerate(lines)]
    left = batch.size_bytes
    for count, part in enumerate(pieces, 1):
        buffer.release(part, unconfirmed=False)
        left -= part.size_bytes
        assert buffer.occupancy == Occupancy(1 + 3 - count, other.size_bytes + left)
    assert buffer.occupancy == Occupancy(1, other.size_bytes)


@each_buffer
@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans()), max_size=12))
def test_the_occupancy_is_what_is_held_in_any_order_of_releases(
    make_buffer: Callable[[], Buffer], batches: list[tuple[list[int], bool]]
) -> None:
    buffer = make_buffer()
    held = []
    for row_counts, unconfirmed in batches:
        items = [numbered(range(count)) for count in row_counts]
        key = THEIRS if unconfirmed else KEY
        held.append((hold(buffer, *items, key=key, unconfirmed=unconfirmed), unconfirmed))
    held.sort(key=lambda pair: pair[0].size_bytes)
    while held:
        rows = sum(batch.row_count for batch, _ in held)
        size_bytes = sum(batch.size_bytes for batch, _ in held)
        shared = [batch for batch, unconfirmed in held if unconfirmed]
        share_bytes = sum(batch.size_bytes for batch in shared)
        assert buffer.occupancy == Occupancy(rows, size_bytes, sum(batch.row_count for batch in shared), share_bytes)
        batch, unconfirmed = held.pop()
        buffer.release(batch, unconfirmed=unconfirmed)
    assert buffer.occupancy == Occupancy()
