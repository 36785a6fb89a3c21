"""One attempt: which token, which bytes, which span; a changed token and the one before it."""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from blockbuster import blockbuster_ctx

from tinybird_proxy import health
from tinybird_proxy.batch import DestinationKey, FrozenBatch, OpenBatch, Payload, Trigger, freeze
from tinybird_proxy.destination.attempts import Attempts, NoToken
from tinybird_proxy.destination.surroundings import BatchUpstream, Surroundings
from tinybird_proxy.errors import ConnectFailed, ConnectionBroken, ResponseTimeout, UpstreamError
from tinybird_proxy.pacing import State
from tinybird_proxy.testing.fake_tracer import TRACEPARENT, FakeTracer
from tinybird_proxy.testing.fake_upstream import (
    INSTANCE,
    ORIGIN,
    FakeUpstream,
    Script,
    after,
    broken,
    hang,
    reply,
    timed_out,
    unreachable,
)
from tinybird_proxy.testing.pipelines import OWN_TOKEN, Client, Setup, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Place, Ticket
from tinybird_proxy.tokens import OwnToken
from tinybird_proxy.upstream import Upstream, UpstreamSettings

pytestmark = pytest.mark.looptime(idle_timeout=1)
KEY = DestinationKey("/v0/events", "hits", (), None)
THEIRS = DestinationKey("/v0/events", "hits", (), "p.client")
ids = (f"b{number}" for number in itertools.count(1))


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@dataclass
class Scene:
    """Attempts at one destination, and what they work with."""

    attempts: Attempts
    tinybird: FakeUpstream
    surroundings: Surroundings
    own: OwnToken


def make_scene(*script: Script, setup: Setup | None = None, key: DestinationKey = KEY) -> Scene:
    tinybird, own = FakeUpstream(script), OwnToken("p.old", 0.0)
    surroundings = (setup or Setup(own_token=own)).surroundings(tinybird)
    return Scene(Attempts(key, surroundings), tinybird, surroundings, own)


def make_batch(*numbers: int, key: DestinationKey = KEY, tickets: list[Ticket] | None = None) -> FrozenBatch:
    batch = OpenBatch(0.0)
    for number in numbers or (1, 2, 3):
        batch.add(numbered([number]), 0.0)
    batch.tickets = [Place(ticket, first, 1) for first, ticket in enumerate(tickets or [])]
    return freeze(batch, batch_id=next(ids), key=key, trigger=Trigger.INTERVAL, now=0.0)


def make_ticket() -> Ticket:
    return Ticket(lambda outcome: None, 1, contact_only=False)


def used(tinybird: FakeUpstream) -> list[str]:
    """The tokens of the attempts so far."""
    return [attempt.token for attempt in tinybird.attempts]


async def test_every_attempt_sends_the_same_bytes_and_the_rows_are_compressed_once() -> None:
    made: list[list[bytes]] = []

    async def compress(bodies: list[bytes]) -> Payload:
        made.append(bodies)
        return Payload(b"\n".join(bodies), None)

    scene = make_scene(503, 200, setup=Setup(compress=compress))
    batch = make_batch(1, 2, 3)
    await scene.attempts.send(batch)
    await scene.attempts.send(batch)
    first, second = scene.tinybird.attempts
    assert first.payload is second.payload
    assert first.batch_id == second.batch_id == batch.id
    assert first.body == b'{"n":1}\n{"n":2}\n{"n":3}'
    assert len(made) == 1
    assert batch.bodies == []
    assert batch.attempts == 2


async def test_compressed_rows_arrive_as_they_were() -> None:
    scene = make_scene()
    await scene.attempts.send(make_batch(1, 2, 3))
    assert scene.tinybird.attempts[0].payload.encoding == "gzip"
    assert numbers_of(scene.tinybird.taken()) == [1, 2, 3]


async def test_a_clients_own_token_goes_with_its_rows() -> None:
    scene = make_scene(key=THEIRS)
    await scene.attempts.send(make_batch(key=THEIRS))
    assert used(scene.tinybird) == ["p.client"]


async def test_without_a_token_nothing_is_sent() -> None:
    for own in (None, OwnToken(None, 0.0)):
        scene = make_scene(setup=Setup(own_token=own))
        with pytest.raises(NoToken):
            await scene.attempts.send(make_batch())
        assert scene.tinybird.attempts == []


