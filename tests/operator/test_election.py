"""Two processes, one Lease, in simulated time: who leads, when it changes hands, and who ends."""

import asyncio
import logging
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from tests.operator.simulated_processes import Replica, World, install

from tinybird_proxy_operator.errors import Forbidden, Unavailable
from tinybird_proxy_operator.lease import NotLeader, Timing

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime(idle_timeout=1)]
TIMING = Timing()
STEP_S = 0.04
BRIEF_S = 0.3  # for what happens at once, with the writes' period in it


@pytest.fixture
async def world() -> AsyncIterator[World]:
    install(asyncio.get_running_loop())
    made = World()
    yield made
    await made.end()


async def a_leads_and_b_waits(world: World, **options: Any) -> tuple[Replica, Replica]:
    """At the end A has just renewed."""
    a = Replica(world, "a", TIMING)
    await until(lambda: a.election.is_leader)
    b = Replica(world, "b", TIMING, **options)
    await until_renewed(world)
    await until_renewed(world)
    return a, b


async def until(fact: Any, *, within_s: float = 100.0) -> float:
    """Wait for it; the time at which it was so."""
    async with asyncio.timeout(within_s):
        while not fact():  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(STEP_S)
    return asyncio.get_running_loop().time()


async def until_renewed(world: World) -> float:
    before = world.leases.lease
    return await until(lambda: world.leases.lease != before)


def holder(world: World) -> str:
    assert world.leases.lease is not None
    return str(world.leases.lease["spec"]["holderIdentity"])


async def test_one_of_two_leads(world: World) -> None:
    Replica(world, "a", TIMING, random=Random(1))
    Replica(world, "b", TIMING, random=Random(2))
    await asyncio.sleep(300)
    assert len(world.writers()) == 1
    assert world.leases.holders == world.writers() == world.may_write()


async def test_a_lease_that_never_was_is_made_after_its_duration(world: World) -> None:
    a = Replica(world, "a", TIMING)
    assert await until(lambda: a.election.is_leader) == pytest.approx(15.0, abs=0.1)


