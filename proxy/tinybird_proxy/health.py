"""Health: from facts to sentences that a tired person understands. Pure; ages and waits are seconds."""

from dataclasses import dataclass

from tinybird_proxy.pacing import State


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
    ledger: dict[str, int | dict[str, int]]


_WHAT_TO_DO = {
    State.HELD: "Nothing is lost and nothing is sent until this is put right; the proxy tries again by itself.",
    State.FAILING: "Nothing is lost; the proxy goes on trying.",
    State.THROTTLED: "Nothing is lost; the proxy waits as long as Tinybird asked.",
}


def sentence(facts: DestinationFacts) -> str:
    """What this destination is doing, what limits it, and what follows."""
    waiting = _rows_waiting(facts)
    if facts.state in (State.NEW, State.DELIVERING):
        if facts.refusing is not None:
            return f"Requests are refused with {facts.refusing}: {facts.reason}. One request a minute is tried again."
        if facts.buffered_rows == 0:
            return "Nothing is waiting."
        if facts.in_flight >= facts.places:
            answer = "the first answer" if facts.state is State.NEW else "answers"
            return f"{waiting}; {facts.in_flight} requests are in flight, so Tinybird's {answer} set the pace."
        if facts.batches_waiting:
            return f"{waiting}; the limit on requests a second (UPSTREAM_RATE) sets the pace."
        return f"{waiting} for the flush interval."
    what = {State.HELD: "Held", State.FAILING: "Not delivering", State.THROTTLED: "Throttled by Tinybird"}[facts.state]
    since = f" for {duration(facts.not_delivering_for_s)}" if facts.not_delivering_for_s is not None else ""
    upcoming = (
        f" Next attempt in {duration(facts.next_attempt_in_s)}."
        if facts.next_attempt_in_s is not None
        else " An attempt is in flight."
    )
    return f"{what}{since}: {facts.reason}. {waiting}. {_WHAT_TO_DO[facts.state]}{upcoming}"


def overall(destinations: list[DestinationFacts], *, phase: str, utilisation: float) -> str:
    """One sentence for the whole proxy."""
    if phase != "running":
        rows = sum(facts.buffered_rows for facts in destinations)
        return f"The proxy is {phase}; {count(rows, 'row')} not yet delivered."
    stuck = [f for f in destinations if f.state not in (State.NEW, State.DELIVERING) and f.buffered_rows]
    if stuck:
        names = ", ".join(sorted({f.data_source for f in stuck})[:5]) + (", …" if len(stuck) > 5 else "")
        rows = sum(facts.buffered_rows for facts in stuck)
        return f"{count(len(stuck), 'destination')} not delivering ({names}): {count(rows, 'row')} kept, none lost."
    if utilisation >= 1.0:
        return "The buffer is full: clients get 503 and are asked to come back."
    return "All is well."


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


def _rows_waiting(facts: DestinationFacts) -> str:
    if facts.buffered_rows == 0:
        return "No rows wait"
    verb = "waits" if facts.buffered_rows == 1 else "wait"
    oldest = f", the oldest for {duration(facts.oldest_age_s)}" if facts.oldest_age_s is not None else ""
    return f"{count(facts.buffered_rows, 'row')} {verb}{oldest}"
