"""The decision for one events request, in plain synchronous steps that any lane can call.

    authorise → (receive the body) → check → admit → (wait) → answer

What needs the network stands between the steps, in ``handler``.
"""

from dataclasses import replace
from typing import Final, NamedTuple

from tinybird_proxy.admission import Refusal
from tinybird_proxy.batch import DestinationKey
from tinybird_proxy.codec import ENCODINGS
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.rows import Rows, check
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.server.availability import Availability
from tinybird_proxy.server.query import EventsQuery, parse_query
from tinybird_proxy.ticket import Confirmed, Dropped, NotTaken, Outcome, Refused
from tinybird_proxy.tokens import ClientTokens
from tinybird_proxy.waiting import Waiting

PATH = "/v0/events"
DRAINING = Refusal(503, "draining", "the proxy is draining; send the same request again", 1)
_TRACEPARENT_CHARS: Final = 55
_KEPT_HEADINGS: Final = 1024
_KEPT_MAX_CHARS: Final = 1024


class Gate:
    """Who may write: our clients' tokens (None: anybody), and whether Tinybird's token is ours."""

    def __init__(self, *, own_token_mode: bool, clients: ClientTokens | None = None) -> None:
        self.own_token_mode = own_token_mode
        self._clients = clients
        self._admitted: dict[tuple[str | None, str], Heading] = {}

    @property
    def clients(self) -> ClientTokens | None:
        """What clients must show."""
        return self._clients

    def use_clients(self, clients: ClientTokens) -> None:
        """Replace the tokens; the next request is judged by the new ones."""
        self._clients = clients
        self._admitted.clear()

    def known(self, authorization: str | None, query_text: str) -> "Heading | None":
        """What ``heading`` said when it was asked the same before, if it was good."""
        return self._admitted.get((authorization, query_text))

    def heading(self, authorization: str | None, query_text: str) -> "Heading | Answer":
        """Where the rows would go, or 400, 401 or 403.

        The last good headings are kept: most clients send the same header and query each time. A look-up by Python's
        keyed string hash tells no more about a token than one by any other keyed hash.
        """
        asked = (authorization, query_text)
        if (known := self._admitted.get(asked)) is not None:
            return known
        query = parse_query(query_text)
        key = authorise(self, authorization, query)
        if isinstance(key, Answer):
            return key
        heading = Heading(key, query)
        if len(query_text) + len(authorization or "") <= _KEPT_MAX_CHARS:
            if len(self._admitted) >= _KEPT_HEADINGS:
                self._admitted.clear()
            self._admitted[asked] = heading
        return heading


class Heading(NamedTuple):
    """Where the rows of a request go, and what its query says."""

    key: DestinationKey
    query: EventsQuery


def bearer(authorization: str | None) -> str | None:
    """The token of an ``Authorization: Bearer`` header; other schemes say nothing."""
    if authorization is not None and authorization[:7].lower() == "bearer ":
        return authorization[7:].strip() or None
    return None


def authorise(gate: Gate, authorization: str | None, query: EventsQuery) -> DestinationKey | Answer:
    """Where the rows would go, or 400, 401 or 403."""
    token = bearer(authorization) or query.token
    if not gate.own_token_mode:
        if token is None:
            return answers.error(
                401,
                "no token: send Tinybird's token as 'Authorization: Bearer …' or '?token=…'",
                ("WWW-Authenticate", "Bearer"),
            )
        if not token.isascii() or not token.isprintable():
            return answers.error(403, "the token holds characters that no token of Tinybird has")
    elif gate.clients is not None:
        if token is None:
            return answers.error(
                401,
                "no token: send the proxy's token as 'Authorization: Bearer …' or '?token=…'",
                ("WWW-Authenticate", "Bearer"),
            )
        entry = gate.clients.find(token)
        if entry is None:
            return answers.error(403, "the proxy does not know this token")
        if entry.allow is not None and query.name and query.name not in entry.allow:
            return answers.error(403, f"this token may not write to the data source {query.name[:128]!r}")
    if query.problem is not None:
        return answers.error(400, query.problem)
    return DestinationKey(PATH, query.name, query.params, None if gate.own_token_mode else token)


