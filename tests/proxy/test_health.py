"""The sentences about a proxy's health, word for word: would a tired person at three in the morning understand them?"""

import re
from dataclasses import replace

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy import health
from tinybird_proxy.cli.main import main
from tinybird_proxy.health import (
    Cause,
    DestinationFacts,
    SplitFacts,
    cause,
    count,
    duration,
    is_stuck,
    overall,
    sentence,
    stuck_after,
    was_never_taken,
    worst,
)
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import State

DOWN = "no connection to api.tinybird.co:443: connection refused"
ERROR = "Tinybird answered with an error (500: oops)"
SLOW = "Tinybird asks us to slow down (429: Too many requests)"
AWAY = "Tinybird is unavailable for now (503: try later)"
GONE = "Tinybird does not know this data source, or the token belongs to another region (404: clicks not found)"
DENIED = "Tinybird does not accept the token for this data source (403: invalid token)"
INVALID = "Tinybird says the request is not valid (400: no column 'x')"
STRANGE = "TINYBIRD_URL does not answer like Tinybird: no readable counts (200: It works!)"
NO_FILE = "the file of TINYBIRD_TOKEN_FILE is not there yet"

FLOWING = DestinationFacts(
    data_source="clicks",
    params={},
    token_hash=None,
    state=State.DELIVERING,
    reason="",
    status=None,
    confirmed=True,
    buffered_rows=0,
    buffered_bytes=0,
    held_bytes=0,
    oldest_age_s=None,
    in_flight=0,
    places=16,
    batches_waiting=0,
    next_attempt_in_s=None,
    not_delivering_for_s=None,
    delivered_ago_s=0.3,
    stuck_after_s=10.0,
    refusing=None,
    splitting=None,
    ceiling_bytes=None,
    letters_rows=0,
    ledger=Ledger().as_dict(0, 0),
)
BUSY = replace(FLOWING, buffered_rows=1200, oldest_age_s=0.42)
NEW = replace(BUSY, state=State.NEW, confirmed=False, places=1, in_flight=1, delivered_ago_s=None)
STUCK = replace(BUSY, oldest_age_s=15.0, delivered_ago_s=12.0)
FAILING = replace(
    BUSY,
    state=State.FAILING,
    reason=DOWN,
    places=1,
    oldest_age_s=754.0,
    not_delivering_for_s=750.0,
    delivered_ago_s=760.0,
    next_attempt_in_s=12.4,
)
THROTTLED = replace(FAILING, state=State.THROTTLED, reason=SLOW, status=429, not_delivering_for_s=4.0, oldest_age_s=5.0)
HELD = replace(
    FAILING, state=State.HELD, reason=GONE, status=404, not_delivering_for_s=10_000.0, next_attempt_in_s=48.0
)
REFUSING = replace(
    HELD,
    reason=DENIED,
    status=403,
    refusing=403,
    token_hash="ab12cd34",
    buffered_rows=0,
    oldest_age_s=None,
    confirmed=False,
    delivered_ago_s=None,
)
SEARCHED = SplitFacts(reason=INVALID, rows=1000, rows_left=250, requests=7, waiting=0)
NEVER = replace(FLOWING, state=State.HELD, reason=GONE, status=404, confirmed=False, delivered_ago_s=None)

KEPT = "1,200 rows are waiting, the oldest for 13 min; nothing is lost as long as the proxy runs."
LOOK = "in dead letters, in memory only: `tinybird-proxy dead-letters ls` shows them."
RESTART = "That takes a restart, which loses what is waiting."


