"""The batches of one destination: what is frozen when, where each batch is, and that no row is lost on the way."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.batch import (
    MAX_LINKS,
    BatchLimits,
    DestinationKey,
    FrozenBatch,
    ItemBounds,
    Payload,
    Replayed,
    Trigger,
    piece,
)
from tinybird_proxy.dead_letter import DeadLetter
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.split import Split
from tinybird_proxy.ledger import Ledger, LetterReason
from tinybird_proxy.rows import Rows
from tinybird_proxy.testing.pipelines import numbered
from tinybird_proxy.ticket import Confirmed, Outcome, Place, Ticket
from tinybird_proxy.verdict import Rejected

KEY = DestinationKey("/v0/events", "hits", (), None)


def make_queue(*, max_rows: int = 1000, max_bytes: int = 100_000, flush_interval_s: float = 1.0) -> BatchQueue:
    ids = itertools.count(1)
    limits = BatchLimits(max_rows=max_rows, max_bytes=max_bytes, flush_interval_s=flush_interval_s)
    return BatchQueue(KEY, limits, lambda: f"b{next(ids)}")


def make_ticket(row_count: int = 1) -> Ticket:
    return Ticket(lambda outcome: None, row_count, contact_only=False)


def add(queue: BatchQueue, rows: Rows, *, now: float = 0.0, ticket: Ticket | None = None) -> bool:
    return queue.add(rows, now, ticket, None, None)


def shapes(queue: BatchQueue) -> list[tuple[list[int], Trigger]]:
    """The numbers in each waiting batch, and why it was frozen."""
    return [(numbers_in(batch), batch.trigger) for batch in queue.waiting]


def numbers_in(batch: FrozenBatch) -> list[int]:
    return [json.loads(line)["n"] for line in b"\n".join(batch.bodies).split(b"\n")]


def test_an_item_that_opens_a_batch_is_news_and_the_next_one_is_not() -> None:
    queue = make_queue()
    assert add(queue, numbered([1]))
    assert not add(queue, numbered([2]))


def test_an_open_batch_is_due_one_flush_interval_after_its_first_item() -> None:
    queue = make_queue(flush_interval_s=2.0)
    add(queue, numbered([1]), now=10.0)
    add(queue, numbered([2]), now=11.9)
    assert queue.due_at() == 12.0
    assert queue.next_due(11.99, Trigger.INTERVAL) is None
    batch = queue.next_due(12.0, Trigger.INTERVAL)
    assert batch is not None
    assert (batch.trigger, batch.oldest_at, batch.youngest_at, batch.frozen_at) == (Trigger.INTERVAL, 10.0, 11.9, 12.0)
    assert queue.next_due(12.0, Trigger.INTERVAL) is batch


def test_a_batch_that_needs_no_company_is_due_when_it_is_opened_and_the_next_one_is_not_when_it_does_again() -> None:
    queue = make_queue(flush_interval_s=3600.0)
    add(queue, numbered([1]), now=10.0)
    queue.flush_at_once = True
    assert queue.due_at() == 10.0
    assert queue.next_due(10.0, Trigger.DRAIN) is not None
    queue.flush_at_once = False
    add(queue, numbered([2]), now=11.0)
    assert queue.due_at() == 3611.0
    assert shapes(queue) == [([1], Trigger.DRAIN)]


def test_a_batch_that_waits_leaves_before_the_open_one_is_looked_at() -> None:
    queue = make_queue(max_rows=2)
    add(queue, numbered([1, 2]))
    add(queue, numbered([3]))
    first = queue.next_due(100.0, Trigger.INTERVAL)
    assert first is not None
    assert numbers_in(first) == [1, 2]
    assert queue.open is not None


def test_a_batch_is_frozen_before_an_item_that_would_exceed_its_rows() -> None:
    queue = make_queue(max_rows=4)
    add(queue, numbered([1, 2, 3]))
    assert add(queue, numbered([4, 5]))
    assert shapes(queue) == [([1, 2, 3], Trigger.ROWS)]
    assert queue.open is not None
    assert queue.open.row_count == 2


def test_a_batch_is_frozen_before_an_item_that_would_exceed_its_bytes() -> None:
    row = len(numbered([1]).body)
    queue = make_queue(max_bytes=3 * row + 1)  # two rows and a line feed fit, three rows need two
    add(queue, numbered([1]))
    add(queue, numbered([2]))
    assert add(queue, numbered([3]))
    assert shapes(queue) == [([1, 2], Trigger.BYTES)]


def test_a_batch_may_hold_exactly_the_bytes_allowed() -> None:
    row = len(numbered([1]).body)
    queue = make_queue(max_bytes=2 * row + 1)
    add(queue, numbered([1]))
    add(queue, numbered([2]))
    assert shapes(queue) == [([1, 2], Trigger.BYTES)]
    assert len(b"\n".join(queue.waiting[0].bodies)) == 2 * row + 1


def test_a_batch_with_exactly_its_rows_is_frozen_at_once_and_that_is_news() -> None:
    queue = make_queue(max_rows=3)
    add(queue, numbered([1]))
    assert add(queue, numbered([2, 3]))
    assert shapes(queue) == [([1, 2, 3], Trigger.ROWS)]
    assert queue.open is None


def test_an_item_with_more_rows_than_a_batch_is_split_at_rows() -> None:
    queue = make_queue(max_rows=2)
    ticket = make_ticket(5)
    add(queue, numbered([1, 2, 3, 4, 5]), ticket=ticket)
    assert shapes(queue) == [([1, 2], Trigger.ROWS), ([3, 4], Trigger.ROWS)]
    assert queue.open is not None
    assert queue.open.row_count == 1
    assert [place for batch in queue.waiting for place in batch.tickets] + queue.open.tickets == [
        Place(ticket, 0, 2),
        Place(ticket, 0, 2),
        Place(ticket, 0, 1),
    ]


def test_who_waits_is_known_with_the_place_of_its_rows_in_the_batch() -> None:
    queue = make_queue()
    first, last = make_ticket(2), make_ticket(3)
    add(queue, numbered([1, 2]), ticket=first)
    add(queue, numbered([3]))
    add(queue, numbered([4, 5, 6]), ticket=last)
    assert queue.open is not None
    assert queue.open.tickets == [Place(first, 0, 2), Place(last, 3, 3)]


def test_a_split_item_does_not_join_a_batch_that_it_would_exceed() -> None:
    queue = make_queue(max_rows=2)
    add(queue, numbered([0]))
    add(queue, numbered([1, 2, 3]))
    assert [numbers for numbers, _ in shapes(queue)] == [[0], [1, 2]]


def test_a_single_row_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    queue = make_queue(max_bytes=200)
    small, large = numbered([1]), numbered([2], padding=500)
    add(queue, small)
    add(queue, large)
    add(queue, numbered([3]))
    assert [numbers for numbers, _ in shapes(queue)] == [[1], [2]]


def test_a_row_larger_than_a_batch_inside_an_item_is_a_batch_of_its_own() -> None:
    queue = make_queue(max_bytes=200)
    parts = [numbered([1]), numbered([2], padding=500), numbered([3])]
    add(queue, Rows(b"\n".join(part.body for part in parts), 3))
    assert [numbers for numbers, _ in shapes(queue)] == [[1], [2]]
    assert queue.open is not None
    assert queue.open.row_count == 1


def test_a_first_contact_is_frozen_at_once_apart_and_not_promised() -> None:
    queue = make_queue(max_rows=2)
    ticket = make_ticket(3)
    queue.add_apart(numbered([1, 2, 3]), 5.0, ticket, None, None)
    assert shapes(queue) == [([1, 2], Trigger.FIRST_CONTACT), ([3], Trigger.FIRST_CONTACT)]
    assert [batch.promised for batch in queue.waiting] == [False, False]
    assert [batch.tickets for batch in queue.waiting] == [[Place(ticket, 0, 2)], [Place(ticket, 0, 1)]]
    assert (queue.promised_rows(), queue.held()[0]) == (0, 3)
    assert queue.tickets() == []


def test_a_batch_that_comes_back_stands_before_the_younger_ones() -> None:
    queue = make_queue(max_rows=1)
    for number in (1, 2, 3):
        add(queue, numbered([number]), now=float(number))
    first, second, third = queue.waiting
    queue.begin(first)
    queue.begin(second)
    queue.put_back(second)
    queue.put_back(first)
    assert queue.waiting == [first, second, third]


def test_a_batch_that_comes_back_stands_before_others_frozen_at_the_same_time() -> None:
    queue = make_queue(max_rows=2)
    add(queue, numbered(range(6)))  # an item cut in three
    first = queue.waiting[0]
    queue.begin(first)
    queue.put_back(first)
    assert queue.next_due(0.0, Trigger.INTERVAL) is first


def test_a_batch_is_put_back_only_once() -> None:
    queue = make_queue(max_rows=1)
    add(queue, numbered([1]))
    batch = queue.waiting[0]
    queue.begin(batch)
    queue.put_back(batch)
    queue.put_back(batch)
    assert queue.waiting == [batch]


def test_a_batch_leaves_from_wherever_it_is() -> None:
    queue = make_queue(max_rows=1)
    add(queue, numbered([1]))
    add(queue, numbered([2]))
    first, second = queue.waiting
    queue.begin(first)
    queue.take_out(first)
    queue.take_out(second)
    assert queue.empty


def test_fresh_batches_are_told_once() -> None:
    queue = make_queue(max_rows=1)
    add(queue, numbered([1]))
    fresh = queue.take_fresh()
    assert fresh == queue.waiting
    assert queue.take_fresh() == []


def test_memory_counts_the_payload_of_a_batch_once_it_is_made() -> None:
    queue = make_queue(max_rows=2)
    add(queue, numbered([1, 2]))
    add(queue, numbered([3]))
    batch = queue.waiting[0]
    raw = queue.held()[1]
    assert queue.memory_bytes() == raw == batch.size_bytes + len(numbered([3]).body) + 1
    batch.payload, batch.bodies = Payload(b"tiny", "gzip"), []
    assert queue.memory_bytes() == 4 + len(numbered([3]).body) + 1
    assert queue.held()[1] == raw


def test_the_oldest_row_may_be_in_any_place() -> None:
    queue = make_queue(max_rows=1)
    assert queue.oldest_at() is None
    add(queue, numbered([1]), now=1.0)
    add(queue, numbered([2]), now=2.0)
    queue.begin(queue.waiting[0])
    assert queue.oldest_at() == 1.0
    queue.take_out(queue.in_flight["b1"])
    assert queue.oldest_at() == 2.0


def test_those_who_wait_are_found_unless_their_batch_is_in_flight() -> None:
    queue = make_queue(max_rows=2)
    flying, waiting, gathering = make_ticket(), make_ticket(), make_ticket()
    add(queue, numbered([1, 2]), ticket=flying)
    add(queue, numbered([3, 4]), ticket=waiting)
    add(queue, numbered([5]), ticket=gathering)
    queue.begin(queue.waiting[0])
    assert queue.tickets() == [waiting, gathering]


# Batches that are split, and replays.


def piece_of(split: Split, first: int, end: int) -> FrozenBatch:
    """Rows ``first`` to ``end`` of a batch that is being split, as a piece."""
    lines = b"\n".join(split.batch.bodies).split(b"\n")
    body = b"\n".join(lines[first:end])
    split.piece = made = split.cut_off(first, end, body)
    return made


def begin_split(queue: BatchQueue) -> Split:
    """The first batch that waits is sent, refused and split."""
    batch = queue.waiting[0]
    queue.begin(batch)
    split = Split(batch, Rejected(400, "no", "no (400)"))
    queue.begin_split(split)
    return split


def places(queue: BatchQueue) -> tuple[int, int, int]:
    """How many batches wait, are in flight, and are being split."""
    return len(queue.waiting), len(queue.in_flight), len(queue.splits)


def test_a_batch_that_is_split_is_still_held_and_counted() -> None:
    queue = make_queue(max_rows=4)
    add(queue, numbered(range(4)), now=1.0)
    add(queue, numbered(range(4)), now=2.0)
    before = queue.held(), queue.promised_rows(), queue.memory_bytes(), queue.oldest_at()
    begin_split(queue)
    assert places(queue) == (1, 0, 1)
    assert (queue.held(), queue.promised_rows(), queue.memory_bytes(), queue.oldest_at()) == before
    assert not queue.empty
    assert len(queue.frozen()) == 1


def test_a_piece_in_flight_is_counted_with_its_split_and_leaves_it_when_it_is_taken_out() -> None:
    queue = make_queue(max_rows=4)
    add(queue, numbered(range(4)))
    held = queue.held()
    split = begin_split(queue)
    left = piece_of(split, 0, 1)
    queue.begin(left)
    assert places(queue) == (0, 1, 1)
    assert (queue.held(), queue.promised_rows(), queue.frozen()) == (held, 4, [])
    queue.take_out(left)
    assert places(queue) == (0, 0, 1)
    assert (queue.held(), queue.promised_rows()) == ((3, held[1] - left.size_bytes), 3)
    queue.take_out(piece_of(split, 1, 4))  # never in flight: given up on
    assert queue.held() == (0, 0)
    assert not queue.empty
    queue.end_split(split, whole=False)
    assert queue.empty


def test_a_piece_that_comes_back_waits_in_its_split_and_not_with_the_batches() -> None:
    queue = make_queue(max_rows=4)
    add(queue, numbered(range(4)))
    split = begin_split(queue)
    left = piece_of(split, 0, 2)
    queue.begin(left)
    queue.put_back(left)
    queue.put_back(left)
    assert places(queue) == (0, 0, 1)
    assert split.piece is left
    assert queue.promised_rows() == 4


def test_a_batch_of_which_nothing_was_accepted_waits_again_as_the_oldest() -> None:
    queue = make_queue(max_rows=1)
    for number in range(3):
        add(queue, numbered([number]), now=float(number))
    batches = list(queue.waiting)
    held = queue.held()
    split = begin_split(queue)
    queue.end_split(split, whole=True)
    assert queue.waiting == batches
    assert (queue.held(), queue.splits) == (held, [])


def test_a_batch_that_is_moved_back_lets_everything_go_first_that_is_here() -> None:
    queue = make_queue(max_rows=2)
    for number in range(3):
        add(queue, numbered([number, number]), now=float(number))
    first, second, third = queue.waiting
    add(queue, numbered([3]), now=3.0)
    queue.move_back(first, 4.0)
    fourth = queue.waiting[2]
    assert (queue.waiting, queue.open) == ([second, third, fourth, first], None)
    assert numbers_in(fourth) == [3]
    for batch in (second, fourth):
        queue.begin(batch)
        queue.put_back(batch)
    assert queue.waiting == [second, third, fourth, first]
    add(queue, numbered([4, 4]), now=5.0)
    assert [numbers_in(batch) for batch in queue.waiting[-2:]] == [[0, 0], [4, 4]]


def test_a_search_in_replayed_rows_waits_for_those_in_fresh_ones() -> None:
    queue = make_queue(max_rows=4)
    for start in (0, 4):
        queue.add_replay([(numbered(range(start, start + 4)), make_letter(4))], 1.0)
    replays = [begin_split(queue), begin_split(queue)]
    fresh = []
    for now in (2.0, 3.0):
        add(queue, numbered(range(4)), now=now)
        fresh.append(begin_split(queue))
    assert queue.splits == [*fresh, *replays]


def test_who_waits_for_a_batch_that_is_split_is_found() -> None:
    queue = make_queue(max_rows=4)
    ticket = make_ticket(4)
    add(queue, numbered(range(4)), ticket=ticket)
    begin_split(queue)
    assert queue.tickets() == [ticket]


def test_the_parts_of_a_batch_wait_in_its_place_and_are_fresh() -> None:
    queue = make_queue(max_rows=4)
    for number in range(3):
        add(queue, numbered(range(4)), now=float(number))
    first, second, third = queue.waiting
    queue.take_fresh()
    held = queue.held()
    queue.begin(second)
    bounds, lines = ItemBounds(second.row_counts), second.bodies[0].split(b"\n")
    parts = [
        piece(second, bounds, batch_id=f"b.{end}", first=begin, end=end, body=b"\n".join(lines[begin:end]))
        for begin, end in ((0, 1), (1, 4))
    ]
    queue.replace(second, parts)
    assert queue.waiting == [first, *parts, third]
    assert queue.take_fresh() == parts
    assert (queue.held(), queue.promised_rows(), queue.in_flight) == (held, 12, {})


def test_a_replay_is_a_batch_of_its_own_that_does_not_close_the_open_one() -> None:
    queue = make_queue()
    add(queue, numbered([1]))
    letters = [make_letter(2), make_letter(1)]
    batch = queue.add_replay([(numbered([7, 8]), letters[0]), (numbered([9]), letters[1])], 5.0)
    assert shapes(queue) == [([7, 8, 9], Trigger.REPLAY)]
    assert batch.replays == [Replayed(letters[0], 0, 2), Replayed(letters[1], 2, 1)]
    assert (batch.oldest_at, batch.tickets, batch.promised) == (5.0, [], True)
    assert queue.take_fresh() == [batch]
    assert queue.open is not None
    assert (queue.open.row_count, queue.promised_rows()) == (1, 4)


def make_letter(row_count: int) -> DeadLetter:
    return DeadLetter(
        id="b0",
        key=KEY,
        ledger=Ledger(),
        payload=Payload(b"", None),
        row_count=row_count,
        raw_bytes=1,
        reason=LetterReason.REJECTED,
        status=400,
        message="",
        batch_id="b0",
        first_at=0.0,
        last_at=0.0,
    )


def test_links_are_kept_up_to_a_bound_and_all_counted() -> None:
    queue = make_queue()
    for number in range(MAX_LINKS + 5):
        queue.add(numbered([number]), 0.0, None, f"00-{number:032x}-{number:016x}-01", "one-1, two-2")
    batch = queue.freeze_open(Trigger.DRAIN, 1.0)
    assert (len(batch.links), batch.link_count) == (MAX_LINKS, MAX_LINKS + 5)
    assert batch.vias == ("one-1", "two-2")


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(9, 60)), max_size=30)


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, max_rows=st.integers(1, 8), max_bytes=st.integers(20, 200))
def test_whatever_comes_no_row_is_lost_or_moved_and_no_batch_is_too_large(
    sizes: list[tuple[int, int]], max_rows: int, max_bytes: int
) -> None:
    queue = make_queue(max_rows=max_rows, max_bytes=max_bytes)
    numbers = itertools.count()
    held_bytes = expected = 0
    tickets: dict[Ticket, int] = {}
    for row_count, padding in sizes:
        rows = numbered(itertools.islice(numbers, row_count), padding=padding)
        ticket = make_ticket(row_count)
        tickets[ticket] = row_count
        add(queue, rows, ticket=ticket)
        expected += row_count
        held_bytes += len(rows.body) + 1
        assert queue.held() == (expected, held_bytes)
        assert queue.promised_rows() == expected
    if queue.open is not None:
        queue.freeze_open(Trigger.DRAIN, 0.0)
    assert [number for batch in queue.waiting for number in numbers_in(batch)] == list(range(expected))
    for batch in queue.waiting:
        assert batch.row_count == len(numbers_in(batch)) <= max_rows
        assert batch.size_bytes - 1 == len(b"\n".join(batch.bodies))
        assert batch.size_bytes - 1 <= max_bytes or batch.row_count == 1
    found: Counter[Ticket] = Counter()
    for batch in queue.waiting:
        assert all(place.first + place.row_count <= batch.row_count for place in batch.tickets)
        for ticket, _, count in batch.tickets:
            found[ticket] += count
    assert found == tickets


@pytest.mark.parametrize("parts", [1, 4])
def test_a_ticket_hears_of_a_split_item_when_its_last_part_settles(parts: int) -> None:
    heard: list[Outcome] = []
    queue = make_queue(max_rows=2)
    ticket = Ticket(heard.append, 2 * parts, contact_only=False)
    add(queue, numbered(range(2 * parts)), ticket=ticket)
    for index, batch in enumerate(queue.waiting):
        assert heard == []
        for mine, _, row_count in batch.tickets:
            mine.rows_settled(row_count, batch.row_count, int(index == 0))
    assert heard == [Confirmed(2 * parts - 1, 1)]
