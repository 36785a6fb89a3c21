"""Mode Sidecar: what a look renders, counts and tells."""

import base64
from typing import Any, Final

import pytest
from tests.operator.app_pods import app_pod
from tests.operator.clusters import Cluster, report, stuck

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.names import INJECT_LABEL, KIND
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.sidecars.evidence import SETTLING_S

TOKEN_HASH: Final = token_hash("token")
SPEC: Final[dict[str, Any]] = {"mode": "Sidecar", "tinybird": {"tokenSecretRef": {"name": "tinybird"}}}


async def look(cluster: Cluster, spec: dict[str, Any] | None = None, **env: str) -> dict[str, Any]:
    """Write the resource, if given, and reconcile with injection on."""
    cluster.reconciler = cluster.operator(**{"SIDECAR_INJECTION": "Webhook", **env})
    if spec is not None:
        cluster.resource({**SPEC, **spec})
    await cluster.reconcile()
    return cluster.status()


async def test_it_has_no_children_and_no_finalizer_but_a_sidecar_in_its_status(cluster: Cluster) -> None:
    cluster.secret()
    status = await look(cluster, {})
    assert status["sidecar"]["container"]["name"] == "tinybird-proxy"
    assert status["sidecars"] == {"injected": 0, "stale": 0, "missed": 0, "refused": 0, "unknown": 0}
    assert status["selector"] == "tinybird-proxy.io/injected=events"
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("SidecarsCurrent") == ("True", "SidecarsCurrent")
    kinds = {kind for kind in cluster.api.kinds if cluster.api.names(kind)}
    assert kinds == {KIND, "Secret"}
    assert cluster.api.names("Secret") == ["tinybird"]
    assert "finalizers" not in cluster.api.get(KIND, "events")["metadata"]
    assert {each["type"] for each in status["conditions"]}.isdisjoint({"Progressing", "Autoscaling", "Draining"})


async def test_looking_again_changes_nothing(cluster: Cluster) -> None:
    cluster.secret()
    await look(cluster, {})
    cluster.forget()
    await cluster.look()
    assert cluster.api.writes == []


async def test_a_secret_that_is_not_there_yet_is_told_and_the_sidecar_waits_for_it(cluster: Cluster) -> None:
    status = await look(cluster, {})
    assert cluster.condition("Ready") == ("False", "SecretNotFound")
    assert cluster.condition("TokenValid") == ("False", "SecretNotFound")
    first = status["sidecar"]
    cluster.secret()
    assert (await look(cluster))["sidecar"] == first
    assert cluster.condition("Ready") == ("True", "Ready")


async def test_a_secret_without_the_label_comes_into_no_pod(cluster: Cluster) -> None:
    cluster.secret(shared=False)
    assert "sidecar" not in await look(cluster, {})
    assert cluster.condition("Ready") == ("False", "SecretNotShared")


async def test_a_label_that_is_taken_away_takes_the_sidecar_away_from_new_pods(cluster: Cluster) -> None:
    cluster.secret()
    await look(cluster, {})
    cluster.secret(shared=False)
    assert "sidecar" not in await look(cluster)


@pytest.mark.parametrize(
    "spec",
    [
        {"image": "evil.example.com/proxy:1"},
        {"batch": {"maxRows": "many"}},
        {"tinybird": {"tokenSecretRef": {"name": "other"}}},
    ],
    ids=["not allowed", "not read", "another"],
)
async def test_a_label_that_is_taken_away_does_so_whatever_else_is_wrong(
    cluster: Cluster, spec: dict[str, Any]
) -> None:
    cluster.secret()
    cluster.secret("other", shared=False)
    await look(cluster, {})
    assert "sidecar" in await look(cluster, spec)
    cluster.secret(shared=False)
    assert "sidecar" not in await look(cluster)
    assert "Secret tinybird does not carry the label" in cluster.message("Degraded")


async def test_naming_a_secret_that_is_not_shared_keeps_the_one_before(cluster: Cluster) -> None:
    cluster.secret()
    before = (await look(cluster, {}))["sidecar"]
    cluster.secret("other", shared=False)
    status = await look(cluster, {"tinybird": {"tokenSecretRef": {"name": "other"}}})
    assert status["sidecar"] == before
    assert cluster.condition("Degraded") == ("True", "SecretNotShared")


TRACED: Final[dict[str, Any]] = {
    "telemetry": {
        "otlpEndpoint": "http://collector.observability.svc:4318",
        "otlpHeadersSecretRef": {"name": "collector"},
    }
}
HEADERS: Final[dict[str, Any]] = {"key": "headers", "value": base64.b64encode(b"x-api-key=key").decode()}