class EventsRoute:
    """Admits checked rows and says what the client hears."""

    def __init__(
        self, pipeline: Pipeline, gate: Gate, availability: Availability, *, honor_wait: bool, keep_traces: bool
    ) -> None:
        self.pipeline = pipeline
        self.gate = gate
        self._availability = availability
        self._honor_wait = honor_wait
        self._told_to_slow_down = False
        self.keep_traces = keep_traces
        self._instance = pipeline.surroundings.upstream.instance
        self._buffer = pipeline.surroundings.buffer
        self._refused = pipeline.surroundings.meters.refused

    def head(self, authorization: str | None, query_text: str, vias: str | None) -> Heading | Answer:
        """Decide what can be decided before the body is read."""
        found = self.gate.heading(authorization, query_text)
        if isinstance(found, Answer):
            self._refused[f"http_{found.status}"] += 1
            return found
        if found.query.ack == "disk" and self._buffer.ack != "disk":
            self._refused["http_400"] += 1
            return answers.error(400, "ack=disk: this proxy has no disk buffer")
        if vias is not None and self._instance in vias:
            self._refused["loop"] += 1
            message = "this request came from this very proxy: TINYBIRD_URL leads back to it"
            return answers.error(508, message)
        if self._availability.refusing:
            self._refused["draining"] += 1
            return answers.refused(DRAINING, close=True)
        return found

    def at_once(self, authorization: str | None, query_text: str) -> Heading | None:
        """The heading of a request whose answer cannot need waiting: admitted before, its destination confirmed."""
        heading = self.gate.known(authorization, query_text)
        if heading is None or self._availability.refusing:
            return None
        key, query = heading
        if query.ack is not None or self._buffer.ack != "memory" or (query.wait and self._honor_wait):
            return None
        return heading if self.pipeline.is_confirmed(key) else None

    def take(
        self, heading: Heading, body: bytes, *, head_at: float, traceparent: str | None, vias: str | None
    ) -> Answer | Waiting:
        """Check a small body, which came with its head, and admit its rows."""
        try:
            rows = check(body, document=heading.query.document)
        except BodyRefused as refused:
            return self.refuse_body(refused)
        return self.admit(heading, rows, head_at=head_at, now=head_at, traceparent=traceparent, vias=vias)

    def refuse_body(self, refused: BodyRefused, *, body_ended: bool = True) -> Answer:
        """What the client is told of a body that is not taken; what is left of it cannot be skipped."""
        self._refused[refused.reason] += 1
        headers = [("Accept-Encoding", ", ".join(ENCODINGS))] if refused.status == 415 else []
        if refused.status == 503:
            headers.append(("Retry-After", "1"))
        return answers.error(refused.status, refused.message, *headers, close=refused.status == 503 or not body_ended)

    def admit(
        self,
        heading: Heading,
        rows: Rows,
        *,
        head_at: float,
        now: float,
        traceparent: str | None,
        vias: str | None,
    ) -> Answer | Waiting:
        """Promise the rows and answer, or say what to wait for."""
        key, query = heading
        if rows.row_count == 0:
            return self.taken(0, query)
        if self._availability.refusing:
            self._refused["draining"] += 1
            return answers.refused(DRAINING, close=True)
        offered = self.pipeline.offer(
            key,
            rows,
            now=now,
            wait=query.wait and self._honor_wait,
            head_at=head_at,
            traceparent=traceparent if is_sampled(traceparent) else None,
            vias=vias,
        )
        if offered is None:
            return self.taken(rows.row_count, query)
        if isinstance(offered, Refusal):
            self._refused[offered.reason] += 1
            self._told_to_slow_down |= offered.status == 429
            return answers.refused(offered)
        return offered

    def taken(self, row_count: int, query: EventsQuery) -> Answer:
        """202, with what holds the rows."""
        answer = answers.taken(row_count, query.ack or self._buffer.ack, rate_headers=self._told_to_slow_down)
        return answer if query.verify is None else _verified(answer, query.verify)

    def heard(self, outcome: Outcome, row_count: int, query: EventsQuery) -> Answer:
        """What a waiting client is told in the end."""
        waits = self.pipeline.surroundings.meters.waits
        match outcome:
            case Confirmed() if query.wait and self._honor_wait:
                waits["delivered"] += 1
                batch = None if outcome.batch_rows is None else (outcome.batch_rows, outcome.batch_quarantined)
                answer = answers.delivered(outcome.delivered, outcome.quarantined, batch=batch)
                return answer if query.verify is None else _verified(answer, query.verify)
            case NotTaken():
                waits["not_taken"] += 1
                return answers.error(outcome.status, outcome.message or "Tinybird refused this request")
            case Refused():
                waits["refused"] += 1
                headers = [("Retry-After", "1")] if outcome.status == 503 else []
                return answers.error(outcome.status, outcome.message, *headers)
            case Dropped():
                waits["dropped"] += 1
                return answers.refused(
                    Refusal(
                        503, "dropped", "the proxy stopped before Tinybird had confirmed these rows; send them again", 1
                    ),
                    close=True,
                )
            case _:
                waits["buffered"] += 1
                return self.taken(row_count, query)


def is_sampled(traceparent: str | None) -> bool:
    """Whether a W3C ``traceparent`` has its sampled flag set; only its shape is looked at."""
    return (
        traceparent is not None
        and len(traceparent) == _TRACEPARENT_CHARS
        and traceparent[:3] == "00-"
        and traceparent[-1] in "13579bdf"
    )


def _verified(answer: Answer, verify: str) -> Answer:
    return replace(answer, headers=(*answer.headers, ("x-vercel-verify", verify)))
