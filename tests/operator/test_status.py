"""The status, by table: every reason of every condition, and what makes it worth writing."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.operator.resources import OWN_TOKEN, resource

from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import Observed, PodFacts, Problem, ProxyReport, Workload
from tinybird_proxy_operator.preflight import Decision, Step
from tinybird_proxy_operator.status import MESSAGE_MAX_CHARS, differs, make_status

NOW, BEFORE = "2026-01-01T00:00:10Z", "2026-01-01T00:00:00Z"


def said(**changes: Any) -> ProxyReport:
    well: dict[str, Any] = {"rows": 0, "size_bytes": 0, "utilisation": 0.0, "oldest_age_s": None, "stuck_rows": 0}
    token = {"token_hash": "aa", "token_accepted": False, "token_denied": False, "candidate_rejected": False}
    return ProxyReport(**{**well, "stuck": [], **token, **changes})


def pod(name: str = "p-1", **changes: Any) -> PodFacts:
    facts: dict[str, Any] = {"ip": "10.0.0.1", "ready": True, "waiting": None, "out_of_memory": False, "report": said()}
    return PodFacts(**{"name": name, **facts, **changes})


def workload(**changes: Any) -> Workload:
    counts = dict.fromkeys(("replicas", "updated", "ready", "available"), 1)
    return Workload(**{"generation_seen": True, **counts, "failed": None, **changes})


def observed(**changes: Any) -> Observed:
    facts: dict[str, Any] = {
        **{"wanted_replicas": 1, "workload": workload(), "pods": [pod()], "problems": [], "held": None},
        **{"uses_own_token": True, "token_secret": "tinybird", "expected_token_hash": "aa"},
    }
    return Observed(**{**facts, **changes})


def status(facts: Observed, old: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return make_status(resource(OWN_TOKEN, **metadata), facts, old or {}, now=NOW)


def condition(facts: Observed, kind: str) -> tuple[str, str, str]:
    found = next(each for each in status(facts)["conditions"] if each["type"] == kind)
    return found["status"], found["reason"], found["message"]


def problem(reason: Reason, message: str = "It is so.") -> Problem:
    return Problem(reason=reason, message=message)


MISSING = {"problems": [problem(Reason.SECRET_NOT_FOUND, "Secret gone.")], "expected_token_hash": None}


@pytest.mark.parametrize(
    ("facts", "status", "reason", "message"),
    [
        ({}, "True", "Ready", "1 of 1 pods are ready."),
        ({"wanted_replicas": 0, "workload": workload(ready=0), "pods": []}, "True", "Ready", "0 of 0 pods are ready."),
        ({"wanted_replicas": 2}, "False", "NotReady", "1 of 2 pods are ready."),
        (
            {"workload": workload(available=0)},
            "False",
            "NotReady",
            "1 of 1 pods are ready. 0 of them have been for long enough.",
        ),
        ({"workload": workload(ready=2, available=2)}, "True", "Ready", "2 pods are ready, 1 are wanted."),
        ({"workload": None, "pods": []}, "False", "NotReady", "0 of 1 pods are ready."),
        (
            {"workload": workload(generation_seen=False)},
            "False",
            "NotReady",
            "1 of 1 pods are ready. Kubernetes has not taken up the last change yet.",
        ),
        (
            {"workload": workload(ready=0), "pods": [pod(waiting="ErrImagePull: no"), pod("p-2")]},
            "False",
            "NotReady",
            "0 of 1 pods are ready. p-1: ErrImagePull: no.",
        ),
        ({"problems": [problem(Reason.NAME_TAKEN)]}, "False", "NameTaken", "It is so."),
        ({"problems": [problem(Reason.INVALID_SPEC)]}, "False", "InvalidSpec", "It is so."),
        (MISSING, "False", "SecretNotFound", "Secret gone."),
        ({"managed": False}, "Unknown", "Unmanaged", "managementState is Unmanaged"),
        ({"pods": [pod(report=said(token_denied=True))]}, "False", "Rejected", "the Secret tinybird"),
        ({"held": "It waits."}, "True", "Ready", "1 of 1"),
    ],
)
def test_ready(facts: dict[str, Any], status: str, reason: str, message: str) -> None:
    found = condition(observed(**facts), "Ready")
    assert found[:2] == (status, reason)
    assert found[2].startswith(message) or message in found[2]


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({}, "False", "UpToDate"),
        ({"held": "It waits."}, "False", "RolloutHeld"),
        ({"queued": "It waits."}, "False", "RolloutHeld"),
        ({"managed": False, "workload": workload(updated=0, paused=True)}, "False", "RolloutHeld"),
        ({"queued": "It waits.", "workload": workload(updated=0)}, "True", "RollingOut"),
        ({"queued": "It waits.", "workload": workload(failed="late")}, "False", "RolloutFailed"),
        ({"preflight": Decision(step=Step.FAILED), "queued": "It waits."}, "False", "PreflightFailed"),
        ({"workload": None}, "False", "NotReady"),
        ({"workload": workload(failed="late")}, "False", "RolloutFailed"),
        ({"workload": workload(updated=0)}, "True", "RollingOut"),
        ({"workload": workload(generation_seen=False)}, "True", "RollingOut"),
        ({"wanted_replicas": 2}, "True", "RollingOut"),
        ({"workload": workload(available=0)}, "True", "RollingOut"),
    ],
)
def test_progressing(facts: dict[str, Any], status: str, reason: str) -> None:
    assert condition(observed(**facts), "Progressing")[:2] == (status, reason)


@pytest.mark.parametrize("moving", [{"updated": 0}, {"generation_seen": False}])
def test_while_pods_are_replaced_it_is_told_too_what_waits_for_others(moving: dict[str, Any]) -> None:
    facts = observed(queued="It waits.", workload=workload(**moving))
    assert condition(facts, "Progressing")[2].endswith(" It waits.")


def test_of_a_change_that_kubernetes_has_not_seen_no_pods_are_counted() -> None:
    facts = observed(workload=workload(generation_seen=False))
    assert condition(facts, "Progressing")[2] == "Kubernetes has not taken up the last change yet."


def test_pods_that_run_the_template_are_not_those_that_are_available() -> None:
    facts = observed(wanted_replicas=3, workload=workload(replicas=3, updated=3, ready=3, available=2))
    assert condition(facts, "Progressing")[2] == "3 of 3 pods run the Deployment's present template. 2 are available."


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "Everything that the resource asks is applied."),
        ({"held": "It waits."}, "Everything that the resource asks is applied, but what is held back."),
        ({"queued": "It waits."}, "Everything that the resource asks is applied, but what is held back."),
        ({"managed": False}, "managementState is Unmanaged: the operator does not compare."),
    ],
)
def test_degraded_claims_no_more_than_what_was_applied(facts: dict[str, Any], message: str) -> None:
    assert condition(observed(**facts), "Degraded")[2] == message


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({}, "False", "AsExpected"),
        ({"managed": False}, "Unknown", "Unmanaged"),
        ({"managed": False, "pods": [pod(waiting="CrashLoopBackOff")]}, "True", "PodsFailing"),
        *(
            ({"problems": [problem(reason)]}, "True", str(reason))
            for reason in (
                Reason.NAME_TAKEN,
                Reason.INVALID_SPEC,
                Reason.SECRET_NOT_FOUND,
                Reason.SECRET_KEY_MISSING,
                Reason.SECRET_NOT_SHARED,
                Reason.UPSTREAM_NOT_ALLOWED,
                Reason.COLLECTOR_NOT_ALLOWED,
                Reason.IMAGE_NOT_ALLOWED,
                Reason.APPLY_REFUSED,
            )
        ),
        ({"pods": [pod(waiting="CrashLoopBackOff")]}, "True", "PodsFailing"),
        ({"workload": workload(failed="late")}, "True", "RolloutFailed"),
    ],
)
def test_degraded(facts: dict[str, Any], status: str, reason: str) -> None:
    assert condition(observed(**facts), "Degraded")[:2] == (status, reason)


def test_degraded_tells_every_problem() -> None:
    facts = observed(problems=[problem(Reason.INVALID_SPEC, "One."), problem(Reason.IMAGE_NOT_ALLOWED, "Two.")])
    assert condition(facts, "Degraded") == ("True", "InvalidSpec", "One. Two.")


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({"uses_own_token": False}, "True", "ClientsOwnTokens"),
        ({"uses_own_token": None}, "Unknown", "Unknown"),
        (MISSING, "False", "SecretNotFound"),
        ({**MISSING, "problems": [problem(Reason.SECRET_KEY_MISSING)]}, "False", "SecretKeyMissing"),
        ({**MISSING, "problems": [problem(Reason.SECRET_NOT_SHARED)]}, "False", "SecretNotShared"),
        ({"problems": [problem(Reason.SECRET_NOT_FOUND)]}, "Unknown", "NotUsedYet"),  # the clients' Secret
        ({"pods": [pod(report=said(token_accepted=True))]}, "True", "Accepted"),
        ({"pods": [pod(report=said(token_denied=True)), pod(report=said(token_accepted=True))]}, "False", "Rejected"),
        ({"pods": [pod(report=said(candidate_rejected=True, token_accepted=True))]}, "False", "CandidateRejected"),
        ({"pods": [pod(report=said(token_accepted=True, token_hash="old"))]}, "Unknown", "NotUsedYet"),
        ({"pods": [pod(report=said(token_denied=True, token_hash="old"))]}, "False", "Rejected"),
        ({"pods": [pod(report=said(token_accepted=True))], "expected_token_hash": None}, "True", "Accepted"),
        ({"pods": [pod(report=said(token_denied=True))], "expected_token_hash": None}, "False", "Rejected"),
        ({}, "Unknown", "NotUsedYet"),
        ({"pods": [pod(report=None)]}, "Unknown", "Unknown"),
        ({"pods": []}, "Unknown", "Unknown"),
    ],
)
def test_token_valid(facts: dict[str, Any], status: str, reason: str) -> None:
    assert condition(observed(**facts), "TokenValid")[:2] == (status, reason)


def test_a_refused_token_is_told_with_its_secret_and_its_pods() -> None:
    pods = [pod(f"p-{number}", report=said(token_denied=True)) for number in range(5)]
    _, _, message = condition(observed(pods=pods), "TokenValid")
    assert message == (
        "Tinybird refuses the token of the Secret tinybird (p-0, p-1, p-2 and 2 more): rows are kept."
        " Put the right token there."
    )


def test_a_token_is_not_judged_by_what_tinybird_said_of_the_one_before_it() -> None:
    accepted = observed(pods=[pod(report=said(token_accepted=True, token_hash="old"))])
    assert condition(accepted, "TokenValid")[2] == (
        "Tinybird accepts the token that pods use. The one that is in the Secret tinybird now was not used yet."
    )
    denied = observed(pods=[pod(report=said(token_denied=True, token_hash="old"))])
    assert condition(denied, "TokenValid")[2] == (
        "Tinybird refuses the token that is used by p-1: rows are kept."
        " They have not read the one that is in the Secret tinybird now."
    )


SILENT, UNKNOWN = pod("p-2", report=None), "p-2 did not answer: what is there is not known."


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        ([pod()], "Nothing is buffered."),
        ([pod(), pod(report=said(rows=1))], "Rows are delivered."),
        ([pod(), SILENT], f"Nothing is buffered. {UNKNOWN}"),
        ([pod(report=said(rows=1)), SILENT], f"Rows are delivered. {UNKNOWN}"),
        (
            [pod(report=said(utilisation=1.0)), SILENT],
            f"A buffer is full: clients get 503 and are asked to come back. {UNKNOWN}",
        ),
        ([pod(), pod(report=None, ready=False, running=False)], "Nothing is buffered."),
        ([pod(report=None)], "No pod answers: what they hold is not known."),
        ([pod(report=None, ready=False, running=False)], "No pod answers."),
        ([], "There are no pods."),
        ([pod(report=said(rows=99, utilisation=0.999))], "A buffer is 99% full."),
    ],
)
def test_of_a_buffer_only_what_the_pods_say_is_told(pods: list[PodFacts], message: str) -> None:
    assert condition(observed(pods=pods), "BufferHealthy")[2] == message


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({}, "True", "Healthy"),
        ({"pods": [pod(report=None)]}, "Unknown", "Unknown"),
        ({"pods": [pod(out_of_memory=True)]}, "False", "OutOfMemory"),
        ({"pods": [pod(report=said(stuck_rows=5, stuck=["clicks: down"]))]}, "False", "NotDelivering"),
        ({"pods": [pod(), pod(report=said(utilisation=0.79))]}, "True", "Healthy"),
        ({"pods": [pod(), pod(report=said(utilisation=0.8))]}, "False", "Filling"),
        ({"pods": [pod(), pod(report=said(utilisation=1.0))]}, "False", "Full"),
    ],
)
def test_buffer_healthy(facts: dict[str, Any], status: str, reason: str) -> None:
    assert condition(observed(**facts), "BufferHealthy")[:2] == (status, reason)


def test_what_a_pod_held_when_it_ran_out_of_memory_is_told_and_stays_told() -> None:
    known = observed(pods=[pod(out_of_memory=True, lost_rows=1200)])
    message = condition(known, "BufferHealthy")[2]
    assert message == (
        "p-1 ran out of memory: what was in the buffer then is lost, 1,200 rows at the last look."
        " Raise pod.resources.limits.memory."
    )
    # The next process of the operator knows nothing of that.
    unknown = observed(pods=[pod(out_of_memory=True)])
    assert "rows" not in condition(unknown, "BufferHealthy")[2]
    after = status(unknown, status(known))
    [healthy] = [found for found in after["conditions"] if found["type"] == "BufferHealthy"]
    assert healthy["message"] == message


KILLED = "p-1 ran out of memory: what was in the buffer then is lost"
MORE_MEMORY = " Raise pod.resources.limits.memory."


@pytest.mark.parametrize(
    ("report", "reason", "before"),
    [
        (
            said(stuck_rows=5, stuck=["clicks: It is down."]),
            "NotDelivering",
            "5 rows wait and are not delivered. clicks: It is down. ",
        ),
        (said(utilisation=1.0), "Full", "A buffer is full: clients get 503 and are asked to come back. "),
        (said(utilisation=0.9), "Filling", "A buffer is 90% full. "),
        (said(), "OutOfMemory", ""),
    ],
)
def test_what_is_wrong_now_comes_before_a_pod_that_once_ran_out_of_memory(
    report: ProxyReport, reason: str, before: str
) -> None:
    pods = [pod(out_of_memory=True, lost_rows=7), pod("p-2", report=report)]
    known = observed(pods=pods)
    message = f"{before}{KILLED}, 7 rows at the last look.{MORE_MEMORY}"
    assert condition(known, "BufferHealthy") == ("False", reason, message)
    unknown = observed(pods=[replace(pods[0], lost_rows=None), pods[1]])
    after = status(unknown, status(known))
    assert next(each["message"] for each in after["conditions"] if each["type"] == "BufferHealthy") == message


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        (
            [pod(out_of_memory=True), pod("p-2", report=None)],
            f"{KILLED}.{MORE_MEMORY} p-2 did not answer: what is there is not known.",
        ),
        (
            [pod(out_of_memory=True, report=None)],
            f"{KILLED}.{MORE_MEMORY} No pod answers: what they hold is not known.",
        ),
    ],
)
def test_with_a_pod_that_ran_out_of_memory_those_that_do_not_answer_are_told_too(
    pods: list[PodFacts], message: str
) -> None:
    assert condition(observed(pods=pods), "BufferHealthy") == ("False", "OutOfMemory", message)


@pytest.mark.parametrize("other", ["p-2", "x-p-1", "p-1, p-2", "p-0, p-1"])
def test_what_was_told_of_another_pod_that_ran_out_of_memory_is_not_told_of_this_one(other: str) -> None:
    pods = [pod(name, out_of_memory=True, lost_rows=7) for name in other.split(", ")]
    after = status(observed(pods=[pod(out_of_memory=True)]), status(observed(pods=pods)))
    [healthy] = [found for found in after["conditions"] if found["type"] == "BufferHealthy"]
    assert healthy["message"] == f"{KILLED}.{MORE_MEMORY}"


def test_a_process_that_was_killed_without_last_words_is_told_with_what_it_held_and_stays_told() -> None:
    known = observed(pods=[pod(killed_with=137, lost_rows=1200)])
    message = (
        "p-1 was ended by force, status 137, and told nothing: what was in the buffer then is lost, 1,200 rows at the"
        " last look. kubectl describe pod says by what: mostly the liveness probe or the node."
    )
    assert condition(known, "BufferHealthy") == ("False", "Killed", message)
    after = status(observed(pods=[pod(killed_with=137)]), status(known))
    assert next(each["message"] for each in after["conditions"] if each["type"] == "BufferHealthy") == message


def test_that_one_was_killed_and_another_ran_out_of_memory_are_both_told() -> None:
    pods = [pod(killed_with=139, lost_rows=2), pod("p-2", out_of_memory=True, lost_rows=3)]
    known = observed(pods=pods)
    _, reason, message = condition(known, "BufferHealthy")
    assert reason == "OutOfMemory"
    assert message.startswith("p-2 ran out of memory: what was in the buffer then is lost, 3 rows at the last look.")
    assert "p-1 was ended by force, status 139, and told nothing" in message
    after = status(observed(pods=[replace(each, lost_rows=None) for each in pods]), status(known))
    assert next(each["message"] for each in after["conditions"] if each["type"] == "BufferHealthy") == message


def test_rows_that_are_not_delivered_are_told_with_a_cause() -> None:
    pods = [pod(), pod(report=said(stuck_rows=12_345, stuck=["clicks: It is down."]))]
    _, _, message = condition(observed(pods=pods), "BufferHealthy")
    assert message == "About 12,000 rows wait and are not delivered. clicks: It is down."


def test_a_condition_keeps_the_time_of_its_last_transition_while_only_reason_or_message_change() -> None:
    old = {"conditions": [{"type": "Ready", "status": "False", "reason": "X", "lastTransitionTime": BEFORE}]}
    times = {
        each["type"]: each["lastTransitionTime"] for each in status(observed(wanted_replicas=2), old)["conditions"]
    }
    assert times == {**dict.fromkeys(times, NOW), "Ready": BEFORE}
    assert status(observed(), old)["conditions"][0]["lastTransitionTime"] == NOW


def test_every_condition_has_the_generation_and_a_message_that_fits() -> None:
    found = status(observed(problems=[problem(Reason.APPLY_REFUSED, "long " * 1000)]), generation=7)
    assert found["observedGeneration"] == 7
    assert {each["observedGeneration"] for each in found["conditions"]} == {7}
    assert max(len(each["message"]) for each in found["conditions"]) == MESSAGE_MAX_CHARS
    assert [each["type"] for each in found["conditions"]] == [
        "Ready",
        "Progressing",
        "Degraded",
        "TokenValid",
        "BufferHealthy",
    ]


def test_the_buffer_is_the_sum_of_the_pods_and_the_age_of_the_oldest_row() -> None:
    pods = [
        pod(report=said(rows=1_234, size_bytes=10, oldest_age_s=3.0)),
        pod(report=said(rows=1, size_bytes=5, oldest_age_s=61.7)),
        pod(report=None, ready=False),
    ]
    found = status(observed(pods=pods))
    assert found["buffer"] == {"rows": 1200, "size": "15", "oldestRowAgeSeconds": 62}
    assert (found["replicas"], found["readyReplicas"]) == (3, 2)
    assert found["token"] == {"expectedHash": "aa", "podsCurrent": 2, "podsTotal": 3, "podsUnknown": 1}
    assert found["selector"].endswith(",!tinybird-proxy.io/draining")


def test_there_is_no_buffer_while_pods_run_and_none_answers() -> None:
    assert "buffer" not in status(observed(pods=[SILENT]))
    nothing = {"rows": 0, "size": "0", "oldestRowAgeSeconds": 0}
    for pods in ([], [pod(), SILENT], [pod(report=None, ready=False, running=False)]):
        assert status(observed(pods=pods))["buffer"] == nothing


def test_a_pod_that_has_read_the_token_and_sent_nothing_since_counts_and_one_that_was_refused_does_not() -> None:
    reports = [
        said(token_hash="aa"),
        said(token_hash="old", next_token_hash="aa"),
        said(token_hash="old", candidate_rejected=True),
    ]
    found = status(observed(pods=[pod(f"p-{number}", report=report) for number, report in enumerate(reports)]))
    assert (found["token"]["podsCurrent"], found["token"]["podsTotal"]) == (2, 3)


@pytest.mark.parametrize(
    ("reports", "candidate"),
    [
        ([said()], None),
        ([said(), said(next_token_hash="bb")], {"hash": "bb", "state": "Trying"}),
        ([said(rejected_token_hash="bb"), said(next_token_hash="cc")], {"hash": "bb", "state": "Rejected"}),
        ([said(rejected_token_hash="Aa"), said(rejected_token_hash="aa")], {"hash": "aa", "state": "Rejected"}),
        ([said(next_token_hash="cc"), said(next_token_hash="bb")], {"hash": "bb", "state": "Trying"}),
    ],
)
def test_a_token_that_pods_try_or_were_refused_with_is_told_by_its_hash(
    reports: list[ProxyReport], candidate: dict[str, str] | None
) -> None:
    pods = [pod(f"p-{number}", report=report) for number, report in enumerate(reports)]
    assert status(observed(pods=pods))["token"].get("candidate") == candidate


def test_there_is_no_token_where_the_secret_cannot_be_read_or_is_not_used() -> None:
    assert "token" not in status(observed(expected_token_hash=None))
    assert "token" not in status(observed(uses_own_token=False))


def test_a_figure_or_a_sentence_is_no_difference_but_a_condition_is() -> None:
    first = status(observed())
    more = status(observed(pods=[pod(report=said(rows=9))]))
    assert not differs(more, first)
    assert more != first
    worded = {**first, "conditions": [{**each, "message": "other"} for each in first["conditions"]]}
    assert not differs(worded, first)
    assert differs(status(observed(wanted_replicas=2)), first)
    assert differs({**first, "replicas": 3}, first)
    assert differs(first, {})


def test_autoscaling_and_throttling_are_told_as_they_were_judged_and_only_if_they_were() -> None:
    assert not {"Autoscaling", "UpstreamThrottled"} & {each["type"] for each in status(observed())["conditions"]}
    judged = {"autoscaling": ("True", Reason.SCALING, "a"), "upstream_throttled": ("False", Reason.NOT_THROTTLED, "b")}
    facts = observed(**judged)
    assert condition(facts, "Autoscaling") == ("True", "Scaling", "a")
    assert condition(facts, "UpstreamThrottled") == ("False", "NotThrottled", "b")
    assert [each["type"] for each in status(facts)["conditions"]][-2:] == ["UpstreamThrottled", "Autoscaling"]


# Scaling down.


SINCE = datetime(2026, 1, 1, tzinfo=UTC)
SHRINKING = ("True", Reason.SCALING_DOWN, "1 of 3 pods drains.")
LEAVING = pod("p-3", ready=False, labelled=True, draining_since=SINCE, report=said(rows=1234, draining=True))


def scaled_down(*pods: PodFacts, **changes: Any) -> Observed:
    facts: dict[str, Any] = {"wanted_replicas": 2, "pods": [pod(), pod("p-2"), *pods], "shrinking": SHRINKING}
    return observed(
        **{**facts, "workload": workload(replicas=3, updated=3, ready=2, available=2, draining=1), **changes}
    )


def test_pods_that_are_to_go_are_listed_and_not_counted() -> None:
    found = status(scaled_down(LEAVING))
    assert (found["replicas"], found["readyReplicas"]) == (2, 2)
    assert found["selector"].endswith(",!tinybird-proxy.io/draining")
    assert found["draining"] == [{"pod": "p-3", "rows": 1200, "since": BEFORE}]
    silent = status(scaled_down(replace(LEAVING, report=None, draining_since=None)))
    assert silent["draining"] == [{"pod": "p-3", "since": NOW}]
    assert "draining" not in status(scaled_down(replace(LEAVING, terminating=True)))


def test_a_resource_is_ready_and_up_to_date_while_pods_drain_that_are_too_many() -> None:
    for pods in ([LEAVING], [replace(LEAVING, ready=True)]):
        counts = 2 + pods[0].ready
        work = workload(replicas=3, updated=3, ready=counts, available=counts, draining=1)
        found = scaled_down(*pods, workload=work)
        assert condition(found, "Ready") == ("True", "Ready", "2 of 2 pods are ready.")
        assert condition(found, "Progressing")[:2] == ("False", "UpToDate")
        assert condition(found, "Draining") == ("True", "ScalingDown", "1 of 3 pods drains.")
    work = workload(replicas=3, updated=3, ready=1, available=1, draining=1)
    assert condition(scaled_down(LEAVING, workload=work), "Ready")[:2] == ("False", "NotReady")


def test_after_a_drain_that_was_given_up_it_is_ready_with_more_than_wanted() -> None:
    gave_up = ("False", Reason.DRAIN_DEADLINE_EXCEEDED, "Not all could go.")
    work = workload(replicas=3, updated=3, ready=3, available=3)
    found = scaled_down(pod("p-3"), workload=work, shrinking=gave_up)
    assert condition(found, "Ready") == ("True", "Ready", "3 pods are ready, 2 are wanted.")
    assert condition(found, "Draining") == gave_up
    assert "draining" not in status(found)


def test_deletion_says_more_than_scaling_down() -> None:
    deleting = ("True", Reason.DELETING, "It goes when no pod holds a row.")
    assert condition(scaled_down(LEAVING, draining=deleting), "Draining") == deleting


def test_what_is_wrong_with_headers_of_spans_is_the_last_thing_that_degrades_and_nothing_else() -> None:
    headers = Problem(reason=Reason.SECRET_NOT_FOUND, message="No headers.")
    facts = observed(otlp_headers=headers, expected_token_hash=None)
    assert condition(facts, "Degraded") == ("True", "SecretNotFound", "No headers.")
    assert condition(facts, "Ready")[0] == "True"
    assert condition(facts, "TokenValid")[0] != "False"
    failing = observed(otlp_headers=headers, pods=[pod(waiting="CrashLoopBackOff")])
    assert condition(failing, "Degraded")[1] == "PodsFailing"
    invalid = observed(otlp_headers=headers, problems=[Problem(reason=Reason.INVALID_SPEC, message="One.")])
    assert condition(invalid, "Degraded") == ("True", "InvalidSpec", "One.")