async def test_a_token_file_that_appears_is_used_at_once() -> None:
    own = OwnToken(None, 0.0)
    scene = make_scene(setup=Setup(own_token=own))
    own.offer("p.late", 0.0)
    await scene.attempts.send(make_batch())
    assert used(scene.tinybird) == ["p.late"]


@pytest.mark.parametrize(
    ("upstream_wait", "waits", "expected"), [(True, False, True), (False, False, False), (False, True, True)]
)
async def test_upstream_waits_by_default_or_while_a_client_does(
    upstream_wait: bool, waits: bool, expected: bool
) -> None:
    scene = make_scene(setup=Setup(upstream_wait=upstream_wait))
    await scene.attempts.send(make_batch(tickets=[make_ticket()] if waits else []))
    assert ("wait" in scene.tinybird.attempts[0].query) == expected


async def test_upstream_need_not_wait_for_a_client_that_has_left() -> None:
    ticket = make_ticket()
    ticket.resolve(Buffered())
    scene = make_scene(setup=Setup(upstream_wait=False))
    await scene.attempts.send(make_batch(tickets=[ticket]))
    assert "wait" not in scene.tinybird.attempts[0].query


async def test_what_travels_along() -> None:
    tracer = FakeTracer()
    scene = make_scene(setup=Setup(tracer=tracer))
    batch = make_batch()
    batch.vias = ("edge-1",)
    await asyncio.sleep(2)
    await scene.attempts.send(batch)
    (attempt,) = scene.tinybird.attempts
    assert attempt.traceparent == TRACEPARENT
    assert attempt.vias == ("edge-1", INSTANCE)
    assert OWN_TOKEN not in attempt.url
    assert tracer.flushes[0].oldest_age_s == 2.0


def ends(tracer: FakeTracer) -> list[tuple[int, int | None, str | None]]:
    return [(span.number, span.status, span.error_type) for flush in tracer.flushes for span in flush.attempts]


async def test_each_attempt_has_a_span_of_its_own_under_the_batchs() -> None:
    tracer = FakeTracer()
    scene = make_scene(503, unreachable(), broken(), timed_out(), 200, setup=Setup(tracer=tracer))
    batch = make_batch()
    for expected in (None, ConnectFailed, ConnectionBroken, ResponseTimeout, None):
        if expected is None:
            await scene.attempts.send(batch)
        else:
            with pytest.raises(UpstreamError) as error:
                await scene.attempts.send(batch)
            assert type(error.value) is expected
    assert len(tracer.flushes) == 1
    assert ends(tracer) == [
        (1, 503, None),
        (2, None, "connect_failed"),
        (3, None, "broken"),
        (4, None, "timeout"),
        (5, 200, None),
    ]
    replies = scene.surroundings.meters.upstream_replies
    assert replies == {"503": 1, "connect_failed": 1, "broken": 1, "timeout": 1, "200": 1}


async def test_attempts_that_ended_lately_are_counted_and_those_answered_with_429_apart() -> None:
    unavailable = reply(503, {"error": "too busy for now"}, retry_after="1")  # in Tinybird's voice
    scene = make_scene(429, unavailable, unreachable(), 429, 200)
    batch, meters, now = make_batch(), scene.surroundings.meters, scene.surroundings.now
    for _ in range(5):
        with suppress(UpstreamError):
            await scene.attempts.send(batch)
    assert (meters.recent_replies.total(now()), meters.recent_throttled.total(now())) == (5, 2)
    await asyncio.sleep(61)
    assert (meters.recent_replies.total(now()), meters.recent_throttled.total(now())) == (0, 0)


async def test_a_cancelled_attempt_ends_its_span() -> None:
    tracer = FakeTracer()
    scene = make_scene(hang(), setup=Setup(tracer=tracer))
    attempt = asyncio.create_task(scene.attempts.send(make_batch()))
    await asyncio.sleep(1)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert ends(tracer) == [(1, None, "cancelled")]


async def test_the_time_of_each_attempt_is_measured() -> None:
    scene = make_scene(after(2, 200))
    await scene.attempts.send(make_batch())
    assert scene.surroundings.meters.upstream_seconds.total == 2.0


# A changed token.


async def test_a_changed_token_that_is_accepted_is_in_use() -> None:
    scene = make_scene()
    scene.own.offer("p.new", 0.0)
    await scene.attempts.send(make_batch())
    await scene.attempts.send(make_batch())
    assert used(scene.tinybird) == ["p.new", "p.new"]
    assert scene.own.current is not None
    assert (scene.own.current.value, scene.own.candidate) == ("p.new", None)
    assert scene.own.current.accepted_at is not None


