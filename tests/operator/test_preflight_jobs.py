"""The preflight's Job in `reconcile`: made, watched, deleted, told; the controllers and kubelet are played here."""

from datetime import timedelta
from typing import Any

import pytest
from tests.operator.clusters import EPOCH, IPS, Cluster, owned, stuck
from tests.operator.resources import IMAGE, OWN_TOKEN

from tinybird_proxy_operator.manifests.preflight import PREFLIGHT_LABEL
from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION
from tinybird_proxy_operator.preflight import RETRY_AFTER_S
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.reconcile import FIGURES_S, SOON_S

NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"
NEW_URL = "https://api.us-east.tinybird.co"
SPEC: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}
CHANGED: dict[str, Any] = {**SPEC, "tinybird": {**OWN_TOKEN["tinybird"], "url": NEW_URL}}
WORDS = f"{NEW_URL} answers, but refuses the token of TINYBIRD_TOKEN_FILE (403: no)."
JOB = "events-preflight"


def live_url(cluster: Cluster) -> str:
    [container] = cluster.api.get("Deployment", "events")["spec"]["template"]["spec"]["containers"]
    return next(str(entry["value"]) for entry in container["env"] if entry["name"] == "TINYBIRD_URL")


def job_ends(cluster: Cluster, status: int | None, message: str = "", *, name: str = "events") -> None:
    """Do what kubelet and the Job controller do. ``status`` None: the image cannot be pulled."""
    job = cluster.api.get("Job", f"{name}-preflight")
    state: dict[str, Any] = {"terminated": {"exitCode": status, "message": message}}
    if status is None:
        state = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
    else:
        at = (EPOCH + timedelta(seconds=cluster.clock.seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        end = {"type": "Failed" if status else "Complete", "status": "True", "lastTransitionTime": at}
        cluster.api.put({**job, "status": {"conditions": [end]}})
    labels = {PREFLIGHT_LABEL: name}
    statuses = [{"name": "proxy", "state": state}]
    metadata = owned(f"{job['metadata']['uid']}-pod", labels, job)
    cluster.api.put({"kind": "Pod", "metadata": metadata, "spec": {}, "status": {"containerStatuses": statuses}})


async def held(cluster: Cluster, spec: dict[str, Any] | None = None) -> None:
    """A resource whose pods run, and a change that waits for its Job."""
    cluster.secret()
    await cluster.installed(SPEC)
    await cluster.reconcile()
    cluster.resource(CHANGED if spec is None else spec)
    await cluster.reconcile()


async def test_a_first_install_is_applied_without_a_job(cluster: Cluster) -> None:
    cluster.secret()
    cluster.resource(CHANGED)
    await cluster.reconcile()
    assert live_url(cluster) == NEW_URL
    assert cluster.api.names("Job") == []


async def test_a_changed_url_waits_for_its_job_and_goes_out_when_that_is_well(cluster: Cluster) -> None:
    await held(cluster)
    assert (live_url(cluster), cluster.api.names("Job")) == ("https://api.tinybird.co", [JOB])
    assert cluster.condition("Progressing") == ("True", "Preflight")
    assert await cluster.reconcile() == SOON_S
    job_ends(cluster, 0)
    await cluster.reconcile()
    assert live_url(cluster) == NEW_URL
    assert cluster.condition("Progressing") == ("True", "RollingOut")
    await cluster.reconcile()
    assert cluster.api.names("Job") == []
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_an_operator_that_starts_between_apply_and_deletion_deletes_the_job_and_makes_none(
    cluster: Cluster,
) -> None:
    await held(cluster)
    job_ends(cluster, 0)
    await cluster.reconciler.reconcile(Key("shop", "events"))
    assert cluster.api.names("Job") == [JOB]
    cluster.reconciler = cluster.operator()
    await cluster.reconcile()
    assert (live_url(cluster), cluster.api.names("Job")) == (NEW_URL, [])


async def test_an_operator_that_starts_after_a_success_lets_the_template_out_without_another_job(
    cluster: Cluster,
) -> None:
    await held(cluster)
    uid = cluster.api.get("Job", JOB)["metadata"]["uid"]
    job_ends(cluster, 0)
    cluster.reconciler = cluster.operator()
    await cluster.reconciler.reconcile(Key("shop", "events"))
    assert live_url(cluster) == NEW_URL
    assert cluster.api.get("Job", JOB)["metadata"]["uid"] == uid


async def test_a_failure_leaves_the_pods_and_is_told_once(cluster: Cluster) -> None:
    await held(cluster)
    job_ends(cluster, 2, f"PORT                       8000\n\n{WORDS}\n")
    for _ in range(3):
        assert await cluster.reconcile() in (SOON_S, FIGURES_S)
    assert live_url(cluster) == "https://api.tinybird.co"
    assert cluster.condition("Progressing") == ("False", "PreflightFailed")
    assert WORDS in cluster.message("Progressing")
    assert [reason for _, reason, _ in cluster.told()] == ["PreflightFailed"]
    assert cluster.status()["replicas"] == 2


async def test_an_image_that_cannot_be_pulled_is_told_before_the_deadline(cluster: Cluster) -> None:
    await held(cluster, {**SPEC, "image": NEW_IMAGE})
    job_ends(cluster, None, "no such tag")
    await cluster.reconcile()
    assert cluster.condition("Progressing") == ("False", "PreflightFailed")
    assert "ImagePullBackOff: no such tag" in cluster.message("Progressing")
    [container] = cluster.api.get("Deployment", "events")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE


async def test_a_failed_one_is_tried_again_after_a_while(cluster: Cluster) -> None:
    await held(cluster)
    uid = cluster.api.get("Job", JOB)["metadata"]["uid"]
    job_ends(cluster, 2, WORDS)
    cluster.clock.seconds += RETRY_AFTER_S - 1
    await cluster.reconcile()
    assert cluster.api.get("Job", JOB)["metadata"]["uid"] == uid
    cluster.clock.seconds += 1
    await cluster.reconcile()
    assert cluster.api.get("Job", JOB)["metadata"]["uid"] != uid
    assert cluster.condition("Progressing") == ("True", "Preflight")


@pytest.mark.parametrize("what", ["the resource", "the token"])
async def test_a_failed_one_is_tried_again_at_once_when_what_it_checks_changes(cluster: Cluster, what: str) -> None:
    await held(cluster)
    uid = cluster.api.get("Job", JOB)["metadata"]["uid"]
    job_ends(cluster, 2, WORDS)
    await cluster.reconcile()
    if what == "the resource":
        cluster.resource({**CHANGED, "image": NEW_IMAGE})
    else:
        cluster.secret(value="b3RoZXI=")
    await cluster.reconcile()
    assert cluster.api.get("Job", JOB)["metadata"]["uid"] != uid
    assert cluster.condition("Progressing") == ("True", "Preflight")
    assert len([pod for pod in cluster.api.names("Pod") if pod.startswith(uid)]) == 0


async def test_what_is_put_back_needs_no_job(cluster: Cluster) -> None:
    await held(cluster)
    job_ends(cluster, 2, WORDS)
    cluster.resource(SPEC)
    await cluster.reconcile()
    assert cluster.api.names("Job") == []
    assert cluster.condition("Progressing") == ("False", "UpToDate")


@pytest.mark.parametrize("how", ["Disabled", "annotation"])
async def test_a_failed_one_may_go_out_nevertheless(cluster: Cluster, how: str) -> None:
    await held(cluster)
    job_ends(cluster, 2, WORDS)
    if how == "Disabled":
        cluster.resource({**CHANGED, "preflight": "Disabled"})
    else:
        cluster.resource(CHANGED, annotations={ROLL_ANNOTATION: "now"})
    await cluster.reconcile()
    await cluster.reconcile()
    assert (live_url(cluster), cluster.api.names("Job")) == (NEW_URL, [])


async def test_while_a_template_is_tried_replicas_are_followed_and_the_rest_is_applied(cluster: Cluster) -> None:
    await held(cluster, {**CHANGED, "replicas": 3, "service": {"port": 8080}})
    assert cluster.api.get("Deployment", "events")["spec"]["replicas"] == 3
    assert live_url(cluster) == "https://api.tinybird.co"
    assert cluster.api.get("Service", "events")["spec"]["ports"][0]["port"] == 8080


async def test_no_job_is_made_while_rows_wait_undelivered(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(SPEC)
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource(CHANGED)
    await cluster.reconcile()
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    assert cluster.api.names("Job") == []


async def test_a_job_of_somebody_elses_is_left_alone_and_named(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(SPEC)
    cluster.api.put({"kind": "Job", "metadata": {"name": JOB, "namespace": "shop"}, "spec": {}})
    await cluster.reconcile()
    cluster.resource(CHANGED)
    await cluster.reconcile()
    assert cluster.condition("Progressing") == ("False", "PreflightFailed")
    assert f"Job {JOB} exists and does not belong" in cluster.message("Progressing")
    assert cluster.api.names("Job") == [JOB]


@pytest.mark.parametrize("status", [403, 422])
async def test_a_job_that_is_refused_holds_the_template_and_only_that(cluster: Cluster, status: int) -> None:
    cluster.secret()
    await cluster.installed(SPEC)
    cluster.api.fail(status, method="POST", path="/jobs", message="exceeded quota")
    cluster.resource({**CHANGED, "replicas": 3})
    await cluster.reconcile()
    assert cluster.condition("Progressing") == ("False", "PreflightFailed")
    assert "exceeded quota" in cluster.message("Progressing")
    assert cluster.api.get("Deployment", "events")["spec"]["replicas"] == 3
    assert live_url(cluster) == "https://api.tinybird.co"


async def test_without_the_right_to_look_for_jobs_nothing_goes_out_unchecked(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(SPEC)
    cluster.api.fail(403, method="GET", path="/jobs", times=5)
    cluster.resource(CHANGED)
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert live_url(cluster) == "https://api.tinybird.co"


async def test_a_resource_whose_preflight_failed_does_not_keep_others_from_an_upgrade(cluster: Cluster) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    for name in ("events", "orders"):
        await cluster.reconcile(name)
    assert cluster.api.names("Job") == [JOB]
    assert cluster.condition("Progressing", "orders") == ("False", "RolloutHeld")
    job_ends(cluster, 2, "no")
    for name in ("events", "orders"):
        await cluster.reconcile(name)
    assert cluster.condition("Progressing", "events") == ("False", "PreflightFailed")
    assert cluster.condition("Progressing", "orders") == ("True", "Preflight")


@pytest.mark.parametrize("how", ["failed", "running", "refused"])
async def test_a_moment_without_a_ready_pod_lets_nothing_out_that_is_being_tried_or_failed(
    cluster: Cluster, how: str
) -> None:
    if how == "refused":
        cluster.api.fail(403, method="POST", path="/jobs", message="exceeded quota", times=2)
    await held(cluster)
    if how == "failed":
        job_ends(cluster, 2, WORDS)
    await cluster.reconcile()
    before = cluster.condition("Progressing")
    cluster.roll_out("events", pods=2, readyReplicas=0, availableReplicas=0)
    if how != "refused":
        cluster.reconciler = cluster.operator()
    await cluster.reconcile()
    assert live_url(cluster) == "https://api.tinybird.co"
    assert cluster.condition("Progressing") == (("True", "Preflight") if how == "refused" else before)


async def test_with_another_token_a_check_that_began_stays_binding(cluster: Cluster) -> None:
    await held(cluster)
    job_ends(cluster, 2, WORDS)
    cluster.roll_out("events", pods=2, readyReplicas=0, availableReplicas=0)
    cluster.secret(value="b3RoZXI=")
    cluster.reconciler = cluster.operator()
    await cluster.reconcile()
    assert (live_url(cluster), cluster.api.names("Job")) == ("https://api.tinybird.co", [JOB])
    assert cluster.condition("Progressing") == ("True", "Preflight")


async def test_a_change_that_is_first_seen_while_no_pod_is_ready_goes_out_unchecked(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(SPEC)
    cluster.roll_out("events", pods=2, readyReplicas=0, availableReplicas=0)
    cluster.resource(CHANGED)
    await cluster.reconcile()
    assert (live_url(cluster), cluster.api.names("Job")) == (NEW_URL, [])


async def test_its_pod_is_none_of_the_resources_pods(cluster: Cluster) -> None:
    await held(cluster)
    job_ends(cluster, 2, WORDS)
    await cluster.reconcile()
    assert (cluster.status()["replicas"], cluster.status()["readyReplicas"]) == (2, 2)
    assert cluster.condition("Ready") == ("True", "Ready")
    assert KIND in {owner["kind"] for owner in cluster.api.get("Job", JOB)["metadata"]["ownerReferences"]}
