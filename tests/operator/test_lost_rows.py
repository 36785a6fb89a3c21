"""Rows that ended processes lost: kept from the watch, counted in the status once, and told."""

import logging
import random
from contextlib import suppress
from typing import Any

import pytest
from tests.operator.clusters import IPS, Cluster, report
from tests.operator.test_last_words import app_pod, container, deployment_pod, terminated
from tests.operator.test_status import pod as pod_facts
from tests.operator.test_status import said

from tinybird_proxy_operator import lost_rows
from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.last_words import ended
from tinybird_proxy_operator.lost_rows import RECENT_MAX, in_words
from tinybird_proxy_operator.names import KIND
from tinybird_proxy_operator.queue import Key

KEY = Key("shop", "events")


def alive(number: int = 0) -> dict[str, Any]:
    return deployment_pod(container("proxy"), name=f"events-5d8f-{number}", uid=f"u{number}")


def dead(number: int = 0, message: str = "3 rows lost, 1 of them may have arrived", second: int = 1) -> dict[str, Any]:
    at = f"2026-01-02T00:{second // 60:02}:{second % 60:02}Z"
    state = terminated(message, at)
    return deployment_pod(container("proxy", state=state), name=f"events-5d8f-{number}", uid=f"u{number}")


def die(
    cluster: Cluster, *numbers: int, message: str = "3 rows lost, 1 of them may have arrived", second: int = 1
) -> None:
    """Pods that were seen alive end, and are gone."""
    for number in numbers:
        cluster.reconciler.lost.saw(alive(number), False)
        cluster.reconciler.lost.saw(dead(number, message, second), False)
        cluster.reconciler.lost.saw(dead(number, message, second), True)


def lost(cluster: Cluster) -> tuple[int, int, int]:
    found = cluster.status()["lost"]
    return found["rows"], found["inDoubtRows"], found["deadLetterRows"]


def events(cluster: Cluster) -> list[str]:
    return [message for kind, reason, message in cluster.told() if (kind, reason) == ("Warning", "RowsLost")]


async def test_what_a_pod_lost_is_in_the_status_and_in_an_event(cluster: Cluster) -> None:
    await cluster.installed()
    assert "lost" not in cluster.status()
    die(
        cluster,
        7,
        message="1,234 rows lost, 1 of them may have arrived; 2 rows of dead letters lost; hits: 1,234 rows, x",
    )
    await cluster.reconcile()
    numbers = {"rows": 1234, "inDoubtRows": 1, "deadLetterRows": 2}
    recent = [{"pod": "events-5d8f-7", "at": "2026-01-02T00:00:01Z", **numbers}]
    assert cluster.status()["lost"] == {**numbers, "recent": recent}
    assert cluster.reconciler.lost.rows_told == 1236
    [told] = events(cluster)
    assert told.startswith("The proxy in events-5d8f-7 stopped with 1,234 rows lost, 1 of them may have arrived.")
    assert told.endswith("It said: hits: 1,234 rows, x")


async def test_it_is_counted_once_however_often_it_is_seen_and_looked_at(cluster: Cluster) -> None:
    await cluster.installed()
    for _ in range(3):
        die(cluster, 0)
        await cluster.reconcile()
        cluster.clock.seconds += 700
    assert lost(cluster) == (3, 1, 0)
    assert len(events(cluster)) == 1


async def test_a_container_that_ends_again_is_counted_again_and_its_first_end_not(cluster: Cluster) -> None:
    await cluster.installed()
    die_once = dead(0)
    cluster.reconciler.lost.saw(alive(0), False)
    cluster.reconciler.lost.saw(die_once, False)
    await cluster.reconcile()
    first = die_once["status"]["containerStatuses"][0]["state"]
    again = container("proxy", last=first, state=terminated("5 rows lost", "2026-01-02T00:09:00Z"))
    cluster.reconciler.lost.saw({**die_once, "status": {"containerStatuses": [again]}}, False)
    await cluster.reconcile()
    assert lost(cluster) == (8, 1, 0)


async def test_an_end_without_a_loss_is_no_event_and_no_count(cluster: Cluster) -> None:
    await cluster.installed()
    for number, message in enumerate(("0 rows lost", "0 rows were not delivered when this was written", "Killed")):
        die(cluster, number, message=message)
    await cluster.reconcile()
    assert "lost" not in cluster.status()
    assert events(cluster) == []