def volumes(status: dict[str, Any]) -> list[str]:
    return [volume["name"].removeprefix("tinybird-proxy-") for volume in status["sidecar"]["volumes"]]


async def test_headers_of_spans_that_are_not_there_yet_are_told_and_neither_app_nor_rows_wait(cluster: Cluster) -> None:
    cluster.secret()
    status = await look(cluster, TRACED)
    assert volumes(status) == ["no-account", "token", "otlp-headers"]
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("Degraded") == ("True", "SecretNotFound")
    cluster.secret("collector", **HEADERS)
    assert (await look(cluster))["sidecar"] == status["sidecar"]
    assert cluster.condition("Degraded") == ("False", "AsExpected")


async def test_headers_of_a_secret_without_the_label_come_into_no_pod_and_the_sidecar_does(cluster: Cluster) -> None:
    cluster.secret()
    cluster.secret("collector", **HEADERS)
    assert volumes(await look(cluster, TRACED)) == ["no-account", "token", "otlp-headers"]
    cluster.secret("collector", **HEADERS, shared=False)
    status = await look(cluster)
    assert volumes(status) == ["no-account", "token"]
    assert "OTEL_EXPORTER_OTLP_HEADERS_FILE" not in str(status["sidecar"])
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("Degraded") == ("True", "SecretNotShared")


async def test_where_no_secret_is_shared_any_more_the_one_before_does_not_stay_either(cluster: Cluster) -> None:
    cluster.secret()
    cluster.secret("collector", **HEADERS)
    await look(cluster, TRACED)
    cluster.secret("collector", **HEADERS, shared=False)
    cluster.secret("other", shared=False)
    status = await look(cluster, {**TRACED, "tinybird": {"tokenSecretRef": {"name": "other"}}})
    assert "sidecar" not in status
    assert cluster.condition("Ready") == ("False", "SecretNotShared")


async def test_what_is_not_allowed_is_not_rendered_and_what_was_stays(cluster: Cluster) -> None:
    cluster.secret()
    evil = {"tinybird": {"url": "https://evil.example.com", "tokenSecretRef": {"name": "tinybird"}}}
    assert "sidecar" not in await look(cluster, evil)
    assert cluster.condition("Ready") == ("False", "UpstreamNotAllowed")
    good = (await look(cluster, {}))["sidecar"]
    assert (await look(cluster, {"image": "evil.example.com/proxy:1"}))["sidecar"] == good
    assert cluster.condition("Ready") == ("False", "ImageNotAllowed")


async def test_a_spec_that_cannot_be_read_keeps_the_sidecar(cluster: Cluster) -> None:
    cluster.secret()
    good = (await look(cluster, {}))["sidecar"]
    assert (await look(cluster, {"batch": {"maxRows": "many"}}))["sidecar"] == good
    assert cluster.condition("Ready") == ("False", "InvalidSpec")


async def test_unmanaged_leaves_the_sidecar_as_it_is_and_evicts_nobody(cluster: Cluster) -> None:
    cluster.secret()
    good = (await look(cluster, {}))["sidecar"]
    cluster.api.put(app_pod(ip=None))
    changed = {"managementState": "Unmanaged", "batch": {"maxRows": 5}, "sidecar": {"rollout": "Evict"}}
    status = await look(cluster, changed)
    assert status["sidecar"] == good
    assert status["sidecars"]["missed"] == 1
    assert cluster.api.names("Pod") == ["app-5d4-x1"]


async def test_pods_are_found_by_their_own_label_and_by_their_namespaces(cluster: Cluster) -> None:
    cluster.secret()
    cluster.api.put(app_pod("asks", ip=None))
    cluster.api.put(app_pod("plain", asks=None, ip=None))
    assert (await look(cluster, {}))["sidecars"]["missed"] == 1
    cluster.api.put({"kind": "Namespace", "metadata": {"name": "shop", "labels": {INJECT_LABEL: "events"}}})
    assert (await look(cluster))["sidecars"]["missed"] == 2


