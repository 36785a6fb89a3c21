"""The command: what it reads and from whom, what it prints, and how it ends. It writes nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from tests.operator.app_pods import app_pod
from tests.operator.clusters import IPS, Cluster, report, stuck
from tests.operator.resources import OPERATOR_ENV, OWN_TOKEN, operator_settings

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator import doctor_command
from tinybird_proxy_operator import pods as pods_module
from tinybird_proxy_operator.doctor import Diagnosis, diagnose
from tinybird_proxy_operator.doctor_command import Reader, answer_of, doctor, printable, settings_from, show
from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.names import INJECT_LABEL, KIND, selector_labels
from tinybird_proxy_operator.settings import OperatorSettings

SPEC = {"replicas": 2, **OWN_TOKEN}
TOKEN_HASH = token_hash("token")  # of Cluster.secret
ACCEPTED = {"hash": TOKEN_HASH, "accepted_at": "2026-01-01T00:00:00+00:00"}


async def diagnosis(cluster: Cluster, name: str = "events", *, settings: OperatorSettings | None = None) -> Diagnosis:
    settings = settings or operator_settings()
    reader = Reader(cluster.kube, cluster.session, settings, port=cluster.proxies.port)
    return diagnose(await reader.read("shop", name))


async def well(cluster: Cluster) -> None:
    """Two pods that deliver, looked after."""
    cluster.secret()
    cluster.proxies.says = dict.fromkeys(IPS, report(**ACCEPTED))
    await cluster.installed(SPEC)


def reasons(found: Diagnosis) -> list[str]:
    return [str(finding.reason) for finding in found.findings if finding.level != "note"]


# Reading.


async def test_a_resource_that_is_well_is_healthy_and_nothing_is_written(cluster: Cluster) -> None:
    await well(cluster)
    cluster.forget()
    found = await diagnosis(cluster)
    assert (found.healthy, found.ready, reasons(found)) == (True, "True", [])
    assert [(pod.name, pod.token_hash) for pod in found.pods] == [
        ("events-1-0", TOKEN_HASH),
        ("events-1-1", TOKEN_HASH),
    ]
    assert cluster.api.writes == []
    assert not [asked for asked in cluster.api.asked if asked.path == "/api/v1/namespaces/shop/events"]


async def test_rows_are_counted_from_the_pods_themselves(cluster: Cluster) -> None:
    await well(cluster)
    cluster.proxies.says = {IPS[0]: stuck(40, **ACCEPTED), IPS[1]: report(rows=2, **ACCEPTED)}
    loss = (await diagnosis(cluster)).loss
    assert loss is not None
    assert (loss.deliverable_rows, loss.stuck_rows, loss.silent_pods) == (2, 40, [])


async def test_only_pods_of_ours_are_asked(cluster: Cluster) -> None:
    await well(cluster)
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "x", "namespace": "shop"}, "spec": {}})
    cluster.pod("stranger", stranger, labels=selector_labels("events"), ip=IPS[2])
    cluster.proxies.asked.clear()
    assert len((await diagnosis(cluster)).pods) == 2
    assert sorted(cluster.proxies.asked) == sorted(IPS[:2])


async def test_a_missing_resource_is_told_with_the_others(cluster: Cluster) -> None:
    cluster.resource(name="clicks")
    found = await diagnosis(cluster, "event")
    assert reasons(found) == ["ResourceNotFound"]
    assert "clicks" in found.findings[0].why


async def test_a_cluster_without_the_crd_is_told(cluster: Cluster) -> None:
    del cluster.api.kinds[KIND]
    assert reasons(await diagnosis(cluster)) == ["KindNotFound"]


async def test_a_spec_that_cannot_be_read_still_has_its_pods_looked_at(cluster: Cluster) -> None:
    await well(cluster)
    cluster.resource({"replicas": "many"})
    found = await diagnosis(cluster)
    assert "InvalidSpec" in reasons(found)
    assert len(found.pods) == 2


@pytest.mark.parametrize(
    ("shared", "key", "reason"), [(False, "token", "SecretNotShared"), (True, "x", "SecretKeyMissing")]
)
async def test_a_secret_that_cannot_be_used_is_told(cluster: Cluster, shared: bool, key: str, reason: str) -> None:
    cluster.secret(shared=shared, key=key)
    cluster.resource(SPEC)
    await cluster.reconcile()
    assert reasons(await diagnosis(cluster)) == [reason]


async def test_both_secrets_are_looked_at(cluster: Cluster) -> None:
    cluster.secret()
    cluster.resource({**SPEC, "clients": {"tokenSecretRef": {"name": "apps"}}})
    await cluster.reconcile()
    found = await diagnosis(cluster)
    assert reasons(found) == ["SecretNotFound"]
    assert "spec.clients.tokenSecretRef names Secret apps" in found.findings[0].what
    assert found.expected_token_hash == TOKEN_HASH


async def test_the_secret_of_a_collectors_headers_is_looked_at_too(cluster: Cluster) -> None:
    cluster.secret()
    cluster.secret("collector", key="headers")
    telemetry = {
        "otlpEndpoint": "http://collector.observability.svc:4318",
        "otlpHeadersSecretRef": {"name": "collector"},
    }
    cluster.resource({**SPEC, "telemetry": telemetry})
    await cluster.reconcile()
    found = await diagnosis(cluster)
    [finding] = [each for each in found.findings if each.reason == "SecretMalformed"]
    assert "spec.telemetry.otlpHeadersSecretRef names Secret collector, key headers" in finding.what
    assert finding.next.endswith("FILE holds one line, as name=value,name2=value2.")
    assert found.expected_token_hash == TOKEN_HASH


async def test_an_immutable_secret_is_noticed(cluster: Cluster) -> None:
    await well(cluster)
    cluster.api.put({**cluster.api.get("Secret", "tinybird"), "immutable": True})
    assert "SecretImmutable" in [finding.reason for finding in (await diagnosis(cluster)).findings]


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "events"), ("Service", "events"), ("Secret", "events-admin")]
)
async def test_a_strangers_object_of_a_childs_name_is_told(cluster: Cluster, kind: str, name: str) -> None:
    cluster.secret()
    cluster.api.put({"kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": {"replicas": 1}})
    cluster.resource(SPEC)
    await cluster.reconcile()
    found = await diagnosis(cluster)
    assert reasons(found) == ["NameTaken"]
    assert found.findings[0].what.startswith(f"{kind} {name} exists")


async def test_a_client_secret_that_is_kept_for_the_resource_is_no_strangers(cluster: Cluster) -> None:
    cluster.secret()
    cluster.resource({**SPEC, "clients": {"secretDeletionPolicy": "Retain"}})
    await cluster.reconcile()
    assert cluster.api.get("Secret", "events-client")["metadata"].get("ownerReferences", []) == []
    assert "NameTaken" not in reasons(await diagnosis(cluster))


async def test_a_pod_that_has_not_begun_is_explained_by_its_events(cluster: Cluster) -> None:
    await well(cluster)
    pod = cluster.api.get("Pod", "events-1-0")
    status = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}
    pod = cluster.api.put({**pod, "spec": {"nodeName": "node-1"}, "status": status})
    for number, (kind, at) in enumerate([("Warning", "02"), ("Warning", "03"), ("Normal", "04"), ("Warning", "01")]):
        cluster.api.put(
            {
                "kind": "Event",
                "metadata": {"name": f"events-1-0.{number}", "namespace": "shop"},
                "involvedObject": {"uid": pod["metadata"]["uid"]},
                "type": kind,
                "reason": "FailedMount",
                "message": f"at {at}",
                "lastTimestamp": f"2026-01-01T00:00:{at}Z",
            }
        )
    found = await diagnosis(cluster)
    assert [finding.why for finding in found.findings if finding.reason == "PodsFailing"] == [
        "FailedMount: at 03 FailedMount: at 02"
    ]


async def test_what_may_not_be_read_is_told_and_the_rest_is_read(cluster: Cluster) -> None:
    await well(cluster)
    cluster.api.fail(403, path="/secrets/", times=10, message="secrets is forbidden")
    found = await diagnosis(cluster)
    assert found.not_known[0].endswith("secrets is forbidden.")
    assert found.expected_token_hash == TOKEN_HASH  # the operator's word
    assert len(found.pods) == 2


async def test_pods_that_may_not_be_listed_are_not_called_healthy(cluster: Cluster) -> None:
    await well(cluster)
    cluster.api.fail(403, path="/pods", times=10)
    found = await diagnosis(cluster)
    assert reasons(found) == ["PodsUnknown"]
    assert found.loss is not None
    assert not found.loss.known


async def test_a_resource_that_cannot_be_read_is_an_error(cluster: Cluster) -> None:
    cluster.api.fail(403, path="/tinybirdproxies/")
    with pytest.raises(KubeError):
        await diagnosis(cluster)


@pytest.mark.parametrize("said", [web.Response(status=503), web.Response(text="x"), web.HTTPFound("/x"), {"buffer": 1}])
async def test_what_is_no_proxys_answer_is_none(cluster: Cluster, said: Any) -> None:
    cluster.proxies.says = {IPS[0]: said}
    assert await answer_of(cluster.session, IPS[0], port=cluster.proxies.port) is None


async def test_an_answer_without_end_is_not_read_to_its_end(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods_module, "ANSWER_MAX_BYTES", 10)
    assert await answer_of(cluster.session, IPS[0], port=cluster.proxies.port) is None


async def test_a_pod_that_is_not_there_does_not_answer(cluster: Cluster) -> None:
    assert await answer_of(cluster.session, "::1", port=1) is None


# Printing.


async def test_no_token_is_ever_printed(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    await well(cluster)
    found = await diagnosis(cluster)
    show(found)
    said = capsys.readouterr().out + repr(found)
    secrets = [secret for secret in cluster.api.all("Secret") if secret.get("data") or secret.get("stringData")]
    assert len(secrets) == 3
    values = ["dG9rZW4="]
    for secret in secrets:
        values += [*(secret.get("stringData") or {}).values(), *(secret.get("data") or {}).values()]
    assert len(values) >= 4
    assert not [value for value in values if value in said]
    assert TOKEN_HASH in said


async def test_people_get_what_was_lost_so_far(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    await well(cluster)
    show(await diagnosis(cluster))
    assert "LOST SO FAR" not in capsys.readouterr().out
    body = cluster.api.get(KIND, "events")
    lost = {"rows": 3, "inDoubtRows": 0, "deadLetterRows": 0, "recent": []}
    cluster.api.put({**body, "status": {**body["status"], "lost": lost}})
    show(await diagnosis(cluster))
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("LOST SO FAR") + 1] == "  3 rows since the resource was made. The Event RowsLost says why."


async def test_people_get_findings_a_table_and_what_would_be_lost(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    await well(cluster)
    cluster.proxies.says = {IPS[0]: stuck(4000, oldest_age_s=400.0, **ACCEPTED), IPS[1]: report(rows=2, **ACCEPTED)}
    show(await diagnosis(cluster))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "TinybirdProxy shop/events: somebody has to look"
    assert "PROBLEM NotDelivering" in lines
    (row,) = [line for line in lines if line.startswith("events-1-0") and "yes" in line]
    assert row.split()[:6] == ["events-1-0", "yes", "4,000", "0", "7", "min"]
    after = lines[lines.index("IF IT WERE DELETED NOW") + 1]
    assert "2 rows would be delivered within 50 s" in after
    assert "4,000 rows are not being delivered, and would be lost" in after


async def test_what_a_pod_says_cannot_steer_the_terminal(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    await well(cluster)
    bad = stuck(5, **ACCEPTED)
    bad["destinations"][0]["sentence"] = "\x1b[2J[red]not a style[/red]\r\n"
    cluster.proxies.says = {IPS[0]: bad}
    show(await diagnosis(cluster))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\r" not in said
    assert "[red]not a style[/red]" in said
    assert printable("a\u202eb\x07") == "a b "


async def test_commands_are_printed_on_one_line(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.resource({"replicas": 1, "tinybird": {"url": "https://a-rather-long-name.of-some-region.example.com"}})
    await cluster.reconcile()
    show(await diagnosis(cluster))
    said = capsys.readouterr().out
    (command,) = [line.strip() for line in said.splitlines() if line.strip().startswith("helm upgrade")]
    assert command.endswith("""allowedUpstreams=["*.tinybird.co","a-rather-long-name.of-some-region.example.com"]'""")


