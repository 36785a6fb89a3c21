"""Health: from facts to sentences that a tired person understands. Pure; ages and waits are seconds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tinybird_proxy.pacing import State

# Rows that wait for so many flush intervals while nothing was delivered are told of, wherever anybody asks.
STUCK_INTERVALS = 10
STUCK_AT_LEAST_S = 10.0


class Cause(StrEnum):
    """Why a destination does not deliver: the metrics' label."""

    HELD = "held"  # waits for a person
    REFUSED = "refused"  # Tinybird never accepted its token or data source; its clients hear it
    REJECTED = "rejected"  # Tinybird rejects batches, and the bad rows are being looked for
    THROTTLED = "throttled"  # waits as long as Tinybird asked
    UNREACHABLE = "unreachable"  # no answer at all
    FAILING = "failing"  # answers that are errors
    SLOW = "slow"  # no answer yet
    STALLED = "stalled"  # nothing is under way although it could be


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
    """How one destination stands right now. ``status``: of the last answer that was no success, None for none.

    ``delivered_ago_s``: since a batch was settled; None if none ever was. ``stuck_after_s``: see ``stuck_after``.
    """

    data_source: str
    params: dict[str, str]
    token_hash: str | None
    state: State
    reason: str
    status: int | None
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
    delivered_ago_s: float | None
    stuck_after_s: float
    refusing: int | None
    splitting: SplitFacts | None
    ceiling_bytes: int | None
    letters_rows: int
    ledger: dict[str, int | dict[str, int]]


_LOOK = "`tinybird-proxy dead-letters ls` shows them"
_RESTART = "That takes a restart, which loses what is waiting"
_KEPT = "nothing is lost as long as the proxy runs"


def stuck_after(flush_interval_s: float) -> float:
    """Seconds without a delivery after which waiting rows are told of."""
    return max(STUCK_AT_LEAST_S, STUCK_INTERVALS * flush_interval_s)


def cause(facts: DestinationFacts) -> Cause | None:
    """Why this destination does not deliver; None while rows flow, none are waiting long, or it was never taken."""
    if was_never_taken(facts):
        return None
    if facts.state is State.HELD:
        return Cause.HELD if facts.refusing is None else Cause.REFUSED
    if facts.state is State.THROTTLED:
        return Cause.THROTTLED
    if facts.state is State.FAILING:
        return Cause.UNREACHABLE if facts.status is None else Cause.FAILING
    if not is_stuck(facts):
        return None
    if facts.splitting is not None:
        return Cause.REJECTED
    return Cause.SLOW if facts.in_flight else Cause.STALLED


def worst(destinations: Sequence[DestinationFacts]) -> DestinationFacts | None:
    """The destination with the most rows among those that do not deliver."""
    bad = [facts for facts in destinations if facts.buffered_rows and cause(facts) is not None]
    return max(bad, key=lambda facts: facts.buffered_rows, default=None)


def is_stuck(facts: DestinationFacts) -> bool:
    """Whether rows have been waiting for long and none was delivered in that time."""
    limit_s = facts.stuck_after_s
    waits = facts.oldest_age_s is not None and facts.oldest_age_s >= limit_s and facts.buffered_rows > 0
    return waits and (facts.delivered_ago_s is None or facts.delivered_ago_s >= limit_s)


def was_never_taken(facts: DestinationFacts) -> bool:
    """A name that somebody tried, and of which nothing is left to tell."""
    return (
        not facts.confirmed
        and facts.refusing is None
        and not facts.buffered_rows
        and not facts.letters_rows
        and not any(facts.ledger.values())
        and not facts.in_flight
    )


def sentence(facts: DestinationFacts) -> str:
    """What this destination is doing and why, whether anything is lost, what follows by itself, and what is to do."""
    return " ".join(part for part in (_doing(facts), *_besides(facts)) if part)


