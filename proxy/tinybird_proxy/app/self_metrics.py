"""Writes the rows of ``tinybird_proxy.self_metrics``, one each minute, and is never in the way of the users' rows.

They have a pipeline of their own: its own small buffer, breaker, ledger, dead letters and counters. Only connections,
the token and the threads that compress are shared. What the buffer or Tinybird does not take is in the next row: that
covers its time too.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from logging import LogRecord
from typing import Any

from tinybird_proxy import health
from tinybird_proxy.admission import Capacity, Refusal
from tinybird_proxy.batch import BatchLimits, DestinationKey
from tinybird_proxy.buffer import MemoryBuffer
from tinybird_proxy.dead_letter import DeadLetters
from tinybird_proxy.health import DestinationFacts
from tinybird_proxy.pacing import PacingLimits, State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.self_metrics import Gauges, Reading, Totals, make_row
from tinybird_proxy.server.events import PATH
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.telemetry.prometheus import Snapshot
from tinybird_proxy.ticket import NotTaken
from tinybird_proxy.tokens import OwnToken, Secret
from tinybird_proxy.waiting import Waiting

INTERVAL_S = 60.0
BUFFER_ROWS = 300  # what five hours without Tinybird take
LETTERS_BYTES = 1_000_000
LAST_ROW_S = 2.0
TELL_INTERVAL_S = 3600.0
_ROW_MAX_BYTES = 4096
_log = get_logger("self_metrics")
_about_own_rows: ContextVar[bool] = ContextVar("about_own_rows", default=False)


def _is_about_users_rows(record: LogRecord) -> bool:
    return not _about_own_rows.get() or bool(record.exc_info)


# A destination tells of its troubles as often as they come, and speaks of clients. This one has no clients, and its
# troubles are told here, once an hour; only an error inside the proxy is always told.
get_logger("destination").addFilter(_is_about_users_rows)


class BorrowedToken(OwnToken):
    """The users' token for Tinybird, of which nothing that happens to our own rows may decide.

    A changed token that may not write to the metrics data source must not be rejected for the users' rows because of
    that, and one that may must not be taken for good. Here it is only used, once the current one is refused.
    """

    def __init__(self, lender: OwnToken) -> None:
        super().__init__(None, 0.0)
        self._lender = lender
        self._denied: Secret | None = None

    def choose(self, now: float) -> Secret | None:
        """The token in use, or the candidate if that was refused."""
        lender = self._lender
        refused = self._denied is not None and self._denied is lender.current
        self.current = lender.candidate if refused and lender.candidate is not None else lender.current
        return self.current

    def accepted(self, secret: Secret, now: float) -> None:
        """Says nothing about the users' rows."""

    def denied(self, secret: Secret, now: float) -> None:
        """Says nothing about the users' rows either."""
        self._denied = secret