# The command line.


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    clean = {"KUBERNETES_SERVICE_HOST": None, "KUBECONFIG": "/nonexistent", "HOME": "/nonexistent"}
    return CliRunner().invoke(doctor, arguments, env={**clean, **(env or {})})


@pytest.mark.parametrize("argument", ["events", "shop/", "/events", "Shop/events", "shop/events/x", "shop/../x"])
def test_what_is_no_resources_name_is_a_usage_error(argument: str) -> None:
    result = run(argument)
    assert result.exit_code == 2
    assert "NAMESPACE/NAME" in result.output


def test_without_a_cluster_it_says_where_it_looked() -> None:
    result = run("shop/events")
    assert (result.exit_code, "KUBECONFIG" in result.output) == (2, True)


def test_a_cluster_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "x", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    result = run("shop/events", env={"KUBECONFIG": str(path)})
    assert result.exit_code == doctor_command.UNREADABLE_STATUS
    assert result.output.startswith("shop/events could not be read:")


@pytest.mark.parametrize(("says", "status"), [(report(**ACCEPTED), 0), (stuck(5, **ACCEPTED), 1)])
@pytest.mark.parametrize("output", ["text", "json"])
async def test_the_exit_status_tells_whether_somebody_has_to_look(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Any, status: int, output: str
) -> None:
    await well(cluster)
    cluster.proxies.says = dict.fromkeys(IPS, says)
    monkeypatch.setattr(doctor_command, "ADMIN_PORT", cluster.proxies.port)
    env = {**OPERATOR_ENV, "KUBECONFIG": str(tmp_path / "kubeconfig")}
    result = await asyncio.to_thread(run, "shop/events", "--output", output, env=env)
    assert result.exit_code == status
    if output == "json":
        assert json.loads(result.output)["healthy"] is (status == 0)
    else:
        assert result.output.startswith("TinybirdProxy shop/events: ")