async def test_sidecars_are_asked_on_their_own_port_and_what_they_say_is_told(cluster: Cluster) -> None:
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    port = cluster.proxies.port
    cluster.proxies.says = {
        "127.0.0.1": report(rows=7, hash=TOKEN_HASH, accepted_at="2026-01-01T00:00:00Z"),
        "127.0.0.2": report(hash="00000000"),
    }
    cluster.api.put(app_pod("a", hash=hash, ip="127.0.0.1", admin_port=port))
    cluster.api.put(app_pod("b", hash="0", ip="127.0.0.2", admin_port=port))
    cluster.api.put(app_pod("silent", hash=hash, ip="127.0.0.3", admin_port=1))
    # It claims to have a sidecar, on the node's own address.
    cluster.api.put(app_pod("node", hash=hash, ip="127.0.0.1", admin_port=port, spec={"hostNetwork": True}))
    status = await look(cluster)
    assert status["buffer"]["rows"] == 7
    assert status["token"] == {"expectedHash": TOKEN_HASH, "podsCurrent": 1, "podsTotal": 4, "podsUnknown": 2}
    assert status["sidecars"] == {"injected": 4, "stale": 1, "missed": 0, "refused": 0, "unknown": 2}
    assert status["readyReplicas"] == 4
    assert cluster.condition("TokenValid") == ("True", "Accepted")
    assert cluster.condition("SidecarsCurrent") == ("False", "SidecarsStale")
    assert sorted(cluster.proxies.asked) == ["127.0.0.1", "127.0.0.2"]


async def test_rows_that_are_not_delivered_are_told(cluster: Cluster) -> None:
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    cluster.proxies.says = {"127.0.0.1": stuck(9)}
    cluster.api.put(app_pod(hash=hash, ip="127.0.0.1", admin_port=cluster.proxies.port))
    await look(cluster)
    assert cluster.condition("BufferHealthy") == ("False", "NotDelivering")


async def killed_with_40_rows(cluster: Cluster, reason: str) -> None:
    """A sidecar that held so many at one look, and at the next one is another process."""
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    cluster.proxies.says = {"127.0.0.1": {**report(rows=40), "uptime_s": 100.0}}
    pod = app_pod(hash=hash, ip="127.0.0.1", admin_port=cluster.proxies.port)
    cluster.api.put(pod)
    await cluster.reconcile()
    pod["status"]["initContainerStatuses"][0]["lastState"] = {"terminated": {"reason": reason, "exitCode": 137}}
    cluster.api.put(pod)
    cluster.proxies.says = {"127.0.0.1": {**report(), "uptime_s": 1.0}}
    cluster.clock.seconds += 10
    await cluster.reconcile()


async def test_a_sidecar_that_ran_out_of_memory_is_told_with_what_it_held(cluster: Cluster) -> None:
    await killed_with_40_rows(cluster, "OOMKilled")
    assert cluster.condition("BufferHealthy") == ("False", "OutOfMemory")
    assert "40 rows at the last look" in cluster.message("BufferHealthy")


async def test_a_sidecar_that_was_killed_without_a_word_is_told_with_what_it_held(cluster: Cluster) -> None:
    await killed_with_40_rows(cluster, "Error")
    assert cluster.condition("BufferHealthy") == ("False", "Killed")
    [told] = [message for _, reason, message in cluster.told() if reason == "Killed"]
    assert told.startswith("app-5d4-x1 was ended by force, status 137")
    assert "40 rows at the last look" in told


async def test_refusals_and_short_grace_periods_are_events(cluster: Cluster) -> None:
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    cluster.api.put(app_pod("host", ip=None, spec={"hostNetwork": True}))
    cluster.api.put(app_pod("short", hash=hash, ip=None, spec={"terminationGracePeriodSeconds": 5}))
    await look(cluster)
    told = {reason: message for _, reason, message in cluster.told()}
    assert told["SidecarsRefused"].startswith("host gets no sidecar: spec.hostNetwork")
    assert told["GracePeriodTooShort"].startswith("Deployment app: terminationGracePeriodSeconds is less than 30")


async def test_of_many_that_nothing_replaces_only_some_are_events(cluster: Cluster) -> None:
    cluster.secret()
    for number in range(40):
        cluster.api.put(app_pod(f"j{number}", owner=("Job", f"j{number}"), ip=None, spec={"hostNetwork": True}))
    await look(cluster, {})
    for _ in range(3):
        await cluster.reconcile()
    assert [reason for _, reason, _ in cluster.told()].count("SidecarsRefused") == 20


async def test_rows_that_are_yet_to_be_counted_do_not_wait_because_the_pods_are_many(cluster: Cluster) -> None:
    cluster.secret()
    await look(cluster, {})
    for number in range(100):
        cluster.api.put(app_pod(f"p{number}", ip=None))
    for number in range(11):  # one more than one status counts
        at = f"2099-01-01T00:10:{number:02}Z"
        words = "2 rows lost; hits: 2 rows, no answer"
        ended = {"terminated": {"finishedAt": at, "exitCode": 1, "message": words}}
        cluster.reconciler.lost.saw(app_pod(f"e{number}", hash="0", ip=None, state=ended), True)
    await cluster.reconcile()
    assert cluster.status()["lost"]["rows"] == 22