# What is wrong.


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        pytest.param(FLOWING, None, id="idle"),
        pytest.param(BUSY, None, id="busy"),
        pytest.param(NEW, None, id="new"),
        pytest.param(FAILING, Cause.UNREACHABLE, id="no answer"),
        pytest.param(replace(FAILING, status=500), Cause.FAILING, id="an error"),
        pytest.param(replace(FAILING, buffered_rows=0), Cause.UNREACHABLE, id="no answer and no rows"),
        pytest.param(THROTTLED, Cause.THROTTLED, id="throttled"),
        pytest.param(replace(THROTTLED, refusing=403), Cause.THROTTLED, id="throttled while clients are refused"),
        pytest.param(HELD, Cause.HELD, id="held"),
        pytest.param(replace(HELD, buffered_rows=0), Cause.HELD, id="held without rows"),
        pytest.param(REFUSING, Cause.REFUSED, id="refused"),
        pytest.param(replace(HELD, splitting=SEARCHED), Cause.HELD, id="held while rows are looked for"),
        pytest.param(NEVER, None, id="never taken"),
        pytest.param(replace(NEVER, letters_rows=1), Cause.HELD, id="nothing but dead letters"),
        pytest.param(STUCK, Cause.STALLED, id="stalled"),
        pytest.param(replace(STUCK, in_flight=1), Cause.SLOW, id="slow"),
        pytest.param(replace(STUCK, in_flight=1, splitting=SEARCHED), Cause.REJECTED, id="nothing but bad rows"),
        pytest.param(replace(BUSY, splitting=SEARCHED), None, id="rows are looked for and others flow"),
    ],
)
def test_why_a_destination_does_not_deliver(facts: DestinationFacts, why: Cause | None) -> None:
    assert cause(facts) is why


@pytest.mark.parametrize(
    ("rows", "age_s", "delivered_ago_s", "stuck"),
    [
        pytest.param(1, 10.0, 10.0, True, id="just"),
        pytest.param(1, 10.0, None, True, id="never delivered"),
        pytest.param(1, 9.9, 100.0, False, id="not waiting long yet"),
        pytest.param(1, 100.0, 9.9, False, id="delivered not long ago"),
        pytest.param(0, 100.0, 100.0, False, id="only a first contact is here"),
        pytest.param(1, None, 100.0, False, id="no age"),
    ],
)
def test_rows_are_stuck_when_they_wait_for_long_and_nothing_was_delivered_meanwhile(
    rows: int, age_s: float | None, delivered_ago_s: float | None, stuck: bool
) -> None:
    facts = replace(FLOWING, buffered_rows=rows, oldest_age_s=age_s, delivered_ago_s=delivered_ago_s)
    assert is_stuck(facts) is stuck


@pytest.mark.parametrize(("interval_s", "after_s"), [(0.02, 10.0), (1.0, 10.0), (1.5, 15.0), (60.0, 600.0)])
def test_long_is_ten_flush_intervals_and_at_least_ten_seconds(interval_s: float, after_s: float) -> None:
    assert stuck_after(interval_s) == after_s


@pytest.mark.parametrize(
    ("destinations", "expected"),
    [
        pytest.param([], None, id="none"),
        pytest.param([FLOWING, BUSY, NEW], None, id="all flow"),
        pytest.param([replace(HELD, buffered_rows=0)], None, id="no rows wait"),
        pytest.param([BUSY, replace(HELD, buffered_rows=3), replace(FAILING, buffered_rows=5)], "failing", id="two"),
        pytest.param([replace(BUSY, buffered_rows=9999), replace(HELD, buffered_rows=1)], "held", id="not the busiest"),
        pytest.param([replace(REFUSING, buffered_rows=2)], "held", id="refused with rows"),
    ],
)
def test_the_worst_has_the_most_rows_of_those_that_do_not_deliver(
    destinations: list[DestinationFacts], expected: str | None
) -> None:
    found = worst(destinations)
    assert (None if found is None else found.state) == expected


@pytest.mark.parametrize(
    ("facts", "never"),
    [
        pytest.param(NEVER, True, id="a name that was tried"),
        pytest.param(FLOWING, False, id="confirmed"),
        pytest.param(replace(NEVER, refusing=404), False, id="refused now"),
        pytest.param(replace(NEVER, buffered_rows=1), False, id="rows"),
        pytest.param(replace(NEVER, letters_rows=1), False, id="dead letters"),
        pytest.param(replace(NEVER, ledger=Ledger(accepted=1).as_dict(0, 0)), False, id="rows once"),
        pytest.param(replace(NEVER, in_flight=1), False, id="being tried"),
    ],
)
def test_a_name_of_which_nothing_is_left_was_never_taken(facts: DestinationFacts, never: bool) -> None:
    assert was_never_taken(facts) is never


