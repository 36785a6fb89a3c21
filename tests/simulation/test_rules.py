"""The simulation's own model of the operator's rules, in the sentences of the design."""

from dataclasses import replace

import pytest
from tests.simulation.rules import Freeze, PodView, Shrink, ShrinkView, decide_shrink

SERVING = PodView(name="", ready=True, running=True, rows=10, labelled=False, draining_since_s=None, refusing=False)
EMPTY_VICTIM = replace(SERVING, ready=False, rows=0, labelled=True, draining_since_s=90.0, refusing=True)


def named(**pods: PodView) -> list[PodView]:
    return [replace(pod, name=name) for name, pod in pods.items()]


def view(wanted: int, replicas: int, pods: list[PodView]) -> ShrinkView:
    return ShrinkView(now_s=100.0, wanted=wanted, replicas=replicas, pods=pods)


def test_more_wanted_is_followed_at_once_and_ends_every_drain() -> None:
    assert decide_shrink(view(5, 3, named(a=SERVING, b=SERVING, c=EMPTY_VICTIM))) == Shrink(
        replicas=5, labelled=frozenset()
    )


def test_the_least_buffered_are_chosen_and_nobody_goes_yet() -> None:
    pods = named(a=replace(SERVING, rows=30), b=replace(SERVING, rows=2), c=replace(SERVING, rows=5))
    assert decide_shrink(view(1, 3, pods)) == Shrink(replicas=3, labelled=frozenset({"b", "c"}))


def test_an_unready_pod_goes_before_one_that_serves() -> None:
    pods = named(a=SERVING, b=replace(SERVING, rows=0), c=replace(SERVING, ready=False, rows=500))
    assert decide_shrink(view(2, 3, pods)).labelled == {"c"}


@pytest.mark.parametrize(
    ("victim", "other", "replicas"),
    [
        pytest.param(EMPTY_VICTIM, SERVING, 1, id="empty, unready, refusing and marked"),
        pytest.param(replace(EMPTY_VICTIM, rows=1), SERVING, 2, id="it holds a row"),
        pytest.param(replace(EMPTY_VICTIM, rows=None), SERVING, 2, id="it does not answer"),
        pytest.param(replace(EMPTY_VICTIM, ready=True), SERVING, 2, id="it is still ready"),
        pytest.param(replace(EMPTY_VICTIM, refusing=False), SERVING, 2, id="it still takes rows"),
        pytest.param(replace(EMPTY_VICTIM, labelled=False), SERVING, 2, id="it is not marked yet"),
        pytest.param(EMPTY_VICTIM, replace(SERVING, ready=False, labelled=True), 2, id="the other one is not ready"),
    ],
)
def test_when_a_victim_is_let_go(victim: PodView, other: PodView, replicas: int) -> None:
    assert decide_shrink(view(1, 2, named(a=victim, b=other))).replicas == replicas


def test_at_the_deadline_the_drain_is_given_up_and_the_replica_stays() -> None:
    stuck = replace(EMPTY_VICTIM, rows=7, draining_since_s=-200.0)
    before = view(1, 2, named(a=stuck, b=SERVING))
    given_up = decide_shrink(before)
    assert given_up == Shrink(replicas=2, labelled=frozenset(), gave_up_at_s=100.0)
    after = replace(before, pods=named(a=SERVING, b=SERVING), gave_up_at_s=100.0)
    assert decide_shrink(replace(after, now_s=399.0)) == given_up
    assert decide_shrink(replace(after, now_s=400.0)).labelled == {"a"}
    assert decide_shrink(replace(after, now_s=150.0, delivers_again=True)).labelled == {"a"}


def test_scale_up_is_frozen_by_some_429s_and_thaws_after_two_calm_minutes() -> None:
    freeze = Freeze()
    assert not freeze.look(0.0, 2, 2)  # too few to say
    assert not freeze.look(1.0, 100, 5)
    assert freeze.look(2.0, 100, 6)
    assert freeze.look(100.0, 100, 4)  # calm from here
    assert freeze.look(150.0, 100, 5)  # and not
    assert freeze.look(200.0, 100, 0)
    assert freeze.look(319.0, 0, 0)
    assert not freeze.look(320.0, 100, 4)
