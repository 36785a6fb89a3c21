"""What follows from each of Tinybird's replies: every row of the table of verdicts, and the edges between them."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinybird_proxy.errors import ConnectFailed, ConnectionBroken, ResponseTimeout, UpstreamError
from tinybird_proxy.verdict import (
    MESSAGE_MAX_CHARS,
    Again,
    Decision,
    Denied,
    Held,
    Partial,
    Rejected,
    Reply,
    Settled,
    judge,
    judge_failure,
    message_of,
    retry_after_s,
)

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
ROWS = 10


def verdict(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, counts_seen: bool = False
) -> Decision:
    return judge(Reply(status, headers or {}, body), ROWS, counts_seen=counts_seen, now_utc=NOW)


def counts(successful: object, quarantined: object) -> bytes:
    return f'{{"successful_rows":{successful},"quarantined_rows":{quarantined}}}'.encode()


# 2xx.


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        pytest.param(counts(10, 0), Settled(10, 0, 0), id="all delivered"),
        pytest.param(counts(7, 3), Settled(7, 3, 0), id="some quarantined"),
        pytest.param(counts(0, 10), Settled(0, 10, 0), id="all quarantined"),
        pytest.param(counts(9, 0), Settled(9, 0, 1, mismatch=True), id="one missing"),
        pytest.param(counts(0, 0), Settled(0, 0, 10, mismatch=True), id="all missing"),
        pytest.param(counts(5, 2), Settled(5, 2, 3, mismatch=True), id="some missing, some quarantined"),
        pytest.param(counts(11, 0), Settled(10, 0, 0, mismatch=True), id="more than we sent"),
        pytest.param(counts(9, 4), Settled(9, 1, 0, mismatch=True), id="more with those in quarantine"),
        pytest.param(counts(20, 20), Settled(10, 0, 0, mismatch=True), id="far too many"),
        pytest.param(counts(10**30, 0), Settled(10, 0, 0, mismatch=True), id="an enormous count"),
        pytest.param(b' {"quarantined_rows":0,"x":[1],"successful_rows":10}\n', Settled(10, 0, 0), id="in other words"),
    ],
)
@pytest.mark.parametrize("counts_seen", [False, True])
def test_a_200_settles_the_batch_by_its_counts(body: bytes, outcome: Settled, counts_seen: bool) -> None:
    assert verdict(200, body, counts_seen=counts_seen) == outcome


@pytest.mark.parametrize(
    "body", [counts(10, 0), counts(5, 5), b"", b"<html>"], ids=["counts", "quarantine", "empty", "html"]
)
@pytest.mark.parametrize("counts_seen", [False, True])
def test_a_202_is_taken_by_tinybird_but_not_known_to_be_written(body: bytes, counts_seen: bool) -> None:
    assert verdict(202, body, counts_seen=counts_seen) == Settled(0, 0, ROWS)


UNREADABLE = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"OK", id="text"),
    pytest.param(b"<html>It works!</html>", id="HTML"),
    pytest.param(b"[]", id="an array"),
    pytest.param(b"{}", id="no counts"),
    pytest.param(b'{"successful_rows":10}', id="one count"),
    pytest.param(b'{"quarantined_rows":0}', id="the other count"),
    pytest.param(counts('"10"', 0), id="a count as a string"),
    pytest.param(counts("true", 0), id="a count as a truth"),
    pytest.param(counts("10.0", 0), id="a count as a fraction"),
    pytest.param(counts(10, "null"), id="a count as nothing"),
    pytest.param(counts(-1, 11), id="a count below nothing"),
    pytest.param(counts(11, -1), id="the other below nothing"),
    pytest.param(counts(10, 0)[:-1], id="cut off"),
    pytest.param(b"\xff" + counts(10, 0), id="not UTF-8"),
    pytest.param(b"[" * 60_000, id="too deep to read"),
    pytest.param(counts("1" * 5000, 0), id="a count with thousands of digits"),
]


@pytest.mark.parametrize("body", UNREADABLE)
@pytest.mark.parametrize("status", [200, 201])
def test_an_unreadable_2xx_is_unverified_if_the_url_is_known_to_be_tinybird(status: int, body: bytes) -> None:
    assert verdict(status, body, counts_seen=True) == Settled(0, 0, ROWS)


@pytest.mark.parametrize("body", UNREADABLE)
@pytest.mark.parametrize("status", [200, 204])
def test_an_unreadable_2xx_of_an_unknown_url_holds_the_batch_and_is_not_probed(status: int, body: bytes) -> None:
    decision = verdict(status, body)
    assert isinstance(decision, Held)
    assert decision.ambiguous
    assert not decision.probe
    assert decision.reason.startswith(f"TINYBIRD_URL does not answer like Tinybird: no readable counts ({status}")


def test_another_2xx_with_counts_is_as_good_as_200() -> None:
    assert verdict(201, counts(10, 0)) == Settled(10, 0, 0)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 1000), st.integers(0, 1500), st.integers(0, 1500), st.booleans())
def test_the_counts_of_a_verdict_always_add_up_to_the_batch(rows: int, good: int, bad: int, seen: bool) -> None:
    outcome = judge(Reply(200, {}, counts(good, bad)), rows, counts_seen=seen, now_utc=NOW)
    assert isinstance(outcome, Settled)
    assert outcome.delivered + outcome.quarantined + outcome.unverified == rows
    assert min(outcome.delivered, outcome.quarantined, outcome.unverified) >= 0
    assert outcome.delivered == min(good, rows)
    assert outcome.mismatch == (good + bad != rows)


# Please slow down.


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="without a word"),
        pytest.param({"retry-after": "7"}, 7.0, id="seconds"),
        pytest.param({"retry-after": " 7 "}, 7.0, id="seconds among spaces"),
        pytest.param({"retry-after": "0"}, 0.0, id="no time at all"),
        pytest.param({"retry-after": "86400"}, 86400.0, id="a day"),
        pytest.param({"retry-after": "9" * 9}, 999_999_999.0, id="decades"),
        pytest.param({"retry-after": "9" * 10}, math.inf, id="centuries"),
        pytest.param({"retry-after": "9" * 40}, math.inf, id="for ever"),
        pytest.param({"retry-after": "-5"}, None, id="negative"),
        pytest.param({"retry-after": "1.5"}, None, id="a fraction"),
        pytest.param({"retry-after": "1e3"}, None, id="an exponent"),
        pytest.param({"retry-after": "soon"}, None, id="garbage"),
        pytest.param({"retry-after": "٣"}, None, id="digits of another script"),
        pytest.param({"retry-after": ""}, None, id="empty"),
        pytest.param({"retry-after": "Mon, 23 Nov 2026 12:01:30 GMT"}, 90.0, id="a date"),
        pytest.param({"retry-after": "Mon, 23 Nov 2026 13:01:30 +0100"}, 90.0, id="a date elsewhere"),
        pytest.param({"retry-after": "Mon, 23 Nov 2026 12:01:30"}, 90.0, id="a date without a zone"),
        pytest.param({"retry-after": "Monday, 23-Nov-26 12:01:30 GMT"}, 90.0, id="an old-fashioned date"),
        pytest.param({"retry-after": "Mon, 23 Nov 2020 12:00:00 GMT"}, 0.0, id="a date that is over"),
        pytest.param({"retry-after": "Mon, 99 Nov 2026 12:00:00 GMT"}, None, id="no date"),
        pytest.param({"retry-after": "Mon, 23 Nov 2026 12:00:00 +99999999999999"}, None, id="an impossible zone"),
        pytest.param({"x-ratelimit-reset": "12"}, 12.0, id="the window's end"),
        pytest.param({"x-ratelimit-reset": "999999"}, 999_999.0, id="the window's end, far away"),
        pytest.param({"x-ratelimit-reset": "1000000"}, None, id="the window's end, too far to be true"),
        pytest.param({"x-ratelimit-reset": "1795435200"}, None, id="the window's end as a date"),
        pytest.param({"x-ratelimit-reset": "0.5"}, None, id="the window's end as a fraction"),
        pytest.param({"retry-after": "7", "x-ratelimit-reset": "12"}, 7.0, id="both: Retry-After wins"),
        pytest.param({"retry-after": "soon", "x-ratelimit-reset": "12"}, None, id="both, one unreadable"),
    ],
)
def test_a_429_is_sent_again_after_the_time_that_it_names(headers: Mapping[str, str], expected: float | None) -> None:
    decision = verdict(429, b'{"error":"Too many requests"}', headers)
    reason = "Tinybird asks us to slow down (429: Too many requests)"
    assert decision == Again(reason, ambiguous=False, throttled=True, retry_after_s=expected)


@pytest.mark.parametrize(
    ("headers", "body", "expected_s"),
    [
        pytest.param({"retry-after": "3"}, b"", 3.0, id="Retry-After"),
        pytest.param({"retry-after": ""}, b"", None, id="an empty Retry-After"),
        pytest.param({"x-ratelimit-remaining": "0"}, b"", None, id="a rate header"),
        pytest.param({"x-ratelimit-reset": "4"}, b"<html>", 4.0, id="the window's end"),
        pytest.param({}, b'{"error":"try later"}', None, id="a JSON error"),
        pytest.param({}, b'{"error":null}', None, id="an empty JSON error"),
    ],
)
def test_a_503_in_tinybirds_own_voice_took_nothing(
    headers: Mapping[str, str], body: bytes, expected_s: float | None
) -> None:
    decision = verdict(503, body, headers)
    assert isinstance(decision, Again)
    assert (decision.ambiguous, decision.throttled, decision.retry_after_s) == (False, True, expected_s)
    assert decision.reason.startswith("Tinybird is unavailable for now (503")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({}, b"", id="empty"),
        pytest.param({}, b"<html>503 Service Temporarily Unavailable</html>", id="HTML"),
        pytest.param({"server": "nginx", "x-rate": "1"}, b"error", id="text"),
        pytest.param({}, b'{"message":"no healthy upstream"}', id="JSON of somebody else"),
        pytest.param({}, b'["error"]', id="a list"),
        pytest.param({}, b'"error"', id="a string"),
    ],
)
def test_a_503_of_a_load_balancer_is_ambiguous(headers: Mapping[str, str], body: bytes) -> None:
    decision = verdict(503, body, headers)
    assert isinstance(decision, Again)
    assert (decision.ambiguous, decision.throttled, decision.retry_after_s) == (True, False, None)


@pytest.mark.parametrize("status", [408, 500, 502, 504, 520, 599])
def test_a_timeout_or_an_error_of_the_server_is_ambiguous_whatever_it_says(status: int) -> None:
    decision = verdict(status, b'{"error":"oops"}', {"retry-after": "5", "x-ratelimit-reset": "5"})
    assert decision == Again(f"Tinybird answered with an error ({status}: oops)", ambiguous=True)


# Holds and rejections.


@pytest.mark.parametrize(
    ("status", "decision"),
    [
        pytest.param(400, Rejected(400, "why", "Tinybird says the request is not valid (400: why)"), id="400"),
        pytest.param(413, Rejected(413, "why", "Tinybird says the request is too large (413: why)"), id="413"),
        pytest.param(401, Denied(401, "why", "Tinybird does not accept the token (401: why)"), id="401"),
        pytest.param(
            403, Denied(403, "why", "Tinybird does not accept the token for this data source (403: why)"), id="403"
        ),
        pytest.param(
            404,
            Denied(
                404,
                "why",
                "Tinybird does not know this data source, or the token belongs to another region (404: why)",
            ),
            id="404",
        ),
        pytest.param(
            422,
            Partial(422, "why", "Tinybird says it took only a part of the rows (422: why)"),
            id="422 must not be sent again",
        ),
        pytest.param(
            508, Held("the request came back to this proxy: TINYBIRD_URL leads to itself (508: why)"), id="508"
        ),
        pytest.param(
            307,
            Held(
                "TINYBIRD_URL answers with a redirect, which the proxy does not follow: to https://elsewhere (307: why)"
            ),
            id="307",
        ),
        pytest.param(
            300,
            Held(
                "TINYBIRD_URL answers with a redirect, which the proxy does not follow: to https://elsewhere (300: why)"
            ),
            id="300",
        ),
        pytest.param(
            399,
            Held(
                "TINYBIRD_URL answers with a redirect, which the proxy does not follow: to https://elsewhere (399: why)"
            ),
            id="399",
        ),
        pytest.param(405, Held("Tinybird gave an answer that the proxy does not know (405: why)"), id="405"),
        pytest.param(199, Held("Tinybird gave an answer that the proxy does not know (199: why)"), id="199"),
        pytest.param(600, Held("Tinybird gave an answer that the proxy does not know (600: why)"), id="600"),
        pytest.param(999, Held("Tinybird gave an answer that the proxy does not know (999: why)"), id="999"),
    ],
)
@pytest.mark.parametrize("counts_seen", [False, True])
def test_what_a_person_or_another_shape_must_put_right(status: int, decision: Decision, counts_seen: bool) -> None:
    headers = {"retry-after": "5", "location": "https://elsewhere"}
    assert verdict(status, b'{"error":"why"}', headers, counts_seen=counts_seen) == decision


@pytest.mark.parametrize(("status", "too_large"), [(400, False), (413, True)])
def test_a_refusal_says_whether_the_size_is_what_is_refused(status: int, too_large: bool) -> None:
    decision = verdict(status)
    assert isinstance(decision, Rejected)
    assert decision.too_large is too_large


def test_only_replies_that_may_have_been_taken_are_ambiguous() -> None:
    ambiguous = set()
    for status in range(100, 700):
        decision = verdict(status, b"", {})
        if isinstance(decision, Again | Held) and decision.ambiguous:
            ambiguous.add(status)
    unreadable = set(range(200, 300)) - {202}
    assert ambiguous == unreadable | {408} | set(range(500, 600)) - {508}


# No reply.


@pytest.mark.parametrize(
    ("location", "named"),
    [
        pytest.param("https://api.us-east.tinybird.co/v0/events?token=x", "https://api.us-east.tinybird.co", id="URL"),
        pytest.param("http://user:secret@tinybird.test:8080/", "http://tinybird.test:8080", id="with a password"),
        pytest.param("/login?next=secret", None, id="a path"),
        pytest.param("", None, id="empty"),
        pytest.param("//tinybird.test/x", None, id="no scheme"),
        pytest.param("javascript:alert(1)", None, id="another scheme"),
        pytest.param("https://[", None, id="no URL"),
        pytest.param("https://a:b/", None, id="no port"),
        pytest.param("https://日本.test/", None, id="another script"),
        pytest.param("https://a b/", None, id="a space"),
        pytest.param(f"https://{'x' * 500}/", None, id="long"),
    ],
)
def test_a_redirect_names_where_it_leads_but_no_more_than_the_origin(location: str, named: str | None) -> None:
    to = "" if named is None else f": to {named}"
    reason = f"TINYBIRD_URL answers with a redirect, which the proxy does not follow{to} (302)"
    assert verdict(302, b"", {"location": location}) == Held(reason)


@pytest.mark.parametrize(
    ("error", "ambiguous"),
    [(ConnectFailed("refused"), False), (ConnectionBroken("reset"), True), (ResponseTimeout("late"), True)],
)
def test_without_a_reply_the_batch_goes_again_and_is_ambiguous_once_it_was_written(
    error: UpstreamError, ambiguous: bool
) -> None:
    named = " (UPSTREAM_TIMEOUT)" if isinstance(error, ResponseTimeout) else ""
    assert judge_failure(error) == Again(f"{error}{named}", ambiguous=ambiguous)


# What Tinybird said.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b'{"error":"no such data source","documentation":"https://x"}', "no such data source", id="JSON"),
        pytest.param(b"no such data source", "no such data source", id="text"),
        pytest.param(b" no\r\n such\tdata  source\n", "no such data source", id="several lines"),
        pytest.param(b'{"message":"x"}', '{"message":"x"}', id="JSON of another shape"),
        pytest.param(b'{"error":{"code":1}}', '{"error":{"code":1}}', id="an error that is no text"),
        pytest.param(b'["a"]', '["a"]', id="an array"),
        pytest.param(b"", "", id="nothing"),
        pytest.param(b"caf\xe9", "caf\ufffd", id="not UTF-8"),
        pytest.param(b"x" * 9999, "x" * 500, id="much"),
        pytest.param(b"\x1b[2Jred\x00\x7f", "\ufffd[2Jred\ufffd\ufffd", id="terminal codes"),
        pytest.param('{"error":"\u202egnp.exe\u2028x"}'.encode(), "\ufffdgnp.exe x", id="text that turns around"),
        pytest.param('{"error":"日本 ok"}'.encode(), "日本 ok", id="another script"),
    ],
)
def test_a_message_is_one_bounded_printable_line(body: bytes, message: str) -> None:
    assert message_of(Reply(400, {}, body)) == message


def test_a_reply_without_a_word_is_named_by_its_status_alone() -> None:
    decision = verdict(400)
    assert isinstance(decision, Rejected)
    assert decision.message == ""
    assert decision.reason == "Tinybird says the request is not valid (400)"


# Whatever comes.


@settings(deadline=None, max_examples=200)
@given(
    st.integers(100, 999),
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset", "server"]), st.text(max_size=30)),
    st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.just(counts(3, 4)),
    st.booleans(),
)
@example(429, {"retry-after": "Mon, 23 Nov 2026 12:00:00 +9999999999999999"}, b"", False)
def test_every_reply_has_a_verdict(status: int, headers: dict[str, str], body: bytes, seen: bool) -> None:
    decision = verdict(status, body, headers, counts_seen=seen)
    if isinstance(decision, Settled):
        assert 200 <= status < 300
        assert decision.delivered + decision.quarantined + decision.unverified == ROWS
    else:
        assert decision.reason.isprintable()
        assert f"({status}" in decision.reason
        assert len(decision.reason) < MESSAGE_MAX_CHARS + 150
    if isinstance(decision, Again) and decision.retry_after_s is not None:
        assert decision.retry_after_s >= 0


@settings(deadline=None, max_examples=100)
@given(st.timedeltas(timedelta(days=-1), timedelta(days=400)), st.booleans())
def test_a_date_means_the_time_until_then_and_never_less_than_none(ahead: timedelta, named: bool) -> None:
    when = (NOW + ahead).replace(microsecond=0)
    seconds = retry_after_s({"retry-after": format_datetime(when, usegmt=named)}, NOW)
    assert seconds == max(0.0, (when - NOW).total_seconds())