# One destination.


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        pytest.param(FLOWING, "Nothing is waiting.", id="idle"),
        pytest.param(replace(FLOWING, state=State.NEW, places=1), "Nothing is waiting.", id="new and idle"),
        pytest.param(
            BUSY,
            "1,200 rows are waiting, the oldest for 0.4 s; the flush interval decides when they leave.",
            id="gathering",
        ),
        pytest.param(
            replace(BUSY, buffered_rows=1),
            "1 row is waiting, the oldest for 0.4 s; the flush interval decides when they leave.",
            id="gathering one",
        ),
        pytest.param(
            replace(BUSY, in_flight=1),
            "1,200 rows are waiting, the oldest for 0.4 s; 1 request is in flight.",
            id="a request under way",
        ),
        pytest.param(
            replace(BUSY, in_flight=16),
            "1,200 rows are waiting, the oldest for 0.4 s; 16 requests are in flight, as many as may be: "
            "Tinybird's answers set the pace.",
            id="every place taken",
        ),
        pytest.param(
            NEW,
            "1,200 rows are waiting, the oldest for 0.4 s; 1 request is in flight, and Tinybird's first answer decides "
            "how it goes on.",
            id="before the first answer",
        ),
        pytest.param(
            replace(BUSY, in_flight=3, batches_waiting=2),
            "1,200 rows are waiting, the oldest for 0.4 s; "
            "the limit on requests a second (UPSTREAM_RATE) sets the pace.",
            id="the rate",
        ),
        pytest.param(
            replace(STUCK, in_flight=1),
            "1,200 rows are waiting, the oldest for 15 s, and nothing was delivered for 12 s: 1 request is in flight, "
            "and Tinybird has not answered yet; nothing is lost as long as the proxy runs. After UPSTREAM_TIMEOUT the "
            "proxy tries again by itself. Nothing to do, unless it lasts: then ask Tinybird.",
            id="slow",
        ),
        pytest.param(
            replace(STUCK, in_flight=2, delivered_ago_s=None),
            "1,200 rows are waiting, the oldest for 15 s, and nothing was delivered so far: 2 requests are in flight, "
            "and Tinybird has not answered yet; nothing is lost as long as the proxy runs. After UPSTREAM_TIMEOUT the "
            "proxy tries again by itself. Nothing to do, unless it lasts: then ask Tinybird.",
            id="slow from the start",
        ),
        pytest.param(
            STUCK,
            "1,200 rows are waiting, the oldest for 15 s, and nothing was delivered for 12 s: no request is in flight; "
            "nothing is lost as long as the proxy runs. To do: if UPSTREAM_RATE is not as low as that, it is a fault "
            "of the proxy: please report it.",
            id="stalled, or a low rate",
        ),
        pytest.param(
            FAILING,
            f"Not delivering for 12 min: {DOWN}. {KEPT} The next attempt is made by itself in 12 s. Nothing to do, "
            "unless it lasts: then check TINYBIRD_URL and the network.",
            id="unreachable",
        ),
        pytest.param(
            replace(FAILING, reason=ERROR, status=500, ledger=Ledger(ambiguous=1200).as_dict(0, 0)),
            f"Not delivering for 12 min: {ERROR}. {KEPT} The next attempt is made by itself in 12 s. Nothing to do, "
            "unless it lasts: then ask Tinybird. Since the start: 1,200 rows that may have arrived more than once "
            "(ambiguous).",
            id="errors",
        ),
        pytest.param(
            replace(FAILING, in_flight=1, next_attempt_in_s=None),
            f"Not delivering for 12 min: {DOWN}. {KEPT} An attempt is under way. Nothing to do, unless it lasts: then "
            "check TINYBIRD_URL and the network.",
            id="unreachable and trying",
        ),
        pytest.param(
            replace(FAILING, next_attempt_in_s=None),
            f"Not delivering for 12 min: {DOWN}. {KEPT} No further attempt is made before the proxy ends. Nothing to "
            "do, unless it lasts: then check TINYBIRD_URL and the network.",
            id="unreachable at the end of a drain",
        ),
        pytest.param(
            replace(FAILING, buffered_rows=0, oldest_age_s=None, next_attempt_in_s=0.0),
            f"Not delivering for 12 min: {DOWN}. No rows are waiting. The next rows are the next attempt. Nothing to "
            "do, unless it lasts: then check TINYBIRD_URL and the network.",
            id="unreachable with nothing to send",
        ),
        pytest.param(
            replace(FAILING, reason="an error inside the proxy (KeyError)", status=500),
            f"Not delivering for 12 min: an error inside the proxy (KeyError). {KEPT} The next attempt is made by "
            "itself in 12 s. To do: it is a fault of the proxy, please report it with what the log says.",
            id="our own fault",
        ),
        pytest.param(
            THROTTLED,
            f"Not delivering for 4.0 s: {SLOW}. 1,200 rows are waiting, the oldest for 5.0 s; nothing is lost as long "
            "as the proxy runs. The next attempt is made by itself in 12 s. Nothing to do, unless it goes on: then "
            "something else writes to clicks too, or UPSTREAM_RATE is more than your plan allows.",
            id="429",
        ),
        pytest.param(
            replace(THROTTLED, reason=AWAY, status=503),
            f"Not delivering for 4.0 s: {AWAY}. 1,200 rows are waiting, the oldest for 5.0 s; nothing is lost as long "
            "as the proxy runs. The next attempt is made by itself in 12 s. Nothing to do, unless it lasts: then ask "
            "Tinybird.",
            id="503",
        ),
        pytest.param(
            replace(THROTTLED, reason=AWAY, status=503, refusing=403, confirmed=False, splitting=SEARCHED),
            f"Not delivering for 4.0 s: {AWAY}. 1,200 rows are waiting, the oldest for 5.0 s; nothing is lost as long "
            "as the proxy runs. The next attempt is made by itself in 12 s. Nothing to do, unless it lasts: then ask "
            f"Tinybird. When it goes on, the bad rows are looked for in a batch of 1,000 rows: {INVALID}. 7 requests "
            "so far, 250 rows undecided. Until then requests are refused with 403, which Tinybird said before.",
            id="503 on top of other trouble",
        ),
        pytest.param(
            HELD,
            f"Held for 3 h: {GONE}. {KEPT} The next attempt is made by itself in 48 s, then each minute. To do: create "
            "clicks in the workspace of TINYBIRD_TOKEN, mend the name that clients send, or set TINYBIRD_URL to the "
            "token's region.",
            id="404",
        ),
        pytest.param(
            replace(HELD, reason=DENIED, status=403),
            f"Held for 3 h: {DENIED}. {KEPT} The next attempt is made by itself in 48 s, then each minute. To do: let "
            "TINYBIRD_TOKEN append to clicks, or put a token of TINYBIRD_URL's region that may append to clicks into "
            "the file of TINYBIRD_TOKEN_FILE, and it is tried at once. TINYBIRD_TOKEN itself changes only with a "
            "restart, which loses what is waiting.",
            id="403",
        ),
        pytest.param(
            replace(HELD, reason=DENIED, status=403, token_hash="ab12cd34"),
            f"Held for 3 h: {DENIED}. {KEPT} The next attempt is made by itself in 48 s, then each minute. To do: let "
            "the client's token (SHA-256 ab12cd34…) append to clicks; what waits is sent with that one only.",
            id="403 for a client",
        ),
        pytest.param(
            replace(HELD, reason=INVALID, status=400, in_flight=1, next_attempt_in_s=None),
            f"Held for 3 h: {INVALID}. {KEPT} An attempt is under way. To do: compare what clients send to clicks, and "
            "its parameters, with what Tinybird says.",
            id="400",
        ),
        pytest.param(
            replace(HELD, reason=STRANGE, status=None, next_attempt_in_s=None),
            f"Held for 3 h: {STRANGE}. {KEPT} No attempt is made by itself, since it might double the rows; "
            "`tinybird-proxy probe` makes one. To do: TINYBIRD_URL must be the address of Tinybird's API itself. "
            f"{RESTART}",
            id="not Tinybird",
        ),
        pytest.param(
            replace(HELD, reason="the request came back", status=508),
            f"Held for 3 h: the request came back. {KEPT} The next attempt is made by itself in 48 s, then each "
            f"minute. To do: TINYBIRD_URL must name Tinybird, not this proxy. {RESTART}",
            id="a loop",
        ),
        pytest.param(
            replace(HELD, reason=NO_FILE, status=None),
            f"Held for 3 h: {NO_FILE}. {KEPT} The next attempt is made by itself in 48 s, then each minute. To do: put "
            "the token into that file, and it is tried at once.",
            id="no token yet",
        ),
        pytest.param(
            replace(HELD, reason="Tinybird says 418", status=418, next_attempt_in_s=None),
            f"Held for 3 h: Tinybird says 418. {KEPT} No attempt is made by itself; `tinybird-proxy probe` makes one. "
            "To do: see what Tinybird says; `tinybird-proxy probe` tries again at once.",
            id="anything else, at the end of a drain",
        ),
        pytest.param(
            replace(HELD, not_delivering_for_s=None, buffered_rows=0),
            f"Held: {GONE}. No rows are waiting. The next rows are the next attempt. To do: create clicks in the "
            "workspace of TINYBIRD_TOKEN, mend the name that clients send, or set TINYBIRD_URL to the token's region.",
            id="held without rows, since we do not know when",
        ),
        pytest.param(
            REFUSING,
            f"Requests are refused with 403 for 3 h: {DENIED}. Clients are told and nothing of theirs is taken, so "
            "nothing is lost; one request a minute is let through to try. To do: let the client's token (SHA-256 "
            "ab12cd34…) append to clicks, or give the client another one of TINYBIRD_URL's region.",
            id="refusing a client's wrong token",
        ),
        pytest.param(
            replace(REFUSING, buffered_rows=2, oldest_age_s=65.0),
            f"Requests are refused with 403 for 3 h: {DENIED}. Clients are told and nothing of theirs is taken, so "
            "nothing is lost; one request a minute is let through to try. 2 rows are waiting, the oldest for 65 s: "
            "taken before, kept for an hour, and dead letters then. To do: let the client's token (SHA-256 ab12cd34…) "
            "append to clicks; what waits is sent with that one only.",
            id="refusing with rows taken before",
        ),
        pytest.param(
            replace(BUSY, splitting=SEARCHED),
            f"Looking for the bad rows in a batch of 1,000 rows: {INVALID}. 7 requests so far, 250 rows undecided. "
            "1,200 rows are waiting, the oldest for 0.4 s; nothing is lost as long as the proxy runs. Good rows are "
            "delivered, bad ones become dead letters; other batches go on. Nothing to do until then.",
            id="looking for bad rows",
        ),
        pytest.param(
            replace(
                BUSY, buffered_rows=1, splitting=SplitFacts(reason=INVALID, rows=2, rows_left=1, requests=1, waiting=1)
            ),
            f"Looking for the bad rows in a batch of 2 rows: {INVALID}. 1 request so far, 1 row undecided; 1 more "
            "rejected batch waits for its turn. 1 row is waiting, the oldest for 0.4 s; nothing is lost as long as the "
            "proxy runs. Good rows are delivered, bad ones become dead letters; other batches go on. Nothing to do "
            "until then.",
            id="looking for one bad row with another batch behind",
        ),
        pytest.param(
            replace(
                FLOWING,
                ceiling_bytes=1_250_000,
                letters_rows=1,
                ledger=Ledger(quarantined=1, unverified=2, ambiguous=3).as_dict(0, 1),
            ),
            "Nothing is waiting. Requests are kept to 1,250,000 bytes, because Tinybird refused larger ones (413). "
            "Since the start: 1 row in Tinybird's quarantine (clicks_quarantine); 2 rows taken without Tinybird saying "
            "that they are written (unverified); 3 rows that may have arrived more than once (ambiguous). 1 row is "
            f"{LOOK}",
            id="what else is to tell",
        ),
    ],
)
def test_a_destinations_sentence_says_what_is_wrong_what_follows_and_what_is_to_do(
    facts: DestinationFacts, text: str
) -> None:
    assert sentence(facts) == text


