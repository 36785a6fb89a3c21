"""Health: from facts to sentences that a tired person understands. Pure; ages and waits are seconds."""

from dataclasses import dataclass

from tinybird_proxy.pacing import State


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """A batch that Tinybird refused and whose bad rows are being looked for. ``waiting``: others behind it."""

    reason: str
    rows: int
    rows_left: int
    requests: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationFacts:
    """How one destination stands right now."""

    data_source: str
    params: dict[str, str]
    token_hash: str | None
    state: State
    reason: str
    confirmed: bool
    buffered_rows: int
    buffered_bytes: int
    held_bytes: int
    oldest_age_s: float | None
    in_flight: int
    places: int
    batches_waiting: int
    next_attempt_in_s: float | None
    not_delivering_for_s: float | None
    refusing: int | None
    splitting: SplitFacts | None
    ceiling_bytes: int | None
    letters_rows: int
    ledger: dict[str, int | dict[str, int]]


_WHAT = {
    State.HELD: "Held",
    State.FAILING: "Not delivering",
    State.THROTTLED: "Throttled by Tinybird",
}
_WHAT_FOLLOWS = {
    State.HELD: "Nothing is lost, but somebody has to put this right.",
    State.FAILING: "Nothing is lost; the proxy goes on trying.",
    State.THROTTLED: "Nothing is lost; the proxy tries again when Tinybird is ready for it.",
}


def sentence(facts: DestinationFacts) -> str:
    """What this destination is doing, what limits it, and what follows."""
    if facts.refusing is not None:
        kept = f" {_rows_waiting(facts)}; nothing is lost." if facts.buffered_rows else ""
        return f"Requests are refused with {facts.refusing}: {facts.reason}. One a minute is let through to try.{kept}"
    if facts.state in (State.NEW, State.DELIVERING):
        return _flowing(facts)
    since = f" for {duration(facts.not_delivering_for_s)}" if facts.not_delivering_for_s is not None else ""
    follows = f"{_WHAT_FOLLOWS[facts.state]} {_next_attempt(facts)}"
    return f"{_WHAT[facts.state]}{since}: {facts.reason}. {_rows_waiting(facts)}. {follows}"


def overall(destinations: list[DestinationFacts], *, phase: str, utilisation: float) -> str:
    """One sentence for the whole proxy."""
    if phase != "running":
        rows = sum(facts.buffered_rows for facts in destinations)
        return f"The proxy is {phase}; {count(rows, 'row')} not yet delivered."
    full = "The buffer is full: clients get 503 or 429 and are asked to come back." if utilisation >= 1.0 else ""
    stuck = [f for f in destinations if f.state not in (State.NEW, State.DELIVERING) and f.buffered_rows]
    if stuck:
        names = sorted({f.data_source for f in stuck})
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        rows = sum(facts.buffered_rows for facts in stuck)
        return f"{count(len(stuck), 'destination')} not delivering ({some}): {count(rows, 'row')} kept. {full}".rstrip()
    return full or "All is well."


def count(number: int, noun: str) -> str:
    """``1 row``, ``12,345 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``5 min``, ``3 h``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _flowing(facts: DestinationFacts) -> str:
    waiting = _rows_waiting(facts)
    if facts.buffered_rows == 0:
        return "Nothing is waiting."
    requests = f"{count(facts.in_flight, 'request')} {'is' if facts.in_flight == 1 else 'are'} in flight"
    if facts.in_flight >= facts.places:
        if facts.state is State.NEW:
            return f"{waiting}; {requests}, and Tinybird's first answer decides how it goes on."
        return f"{waiting}; {requests}, as many as may be: Tinybird's answers set the pace."
    if facts.batches_waiting:
        return f"{waiting}; the limit on requests a second (UPSTREAM_RATE) sets the pace."
    return f"{waiting}; {requests if facts.in_flight else 'the flush interval decides when they leave'}."


def _next_attempt(facts: DestinationFacts) -> str:
    if facts.in_flight:
        return "An attempt is in flight."
    if facts.next_attempt_in_s is None:
        return "No further attempt is planned."
    if facts.buffered_rows == 0:
        return "The next rows are the next attempt."
    return f"Next attempt in {duration(facts.next_attempt_in_s)}."


def _rows_waiting(facts: DestinationFacts) -> str:
    if facts.buffered_rows == 0:
        return "No rows are waiting"
    verb = "is" if facts.buffered_rows == 1 else "are"
    oldest = f", the oldest for {duration(facts.oldest_age_s)}" if facts.oldest_age_s is not None else ""
    return f"{count(facts.buffered_rows, 'row')} {verb} waiting{oldest}"
