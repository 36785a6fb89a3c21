"""What pods prove of another injector, where this operator's release injects nowhere."""

from typing import Any

import pytest
from tests.operator.app_pods import HASH, SIDECAR, app_pod

from tinybird_proxy_operator.sidecars.app_pods import AppPod, asking
from tinybird_proxy_operator.sidecars.evidence import Evidence, is_believed, sentence, weigh


def pod(name: str, minute: int, **changes: Any) -> dict[str, Any]:
    return app_pod(name, creationTimestamp=f"2026-01-01T00:{minute:02}:00Z", **changes)


def pods(*given: dict[str, Any]) -> list[AppPod]:
    return asking(given, name="events", namespace_labels={}, sidecar=SIDECAR, reports={})


def uids(*names: str) -> frozenset[str]:
    return frozenset(f"uid-{name}" for name in names)


OLD, NEW, OUTDATED = pod("old", 1, hash=HASH), pod("new", 9, hash=HASH), pod("new", 9, hash="0")
MISSED, MISSED_FIRST, MISSED_WITH_IT = pod("m", 10), pod("m", 2), pod("m", 9)
REFUSED = pod("r", 10, spec={"hostNetwork": True})
ASKS_NO_MORE = pod("new", 9, hash=HASH, asks=None)
GOING = {"deletionTimestamp": "2026-01-01T01:00:00Z"}


@pytest.mark.parametrize(
    ("why", "given", "known", "witness"),
    [
        ("nobody asks", [], [], ""),
        ("nobody has it", [MISSED], [], ""),
        ("made while injection was off here", [NEW], [], "new"),
        ("with the sidecar of a moment before", [OUTDATED], [], "new"),
        ("made before", [OLD], ["old"], ""),
        ("one made before and one since", [OLD, NEW], ["old"], "new"),
        ("a newer one was missed", [NEW, MISSED], [], ""),
        ("a newer one was missed, and goes", [NEW, pod("m", 10, **GOING)], [], ""),
        ("one of the same second was missed", [NEW, MISSED_WITH_IT], [], ""),
        ("an older one was missed", [NEW, MISSED_FIRST], [], "new"),
        ("a newer one cannot have it", [NEW, REFUSED], [], "new"),
        ("it does not ask for this one now", [ASKS_NO_MORE], [], ""),
        ("nobody knows which is newer", [app_pod("a", hash=HASH), app_pod("b")], [], ""),
    ],
)
def test_a_pod_proves_another_injector_if_it_was_made_since_and_no_newer_one_was_missed(
    why: str, given: list[dict[str, Any]], known: list[str], witness: str
) -> None:
    assert weigh(pods(*given), Evidence(known=uids(*known)), settled=True).witness == witness, why


@pytest.mark.parametrize(
    ("before", "settled"), [(None, True), (None, False), (Evidence(), False)], ids=["first look", "both", "early"]
)
def test_what_was_there_at_the_first_looks_proves_nothing(before: Evidence | None, settled: bool) -> None:
    found = weigh(pods(OLD), before, settled=settled)
    assert found == Evidence(known=uids("old"))
    assert weigh(pods(OLD), found, settled=True).witness == ""
    assert weigh(pods(OLD, NEW), found, settled=True).witness == "new"


def test_what_was_proved_holds_while_a_pod_has_it_until_a_newer_one_is_missed() -> None:
    proved = weigh(pods(OLD, NEW), Evidence(known=uids("old")), settled=True)
    alone = weigh(pods(OLD), proved, settled=True)
    assert alone.witness == "old"
    assert weigh(pods(OLD, MISSED), alone, settled=True).witness == ""
    assert weigh(pods(), alone, settled=True).witness == ""


def test_once_a_pod_was_missed_those_that_were_there_then_prove_nothing_any_more() -> None:
    refuted = weigh(pods(NEW, MISSED), Evidence(), settled=True)
    assert refuted == Evidence(known=uids("new", "m"))
    without = weigh(pods(NEW), refuted, settled=True)
    assert without == Evidence(known=uids("new"))
    assert weigh(pods(NEW, pod("n", 11, hash=HASH)), without, settled=True).witness == "n"


def test_another_operator_goes_on_from_what_the_status_says() -> None:
    assert weigh(pods(OLD), None, settled=False, believed=True) == Evidence(witness="old", known=uids("old"))
    assert weigh(pods(OLD, MISSED), None, settled=False, believed=True).witness == ""
    assert weigh(pods(), None, settled=False, believed=True).witness == ""
    # What it found itself counts more.
    assert weigh(pods(OLD), Evidence(known=uids("old")), settled=True, believed=True).witness == ""


@pytest.mark.parametrize(
    ("reason", "believed"), [("InjectedByOthers", True), ("Ready", False), ("InjectionOff", False)]
)
def test_the_status_says_it_in_the_reason_of_ready(reason: str, believed: bool) -> None:
    other = {"type": "Degraded", "status": "False", "reason": "AsExpected"}
    status = {"conditions": [other, {"type": "Ready", "status": "True", "reason": reason}]}
    assert is_believed(status) is believed
    assert not is_believed({})


def test_what_is_told_names_the_pod_and_promises_nothing() -> None:
    assert sentence("") == ""
    assert sentence("new") == (
        "This operator puts sidecars into no pods itself, something else does (new is the newest pod that has one);"
        " whether it goes on is not in this operator's hands."
    )