@pytest.mark.parametrize("status", [401, 403])
async def test_a_changed_token_that_is_refused_is_followed_by_the_old_one_at_once_with_the_same_batch(
    status: int, looptime: float
) -> None:
    scene = make_scene(status, 200)
    scene.own.offer("p.new", 0.0)
    batch = make_batch()
    reply = await scene.attempts.send(batch)
    refused, accepted = scene.tinybird.attempts
    assert (reply.status, used(scene.tinybird), looptime) == (200, ["p.new", "p.old"], 0.0)
    assert (refused.batch_id, refused.payload) == (accepted.batch_id, accepted.payload)
    assert batch.attempts == 2
    assert scene.own.current is not None
    assert scene.own.candidate is not None
    assert scene.own.current.value == "p.old"
    assert scene.own.rejected_at is not None
    assert scene.own.candidate.denied_at is not None


async def test_a_rejected_token_is_tried_again_after_a_minute() -> None:
    scene = make_scene(401, 200, 200, 401, 200, 200)
    scene.own.offer("p.new", 0.0)
    await scene.attempts.send(make_batch())
    await asyncio.sleep(59.9)
    await scene.attempts.send(make_batch())
    await asyncio.sleep(0.2)
    await scene.attempts.send(make_batch())
    await scene.attempts.send(make_batch())
    assert used(scene.tinybird) == ["p.new", "p.old", "p.old", "p.new", "p.old", "p.old"]


@pytest.mark.parametrize("step_s", [-86400.0, 86400.0])
async def test_a_rejected_token_is_tried_again_after_a_minute_whatever_the_walls_clock_does(step_s: float) -> None:
    own = OwnToken("p.old", 0.0)
    setup = Setup(own_token=own)
    scene = make_scene(401, 200, setup=setup)
    own.offer("p.new", 0.0)
    await scene.attempts.send(make_batch())
    setup.wall.step(step_s)
    await asyncio.sleep(59)
    await scene.attempts.send(make_batch())
    await asyncio.sleep(2)
    await scene.attempts.send(make_batch())
    assert used(scene.tinybird) == ["p.new", "p.old", "p.old", "p.new"]


async def test_when_both_tokens_are_refused_the_changed_one_is_not_rejected_and_both_denials_are_known() -> None:
    scene = make_scene(401, 403, 200)
    scene.own.offer("p.new", 0.0)
    assert (await scene.attempts.send(make_batch())).status == 403
    assert scene.own.rejected_at is None
    assert scene.own.current is not None
    assert scene.own.candidate is not None
    assert scene.own.candidate.denied_at is not None
    assert scene.own.current.denied_at is not None
    await scene.attempts.send(make_batch())
    assert used(scene.tinybird) == ["p.new", "p.old", "p.new"]


async def test_an_outage_says_nothing_about_a_changed_token() -> None:
    scene = make_scene(503, 401, unreachable(), 200)
    scene.own.offer("p.new", 0.0)
    batch = make_batch()
    await scene.attempts.send(batch)
    with pytest.raises(ConnectFailed):
        await scene.attempts.send(batch)
    assert scene.own.rejected_at is None
    await scene.attempts.send(batch)
    assert used(scene.tinybird) == ["p.new", "p.new", "p.old", "p.new"]


async def test_a_changed_token_that_was_replaced_meanwhile_still_falls_back() -> None:
    scene = make_scene(after(1, 401), 200, 200)
    scene.own.offer("p.mistake", 0.0)
    sending = asyncio.create_task(scene.attempts.send(make_batch()))
    await asyncio.sleep(0.5)
    scene.own.offer("p.right", 0.5)
    assert (await sending).status == 200
    assert scene.own.rejected_at is None
    await scene.attempts.send(make_batch())
    assert used(scene.tinybird) == ["p.mistake", "p.old", "p.right"]
    assert scene.own.candidate is None


async def test_a_token_that_was_replaced_while_its_request_was_out_is_followed_by_its_successor() -> None:
    scene = make_scene(after(1, 401), 200, 200)
    slow = asyncio.create_task(scene.attempts.send(make_batch()))
    await asyncio.sleep(0.5)
    scene.own.offer("p.new", 0.5)
    await scene.attempts.send(make_batch())  # another batch finds the new one good
    assert (await slow).status == 200
    assert used(scene.tinybird) == ["p.old", "p.new", "p.new"]
    assert scene.own.current is not None
    assert scene.own.current.value == "p.new"


