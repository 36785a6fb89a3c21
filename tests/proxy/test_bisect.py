"""The search for the rows that Tinybird refuses: what it asks in which order, what it condemns, and when it stops."""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.bisect import BUDGET, SMALL_ROWS, Bisection, Ended, Piece

MANY = 100_000


@dataclass
class Search:
    """A search that is over: what was asked, with the answer, and where every row is."""

    bisection: Bisection
    asked: list[tuple[Piece, bool]] = field(default_factory=list)
    condemned: list[Piece] = field(default_factory=list)

    @property
    def ended(self) -> Ended | None:
        return self.bisection.ended

    @property
    def requests(self) -> int:
        """Requests in all, the parent's own among them."""
        return self.bisection.requests + 1

    @property
    def steps(self) -> list[str]:
        """What was asked, as ``0-2 yes``."""
        return [f"{piece.first}-{piece.end} {'yes' if taken else 'no'}" for piece, taken in self.asked]

    @property
    def condemned_rows(self) -> list[int]:
        return [piece.first for piece in self.condemned]

    @property
    def undecided_rows(self) -> list[int]:
        return rows_in(self.bisection.undecided())

    @property
    def refusals(self) -> int:
        return sum(not taken for _, taken in self.asked)

    def whereabouts(self) -> Counter[int]:
        """How often each row is anywhere."""
        accepted = [piece for piece, taken in self.asked if taken]
        return Counter(rows_in([*accepted, *self.condemned, *self.bisection.undecided()]))


def rows_in(pieces: Iterable[Piece]) -> list[int]:
    return [row for piece in pieces for row in range(piece.first, piece.end)]


def search(item_row_counts: Sequence[int], bad: Iterable[int], *, budget: int | None = BUDGET) -> Search:
    """Search among items of so many rows, of which Tinybird refuses the ``bad`` ones."""
    guilty = sorted(bad)
    done = Search(Bisection(item_row_counts, budget=budget))
    while (piece := done.bisection.asking) is not None:
        at = bisect_left(guilty, piece.first)
        taken = at == len(guilty) or guilty[at] >= piece.end
        done.asked.append((piece, taken))
        if taken:
            done.bisection.accepted()
        else:
            done.bisection.refused()
        done.condemned += done.bisection.take_condemned()
    done.condemned += done.bisection.take_condemned()
    return done


# What is asked, and in which order.


@pytest.mark.parametrize(
    ("items", "bad", "steps"),
    [
        pytest.param([1, 1], [0], ["0-1 no", "1-2 yes"], id="two rows, the first"),
        pytest.param([1, 1], [1], ["0-1 yes", "1-2 no"], id="two rows, the second: a single row is asked all the same"),
        pytest.param([1, 1], [], ["0-1 yes", "1-2 yes"], id="none of two: it is not condemned for its neighbour"),
        pytest.param(
            [1] * 4, [2], ["0-2 yes", "2-3 no", "3-4 yes"], id="the left half is good: the right one is cut unasked"
        ),
        pytest.param([1] * 4, [3], ["0-2 yes", "2-3 yes", "3-4 no"], id="and again down to its last row"),
        pytest.param(
            [1] * 4, [0], ["0-2 no", "2-4 yes", "0-1 no", "1-2 yes"], id="both halves are asked before one is cut"
        ),
        pytest.param(
            [1] * 4,
            [0, 3],
            ["0-2 no", "2-4 no", "0-1 no", "1-2 yes", "2-3 yes", "3-4 no"],
            id="both are bad: the left one first",
        ),
        pytest.param(
            [1] * 8,
            [0, 7],
            ["0-4 no", "4-8 no", "0-2 no", "2-4 yes", "0-1 no", "1-2 yes", "4-6 yes", "6-7 yes", "7-8 no"],
            id="depth first",
        ),
        pytest.param(
            [1, 5, 2],
            [3],
            ["0-6 no", "6-8 yes", "0-1 yes", "1-3 yes", "3-4 no", "4-6 yes"],
            id="between items first, nearest to the middle, then inside the one that is left",
        ),
        pytest.param([7, 1], [0], ["0-7 no", "7-8 yes", "0-3 no", "3-7 yes", "0-1 no", "1-3 yes"], id="uneven items"),
        pytest.param([2, 2, 2], [4], ["0-2 yes", "2-4 yes", "4-5 no", "5-6 yes"], id="equally near: the one before"),
        pytest.param([3], [1], ["0-1 yes", "1-2 no", "2-3 yes"], id="a single item is cut in the middle"),
    ],
)
def test_the_search_asks_in_this_order(items: list[int], bad: list[int], steps: list[str]) -> None:
    done = search(items, bad)
    assert done.steps == steps
    assert done.condemned_rows == bad
    assert done.ended is Ended.DECIDED
    assert done.bisection.requests == len(steps)


