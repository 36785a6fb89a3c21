"""`reconcile`: what it writes to the status and tells in Events, and when."""

import base64
from typing import Any

from tests.operator.clusters import EPOCH, IPS, Cluster, report, stuck
from tests.operator.resources import OWN_TOKEN

from tinybird_proxy_operator.reconcile import FIGURES_S

WITH_TOKEN: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}
NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"
CHANGED = {"replicas": 2, "image": NEW_IMAGE}


async def test_figures_are_written_at_most_every_ten_seconds(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = {IPS[0]: report(rows=12_345, bytes=987_654, oldest_age_s=3.4)}
    cluster.clock.seconds += FIGURES_S - 1
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []
    cluster.clock.seconds += 1
    await cluster.reconcile()
    assert cluster.status()["buffer"] == {"rows": 12_000, "size": "990000", "oldestRowAgeSeconds": 3}
    assert len(cluster.api.writes) == 1


async def test_a_sentence_with_other_figures_is_no_reason_to_write_sooner(cluster: Cluster) -> None:
    cluster.proxies.says = dict.fromkeys(IPS, stuck(100))
    await cluster.installed()
    assert cluster.condition("BufferHealthy") == ("False", "NotDelivering")
    cluster.forget()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(101))
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_a_changed_condition_is_written_at_once_and_only_its_time_is_new(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.clock.seconds += 1
    cluster.proxies.says = dict.fromkeys(IPS, report(utilisation=1.0))
    await cluster.reconcile()
    times = {each["type"]: each["lastTransitionTime"] for each in cluster.status()["conditions"]}
    assert cluster.condition("BufferHealthy") == ("False", "Full")
    assert times.pop("BufferHealthy") == "2026-01-01T00:16:41Z" == f"{cluster.clock.utc_now():%Y-%m-%dT%H:%M:%SZ}"
    assert set(times.values()) == {f"{EPOCH.replace(minute=16, second=40):%Y-%m-%dT%H:%M:%SZ}"}


async def test_an_event_is_told_once_in_a_while_and_one_for_each_problem(cluster: Cluster) -> None:
    cluster.resource({"replicas": 1, "buffer": {"maxSize": "a lot"}, "image": "evil/proxy:1"})
    await cluster.reconcile()
    first = cluster.told()
    assert {reason for _, reason, _ in first} == {"InvalidSpec", "ImageNotAllowed"}
    assert {kind for kind, _, _ in first} == {"Warning"}
    await cluster.reconcile()
    assert cluster.told() == first
    cluster.clock.seconds += 601
    await cluster.reconcile()
    assert len(cluster.told()) == 2 * len(first)


async def test_a_held_rollout_is_told_once_whatever_the_figures(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource(CHANGED)
    for rows in (7, 8, 9):
        cluster.proxies.says = dict.fromkeys(IPS, stuck(rows))
        await cluster.reconcile()
    assert [reason for _, reason, _ in cluster.told()] == ["RolloutHeld"]


async def test_a_refused_token_is_told_with_the_name_of_its_secret(cluster: Cluster) -> None:
    cluster.secret()
    cluster.proxies.says = dict.fromkeys(IPS, report(denied_at="2026-01-01T00:00:00+00:00"))
    await cluster.installed(WITH_TOKEN)
    await cluster.reconcile()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "Rejected")
    assert "the Secret tinybird" in message
    assert cluster.condition("Ready") == ("False", "Rejected")


async def test_no_token_is_in_a_status_or_an_event(cluster: Cluster) -> None:
    cluster.secret(value=base64.b64encode(b"p.secret").decode())
    await cluster.installed(WITH_TOKEN)
    said = f"{cluster.status()}{cluster.api.all('Event')}"
    assert "p.secret" not in said
    assert "token-" not in said
