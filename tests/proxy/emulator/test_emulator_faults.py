"""`tinybird_proxy.emulator.faults`: which fault strikes which request."""

import random
from typing import Any, Literal

import pytest

from tinybird_proxy.emulator.faults import BadFault, Fault, FaultList, faults_from_json


def _faults(*faults: Fault) -> FaultList:
    listed = FaultList(random.Random(1))
    listed.replace(faults)
    return listed


def test_a_fault_applies_as_many_times_as_it_says() -> None:
    faults = _faults(Fault(status=503, times=2))
    assert [faults.take("hits", 10, ()) is None for _ in range(3)] == [False, False, True]
    assert [applied for _, applied in faults.applied()] == [2]


def test_a_fault_without_times_applies_until_it_is_replaced() -> None:
    faults = _faults(Fault(status=503))
    assert all(faults.take("hits", 10, ()) for _ in range(1000))
    faults.replace([])
    assert faults.take("hits", 10, ()) is None


def test_the_first_fault_that_is_for_a_request_applies_alone() -> None:
    faults = _faults(Fault(status=503, times=1), Fault(status=500))
    assert [fault.status for _ in range(2) if (fault := faults.take("hits", 10, ()))] == [503, 500]


def test_a_fault_may_be_for_one_data_source_only() -> None:
    faults = _faults(Fault(status=503, datasource="hits"))
    assert faults.take("clicks", 10, ()) is None
    assert faults.take("hits", 10, ()) is not None


def test_a_ceiling_applies_to_larger_bodies_only() -> None:
    faults = _faults(Fault(above_bytes=10))
    assert faults.take("hits", 10, ()) is None
    fault = faults.take("hits", 11, ())
    assert fault is not None
    assert fault.status == 413


def test_a_row_pattern_applies_when_it_was_found() -> None:
    faults = _faults(Fault(row_matches="poison"))
    assert faults.row_patterns("hits") == ["poison"]
    assert faults.take("hits", 10, ()) is None
    fault = faults.take("hits", 10, {"poison"})
    assert fault is not None
    assert fault.status == 400


def test_patterns_of_exhausted_faults_are_not_looked_for() -> None:
    faults = _faults(Fault(row_matches="poison", times=1), Fault(row_matches="other", datasource="clicks"))
    faults.take("hits", 10, {"poison"})
    assert faults.row_patterns("hits") == []


def test_a_share_is_a_share_of_the_requests() -> None:
    faults = _faults(Fault(status=503, share=0.3))
    struck = sum(faults.take("hits", 10, ()) is not None for _ in range(1000))
    assert 250 < struck < 350
    assert _faults(Fault(status=503, share=0.0)).take("hits", 10, ()) is None


@pytest.mark.parametrize("reset", ["before_body", "during_body"])
def test_a_reset_before_the_body_was_read_is_taken_before_that_only(
    reset: Literal["before_body", "during_body"],
) -> None:
    faults = _faults(Fault(reset=reset), Fault(status=503))
    after = faults.take("hits", 10, ())
    before = faults.take_before_body("hits", 10)
    assert after is not None
    assert after.status == 503
    assert before is not None
    assert before.reset == reset


def test_a_body_of_undeclared_length_is_not_reset_by_its_size() -> None:
    assert _faults(Fault(reset="before_body", above_bytes=5)).take_before_body("hits", None) is None


@pytest.mark.parametrize(
    ("fault", "ingests"),
    [
        (Fault(status=503), False),
        (Fault(status=202), False),
        (Fault(reset="after_body"), False),
        (Fault(hang=True), False),
        (Fault(status=500, ingest=True), True),
        (Fault(delay_s=1.0), True),
        (Fault(counts={"successful_rows": 3}), True),
        (Fault(quarantine="all"), True),
        (Fault(ingest=False), False),
        (Fault(above_bytes=1), False),
    ],
)
def test_whether_rows_are_stored(fault: Fault, ingests: bool) -> None:
    assert fault.ingests is ingests


