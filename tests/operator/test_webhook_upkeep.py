"""Certificates and their CA before a fake API server, and certificates of somebody else in files."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.operator.test_metrics_api_authentication import Clock
from tests.operator.webhooks import CONFIGURATION, ENV, bundles, configuration, settings

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.serving.certificates import is_signed_by, make_authority, make_serving
from tinybird_proxy_operator.serving.renewal import Issued, from_data
from tinybird_proxy_operator.serving.tls import ServerTLS
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.webhook.registration import KIND
from tinybird_proxy_operator.webhook.settings import OwnCertificates
from tinybird_proxy_operator.webhook.telemetry import Standing
from tinybird_proxy_operator.webhook.upkeep import REGISTERED, FileUpkeep, OwnUpkeep

HERE, SECRET = "tinybird-system", ENV["CERTIFICATE_SECRET"]
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Replica:
    """One process's upkeep."""

    def __init__(self, kube: Kube, clock: Clock) -> None:
        self.standing, self.tls = Standing(), ServerTLS(asks_for_certificates=False)
        self.broken: Exception | None = None
        its = settings(CERTIFICATE_LIFETIME_SECONDS="90", CERTIFICATE_OVERLAP_SECONDS="10")
        assert isinstance(its.certificates, OwnCertificates)
        self.upkeep = OwnUpkeep(
            kube,
            its,
            its.certificates,
            tls=self.tls,
            standing=self.standing,
            now=clock,
            utc_now=lambda: EPOCH + timedelta(seconds=clock.now),
            jitter=lambda limit: 0.0,
            check_self=self.check_self,
        )

    async def check_self(self, bundle: str) -> None:
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
    api.put(configuration())
    return api


def issued(api: FakeApi) -> Issued:
    found = from_data(api.get("Secret", SECRET, HERE)["data"])
    assert found is not None
    return found


async def test_the_first_look_makes_certificates_and_makes_their_ca_known_in_every_entry(
    on: FakeApi, kube: Kube, clock: Clock
) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    assert bundles(on) == [issued(on).bundle] * 2
    assert replica.standing.not_ready is None
    assert replica.standing.sentence == REGISTERED
    live = on.get(KIND, CONFIGURATION, "")
    assert [entry["sideEffects"] for entry in live["webhooks"]] == ["None"] * 2
    owners = on.get("Secret", SECRET, HERE)["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [live["metadata"]["uid"]]


async def test_a_look_at_what_is_well_writes_nothing(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.asked.clear()
    await replica.look()
    assert on.writes == []


async def test_two_replicas_agree_whoever_is_first(on: FakeApi, kube: Kube, clock: Clock) -> None:
    one, other = Replica(kube, clock), Replica(kube, clock)
    for _ in range(3):
        await asyncio.gather(one.look(), other.look())
    assert bundles(on) == [issued(on).bundle] * 2
    assert one.standing.sentence == other.standing.sentence == REGISTERED


async def test_a_new_ca_is_known_before_it_signs_and_the_old_one_is_for_a_while_after(
    on: FakeApi, kube: Kube, clock: Clock
) -> None:
    replicas = [Replica(kube, clock), Replica(kube, clock)]
    signers, most = [], 0
    for second in range(0, 400, 2):
        clock.now = float(second)
        await replicas[second // 2 % 2].look()
        known = [f"-----BEGIN{part}" for part in bundles(on)[0].split("-----BEGIN") if part]
        most = max(most, len(known))
        for replica in replicas:  # what each shows, also the one that has not looked since
            shown = replica.upkeep._shown
            assert shown is None or any(is_signed_by(shown.certificate, each) for each in known)
        if issued(on).authority.certificate not in signers:
            signers.append(issued(on).authority.certificate)
    assert (len(signers), most) == (2, 2)


async def test_what_does_not_answer_itself_is_not_made_known(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    replica.broken = ValueError("certificate verify failed")
    await replica.look()
    assert bundles(on) == ["", ""]
    assert "does not answer itself: certificate verify failed" in replica.standing.sentence


async def test_a_ca_that_somebody_overwrote_is_put_back(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.put(configuration())
    await replica.look()
    assert bundles(on) == [issued(on).bundle] * 2


async def test_without_its_configuration_it_is_off_and_its_secret_goes(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.remove(KIND, CONFIGURATION, "")
    assert on.names("Secret") == []
    await replica.look()
    assert on.names("Secret") == on.names(KIND) == []
    assert "was turned off" in str(replica.standing.not_ready)


async def test_without_rights_it_says_so_and_serves_on(on: FakeApi, kube: Kube, clock: Clock) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.fail(403, path="mutatingwebhookconfigurations", message="mutatingwebhookconfigurations is forbidden")
    await replica.look()
    assert "mutatingwebhookconfigurations is forbidden" in replica.standing.sentence
    assert replica.standing.not_ready is None


async def test_an_api_server_that_is_away_for_an_overlap_makes_it_unready(
    on: FakeApi, kube: Kube, clock: Clock
) -> None:
    replica = Replica(kube, clock)
    await replica.look()
    on.fail(503, times=1000)
    await replica.look()
    assert replica.standing.not_ready is None
    clock.now = 11.0
    await replica.look()
    assert "could not be read for so long" in str(replica.standing.not_ready)


def write(directory: Path) -> str:
    """A certificate as cert-manager's Secret is mounted. Returns its CA."""
    authority = make_authority("issuer", now=datetime.now(UTC), lifetime_s=1000)
    serving = make_serving(authority, ["webhook.tinybird-system.svc"], now=datetime.now(UTC), lifetime_s=500)
    (directory / "tls.crt").write_text(serving.certificate)
    (directory / "tls.key").write_text(serving.key)
    return authority.certificate


async def test_files_are_waited_for_and_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    standing, tls = Standing(), ServerTLS(asks_for_certificates=False)
    upkeep = FileUpkeep(str(tmp_path), tls=tls, standing=standing, jitter=lambda limit: 0.0)
    await upkeep.look()
    assert standing.not_ready is not None
    assert (
        f"the certificate in {tmp_path}: cannot be read: No such file or directory: {tmp_path}/tls.crt" in caplog.text
    )
    assert standing.not_ready == "There is no certificate yet."
    await asyncio.to_thread(write, tmp_path)
    await upkeep.look()
    in_use = tls._in_use
    await upkeep.look()
    assert tls._in_use is in_use
    await asyncio.to_thread(write, tmp_path)
    await upkeep.look()
    assert tls._in_use is not in_use


async def test_files_that_do_not_fit_each_other_leave_what_is_shown(tmp_path: Path) -> None:
    standing, tls = Standing(), ServerTLS(asks_for_certificates=False)
    upkeep = FileUpkeep(str(tmp_path), tls=tls, standing=standing, jitter=lambda limit: 0.0)
    await asyncio.to_thread(write, tmp_path)
    await upkeep.look()
    in_use, other = tls._in_use, tmp_path / "other"
    other.mkdir()
    await asyncio.to_thread(write, other)
    (other / "tls.crt").replace(tmp_path / "tls.crt")
    await upkeep.look()
    assert tls._in_use is in_use
    assert standing.not_ready is None
