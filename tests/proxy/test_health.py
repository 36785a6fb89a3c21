"""The sentences about a proxy's health, word for word: would a tired person at three in the morning understand them?"""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.health import DestinationFacts, count, duration, overall, sentence
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import State

DOWN = "no connection to api.tinybird.co:443: connection refused"
SLOW = "Tinybird asks us to slow down (429: Too many requests)"
GONE = "Tinybird does not know this data source, or the token belongs to another region (404: clicks not found)"
DENIED = "Tinybird does not accept the token for this data source (403: invalid token)"
PARTIAL = "Tinybird says it took only a part of the rows (422: materialized view failed)"

FLOWING = DestinationFacts(
    data_source="clicks",
    params={},
    token_hash=None,
    state=State.DELIVERING,
    reason="",
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
    refusing=None,
    splitting=None,
    ceiling_bytes=None,
    letters_rows=0,
    ledger=Ledger().as_dict(0, 0),
)
BUSY = replace(FLOWING, buffered_rows=1200, oldest_age_s=0.42)
NEW = replace(BUSY, state=State.NEW, confirmed=False, places=1, in_flight=1)
FAILING = replace(
    BUSY,
    state=State.FAILING,
    reason=DOWN,
    places=1,
    oldest_age_s=754.0,
    not_delivering_for_s=750.0,
    next_attempt_in_s=12.4,
)
THROTTLED = replace(FAILING, state=State.THROTTLED, reason=SLOW, not_delivering_for_s=4.0, oldest_age_s=5.0)
HELD = replace(FAILING, state=State.HELD, reason=GONE, not_delivering_for_s=10_000.0, next_attempt_in_s=48.0)
REFUSING = replace(HELD, reason=DENIED, refusing=403, buffered_rows=0, oldest_age_s=None, confirmed=False)


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
            FAILING,
            f"Not delivering for 12 min: {DOWN}. 1,200 rows are waiting, the oldest for 13 min. "
            "Nothing is lost; the proxy goes on trying. Next attempt in 12 s.",
            id="failing",
        ),
        pytest.param(
            replace(FAILING, in_flight=1, next_attempt_in_s=None),
            f"Not delivering for 12 min: {DOWN}. 1,200 rows are waiting, the oldest for 13 min. "
            "Nothing is lost; the proxy goes on trying. An attempt is in flight.",
            id="failing and trying",
        ),
        pytest.param(
            replace(FAILING, next_attempt_in_s=None),
            f"Not delivering for 12 min: {DOWN}. 1,200 rows are waiting, the oldest for 13 min. "
            "Nothing is lost; the proxy goes on trying. No further attempt is planned.",
            id="failing at the end of a drain",
        ),
        pytest.param(
            replace(FAILING, buffered_rows=0, oldest_age_s=None, next_attempt_in_s=0.0),
            f"Not delivering for 12 min: {DOWN}. No rows are waiting. "
            "Nothing is lost; the proxy goes on trying. The next rows are the next attempt.",
            id="failing with nothing to send",
        ),
        pytest.param(
            THROTTLED,
            f"Throttled by Tinybird for 4.0 s: {SLOW}. 1,200 rows are waiting, the oldest for 5.0 s. "
            "Nothing is lost; the proxy tries again when Tinybird is ready for it. Next attempt in 12 s.",
            id="throttled",
        ),
        pytest.param(
            HELD,
            f"Held for 3 h: {GONE}. 1,200 rows are waiting, the oldest for 13 min. "
            "Nothing is lost, but somebody has to put this right. Next attempt in 48 s.",
            id="held",
        ),
        pytest.param(
            replace(HELD, reason=PARTIAL, next_attempt_in_s=None),
            f"Held for 3 h: {PARTIAL}. 1,200 rows are waiting, the oldest for 13 min. "
            "Nothing is lost, but somebody has to put this right. No further attempt is planned.",
            id="held without probes",
        ),
        pytest.param(
            replace(HELD, not_delivering_for_s=None),
            f"Held: {GONE}. 1,200 rows are waiting, the oldest for 13 min. "
            "Nothing is lost, but somebody has to put this right. Next attempt in 48 s.",
            id="held since we do not know when",
        ),
        pytest.param(
            REFUSING,
            f"Requests are refused with 403: {DENIED}. One a minute is let through to try.",
            id="refusing a client's wrong token",
        ),
        pytest.param(
            replace(REFUSING, buffered_rows=2, oldest_age_s=65.0),
            f"Requests are refused with 403: {DENIED}. One a minute is let through to try. "
            "2 rows are waiting, the oldest for 65 s; nothing is lost.",
            id="refusing with rows taken before",
        ),
    ],
)
def test_a_destinations_sentence_says_what_it_does_what_limits_it_and_what_follows(
    facts: DestinationFacts, text: str
) -> None:
    assert sentence(facts) == text