def test_decorations_do_not_replace_the_default_status() -> None:
    assert Fault(above_bytes=10, retry_after=3).status == 413
    assert Fault(row_matches="x", text=True).status == 400
    assert Fault(above_bytes=10, delay_s=1.0).status is None


def test_a_fault_survives_the_way_through_json() -> None:
    value = {"status": 429, "retry_after": 2, "times": 3, "share": 0.5, "headers": {"X-A": "b"}}
    assert Fault.from_json(value).to_json() == value


def test_null_means_absent() -> None:
    assert Fault.from_json({"status": 503, "times": None, "share": None}) == Fault(status=503)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a fault must be a JSON object"),
        ({}, "a fault must do something: set one of status, body, counts, delay_s"),
        ({"times": 2}, "a fault must do something"),
        ({"statsu": 503}, "statsu: unknown, must be one of datasource, above_bytes, row_matches"),
        ({"status": 100}, "status: 100, must be an HTTP status from 200 to 599"),
        ({"status": "503"}, "status: '503', must be"),
        ({"status": True}, "status: True, must be"),
        ({"status": 503, "times": 0}, "times: 0, must be a number of requests, 1 or more"),
        ({"status": 503, "share": 1.5}, "share: 1.5, must be a number from 0 to 1"),
        ({"status": 503, "retry_after": -1}, "retry_after: -1, must be"),
        ({"status": 503, "retry_after": "a\r\nb"}, "retry_after: .* must be"),
        ({"status": 503, "headers": {"a b": "c"}}, "headers: .* must be"),
        ({"status": 503, "headers": {"Content-Length": "3"}}, "headers: .* must be"),
        ({"delay_s": -1}, "delay_s: -1, must be seconds from 0 to 3600"),
        ({"reset": "sometimes"}, "must be 'before_body', 'during_body' or 'after_body'"),
        ({"reset": "before_body", "row_matches": "x"}, "'before_body' knows no rows"),
        ({"reset": "during_body", "row_matches": "x"}, "'during_body' knows no rows"),
        ({"reset": "before_body", "ingest": True}, "'before_body' knows no rows"),
        ({"quarantine": 0}, "quarantine: 0, must be"),
        ({"quarantine": 1, "status": 500}, "it needs ingest: true"),
        ({"counts": {"rows": 1}}, "counts: .* must be an object of successful_rows, quarantined_rows"),
        ({"row_matches": ""}, "row_matches: '', must be"),
        ({"row_matches": "/(/"}, "row_matches: .* must be"),
        ({"above_bytes": -1}, "above_bytes: -1, must be"),
        ({"datasource": 1, "status": 503}, "datasource: 1, must be"),
        ({"row_matches": "\ud800"}, "row_matches: .* must be"),
        ({"body": "\ud800"}, "body: .* must be a string"),
        ({"text": 1, "status": 503}, "text: 1, must be true or false"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_what_is_allowed(value: Any, message: str) -> None:
    with pytest.raises(BadFault, match=message):
        Fault.from_json(value)


def test_a_list_names_the_fault_that_cannot_be() -> None:
    with pytest.raises(BadFault, match=r"^fault 2: status"):
        faults_from_json({"faults": [{"status": 503}, {"status": 1}]})


@pytest.mark.parametrize("document", [None, [], {}, {"faults": {}}])
def test_a_document_of_another_form_is_refused(document: object) -> None:
    with pytest.raises(BadFault, match="the body must be"):
        faults_from_json(document)


def test_more_than_a_hundred_faults_are_refused_and_the_old_ones_stay() -> None:
    faults = _faults(Fault(status=503))
    with pytest.raises(BadFault, match="must be at most 100"):
        faults.replace([Fault(status=500)] * 101)
    assert [fault.status for fault, _ in faults.applied()] == [503]
