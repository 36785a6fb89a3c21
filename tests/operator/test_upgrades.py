"""Who has a turn in an upgrade, and which rows keep a template back: by table, in seconds that a test gives."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybird_proxy_operator.names import MADE_FOR_ANNOTATION, ROLL_ANNOTATION, UPGRADED_ANNOTATION
from tinybird_proxy_operator.observed import PodFacts, ProxyReport, Workload
from tinybird_proxy_operator.upgrades import (
    SOAK_S,
    Stage,
    Upgrades,
    author_mark,
    is_for_another,
    pauses,
    rows_at_risk,
    stage,
    with_marks,
)

NEW = "proxy:2"


def workload(upgraded_to: str | None = NEW, *, settled: bool = True, failed: str | None = None) -> Workload:
    counts: dict[str, Any] = {"replicas": 2, "updated": 2 if settled else 1, "ready": 2, "available": 2}
    return Workload(generation_seen=True, failed=failed, upgraded_to=upgraded_to, **counts)


def upgrades(at_a_time: int = 1) -> Upgrades:
    return Upgrades(NEW, at_a_time, known=True)


def see(found: Upgrades, name: str, seen: Workload | None, now: float = 0.0, **how: bool) -> None:
    found.see(name, seen, now, **{"failing": False, "trying": False, **how})


@pytest.mark.parametrize(
    ("seen", "how", "expected"),
    [
        (None, {}, None),
        (None, {"trying": True}, Stage.TRYING),
        (workload(None, settled=False), {}, None),
        (workload("proxy:1", settled=False), {"failing": True}, None),
        (workload("proxy:1"), {"trying": True}, Stage.TRYING),
        (workload(settled=False), {}, Stage.ROLLING),
        (workload(), {}, Stage.SETTLED),
        (workload(), {"failing": True}, Stage.DEGRADED),
        (workload(settled=False, failed="deadline"), {}, Stage.DEGRADED),
    ],
)
def test_the_part_of_a_resource_is_what_its_deployment_and_its_pods_say(
    seen: Workload | None, how: dict[str, bool], expected: Stage | None
) -> None:
    assert stage(seen, NEW, **{"failing": False, "trying": False, **how}) is expected


def test_so_many_have_a_turn_at_a_time_and_who_has_one_keeps_it() -> None:
    found = upgrades(2)
    assert [found.claim(name, 0.0) is None for name in ("a", "b", "c", "a")] == [True, True, False, True]
    why = found.why_not("c", 0.0)
    assert why is not None
    for word in ("waits for a, b", "2 at a time", f"{ROLL_ANNOTATION}=now"):
        assert word in why


def test_a_turn_ends_when_nothing_of_it_is_out_or_nobody_is_there() -> None:
    found = upgrades()
    found.claim("a", 0.0)
    see(found, "a", workload(None))
    assert found.claim("b", 0.0) is None
    found.forget("b")
    assert found.claim("c", 0.0) is None


def test_a_check_keeps_the_turn_but_one_of_an_authors_change_takes_none() -> None:
    found = upgrades()
    see(found, "a", workload(None), trying=True)
    assert found.claim("b", 0.0) is None
    see(found, "b", workload(None), trying=True)
    assert found.why_not("a", 0.0) is not None


def test_a_turn_ends_some_time_after_its_pods_have_settled_and_what_happens_meanwhile_begins_it_anew() -> None:
    found = upgrades()
    see(found, "a", workload(settled=False), 0.0)
    see(found, "a", workload(), 10.0)
    see(found, "a", workload(), 10.0 + SOAK_S - 1)
    assert found.why_not("b", 10.0 + SOAK_S - 1) is not None
    assert found.why_not("b", 10.0 + SOAK_S) is None
    see(found, "a", workload(settled=False), 50.0)
    assert found.why_not("b", 50.0) is not None
    see(found, "a", workload(), 60.0)
    assert found.why_not("b", 60.0 + SOAK_S - 1) is not None


def test_a_turn_that_is_over_is_taken_anew_for_another_change() -> None:
    found = upgrades()
    see(found, "a", workload(), 0.0)
    assert found.claim("a", SOAK_S) is None
    assert found.why_not("b", SOAK_S) is not None


def test_while_one_is_degraded_by_it_nobody_else_begins_however_many_may() -> None:
    found = upgrades(9)
    found.claim("b", 0.0)
    see(found, "a", workload(), 0.0, failing=True)
    for name in ("b", "c"):
        why = found.why_not(name, 1e6)
        assert why is not None
        for word in (f"upgrade to {NEW} has stopped, because a got it and is degraded", f"{ROLL_ANNOTATION}=now"):
            assert word in why
    assert found.why_not("a", 0.0) is None  # what comes next may repair it


def test_what_an_earlier_leader_began_counts_once_it_was_read_and_what_was_seen_since_counts_more() -> None:
    found = Upgrades(NEW, 1)
    see(found, "a", workload())
    found.take_over({"a": workload(settled=False), "b": workload(settled=False), "c": workload(None)}, SOAK_S)
    assert found.known
    why = found.why_not("c", SOAK_S)
    assert why is not None
    assert "waits for b:" in why
    see(found, "b", None)
    found.take_over({"b": workload(settled=False)}, SOAK_S)
    assert found.why_not("c", SOAK_S) is None


def test_many_are_not_all_named() -> None:
    found = upgrades(5)
    for name in "abcde":
        found.claim(name, 0.0)
    assert "waits for a, b, c and 2 more:" in str(found.why_not("f", 0.0))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.floats(0, 40))), st.integers(1, 3))
@example(steps=[("d", 0, 0.0), ("d", 3, 0.0), ("d", 0, 0.0), ("a", 0, SOAK_S)], at_a_time=1)
def test_at_no_time_do_more_have_a_turn_than_may(steps: list[tuple[str, int, float]], at_a_time: int) -> None:
    found, now = upgrades(at_a_time), 0.0
    out: dict[str, Workload | None] = {}
    for name, what, after_s in steps:
        now += after_s
        if what < 2 and found.claim(name, now) is None:
            out[name] = workload(settled=False)
        elif what == 2:
            see(found, name, out.get(name), now)
        elif what == 3 and out.get(name) is not None:
            out[name] = workload()
            see(found, name, out[name], now)
        rolling = [name for name, seen in out.items() if seen is not None and not seen.settled]
        assert len(rolling) <= at_a_time


# Rows.


def pod(name: str = "p", *, ready: bool = True, rows: int | None = 0) -> PodFacts:
    report = None
    if rows is not None:
        report = ProxyReport(
            rows=rows,
            size_bytes=0,
            utilisation=0.0,
            oldest_age_s=None,
            stuck_rows=rows,
            stuck=[],
            token_hash=None,
            token_accepted=False,
            token_denied=False,
            candidate_rejected=False,
        )
    return PodFacts(name=name, ip="::1", ready=ready, waiting=None, out_of_memory=False, report=report)


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ([], None),
        ([pod()], None),
        ([pod(rows=1200), pod(rows=34)], ["template is held back: 1,234 rows wait"]),
        ([pod("a", rows=None), pod("b")], ["of a it is not known", "/status"]),
        ([pod(ready=False, rows=None)], None),
    ],
)
def test_rows_that_wait_and_ready_pods_that_do_not_tell_keep_the_pods(
    pods: list[PodFacts], words: list[str] | None
) -> None:
    why = rows_at_risk(pods)
    assert (why is None) is (words is None)
    for word in [*(words or []), *([f"{ROLL_ANNOTATION}=now"] if words else [])]:
        assert word in str(why)


OLD_POD: dict[str, Any] = {"rows": 7}
NEW_POD: dict[str, Any] = {"rows": 7, "newest": True}


@pytest.mark.parametrize(
    ("changes", "pods", "at_once", "words"),
    [
        ({}, [OLD_POD], False, "paused half-way: 7 rows wait in pods of the template before"),
        ({}, [OLD_POD], True, None),
        ({}, [OLD_POD, NEW_POD], False, "7 rows"),
        ({}, [NEW_POD], False, None),
        ({}, [{"rows": 0}, NEW_POD], False, None),
        ({}, [{"rows": None}], False, "paused half-way: of p it is not known"),
        ({}, [{"rows": None, "ready": False}], False, None),
        ({}, [{**OLD_POD, "terminating": True}], False, None),
        ({"updated": 3}, [OLD_POD], False, None),
        ({"generation_seen": False}, [OLD_POD], False, None),
        ({"generation_seen": False, "paused": True}, [OLD_POD], False, "7 rows"),
        ({"paused": True}, [OLD_POD], False, "7 rows"),
        ({"paused": True}, [], False, None),
    ],
)
def test_a_rollout_stands_while_old_pods_hold_what_nobody_delivers(
    changes: dict[str, Any], pods: list[dict[str, Any]], at_once: bool, words: str | None
) -> None:
    counts = {"generation_seen": True, "replicas": 3, "updated": 1, "ready": 3, "available": 2, "failed": None}
    found = []
    for each in pods:
        facts = {name: value for name, value in each.items() if name in ("newest", "terminating")}
        found.append(replace(pod(ready=each.get("ready", True), rows=each["rows"]), **facts))
    why = pauses(Workload(**{**counts, **changes}), found, at_once=at_once)
    assert (why is None) is (words is None)
    assert str(words or None) in str(why)


# What stands on a Deployment.


def body(generation: int = 1, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"generation": generation}, "spec": spec}


@pytest.mark.parametrize(
    ("after", "another"),
    [
        (body(1, mode="Deployment", replicas=2), False),
        (body(2, mode="Deployment", replicas=3), False),  # it was scaled
        (body(1, mode="Deployment", replicas=2, preflight="Enabled"), False),  # the CRD has a new default
        (body(2, mode="Deployment", replicas=2, preflight="Disabled"), True),
    ],
)
def test_what_its_author_asks_is_told_from_scalings_and_new_defaults(after: dict[str, Any], another: bool) -> None:
    before = author_mark(body(1, mode="Deployment", replicas=2))
    live = with_marks({"metadata": {"name": "a"}}, made_for=before, upgraded_to=None)
    assert is_for_another(live, author_mark(after)) is another
    assert not is_for_another({"metadata": {}}, before)  # an earlier operator made it


def test_marks_stand_beside_what_is_there() -> None:
    marked = with_marks({"metadata": {"annotations": {"a": "b"}}}, made_for="1.x", upgraded_to=NEW)
    assert marked["metadata"]["annotations"] == {"a": "b", MADE_FOR_ANNOTATION: "1.x", UPGRADED_ANNOTATION: NEW}