def stuck(*sources: str, state: State = State.FAILING) -> list[DestinationFacts]:
    return [replace(FAILING, data_source=source, state=state, buffered_rows=5) for source in sources]


@pytest.mark.parametrize(
    ("destinations", "phase", "utilisation", "text"),
    [
        pytest.param([], "running", 0.0, "All is well.", id="nothing happens"),
        pytest.param([FLOWING, BUSY, NEW], "running", 0.99, "All is well.", id="rows flow"),
        pytest.param(
            [replace(HELD, buffered_rows=0)], "running", 0.0, "All is well.", id="nothing is kept from being delivered"
        ),
        pytest.param(
            [BUSY, HELD], "running", 0.5, "1 destination not delivering (clicks): 1,200 rows kept.", id="one is held"
        ),
        pytest.param(
            stuck("views", "clicks", state=State.THROTTLED),
            "running",
            0.5,
            "2 destinations not delivering (clicks, views): 10 rows kept.",
            id="two are throttled",
        ),
        pytest.param(
            stuck("clicks", "clicks", "clicks", "clicks", "clicks", "clicks"),
            "running",
            0.5,
            "6 destinations not delivering (clicks): 30 rows kept.",
            id="many tokens for one data source",
        ),
        pytest.param(
            stuck("f", "e", "d", "c", "b", "a"),
            "running",
            0.5,
            "6 destinations not delivering (a, b, c, d, e, …): 30 rows kept.",
            id="many data sources",
        ),
        pytest.param(
            stuck("a"),
            "running",
            1.0,
            "1 destination not delivering (a): 5 rows kept. "
            "The buffer is full: clients get 503 or 429 and are asked to come back.",
            id="one is stuck and everything is full",
        ),
        pytest.param(
            [BUSY],
            "running",
            1.0,
            "The buffer is full: clients get 503 or 429 and are asked to come back.",
            id="everything flows and is full all the same",
        ),
        pytest.param([], "starting", 0.0, "The proxy is starting; 0 rows not yet delivered.", id="starting"),
        pytest.param(
            [BUSY, HELD], "draining", 1.0, "The proxy is draining; 2,400 rows not yet delivered.", id="draining"
        ),
        pytest.param(
            [replace(BUSY, buffered_rows=1)],
            "stopping",
            0.0,
            "The proxy is stopping; 1 row not yet delivered.",
            id="stopping",
        ),
    ],
)
def test_one_sentence_says_how_the_whole_proxy_is(
    destinations: list[DestinationFacts], phase: str, utilisation: float, text: str
) -> None:
    assert overall(destinations, phase=phase, utilisation=utilisation) == text


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
    reason=st.sampled_from([DOWN, SLOW]),
    buffered_rows=st.integers(0, 3),
    oldest_age_s=st.none() | st.floats(0, 1e6),
    in_flight=st.integers(0, 16),
    places=st.sampled_from((1, 16)),
    batches_waiting=st.integers(0, 2),
    next_attempt_in_s=st.none() | st.floats(0, 1e6),
    not_delivering_for_s=st.none() | st.floats(0, 1e6),
    refusing=st.sampled_from((None, 401, 404)),
)


@settings(deadline=None, max_examples=200)
@given(facts)
def test_every_state_has_a_sentence_in_good_english(anything: DestinationFacts) -> None:
    text = sentence(anything)
    assert text[0].isupper() or text[0].isdigit()
    assert text.endswith(".")
    assert not re.search(r"\b1 rows|\b[01] requests|None|\binf|  |\.\.| \.", text)
    assert ("in flight" in text) <= (anything.in_flight > 0)