class SelfMetrics:
    """Enter ``running``, then let ``run`` write; wrap the users' drain in ``finishing``.

    ``rows_not_made``: rows for which the time came but which the own buffer or Tinybird refused.
    """

    def __init__(self, data_source: str, users: Pipeline, read: Callable[[], Reading]) -> None:
        """``read`` is called when a row is due."""
        self.rows_not_made = 0
        self._key = DestinationKey(PATH, data_source, (), None)
        self._pipeline = _make_pipeline(users)
        self._now = users.surroundings.now
        self._read = read
        self._written: Reading | None = None
        self._finished = False
        self._full = False
        self._in_trouble = False
        self._told_at = -math.inf
        self._spoilt = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the tasks that send; rows that are still here at the end are dropped, which is told but is no loss."""
        async with self._pipeline.running():
            yield
            ours = self._pipeline.surroundings
            left = ours.buffer.occupancy.row_count + ours.letters.held_rows()
        if left:
            _log.info(
                "rows of the proxy's own counters were not delivered before the stop; no row of a client is among them",
                extra=fields(data_source=self._key.name, rows=left),
            )

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Write a row every ``interval_s`` until cancelled."""
        due = self._now() + interval_s
        while not self._finished:
            await asyncio.sleep(max(0.0, due - self._now()))
            due += interval_s
            if due <= self._now():
                due = self._now() + interval_s  # after the machine slept: one row, not one for each minute
            await self._write()

    @asynccontextmanager
    async def finishing(self, deadline: float, stop_now: asyncio.Event) -> AsyncIterator[None]:
        """Around the users' drain: a last row when that is over, or ``LAST_ROW_S`` before ``deadline`` if it is not.

        The end comes at most ``LAST_ROW_S`` later, never after ``deadline``, and at once if ``stop_now`` is set.
        """
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._finish(drained, deadline, stop_now))
            try:
                yield
            finally:
                drained.set()

    def status(self) -> dict[str, Any]:
        """How the own rows stand, for ``/status``. ``ledger`` is theirs alone; None before the first row."""
        facts = self._facts()
        return {
            "data_source": self._key.name,
            "sentence": _sentence(facts),
            "state": State.NEW if facts is None else facts.state,
            "rows_not_made": self.rows_not_made,
            "ledger": None if facts is None else facts.ledger,
        }

    async def _write(self) -> None:
        """Write a row, if there is room; whatever breaks here must not end the proxy."""
        try:
            before = self._written
            offered = self._offer()
            refused: str | None = None
            if isinstance(offered, Waiting):
                outcome = await self._pipeline.hear(offered)
                if isinstance(outcome, NotTaken):
                    self._written = before  # nobody has that row: the next one covers its time too
                    self.rows_not_made += 1
                    refused = f"Tinybird answers {outcome.status}: {outcome.message}"
            self._pipeline.check_ledger()
            self._tell(refused)
        except Exception:  # noqa: BLE001 - the users' rows go on
            self._pipeline.surroundings.meters.internal_errors += 1
            if self._may_tell():
                _log.warning("a row of the proxy's own counters could not be made; all other rows go on", exc_info=True)

    async def _finish(self, drained: asyncio.Event, deadline: float, stop_now: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(max(self._now(), deadline - LAST_ROW_S)):
                await drained.wait()
        self._finished = True
        if stop_now.is_set():
            return
        try:
            self._offer(stops=True)
            until = min(deadline, self._now() + LAST_ROW_S)
            await self._pipeline.drain(until, stop_now=stop_now, report=lambda _: None)
        except Exception:  # noqa: BLE001 - the users' drain goes on
            _log.warning("the last row of the proxy's own counters could not be written", exc_info=True)

    def _offer(self, *, stops: bool = False) -> Waiting | Refusal | None:
        reading, now = self._read(), self._now()
        row = make_row(self._written, reading, stops=stops)
        mark = _about_own_rows.set(True)  # the task that the first row starts inherits it
        try:
            offered = self._pipeline.offer(self._key, row, now=now, wait=False, head_at=now)
        finally:
            _about_own_rows.reset(mark)
        if isinstance(offered, Refusal):
            self.rows_not_made += 1
        else:
            self._written = reading
        self._tell_if_full(offered)
        return offered

    # What the log says.

    def _tell_if_full(self, offered: Waiting | Refusal | None) -> None:
        full = isinstance(offered, Refusal) and offered.reason in ("buffer_full", "share")
        if full and not self._full:
            _log.warning(
                "rows of the proxy's own counters wait for Tinybird and no more are made until it takes some;"
                " the next one will cover the time between",
                extra=fields(data_source=self._key.name, rows=BUFFER_ROWS),
            )
        self._full = full

    def _tell(self, refused: str | None) -> None:
        reason = refused or self._trouble()
        if reason is not None:
            self._in_trouble = True
            if self._may_tell():
                _log.warning(
                    "Tinybird does not take the rows of the proxy's own counters; no other row is affected. Create the"
                    " data source with the schema that the README gives, let TINYBIRD_TOKEN append to it, or unset"
                    " TINYBIRD_METRICS_DATASOURCE",
                    extra=fields(data_source=self._key.name, reason=reason, rows_not_made=self.rows_not_made),
                )
        elif self._in_trouble and (facts := self._facts()) is not None and facts.state is State.DELIVERING:
            self._in_trouble = False
            _log.info(
                "Tinybird takes the rows of the proxy's own counters again", extra=fields(data_source=self._key.name)
            )

    def _trouble(self) -> str | None:
        """Why a person should look, if one should; an outage is told by the users' own destinations."""
        facts, ledger = self._facts(), self._pipeline.ledger()
        if facts is not None and facts.state is State.HELD:
            return facts.reason
        spoilt, self._spoilt = self._spoilt, ledger.quarantined + ledger.dead_lettered
        if self._spoilt > spoilt:
            return "they do not fit the data source's schema, so Tinybird puts them into quarantine or rejects them"
        return None

    def _may_tell(self) -> bool:
        now = self._now()
        if now - self._told_at < TELL_INTERVAL_S:
            return False
        self._told_at = now
        return True

    def _facts(self) -> DestinationFacts | None:
        return next(iter(self._pipeline.facts()), None)


def read_snapshot(snapshot: Snapshot, *, node: str, time_ms: int) -> Reading:
    """What a row is made from, out of what a scrape shows."""
    meters, ledger = snapshot.meters, snapshot.ledger
    replies = meters.upstream_replies
    return Reading(
        node=node,
        instance=snapshot.instance,
        version=snapshot.version,
        time_ms=time_ms,
        uptime_s=snapshot.uptime_s,
        totals=Totals(
            requests=meters.requests_accepted,
            rows=ledger.accepted,
            flushes=meters.sent_batches,
            recovered_rows=ledger.recovered,
            replayed_rows=ledger.replayed,
            delivered_rows=ledger.delivered,
            quarantined_rows=ledger.quarantined,
            unverified_rows=ledger.unverified,
            dead_lettered_rows=ledger.dead_lettered,
            dropped_rows=ledger.dropped_total,
            ambiguous_rows=ledger.ambiguous,
            refused_requests=meters.refused.total(),
            upstream_requests=replies.total(),
            failed_upstream_requests=sum(count for status, count in replies.items() if not status.startswith("2")),
            accepted_bytes=meters.bytes_accepted,
            settled_raw_bytes=meters.sent_raw_bytes,
            settled_wire_bytes=meters.sent_wire_bytes,
            sender_restarts=meters.sender_restarts,
            internal_errors=meters.internal_errors,
        ),
        gauges=Gauges(
            buffered_rows=snapshot.buffer_rows,
            buffered_bytes=snapshot.buffer_bytes,
            buffer_utilisation_ratio=snapshot.utilisation,
            oldest_row_age_s=snapshot.oldest_age_s or 0.0,
            destinations=len(snapshot.destinations),
            undelivered_destinations=sum(
                facts.state not in (State.NEW, State.DELIVERING) for facts in snapshot.destinations
            ),
            ledger_imbalance_rows=snapshot.imbalance,
            event_loop_lag_s=meters.loop_lag_s,
        ),
    )


def _make_pipeline(users: Pipeline) -> Pipeline:
    """One for a single destination that shares the users' connections and threads, and nothing that is counted."""
    theirs = users.surroundings
    built: list[Pipeline] = []
    ours = replace(
        theirs,
        limits=BatchLimits(max_rows=BUFFER_ROWS, max_bytes=BUFFER_ROWS * _ROW_MAX_BYTES, flush_interval_s=0.0),
        pacing=PacingLimits(rate=1.0, concurrency=1),
        buffer=MemoryBuffer(),
        own_token=None if theirs.own_token is None else BorrowedToken(theirs.own_token),
        meters=Meters(theirs.now()),
        letters=DeadLetters(LETTERS_BYTES, now=theirs.now),
        max_age_s=None,
        after_settling=lambda: built[0].after_settling(),
    )
    capacity = Capacity(max_rows=BUFFER_ROWS, max_bytes=BUFFER_ROWS * _ROW_MAX_BYTES, max_body_bytes=_ROW_MAX_BYTES)
    built.append(Pipeline(ours, replace(users.limits, capacity=capacity, max_destinations=1, max_waiters=1)))
    return built[0]


def _sentence(facts: DestinationFacts | None) -> str:
    if facts is None:
        return "No row was due yet."
    if facts.refusing is not None:
        return f"Tinybird does not take the proxy's own rows: {facts.reason}. A later one tries again."
    return health.sentence(facts)
