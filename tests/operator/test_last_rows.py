"""What each pod held when it was last asked: known after its process was ended."""

from dataclasses import replace

from tests.operator.test_status import pod, said

from tinybird_proxy_operator.last_rows import Held, remember, with_lost_rows
from tinybird_proxy_operator.observed import PodFacts


def asked(rows: int, *, uptime_s: float | None, killed: bool = False) -> PodFacts:
    return pod(report=replace(said(), rows=rows, uptime_s=uptime_s), out_of_memory=killed)


def lost(known: dict[str, Held], found: PodFacts) -> int | None:
    [told] = with_lost_rows(known, [found])
    return told.lost_rows


def test_the_rows_of_a_process_that_is_no_more_are_those_of_its_last_answer() -> None:
    known = remember({}, [asked(2, uptime_s=50.0)], 100.0)
    known = remember(known, [asked(3, uptime_s=60.2)], 110.0)
    silent = pod(report=None, out_of_memory=True)
    known = remember(known, [silent], 112.0)
    assert lost(known, silent) == 3
    again = asked(0, uptime_s=1.0, killed=True)
    known = remember(known, [again], 115.0)
    assert lost(known, again) == 3
    later = asked(7, uptime_s=101.0, killed=True)
    assert lost(remember(known, [later], 215.0), later) == 3


def test_a_process_that_was_killed_has_lost_what_it_held_as_well() -> None:
    known = remember({}, [asked(2, uptime_s=50.0)], 100.0)
    assert lost(known, pod(report=None, killed_with=137)) == 2


def test_without_an_earlier_answer_nothing_is_claimed() -> None:
    again = asked(0, uptime_s=1.0, killed=True)
    known = remember({}, [again], 115.0)
    assert lost(known, again) is None
    assert lost({}, pod(report=None, out_of_memory=True)) is None


def test_a_proxy_that_does_not_say_since_when_it_runs_tells_nothing_about_the_one_before() -> None:
    assert remember({}, [asked(3, uptime_s=None)], 100.0) == {}


def test_pods_that_are_gone_are_forgotten_and_others_lost_nothing() -> None:
    well = asked(3, uptime_s=50.0)
    known = remember({"gone": Held(1.0, 5)}, [well], 100.0)
    assert set(known) == {well.uid}
    assert with_lost_rows(known, [well]) == [well]


def test_a_statefulsets_next_pod_of_the_name_has_lost_nothing_of_what_was_in_the_one_before() -> None:
    known = remember({}, [replace(asked(40, uptime_s=50.0), uid="before")], 100.0)
    silent = replace(pod(report=None, out_of_memory=True), uid="next")
    assert lost(remember(known, [silent], 110.0), silent) is None
    again = replace(asked(0, uptime_s=1.0, killed=True), uid="next")
    assert lost(remember(known, [again], 115.0), again) is None
