"""A refused batch on its way through a search: its pieces, who is given up on with which words, and what is left."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy import codec
from tinybird_proxy.batch import DestinationKey, FrozenBatch, OpenBatch, Replayed, Trigger, freeze
from tinybird_proxy.bisect import BUDGET, Ended
from tinybird_proxy.destination.split import Split
from tinybird_proxy.ledger import LetterReason
from tinybird_proxy.rows import Rows
from tinybird_proxy.testing.pipelines import numbered
from tinybird_proxy.verdict import Rejected

KEY = DestinationKey("/v0/events", "hits", (), None)
FIRST = Rejected(400, "first", "Tinybird says the request is not valid (400: first)")
LATER = Rejected(400, "later", "Tinybird says the request is not valid (400: later)")
TOO_LARGE = Rejected(413, "large", "Tinybird says the request is too large (413: large)")


def make_batch(*items: Rows, replayed: bool = False) -> FrozenBatch:
    batch = OpenBatch(0.0)
    for item in items:
        if replayed:
            batch.replays.append(Replayed(object(), batch.row_count, item.row_count))
        batch.add(item, 0.0)
    frozen = freeze(batch, batch_id="b7", key=KEY, trigger=Trigger.ROWS, now=1.0)
    frozen.payload = codec.compress(frozen.bodies, "gzip")
    frozen.bodies = []
    return frozen


def single_rows(count: int) -> list[Rows]:
    return [numbered([number]) for number in range(count)]


def cut(split: Split) -> FrozenBatch:
    """Make the piece that is to be asked about, as the destination does."""
    asking, payload = split.bisection.asking, split.batch.payload
    assert asking is not None
    assert payload is not None
    (body,) = codec.rows_of(payload, [asking])
    split.piece = made = split.cut_off(asking.first, asking.end, body)
    return made


def answer(split: Split, *, taken: bool, refusal: Rejected = LATER) -> FrozenBatch:
    """Cut a piece and answer for it."""
    asked = cut(split)
    if taken:
        split.left(asked.row_count, asked.size_bytes)
        split.accepted()
    else:
        split.refused(refusal)
    return asked


def answers(split: Split, said: Iterable[bool]) -> list[FrozenBatch]:
    return [answer(split, taken=taken) for taken in said]


def test_a_split_begins_with_all_of_its_batch_and_what_was_said_of_it() -> None:
    batch = make_batch(*single_rows(8))
    split = Split(batch, FIRST)
    assert (split.rows_left, split.bytes_left) == (8, batch.size_bytes)
    assert (split.refusal, split.piece, split.busy, split.ambiguous, split.ended_by) == (
        FIRST,
        None,
        False,
        False,
        None,
    )


def test_pieces_are_named_after_their_parent_in_the_order_in_which_they_are_made() -> None:
    split = Split(make_batch(*single_rows(8)), FIRST)
    made = answers(split, (False, True, True))
    assert [(asked.id, asked.row_count) for asked in made] == [("b7.1", 4), ("b7.2", 4), ("b7.3", 2)]
    assert split.batch.next_piece_id() == "b7.4"


def test_an_answered_piece_is_nobodys_any_more() -> None:
    split = Split(make_batch(*single_rows(8)), FIRST)
    for taken in (True, False, True):
        answer(split, taken=taken)
        assert split.piece is None


def test_a_condemned_row_is_given_up_on_as_the_piece_it_was_asked_in_with_what_was_said_then() -> None:
    split = Split(make_batch(*single_rows(4)), FIRST)
    answers(split, (True,))
    assert split.take_condemned() == []
    row = answer(split, taken=False, refusal=TOO_LARGE)
    assert split.refusal is TOO_LARGE
    answer(split, taken=True)
    assert split.take_condemned() == [(row, TOO_LARGE)]
    assert row.bodies == [numbered([2]).body]
    assert split.take_condemned() == []
    assert (split.bisection.ended, split.rows_left) == (Ended.DECIDED, 1)
    split.left(row.row_count, row.size_bytes)
    assert (split.rows_left, split.bytes_left) == (0, 0)


def test_nothing_is_condemned_until_something_was_accepted() -> None:
    split = Split(make_batch(*single_rows(16)), FIRST)
    asked = answers(split, [False] * 8)
    assert split.bisection.ended is Ended.NOTHING_ACCEPTED
    assert {row.row_count for row in asked} == {8, 4, 2, 1}
    assert split.take_condemned() == []
    assert (split.rows_left, split.bytes_left) == (16, split.batch.size_bytes)


def test_the_rows_of_a_small_batch_are_condemned_although_none_was_accepted() -> None:
    split = Split(make_batch(*single_rows(2)), FIRST)
    rows = answers(split, (False, False))
    assert split.bisection.ended is Ended.SMALL_AND_REFUSED
    assert split.take_condemned() == [(row, LATER) for row in rows]


def test_a_batch_of_one_row_is_decided_before_anything_is_asked() -> None:
    split = Split(make_batch(numbered([1])), FIRST)
    assert (split.bisection.ended, split.bisection.asking, split.refusal) == (Ended.SMALL_AND_REFUSED, None, FIRST)


@pytest.mark.parametrize("taken", [True, False])
def test_a_piece_whose_outcome_was_unknown_once_leaves_a_doubt_only_if_it_was_refused_later(taken: bool) -> None:
    split = Split(make_batch(*single_rows(8)), FIRST)
    asked = cut(split)
    asked.ambiguous = True
    if taken:
        split.accepted()
    else:
        split.refused(LATER)
    assert split.ambiguous is not taken
    answer(split, taken=True)
    assert split.ambiguous is not taken


def test_a_split_that_is_stopped_remembers_why_and_leaves_the_rest_undecided() -> None:
    split = Split(make_batch(*single_rows(8)), FIRST)
    answers(split, (True,))
    cut(split)
    split.stop(LetterReason.EXPIRED, "older than MAX_AGE", None)
    assert (split.piece, split.bisection.ended) == (None, Ended.STOPPED)
    assert split.ended_by == (LetterReason.EXPIRED, "older than MAX_AGE", None)
    assert [tuple(left) for left in split.bisection.undecided()] == [(4, 6), (6, 8)]
    assert split.rows_left == 4


def test_a_split_that_is_stopped_while_the_outcome_of_its_piece_is_unknown_leaves_a_doubt() -> None:
    split = Split(make_batch(*single_rows(8)), FIRST)
    cut(split).ambiguous = True
    split.stop(LetterReason.EXPIRED, "older than MAX_AGE", None)
    assert split.ambiguous


@pytest.mark.parametrize(("replayed", "ended"), [(True, Ended.DECIDED), (False, Ended.OUT_OF_BUDGET)])
def test_only_the_search_in_replayed_rows_goes_on_beyond_the_budget(replayed: bool, ended: Ended) -> None:
    split = Split(make_batch(numbered(range(2 * BUDGET)), replayed=replayed), FIRST)
    while (asking := split.bisection.asking) is not None:
        answer(split, taken=asking.end <= BUDGET)  # the second half is bad to the last row
    assert split.bisection.ended is ended
    assert (split.bisection.requests > BUDGET) is replayed
    assert split.rows_left == BUDGET


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.lists(st.booleans(), max_size=60),
    st.booleans(),
)
def test_what_is_left_is_what_was_neither_taken_nor_given_up_on(
    item_rows: list[int], said: list[bool], stopped: bool
) -> None:
    numbers = itertools.count()
    items = [numbered(itertools.islice(numbers, count)) for count in item_rows]
    split = Split(make_batch(*items), FIRST)
    for taken in said:
        if split.bisection.ended is not None:
            break
        answer(split, taken=taken)
        if sum(item_rows) > 1:
            for row, refusal in split.take_condemned():
                assert (row.row_count, refusal) == (1, LATER)
                split.left(row.row_count, row.size_bytes)
        undecided = split.bisection.undecided()
        assert split.rows_left == sum(left.row_count for left in undecided)
        assert split.batch.payload is not None
        assert split.bytes_left == sum(len(body) + 1 for body in codec.rows_of(split.batch.payload, undecided))
    if stopped:
        split.stop(LetterReason.EXPIRED, "too old", None)
        assert split.bisection.asking is None
