"""The figures of a run."""

from tests.simulation.outcome import Outcome


def test_flapping_is_the_most_changes_of_direction_within_ten_minutes() -> None:
    wanted = [1] * 10 + [3] * 10 + [2] * 100 + [4] * 1000 + [3] * 10 + [1] * 10
    outcome = Outcome(wanted=wanted)
    assert outcome.turns == [20, 120, 1120]
    assert outcome.flapping == 2


def test_going_one_way_is_no_flapping() -> None:
    assert Outcome(wanted=[1, 2, 2, 4, 5]).flapping == 0


def test_the_reaction_is_told_from_the_step() -> None:
    outcome = Outcome(offered=[0] * 8, wanted=[1, 1, 1, 3, 3, 3, 3, 3], ready=[1, 1, 1, 1, 1, 2, 3, 3])
    assert outcome.asked_s(1) == 2
    assert outcome.reaction_s(1) == 4
    assert outcome.reaction_s(1, more=2) == 5
    assert outcome.reaction_s(1, more=3) is None


def test_refusals_are_told_as_a_share_and_by_their_end() -> None:
    outcome = Outcome(offered=[10, 10, 10, 10], refused=[0, 4, 0, 0])
    assert outcome.refused_percent == 10.0
    assert outcome.refusing_ends_s(0) == 1