# The whole proxy.


def stuck(*sources: str, state: State = State.FAILING) -> list[DestinationFacts]:
    return [replace(FAILING, data_source=source, state=state, buffered_rows=5) for source in sources]


FULL = "The buffer is full (BUFFER_SIZE, BUFFER_BYTES): clients get 503 or 429 and are asked to come back."


@pytest.mark.parametrize(
    ("destinations", "utilisation", "text"),
    [
        pytest.param([], 0.0, "All is well.", id="nothing happens"),
        pytest.param([FLOWING, BUSY, NEW], 0.99, "All is well.", id="rows flow"),
        pytest.param([NEVER], 0.0, "All is well.", id="a name was tried and is forgotten"),
        pytest.param(
            [BUSY, HELD],
            0.5,
            "1 destination is not delivering (clicks): 1,200 rows are kept. Somebody has to act on clicks: `/status` "
            "says how.",
            id="one is held",
        ),
        pytest.param(
            [replace(HELD, buffered_rows=0)],
            0.0,
            "1 destination is not delivering (clicks): no rows are waiting. Somebody has to act on clicks: `/status` "
            "says how.",
            id="one is held without rows",
        ),
        pytest.param(
            stuck("views", "clicks", state=State.THROTTLED),
            0.5,
            "2 destinations are not delivering (clicks, views): 10 rows are kept. The proxy tries again by itself.",
            id="two are throttled",
        ),
        pytest.param(
            [*stuck("views"), *stuck("clicks", state=State.HELD)],
            0.5,
            "2 destinations are not delivering (clicks, views): 10 rows are kept. Somebody has to act on clicks: "
            "`/status` says how.",
            id="one of two is held",
        ),
        pytest.param(
            stuck("views", "clicks", "hits", state=State.HELD),
            0.5,
            "3 destinations are not delivering (clicks, hits, views): 15 rows are kept. Somebody has to act on all of "
            "them: `/status` says how.",
            id="all are held",
        ),
        pytest.param(
            [STUCK],
            0.5,
            "1 destination is not delivering (clicks): 1,200 rows are kept.",
            id="one is stalled, and nothing comes by itself",
        ),
        pytest.param(
            stuck("clicks", "clicks", "clicks", "clicks", "clicks", "clicks"),
            0.5,
            "6 destinations are not delivering (clicks): 30 rows are kept. The proxy tries again by itself.",
            id="many tokens for one data source",
        ),
        pytest.param(
            stuck("f", "e", "d", "c", "b", "a"),
            0.5,
            "6 destinations are not delivering (a, b, c, d, e, …): 30 rows are kept. The proxy tries again by itself.",
            id="many data sources",
        ),
        pytest.param(
            [REFUSING],
            0.0,
            "Tinybird refuses 1 destination (clicks): its clients are told.",
            id="a client's token is refused",
        ),
        pytest.param(
            [REFUSING, replace(REFUSING, data_source="views", buffered_rows=1)],
            0.0,
            "Tinybird refuses 2 destinations (clicks, views): their clients are told, and 1 row is kept that came "
            "before.",
            id="two are refused, one with rows",
        ),
        pytest.param(
            [replace(BUSY, splitting=SEARCHED)],
            0.0,
            "Tinybird rejected rows of 1 destination (clicks): the bad ones are being looked for.",
            id="bad rows are looked for",
        ),
        pytest.param(
            stuck("a"),
            1.0,
            f"1 destination is not delivering (a): 5 rows are kept. The proxy tries again by itself. {FULL}",
            id="one is stuck and everything is full",
        ),
        pytest.param([BUSY], 1.0, FULL, id="everything flows and is full all the same"),
    ],
)
def test_one_sentence_says_how_the_whole_proxy_is(
    destinations: list[DestinationFacts], utilisation: float, text: str
) -> None:
    assert overall(destinations, phase="running", utilisation=utilisation) == text


