"""Where every row is: the equation of the ledger, and how its terms are shown."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.ledger import DropReason, Ledger

IN = ("accepted", "recovered", "replayed")
OUT = ("delivered", "quarantined", "unverified", "dead_lettered")
LETTERS_IN = ("dead_lettered", "letters_recovered")
LETTERS_OUT = ("replayed", "letters_deleted", "letters_evicted", "letters_lost_at_exit")
OF_LETTERS = ("letters_recovered", "letters_deleted", "letters_evicted", "letters_lost_at_exit")
EVERY_TERM = (*IN, *OUT, *OF_LETTERS, "ambiguous")


def test_a_new_ledger_balances_with_an_empty_buffer() -> None:
    ledger = Ledger()
    assert ledger.expected_buffered() == 0
    assert ledger.imbalance(0) == 0
    assert ledger.dropped_total == 0


@pytest.mark.parametrize("term", IN)
def test_rows_that_came_are_expected_in_the_buffer(term: str) -> None:
    ledger = Ledger()
    setattr(ledger, term, 5)
    assert ledger.expected_buffered() == 5
    assert ledger.imbalance(5) == 0


@pytest.mark.parametrize("term", OUT)
def test_rows_that_went_are_expected_there_no_more(term: str) -> None:
    ledger = Ledger(accepted=5)
    setattr(ledger, term, 3)
    assert ledger.expected_buffered() == 2


def test_dropped_rows_are_counted_by_reason_and_are_expected_no_more() -> None:
    ledger = Ledger(accepted=10)
    ledger.drop(DropReason.SHUTDOWN, 3)
    ledger.drop(DropReason.IN_DOUBT, 2)
    ledger.drop(DropReason.SHUTDOWN, 1)
    assert ledger.dropped == {"shutdown": 4, "in_doubt": 2}
    assert ledger.dropped_total == 6
    assert ledger.expected_buffered() == 4


def test_dropping_nothing_names_no_reason() -> None:
    ledger = Ledger()
    ledger.drop(DropReason.SHUTDOWN, 0)
    assert ledger.dropped == {}


def test_ambiguous_rows_are_no_term_of_the_equation() -> None:
    assert Ledger(accepted=5, ambiguous=3).expected_buffered() == 5


def test_missing_rows_are_a_positive_imbalance_and_too_many_a_negative_one() -> None:
    ledger = Ledger(accepted=5, delivered=2)
    assert ledger.imbalance(1) == 2
    assert ledger.imbalance(4) == -1


def test_a_new_ledger_balances_without_dead_letters() -> None:
    assert Ledger().expected_letters() == Ledger().letters_imbalance(0) == 0


@pytest.mark.parametrize("term", LETTERS_IN)
def test_rows_that_became_letters_are_expected_among_them(term: str) -> None:
    ledger = Ledger()
    setattr(ledger, term, 5)
    assert ledger.expected_letters() == 5
    assert ledger.letters_imbalance(5) == 0


@pytest.mark.parametrize("term", LETTERS_OUT)
def test_rows_that_left_the_letters_are_expected_there_no_more(term: str) -> None:
    ledger = Ledger(dead_lettered=5)
    setattr(ledger, term, 3)
    assert ledger.expected_letters() == 2


@pytest.mark.parametrize("term", [*sorted({*IN, *OUT} - {*LETTERS_IN, *LETTERS_OUT}), "ambiguous"])
def test_the_other_terms_say_nothing_of_letters(term: str) -> None:
    ledger = Ledger()
    setattr(ledger, term, 5)
    assert ledger.expected_letters() == 0


def test_missing_letters_are_a_positive_imbalance_and_too_many_a_negative_one() -> None:
    ledger = Ledger(dead_lettered=5, letters_evicted=2)
    assert ledger.letters_imbalance(1) == 2
    assert ledger.letters_imbalance(4) == -1


def test_a_replay_moves_rows_from_the_letters_into_the_buffer() -> None:
    ledger = Ledger(accepted=5, dead_lettered=5)
    assert (ledger.expected_buffered(), ledger.expected_letters()) == (0, 5)
    ledger.replayed += 3
    assert (ledger.expected_buffered(), ledger.expected_letters()) == (3, 2)


def test_a_stop_loses_what_it_drops_and_the_letters_that_only_memory_held() -> None:
    ledger = Ledger(letters_lost_at_exit=4, letters_evicted=100, letters_deleted=100)
    ledger.drop(DropReason.SHUTDOWN, 2)
    assert ledger.lost_at_exit == 6


def test_every_term_is_shown_by_its_name() -> None:
    values = {name: number for number, name in enumerate(EVERY_TERM, 1)}
    ledger = Ledger()
    for name, number in values.items():
        setattr(ledger, name, number)
    ledger.drop(DropReason.SHUTDOWN, 9)
    shown = ledger.as_dict(77, 88)
    assert shown == {**values, "dropped": {"shutdown": 9}, "buffered": 77, "letters_held": 88}
    assert set(shown) == {field.name for field in fields(Ledger)} | {"buffered", "letters_held"}


def test_what_is_shown_does_not_change_afterwards() -> None:
    ledger = Ledger(accepted=1)
    shown = ledger.as_dict(1, 0)
    ledger.drop(DropReason.SHUTDOWN, 1)
    assert shown["dropped"] == {}


ledgers = st.builds(
    Ledger,
    **dict.fromkeys(EVERY_TERM, st.integers(0, 1000)),
    dropped=st.dictionaries(st.sampled_from(DropReason).map(str), st.integers(1, 1000)),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(ledgers, max_size=4))
def test_the_sum_of_ledgers_is_the_sum_of_every_term(parts: list[Ledger]) -> None:
    total = Ledger()
    for part in parts:
        total.add(part)
    for name in EVERY_TERM:
        assert getattr(total, name) == sum(getattr(part, name) for part in parts)
    for reason in DropReason:
        assert total.dropped.get(reason, 0) == sum(part.dropped.get(reason, 0) for part in parts)
    assert total.expected_buffered() == sum(part.expected_buffered() for part in parts)
    assert total.expected_letters() == sum(part.expected_letters() for part in parts)
    assert total.lost_at_exit == sum(part.lost_at_exit for part in parts)


def test_adding_leaves_the_other_ledger_alone() -> None:
    total, part = Ledger(), Ledger()
    part.drop(DropReason.SHUTDOWN, 1)
    total.add(part)
    total.drop(DropReason.SHUTDOWN, 1)
    assert part.dropped == {"shutdown": 1}