async def test_a_token_that_came_while_a_request_was_out_follows_the_refused_one_at_once() -> None:
    scene = make_scene(after(1, 403), 200)
    slow = asyncio.create_task(scene.attempts.send(make_batch()))
    await asyncio.sleep(0.5)
    scene.own.offer("p.new", 0.5)
    assert (await slow).status == 200
    assert used(scene.tinybird) == ["p.old", "p.new"]
    assert scene.own.current is not None
    assert (scene.own.current.value, scene.own.candidate) == ("p.new", None)


async def test_the_token_in_use_that_is_refused_is_not_tried_twice() -> None:
    scene = make_scene(401)
    assert (await scene.attempts.send(make_batch())).status == 401
    assert used(scene.tinybird) == ["p.old"]
    assert scene.own.current is not None
    assert scene.own.current.denied_at is not None


# What a destination says of its attempts, and what it makes of late answers.


@asynccontextmanager
async def delivering(tinybird: FakeUpstream) -> AsyncIterator[Client]:
    async with Setup().pipeline(tinybird).running() as pipeline:
        client = Client(pipeline)
        await client.confirm()
        yield client
        assert imbalances(pipeline) == []


async def test_an_older_answer_does_not_change_why_a_destination_is_held() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(after(3, 403), after(5, 429), then=403)
        for number in (1, 2):
            client.offer(numbered([number]))
            await asyncio.sleep(1.2)
        await asyncio.sleep(7)
        facts = client.destination.facts()
        assert (facts.state, facts.status) == (State.HELD, 403)
        assert "403" in facts.reason


async def test_a_success_from_before_an_error_does_not_make_an_outage_of_it() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(after(3, 500), after(2, 200), then=after(100, 500))
        for number, pause_s in ((1, 1.2), (2, 3.2)):
            client.offer(numbered([number]))
            await asyncio.sleep(pause_s)
        facts = client.destination.facts()
        assert (facts.state, facts.status, health.cause(facts)) == (State.FAILING, 500, health.Cause.FAILING)
        tinybird.will(then=200)
        await asyncio.sleep(200)
        facts = client.destination.facts()
        assert (facts.state, facts.status) == (State.DELIVERING, None)


@pytest.mark.parametrize(
    "heard",
    [
        pytest.param(unreachable(), id="nothing"),
        pytest.param(429, id="429"),
        pytest.param(reply(429, Retry_After="2"), id="429 with a time"),
        pytest.param(500, id="500"),
        pytest.param(503, id="503"),
    ],
)
async def test_an_attempt_that_somebody_asked_for_and_that_fails_brings_no_other_one(heard: Script) -> None:
    tinybird = FakeUpstream([reply(200, b"<html>"), heard], then=reply(200, b"<html>"))
    async with Setup().pipeline(tinybird).running() as pipeline:
        client = Client(pipeline)
        await client.send(numbered([1]))
        await asyncio.sleep(600)
        assert len(tinybird.attempts) == 1
        pipeline.probe_all()
        await asyncio.sleep(600)
        assert len(tinybird.attempts) == 2
        tinybird.will(then=200)
        pipeline.probe_all()
        await asyncio.sleep(5)
        assert (client.destination.idle, client.destination.pacing.state) == (True, State.DELIVERING)


# The fake is held to the real thing.


async def test_the_fakes_urls_are_the_real_ones() -> None:
    settings = UpstreamSettings(
        origin=ORIGIN,
        timeout_s=60.0,
        instance=INSTANCE,
        user_agent="test",
        proxies={},
        bypasses_proxy=lambda host: False,
    )
    real: BatchUpstream = Upstream(
        settings, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), now=asyncio.get_running_loop().time
    )
    fake: BatchUpstream = FakeUpstream()
    params = (("__tb__semver", "1.0.0 &=/?ü"),)
    for key in (KEY, THEIRS, DestinationKey("/v0/events", "ünïcode & more", params, "p.client")):
        for wait in (True, False):
            assert fake.url(key, wait=wait) == real.url(key, wait=wait)
    assert (fake.counts_seen, fake.instance) == (real.counts_seen, real.instance)