@pytest.mark.parametrize(
    ("destinations", "phase", "text"),
    [
        pytest.param([], "starting", "The proxy is starting: 0 rows are not delivered yet.", id="starting"),
        pytest.param(
            [BUSY, HELD],
            "draining",
            "The proxy is draining: 2,400 rows are not delivered yet. 1 destination is not delivering (clicks): 1,200 "
            "rows are kept. Somebody has to act on clicks: `/status` says how.",
            id="draining",
        ),
        pytest.param(
            [replace(BUSY, buffered_rows=1)],
            "stopping",
            "The proxy is stopping: 1 row is not delivered yet.",
            id="stopping",
        ),
    ],
)
def test_before_and_after_normal_service_the_phase_and_the_rows_left_come_first(
    destinations: list[DestinationFacts], phase: str, text: str
) -> None:
    assert overall(destinations, phase=phase, utilisation=0.0) == text


def test_dead_letters_losses_and_a_ledger_that_is_off_are_told_although_rows_flow() -> None:
    assert overall([BUSY], phase="running", utilisation=0.0, letters_rows=1) == f"1 row is {LOOK}"
    assert overall([], phase="running", utilisation=0.0, letters_rows=2, lost_rows=1, imbalance=3) == (
        f"2 rows are {LOOK} 1 row was lost: the log says when and why. The ledger is off by 3 rows: a fault of the "
        "proxy, please report it."
    )
    assert overall([], phase="running", utilisation=0.0, lost_rows=2).startswith("2 rows were lost: ")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1,000 rows"), (1234567, "1,234,567 rows")]
)
def test_numbers_are_written_with_their_noun(number: int, text: str) -> None:
    assert count(number, "row") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3.0, "0.0 s"),
        (0.0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.9, "9.9 s"),
        (10.0, "10 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7199.0, "120 min"),
        (7200.0, "2 h"),
        (100_000.0, "28 h"),
    ],
)
def test_durations_are_as_exact_as_a_person_needs(seconds: float, text: str) -> None:
    assert duration(seconds) == text