async def test_outside_of_its_pod_it_says_what_is_not_known(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await well(cluster)
    monkeypatch.setattr(doctor_command, "ADMIN_PORT", 1)
    result = await asyncio.to_thread(run, "shop/events", env={"KUBECONFIG": str(tmp_path / "kubeconfig")})
    assert result.exit_code == 1
    assert "2 pods run and do not answer the doctor." in result.output
    assert "NOT KNOWN\n  The operator's settings" in result.output


def test_the_operators_settings_are_known_in_its_pod_only() -> None:
    assert settings_from(OPERATOR_ENV) == (operator_settings(), [])
    settings, not_known = settings_from({})
    assert settings is None
    assert "allowed lists" in not_known[0]


# Mode Sidecar.


SIDECAR = {"mode": "Sidecar", **OWN_TOKEN}


async def injected(cluster: Cluster) -> str:
    """A resource that is looked after, with nobody's pods yet; the hash of its sidecar."""
    cluster.secret()
    cluster.reconciler = cluster.operator(SIDECAR_INJECTION="Webhook")
    cluster.resource(SIDECAR)
    await cluster.reconcile()
    return str(cluster.status()["sidecar"]["hash"])


INJECTING = operator_settings(SIDECAR_INJECTION="Webhook")


async def test_of_a_sidecar_the_apps_pods_are_asked_each_on_its_own_port(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    hash, port = await injected(cluster), cluster.proxies.port
    cluster.proxies.says = {IPS[0]: report(rows=7, **ACCEPTED), IPS[1]: report(**ACCEPTED)}
    cluster.api.put(app_pod("a", hash=hash, ip=IPS[0], admin_port=port))
    cluster.api.put(app_pod("b", hash="0", ip=IPS[1], admin_port=port))
    cluster.api.put(app_pod("none", ip=IPS[2]))
    cluster.api.put(app_pod("node", hash=hash, ip=IPS[0], admin_port=port, spec={"hostNetwork": True}))
    cluster.api.put(app_pod("plain", asks=None, ip=IPS[2]))
    cluster.forget()
    found = await diagnosis(cluster, settings=INJECTING)
    assert reasons(found) == ["SidecarsMissed", "SidecarsStale", "NoAnswer"]
    assert sorted(cluster.proxies.asked) == sorted(IPS[:2])
    assert cluster.api.writes == []
    show(found)
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [line for line in lines if line.startswith("POD")]
    assert heading.split()[:4] == ["POD", "READY", "SIDECAR", "ROWS"]
    (row,) = [line for line in lines if line.startswith("a ") and "Current" in line]
    assert row.split()[:4] == ["a", "yes", "Current", "7"]
    assert "Nothing is lost: the apps' pods stay" in lines[lines.index("IF IT WERE DELETED NOW") + 1]


async def test_of_many_pods_the_table_has_those_first_that_are_not_well(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    hash = await injected(cluster)
    for number in range(60):
        cluster.api.put(app_pod(f"a{number:02}", hash=hash, ip=None))
    cluster.api.put(app_pod("z", ip=None))
    show(await diagnosis(cluster, settings=INJECTING))
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [number for number, line in enumerate(lines) if line.startswith("POD")]
    assert lines[heading + 1].split()[:3] == ["z", "yes", "Missed"]
    assert "and 11 more: --output=json has them all." in lines


async def test_a_spec_of_a_sidecar_that_cannot_be_read_still_has_its_pods_looked_at(cluster: Cluster) -> None:
    hash = await injected(cluster)
    cluster.api.put(app_pod("a", hash=hash, ip=IPS[0], admin_port=cluster.proxies.port))
    cluster.resource({**SIDECAR, "batch": {"maxRows": "many"}})
    await cluster.reconcile()
    found = await diagnosis(cluster, settings=INJECTING)
    assert reasons(found) == ["InvalidSpec"]
    assert [(pod.name, pod.answered) for pod in found.pods] == [("a", True)]


async def test_a_name_in_a_label_that_does_not_exist_is_told_from_both_sides(cluster: Cluster) -> None:
    await injected(cluster)
    cluster.api.put(app_pod("typo", asks="event", ip=None))
    cluster.api.put(app_pod("off", asks="false", ip=None))
    missing = await diagnosis(cluster, "event", settings=INJECTING)
    assert reasons(missing) == ["ResourceNotFound", "AskedInVain"]
    assert "typo" in missing.findings[1].why
    there = await diagnosis(cluster, settings=INJECTING)
    assert [finding.why for finding in there.findings if finding.reason == "NoSuchResource"] == [
        "typo: it gets none, and no resource counts it."
    ]


async def test_a_namespaces_label_asks_for_all_of_its_pods(cluster: Cluster) -> None:
    cluster.api.put({"kind": "Namespace", "metadata": {"name": "shop", "labels": {INJECT_LABEL: "event"}}})
    cluster.api.put(app_pod("a", asks=None, ip=None))
    cluster.api.put(app_pod("b", asks="false", ip=None))
    found = await diagnosis(cluster, "event")
    assert [finding.what for finding in found.findings if finding.reason == "AskedInVain"] == [
        "1 pod asks for the sidecar of a TinybirdProxy of that name, and gets none."
    ]


async def test_pods_that_ask_for_a_sidecar_of_a_deployment_are_told(cluster: Cluster) -> None:
    await well(cluster)
    cluster.api.put(app_pod("a", ip=None))
    assert reasons(await diagnosis(cluster)) == ["NotASidecar"]


async def test_apps_pods_that_may_not_be_listed_are_not_called_healthy(cluster: Cluster) -> None:
    await injected(cluster)
    cluster.api.fail(403, path="/pods", times=10)
    found = await diagnosis(cluster, settings=INJECTING)
    assert reasons(found) == ["PodsUnknown"]
    assert found.loss is not None
    assert not found.loss.known
