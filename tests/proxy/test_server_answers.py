"""What clients are told, held to the rules that all known clients can live with."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.admission import Refusal
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer

RATE_HEADERS = {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
FULL = Refusal(503, "buffer_full", "full", 7)
SLOW = Refusal(429, "share", "slow down", 7)
LARGE = Refusal(413, "too_large", "too large")


def headers(answer: Answer) -> Mapping[str, str]:
    """The headers, each of which stands once."""
    found = dict(answer.headers)
    assert len(found) == len(answer.headers)
    return found


def body(answer: Answer) -> Any:
    return json.loads(answer.body)


# One by one.


def test_taken_is_202_with_both_counts_and_who_holds_the_rows() -> None:
    answer = answers.taken(12, "memory")
    assert (answer.status, answer.close) == (202, False)
    assert answer.body == b'{"successful_rows":12,"quarantined_rows":0}'
    assert headers(answer)["X-Ack"] == "memory"
    assert not RATE_HEADERS & set(headers(answer))


def test_what_took_a_pause_back_says_that_there_is_room_again() -> None:
    found = headers(answers.taken(1, "memory", rate_headers=True))
    assert set(found) >= RATE_HEADERS
    assert int(found["X-RateLimit-Remaining"]) > 0


def test_nothing_taken_is_a_success_too() -> None:
    assert body(answers.taken(0, "disk")) == {"successful_rows": 0, "quarantined_rows": 0}


def test_delivered_is_200_with_exact_counts() -> None:
    answer = answers.delivered(9, 1, batch=None)
    assert (answer.status, answer.body) == (200, b'{"successful_rows":9,"quarantined_rows":1}')
    assert headers(answer)["X-Ack"] == "delivered"


def test_counts_that_are_not_exact_say_so_and_of_what_batch() -> None:
    assert body(answers.delivered(0, 3, batch=(100, 5))) == {
        "successful_rows": 0,
        "quarantined_rows": 3,
        "exact": False,
        "batch": {"rows": 100, "quarantined_rows": 5},
    }


def test_an_error_is_json_and_keeps_every_character_of_its_message() -> None:
    message = 'it\'s "so" \\ \n é 日本 \x00 </script>'
    answer = answers.error(400, message, ("Allow", "POST"), close=True)
    assert (answer.status, answer.close, body(answer)) == (400, True, {"error": message})
    assert headers(answer)["Allow"] == "POST"


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        pytest.param(FULL, {"Retry-After": "7"}, id="503"),
        pytest.param(
            SLOW,
            {
                "Retry-After": "7",
                "X-RateLimit-Limit": "100",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": "7",
            },
            id="429",
        ),
        pytest.param(LARGE, {}, id="413"),
    ],
)
@pytest.mark.parametrize("close", [False, True])
def test_a_refusal_has_the_headers_that_its_status_needs(
    refusal: Refusal, expected: Mapping[str, str], close: bool
) -> None:
    answer = answers.refused(refusal, close=close)
    assert (answer.status, answer.close, body(answer)) == (refusal.status, close, {"error": refusal.message})
    found = headers(answer)
    assert {name: found[name] for name in found if name == "Retry-After" or name in RATE_HEADERS} == expected


def test_a_browser_may_post_from_anywhere_with_the_headers_that_it_named() -> None:
    answer = answers.preflight("content-type, x-mine")
    assert (answer.status, answer.body) == (204, b"")
    assert headers(answer) == {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "POST, OPTIONS",
        "Access-Control-Allow-Headers": "content-type, x-mine",
        "Access-Control-Max-Age": "86400",
        "Allow": "POST, OPTIONS",
    }


@pytest.mark.parametrize("named", [None, ""])
def test_a_browser_that_names_no_headers_hears_of_those_we_read(named: str | None) -> None:
    allowed = headers(answers.preflight(named))["Access-Control-Allow-Headers"]
    assert allowed == "Authorization, Content-Type, Content-Encoding"


# The rules, for every answer.

counts = st.integers(0, 10**12)
messages = st.text(max_size=40)
every_answer = st.one_of(
    st.builds(answers.taken, counts, st.sampled_from(("memory", "disk")), rate_headers=st.booleans()),
    st.builds(answers.delivered, counts, counts, batch=st.none() | st.tuples(counts, counts)),
    st.builds(answers.error, st.sampled_from((400, 401, 403, 404, 405, 408, 413, 415, 500, 502, 504, 508)), messages),
    st.builds(
        answers.refused,
        st.builds(Refusal, st.sampled_from((429, 503)), messages, messages, st.integers(1, 60)),
        close=st.booleans(),
    ),
    st.builds(answers.refused, st.builds(Refusal, st.sampled_from((401, 403, 404, 413)), messages, messages)),
)


def test_a_connection_goes_on_unless_somebody_says_otherwise() -> None:
    for answer in (answers.taken(1, "memory"), answers.error(400, "x"), answers.refused(FULL), answers.refused(LARGE)):
        assert not answer.close
    assert not answers.delivered(1, 0, batch=None).close


@settings(deadline=None, max_examples=300)
@given(every_answer)
def test_every_answer_keeps_the_rules(answer: Answer) -> None:
    found = headers(answer)
    content = json.loads(answer.body)
    assert found["Content-Type"] == "application/json"
    assert found["Access-Control-Allow-Origin"] == "*"
    assert all(text.isascii() and text.isprintable() for pair in answer.headers for text in pair)
    if answer.status < 300:
        assert answer.status in (200, 202)
        assert {type(content["successful_rows"]), type(content["quarantined_rows"])} == {int}
        assert "X-Ack" in found
        assert found["X-Ack"] == "delivered" or answer.status == 202
    else:
        assert type(content["error"]) is str
        assert list(content) == ["error"]
        assert "X-Ack" not in found
    if answer.status in (429, 503):
        assert 1 <= int(found["Retry-After"]) <= 60
        assert answer.status == 429 or not RATE_HEADERS & set(found)
    if RATE_HEADERS & set(found):  # all three, as whole numbers, or none
        assert all(found[name].isdigit() for name in RATE_HEADERS)
        assert (found["X-RateLimit-Remaining"] == "0") == (answer.status == 429)
    else:
        assert answer.status != 429


def test_scripts_may_read_every_header_of_ours() -> None:
    exposed = {name.strip() for name in dict(answers.CORS)["Access-Control-Expose-Headers"].split(",")}
    assert exposed == {"X-Ack", "Retry-After", *RATE_HEADERS}