facts = st.builds(
    replace,
    st.just(FLOWING),
    state=st.sampled_from(State),
    reason=st.sampled_from([DOWN, SLOW, STRANGE, NO_FILE]),
    status=st.sampled_from((None, 400, 401, 403, 404, 418, 429, 500, 508)),
    token_hash=st.none() | st.just("ab12cd34"),
    confirmed=st.booleans(),
    delivered_ago_s=st.none() | st.floats(0, 1e6),
    splitting=st.none()
    | st.builds(
        SplitFacts,
        reason=st.just(INVALID),
        rows=st.integers(1, 3),
        rows_left=st.integers(0, 3),
        requests=st.integers(0, 3),
        waiting=st.integers(0, 3),
    ),
    letters_rows=st.integers(0, 2),
    ceiling_bytes=st.none() | st.integers(1, 3),
    ledger=st.builds(Ledger, quarantined=st.integers(0, 2), ambiguous=st.integers(0, 2)).map(
        lambda ledger: ledger.as_dict(0, 0)
    ),
    buffered_rows=st.integers(0, 3),
    oldest_age_s=st.none() | st.floats(0, 1e6),
    in_flight=st.integers(0, 16),
    places=st.sampled_from((1, 16)),
    batches_waiting=st.integers(0, 2),
    next_attempt_in_s=st.none() | st.floats(0, 1e6),
    not_delivering_for_s=st.none() | st.floats(0, 1e6),
    refusing=st.sampled_from((None, 401, 404)),
)


