"""What a proxy answers on its admin port, as values."""

import json
from typing import Any

import msgspec
import pytest
from tests.operator.clusters import TOKEN_HASH, report, stuck

from tinybird_proxy_operator.proxy_answers import DrainState, read_drain, read_report

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"


def read(body: Any) -> Any:
    return read_report(json.dumps(body).encode())


def test_a_report_has_the_buffer_and_the_token() -> None:
    found = read(report(rows=7, bytes=70, utilisation=0.5, oldest_age_s=1.5))
    assert (found.rows, found.size_bytes, found.utilisation, found.oldest_age_s) == (7, 70, 0.5, 1.5)
    assert (found.token_hash, found.stuck, found.stuck_rows) == (TOKEN_HASH, [], 0)


def test_rows_are_stuck_where_a_destination_says_why() -> None:
    body = stuck(5)
    flowing = {"data_source": "orders", "buffered_rows": 9, "sentence": "fine", "cause": None}
    empty = {"data_source": "visits", "buffered_rows": 0, "sentence": "down", "cause": "failing"}
    body["destinations"] += [flowing, empty]
    found = read(body)
    assert found.stuck_rows == 5
    assert found.stuck == ["clicks: Tinybird does not answer, the oldest row waits for 5 s."]


def test_rows_that_wait_because_tinybird_throttles_are_counted_apart() -> None:
    body = stuck(5)
    body["destinations"].append({"data_source": "a", "buffered_rows": 7, "sentence": "slow", "cause": "throttled"})
    assert (read(body).throttled_rows, read(body).stuck_rows) == (7, 12)


def test_answers_of_the_last_minute_are_none_where_a_proxy_does_not_count_them() -> None:
    assert (read(report()).replies_1m, read(report()).throttled_1m) == (0, 0)
    found = read({**report(), "upstream_requests": {"replies": {"200": 9}, "replies_1m": 40, "throttled_1m": 30}})
    assert (found.replies_1m, found.throttled_1m) == (40, 30)


@pytest.mark.parametrize(
    ("accepted_at", "denied_at", "accepted", "denied"),
    [
        (None, None, False, False),
        (EARLY, None, True, False),
        (None, EARLY, False, True),
        (EARLY, LATE, True, True),
        (LATE, EARLY, True, False),
    ],
)
def test_a_token_is_denied_if_that_came_after_its_last_acceptance(
    accepted_at: str | None, denied_at: str | None, accepted: bool, denied: bool
) -> None:
    found = read(report(accepted_at=accepted_at, denied_at=denied_at))
    assert (found.token_accepted, found.token_denied) == (accepted, denied)


def test_a_proxy_with_its_clients_tokens_has_none_of_its_own() -> None:
    found = read({**report(), "tokens": {"mode": "clients"}})
    assert (found.token_hash, found.token_accepted, found.token_denied) == (None, False, False)


@pytest.mark.parametrize("rejected", [True, False])
def test_a_candidate_is_rejected_or_not(rejected: bool) -> None:
    candidate = {"hash": "12345678", "since": None, "accepted_at": None, "denied_at": None, "rejected": rejected}
    found = read(report(candidate=candidate))
    assert found.candidate_rejected is rejected
    hashes = (None, "12345678") if rejected else ("12345678", None)
    assert (found.next_token_hash, found.rejected_token_hash) == hashes


@pytest.mark.parametrize("body", [None, [], {}, {**report(), "buffer": None}, {**report(), "destinations": {}}])
def test_what_is_no_report_is_an_error(body: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        read(body)


def test_a_proxy_says_whether_it_drains_refuses_and_delivers() -> None:
    plain = read(report())
    assert (plain.draining, plain.refusing, plain.delivered_rows_1m) == (False, False, None)
    drain = {"draining": True, "refusing": True, "rows_left": 3, "seconds_to_drain": 1.5}
    found = read({**report(), "drain": drain, "upstream_requests": {"replies": {"200": 1}, "delivered_rows_1m": 9}})
    assert (found.draining, found.refusing, found.delivered_rows_1m) == (True, True, 9)


@pytest.mark.parametrize(("draining", "rows"), [(True, 7), (False, 2)])
def test_a_proxy_that_drains_holds_the_rows_of_a_first_contact_too(draining: bool, rows: int) -> None:
    drain = {"draining": draining, "refusing": draining, "rows_left": 7}
    assert read({**report(rows=2), "drain": drain}).rows == rows
    assert read({**report(rows=9), "drain": drain}).rows == 9


def test_an_answer_about_a_drain_has_a_word_of_it() -> None:
    answer = b'{"draining": true, "refusing": false, "rows_left": 3, "seconds_to_drain": null}'
    assert read_drain(answer) == DrainState(draining=True, refusing=False, rows_left=3)
    for other in (b"{}", b"[]", b"no JSON", b'{"draining": "yes"}'):
        with pytest.raises(msgspec.DecodeError):
            read_drain(other)
