"""What the operator is told of the simulation's pods, and that it decides with that."""

import random
from collections.abc import Sequence

import pytest
from tests.simulation.decided import labelled_for_s, seen, utc
from tests.simulation.pods import Pod
from tests.simulation.proxy import Proxy, ProxyModel
from tests.simulation.tinybird import Tinybird, Upstream, Window

from tinybird_proxy_operator.scaling.shrink import Plan, Situation, Stage, decide
from tinybird_proxy_operator.scaling.throttle import Throttle, look
from tinybird_proxy_operator.spec import Drain

NOW_S = 100.0


def pod(name: str = "pod-1", *, rows: int = 0) -> Pod:
    one = Pod(name, 0.0, 8.0, Proxy(ProxyModel()))
    one.proxy.take(NOW_S, rows)
    return one


def victim(*, rows: int = 0) -> Pod:
    """It drains for 20 s."""
    one = pod("victim", rows=rows)
    one.label(80.0)
    one.proxy.drain(80.0)
    return one


def plan(pods: Sequence[Pod], *, wanted: int, now_s: float = NOW_S) -> Plan:
    return decide(
        Situation(
            wanted=wanted,
            live=len(pods),
            generation_seen=True,
            rolling=False,
            pods=[seen(one, now_s) for one in pods],
            drain=Drain(),
            now=utc(now_s),
            labelled_for_s=labelled_for_s(pods, now_s),
        )
    )


def test_a_pod_is_silent_until_its_process_answers_and_holds_nothing_for_sure_while_there_is_none() -> None:
    told = [seen(pod(), now_s) for now_s in (1.0, 2.0, 7.0, 8.0)]
    assert [one.running for one in told] == [False, True, True, True]
    assert [one.report is not None for one in told] == [False, False, True, True]
    assert [one.ready for one in told] == [False, False, False, True]


def test_who_holds_least_is_chosen_first_and_told_to_drain() -> None:
    found = plan([pod("a", rows=30), pod("b", rows=2), pod("c", rows=5)], wanted=1)
    assert (found.stage, set(found.label), set(found.begin)) == (Stage.DRAINING, {"b", "c"}, {"b", "c"})


@pytest.mark.parametrize(("rows", "replicas"), [(0, 1), (1, 2)])
def test_a_victim_goes_once_it_is_empty(rows: int, replicas: int) -> None:
    assert plan([victim(rows=rows), pod("other")], wanted=1).replicas == replicas


def test_a_victim_that_holds_rows_at_the_deadline_serves_again() -> None:
    pods = [victim(rows=7), pod("other")]
    assert plan(pods, wanted=1, now_s=379.0).stage is Stage.DRAINING
    given_up = plan(pods, wanted=1, now_s=380.0)
    assert (given_up.stage, given_up.replicas) == (Stage.GIVING_UP, 2)
    assert given_up.unlabel == given_up.cancel == ("victim",)


def test_rows_that_wait_because_of_429_freeze_scale_up() -> None:
    one = pod(rows=100)
    throttled = Upstream(low_limit=0.0, throttled=(Window(0, 1_000),))
    to = Tinybird(throttled, random.Random(1))
    to.answer(NOW_S)  # the one that the bucket holds
    assert not look(Throttle(), [seen(one, NOW_S)], NOW_S).throttled
    one.proxy.deliver(NOW_S, to, random.Random(1))
    assert look(Throttle(), [seen(one, NOW_S)], NOW_S).throttled


def test_rows_that_wait_because_of_an_outage_do_not() -> None:
    one = pod(rows=100)
    one.proxy.deliver(NOW_S, Tinybird(Upstream(outages=(Window(0, 1_000),)), random.Random(1)), random.Random(1))
    told = seen(one, NOW_S).report
    assert told is not None
    assert told.stuck_rows == 100
    assert not look(Throttle(), [seen(one, NOW_S)], NOW_S).throttled