def test_nothing_is_asked_about_a_single_row_and_it_is_refused_already() -> None:
    done = search([1], [0])
    assert done.steps == []
    assert (done.ended, done.condemned_rows) == (Ended.SMALL_AND_REFUSED, [0])


# When a row is condemned.


def test_no_row_is_condemned_before_something_was_accepted() -> None:
    bisection = Bisection([1] * 4)
    for asked in (Piece(0, 2), Piece(2, 4), Piece(0, 1), Piece(1, 2)):
        assert bisection.asking == asked
        bisection.refused()
    assert bisection.take_condemned() == []
    assert bisection.asking == Piece(2, 3)
    bisection.accepted()
    assert bisection.take_condemned() == [Piece(0, 1), Piece(1, 2)]
    assert bisection.take_condemned() == []


def test_what_is_not_taken_as_condemned_is_still_undecided() -> None:
    bisection = Bisection([1, 1])
    bisection.refused()
    bisection.accepted()
    assert (bisection.ended, bisection.undecided()) == (Ended.DECIDED, [Piece(0, 1)])
    assert bisection.take_condemned() == [Piece(0, 1)]
    assert bisection.undecided() == []


@pytest.mark.parametrize("rows", range(1, SMALL_ROWS))
def test_each_of_a_handful_of_rows_is_asked_and_condemned_although_none_was_accepted(rows: int) -> None:
    done = search([1] * rows, range(rows))
    assert done.ended is Ended.SMALL_AND_REFUSED
    assert done.condemned_rows == list(range(rows))
    assert done.bisection.requests == 2 * (rows - 1)
    assert done.undecided_rows == []


def test_of_a_handful_the_last_good_row_is_found_too() -> None:
    done = search([1] * 7, range(6))
    assert (done.ended, done.condemned_rows) == (Ended.DECIDED, list(range(6)))


@pytest.mark.parametrize(
    ("rows", "refusals"),
    [(8, 6), (9, 8), (16, 8), (17, 10), (1000, 20), (1024, 20), (1025, 22), (MANY, 34)],
)
@pytest.mark.parametrize("one_item", [True, False])
def test_the_request_is_wrong_when_so_many_pieces_in_a_row_are_refused(
    rows: int, refusals: int, one_item: bool
) -> None:
    done = search([rows] if one_item else [1] * rows, range(rows))
    assert done.ended is Ended.NOTHING_ACCEPTED
    assert (done.refusals, done.bisection.requests) == (refusals, refusals)
    assert done.condemned == []
    assert len(done.undecided_rows) == rows


def test_once_something_was_accepted_no_number_of_refusals_ends_the_search() -> None:
    done = search([1] * 64, range(1, 64))
    assert (done.ended, done.condemned_rows) == (Ended.DECIDED, list(range(1, 64)))
    assert done.refusals > 2 * 6


# The bounds that were promised, for 100,000 rows.