def overall(
    destinations: Sequence[DestinationFacts],
    *,
    phase: str,
    utilisation: float,
    letters_rows: int = 0,
    lost_rows: int = 0,
    imbalance: int = 0,
) -> str:
    """How the whole proxy is: one sentence, or one for each thing that is wrong.

    ``letters_rows``: in dead letters, of forgotten destinations too. ``lost_rows``: since the start.
    ``imbalance``: rows by which the ledger is off.
    """
    said = [] if phase == "running" else [_ending(destinations, phase)]
    causes = [(why, facts) for facts in destinations if (why := cause(facts)) is not None]
    if stuck := [(why, facts) for why, facts in causes if why is not Cause.REFUSED]:
        said.append(_not_delivering(stuck))
    if refused := [facts for why, facts in causes if why is Cause.REFUSED]:
        whose = "its" if len(refused) == 1 else "their"
        rows = sum(facts.buffered_rows for facts in refused)
        kept = f", and {_are(rows, 'row')} kept that came before" if rows else ""
        said.append(f"Tinybird refuses {_named(refused)}: {whose} clients are told{kept}.")
    if searching := [facts for facts in destinations if facts.splitting is not None and cause(facts) is None]:
        said.append(f"Tinybird rejected rows of {_named(searching)}: the bad ones are being looked for.")
    if utilisation >= 1.0:
        said.append(
            "The buffer is full (BUFFER_SIZE, BUFFER_BYTES): clients get 503 or 429 and are asked to come back."
        )
    if letters_rows:
        said.append(f"{_are(letters_rows, 'row')} in dead letters, in memory only: {_LOOK}.")
    if lost_rows:
        said.append(f"{count(lost_rows, 'row')} {'was' if lost_rows == 1 else 'were'} lost: the log says when and why.")
    if imbalance:
        said.append(f"The ledger is off by {count(imbalance, 'row')}: a fault of the proxy, please report it.")
    return " ".join(said) or "All is well."


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


# The whole proxy.


def _ending(destinations: Sequence[DestinationFacts], phase: str) -> str:
    rows = sum(facts.buffered_rows for facts in destinations)
    return f"The proxy is {phase}: {_are(rows, 'row')} not delivered yet."


def _not_delivering(stuck: Sequence[tuple[Cause, DestinationFacts]]) -> str:
    every = [facts for _, facts in stuck]
    rows = sum(facts.buffered_rows for facts in every)
    kept = f"{_are(rows, 'row')} kept" if rows else "no rows are waiting"
    text = f"{_are(len(every), 'destination')} not delivering ({_names(every)}): {kept}."
    to_act = [facts for why, facts in stuck if why is Cause.HELD]
    if to_act:
        whose = "all of them" if len(to_act) == len(every) > 1 else _names(to_act)
        return f"{text} Somebody has to act on {whose}: `/status` says how."
    if any(why is Cause.STALLED for why, _ in stuck):
        return text
    return f"{text} The proxy tries again by itself."


def _named(some: Sequence[DestinationFacts]) -> str:
    return f"{count(len(some), 'destination')} ({_names(some)})"


def _names(some: Sequence[DestinationFacts]) -> str:
    names = sorted({facts.data_source for facts in some})
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _are(number: int, noun: str) -> str:
    return f"{count(number, noun)} {'is' if number == 1 else 'are'}"


# One destination.


def _doing(facts: DestinationFacts) -> str:
    if facts.state is State.HELD and facts.refusing is not None:
        return _refusing(facts, facts.refusing)
    if facts.state not in (State.NEW, State.DELIVERING):
        return _in_trouble(facts)
    return _flowing(facts) if facts.splitting is None else _splitting(facts, facts.splitting)


def _refusing(facts: DestinationFacts, status: int) -> str:
    kept = ""
    if facts.buffered_rows:
        kept = f" {_rows_waiting(facts)}: taken before, kept for an hour, and dead letters then."
    return (
        f"Requests are refused with {status}{_since(facts)}: {facts.reason}. Clients are told and nothing of theirs is"
        f" taken, so nothing is lost; one request a minute is let through to try.{kept} To do: {_mend_access(facts)}."
    )


