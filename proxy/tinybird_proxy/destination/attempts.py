"""One attempt: which token, which span, what Tinybird said. It decides nothing about the batch."""

import asyncio

from tinybird_proxy.batch import DestinationKey, FrozenBatch
from tinybird_proxy.destination.surroundings import Surroundings
from tinybird_proxy.errors import ConnectFailed, ResponseTimeout, UpstreamError
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.tokens import OwnToken, Secret
from tinybird_proxy.verdict import Reply

_log = get_logger("upstream")


class NoToken(Exception):
    """The file that Tinybird's token comes from is not there yet."""


class Attempts:
    """Sends batches of one destination, with our token or the client's."""

    def __init__(self, key: DestinationKey, surroundings: Surroundings) -> None:
        self._key = key
        self._s = surroundings
        self._compressing = asyncio.Lock()

    async def compress(self, batch: FrozenBatch) -> None:
        """Make the payload of ``batch``, once, whoever asks first: a waiting batch is kept compressed."""
        async with self._compressing:
            if batch.payload is None:
                batch.payload = await self._s.codec.compress(batch.bodies)
                batch.bodies = []

    async def send(self, batch: FrozenBatch) -> Reply:
        """Make one attempt, or two: a token that is refused is followed at once by the one in use, if that is another.

        Raises ``UpstreamError`` or ``NoToken``.
        """
        await self.compress(batch)
        own = self._s.own_token
        if self._key.token is not None:
            return await self._request(batch, self._key.token)
        secret = own.choose(self._s.now()) if own is not None else None
        if own is None or secret is None:
            raise NoToken
        reply = await self._request(batch, secret.value)
        self._note(own, secret, reply)
        # The other one: the one in use after a changed one, or one that came while this request was out.
        other = own.current if secret is not own.current else own.choose(self._s.now())
        if _denies(reply) and other is not None and other is not secret:
            reply = await self._request(batch, other.value)
            if secret is own.candidate and _accepts(reply):
                self._reject(own, secret, other)
            self._note(own, other, reply)
        return reply

    def _note(self, own: OwnToken, secret: Secret, reply: Reply) -> None:
        """Remember what Tinybird said to ``secret``."""
        if _denies(reply):
            own.denied(secret, self._utc_s())
        elif _accepts(reply):
            if secret is own.candidate:
                _log.info("the changed token is in use", extra=fields(token=secret.hash))
            own.accepted(secret, self._utc_s())

    def _reject(self, own: OwnToken, candidate: Secret, current: Secret) -> None:
        """Not by the wall's clock: whoever sets that must not decide when the candidate is tried again."""
        own.reject_candidate(candidate, self._s.now())
        # Nothing was lost, but somebody changed a token and must hear that it is not in use.
        _log.warning(
            "Tinybird refuses the changed token; the one before it stays in use",
            extra=fields(rejected=candidate.hash, in_use=current.hash, data_source=self._key.name),
        )

    async def _request(self, batch: FrozenBatch, token: str) -> Reply:
        """Send ``batch`` once, inside a client span."""
        began_at = self._s.now()
        batch.attempts += 1
        batch.exposed = False
        wait = self._s.upstream_wait or any(place.ticket.open for place in batch.tickets)
        url = self._s.upstream.url(self._key, wait=wait)
        if batch.span is None:
            batch.span = self._s.tracer.flush(batch, oldest_age_s=began_at - batch.oldest_at)
        span = batch.span.attempt(url, batch.attempts)
        assert batch.payload is not None  # noqa: S101 - ``send`` made it
        status: int | None = None
        problem = "cancelled"
        try:
            reply = await self._s.upstream.send(
                url,
                batch.payload,
                token=token,
                batch_id=batch.id,
                vias=batch.vias,
                traceparent=span.traceparent,
                begins=batch.expose,
            )
            status = reply.status
        except UpstreamError as error:
            problem = _label(error)
            raise
        finally:
            meters = self._s.meters
            meters.upstream_replies[problem if status is None else str(status)] += 1
            ended_at = self._s.now()
            meters.recent_replies.add(1, ended_at)
            if status == 429:  # only this: a 503 does not say that it is our requests that are too many
                meters.recent_throttled.add(1, ended_at)
            meters.upstream_seconds.observe(ended_at - began_at)
            span.end(status=status, error_type=problem if status is None else None)
        return reply

    def _utc_s(self) -> float:
        return self._s.utc_now().timestamp()


def _accepts(reply: Reply) -> bool:
    return 200 <= reply.status < 300


def _denies(reply: Reply) -> bool:
    return reply.status in (401, 403)


def _label(error: UpstreamError) -> str:
    if isinstance(error, ConnectFailed):
        return "connect_failed"
    return "timeout" if isinstance(error, ResponseTimeout) else "broken"