async def test_with_injection_off_it_says_so(cluster: Cluster) -> None:
    cluster.secret()
    await look(cluster, {}, SIDECAR_INJECTION="None")
    assert cluster.condition("SidecarsCurrent") == ("False", "InjectionOff")
    # Whoever waits for Ready before labelling pods would be told that they get it.
    assert cluster.condition("Ready") == ("False", "InjectionOff")
    assert cluster.message("Ready").startswith("This operator puts sidecars into no pods")


async def injected_by_others(cluster: Cluster, spec: dict[str, Any] | None = None) -> None:
    """This operator injects nowhere, and a pod that is made long after it began has a sidecar."""
    cluster.secret()
    cluster.api.put(app_pod("old", hash="0", ip=None, state={}))
    await look(cluster, spec or {}, SIDECAR_INJECTION="None")
    cluster.clock.seconds += SETTLING_S
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("False", "InjectionOff")
    cluster.api.put(app_pod("new", hash=cluster.status()["sidecar"]["hash"], ip=None, state={}))
    await cluster.reconcile()


async def test_where_new_pods_get_it_from_something_else_it_is_ready_and_says_so(cluster: Cluster) -> None:
    await injected_by_others(cluster)
    assert cluster.condition("Ready") == ("True", "InjectedByOthers")
    assert cluster.condition("SidecarsCurrent") == ("False", "SidecarsStale")
    for kind in ("Ready", "SidecarsCurrent"):
        assert "This operator puts sidecars into no pods itself, something else does" in cluster.message(kind)
    cluster.forget()
    await cluster.look()
    assert cluster.api.writes == []


async def test_the_next_operator_believes_it_until_a_pod_is_missed(cluster: Cluster) -> None:
    await injected_by_others(cluster)
    await look(cluster, SIDECAR_INJECTION="None")
    assert cluster.condition("Ready") == ("True", "InjectedByOthers")
    cluster.api.put(app_pod("missed", ip=None))
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("False", "InjectionOff")
    assert cluster.condition("SidecarsCurrent") == ("False", "InjectionOff")
    cluster.api.remove("Pod", "missed")
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("False", "InjectionOff")


async def test_sidecars_from_before_injection_was_turned_off_prove_nothing(cluster: Cluster) -> None:
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    cluster.api.put(app_pod("old", hash=hash, ip=None, state={}))
    await look(cluster)
    assert cluster.condition("Ready") == ("True", "Ready")
    await look(cluster, SIDECAR_INJECTION="None")
    # What the release injected with may be there for a moment yet.
    cluster.api.put(app_pod("last", hash=hash, ip=None, state={}))
    await cluster.reconcile()
    cluster.clock.seconds += SETTLING_S
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("False", "InjectionOff")


async def test_where_something_else_injects_stale_pods_are_evicted_as_asked(cluster: Cluster) -> None:
    await injected_by_others(cluster, {"sidecar": {"rollout": "Evict"}})
    assert cluster.api.names("Pod") == ["new"]


async def test_with_injection_on_again_it_says_no_more_of_others(cluster: Cluster) -> None:
    await injected_by_others(cluster)
    await look(cluster)
    assert cluster.condition("Ready") == ("True", "Ready")
    assert "something else" not in cluster.message("SidecarsCurrent")


async def test_a_resource_that_is_deleted_keeps_nobody_waiting(cluster: Cluster) -> None:
    cluster.secret()
    await look(cluster, {})
    cluster.api.remove(KIND, "events")
    assert await cluster.reconciler.reconcile(Key("shop", "events")) is None


async def test_a_namespace_with_many_pods_is_looked_at_less_often(cluster: Cluster) -> None:
    cluster.secret()
    await look(cluster, {})
    for number in range(600):
        cluster.api.put(app_pod(f"p{number}", ip=None))
    again_s = await cluster.reconcile()
    assert again_s is not None
    assert again_s >= 12.0


@pytest.mark.parametrize("env", [{"POD_NAMESPACE": "shop"}, {"SIDECAR_INJECTION": "None"}], ids=["left out", "off"])
async def test_where_nothing_is_injected_nobody_is_evicted_and_none_is_promised(
    cluster: Cluster, env: dict[str, str]
) -> None:
    cluster.secret()
    cluster.api.put(app_pod("stale", hash="0", ip=None, state={}))
    await look(cluster, {"sidecar": {"rollout": "Evict"}}, **env)
    assert not [each for each in cluster.api.asked if each.path.endswith("/eviction")]
    assert cluster.condition("SidecarsCurrent") == ("False", "InjectionOff")
    assert cluster.condition("Ready") == ("False", "InjectionOff")
