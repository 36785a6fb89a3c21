"""Who may put how much into the buffer, and what the others are told."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.admission import Capacity, Occupancy, Refusal, Standing, has_room, refuse, retry_after_s

CAPACITY = Capacity(max_rows=1000, max_bytes=100_000, max_body_bytes=10_000)
# 5 % of this buffer is more than one body.
LARGE = Capacity(max_rows=1_000_000, max_bytes=512_000_000, max_body_bytes=10_000_000)
DELIVERING, NOT_DELIVERING, UNCONFIRMED = Standing.DELIVERING, Standing.NOT_DELIVERING, Standing.UNCONFIRMED
FULL = (503, "buffer_full")
SHARE = (429, "share")
UNCONFIRMED_SHARE = (429, "unconfirmed_share")
TOO_LARGE = (413, "too_large")


def held(rows: int = 0, size: int = 0, unconfirmed_rows: int = 0, unconfirmed_size: int = 0) -> Occupancy:
    return Occupancy(rows, size, unconfirmed_rows, unconfirmed_size)


def told(refusal: Refusal | None) -> tuple[int, str] | None:
    return None if refusal is None else (refusal.status, refusal.reason)


@pytest.mark.parametrize(
    ("standing", "rows", "size", "occupancy", "answer"),
    [
        pytest.param(DELIVERING, 1000, 100_000, held(), None, id="delivering may fill an empty buffer"),
        pytest.param(DELIVERING, 1, 10, held(1099, 0), None, id="delivering may use the last row of the headroom"),
        pytest.param(DELIVERING, 2, 10, held(1099, 0), FULL, id="delivering ends where the headroom does, in rows"),
        pytest.param(DELIVERING, 1, 10, held(1, 109_990), None, id="delivering may use the headroom's last byte"),
        pytest.param(DELIVERING, 1, 11, held(1, 109_990), FULL, id="delivering ends where the headroom does, in bytes"),
        pytest.param(DELIVERING, 1, 10, held(1000, 100_000, 1000, 100_000), None, id="what others hold leaves it room"),
        pytest.param(NOT_DELIVERING, 1000, 100_000, held(), None, id="one alone that does not deliver may use it all"),
        pytest.param(NOT_DELIVERING, 1, 10, held(999, 99_990), None, id="not delivering may use the last place"),
        pytest.param(NOT_DELIVERING, 2, 10, held(999, 0), SHARE, id="but not the headroom, in rows"),
        pytest.param(NOT_DELIVERING, 1, 11, held(1, 99_990), SHARE, id="nor in bytes"),
        pytest.param(NOT_DELIVERING, 1, 10, held(1050, 0), SHARE, id="nor anything when others use the headroom"),
        pytest.param(UNCONFIRMED, 1, 10, held(), None, id="an unconfirmed token may begin"),
        pytest.param(UNCONFIRMED, 10, 100, held(40, 400, 40, 400), None, id="unconfirmed: the share's last row"),
        pytest.param(UNCONFIRMED, 11, 100, held(40, 400, 40, 400), UNCONFIRMED_SHARE, id="unconfirmed: a row more"),
        pytest.param(
            UNCONFIRMED, 1000, 9000, held(), None, id="unconfirmed: one body may hold more rows than the share"
        ),
        pytest.param(UNCONFIRMED, 1, 10_001, held(), None, id="unconfirmed: the largest body fits, its line feed too"),
        pytest.param(UNCONFIRMED, 1, 10_002, held(), UNCONFIRMED_SHARE, id="unconfirmed: a byte more does not"),
        pytest.param(
            UNCONFIRMED, 1, 2, held(1, 10_000, 1, 10_000), UNCONFIRMED_SHARE, id="unconfirmed: all share one share"
        ),
        pytest.param(UNCONFIRMED, 1, 10, held(900, 90_000, 0, 0), None, id="unconfirmed: what is confirmed counts not"),
        pytest.param(
            UNCONFIRMED, 1, 10, held(1000, 0), SHARE, id="unconfirmed: never beyond the whole buffer, in rows"
        ),
        pytest.param(UNCONFIRMED, 1, 11, held(1, 99_990), SHARE, id="unconfirmed: nor in bytes"),
    ],
)
def test_who_may_hold_how_much(
    standing: Standing, rows: int, size: int, occupancy: Occupancy, answer: tuple[int, str] | None
) -> None:
    assert told(refuse(standing, rows, size, occupancy, CAPACITY)) == answer


@pytest.mark.parametrize(
    ("size", "unconfirmed", "answer"),
    [
        pytest.param(25_600_000, 0, None, id="one request of 5 %"),
        pytest.param(25_600_001, 0, UNCONFIRMED_SHARE, id="a byte more"),
        pytest.param(15_600_000, 10_000_000, None, id="5 % with what is there"),
        pytest.param(15_600_001, 10_000_000, UNCONFIRMED_SHARE, id="a byte more with what is there"),
    ],
)
def test_in_a_large_buffer_the_unconfirmed_share_is_five_percent(
    size: int, unconfirmed: int, answer: tuple[int, str] | None
) -> None:
    occupancy = held(1, unconfirmed, 1, unconfirmed)
    assert told(refuse(UNCONFIRMED, 1, size, occupancy, LARGE)) == answer


def test_in_a_tiny_buffer_the_unconfirmed_share_is_one_row() -> None:
    tiny = Capacity(max_rows=10, max_bytes=100_000, max_body_bytes=10_000)
    assert refuse(UNCONFIRMED, 1, 10, held(), tiny) is None
    assert told(refuse(UNCONFIRMED, 1, 10, held(1, 10, 1, 10), tiny)) == UNCONFIRMED_SHARE


@pytest.mark.parametrize(
    ("rows", "size", "room"), [(10, 1000, True), (11, 1000, False), (10, 1001, False)], ids=["just", "rows", "bytes"]
)
def test_there_is_room_up_to_the_plain_capacity(rows: int, size: int, room: bool) -> None:
    assert has_room(rows, size, held(990, 99_000), CAPACITY) is room


@pytest.mark.parametrize("standing", Standing)
@pytest.mark.parametrize(("rows", "size"), [(1001, 10), (1, 100_001)], ids=["rows", "bytes"])
def test_what_could_not_fit_an_empty_buffer_is_too_large_for_anybody(standing: Standing, rows: int, size: int) -> None:
    assert told(refuse(standing, rows, size, held(), CAPACITY)) == TOO_LARGE
    assert told(refuse(standing, rows, size, held(5000, 10**9), CAPACITY)) == TOO_LARGE


def test_a_refusal_says_what_the_client_can_do() -> None:
    full = refuse(DELIVERING, 1, 10, held(1100, 0), CAPACITY)
    stuck = refuse(NOT_DELIVERING, 1, 10, held(1000, 0), CAPACITY)
    strange = refuse(UNCONFIRMED, 1, 10_000, held(1, 9000, 1, 9000), CAPACITY)
    large = refuse(DELIVERING, 1001, 10, held(), CAPACITY)
    assert full is not None
    assert stuck is not None
    assert strange is not None
    assert large is not None
    assert full.message == "the proxy's buffer is full; send the same request again later"
    assert stuck.message.endswith("is not being delivered and the buffer is full; send the same request again later")
    assert strange.message.endswith("that Tinybird has not confirmed yet; send the same request again later")
    assert large.message.endswith("it is larger than the proxy's whole buffer; send it in smaller requests")


counts = st.integers(0, 1300)
sizes = st.integers(0, 130_000)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 1100), st.integers(2, 110_000), counts, sizes, counts, sizes)
def test_standing_better_never_gets_less(
    rows: int, size: int, all_rows: int, all_size: int, unconfirmed_rows: int, unconfirmed_size: int
) -> None:
    occupancy = held(
        max(all_rows, unconfirmed_rows), max(all_size, unconfirmed_size), unconfirmed_rows, unconfirmed_size
    )
    taken = [
        refuse(standing, rows, size, occupancy, CAPACITY) is None
        for standing in (UNCONFIRMED, NOT_DELIVERING, DELIVERING)
    ]
    assert taken == sorted(taken)
    if has_room(rows, size, occupancy, CAPACITY):
        assert taken[1:] == [True, True]
    else:
        assert not taken[1]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(Standing), st.integers(1, 300), st.integers(2, 20_000)), max_size=40))
def test_the_buffer_never_holds_more_than_its_capacity_and_a_tenth(requests: list[tuple[Standing, int, int]]) -> None:
    now = held()
    for standing, rows, size in requests:
        if refuse(standing, rows, size, now, CAPACITY) is None:
            now.row_count += rows
            now.size_bytes += size
            if standing is UNCONFIRMED:
                now.unconfirmed_row_count += rows
                now.unconfirmed_size_bytes += size
    assert now.row_count <= 1100
    assert now.size_bytes <= 110_000
    assert now.unconfirmed_size_bytes <= 10_001


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 10**9).map(lambda tens: tens * 10))
def test_the_headroom_is_a_tenth_to_the_row(max_rows: int) -> None:
    capacity = Capacity(max_rows=max_rows, max_bytes=10**12, max_body_bytes=1)
    assert refuse(DELIVERING, 1, 1, held(max_rows + max_rows // 10 - 1), capacity) is None
    assert told(refuse(DELIVERING, 1, 1, held(max_rows + max_rows // 10), capacity)) == FULL


# Retry-After.


@pytest.mark.parametrize(
    ("held_rows", "rate", "seconds"),
    [
        pytest.param(1000, 0.0, 10, id="nothing is being delivered"),
        pytest.param(1000, -1.0, 10, id="a rate below nothing"),
        pytest.param(1000, math.nan, 10, id="a rate that is no number"),
        pytest.param(1000, math.inf, 10, id="a rate without end"),
        pytest.param(1000, 10.0, 10, id="a tenth of the buffer at this rate"),
        pytest.param(1000, 9.0, 12, id="rounded up"),
        pytest.param(1000, 1e6, 1, id="at least a second"),
        pytest.param(1000, 0.001, 60, id="at most a minute"),
        pytest.param(50, 10.0, 5, id="no more than what is held"),
        pytest.param(0, 10.0, 1, id="nothing held"),
        pytest.param(0, 0.5, 2, id="nothing held: as if it were one row"),
        pytest.param(0, 5e-324, 60, id="hardly any rate"),
    ],
)
def test_retry_after_follows_from_the_delivery_rate(held_rows: int, rate: float, seconds: int) -> None:
    assert retry_after_s(held_rows, 1000, rate) == seconds


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.integers(1, 10**9), st.floats())
def test_retry_after_is_always_a_whole_number_of_seconds_up_to_a_minute(rows: int, capacity: int, rate: float) -> None:
    seconds = retry_after_s(rows, capacity, rate)
    assert type(seconds) is int
    assert 1 <= seconds <= 60
