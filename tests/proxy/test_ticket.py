"""What a waiting client hears, and that it hears it once."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.ticket import Buffered, Confirmed, Dropped, NotTaken, Outcome, Refused, Ticket

NO = Refused(400, "not a date; the rows are kept as dead letters")
NEITHER = Refused(413, "too large; the rows are kept as dead letters")


@dataclass
class Letter:
    """A dead letter, as far as a ticket knows it."""

    client_told: bool = False


def ticket(row_count: int) -> tuple[Ticket, list[Outcome]]:
    """A ticket for an item of so many rows, and what was told with it so far."""
    told: list[Outcome] = []
    return Ticket(told.append, row_count, contact_only=False), told


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
    mine, told = ticket(rows)
    assert mine.open
    mine.rows_settled(rows, batch_rows, batch_quarantined)
    assert told == [outcome]
    assert not mine.open


def test_a_split_item_is_answered_when_its_last_row_settles() -> None:
    mine, told = ticket(220)
    mine.rows_settled(100, 100, 0)
    mine.rows_settled(100, 100, 7)
    mine.rows_settled(19, 19, 0)
    assert told == []
    assert mine.open
    mine.rows_settled(1, 1, 0)
    assert told == [Confirmed(213, 7)]


def test_only_the_batches_that_cannot_be_told_apart_are_named_in_a_split_items_answer() -> None:
    mine, told = ticket(130)
    mine.rows_settled(100, 100, 5)  # its own
    mine.rows_settled(10, 50, 4)  # shared
    mine.rows_settled(10, 60, 0)  # shared, nothing quarantined
    mine.rows_settled(10, 70, 3)  # shared
    assert told == [Confirmed(95 + 6 + 10 + 7, 5 + 4 + 0 + 3, batch_rows=120, batch_quarantined=7)]


# Refused rows.


def test_an_item_that_is_refused_whole_is_answered_with_the_refusal_and_its_letter_knows() -> None:
    mine, told = ticket(3)
    letter = Letter()
    mine.rows_refused(3, NO, letter)
    assert told == [NO]
    assert letter.client_told


def test_an_item_that_is_refused_row_by_row_is_answered_once_with_the_last_refusal() -> None:
    mine, told = ticket(2)
    letters = Letter(), Letter()
    mine.rows_refused(1, NO, letters[0])
    assert told == []
    assert not letters[0].client_told
    mine.rows_refused(1, NEITHER, letters[1])
    assert told == [NEITHER]
    assert all(letter.client_told for letter in letters)


@pytest.mark.parametrize("refused_first", [True, False])
@pytest.mark.parametrize("quarantined", [0, 1, 2])
def test_refused_rows_of_an_item_of_which_some_were_taken_count_as_quarantined(
    refused_first: bool, quarantined: int
) -> None:
    mine, told = ticket(3)
    letter = Letter()
    if refused_first:
        mine.rows_refused(1, NO, letter)
    mine.rows_settled(2, 2, quarantined)
    if not refused_first:
        mine.rows_refused(1, NO, letter)
    assert told == [Confirmed(2 - quarantined, quarantined + 1)]
    assert not letter.client_told, "the client heard only a number: it will not have sent that row again"


def test_refused_rows_are_told_together_with_batches_that_cannot_be_told_apart() -> None:
    mine, told = ticket(3)
    mine.rows_refused(1, NO, Letter())
    mine.rows_settled(2, 10, 1)
    assert told == [Confirmed(1, 2, batch_rows=10, batch_quarantined=1)]


def test_a_letter_with_rows_of_others_is_not_marked_for_one_clients_sake() -> None:
    mine, told = ticket(2)
    own = Letter()
    mine.rows_refused(1, NO, None)
    mine.rows_refused(1, NO, own)
    assert told == [NO]
    assert own.client_told


def test_a_client_that_has_left_was_told_nothing() -> None:
    mine, told = ticket(1)
    letter = Letter()
    mine.resolve(Buffered())
    mine.rows_refused(1, NO, letter)
    assert told == [Buffered()]
    assert not letter.client_told


def test_a_letter_that_was_told_of_stays_so() -> None:
    mine, _ = ticket(1)
    letter = Letter(client_told=True)
    mine.resolve(Buffered())
    mine.rows_refused(1, NO, letter)
    assert letter.client_told


# Once.


@pytest.mark.parametrize(
    "first", [Buffered(), Dropped(), NotTaken(403, "no"), Confirmed(1, 0), NO], ids=lambda o: type(o).__name__
)
def test_the_first_outcome_wins_and_the_client_hears_nothing_more(first: Outcome) -> None:
    mine, told = ticket(1)
    mine.resolve(first)
    mine.resolve(Buffered())
    mine.rows_settled(1, 1, 0)
    mine.resolve(Dropped())
    assert told == [first]


def test_rows_that_settle_after_the_client_was_told_change_nothing() -> None:
    mine, told = ticket(3)
    mine.rows_settled(1, 1, 0)
    mine.resolve(Buffered())
    mine.rows_settled(1, 1, 0)
    mine.rows_refused(1, NO, None)
    assert told == [Buffered()]


def test_a_client_that_does_more_when_it_is_told_is_still_told_once() -> None:
    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        mine.resolve(Dropped())

    mine = Ticket(tell, 1, contact_only=True)
    mine.resolve(Buffered())
    assert told == [Buffered()]
    assert mine.contact_only


PARTS = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 50), st.floats(0, 1), st.booleans()), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=200)
@given(PARTS)
def test_an_answer_accounts_for_every_row_and_never_claims_too_much(shape: list[tuple[int, int, float, bool]]) -> None:
    mine, told = ticket(sum(rows for rows, *_ in shape))
    letters = []
    least_delivered = 0
    exact = True
    for rows, others, share, refused in shape:
        assert told == []
        batch_rows = rows + others
        quarantined = round(share * batch_rows)
        if refused:
            letters.append(Letter())
            mine.rows_refused(rows, NO, letters[-1])
        else:
            least_delivered += max(0, rows - quarantined)
            exact = exact and (others == 0 or quarantined in (0, batch_rows))
            mine.rows_settled(rows, batch_rows, quarantined)
    (outcome,) = told
    all_refused = len(letters) == len(shape)
    assert all(letter.client_told is all_refused for letter in letters)
    if all_refused:
        assert outcome == NO
        return
    assert isinstance(outcome, Confirmed)
    assert outcome.delivered + outcome.quarantined == sum(rows for rows, *_ in shape)
    assert outcome.delivered == least_delivered
    assert (outcome.batch_rows is None) is exact
