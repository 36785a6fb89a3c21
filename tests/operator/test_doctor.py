"""From what was read to findings: each says what is, why and what to do, with commands to copy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.operator.clusters import TOKEN_HASH, report, stuck
from tests.operator.resources import OWN_TOKEN, UID, operator_settings

from tinybird_proxy_operator.doctor import Diagnosis, Facts, Finding, Level, PodSeen, SecretSeen, diagnose, read_answer
from tinybird_proxy_operator.names import DRAINING_LABEL, Reason
from tinybird_proxy_operator.observed import Problem

OTHER_HASH = "aaaa1111"
ACCEPTED_AT, LATER = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"
SPEC: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}
READY = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]


def body(spec: Mapping[str, Any] = SPEC, *, seen: int | None = 1, **changes: Any) -> dict[str, Any]:
    """A TinybirdProxy; ``seen``: the generation that its status speaks of, None for no status."""
    metadata = {"name": "events", "namespace": "shop", "uid": UID, "generation": 1, **changes.pop("metadata", {})}
    conditions = [{"type": "Ready", "status": "True", "reason": "Ready", "message": "2 of 2 pods are ready."}]
    status = {} if seen is None else {"observedGeneration": seen, "conditions": conditions, **changes}
    return {"metadata": metadata, "spec": dict(spec), "status": status}


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    at = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


def deployment(pods: int = 2, **status: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), pods)
    return {"metadata": {"generation": 1}, "status": {"observedGeneration": 1, **counts, **status}}


def pod(
    name: str = "events-1-0", said: Mapping[str, Any] | None = None, *, answers: bool = True, **changes: Any
) -> PodSeen:
    """A running pod that is well; ``said``: its ``/status``."""
    container = {"name": "proxy", "state": {"running": {}}, "restartCount": 0, **changes.pop("container", {})}
    metadata = {"name": name, "uid": f"{name}-uid", "labels": changes.pop("labels", {}), **changes.pop("metadata", {})}
    events = changes.pop("events", [])
    status = {"phase": "Running", "conditions": READY, "podIP": "10.0.0.1", "containerStatuses": [container], **changes}
    said = report(accepted_at=ACCEPTED_AT) if said is None else said
    answer = read_answer(json.dumps(said).encode()) if answers else None
    return PodSeen(pod={"metadata": metadata, "status": status}, answer=answer, events=events)


def pending(*, events: Sequence[str] = (), conditions: Sequence[Any] = (), **waiting: str) -> PodSeen:
    """A pod that has not begun."""
    container = {"state": {"waiting": waiting}} if waiting else {}
    return pod(answers=False, phase="Pending", conditions=list(conditions), container=container, events=list(events))


def facts(*pods: PodSeen, **changes: Any) -> Facts:
    """Everything well: two pods, unless others are given."""
    given = {
        "body": body(),
        "settings": operator_settings(),
        "deployment": deployment(),
        "pods": list(pods) or [pod(), pod("events-1-1")],
        "secrets": [secret()],
        "expected_token_hash": TOKEN_HASH,
    }
    return Facts(namespace="shop", name="events", **{**given, **changes})


def secret(reason: Reason | None = None, *, immutable: bool = False) -> SecretSeen:
    problem = None if reason is None else Problem(reason=reason, message=f"Something about the Secret: {reason}.")
    field = "spec.tinybird.tokenSecretRef"
    return SecretSeen(field=field, name="tinybird", key="token", problem=problem, immutable=immutable)


def found(given: Facts, reason: str) -> Finding:
    """The one finding with this reason."""
    diagnosis = diagnose(given)
    (finding,) = [each for each in diagnosis.findings if each.reason == reason]
    assert diagnosis.healthy is all(each.level is Level.NOTE for each in diagnosis.findings)
    return finding


def problems(diagnosis: Diagnosis) -> list[str]:
    return [str(each.reason) for each in diagnosis.findings if each.level is not Level.NOTE]


# All is well.


def test_a_resource_with_nothing_but_notes_is_healthy() -> None:
    diagnosis = diagnose(facts())
    assert (diagnosis.healthy, problems(diagnosis)) == (True, [])
    assert (diagnosis.ready, diagnosis.ready_message) == ("True", "2 of 2 pods are ready.")
    assert [line.token for line in diagnosis.pods] == [f"{TOKEN_HASH} accepted"] * 2
    assert diagnosis.loss is not None
    assert diagnosis.loss.sentence == "Nothing: no row waits, and there are no dead letters."


# The resource and the operator.


def test_a_resource_that_is_not_there_is_told_with_those_that_are() -> None:
    given = facts(body=None, others=["clicks", "orders"])
    assert "clicks, orders" in found(given, "ResourceNotFound").why
    assert diagnose(given).loss is None


def test_a_cluster_without_the_crd_is_told() -> None:
    assert "crds.enabled" in found(facts(body=None, kind_known=False), "KindNotFound").next


@pytest.mark.parametrize(("seen", "level"), [(None, Level.PROBLEM), (1, Level.NOTE)])
def test_another_controller_class_matters_if_nobody_looks_after_it(seen: int | None, level: Level) -> None:
    finding = found(facts(body=body({**SPEC, "controllerClass": "blue"}, seen=seen)), "OtherControllerClass")
    assert finding.level is level
    assert "'blue'" in finding.why
    assert "''" in finding.why


def test_unmanaged_is_a_note_with_the_way_back() -> None:
    finding = found(facts(body=body({**SPEC, "managementState": "Unmanaged"})), Reason.UNMANAGED)
    assert finding.level is Level.NOTE
    assert '"managementState":"Managed"' in finding.commands[0]


@pytest.mark.parametrize(("seen", "why"), [(None, "no status at all"), (1, "generation 1 of 3")])
def test_an_operator_that_is_behind_is_told_with_its_log(seen: int | None, why: str) -> None:
    finding = found(facts(body=body(seen=seen, metadata={"generation": 3})), "OperatorBehind")
    assert why in finding.why
    assert any("kubectl logs --namespace tinybird-system" in command for command in finding.commands)


def test_a_namespace_that_is_not_watched_is_told_with_the_chart_value() -> None:
    finding = found(facts(settings=operator_settings(WATCH_NAMESPACES="a,b")), "NamespaceNotWatched")
    assert """--set-json 'watchNamespaces=["a","b","shop"]'""" in finding.commands[0]


def test_a_resource_that_is_being_deleted_names_what_is_waited_for() -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["tinybird-proxy.io/drain"]}
    finding = found(facts(body=body(metadata=metadata)), "Deleting")
    assert "tinybird-proxy.io/drain" in finding.why
    assert finding.commands == ["kubectl --namespace shop annotate tinybirdproxy events tinybird-proxy.io/delete=now"]


# The spec.


def test_a_spec_that_cannot_be_read_is_told_in_the_schemas_words() -> None:
    given = facts(body=body({"replicas": "many"}))
    assert "replicas" in found(given, Reason.INVALID_SPEC).why


def test_a_spec_that_the_proxy_would_refuse_is_told_with_its_field() -> None:
    given = facts(body=body({**SPEC, "buffer": {"maxSize": "lots"}}))
    finding = found(given, Reason.INVALID_SPEC)
    assert "spec.buffer.maxSize" in finding.why
    assert finding.commands == ["kubectl --namespace shop edit tinybirdproxy events"]


@pytest.mark.parametrize(
    ("spec", "reason", "value"),
    [
        (
            {"tinybird": {"url": "https://rows.example.com"}},
            Reason.UPSTREAM_NOT_ALLOWED,
            """'allowedUpstreams=["*.tinybird.co","rows.example.com"]'""",
        ),
        (
            {"telemetry": {"otlpEndpoint": "http://spans.example.com:4318"}},
            Reason.COLLECTOR_NOT_ALLOWED,
            """'allowedCollectors=["collector.observability.svc","spans.example.com"]'""",
        ),
        (
            {"image": "example.com/proxy:1"},
            Reason.IMAGE_NOT_ALLOWED,
            """'allowedImages=["ghcr.io/tinybird-proxy/tinybird-proxy","example.com/proxy"]'""",
        ),
    ],
)
def test_what_the_chart_does_not_allow_is_told_with_the_value_to_change(
    spec: dict[str, Any], reason: Reason, value: str
) -> None:
    labels = "app.kubernetes.io/name=tinybird-proxy-operator,app.kubernetes.io/instance=proxies"
    settings = operator_settings(OPERATOR_POD_LABELS=labels)
    finding = found(facts(body=body({"replicas": 1, **spec}), settings=settings, secrets=[]), reason)
    assert finding.commands[-1] == (
        f"helm upgrade proxies CHART --namespace tinybird-system --reset-then-reuse-values --set-json {value}"
    )


def test_without_the_operators_settings_the_status_says_what_is_not_allowed() -> None:
    conditions = [condition("Ready", "False", "UpstreamNotAllowed", "spec.tinybird.url: host 'x' is not in …")]
    finding = found(facts(settings=None, body=body(conditions=conditions)), Reason.UPSTREAM_NOT_ALLOWED)
    assert finding.why == "spec.tinybird.url: host 'x' is not in …"


# Secrets.


@pytest.mark.parametrize(
    ("reason", "immutable", "commands"),
    [
        (Reason.SECRET_NOT_FOUND, False, ["create secret generic tinybird --from-file=token=FILE", "label secret"]),
        (Reason.SECRET_NOT_SHARED, False, ["label secret tinybird tinybird-proxy.io/use=token --overwrite"]),
        (Reason.SECRET_KEY_MISSING, False, ["| kubectl --namespace shop apply --filename=-"]),
        (Reason.SECRET_KEY_MISSING, True, ["delete secret tinybird", "create secret generic tinybird", "label secret"]),
    ],
)
def test_a_secret_that_cannot_be_used_is_told_with_what_mends_it(
    reason: Reason, immutable: bool, commands: list[str]
) -> None:
    given = facts(secrets=[secret(reason, immutable=immutable)], expected_token_hash=None)
    finding = found(given, reason)
    assert "spec.tinybird.tokenSecretRef names Secret tinybird, key token" in finding.what
    assert len(finding.commands) == len(commands)
    assert all(part in command for part, command in zip(commands, finding.commands, strict=True))
    assert not [each for each in finding.commands if "from-literal" in each]  # a token in a command line is seen


def test_headers_that_cannot_be_used_are_no_reason_why_there_are_no_pods() -> None:
    field = "spec.telemetry.otlpHeadersSecretRef"
    problem = Problem(reason=Reason.SECRET_MALFORMED, message="Header 1 is not key=value.")
    seen = SecretSeen(field=field, name="collector", key="headers", problem=problem, immutable=False, optional=True)
    given = facts(secrets=[secret(), seen], deployment=None, pods=[])
    assert found(given, "DeploymentNotFound").level is Level.PROBLEM
    finding = found(given, Reason.SECRET_MALFORMED)
    assert finding.level is Level.PROBLEM
    assert (
        finding.what == f"A Secret that the resource names cannot be used: {field} names Secret collector, key headers."
    )
    assert finding.commands[0].endswith("| kubectl --namespace shop apply --filename=-")


def test_an_immutable_secret_that_works_is_a_note() -> None:
    finding = found(facts(secrets=[secret(immutable=True)]), "SecretImmutable")
    assert finding.level is Level.NOTE
    assert "another name" in finding.next


# Children and rollout.


def test_a_name_that_is_taken_is_told_with_what_has_it() -> None:
    given = facts(deployment=None, pods=[], taken=["Deployment events"])
    assert found(given, Reason.NAME_TAKEN).commands == ["kubectl --namespace shop get deployment events --output=yaml"]
    assert problems(diagnose(given)) == [Reason.NAME_TAKEN]


def test_a_missing_deployment_is_the_consequence_of_a_problem_or_one_itself() -> None:
    assert found(facts(deployment=None, pods=[]), "DeploymentNotFound").level is Level.PROBLEM
    blocked = facts(deployment=None, pods=[], secrets=[secret(Reason.SECRET_NOT_FOUND)], expected_token_hash=None)
    assert found(blocked, "DeploymentNotFound").level is Level.NOTE


def test_a_rollout_that_failed_says_why() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    assert (
        found(facts(deployment=deployment(conditions=[failure])), Reason.ROLLOUT_FAILED).why == "exceeded quota: pods"
    )


def test_a_rollout_in_progress_is_a_note() -> None:
    finding = found(facts(deployment=deployment(updatedReplicas=1)), Reason.ROLLING_OUT)
    assert (finding.level, "1 of 2 pods" in finding.what) == (Level.NOTE, True)


def test_a_pod_that_is_to_go_makes_no_rollout() -> None:
    leaving = pod("events-1-1", labels={"tinybird-proxy.io/draining": "true"}, conditions=[])
    diagnosis = diagnose(facts(pod(), leaving, deployment=deployment(availableReplicas=1)))
    assert Reason.ROLLING_OUT not in [each.reason for each in diagnosis.findings]


def test_a_rollout_that_is_held_says_why_and_how_to_let_it_out() -> None:
    conditions = [condition("Progressing", "False", "RolloutHeld", "The changed template is held back: 5 rows wait.")]
    finding = found(facts(body=body(conditions=conditions)), Reason.ROLLOUT_HELD)
    assert "5 rows wait" in finding.why
    assert finding.commands[0].endswith("annotate tinybirdproxy events tinybird-proxy.io/roll=now")


def test_no_wanted_pods_are_a_note() -> None:
    assert found(facts(body=body({**SPEC, "replicas": 0}), deployment=deployment(0), pods=[]), "NoReplicas").what


def test_what_only_the_operator_knows_is_told_once_and_only_while_it_is_current() -> None:
    refused = [
        condition(kind, status, "ApplyRefused", "quota") for kind, status in (("Ready", "False"), ("Degraded", "True"))
    ]
    assert found(facts(body=body(conditions=refused)), Reason.APPLY_REFUSED).why == "quota"
    assert problems(diagnose(facts(body=body(conditions=refused, seen=0)))) == ["OperatorBehind"]


def test_what_the_pods_say_themselves_is_not_told_from_an_older_status() -> None:
    conditions = [
        condition("BufferHealthy", "False", "NotDelivering", "5 rows wait."),
        condition("Draining", "False", "x", ""),
    ]
    assert diagnose(facts(body=body(conditions=conditions))).healthy
    silent = facts(pod(answers=False), body=body(conditions=conditions))
    assert found(silent, Reason.NOT_DELIVERING).why == "5 rows wait."


def test_an_autoscaler_that_does_nothing_and_a_throttling_tinybird_are_told() -> None:
    for kind, status, reason in (
        ("Autoscaling", "False", "MetricsUnavailable"),
        ("UpstreamThrottled", "True", "Throttled"),
    ):
        conditions = [condition(kind, status, reason, "It is so.")]
        assert found(facts(body=body(conditions=conditions)), reason).why == "It is so."
    working = [
        condition("Autoscaling", "True", "AtMaximum", "3 pods"),
        condition("UpstreamThrottled", "False", "x", ""),
    ]
    assert diagnose(facts(body=body(conditions=working))).healthy


# Pods.


def test_a_pod_without_a_node_has_the_schedulers_message() -> None:
    unscheduled = [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient memory."}
    ]
    finding = found(facts(pending(conditions=unscheduled)), "Unschedulable")
    assert finding.why == "0/3 nodes are available: 3 Insufficient memory."


def test_an_image_that_cannot_be_had_is_told() -> None:
    finding = found(facts(pending(reason="ImagePullBackOff", message="Back-off pulling image x")), "ImagePull")
    assert finding.why == "ImagePullBackOff: Back-off pulling image x"
    assert finding.commands[1].endswith("--output=jsonpath='{.spec.containers[*].image}'")


def test_a_crash_loop_is_told_with_the_last_words() -> None:
    ended = {"reason": "Error", "exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z", "message": "12 rows lost\n"}
    state = {
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
        "restartCount": 7,
    }
    finding = found(facts(pod(answers=False, container=state)), "CrashLoop")
    assert finding.why == "Error, exit status 1 at 2026-01-01T00:00:00Z. Its last words: 12 rows lost"
    assert finding.commands[0] == "kubectl --namespace shop logs events-1-0 --previous --tail=50"


def test_long_last_words_are_told_from_their_end() -> None:
    ended = {"reason": "Error", "exitCode": 1, "message": "x" * 5000 + " the error"}
    finding = found(facts(pod(answers=False, container={"state": {"terminated": ended}})), "CrashLoop")
    assert finding.why.endswith("the error")
    assert len(finding.why) < 600


def test_the_proxys_own_last_words_are_told_from_their_beginning_which_says_what_was_lost() -> None:
    said = "12 rows lost, 3 of them may have arrived; hits: 12 rows, " + "x" * 5000
    finding = found(facts(pod(answers=False, container={"state": {"terminated": {"message": said}}})), "CrashLoop")
    assert "Its last words: 12 rows lost, 3 of them may have arrived; hits" in finding.why
    assert len(finding.why) < 600


def test_what_ended_pods_lost_is_told_as_the_status_has_it() -> None:
    lost = {"rows": 1200, "inDoubtRows": 3, "deadLetterRows": 1}
    recent = [{"pod": "events-1-0", "at": "2026-01-01T00:00:00Z", "rows": 1}]
    recent += [{"pod": "events-1-1", "at": "2026-01-01T00:00:09Z", "rows": 2}]
    told = diagnose(facts(body={**body(), "status": {**body()["status"], "lost": {**lost, "recent": recent}}}))
    assert told.lost_so_far == (
        "1,200 rows since the resource was made, 3 of them may have arrived; and 1 row of dead letters."
        " The last: events-1-1 at 2026-01-01T00:00:09Z. The Event RowsLost says why."
    )
    assert diagnose(facts(body=body())).lost_so_far is None


def test_a_pod_that_ran_out_of_memory_is_told_once_although_it_runs_again() -> None:
    ended = {"reason": "OOMKilled", "exitCode": 137, "message": "900 rows were not delivered when this was written"}
    container = {"lastState": {"terminated": ended}, "restartCount": 1}
    given = facts(pod(container=container))
    assert "900 rows were not delivered" in found(given, Reason.OUT_OF_MEMORY).why
    assert problems(diagnose(given)) == [Reason.OUT_OF_MEMORY]


def test_a_pod_that_waits_for_something_else_is_told_in_kubernetes_words() -> None:
    finding = found(facts(pending(reason="CreateContainerConfigError", message="no user")), Reason.PODS_FAILING)
    assert finding.why == "CreateContainerConfigError: no user"


def test_a_pod_that_is_being_created_is_a_note_until_events_warn() -> None:
    assert found(facts(pending(reason="ContainerCreating")), "Starting").level is Level.NOTE
    warned = pending(reason="ContainerCreating", events=['FailedMount: secret "events-client" not found'])
    assert "FailedMount" in found(facts(warned), Reason.PODS_FAILING).why


def test_an_unready_pod_says_why_itself() -> None:
    said = {
        **report(accepted_at=ACCEPTED_AT),
        "phase": "starting",
        "sentence": "The proxy is starting: 0 rows are not delivered yet.",
    }
    assert found(facts(pod(said=said, conditions=[])), Reason.NOT_READY).why.startswith("The proxy is starting")


def test_a_pod_on_its_way_out_is_no_problem() -> None:
    draining = {**report(accepted_at=ACCEPTED_AT), "phase": "draining", "sentence": "The proxy is draining: 3 rows …"}
    for leaving in (pod(labels={DRAINING_LABEL: ""}, conditions=[]), pod(said=draining, conditions=[])):
        assert diagnose(facts(leaving)).healthy
    assert found(facts(pod(said=draining)), "Leaving").why == "The proxy is draining: 3 rows …"


def test_a_pod_that_does_not_answer_is_not_called_healthy() -> None:
    given = facts(pod(answers=False), pod("events-1-1"))
    assert found(given, "NoAnswer").level is Level.UNKNOWN
    assert not diagnose(given).healthy


def test_a_restart_of_the_past_is_a_note_with_its_last_words() -> None:
    ended = {"terminated": {"reason": "Completed", "exitCode": 0, "message": "0 rows lost"}}
    finding = found(facts(pod(container={"restartCount": 1, "lastState": ended})), "Restarted")
    assert finding.why == "1 time. Completed, exit status 0. Its last words: 0 rows lost"


def test_an_evicted_pod_is_a_note_and_not_in_the_table() -> None:
    evicted = pod(
        answers=False, phase="Failed", reason="Evicted", message="The node was low on memory.", containerStatuses=[]
    )
    given = facts(pod(), evicted)
    assert found(given, "Ended").why == "Evicted: The node was low on memory."
    assert len(diagnose(given).pods) == 1


def test_pods_that_could_not_be_listed_are_not_called_healthy() -> None:
    given = facts(pods=None)
    assert found(given, "PodsUnknown").level is Level.UNKNOWN
    assert "Not known" in loss(given).sentence


def test_many_pods_with_one_trouble_are_one_finding() -> None:
    pods = [pod(f"events-1-{number}", stuck(5, accepted_at=ACCEPTED_AT)) for number in range(5)]
    finding = found(facts(*pods), Reason.NOT_DELIVERING)
    assert finding.what == "5 pods hold rows that are not being delivered."
    assert finding.why.count("events-1-") == 3
    assert finding.why.endswith("and 2 more.")


# The token.


def test_each_pods_token_is_compared_with_the_secrets() -> None:
    old = pod("events-1-1", report(hash=OTHER_HASH, accepted_at=ACCEPTED_AT))
    given = facts(pod(), old)
    finding = found(given, "TokenOutdated")
    assert TOKEN_HASH in finding.what
    assert "events-1-1" in finding.what
    assert [line.token for line in diagnose(given).pods][1] == f"{OTHER_HASH} accepted, not the Secret's"


def test_an_outdated_token_of_an_immutable_secret_needs_another_secret() -> None:
    old = pod(said=report(hash=OTHER_HASH, accepted_at=ACCEPTED_AT))
    finding = found(facts(old, secrets=[secret(immutable=True)]), "TokenOutdated")
    assert "another name" in finding.next
    assert "create secret generic NEW-NAME" in finding.commands[0]


def test_a_candidate_that_is_refused_leaves_the_old_token_in_use() -> None:
    said = report(hash=OTHER_HASH, accepted_at=ACCEPTED_AT, candidate={**candidate(), "rejected": True})
    given = facts(pod(said=said))
    finding = found(given, Reason.CANDIDATE_REJECTED)
    assert "keep using the one before it" in finding.what
    assert problems(diagnose(given)) == [Reason.CANDIDATE_REJECTED]
    (line,) = diagnose(given).pods
    assert line.token == f"{OTHER_HASH} accepted, not the Secret's; {TOKEN_HASH} refused"


def test_a_candidate_that_waits_for_its_batch_is_no_problem() -> None:
    given = facts(pod(said=report(hash=OTHER_HASH, accepted_at=ACCEPTED_AT, candidate=candidate())))
    assert diagnose(given).healthy
    assert diagnose(given).pods[0].token.endswith(f"{TOKEN_HASH} is tried next")


def candidate() -> dict[str, Any]:
    return {"hash": TOKEN_HASH, "since": None, "accepted_at": None, "denied_at": None}


def test_a_token_that_is_refused_is_told_with_how_to_replace_it() -> None:
    given = facts(pod(said=stuck(5, accepted_at=ACCEPTED_AT, denied_at=LATER)))
    finding = found(given, Reason.REJECTED)
    assert f"{TOKEN_HASH} refused" in finding.why
    assert finding.commands[0].startswith(
        "kubectl --namespace shop create secret generic tinybird --from-file=token=FILE"
    )


def test_a_token_that_was_never_used_is_a_note_with_the_way_to_try_it() -> None:
    finding = found(facts(pod(said=report())), Reason.NOT_USED_YET)
    assert finding.level is Level.NOTE
    assert finding.commands == ["kubectl --namespace shop exec events-1-0 -- tinybird-proxy check --upstream"]


def test_a_secret_that_may_not_be_read_leaves_the_operators_word_for_its_hash() -> None:
    given = facts(secrets=[], expected_token_hash=None, body=body(token={"expectedHash": OTHER_HASH}))
    assert diagnose(given).expected_token_hash == OTHER_HASH


def test_clients_own_tokens_are_no_token_of_the_pods() -> None:
    said = {**report(), "tokens": {"mode": "clients"}}
    given = facts(pod(said=said), body=body({"replicas": 1}), secrets=[], expected_token_hash=None)
    assert found(given, Reason.CLIENTS_OWN_TOKENS).level is Level.NOTE
    assert diagnose(given).pods[0].token == "none"


# The buffer.


def test_rows_that_are_not_delivered_are_told_with_the_cause() -> None:
    finding = found(
        facts(pod(said=stuck(5, accepted_at=ACCEPTED_AT, oldest_age_s=90.0, bytes=50))), Reason.NOT_DELIVERING
    )
    assert finding.why == (
        "5 rows of 5 wait, the oldest row for 90 s. clicks: Tinybird does not answer, the oldest row waits for 5 s."
    )


@pytest.mark.parametrize(("utilisation", "reason"), [(0.85, Reason.FILLING), (1.0, Reason.FULL)])
def test_a_buffer_that_fills_is_told(utilisation: float, reason: Reason) -> None:
    said = report(accepted_at=ACCEPTED_AT, utilisation=utilisation, rows=850, bytes=9000)
    assert "850 rows" in found(facts(pod(said=said)), reason).why


def test_dead_letters_are_told_with_how_to_look_at_them() -> None:
    finding = found(facts(pod(said=with_letters(12))), "DeadLetters")
    assert finding.why == "12 rows."
    assert finding.commands[0] == "kubectl --namespace shop exec events-1-0 -- tinybird-proxy dead-letters ls"


def with_letters(rows: int, **changes: Any) -> dict[str, Any]:
    return {**report(accepted_at=ACCEPTED_AT, **changes), "dead_letters": {"rows": rows}}


# What would be lost.


def loss(given: Facts) -> Any:
    return diagnose(given).loss


def test_rows_that_flow_would_be_delivered_if_tinybird_answers() -> None:
    given = facts(pod(said=report(rows=7)), pod("events-1-1", report(rows=5)))
    assert (loss(given).deliverable_rows, loss(given).stuck_rows, loss(given).late_rows) == (12, 0, 0)
    assert loss(given).sentence == (
        "12 rows would be delivered within 50 s (spec.drain.shutdownTimeoutSeconds) if Tinybird answers."
    )


def test_rows_that_are_stuck_dead_letters_and_silent_pods_are_added_up_apart() -> None:
    some = {**stuck(5), "dead_letters": {"rows": 3}}
    some["buffer"] = {**some["buffer"], "rows": 9}
    given = facts(pod(said=some), pod("events-1-1", answers=False), pending())
    found = loss(given)
    assert (found.deliverable_rows, found.stuck_rows, found.dead_letter_rows) == (4, 5, 3)
    assert found.silent_pods == ["events-1-1"]
    assert "5 rows are not being delivered, and would be lost unless" in found.sentence
    assert "3 rows in dead letters would be lost" in found.sentence
    assert "1 pod does not answer (events-1-1): what it holds is not known" in found.sentence


@pytest.mark.parametrize(("oldest_age_s", "late"), [(30.0, 500), (0.5, 0), (None, 0)])
def test_rows_that_queue_for_longer_than_the_pods_have_would_be_late(oldest_age_s: float | None, late: int) -> None:
    said = {**report(rows=1000, oldest_age_s=oldest_age_s), "drain": {"seconds_to_drain": 100.0}}
    given = facts(pod(said=said))
    assert (loss(given).late_rows, loss(given).deliverable_rows) == (late, 1000 - late)


def test_the_resources_own_shutdown_timeout_counts() -> None:
    spec = {**SPEC, "drain": {"shutdownTimeoutSeconds": 200}}
    assert "within 200 s" in loss(facts(pod(said=report(rows=1)), body=body(spec))).sentence


def test_without_pods_nothing_would_be_lost() -> None:
    assert loss(facts(pods=[])).sentence == "Nothing: no pod of this resource runs."
    assert loss(facts(pending(), body=body({"replicas": "many"}))).deliverable_rows == 0


# As a whole.


def test_problems_come_before_what_is_unknown_and_notes_come_last() -> None:
    given = facts(pod(answers=False), pod("events-1-1", with_letters(1)), secrets=[secret(immutable=True)])
    levels = [each.level for each in diagnose(given).findings]
    assert levels == sorted(levels, key=list(Level).index)
    assert set(levels) == set(Level)


def test_a_diagnosis_is_json_with_plain_names() -> None:
    said = json.loads(msgspec.json.encode(diagnose(replace(facts(), not_known=["Events: forbidden."]))))
    assert {"resource", "healthy", "ready", "findings", "pods", "loss", "expected_token_hash", "not_known"} <= set(said)
    assert set(said["findings"][0]) == {"level", "reason", "what", "why", "next", "commands"}


def test_every_finding_says_what_is_in_a_sentence_and_problems_what_to_do() -> None:
    given = facts(
        pod(said=stuck(5, denied_at=LATER, utilisation=1.0)),
        pending(reason="ErrImagePull"),
        pod("events-1-1", answers=False, conditions=[]),
        body=body(seen=0),
        deployment=deployment(conditions=[{"type": "ReplicaFailure", "status": "True", "message": "quota"}]),
    )
    for finding in diagnose(given).findings:
        assert finding.what.endswith(".")
        if finding.level is Level.PROBLEM:
            assert finding.next
            assert finding.commands
