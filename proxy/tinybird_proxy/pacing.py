"""Pacing: when one destination may send, how often, and how long it waits after a failure.

Pure: ``now`` is an argument (seconds of one monotonic clock) and chance is a ``random.Random`` that the caller gives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
RETRY_AFTER_MAX_S = 300.0
# `Retry-After: 0`, or a date that has passed, is no reason to ask again as fast as the bucket allows.
RETRY_AFTER_LEAST_S = 0.5
PROBE_INTERVAL_S = 60.0
# While draining a failed attempt is repeated soon: there may be no later.
DRAIN_BACKOFF_MAX_S = 2.0
# The last attempt before a deadline needs some time to be answered.
LAST_ATTEMPT_BEFORE_DEADLINE_S = 5.0
# A burst after a quiet time stays under Tinybird's limit of 100 requests/s together with a second's refill.
BURST_SHARE = 0.1


class State(StrEnum):
    """What a destination is doing."""

    NEW = "new"  # not answered with 2xx yet, or not since a failure
    DELIVERING = "delivering"
    FAILING = "failing"  # the last attempt failed; waits a backoff
    THROTTLED = "throttled"  # Tinybird asked us to slow down; waits as long as it said
    HELD = "held"  # waits for a person; probed each PROBE_INTERVAL_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PacingLimits:
    """``rate``: requests a second; ``concurrency``: requests in flight."""

    rate: float
    concurrency: int


class Pacing:
    """One destination's state, backoff and token bucket."""

    def __init__(self, limits: PacingLimits, *, jitter: Callable[[float], float], now: float) -> None:
        """``jitter(limit)`` answers with a random number from 0 to ``limit`` (full jitter)."""
        self._limits = limits
        self._jitter = jitter
        self._burst = max(1.0, limits.rate * BURST_SHARE)
        self._tokens = self._burst
        self._refilled_at = now
        self._failed_at = self._judged_at = -math.inf
        self._failures = 0
        self._deadline: float | None = None
        self._pause_ends_at = -math.inf  # as if nothing were draining
        self._only_by_hand = False  # held because each attempt might double rows
        self.state = State.NEW
        self.confirmed = False
        self.reason = ""
        self.paused_until = -math.inf

    @property
    def delivering(self) -> bool:
        """Whether rows flow as far as we know: not failing, paused or held."""
        return self.state in (State.NEW, State.DELIVERING)

    @property
    def places(self) -> int:
        """How many requests may be in flight: one until the first 2xx and again after a failure."""
        return self._limits.concurrency if self.state is State.DELIVERING else 1

    def ready_at(self, now: float, in_flight: int) -> float:
        """When the next request may leave: ``now`` or earlier if at once, infinity if one in flight must end first."""
        if in_flight >= self.places:
            return math.inf
        self._refill(now)
        missing = 1.0 - self._tokens
        token_at = now if missing <= 1e-9 else now + missing / self._limits.rate
        return max(token_at, self.paused_until)

    def begin(self, now: float) -> None:
        """A request leaves: it takes a token."""
        self._refill(now)
        self._tokens -= 1.0

    def succeeded(self, started_at: float) -> None:
        """A request begun at ``started_at`` was answered with 2xx."""
        self.confirmed = True
        if started_at <= self._failed_at:
            return  # older than the failure that we are pausing for
        self.state = State.DELIVERING
        self.reason = ""
        self._only_by_hand = False
        self._failures = 0
        self.paused_until = self._pause_ends_at = -math.inf

    def answered(self, now: float, started_at: float) -> None:
        """Tinybird refused the rows of a request begun at ``started_at``, so it is there: what failed or paused ends.

        A hold does: what it waits for may be these very rows.
        """
        self._judged_at = max(self._judged_at, started_at)
        if started_at > self._failed_at:
            self.probe_now(now)
            if self.state in (State.FAILING, State.THROTTLED):
                self.state, self.reason = State.NEW, ""

    def failed(self, now: float, started_at: float, reason: str) -> None:
        """A request failed and may succeed unchanged: back off, twice as long each time in a row.

        Several in flight that fail together count once, and shorten no pause that one of them has brought.
        """
        if self._pauses_already(started_at):
            return
        if self._only_by_hand:
            self.hold(now, reason, probe=False)  # whoever asked for one attempt did not ask for more
            return
        ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        if self._deadline is not None:
            ceiling = min(ceiling, DRAIN_BACKOFF_MAX_S)
        self._pause(State.FAILING, now, self._jitter(ceiling), reason)

    def throttled(self, now: float, started_at: float, retry_after_s: float | None, reason: str) -> None:
        """Tinybird asked for a pause of ``retry_after_s`` (within our own bounds), or did not say how long."""
        already = self._pauses_already(started_at)
        if already and self.state is State.HELD:
            return
        if self._only_by_hand:
            self.failed(now, started_at, reason)
            return
        if retry_after_s is None:
            self.failed(now, started_at, reason)
            self.state = State.THROTTLED
            return
        delay_s = min(max(retry_after_s, RETRY_AFTER_LEAST_S), RETRY_AFTER_MAX_S)
        if already:
            delay_s = max(delay_s, self._pause_ends_at - now)
        self._pause(State.THROTTLED, now, delay_s, reason)

    def hold(self, now: float, reason: str, *, probe: bool = True) -> None:
        """Wait for a person; the next probe is ``PROBE_INTERVAL_S`` away.

        ``probe`` False: only ``probe_now`` brings another attempt, because each might double rows.
        """
        unprobed = self.state is State.HELD and math.isinf(self._pause_ends_at)
        self._only_by_hand = unprobed or not probe
        self._pause(State.HELD, now, math.inf if self._only_by_hand else PROBE_INTERVAL_S, reason)

    def probe_now(self, now: float) -> None:
        """Something changed (a token, a person's wish): do not wait any longer."""
        self.paused_until = self._pause_ends_at = min(self.paused_until, now)

    def release(self, now: float) -> None:
        """Tinybird has judged rows, so what was held before it was asked is held no more: the next request shows."""
        if self.state is State.HELD and self._judged_at > self._failed_at:
            self.state, self.reason, self._only_by_hand = State.NEW, "", False
            self.probe_now(now)

    def drain(self, now: float, deadline: float) -> None:
        """From now on no pause outlasts ``deadline``; a hold is probed once, at once, and so is what only backs off."""
        self._deadline = deadline
        if self.state in (State.HELD, State.FAILING):
            self.probe_now(now)
        self.paused_until = min(self.paused_until, max(now, deadline - LAST_ATTEMPT_BEFORE_DEADLINE_S))

    def stop_draining(self) -> None:
        """Back to normal service."""
        self._deadline = None
        self.paused_until = self._pause_ends_at

    def _pauses_already(self, started_at: float) -> bool:
        """Whether a request begun at ``started_at`` was in flight when the failure came that we are pausing for."""
        return started_at <= self._failed_at and not self.delivering

    def _pause(self, state: State, now: float, delay_s: float, reason: str) -> None:
        self.state = state
        self.reason = reason
        self._failed_at = now
        until = self._pause_ends_at = now + delay_s
        if self._deadline is not None and until > (last := self._deadline - LAST_ATTEMPT_BEFORE_DEADLINE_S):
            if last > now and not math.isinf(delay_s):
                until = last  # one more attempt with time enough to be answered
            elif until >= self._deadline:
                until = math.inf  # none after the deadline
        self.paused_until = until

    def _refill(self, now: float) -> None:
        if now > self._refilled_at:
            self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._limits.rate)
            self._refilled_at = now
