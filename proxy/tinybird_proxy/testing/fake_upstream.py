"""A Tinybird that answers by script, remembers each attempt, and says which rows it took.

    FakeUpstream([503, 200])                     503, then 200, and 200 for ever after
    FakeUpstream([after(2, 200), hang()])        an answer that takes 2 s, then none at all
    FakeUpstream([broken(takes=True)], then=503) the rows arrive but the answer does not; then an outage
    FakeUpstream(then=quarantining(1))           anything may be computed from the attempt

What Tinybird says and what it takes are two things. By default it takes the rows exactly if it says 2xx.
"""

import asyncio
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tinybird_proxy import codec
from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.errors import ConnectFailed, ConnectionBroken, ResponseTimeout, UpstreamError
from tinybird_proxy.verdict import Reply

ORIGIN = "https://tinybird.test"
INSTANCE = "fake-instance"
_INFLATED_MAX_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one attempt. A status stands for a plain reply with it; ``takes`` None: as the answer says.

    ``begins``: whether a byte of the body is ever written.
    """

    answer: int | Reply | UpstreamError
    after_s: float = 0.0
    takes: bool | None = None
    begins: bool = True


@dataclass(kw_only=True)
class Attempt:
    """One request that reached the fake. ``answer`` is None until it ends, and for ever if it was cancelled."""

    at: float
    url: str
    token: str = field(repr=False)
    batch_id: str
    payload: Payload
    vias: tuple[str, ...]
    traceparent: str | None
    taken: bool = False
    answer: Reply | UpstreamError | None = None
    ended_at: float | None = None

    @cached_property
    def body(self) -> bytes:
        """The payload without its compression."""
        if self.payload.encoding is None:
            return self.payload.body
        return b"".join(codec.inflate(self.payload.body, self.payload.encoding, _INFLATED_MAX_BYTES))

    @cached_property
    def rows(self) -> list[Any]:
        """The rows, decoded."""
        return [json.loads(line) for line in self.body.split(b"\n")]

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query's parameters."""
        return parse_qs(urlsplit(self.url).query, keep_blank_values=True)

    @property
    def name(self) -> str:
        """The data source."""
        return self.query["name"][0]


Known = int | Reply | UpstreamError | Step
Script = Known | Callable[[Attempt], "Script"]


def after(seconds: float, answer: Known) -> Step:
    """``answer``, so much later."""
    step = answer if isinstance(answer, Step) else Step(answer)
    return replace(step, after_s=step.after_s + seconds)


def hang(*, takes: bool = False) -> Step:
    """No answer, ever: the attempt ends only if it is cancelled."""
    return Step(500, after_s=math.inf, takes=takes)


def connecting() -> Step:
    """No connection, ever, and no error either: the attempt ends only if it is cancelled."""
    return replace(unreachable(), after_s=math.inf)


def unreachable() -> Step:
    """Nothing listens there: no body byte was written."""
    return Step(ConnectFailed("no connection to tinybird.test:443: connection refused"), begins=False)


def broken(*, takes: bool = False) -> Step:
    """The connection breaks after the body's first byte."""
    return Step(ConnectionBroken("the connection to tinybird.test broke before the answer"), takes=takes)


def timed_out(after_s: float = 60.0, *, takes: bool = False) -> Step:
    """The body was written and no answer came in time."""
    return Step(ResponseTimeout(f"no answer from tinybird.test within {after_s:g} s"), after_s=after_s, takes=takes)