def test_one_bad_row_among_many_costs_at_most_forty_requests() -> None:
    for row in (*range(0, MANY, 1999), MANY // 2 - 1, MANY // 2, MANY - 1):
        done = search([1] * MANY, [row])
        assert (done.ended, done.condemned_rows) == (Ended.DECIDED, [row])
        assert done.requests <= 40


def test_ten_bad_rows_at_random_cost_at_most_280_requests() -> None:
    for seed in range(60):
        bad = sorted(random.Random(seed).sample(range(MANY), 10))
        done = search([1] * MANY, bad)
        assert (done.ended, done.condemned_rows) == (Ended.DECIDED, bad), seed
        assert done.requests <= 280, seed


def test_ten_bad_rows_evenly_spread_cost_at_most_280_requests_wherever_they_begin() -> None:
    for offset in (*range(0, MANY // 10, 397), MANY // 10 - 1):
        bad = list(range(offset, MANY, MANY // 10))
        done = search([1] * MANY, bad)
        assert (done.ended, done.condemned_rows) == (Ended.DECIDED, bad), offset
        assert done.requests <= 280, offset


def test_one_percent_of_bad_rows_ends_at_the_budget_and_says_what_is_undecided() -> None:
    bad = set(range(0, MANY, 100))
    done = search([1] * MANY, bad)
    assert (done.ended, done.bisection.requests) == (Ended.OUT_OF_BUDGET, BUDGET)
    assert done.bisection.accepted_rows > 0
    assert 0 < len(done.condemned) < len(bad)
    assert set(done.condemned_rows) < bad
    assert bad - set(done.condemned_rows) <= set(done.undecided_rows)
    assert done.bisection.accepted_rows + len(done.condemned) + len(done.undecided_rows) == MANY
    assert len(done.bisection.undecided()) < 40, "dead letters are few, not one a row"


def test_without_a_budget_one_percent_of_bad_rows_is_found_to_the_last_one() -> None:
    bad = list(range(0, MANY, 100))
    done = search([1] * MANY, bad, budget=None)
    assert (done.ended, done.condemned_rows) == (Ended.DECIDED, bad)
    assert done.bisection.accepted_rows == MANY - len(bad)


def test_many_rows_that_are_all_refused_cost_at_most_forty_requests_and_none_is_condemned() -> None:
    done = search([1] * MANY, range(MANY))
    assert done.ended is Ended.NOTHING_ACCEPTED
    assert done.requests <= 40
    assert done.condemned == []


def test_twenty_bad_rows_at_the_front_are_found() -> None:
    done = search([1] * MANY, range(20))
    assert (done.ended, done.condemned_rows) == (Ended.DECIDED, list(range(20)))


@pytest.mark.parametrize("before", [0, 1, 1000, 49_500, 98_999, 99_000])
def test_one_bad_item_of_a_thousand_rows_holds_nothing_up_and_all_others_are_accepted(before: int) -> None:
    bad = range(before, before + 1000)
    done = search([*[1] * before, 1000, *[1] * (99_000 - before)], bad)
    assert done.ended is Ended.OUT_OF_BUDGET
    assert done.bisection.accepted_rows == 99_000
    assert sorted(done.condemned_rows + done.undecided_rows) == list(bad)


def test_one_bad_row_in_uneven_items_is_found() -> None:
    chance = random.Random(7)
    for _ in range(30):
        items = [chance.choice((1, 1, 1, 10, 5000)) for _ in range(60)]
        row = chance.randrange(sum(items))
        done = search(items, [row])
        assert (done.ended, done.condemned_rows) == (Ended.DECIDED, [row])
        assert done.requests <= 40


# The budget, and a stop from outside.


@pytest.mark.parametrize("budget", range(1, 9))
def test_no_more_is_asked_than_the_budget_allows(budget: int) -> None:
    done = search([1] * 16, [0, 15], budget=budget)
    assert (done.ended, done.bisection.requests, len(done.asked)) == (Ended.OUT_OF_BUDGET, budget, budget)
    assert done.whereabouts() == Counter(range(16))


def test_a_search_that_needs_all_of_its_budget_is_decided() -> None:
    needed = search([1] * 16, [0, 15]).bisection.requests
    assert search([1] * 16, [0, 15], budget=needed).ended is Ended.DECIDED
    assert search([1] * 16, [0, 15], budget=needed - 1).ended is Ended.OUT_OF_BUDGET


def test_a_search_that_is_stopped_asks_nothing_more_and_keeps_what_is_decided() -> None:
    bisection = Bisection([1] * 8)
    bisection.refused()
    bisection.accepted()
    bisection.stop()
    assert (bisection.ended, bisection.asking, bisection.accepted_rows) == (Ended.STOPPED, None, 4)
    assert rows_in(bisection.undecided()) == [0, 1, 2, 3]


def test_a_stop_after_the_end_changes_nothing() -> None:
    done = search([1] * 8, [3])
    done.bisection.stop()
    assert (done.ended, done.bisection.undecided()) == (Ended.DECIDED, [])


# Whatever comes.

ITEMS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@st.composite
def parents(draw: st.DrawFn) -> tuple[list[int], set[int]]:
    """Items, and which of their rows are bad: none is a 400 that was an accident."""
    items = draw(ITEMS)
    rows = sum(items)
    if draw(st.booleans()):
        return items, draw(st.sets(st.integers(0, rows - 1), max_size=8))
    return items, set(range(rows)) - draw(st.sets(st.integers(0, rows - 1), max_size=8))


@settings(deadline=None, max_examples=300)
@given(parents(), st.none() | st.integers(1, 60))
def test_every_row_ends_in_one_place_and_only_bad_ones_are_condemned(
    parent: tuple[list[int], set[int]], budget: int | None
) -> None:
    items, bad = parent
    rows = sum(items)
    done = search(items, bad, budget=budget)
    assert done.whereabouts() == Counter(range(rows))
    assert set(done.condemned_rows) <= bad or rows == 1
    assert done.bisection.accepted_rows == sum(piece.row_count for piece, taken in done.asked if taken)
    assert len(done.asked) == done.bisection.requests
    assert budget is None or done.bisection.requests <= budget
    assert done.bisection.undecided() == sorted(done.bisection.undecided())
    if done.condemned:
        assert done.bisection.accepted_rows or done.ended is Ended.SMALL_AND_REFUSED
    match done.ended:
        case Ended.DECIDED:
            assert done.condemned_rows == sorted(bad)
            assert done.bisection.accepted_rows == rows - len(bad) > 0
        case Ended.SMALL_AND_REFUSED:
            assert rows < SMALL_ROWS
            assert done.condemned_rows == list(range(rows))
        case Ended.NOTHING_ACCEPTED:
            assert rows >= SMALL_ROWS
            assert not done.condemned
            assert done.refusals == 2 * (rows - 1).bit_length() == len(done.asked)
        case _:
            assert (done.ended, done.bisection.requests) == (Ended.OUT_OF_BUDGET, budget)


@settings(deadline=None, max_examples=300)
@given(parents())
def test_no_cut_is_inside_an_item_as_long_as_there_is_one_between_items(parent: tuple[list[int], set[int]]) -> None:
    items, bad = parent
    done = search(items, bad, budget=None)
    ends = [sum(items[:number]) for number in range(len(items) + 1)]
    for piece, _ in done.asked:
        whole_items = piece.first in ends and piece.end in ends
        assert whole_items or bisect_left(ends, piece.first + 1) == bisect_left(ends, piece.end)
    asked = [piece for piece, _ in done.asked]
    assert len(set(asked)) == len(asked), "nothing is asked twice"
    assert sum(items) == 1 or set(done.condemned) <= {piece for piece, taken in done.asked if not taken}


@settings(deadline=None, max_examples=300)
@given(ITEMS, st.lists(st.booleans(), max_size=80), st.randoms(use_true_random=False))
def test_whatever_tinybird_answers_every_row_is_in_one_place_at_every_moment(
    items: list[int], answers: list[bool], chance: random.Random
) -> None:
    done = Search(Bisection(items))
    everywhere = Counter(range(sum(items)))
    for taken in answers:
        assert done.whereabouts() == everywhere
        piece = done.bisection.asking
        if piece is None:
            break
        done.asked.append((piece, taken))
        if taken:
            done.bisection.accepted()
        else:
            done.bisection.refused()
        if chance.random() < 0.5:
            done.condemned += done.bisection.take_condemned()
            assert all((row, False) in done.asked for row in done.condemned if sum(items) > 1)
    assert (done.bisection.asking is None) is (done.ended is not None)
    done.bisection.stop()
    assert (done.bisection.asking, done.ended is None) == (None, False)
    assert done.whereabouts() == everywhere
    assert done.bisection.requests == len(done.asked)