async def test_when_the_leader_stops_the_other_leads_within_a_retry_period(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    a.stop()
    stopped_at = asyncio.get_running_loop().time()
    led_at = await until(lambda: b.election.is_leader)
    assert led_at - stopped_at <= TIMING.retry_period_s + BRIEF_S
    assert world.leases.holders == ["a", "", "b"]
    assert a.exits == []
    lease = world.leases.lease
    assert lease is not None
    assert (lease["spec"]["leaseTransitions"], lease["spec"]["leaseDurationSeconds"]) == (1, 15)


async def test_when_the_leader_dies_the_other_leads_after_the_leases_duration_and_not_before(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    renewed_at = await until_renewed(world)
    a.kill()
    led_at = await until(lambda: b.election.is_leader)
    assert TIMING.lease_duration_s <= led_at - renewed_at + STEP_S
    assert led_at - renewed_at <= TIMING.lease_duration_s + TIMING.retry_period_s + BRIEF_S


@pytest.mark.parametrize("fault", ["is_cut", "is_deaf"])
async def test_a_leader_that_cannot_reach_the_api_server_ends_before_another_may_lead(world: World, fault: str) -> None:
    a, b = await a_leads_and_b_waits(world)
    renewed_at = await until_renewed(world)
    setattr(a.link, fault, True)
    await until(lambda: a.exits)
    assert a.exits[0] - renewed_at <= TIMING.renew_deadline_s
    assert not b.election.is_leader
    await until(lambda: b.election.is_leader)
    assert world.writers() == ["a", "b"]


async def test_a_leader_whose_renewals_are_refused_ends_at_the_deadline(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.link.error = Unavailable("the server is overloaded")
    failing_since = asyncio.get_running_loop().time()
    await until(lambda: a.exits)
    assert a.exits[0] - failing_since <= TIMING.renew_deadline_s
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) >= 3
    assert "is tried again for" in warnings[0].getMessage()
    (critical,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "lost the lease ops/operator and ends now" in critical.getMessage()


async def test_a_short_outage_costs_nobody_the_lease(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.link.error = Unavailable("the server restarts")
    await asyncio.sleep(TIMING.renew_deadline_s - TIMING.retry_period_s - 1)
    a.link.error = None
    await asyncio.sleep(60)
    assert (a.exits, world.writers()) == ([], ["a"])


async def test_renewals_whose_answers_get_lost_are_renewals_to_the_other_and_none_to_the_leader(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.link.is_deaf = True
    await asyncio.sleep(TIMING.attempt_timeout_s + 1)
    a.link.is_deaf = False
    await asyncio.sleep(60)
    assert (a.exits, world.writers()) == ([], ["a"])


async def test_a_frozen_leader_that_wakes_up_writes_nothing_and_ends(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    a.freeze()
    frozen_at = asyncio.get_running_loop().time()
    await until(lambda: b.election.is_leader)
    await asyncio.sleep(1)
    a.thaw()
    await until(lambda: a.exits)
    assert [name for at, name in world.writes if at > frozen_at and name == "a"] == []
    assert holder(world) == "b"


async def test_a_leader_that_was_frozen_past_its_deadline_ends_although_nobody_took_the_lease(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    b.kill()
    a.freeze()
    frozen_at = asyncio.get_running_loop().time()
    await asyncio.sleep(TIMING.renew_deadline_s + 1)
    a.thaw()
    await until(lambda: a.exits)
    assert world.writes[-1][0] <= frozen_at


async def test_a_leader_that_was_frozen_briefly_goes_on(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.freeze()
    await asyncio.sleep(TIMING.renew_deadline_s - 3)
    a.thaw()
    await asyncio.sleep(60)
    assert (a.exits, world.writers()) == ([], ["a"])


async def test_a_leader_whose_machine_slept_ends_although_its_timers_know_nothing_of_it(world: World) -> None:
    slept_s = 0.0
    a = Replica(world, "a", TIMING, clock=lambda time: time + slept_s)
    await until(world.may_write)
    slept_s = TIMING.renew_deadline_s + 1.0
    assert world.may_write() == []
    await until(lambda: a.exits)


async def test_a_candidate_whose_machine_slept_while_it_claimed_the_lease_does_not_lead_by_that(world: World) -> None:
    slept_s = 0.0
    b = Replica(world, "b", TIMING, clock=lambda time: time + slept_s, delay_s=lambda: 0.5)
    await until(lambda: any(request.startswith("PUT") for request in b.link.requests))
    slept_s = 60.0
    await until(lambda: len(b.link.requests) > 2 and b.link.requests[-1].startswith("GET"))
    assert (world.leases.holders, b.election.is_leader, b.exits) == (["b"], False, [])
    await until(world.may_write)


async def test_the_fence_ends_a_process_that_wakes_up_with_a_write_first(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.freeze()
    await asyncio.sleep(TIMING.renew_deadline_s + 1)
    with pytest.raises(NotLeader, match="ops/operator"):
        a.election.fence()
    assert len(a.exits) == 1


async def test_a_candidate_may_not_write_and_goes_on(world: World) -> None:
    _, b = await a_leads_and_b_waits(world)
    with pytest.raises(NotLeader):
        b.election.fence()
    assert (b.election.is_leader, b.exits) == (False, [])


@pytest.mark.parametrize("offset_s", [-86_400.0, -12.0, 12.0, 86_400.0])
async def test_clocks_may_differ(world: World, offset_s: float) -> None:
    a, b = await a_leads_and_b_waits(world, clock=lambda t: t + 1e6 + offset_s, wall_clock=lambda t: t + offset_s)
    await asyncio.sleep(120)
    assert world.writers() == ["a"]
    renewed_at = await until_renewed(world)
    a.kill()
    led_at = await until(lambda: b.election.is_leader)
    assert TIMING.lease_duration_s - STEP_S <= led_at - renewed_at <= TIMING.lease_duration_s + 2.3


async def test_a_leaders_wall_clock_may_stand_still(world: World) -> None:
    Replica(world, "a", TIMING, wall_clock=lambda time: 0.0)
    await until(world.may_write)
    Replica(world, "b", TIMING)
    await asyncio.sleep(120)
    assert world.writers() == ["a"]


async def test_an_annotation_on_the_lease_disturbs_nobody(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    world.leases.edit(annotations={"note": "do not touch"})
    await asyncio.sleep(60)
    assert (a.exits, world.writers()) == ([], ["a"])
    assert world.leases.lease is not None
    assert world.leases.lease["metadata"]["annotations"] == {"note": "do not touch"}


@pytest.mark.parametrize("name", ["", "somebody", "b"])
async def test_a_leader_whose_name_was_edited_out_ends_and_another_waits_its_time(world: World, name: str) -> None:
    a, b = await a_leads_and_b_waits(world)
    world.leases.edit(holderIdentity=name)
    edited_at = asyncio.get_running_loop().time()
    await until(lambda: a.exits)
    assert a.exits[0] - edited_at <= TIMING.retry_period_s + BRIEF_S
    led_at = await until(lambda: b.election.is_leader)
    assert led_at - edited_at >= TIMING.lease_duration_s
    assert world.writers() == ["a", "b"]


async def test_a_lease_shortened_by_hand_is_not_taken_sooner(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.link.is_cut = True
    world.leases.edit(leaseDurationSeconds=1)
    await asyncio.sleep(60)
    assert world.writers() == ["a", "b"]
    last = max(at for at, name in world.writes if name == "a")
    assert min(at for at, name in world.writes if name == "b") > last + 2


async def test_a_deleted_lease_is_made_anew_by_its_leader(world: World) -> None:
    a, _ = await a_leads_and_b_waits(world)
    world.leases.delete()
    await asyncio.sleep(60)
    assert (a.exits, world.writers(), holder(world)) == ([], ["a"], "a")


async def test_a_deleted_lease_of_a_dead_leader_is_made_anew_after_its_duration(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    a.kill()
    world.leases.delete()
    deleted_at = asyncio.get_running_loop().time()
    led_at = await until(lambda: b.election.is_leader)
    assert TIMING.lease_duration_s <= led_at - deleted_at <= TIMING.lease_duration_s + 2 * TIMING.retry_period_s


async def test_a_claim_whose_answer_got_lost_is_claimed_again_at_once(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    a.stop()
    b.link.is_deaf = True
    await asyncio.sleep(TIMING.attempt_timeout_s + TIMING.retry_period_s)
    assert not b.election.is_leader
    b.link.is_deaf = False
    healed_at = asyncio.get_running_loop().time()
    led_at = await until(lambda: b.election.is_leader)
    assert led_at - healed_at <= TIMING.attempt_timeout_s + TIMING.retry_period_s + BRIEF_S


async def test_a_candidate_that_stops_asks_for_nothing_and_leaves_the_lease_alone(world: World) -> None:
    _, b = await a_leads_and_b_waits(world)
    b.stop()
    await asyncio.sleep(60)
    assert (world.writers(), holder(world)) == (["a"], "a")
    assert [request for request in b.link.requests if request.startswith("PUT")] == []


async def test_what_keeps_a_candidate_from_leading_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = Replica(world, "a", TIMING)
    a.link.error = Forbidden('leases "operator" is forbidden')
    await asyncio.sleep(60)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 'leases "operator" is forbidden' in warning.getMessage()


async def test_a_fault_while_renewing_ends_the_process(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, _ = await a_leads_and_b_waits(world)
    a.link.error = ValueError("a bug")  # type: ignore[assignment]
    await until(lambda: a.exits)
    assert "by a fault of the operator's" in caplog.text


async def test_whether_a_process_could_lead_is_what_its_last_attempt_tells(world: World) -> None:
    a, b = await a_leads_and_b_waits(world)
    assert (a.election.answered, b.election.answered) == (True, True)
    b.link.error = Forbidden("the role lacks the verb")
    await until(lambda: not b.election.answered)
    assert a.election.is_leader
    b.link.error = None
    await until(lambda: b.election.answered)
    assert not b.election.is_leader


async def test_a_process_that_has_not_asked_yet_could_not_lead_as_far_as_it_knows(world: World) -> None:
    a = Replica(world, "a", TIMING)
    assert not a.election.answered
    await until(lambda: a.election.answered)
    assert not a.election.is_leader
