"""Certificates and registration before a fake API server: who writes what, when, and what is left alone."""

import asyncio
import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.operator.metrics_apis import GROUP, ClientCA, settings, turned_on
from tests.operator.test_metrics_api_authentication import Clock

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.authentication import Authenticator
from tinybird_proxy_operator.metrics_api.registration import API_SERVICES
from tinybird_proxy_operator.metrics_api.telemetry import Standing
from tinybird_proxy_operator.metrics_api.upkeep import REGISTERED, Upkeep
from tinybird_proxy_operator.serving.certificates import is_signed_by
from tinybird_proxy_operator.serving.renewal import Issued, from_data
from tinybird_proxy_operator.serving.tls import ServerTLS
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.field_owners import fields_of, owned_by

HERE, SECRET, ROLE = "tinybird-system", "operator-metrics-api-certificates", "operator-metrics-api"
NEWER, OLDER = API_SERVICES
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Replica:
    """One process's upkeep."""

    def __init__(self, kube: Kube, clock: Clock, **env: str) -> None:
        self.standing, self.tls = Standing(), ServerTLS()
        self.checked: list[str] = []
        self.broken: Exception | None = None
        self.upkeep = Upkeep(
            kube,
            settings(**{"CERTIFICATE_LIFETIME_SECONDS": "90", "CERTIFICATE_OVERLAP_SECONDS": "10", **env}),
            tls=self.tls,
            authenticator=Authenticator(kube, now=clock),
            standing=self.standing,
            now=clock,
            utc_now=lambda: EPOCH + timedelta(seconds=clock.now),
            jitter=lambda limit: 0.0,
            check_self=self.check_self,
        )

    async def check_self(self, bundle: str) -> None:
        self.checked.append(bundle)
        if self.broken is not None:
            raise self.broken

    async def look(self) -> None:
        await self.upkeep.look()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def on(api: FakeApi) -> FakeApi:
    """A cluster in which the chart's value is on."""
    turned_on(api, ClientCA())
    return api


def issued(api: FakeApi) -> Issued:
    found = from_data(api.get("Secret", SECRET, HERE)["data"])
    assert found is not None
    return found


def bundles(api: FakeApi) -> set[str]:
    return {base64.b64decode(each["spec"]["caBundle"]).decode() for each in api.all("APIService")}


def foreign(name: str = OLDER) -> dict[str, Any]:
    service = {"namespace": "monitoring", "name": "prometheus-adapter", "port": 443}
    return {"kind": "APIService", "metadata": {"name": name, "namespace": ""}, "spec": {"service": service}}


async def test_the_first_look_makes_certificates_checks_them_and_registers(
    on: FakeApi, kube: Kube, clock: Clock
) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    assert on.names("APIService") == [NEWER, OLDER]
    assert bundles(on) == {issued(on).bundle} == set(replica.checked)
    assert replica.tls.is_ready
    assert replica.standing.registered
    assert replica.standing.not_ready is None
    secret = on.get("Secret", SECRET, HERE)
    role = on.get("ClusterRole", ROLE, "")["metadata"]["uid"]
    for owned in (secret, *on.all("APIService")):
        assert [owner["uid"] for owner in owned["metadata"]["ownerReferences"]] == [role]


async def test_a_look_at_what_is_well_writes_nothing_and_asks_through_the_api_server(
    on: FakeApi, kube: Kube, clock: Clock
) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.asked.clear()
    await replica.look()
    assert on.writes == []
    assert {f"{GROUP}/v1beta1", f"{GROUP}/v1beta2"} <= {asked.path for asked in on.asked}
    assert replica.standing.sentence == REGISTERED
    assert replica.standing.reached


async def test_two_replicas_agree_whoever_is_first(on: FakeApi, kube: Kube, clock: Clock) -> None:
    one, other = Replica(kube, clock), Replica(kube, clock)
    await asyncio.gather(one.look(), other.look())
    await asyncio.gather(one.look(), other.look())
    assert bundles(on) == {issued(on).bundle}
    assert one.standing.sentence == other.standing.sentence == REGISTERED
    on.asked.clear()
    await asyncio.gather(one.look(), other.look())
    assert on.writes == []