def _in_trouble(facts: DestinationFacts) -> str:
    what = "Held" if facts.state is State.HELD else "Not delivering"
    kept = f"; {_KEPT}" if facts.buffered_rows else ""
    return (
        f"{what}{_since(facts)}: {facts.reason}. {_rows_waiting(facts)}{kept}. {_next_attempt(facts)} {_to_do(facts)}."
    )


def _next_attempt(facts: DestinationFacts) -> str:
    if facts.in_flight:
        return "An attempt is under way."
    if facts.next_attempt_in_s is None:
        if facts.state is State.HELD:
            why = ", since it might double the rows" if facts.reason.startswith("TINYBIRD_URL does not") else ""
            return f"No attempt is made by itself{why}; `tinybird-proxy probe` makes one."
        return "No further attempt is made before the proxy ends."
    if facts.buffered_rows == 0:
        return "The next rows are the next attempt."
    after = ", then each minute" if facts.state is State.HELD else ""
    return f"The next attempt is made by itself in {duration(facts.next_attempt_in_s)}{after}."


def _to_do(facts: DestinationFacts) -> str:
    if facts.state is State.HELD:
        return f"To do: {_mend(facts)}"
    if facts.reason.startswith("an error inside the proxy"):
        return "To do: it is a fault of the proxy, please report it with what the log says"
    if facts.status == 429:
        return (
            f"Nothing to do, unless it goes on: then something else writes to {facts.data_source} too, or"
            " UPSTREAM_RATE is more than your plan allows"
        )
    then = "check TINYBIRD_URL and the network" if facts.status is None else "ask Tinybird"
    return f"Nothing to do, unless it lasts: then {then}"


def _mend(facts: DestinationFacts) -> str:
    """What a person has to do about a hold."""
    if facts.reason.startswith("the file of TINYBIRD_TOKEN_FILE"):
        return "put the token into that file, and it is tried at once"
    if facts.status == 508:
        return f"TINYBIRD_URL must name Tinybird, not this proxy. {_RESTART}"
    if facts.reason.startswith("TINYBIRD_URL"):
        return f"TINYBIRD_URL must be the address of Tinybird's API itself. {_RESTART}"
    if facts.status in (401, 403, 404):
        return _mend_access(facts)
    if facts.status == 400:
        return f"compare what clients send to {facts.data_source}, and its parameters, with what Tinybird says"
    return "see what Tinybird says; `tinybird-proxy probe` tries again at once"


def _mend_access(facts: DestinationFacts) -> str:
    """What a person has to do about a 401, 403 or 404."""
    name, status = facts.data_source, facts.refusing or facts.status
    if facts.token_hash is not None:
        return _mend_clients_access(facts, name, status)
    if status == 404:
        return (
            f"create {name} in the workspace of TINYBIRD_TOKEN, mend the name that clients send, or set TINYBIRD_URL to"
            " the token's region"
        )
    append = "" if status == 401 else f"let TINYBIRD_TOKEN append to {name}, or "
    return (
        f"{append}put a token of TINYBIRD_URL's region that may append to {name} into the file of TINYBIRD_TOKEN_FILE,"
        " and it is tried at once. TINYBIRD_TOKEN itself changes only with a restart, which loses what is waiting"
    )


def _mend_clients_access(facts: DestinationFacts, name: str, status: int | None) -> str:
    token = f"the client's token (SHA-256 {facts.token_hash}…)"
    if status == 404:
        return (
            f"create {name} in the workspace of {token}, mend the name that the client sends, or set TINYBIRD_URL to"
            " the token's region"
        )
    if facts.buffered_rows:
        return f"let {token} append to {name}; what waits is sent with that one only"
    return f"let {token} append to {name}, or give the client another one of TINYBIRD_URL's region"


def _splitting(facts: DestinationFacts, split: SplitFacts) -> str:
    return (
        f"Looking for the bad rows in {_searched(split)}. {_rows_waiting(facts)}; {_KEPT}. Good rows are delivered, bad"
        " ones become dead letters; other batches go on. Nothing to do until then."
    )


