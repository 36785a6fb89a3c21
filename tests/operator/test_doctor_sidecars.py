"""Mode Sidecar: who has no sidecar, an old one or too little time, why, and what a deletion would take away."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from tests.operator.app_pods import HASH, SIDECAR, app_pod
from tests.operator.clusters import TOKEN_HASH, report, stuck
from tests.operator.resources import OWN_TOKEN, UID, operator_settings
from tests.operator.test_doctor import condition, found, problems, secret

from tinybird_proxy_operator.doctor import Facts, Level, PodSeen, diagnose, read_answer
from tinybird_proxy_operator.names import INJECT_LABEL, Reason
from tinybird_proxy_operator.sidecars.app_pods import asking

MADE_AT: Final = "2026-01-02T00:00:00Z"
ACCEPTED: Final = {"accepted_at": "2026-01-01T00:00:00+00:00"}
READY: Final = condition("Ready", "True", "Ready", "Pods that ask for the sidecar get it; 1 has one that takes rows.")


def body(
    spec: Mapping[str, Any] | None = None,
    *,
    sidecar: Mapping[str, Any] | None = SIDECAR,
    conditions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    status: dict[str, Any] = {"observedGeneration": 1, "conditions": [READY, *conditions]}
    if sidecar is not None:
        status["sidecar"] = dict(sidecar)
    return {
        "metadata": {"name": "events", "namespace": "shop", "uid": UID, "generation": 1, "creationTimestamp": MADE_AT},
        "spec": {"mode": "Sidecar", **OWN_TOKEN, **(spec or {})},
        "status": status,
    }


def facts(*pods: dict[str, Any], says: Mapping[str, Any] | None = None, **changes: Any) -> Facts:
    """All well but for ``pods``. ``says``: what each proxy that runs answers; else that all is well."""
    resource = changes.setdefault("body", body())
    rendered = None if resource is None else resource["status"].get("sidecar")
    labels = changes.pop("namespace_labels", {})
    apps = asking(pods, name="events", namespace_labels=labels, sidecar=rendered, reports={})
    by_uid = {app.uid: app for app in apps}
    answer = read_answer(json.dumps(says or report(**ACCEPTED)).encode())
    seen = [
        PodSeen(pod=each, answer=answer, app=app, admin_port=18001)
        for each in pods
        if (app := by_uid.get(each["metadata"]["uid"])) is not None and app.facts is not None
    ]
    given = {
        "settings": operator_settings(SIDECAR_INJECTION="Webhook"),
        "pods": seen,
        "apps": apps,
        "secrets": [secret()],
        "expected_token_hash": TOKEN_HASH,
    }
    return Facts(namespace="shop", name="events", **{**given, **changes})


CURRENT, STALE, MISSED = app_pod("c", hash=HASH), app_pod("s", hash="0"), app_pod("m", creationTimestamp=MADE_AT)


def test_a_sidecar_in_every_pod_that_asks_is_healthy_without_a_deployment() -> None:
    diagnosis = diagnose(facts(CURRENT))
    assert (diagnosis.healthy, problems(diagnosis)) == (True, [])
    assert [(line.name, line.sidecar, line.token) for line in diagnosis.pods] == [
        ("c", "Current", f"{TOKEN_HASH} accepted")
    ]


def test_pods_without_one_are_in_the_table_too_before_those_that_are_well() -> None:
    lines = diagnose(facts(CURRENT, MISSED, app_pod("r", spec={"hostNetwork": True}))).pods
    assert [(line.name, line.sidecar, line.rows, line.token) for line in lines[:2]] == [
        ("m", "Missed", None, "-"),
        ("r", "Refused", None, "-"),
    ]


def test_where_nobody_asks_it_says_how_to() -> None:
    finding = found(facts(), "NobodyAsks")
    assert finding.level is Level.NOTE
    assert f'"{INJECT_LABEL}":"events"' in finding.commands[0]


def test_injection_that_is_off_is_told_with_the_chart_value() -> None:
    finding = found(facts(MISSED, settings=operator_settings()), Reason.INJECTION_OFF)
    assert [command.rpartition("--set ")[2] for command in finding.commands] == [
        "injection=Policy",
        "injection=Webhook",
    ]
    assert "Policy needs Kubernetes 1.36, Webhook 1.31." in finding.next
    assert "helm upgrade RELEASE CHART --namespace tinybird-system --reset-then-reuse-values" in finding.commands[0]
    assert "Put right first" in found(facts(MISSED, settings=operator_settings()), Reason.SIDECARS_MISSED).next


@pytest.mark.parametrize(("given", "others"), [([CURRENT], True), ([CURRENT, MISSED], False)])
def test_where_the_operator_knows_that_something_else_injects_and_no_newer_pod_is_missed_that_is_a_note(
    given: list[dict[str, Any]], others: bool
) -> None:
    ready = condition("Ready", "True", "InjectedByOthers", "")
    resource = body()
    resource["status"]["conditions"] = [ready]
    diagnosis = diagnose(facts(*given, settings=operator_settings(), body=resource))
    assert diagnosis.healthy is others
    reasons = {finding.reason for finding in diagnosis.findings}
    assert (Reason.INJECTED_BY_OTHERS in reasons, Reason.INJECTION_OFF in reasons) == (others, not others)


def test_without_the_settings_the_operator_is_believed_that_injection_is_off() -> None:
    off = condition("SidecarsCurrent", "False", "InjectionOff", "No pod gets a sidecar.")
    given = facts(MISSED, settings=None, body=body(conditions=[off]))
    assert found(given, Reason.INJECTION_OFF).why == "No pod gets a sidecar."
    assert "Put right first" in found(given, Reason.SIDECARS_MISSED).next


def test_a_namespace_that_injection_leaves_out_is_told() -> None:
    settings = operator_settings(SIDECAR_INJECTION="Policy", POD_NAMESPACE="shop")
    assert "another namespace" in found(facts(settings=settings), Reason.INJECTION_OFF).next


@pytest.mark.parametrize(
    ("made_at", "why"), [("2026-01-01T00:00:00Z", "older than the resource"), (MADE_AT, "made after the resource")]
)
def test_a_pod_without_one_says_why_as_far_as_its_age_tells(made_at: str, why: str) -> None:
    finding = found(facts(app_pod("m", creationTimestamp=made_at)), Reason.SIDECARS_MISSED)
    assert f"m (Deployment app): {why}" in finding.why
    assert finding.commands == [
        "kubectl --namespace shop rollout restart deployment app",
        """kubectl --namespace shop patch tinybirdproxy events --type=merge"""
        """ --patch='{"spec":{"sidecar":{"rollout":"Evict"}}}'""",
    ]


def test_a_pod_of_a_job_is_left_alone_and_one_that_kubectl_cannot_restart_is_deleted() -> None:
    job = found(facts(app_pod("j", owner=("Job", "nightly"))), Reason.SIDECARS_MISSED)
    assert "j: of a Job" in job.next
    plain = found(facts(app_pod("p", owner=("ReplicaSet", "plain"))), Reason.SIDECARS_MISSED)
    assert plain.commands[0] == "kubectl --namespace shop delete pod p"


def test_an_old_one_is_a_problem_unless_the_operator_evicts() -> None:
    assert found(facts(STALE), Reason.SIDECARS_STALE).level is Level.PROBLEM
    said = condition("SidecarsCurrent", "False", "SidecarsStale", "Deployment app: an eviction waits.")
    given = facts(STALE, body=body({"sidecar": {"rollout": "Evict"}}, conditions=[said]))
    finding = found(given, Reason.SIDECARS_STALE)
    assert finding.level is Level.NOTE
    assert "an eviction waits" in finding.why
    assert not any("Evict" in command for command in finding.commands)


def test_nobody_is_told_to_restart_pods_while_their_rows_are_not_delivered() -> None:
    given = facts(STALE, says=stuck(5, **ACCEPTED))
    assert found(given, Reason.SIDECARS_STALE).next.startswith("Not while rows wait that are not delivered (s)")
    assert found(given, Reason.NOT_DELIVERING).what == "s holds rows that are not being delivered."


def test_without_a_sidecar_to_give_nobody_is_told_to_restart() -> None:
    given = facts(STALE, body=body(sidecar=None), secrets=[secret(Reason.SECRET_NOT_SHARED)], expected_token_hash=None)
    assert found(given, "NoSidecarToGive").level is Level.NOTE
    assert "Do not restart" in found(given, "NoSidecarToGive").next
    assert not any("restart" in command for finding in diagnose(given).findings for command in finding.commands)
    assert found(facts(body=body(sidecar=None)), "NoSidecarToGive").level is Level.PROBLEM


def test_who_cannot_have_it_is_told_once_for_each_owner_with_the_reason() -> None:
    host = {"hostNetwork": True}
    given = facts(app_pod("a", spec=host), app_pod("b", spec=host), app_pod("bare", owner=None, spec=host))
    first, second = [each for each in diagnose(given).findings if each.reason == Reason.SIDECARS_REFUSED]
    assert first.what == "Deployment app: 2 pods cannot have the sidecar (a, b)."
    assert first.why.startswith("spec.hostNetwork")
    assert first.commands[0] == "kubectl --namespace shop edit deployment app"
    assert f'"{INJECT_LABEL}":"false"' in first.commands[1]
    assert second.commands[1] == f"kubectl --namespace shop label pod bare {INJECT_LABEL}=false --overwrite"


def test_of_many_owners_the_first_are_told() -> None:
    pods = [app_pod(f"b{number}", owner=None, spec={"hostNetwork": True}) for number in range(8)]
    told = [each for each in diagnose(facts(*pods)).findings if each.reason == Reason.SIDECARS_REFUSED]
    assert len(told) == 6
    assert told[-1].what == "The same of 3 more that make pods."


def test_too_little_time_is_told_unless_it_is_raised() -> None:
    short = app_pod("c", hash=HASH, spec={"terminationGracePeriodSeconds": 5})
    finding = found(facts(short), Reason.GRACE_PERIOD_TOO_SHORT)
    assert finding.why.startswith("terminationGracePeriodSeconds is 5, and 30 are needed")
    assert '"gracePeriod":"Raise"' in finding.commands[0]
    assert '"terminationGracePeriodSeconds":30' in finding.commands[1]
    assert diagnose(facts(short, body=body(sidecar={**SIDECAR, "gracePeriod": "Raise"}))).healthy


def test_one_that_is_not_asked_for_any_more_is_a_note() -> None:
    finding = found(facts(app_pod("o", asks=None, hash="0")), "NoLongerAsked")
    assert finding.level is Level.NOTE
    assert diagnose(facts(app_pod("o", asks=None, hash="0"))).healthy


def test_pods_that_ask_for_what_does_not_exist_are_told() -> None:
    finding = found(facts(CURRENT, astray={"event": ["x", "y"]}), "NoSuchResource")
    assert finding.what == "2 pods ask for the sidecar of a TinybirdProxy event, which does not exist."
    assert f'"{INJECT_LABEL}":"events"' in finding.commands[0]


def test_a_missing_resource_says_who_asks_for_it_and_who_has_it_still() -> None:
    given = facts(app_pod("typo"), app_pod("old", hash=HASH), body=None)
    assert found(given, "AskedInVain").what.startswith("1 pod asks for the sidecar of a TinybirdProxy of that name")
    assert "typo" in found(given, "AskedInVain").why
    assert found(given, "LeftBehind").what == "old has the sidecar of a TinybirdProxy of that name."
    assert [line.name for line in diagnose(given).pods if line.sidecar == "Missed"] == ["typo"]


def test_a_resource_of_another_mode_says_who_asks_for_it_in_vain() -> None:
    given = facts(MISSED, body={**body(), "spec": {"replicas": 0}}, pods=[])
    finding = found(given, "NotASidecar")
    assert finding.what == "1 pod asks for a sidecar of this resource, and its mode is Deployment."
    assert finding.commands[0].startswith("kubectl --namespace shop patch deployment app --type=merge")
    assert diagnose(given).pods == []


def test_a_spec_that_cannot_be_read_keeps_its_mode() -> None:
    given = facts(CURRENT, body=body({"batch": {"maxRows": "many"}}))
    assert problems(diagnose(given)) == [Reason.INVALID_SPEC]


def test_pods_that_could_not_be_listed_are_not_called_healthy() -> None:
    given = facts(pods=None, apps=None)
    assert found(given, "PodsUnknown").level is Level.UNKNOWN
    loss = diagnose(given).loss
    assert loss is not None
    assert not loss.known


def test_deleting_it_takes_no_pod_away() -> None:
    loss = diagnose(facts(CURRENT, says=stuck(7, **ACCEPTED))).loss
    assert loss is not None
    assert (loss.deliverable_rows, loss.stuck_rows, loss.silent_pods) == (7, 0, [])
    assert loss.sentence.startswith("Nothing is lost: the apps' pods stay")
    assert "New pods get no sidecar" in loss.sentence


def test_commands_name_the_container_and_its_port() -> None:
    silent = app_pod("c", hash=HASH)
    given = facts(silent)
    quiet = [PodSeen(pod=each.pod, answer=None, app=each.app, admin_port=each.admin_port) for each in given.pods or ()]
    commands = found(facts(silent, pods=quiet), "NoAnswer").commands
    assert commands[0] == "kubectl --namespace shop logs c --container=tinybird-proxy --tail=50"
    assert "port-forward c 18001" in found(facts(silent, says=stuck(5, **ACCEPTED)), Reason.NOT_DELIVERING).commands[0]
    unused = found(facts(silent, says=report()), Reason.NOT_USED_YET)
    assert "exec c --container=tinybird-proxy -- tinybird-proxy check --upstream" in unused.commands[0]


def test_an_image_that_cannot_be_had_is_the_sidecars() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    pod = app_pod("c", hash=HASH, state=waiting, ready=False)
    pod["status"]["phase"] = "Pending"
    given = facts(pod)
    quiet = [PodSeen(pod=each.pod, answer=None, app=each.app) for each in given.pods or ()]
    finding = found(facts(pod, pods=quiet), "ImagePull")
    assert finding.what == "c cannot get the sidecar's image, so its app does not start."
    assert finding.commands[1].endswith("--output=jsonpath='{.spec.initContainers[*].image}'")


def test_a_stale_pod_with_another_token_is_to_be_restarted_first() -> None:
    other = {**report(**ACCEPTED), "tokens": {"tinybird": {"hash": "aaaa1111", "accepted_at": "x", "denied_at": None}}}
    assert "restart it" in found(facts(STALE, says=other), "TokenOutdated").next
    assert "restart it" not in found(facts(CURRENT, says=other), "TokenOutdated").next
