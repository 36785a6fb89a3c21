"""Whose turn it is to be evicted."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tinybird_proxy_operator.observed import PodFacts, ProxyReport
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State
from tinybird_proxy_operator.sidecars.eviction import (
    AT_ONCE,
    GONE_S,
    HELPS_NOT_MAX_S,
    SUCCESSOR_S,
    Turn,
    decide,
    overdue,
)


def pod(name: str, state: State = State.STALE, *, owner: str | None = "Deployment app", **changes: Any) -> AppPod:
    given: dict[str, Any] = {"ready": True, "terminating": False, "grace_period_s": 30, **changes}
    return AppPod(name=name, uid=f"uid-{name}", state=state, owner=owner, **given)


def evicted(pods: list[AppPod], turns: dict[str, Turn] | None = None, *, now_s: float = 0.0) -> list[str]:
    return [each.name for each, _ in decide(pods, turns or {}, now_s=now_s).evict.values()]


def after(pods: list[AppPod], now_s: float = 0.0, turns: dict[str, Turn] | None = None) -> dict[str, Turn]:
    """What is remembered once the evictions of this look are done."""
    decision = decide(pods, turns or {}, now_s=now_s)
    return {**decision.turns, **{owner: turn for owner, (_, turn) in decision.evict.items()}}


def facts(*, stuck_rows: int) -> PodFacts:
    report = ProxyReport(
        rows=stuck_rows,
        size_bytes=0,
        utilisation=0.0,
        oldest_age_s=None,
        stuck_rows=stuck_rows,
        stuck=[],
        token_hash=None,
        token_accepted=False,
        token_denied=False,
        candidate_rejected=False,
    )
    return PodFacts(name="x", ip=None, ready=True, waiting=None, out_of_memory=False, report=report)


def test_one_pod_of_each_owner() -> None:
    pods = [pod("a"), pod("b", State.MISSED), pod("c", owner="StatefulSet db")]
    assert evicted(pods) == ["a", "c"]


def test_nobody_who_is_current_or_refused_or_of_no_owner_that_replaces_it() -> None:
    assert evicted([pod("a", State.CURRENT), pod("b", State.REFUSED), pod("job", owner=None)]) == []


def test_who_is_not_ready_goes_first_and_while_another_is_not_nobody_else_does() -> None:
    assert evicted([pod("a"), pod("b", ready=False)]) == ["b"]
    assert evicted([pod("a"), pod("new", State.CURRENT, ready=False)]) == []


def test_nobody_while_one_of_the_owner_is_going() -> None:
    assert evicted([pod("a"), pod("b", State.CURRENT, terminating=True)]) == []


def test_the_next_goes_when_the_successor_is_there_and_ready() -> None:
    turns = after([pod("a"), pod("b")])
    assert evicted([pod("b")], turns, now_s=5.0) == []
    assert evicted([pod("b"), pod("c", State.CURRENT, ready=False)], turns, now_s=5.0) == []
    assert evicted([pod("b"), pod("c", State.CURRENT)], turns, now_s=5.0) == ["b"]


def test_where_no_successor_comes_nobody_else_goes_until_the_owner_is_known_to_want_no_more() -> None:
    """A quota, or an admission that refuses: else the whole Deployment would be taken away, one after the other."""
    turns, pods = after([pod("a"), pod("b")]), [pod("b")]
    assert overdue(pods, turns, now_s=SUCCESSOR_S - 1) == []
    assert overdue(pods, turns, now_s=SUCCESSOR_S) == ["Deployment app"]
    decision = decide(pods, turns, now_s=SUCCESSOR_S * 100)
    assert decision.evict == {}
    assert "Deployment app: no pod that asks for the sidecar came in the place" in decision.held[0]
    scaled = decide(pods, turns, now_s=SUCCESSOR_S, complete=["Deployment app"])
    assert [each.name for each, _ in scaled.evict.values()] == ["b"]
    assert evicted([pod("b"), pod("c", State.CURRENT)], turns, now_s=SUCCESSOR_S * 100) == ["b"]


def test_what_is_waited_for_is_told() -> None:
    going, unready = pod("old", State.CURRENT, terminating=True), pod("new", State.CURRENT, ready=False)
    assert decide([pod("a"), going], {}, now_s=0.0).held == ["Deployment app: the next is evicted when old has gone."]
    assert decide([pod("a"), unready], {}, now_s=0.0).held == ["Deployment app: the next is evicted when new is Ready."]
    assert decide([pod("a", State.CURRENT), unready, going], {}, now_s=0.0).held == []
    many = [each for number in range(9) for each in (pod(f"a{number}", owner=f"Deployment {number}"),)]
    many += [pod(f"n{number}", State.CURRENT, owner=f"Deployment {number}", ready=False) for number in range(9)]
    assert decide(many, {}, now_s=0.0).held[3:] == ["6 more wait in the same way."]


def test_a_successor_that_got_the_sidecar_of_before_does_not_help_unless_it_has_changed_since() -> None:
    decision = decide([pod("a"), pod("b")], {}, now_s=0.0, hash="1")
    turns = {owner: turn for owner, (_, turn) in decision.evict.items()}
    assert decide([pod("b"), pod("c")], turns, now_s=1.0, hash="1").useless == ["Deployment app"]
    assert decide([pod("b"), pod("c")], turns, now_s=1.0, hash="2").useless == []


def test_pods_that_ask_no_more_are_left_alone() -> None:
    assert evicted([pod("a", asks=False), pod("b", asks=False, ready=False)]) == []


def test_a_statefulsets_successor_has_the_same_name() -> None:
    turns = after([pod("db-0", owner="StatefulSet db"), pod("db-1", owner="StatefulSet db")])
    successor = AppPod(
        name="db-0",
        uid="another",
        state=State.CURRENT,
        owner="StatefulSet db",
        ready=True,
        terminating=False,
        grace_period_s=30,
    )
    assert evicted([successor, pod("db-1", owner="StatefulSet db")], turns, now_s=1.0) == ["db-1"]


def test_if_the_successor_has_none_either_it_is_tried_again_later_and_later() -> None:
    pods, turns, now_s, waits = [pod("p0", State.MISSED)], dict[str, Turn](), 0.0, []
    for number in range(1, 8):
        assert evicted(pods, turns, now_s=now_s) == [pods[0].name]
        turns = after(pods, now_s, turns)
        pods = [pod(f"p{number}", State.MISSED)]
        decision = decide(pods, turns, now_s=now_s)
        assert decision.useless == ["Deployment app"]
        turns, waited_s = dict(decision.turns), 0.0
        while not evicted(pods, turns, now_s=now_s + waited_s):
            waited_s += 1.0
        waits.append(waited_s)
        now_s += waited_s
    assert waits == [30, 60, 120, 240, 480, HELPS_NOT_MAX_S, HELPS_NOT_MAX_S]


def test_one_that_helps_ends_the_waiting() -> None:
    turns = {"Deployment app": Turn(at_s=0.0, known=frozenset({"uid-a"}), failures=3, failed_at_s=1.0)}
    decision = decide([pod("new", State.CURRENT), pod("b")], turns, now_s=2.0)
    assert decision.useless == []
    assert [each.name for each, _ in decision.evict.values()] == ["b"]


def test_nothing_goes_while_rows_are_not_delivered() -> None:
    decision = decide([pod("a"), pod("b", State.CURRENT, facts=facts(stuck_rows=5))], {}, now_s=0.0)
    assert decision.evict == {}
    assert "b" in decision.held[0]
    assert decide([pod("b", State.CURRENT, facts=facts(stuck_rows=5))], {}, now_s=0.0).held == []


def test_an_owner_that_is_gone_is_forgotten_but_not_while_its_only_pod_is_away() -> None:
    turns = after([pod("db-0", State.MISSED, owner="StatefulSet db")])
    turns = dict(decide([], turns, now_s=1.0).turns)
    successor = replace(pod("db-0", State.MISSED, owner="StatefulSet db"), uid="another")
    decision = decide([successor], turns, now_s=2.0)
    assert (decision.evict, decision.useless) == ({}, ["StatefulSet db"])
    assert decide([], turns, now_s=GONE_S).turns == {}


def test_whose_turn_was_longest_ago_comes_first() -> None:
    pods = [pod(f"{number:02}", owner=f"Deployment {number:02}") for number in range(AT_ONCE + 2)]
    first = decide(pods, {}, now_s=0.0).evict
    assert len(first) == AT_ONCE
    tried = dict.fromkeys(first, 0.0)
    assert list(decide(pods, {}, now_s=10.0, tried=tried).evict)[:2] == ["Deployment 10", "Deployment 11"]


def test_what_was_not_evicted_is_not_remembered() -> None:
    """A budget refused it: the caller keeps only `turns`."""
    decision = decide([pod("a")], {}, now_s=0.0)
    assert decision.turns == {}
    assert evicted([pod("a")], dict(decision.turns), now_s=1.0) == ["a"]


_PODS = st.lists(
    st.builds(
        pod,
        st.uuids().map(str),
        st.sampled_from(State),
        owner=st.sampled_from([None, *(f"Deployment {number}" for number in range(AT_ONCE + 3))]),
        ready=st.booleans(),
        terminating=st.booleans(),
    ),
    max_size=40,
)


@given(_PODS)
def test_it_never_takes_two_of_an_owner_nor_one_beside_another_that_is_away(pods: list[AppPod]) -> None:
    decision = decide(pods, {}, now_s=0.0)
    assert len(decision.evict) <= AT_ONCE
    for owner, (chosen, _) in decision.evict.items():
        theirs = [each for each in pods if each.owner == owner]
        assert chosen.outdated
        assert chosen in theirs
        assert not any(each.terminating for each in theirs)
        assert not chosen.ready or all(each.ready for each in theirs)
