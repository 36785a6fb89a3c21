"""What a waiting client hears, and that it hears it once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.ticket import Buffered, Confirmed, Dropped, NotTaken, Outcome, Ticket


def ticket(*, parts: int | None = None) -> tuple[Ticket, list[Outcome]]:
    """A ticket for an item in so many batches (one, if nobody says so), and what was told with it so far."""
    told: list[Outcome] = []
    made = Ticket(told.append, contact_only=False)
    if parts is not None:
        made.parts = parts
    return made, told


@pytest.mark.parametrize(
    ("rows", "batch_rows", "batch_quarantined", "outcome"),
    [
        pytest.param(3, 10, 0, Confirmed(3, 0), id="nothing in the batch was quarantined"),
        pytest.param(3, 3, 2, Confirmed(1, 2), id="the item was alone in its batch: exact"),
        pytest.param(3, 10, 10, Confirmed(0, 3), id="everything was quarantined: exact"),
        pytest.param(3, 10, 2, Confirmed(1, 2, 10, 2), id="fewer quarantined than the item has rows"),
        pytest.param(3, 10, 3, Confirmed(0, 3, 10, 3), id="as many"),
        pytest.param(3, 10, 9, Confirmed(0, 3, 10, 9), id="more: it cannot be more than all of the item's"),
    ],
)
def test_one_batch_answers_for_an_item(rows: int, batch_rows: int, batch_quarantined: int, outcome: Outcome) -> None:
    mine, told = ticket()
    assert mine.open
    mine.part_settled(rows, batch_rows, batch_quarantined)
    assert told == [outcome]
    assert not mine.open


def test_a_split_item_is_answered_when_its_last_part_settles() -> None:
    mine, told = ticket(parts=3)
    mine.part_settled(100, 100, 0)
    mine.part_settled(100, 100, 7)
    assert told == []
    assert mine.open
    mine.part_settled(20, 20, 0)
    assert told == [Confirmed(213, 7)]


def test_only_the_batches_that_cannot_be_told_apart_are_named_in_a_split_items_answer() -> None:
    mine, told = ticket(parts=4)
    mine.part_settled(100, 100, 5)  # its own
    mine.part_settled(10, 50, 4)  # shared
    mine.part_settled(10, 60, 0)  # shared, nothing quarantined
    mine.part_settled(10, 70, 3)  # shared
    assert told == [Confirmed(95 + 6 + 10 + 7, 5 + 4 + 0 + 3, batch_rows=120, batch_quarantined=7)]


@pytest.mark.parametrize(
    "first", [Buffered(), Dropped(), NotTaken(403, "no"), Confirmed(1, 0)], ids=lambda o: type(o).__name__
)
def test_the_first_outcome_wins_and_the_client_hears_nothing_more(first: Outcome) -> None:
    mine, told = ticket()
    mine.resolve(first)
    mine.resolve(Buffered())
    mine.part_settled(1, 1, 0)
    mine.resolve(Dropped())
    assert told == [first]


def test_parts_that_settle_after_the_client_was_told_change_nothing() -> None:
    mine, told = ticket(parts=2)
    mine.part_settled(1, 1, 0)
    mine.resolve(Buffered())
    mine.part_settled(1, 1, 0)
    mine.part_settled(1, 1, 0)
    assert told == [Buffered()]


def test_a_client_that_does_more_when_it_is_told_is_still_told_once() -> None:
    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        mine.resolve(Dropped())

    mine = Ticket(tell, contact_only=True)
    mine.resolve(Buffered())
    assert told == [Buffered()]
    assert mine.contact_only


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.floats(0, 1)), min_size=1, max_size=6))
def test_an_answer_accounts_for_every_row_and_never_claims_too_much(shape: list[tuple[int, int, float]]) -> None:
    mine, told = ticket(parts=len(shape))
    least_delivered = 0
    exact = True
    for rows, others, share in shape:
        batch_rows = rows + others
        quarantined = round(share * batch_rows)
        least_delivered += max(0, rows - quarantined)
        exact = exact and (others == 0 or quarantined in (0, batch_rows))
        mine.part_settled(rows, batch_rows, quarantined)
    (outcome,) = told
    assert isinstance(outcome, Confirmed)
    assert outcome.delivered + outcome.quarantined == sum(rows for rows, _, _ in shape)
    assert outcome.delivered == least_delivered
    assert (outcome.batch_rows is None) is exact