def reply(status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> Reply:
    """A reply with these ``headers``, whose names are written with underscores."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {name.lower().replace("_", "-"): value for name, value in headers.items()}, text)


def counts(successful: int, quarantined: int = 0, *, status: int = 200) -> Reply:
    """A reply with these counts."""
    return reply(status, {"successful_rows": successful, "quarantined_rows": quarantined})


def quarantining(row_count: int) -> Callable[[Attempt], Script]:
    """200, with so many of the batch's rows in quarantine."""
    return lambda attempt: counts(len(attempt.rows) - row_count, row_count)


class FakeUpstream:
    """Stands in for ``upstream.Upstream``. One task calls it, in the same loop as the pipeline's."""

    def __init__(self, script: Iterable[Script] = (), *, then: Script = 200) -> None:
        self.counts_seen = False
        self.instance = INSTANCE
        self.attempts: list[Attempt] = []
        self.in_flight: Counter[str] = Counter()  # by data source
        self.most_in_flight: Counter[str] = Counter()
        self._script = deque(script)
        self._then = then
        self._scripts: dict[str, tuple[deque[Script], Script]] = {}

    # What a test asks for and about.

    def will(self, *script: Script, then: Script = 200, name: str | None = None) -> None:
        """From now on ``script``, step by step, and ``then`` for ever after; ``name``: only for that data source."""
        if name is None:
            self._script, self._then = deque(script), then
        else:
            self._scripts[name] = deque(script), then

    def forget(self) -> None:
        """Forget the attempts so far."""
        self.attempts.clear()
        self.most_in_flight.clear()

    def of(self, name: str) -> list[Attempt]:
        """The attempts with rows for data source ``name``."""
        return [attempt for attempt in self.attempts if attempt.name == name]

    def taken(self, name: str | None = None) -> list[Any]:
        """Every row that Tinybird has, as often as it has it, in the order of arrival."""
        return [
            row for attempt in self.attempts if attempt.taken and name in (None, attempt.name) for row in attempt.rows
        ]

    # What a destination calls.

    def url(self, key: DestinationKey, *, wait: bool) -> str:
        """As the real one."""
        pairs = [("name", key.name), *key.params, *([("wait", "true")] if wait else [])]
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
        return f"{ORIGIN}{key.path}?{query}"

    async def send(
        self,
        url: str,
        payload: Payload,
        *,
        token: str,
        batch_id: str,
        vias: tuple[str, ...] = (),
        traceparent: str | None = None,
        begins: Callable[[], None] | None = None,
    ) -> Reply:
        """Make one attempt: what becomes of it stands in the script."""
        now = asyncio.get_running_loop().time
        attempt = Attempt(
            at=now(),
            url=url,
            token=token,
            batch_id=batch_id,
            payload=payload,
            vias=(*vias, self.instance),
            traceparent=traceparent,
        )
        self.attempts.append(attempt)
        step = self._next_step(attempt)
        answer = _plain_reply(step.answer, attempt) if isinstance(step.answer, int) else step.answer
        says_taken = isinstance(answer, Reply) and 200 <= answer.status < 300
        attempt.taken = says_taken if step.takes is None else step.takes
        if begins is not None and step.begins:
            begins()
        await self._wait(attempt.name, step.after_s)
        attempt.answer, attempt.ended_at = answer, now()
        if isinstance(answer, UpstreamError):
            raise answer
        return answer

    def _next_step(self, attempt: Attempt) -> Step:
        script, then = self._scripts.get(attempt.name, (self._script, self._then))
        found = script.popleft() if script else then
        while not isinstance(found, Step):
            if isinstance(found, int | Reply | UpstreamError):
                return Step(found)
            found = found(attempt)
        return found

    async def _wait(self, name: str, seconds: float) -> None:
        self.in_flight[name] += 1
        self.most_in_flight[name] = max(self.most_in_flight[name], self.in_flight[name])
        try:
            if math.isinf(seconds):
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(seconds)
        finally:
            self.in_flight[name] -= 1


def _plain_reply(status: int, attempt: Attempt) -> Reply:
    """2xx with the batch's counts, 4xx with a message of Tinybird's, anything else as from a load balancer."""
    if 200 <= status < 300:
        return counts(len(attempt.rows), status=status)
    return reply(status, {"error": f"status {status} by script"} if 400 <= status < 500 else b"")