GOOD_ENGLISH = re.compile(r"\b1 (rows|requests|bytes)\b|\b[02] (row|request|byte)\b|None|\binf|  |\.\.| [.;:]|[.;:]{2}")


@settings(deadline=None, max_examples=300)
@given(facts)
def test_every_state_has_a_sentence_in_good_english(anything: DestinationFacts) -> None:
    text = sentence(anything)
    assert text[0].isupper() or text[0].isdigit()
    assert text.endswith(".")
    assert not GOOD_ENGLISH.search(text)
    assert ("in flight" in text) <= (anything.in_flight > 0 or "no request is in flight" in text)
    if anything.state in (State.HELD, State.FAILING, State.THROTTLED):
        assert len(re.findall(r"To do: |Nothing to do", text)) == 1


@settings(deadline=None, max_examples=300)
@given(st.lists(facts, max_size=3), st.sampled_from((0.0, 1.0)), st.integers(0, 2), st.integers(0, 2))
def test_all_is_well_only_if_it_is(some: list[DestinationFacts], utilisation: float, dead: int, lost: int) -> None:
    text = overall(some, phase="running", utilisation=utilisation, letters_rows=dead, lost_rows=lost)
    assert not GOOD_ENGLISH.search(text)
    searching = any(found.splitting is not None for found in some)
    trouble = any(cause(found) is not None for found in some)
    assert (text == "All is well.") == (not (trouble or searching or utilisation or dead or lost))


def test_every_command_that_a_sentence_names_exists() -> None:
    with open(health.__file__) as source:
        named = set(re.findall(r"`tinybird-proxy ([a-z-]+(?: [a-z-]+)?)`", source.read()))
    assert named == {"probe", "dead-letters ls"}
    for command in named:
        found: click.Command | None = main
        for word in command.split():
            assert isinstance(found, click.Group)
            found = found.get_command(click.Context(found), word)
        assert found is not None
