"""Whether a changed template may go out: the whole decision, by table, and what is told of a check that failed."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from tests.operator.resources import OWN_TOKEN, changed, desired, resource

from tinybird_proxy.config import OPTIONS
from tinybird_proxy_operator.manifests import deployment
from tinybird_proxy_operator.names import NAME_MAX_LENGTH, ROLL_ANNOTATION
from tinybird_proxy_operator.preflight import (
    CHECKS_ANNOTATION,
    RETRY_AFTER_S,
    WORDS_MAX_CHARS,
    Decision,
    Step,
    changes,
    checks,
    decide,
    is_about,
    is_needed,
    job_name,
    words_of,
)

NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
CHECKS: Final = checks("0123456789abcdef", "69b6bc28")
OTHER_URL: Final = changed(OWN_TOKEN, "tinybird.url", "https://api.us-east.tinybird.co")
OTHER_IMAGE: Final = {**OWN_TOKEN, "image": "ghcr.io/tinybird-proxy/tinybird-proxy:9"}
REFUSED: Final = (
    "https://api.tinybird.co answers, but refuses the token of TINYBIRD_TOKEN_FILE (403: invalid authentication token)."
)
LISTED: Final = "\n".join(f"{option.variable:26} (not set)" for option in OPTIONS)


def live(spec: dict[str, Any] = OWN_TOKEN, *, ready: int = 2) -> dict[str, Any]:
    status = {"replicas": 2, **({"readyReplicas": ready} if ready else {})}
    return {**deployment.build(desired(spec)), "status": status}


def needed(spec: dict[str, Any], before: dict[str, Any] | None = None, *, is_changed: bool = True, **meta: Any) -> bool:
    return is_needed(resource(spec, **meta), before or live(), deployment.build(desired(spec)), changed=is_changed)


def job(*ends: tuple[str, str, datetime], said: str = CHECKS, **metadata: Any) -> dict[str, Any]:
    conditions = [
        {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        for kind, reason, at in ends
    ]
    annotations = {CHECKS_ANNOTATION: said}
    named = {"name": "events-preflight", "namespace": "shop", "uid": "job-1", "annotations": annotations, **metadata}
    return {"kind": "Job", "metadata": named, "status": {"conditions": conditions} if ends else {}}


def pod(state: dict[str, Any] | None = None, *, owner: str = "job-1", made: str = "2026-01-01T11:59:00Z") -> Any:
    statuses = [] if state is None else [{"name": "proxy", "state": state}]
    metadata = {"name": "x", "creationTimestamp": made, "ownerReferences": [{"uid": owner, "controller": True}]}
    return {"metadata": metadata, "status": {"containerStatuses": statuses}}


def ended(status: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": status, "reason": reason, **({"message": message} if message else {})}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def failed_at(ago_s: float, reason: str = "BackoffLimitExceeded") -> dict[str, Any]:
    return job(("Failed", reason, NOW - timedelta(seconds=ago_s)))


def decided(found: dict[str, Any] | None, *pods: Any) -> Decision:
    return decide(["tinybird.url"], CHECKS, found, pods, now=NOW)


# What is tried first.


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (OWN_TOKEN, []),
        (OTHER_URL, ["tinybird.url"]),
        (OTHER_IMAGE, ["image"]),
        ({**OTHER_URL, "image": OTHER_IMAGE["image"]}, ["tinybird.url", "image"]),
        (changed(OWN_TOKEN, "pod.env", [{"name": "LOG_LEVEL", "value": "debug"}]), []),
        (changed(OWN_TOKEN, "tinybird.tokenSecretRef.name", "other"), []),
        (changed(OWN_TOKEN, "batch.maxRows", 5), []),
    ],
)
def test_a_changed_url_or_image_is_tried_first_and_nothing_else(spec: dict[str, Any], fields: list[str]) -> None:
    assert changes(live(), deployment.build(desired(spec))) == fields
    assert needed(spec) is bool(fields)


def test_the_first_install_is_not_held() -> None:
    assert not is_needed(resource(OTHER_URL), None, deployment.build(desired(OTHER_URL)), changed=True)


def test_where_no_pod_is_ready_nothing_is_held_for_nothing_that_works_could_be_lost() -> None:
    assert not needed(OTHER_URL, live(ready=0))


def test_what_was_to_be_tried_before_stays_so_whether_a_pod_is_ready_or_not() -> None:
    wanted = deployment.build(desired(OTHER_URL))
    assert is_needed(resource(OTHER_URL), live(ready=0), wanted, changed=True, begun=True)
    assert not is_needed(resource({**OTHER_URL, "preflight": "Disabled"}), live(), wanted, changed=True, begun=True)
    assert not is_needed(resource(OTHER_URL), live(), wanted, changed=False, begun=True)


def test_a_job_is_about_a_template_with_whatever_token() -> None:
    assert is_about(job(said=checks("abc", None)), "abc")
    assert is_about(job(said=checks("abc", "69b6bc28")), "abc")
    assert not is_about(job(said=checks("abcd", None)), "abc")
    assert not is_about(job(annotations=None), "abc")
    assert not is_about(None, "abc")


def test_a_failed_check_is_not_tried_once_more_while_it_has_no_turn() -> None:
    found = failed_at(RETRY_AFTER_S)
    assert decide(["image"], CHECKS, found, [pod(ended(2, REFUSED))], now=NOW).step is Step.START
    still = decide(["image"], CHECKS, found, [pod(ended(2, REFUSED))], now=NOW, may_retry=False)
    assert (still.step, REFUSED in still.message) == (Step.FAILED, True)


def test_a_template_that_was_applied_is_not_tried_again_whatever_the_deployment_looks_like_since() -> None:
    # As with a webhook that rewrites images: otherwise there would be a Job for ever.
    assert not needed(OTHER_IMAGE, is_changed=False)


def test_a_resource_may_go_without_and_the_annotation_lets_one_out() -> None:
    assert not needed({**OTHER_URL, "preflight": "Disabled"})
    assert not needed(OTHER_URL, annotations={ROLL_ANNOTATION: "now"})
    assert needed(OTHER_URL, annotations={ROLL_ANNOTATION: "later"})


# What comes of it.


@pytest.mark.parametrize(
    ("found", "pods", "step"),
    [
        (None, [], Step.START),
        (None, [pod(ended(0))], Step.START),
        (job(said=checks("another", "69b6bc28")), [pod(ended(0))], Step.START),
        (job(said=checks("0123456789abcdef", "another")), [pod(ended(0))], Step.START),
        (job(annotations=None), [], Step.START),
        (job(), [], Step.WAIT),
        (job(), [pod()], Step.WAIT),
        (job(), [pod(waiting("ContainerCreating"))], Step.WAIT),
        (job(), [pod({"running": {}})], Step.WAIT),
        (job(), [pod(ended(0), owner="the Job before it")], Step.WAIT),
        (job(deletionTimestamp="2026-01-01T12:00:00Z"), [pod(ended(0))], Step.WAIT),
        (job(), [pod(ended(0))], Step.GO),
        (job(("Complete", "", NOW)), [], Step.GO),
        (job(("Complete", "", NOW - timedelta(days=1))), [], Step.GO),
        (job(), [pod(ended(2, REFUSED))], Step.FAILED),
        (failed_at(0), [pod(ended(2, REFUSED))], Step.FAILED),
        (failed_at(RETRY_AFTER_S - 1), [pod(ended(2, REFUSED))], Step.FAILED),
        (failed_at(RETRY_AFTER_S), [pod(ended(2, REFUSED))], Step.START),
        (failed_at(RETRY_AFTER_S), [], Step.START),
        (failed_at(1, "DeadlineExceeded"), [], Step.FAILED),
        (failed_at(1), [], Step.FAILED),
        (job(), [pod(waiting("ErrImagePull", "no such tag"))], Step.FAILED),
        (job(), [pod(waiting("ImagePullBackOff", "no such tag"))], Step.FAILED),
        (job(), [pod(waiting("InvalidImageName"))], Step.FAILED),
        (job(), [pod(ended(2), made="2026-01-01T11:00:00Z"), pod({"running": {}})], Step.WAIT),
    ],
)
def test_what_comes_of_a_job(found: dict[str, Any] | None, pods: list[Any], step: Step) -> None:
    decision = decided(found, *pods)
    assert decision.step is step
    assert bool(decision.message) is (step is not Step.GO)


def test_the_same_is_decided_by_an_operator_that_starts_anew() -> None:
    # It knows nothing but the cluster: between a success and the apply, and between the apply and the Job's deletion.
    assert decided(job(("Complete", "", NOW))).step is Step.GO
    assert not needed(OTHER_URL, live(OTHER_URL), is_changed=False)


def test_a_failure_is_told_in_the_checks_own_words_and_says_what_to_do() -> None:
    message = decided(failed_at(3), pod(ended(2, f"{LISTED}\n\n{REFUSED}\n"))).message
    assert message == (
        f"The changed tinybird.url did not pass the preflight, and the pods stay as they are: {REFUSED} Put it right;"
        " or let it go out unchecked, with spec.preflight: Disabled or the annotation tinybird-proxy.io/roll=now."
        " It is tried again every 5 minutes, and at once when it or the token changes."
    )


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ended(2), "the check ended with status 2 (Error)."),
        (ended(137, reason="OOMKilled"), "the check ended with status 137 (OOMKilled)."),
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "x:9"'),
            'ImagePullBackOff: Back-off pulling image "x:9".',
        ),
    ],
)
def test_a_failure_without_words_is_told_too(state: dict[str, Any], words: str) -> None:
    assert f"the pods stay as they are: {words} Put it right" in decided(job(), pod(state)).message


def test_a_job_that_ran_into_its_deadline_says_what_it_may_be_and_where_to_look() -> None:
    message = decided(failed_at(1, "DeadlineExceeded")).message
    assert "did not end within 60 s" in message
    assert "kubectl -n shop describe job events-preflight" in message


def test_while_it_waits_it_says_for_what() -> None:
    unscheduled = pod()
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}
    unscheduled["status"]["conditions"] = [condition]
    assert "0/3 nodes are available" in decided(job(), unscheduled).message
    assert decided(job(), pod(waiting("ContainerCreating"))).message.endswith("Its pod: ContainerCreating.")


# Its words.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (f"{LISTED}\n\n{REFUSED}\n", REFUSED),
        # The limit of the message cuts anywhere, also within a line.
        (f"ot set)\n{LISTED[40:]}\n\n{REFUSED}", REFUSED),
        # Two streams in one log keep no order between them.
        ("PORT                       8000\n" + f"\n{REFUSED}\nHOST                       0.0.0.0\n", REFUSED),
        (f"{LISTED}\nBATCH_SIZEE: is not an option of tinybird-proxy\n\n{REFUSED}", REFUSED),
        (
            "The configuration has 1 problem:\n  TINYBIRD_TOKEN_FILE: /etc/token: cannot be read\n",
            "The configuration has 1 problem: TINYBIRD_TOKEN_FILE: /etc/token: cannot be read",
        ),
        ("OCI runtime create failed: no such file", "OCI runtime create failed: no such file"),
        ("a\x00b\x1b[31mc\n", "a b [31mc"),
    ],
)
def test_its_words_are_what_it_said_last(text: str, words: str) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "bad token p.eyJ1IjogImFiYyJ9.s3cr3t-s3cr3t here",
        "sent Authorization: Bearer s3cr3t-s3cr3t",
        "GET http://api/v0/events?token=s3cr3t-s3cr3t&x=1",
        "https://user:s3cr3t-s3cr3t@api.tinybird.co: no",
    ],
)
def test_no_token_is_told(text: str) -> None:
    assert "s3cr3t" not in words_of(text)
    assert "s3cr3t" not in decided(job(), pod(ended(2, text))).message
    assert "s3cr3t" not in decided(job(), pod(waiting("ImagePullBackOff", text))).message


def test_what_is_told_is_bounded_and_leaves_room_for_what_to_do() -> None:
    words = words_of("x " * 5000 + "the end.")
    assert len(words) == WORDS_MAX_CHARS
    assert words.endswith("the end.")
    assert len(decided(job(), pod(ended(2, "y" * 5000))).message) < 1000


def test_the_longest_job_name_is_a_labels_value() -> None:
    assert len(job_name("e" * NAME_MAX_LENGTH)) <= 63