async def test_a_new_ca_is_registered_before_it_signs(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replicas = [Replica(kube, clock), Replica(kube, clock)]
    signers = []
    for second in range(0, 400, 2):
        clock.now = float(second)
        await replicas[second // 2 % 2].look()
        [registered] = bundles(on)
        state = issued(on)
        known = [f"-----BEGIN{part}" for part in registered.split("-----BEGIN") if part]
        assert any(is_signed_by(state.serving.certificate, each) for each in known)
        if state.authority.certificate not in signers:
            signers.append(state.authority.certificate)
    assert len(signers) == 2


async def test_while_the_new_ca_cannot_be_registered_the_old_one_signs(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    first = issued(on).authority
    on.fail(403, method="PATCH", path="apiservices", times=1000)
    for second in range(240, 300, 2):
        clock.now = float(second)
        await replica.look()
    assert issued(on).authority == first
    assert issued(on).next_authority is not None


async def test_anothers_api_service_is_left_untouched_and_named(
    on: FakeApi, kube: Kube, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    before = on.put(foreign())
    replica = Replica(kube, clock)
    for _ in range(3):
        await replica.look()
    assert on.get("APIService", OLDER, "") == before
    assert on.names("APIService") == [OLDER]
    assert not replica.standing.registered
    assert "monitoring/prometheus-adapter" in replica.standing.sentence
    assert replica.standing.not_ready is None
    assert [record.levelname for record in caplog.records if "prometheus-adapter" in record.message] == ["WARNING"]
    on.remove("APIService", OLDER, "")
    await replica.look()
    assert on.names("APIService") == [NEWER, OLDER]


async def test_ours_goes_when_somebody_else_takes_the_other_version(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    taken = on.put({**on.get("APIService", OLDER, ""), **foreign()})
    await replica.look()
    assert on.names("APIService") == [OLDER]
    assert on.get("APIService", OLDER, "") == taken
    assert not replica.standing.registered


async def test_whoever_comes_between_keeps_it(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)

    async def somebody_is_faster(bundle: str) -> None:
        theirs = foreign(NEWER)
        on.put(owned_by(theirs, ("kubectl-create", "Update", ""), fields_of(theirs)))

    replica.upkeep._check_self = somebody_is_faster
    await replica.look()
    assert on.get("APIService", NEWER, "")["spec"] == foreign()["spec"]
    await replica.look()
    assert on.names("APIService") == [NEWER]


async def test_without_its_cluster_role_it_is_off(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.remove("ClusterRole", ROLE, "")
    assert on.names("APIService") == on.names("Secret") == []
    on.asked.clear()
    await replica.look()
    assert on.writes == []
    assert not replica.standing.registered
    assert replica.standing.not_ready == f"The ClusterRole {ROLE} is gone: the metrics API was turned off."


async def test_without_rights_it_says_so_and_serves_on(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.fail(403, path="clusterroles", message="clusterroles is forbidden")
    await replica.look()
    assert "clusterroles is forbidden" in replica.standing.sentence
    assert replica.standing.not_ready is None


async def test_what_does_not_answer_itself_is_not_registered(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    replica.broken = ValueError("certificate verify failed")
    await replica.look()
    assert on.names("APIService") == []
    assert "does not answer itself: certificate verify failed" in replica.standing.sentence
    replica.broken = None
    await replica.look()
    assert on.names("APIService") == [NEWER, OLDER]


def gone(api: FakeApi) -> None:
    api.documents.clear()


def answered_by_another(api: FakeApi) -> None:
    api.documents[f"{GROUP}/v1beta2"] = {"kind": "APIResourceList", "groupVersion": "other/v1"}


@pytest.mark.parametrize("fault", [gone, answered_by_another])
async def test_that_the_api_server_does_not_reach_it_is_told(
    on: FakeApi, kube: Kube, clock: Clock, fault: Callable[[FakeApi], None]
) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    fault(on)
    await replica.look()
    assert replica.standing.registered
    assert "the API server does not reach it" in replica.standing.sentence
    assert not replica.standing.reached


async def test_a_deleted_secret_is_put_back_without_a_gap(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica, other = Replica(kube, clock), Replica(kube, clock)
    await replica.look()
    await other.look()
    before = issued(on)
    on.remove("Secret", SECRET, HERE)
    await other.look()
    assert issued(on).serving == before.serving
    assert issued(on).next_authority is not None
    assert bundles(on) == {issued(on).bundle}


async def test_a_secret_that_somebody_broke_is_written_anew_and_whole(on: FakeApi, kube: Kube, clock: Clock) -> None:
    on.put(
        {"kind": "Secret", "metadata": {"name": SECRET, "namespace": HERE}, "data": {"tls.key": "eA==", "x": "eA=="}}
    )
    replica = Replica(kube, clock)
    await replica.look()
    assert "x" not in on.get("Secret", SECRET, HERE)["data"]
    assert issued(on).previous is None


async def test_it_is_not_ready_before_it_knows_whom_to_believe(on: FakeApi, kube: Kube, clock: Clock) -> None:
    on.remove("ConfigMap", "extension-apiserver-authentication", "kube-system")
    replica = Replica(kube, clock)
    await replica.look()
    assert "The API server's configuration was not read yet" in str(replica.standing.not_ready)
    assert on.names("APIService") == []


async def test_an_api_server_that_is_away_is_waited_for_and_told_once(
    on: FakeApi, kube: Kube, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.fail(503, times=1000)
    for _ in range(3):
        await replica.look()
    assert replica.standing.not_ready is None
    assert len([record for record in caplog.records if "it is tried again" in record.message]) == 2
    clock.now = 11.0
    await replica.look()
    assert "could not be read for so long" in str(replica.standing.not_ready)
    on.heal()
    await replica.look()
    assert replica.standing.not_ready is None


async def test_a_changed_client_ca_is_used_at_the_next_look(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    in_use = replica.tls._in_use
    await replica.look()
    assert replica.tls._in_use is in_use
    turned_on(on, ClientCA())
    await replica.look()
    assert replica.tls._in_use is not in_use
