"""Deletion: what is waited for, what is not, and what is told. By table."""

from typing import Any

import pytest
from tests.operator.clusters import IPS
from tests.operator.deleting_clusters import OURS, THEIRS
from tests.operator.resources import resource

from tinybird_proxy_operator.deletion import Release, at_once, decide, farewells, verdict
from tinybird_proxy_operator.names import DELETE_ANNOTATION, Reason
from tinybird_proxy_operator.observed import PodFacts, ProxyReport
from tinybird_proxy_operator.spec import Drain
from tinybird_proxy_operator.testing.field_owners import Object


def facts(name: str = "p-1", *, running: bool = True, **said: Any) -> PodFacts:
    """A pod; without anything said it did not answer."""
    well: dict[str, Any] = {"rows": 0, "size_bytes": 0, "utilisation": 0.0, "oldest_age_s": None, "stuck_rows": 0}
    token = {"token_hash": None, "token_accepted": False, "token_denied": False, "candidate_rejected": False}
    answer = ProxyReport(**{**well, "stuck": [], **token, **said}) if said else None
    return PodFacts(
        name=name, ip=IPS[0], ready=False, waiting=None, out_of_memory=False, report=answer, running=running
    )


SILENT, ABSENT = facts(), facts(running=False)
EMPTY, HOLDING = facts(draining=True, refusing=True, rows=0), facts(draining=True, refusing=True, rows=7)


@pytest.mark.parametrize(
    ("metadata", "spec", "why"),
    [
        ({}, {}, None),
        ({"finalizers": [OURS, THEIRS]}, {"managementState": "Managed"}, None),
        ({"finalizers": [OURS, "foregroundDeletion"]}, {}, Release.FOREGROUND),
        ({"finalizers": ["orphan", OURS]}, {}, Release.ORPHANED),
        ({"annotations": {DELETE_ANNOTATION: "now"}}, {}, Release.NOW),
        ({"annotations": {DELETE_ANNOTATION: "later"}}, {}, None),
        ({"annotations": None, "finalizers": None}, None, None),
        ({}, {"managementState": "Unmanaged"}, Release.UNMANAGED),
    ],
)
def test_what_the_resource_itself_says_is_not_waited_for(
    metadata: Object, spec: Object | None, why: Release | None
) -> None:
    assert at_once({"metadata": metadata, "spec": spec}) is why


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("overdue", [False, True])
@pytest.mark.parametrize(
    ("pods", "empty"),
    [
        ([], True),
        ([EMPTY], True),
        ([EMPTY, EMPTY], True),
        ([ABSENT, EMPTY], True),
        ([HOLDING], False),
        ([EMPTY, HOLDING], False),
        ([facts(draining=False, rows=0)], False),
        ([facts(draining=False, rows=7)], False),
        ([SILENT], False),
        ([EMPTY, SILENT], False),
        ([facts(draining=True, rows=0)], False),
        ([facts(draining=True, refusing=True, rows=0, dead_letter_rows=9)], True),
        ([facts(running=False, draining=True, rows=7)], False),
    ],
)
def test_pods_are_waited_for_until_each_is_known_to_be_empty_or_the_deadline_drops_them(
    pods: list[PodFacts], empty: bool, overdue: bool, drop: bool
) -> None:
    drain = Drain(on_deadline="Drop" if drop else "Keep")
    assert decide(pods, drain, has_workload=False, overdue=overdue) is Release.NO_WORKLOAD
    found = decide(pods, drain, has_workload=True, overdue=overdue)
    assert found is (Release.EMPTY if empty else Release.DROPPED if overdue and drop else None)


def test_the_condition_says_what_is_left_why_and_what_to_do() -> None:
    proxy = resource({"drain": {"deadlineSeconds": 30}})
    pods = [facts(draining=True, rows=1234, stuck=["clicks: Tinybird answers 403."], dead_letter_rows=1), facts("p-2")]
    status, reason, message = verdict(proxy, pods, overdue=False, hindrance=None)
    assert (status, reason) == ("True", Reason.DELETING)
    assert message == (
        "1,200 rows are left in 1 pods. p-2 did not answer: what is there is not known. clicks: Tinybird answers 403."
        " It goes when no pod holds a row. 1 row is in dead letters, which are in the pods' memory and go with them;"
        " they are not waited for."
    )
    status, reason, message = verdict(proxy, pods, overdue=True, hindrance="The Secret is gone.")
    assert (status, reason) == ("False", Reason.DRAIN_DEADLINE_EXCEEDED)
    assert message.startswith("Not empty after 30 s: 1,200 rows are left")
    for part in (
        "The Secret is gone. clicks",
        "annotate tbp events tinybird-proxy.io/delete=now",
        "onDeadline to Drop",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("why", "pods", "rows", "reasons"),
    [
        (Release.EMPTY, [EMPTY], 5, []),
        (Release.EMPTY, [facts(draining=True, rows=0, dead_letter_rows=3)], 0, ["DeadLettersDropped"]),
        (Release.NOW, [], 5, ["RowsDropped"]),
        (Release.NOW, [], 0, []),
        (Release.FOREGROUND, [], 5, []),
        (Release.DROPPED, [HOLDING], 0, ["RowsDropped"]),
        (Release.DROPPED, [SILENT], 0, ["RowsDropped"]),
        (Release.DROPPED, [facts(draining=True, rows=7, dead_letter_rows=3)], 0, ["RowsDropped", "DeadLettersDropped"]),
    ],
)
def test_what_goes_unwaited_for_is_told(why: Release, pods: list[PodFacts], rows: int, reasons: list[str]) -> None:
    told = farewells(why, resource(), pods, {"buffer": {"rows": rows}})
    assert [str(reason) for reason, _ in told] == reasons
    assert all("pods" in message for _, message in told)


NOT_KNOWN = "p-2 did not answer: what is there is not known."


def last_look(message: str, rows: int | None) -> dict[str, Any]:
    buffer = {} if rows is None else {"buffer": {"rows": rows}}
    return {"conditions": [{"type": "BufferHealthy", "message": message}], **buffer}


@pytest.mark.parametrize(
    ("old", "said"),
    [
        ({}, None),
        (last_look("Nothing is buffered.", 0), None),
        (last_look("Rows are delivered.", 7), "7 rows are left at the last look."),
        (
            last_look(f"Rows are delivered. {NOT_KNOWN}", 7),
            f"7 rows are left at the last look. At the last look {NOT_KNOWN}",
        ),
        (last_look(f"Nothing is buffered. {NOT_KNOWN}", 0), f"At the last look {NOT_KNOWN}"),
        (last_look("As it was.", None), "No pod answered at the last look: what they hold is not known."),
    ],
)
def test_where_the_pods_are_not_asked_any_more_what_nobody_knew_of_them_is_told_and_not_nothing(
    old: dict[str, Any], said: str | None
) -> None:
    told = farewells(Release.NOW, resource(), [], old)
    assert [reason for reason, _ in told] == ([] if said is None else [Reason.ROWS_DROPPED])
    for _, message in told:
        assert message.startswith(f"Deleted, for {Release.NOW}. {said} Its pods go on delivering")


def test_of_pods_that_do_not_answer_and_are_dropped_it_is_told_that_nobody_knows_and_nothing_else() -> None:
    [(_, message)] = farewells(Release.DROPPED, resource(), [SILENT], {})
    assert f"{Release.DROPPED}. p-1 did not answer: what is there is not known. Its pods go on" in message