def _searched(split: SplitFacts) -> str:
    """A batch that is being searched, and how far that is."""
    behind = "; 1 more rejected batch waits for its turn" if split.waiting == 1 else ""
    if split.waiting > 1:
        behind = f"; {split.waiting:,} more rejected batches wait for their turn"
    return (
        f"a batch of {count(split.rows, 'row')}: {split.reason}. {count(split.requests, 'request')} so far,"
        f" {count(split.rows_left, 'row')} undecided{behind}"
    )


def _flowing(facts: DestinationFacts) -> str:
    waiting = _rows_waiting(facts)
    if facts.buffered_rows == 0:
        return "Nothing is waiting."
    requests = f"{_are(facts.in_flight, 'request')} in flight"
    if is_stuck(facts):
        return _stuck(facts, waiting, requests)
    if facts.in_flight >= facts.places:
        if facts.state is State.NEW:
            return f"{waiting}; {requests}, and Tinybird's first answer decides how it goes on."
        return f"{waiting}; {requests}, as many as may be: Tinybird's answers set the pace."
    if facts.batches_waiting:
        return f"{waiting}; the limit on requests a second (UPSTREAM_RATE) sets the pace."
    return f"{waiting}; {requests if facts.in_flight else 'the flush interval decides when they leave'}."


def _stuck(facts: DestinationFacts, waiting: str, requests: str) -> str:
    since = f"for {duration(facts.delivered_ago_s)}" if facts.delivered_ago_s is not None else "so far"
    nothing = f"{waiting}, and nothing was delivered {since}"
    if facts.in_flight:
        return (
            f"{nothing}: {requests}, and Tinybird has not answered yet; {_KEPT}. After UPSTREAM_TIMEOUT the proxy tries"
            " again by itself. Nothing to do, unless it lasts: then ask Tinybird."
        )
    return (
        f"{nothing}: no request is in flight; {_KEPT}. To do: if UPSTREAM_RATE is not as low as that, it is a fault of"
        " the proxy: please report it."
    )


def _besides(facts: DestinationFacts) -> Iterator[str]:
    """What else is to tell of it."""
    if facts.state not in (State.NEW, State.DELIVERING):
        if facts.splitting is not None:
            yield f"When it goes on, the bad rows are looked for in {_searched(facts.splitting)}."
        if facts.state is not State.HELD and facts.refusing is not None:
            yield f"Until then requests are refused with {facts.refusing}, which Tinybird said before."
    if facts.ceiling_bytes is not None:
        yield f"Requests are kept to {count(facts.ceiling_bytes, 'byte')}, because Tinybird refused larger ones (413)."
    if so_far := list(_so_far(facts)):
        yield f"Since the start: {'; '.join(so_far)}."
    if facts.letters_rows:
        yield f"{_are(facts.letters_rows, 'row')} in dead letters, in memory only: {_LOOK}."


def _so_far(facts: DestinationFacts) -> Iterator[str]:
    ledger = facts.ledger
    if isinstance(rows := ledger.get("quarantined"), int) and rows:
        yield f"{count(rows, 'row')} in Tinybird's quarantine ({facts.data_source}_quarantine)"
    if isinstance(rows := ledger.get("unverified"), int) and rows:
        yield f"{count(rows, 'row')} taken without Tinybird saying that they are written (unverified)"
    if isinstance(rows := ledger.get("ambiguous"), int) and rows:
        yield f"{count(rows, 'row')} that may have arrived more than once (ambiguous)"


def _since(facts: DestinationFacts) -> str:
    return "" if facts.not_delivering_for_s is None else f" for {duration(facts.not_delivering_for_s)}"


def _rows_waiting(facts: DestinationFacts) -> str:
    if facts.buffered_rows == 0:
        return "No rows are waiting"
    oldest = f", the oldest for {duration(facts.oldest_age_s)}" if facts.oldest_age_s is not None else ""
    return f"{_are(facts.buffered_rows, 'row')} waiting{oldest}"