async def test_a_new_leader_that_finds_the_pod_counts_what_was_not_counted_and_nothing_twice(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.reconciler.lost.saw(dead(0, second=1), False)
    await cluster.reconcile()
    cluster.reconciler = cluster.operator()
    cluster.reconciler.lost.saw(dead(0, second=1), False)
    cluster.reconciler.lost.saw(dead(1, second=2), False)
    await cluster.reconcile()
    assert lost(cluster) == (6, 2, 0)
    assert len(events(cluster)) == 2


async def test_a_new_leader_does_not_count_what_fell_out_of_the_list_again(cluster: Cluster) -> None:
    await cluster.installed()
    pods = [dead(number, second=number) for number in range(RECENT_MAX + 5)]
    for _ in range(2):
        for pod in pods:
            cluster.reconciler.lost.saw(pod, False)
        await cluster.reconcile()
        found = cluster.status()["lost"]
        assert (found["rows"], found["countedUntil"]) == (3 * len(pods), "2026-01-02T00:00:04Z")
        assert [each["pod"] for each in found["recent"]] == [f"events-5d8f-{n}" for n in range(5, 15)]
        cluster.reconciler = cluster.operator()


async def test_many_that_end_at_once_are_all_counted_whatever_their_nodes_clocks_say(cluster: Cluster) -> None:
    await cluster.installed()
    die(cluster, *range(25), second=3000)
    await cluster.reconcile()
    die(cluster, *range(25, 50), second=1)
    await cluster.reconcile()
    await cluster.reconcile()
    assert lost(cluster) == (150, 50, 0)
    assert len(events(cluster)) == 50


@pytest.mark.parametrize("done_first", [False, True], ids=["not done", "done, and the answer lost"])
@pytest.mark.parametrize("status", [409, 503, 0])
async def test_a_status_that_cannot_be_written_neither_loses_nor_doubles_the_count(
    cluster: Cluster, status: int, done_first: bool
) -> None:
    await cluster.installed()
    die(cluster, *range(12), second=100)
    cluster.api.fail(status, method="PATCH", path="/status", times=4, done_first=done_first)
    for number in range(8):
        with suppress(KubeError, AssertionError):
            await cluster.look()
        if number == 0:
            die(cluster, 12, 13, second=1)  # earlier ones come meanwhile
    assert lost(cluster) == (14 * 3, 14, 0)
    assert len(events(cluster)) == 14


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_fails_and_whoever_leads_each_end_is_counted_once(cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    await cluster.installed()
    pods: list[dict[str, Any]] = []
    for _ in range(25):
        for _ in range(chance.choice((0, 0, 1, 3, 12))):
            cluster.reconciler.lost.saw(alive(len(pods)), False)
            pods.append(dead(len(pods), second=len(pods)))
            cluster.reconciler.lost.saw(pods[-1], False)
        if chance.random() < 0.5:
            fault, done_first = chance.choice(((409, False), (503, False), (503, True), (0, True)))
            cluster.api.fail(fault, method="PATCH", path="/status", times=chance.randint(1, 6), done_first=done_first)
        with suppress(KubeError, AssertionError):
            await cluster.look()
        if chance.random() < 0.2:  # another one leads, and lists all pods
            cluster.reconciler = cluster.operator()
            for pod in pods:
                cluster.reconciler.lost.saw(pod, False)
    cluster.api.heal()
    for _ in range(len(pods) // RECENT_MAX + 1):
        with suppress(AssertionError):
            await cluster.look()
    assert lost(cluster) == (3 * len(pods), len(pods), 0)
    assert not cluster.reconciler.lost._waiting
    assert len(cluster.status()["lost"]["recent"]) == RECENT_MAX


async def test_an_event_that_cannot_be_written_does_not_change_the_count(cluster: Cluster) -> None:
    await cluster.installed()
    die(cluster, 0)
    cluster.api.fail(403, method="POST", path="/events", times=1)
    await cluster.reconcile()
    await cluster.reconcile()
    assert lost(cluster) == (3, 1, 0)


async def test_what_a_namesake_lost_before_the_resource_was_made_is_not_its_own(cluster: Cluster) -> None:
    await cluster.installed()
    assert cluster.api.get(KIND, "events")["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    pod = dead(0)
    pod["status"]["containerStatuses"][0]["state"] = terminated("3 rows lost", "2025-12-31T23:59:59Z")
    cluster.reconciler.lost.saw(pod, False)
    await cluster.reconcile()
    assert "lost" not in cluster.status()


async def test_what_was_seen_to_end_counts_even_if_its_nodes_clock_is_behind_the_resource(cluster: Cluster) -> None:
    await cluster.installed()
    pod = dead(0)
    pod["status"]["containerStatuses"][0]["state"] = terminated("3 rows lost", "2025-12-31T23:59:59Z")
    cluster.reconciler.lost.saw(alive(0), False)
    cluster.reconciler.lost.saw(pod, True)
    await cluster.reconcile()
    assert lost(cluster) == (3, 0, 0)
    assert len(events(cluster)) == 1


async def test_the_count_stays_while_the_spec_cannot_be_read_and_while_nobody_manages_it(cluster: Cluster) -> None:
    await cluster.installed()
    die(cluster, 0)
    await cluster.reconcile()
    for spec in ({"replicas": "many"}, {"replicas": 2, "managementState": "Unmanaged"}):
        cluster.resource(spec)
        await cluster.reconcile()
        assert lost(cluster) == (3, 1, 0)


async def test_of_a_resource_that_is_gone_the_log_tells(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    await cluster.installed()
    cluster.api.remove(KIND, "events")
    die(cluster, 0)
    assert await cluster.look() is None
    assert [record.getMessage() for record in caplog.records if "rows were lost" in record.getMessage()] == [
        "shop/events is gone, and rows were lost: The proxy in events-5d8f-0 stopped with 3 rows lost,"
        " 1 of them may have arrived. To wait longer for Tinybird: spec.drain.shutdownTimeoutSeconds."
    ]
    assert not cluster.reconciler.lost._waiting


async def test_what_nobody_has_told_when_the_process_ends_is_in_the_log(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The pods are gone, so whoever leads next does not find it."""
    await cluster.installed()
    die(cluster, 0)
    cluster.reconciler.lost.saw(alive(7), False)
    heard(cluster, 7, 40)
    cluster.reconciler.lost.saw(alive(7), True)
    with caplog.at_level(logging.WARNING):
        await cluster.reconciler.close()
    ends = "this process ends before it has told: "
    assert f"shop/events: rows were lost, and {ends}The proxy in events-5d8f-0 stopped with 3 rows lost" in caplog.text
    assert f"shop/events: rows may be lost, and {ends}{GONE}" in caplog.text


async def test_of_another_operators_resource_nothing_is_kept_or_said(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.resource({"replicas": 1, "controllerClass": "other"})
    die(cluster, 0)
    await cluster.reconcile()
    assert not cluster.reconciler.lost._waiting
    assert "rows were lost" not in caplog.text


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted_and_logged(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_rows, "WAITING_MAX", 5)
    monkeypatch.setattr(lost_rows, "PODS_MAX", 5)
    await cluster.installed()
    for number in range(8):
        cluster.reconciler.lost.saw(dead(number, second=number), False)
    assert cluster.reconciler.lost.dropped == 3
    assert len(cluster.reconciler.lost._pods) == 5
    dropped = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["events-5d8f-2" in record.getMessage() for record in dropped] == [False, False, True]
    await cluster.reconcile()
    assert [each["pod"] for each in cluster.status()["lost"]["recent"]] == [f"events-5d8f-{n}" for n in range(3, 8)]
    for number in range(8):  # forgotten ones among them, which count as found
        cluster.reconciler.lost.saw(dead(number, second=number), True)
    await cluster.reconcile()
    assert lost(cluster)[0] == 24


def words(pod: dict[str, Any]) -> str:
    [one] = ended(pod)
    return in_words(one)


GONE = (
    "events-5d8f-7 is gone and its proxy told nothing, as after a forced deletion or with its node. At the last look it"
    " held 40 rows; whether they arrived is not known. Let pods end by themselves: kubectl delete without --force."
)


def heard(cluster: Cluster, number: int, rows: int | None) -> None:
    """The proxy in a pod was asked."""
    answer = None if rows is None else said(rows=rows)
    cluster.reconciler.lost.heard([pod_facts(f"events-5d8f-{number}", uid=f"u{number}", report=answer)])


def unaccounted(cluster: Cluster) -> list[str]:
    return [message for kind, reason, message in cluster.told() if (kind, reason) == ("Warning", "RowsUnaccounted")]


async def test_a_pod_that_is_removed_by_force_is_told_with_what_it_held_and_not_counted(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.reconciler.lost.saw(alive(7), False)
    heard(cluster, 7, 40)
    heard(cluster, 7, None)  # its node is away, say
    cluster.reconciler.lost.saw(alive(7), True)
    for _ in range(2):
        await cluster.reconcile()
        cluster.clock.seconds += 700
    assert unaccounted(cluster) == [GONE]
    assert "lost" not in cluster.status()


async def test_a_pod_whose_process_said_how_it_ended_or_held_nothing_is_not_told_of_so(cluster: Cluster) -> None:
    await cluster.installed()
    for number, rows in ((0, 40), (1, 0), (2, None)):
        cluster.reconciler.lost.saw(alive(number), False)
        heard(cluster, number, rows)
    cluster.reconciler.lost.saw(dead(0, "0 rows lost"), False)
    cluster.reconciler.lost.saw(dead(0, "0 rows lost"), True)
    cluster.reconciler.lost.saw(alive(1), True)
    cluster.reconciler.lost.saw(alive(2), True)
    cluster.reconciler.lost.saw(alive(3), True)  # nobody ever asked it
    await cluster.reconcile()
    assert unaccounted(cluster) == []


async def test_a_jobs_pod_that_stays_and_whose_proxy_told_nothing_is_told_once_and_not_when_it_is_removed(
    cluster: Cluster,
) -> None:
    await cluster.installed()
    cluster.reconciler.lost.saw(alive(7), False)
    heard(cluster, 7, 40)
    killed = container("proxy", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    over = {**alive(7), "status": {"phase": "Succeeded", "containerStatuses": [killed]}}
    for deleted in (False, False, True):
        cluster.reconciler.lost.saw(over, deleted)
        await cluster.reconcile()
        cluster.clock.seconds += 700
    assert unaccounted(cluster) == [GONE.replace("is gone", "has ended")]


async def test_what_a_look_heard_is_what_a_pod_held(cluster: Cluster) -> None:
    cluster.proxies.says = {IPS[0]: report(rows=40)}
    await cluster.installed(pods=1)
    there = cluster.api.get("Pod", "events-1-0")
    there["status"]["containerStatuses"] = [container("proxy")]
    cluster.reconciler.lost.saw(there, False)
    await cluster.reconcile()
    cluster.api.remove("Pod", "events-1-0")
    await cluster.reconcile()  # before the watch tells
    cluster.reconciler.lost.saw(there, True)
    await cluster.reconcile()
    assert unaccounted(cluster) == [GONE.replace("5d8f-7", "1-0")]


async def test_of_a_pod_that_is_gone_without_a_word_and_whose_resource_is_gone_the_log_tells(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.reconciler.lost.saw(alive(7), False)
    heard(cluster, 7, 40)
    cluster.reconciler.lost.saw(alive(7), True)
    with caplog.at_level(logging.WARNING):
        await cluster.reconcile()
    assert f"shop/events is gone, and rows may be lost: {GONE}" in caplog.text


def test_what_is_told_says_what_to_do() -> None:
    killed = "1 row was not delivered and 2 rows of dead letters not saved when this was written, 1.0 s before the end"
    killed += "; hits: y"
    assert words(dead(0, killed)) == (
        "The proxy in events-5d8f-0 was ended before it could deliver 1 row; any of them may have arrived. Let pods"
        " have their grace period, which is spec.drain.shutdownTimeoutSeconds and 10 s: a shorter one comes from"
        " whoever deletes them. 2 rows of dead letters went with it: export them before a pod goes. It said: hits: y"
    )
    told = words(app_pod(container("tinybird-proxy", state=terminated(killed))))
    assert "Raise the pod's terminationGracePeriodSeconds, or let the app end 5 s before that is over" in told
    assert words(dead(0, "0 rows lost; 4 rows of dead letters lost")) == (
        "The proxy in events-5d8f-0 stopped. 4 rows of dead letters went with it: export them before a pod goes."
    )
