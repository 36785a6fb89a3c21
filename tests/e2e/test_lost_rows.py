"""A pod whose process ends with rows: what that cost is in the status and in an Event, to the row."""

from typing import Any

from tests.e2e.kubectl import Namespace, token_secret, until

HELD = ("a", "b", "c")
# Less than the proxy takes to look away from new rows, so that it is ended before it could deliver.
SHORT_GRACE = "--grace-period=3"


def _hold_rows(namespace: Namespace, **spec: Any) -> str:
    """One pod with rows that Tinybird has not taken, and its name; one row was delivered before."""
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(**spec))
    namespace.wait_ready()
    namespace.post("before")
    namespace.until_arrived("before")
    namespace.faults({"status": 503})
    namespace.post(*HELD)
    [pod] = namespace.pods()
    assert namespace.pods_rows() == {pod: len(HELD)}
    return pod


def _lost(namespace: Namespace) -> dict[str, Any]:
    found: dict[str, Any] = until("status.lost", lambda: namespace.get("tbp", "events")["status"].get("lost"))
    return found


def _what_tinybird_misses(namespace: Namespace) -> set[str]:
    """Of the rows that were taken, once a row that came later has arrived."""
    namespace.faults()
    namespace.wait_ready()
    namespace.post("after")
    namespace.until_arrived("after")
    return {"before", "after", *HELD} - set(namespace.rows())


def test_a_pod_that_is_ended_before_it_could_deliver_is_told_with_the_rows_that_tinybird_did_not_get(
    namespace: Namespace,
) -> None:
    pod = _hold_rows(namespace)
    namespace.kubectl("delete", "pod", pod, SHORT_GRACE)
    lost = _lost(namespace)
    assert lost["rows"] == len(_what_tinybird_misses(namespace)) == len(HELD)
    assert (lost["inDoubtRows"], lost["deadLetterRows"]) == (len(HELD), 0)
    assert [(each["pod"], each["rows"]) for each in lost["recent"]] == [(pod, len(HELD))]
    [told] = until("an Event", lambda: namespace.events("RowsLost"))
    assert told.startswith(f"The proxy in {pod} was ended before it could deliver {len(HELD)} rows")
    assert "503" in told, "it does not say why"


def test_a_process_that_ends_by_itself_with_rows_is_counted_once_while_its_pod_stays(namespace: Namespace) -> None:
    pod = _hold_rows(namespace, drain={"shutdownTimeoutSeconds": 10})
    namespace.kubectl("exec", pod, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    lost = _lost(namespace)
    assert (lost["rows"], lost["deadLetterRows"]) == (len(HELD), 0)
    assert _what_tinybird_misses(namespace) == set(HELD)
    namespace.kubectl("annotate", "pod", pod, "example.com/looked-at=again")
    until("the next look", lambda: namespace.get("tbp", "events")["status"]["buffer"]["rows"] == 0)
    assert _lost(namespace) == lost
    [told] = namespace.events("RowsLost")
    assert told.startswith(f"The proxy in {pod} stopped with {len(HELD)} rows lost")
