"""The arithmetic of `tests/bench`: what the tools print is read right, and medians and ratios are right."""

import pytest
from tests.bench.figures import COLUMNS, Round, UnexpectedOutput, compared, parse_wrk, seconds, table, verdict

WRK = """Running 8s test @ http://127.0.0.1:20000/v0/events?name=key_verifications
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.02ms    1.09ms  31.43ms   93.58%
    Req/Sec    21.42k     2.32k   25.02k    80.00%
  Latency Distribution
     50%    2.90ms
     75%    3.20ms
     90%    3.65ms
     99%  850.00us
  170590 requests in 8.01s, 45.23MB read
"""


def one_round(cpu_us: float) -> Round:
    return Round(
        requests_per_s=8000.0,
        cpu_us_per_request=cpu_us,
        peak_rss_mb=60.0,
        p50_ms=0.2,
        p99_ms=1.5,
        bad=0,
        arrived_percent=100.0,
        doubled=0,
        upstream_requests=9,
        wire_percent=25.6,
    )


@pytest.mark.parametrize(("text", "value"), [("850.00us", 0.00085), ("1.23ms", 0.00123), ("2.00s", 2), ("1.50m", 90)])
def test_durations_are_read_as_wrk_prints_them(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "1h", "-1s", "1.5 ms"])
def test_what_is_no_duration_is_not_guessed_at(text: str) -> None:
    with pytest.raises(UnexpectedOutput):
        seconds(text)


def test_wrk_without_errors_has_no_bad_answers() -> None:
    answers = parse_wrk(WRK)
    assert (answers.request_count, answers.bad, answers.elapsed_s) == (170590, 0, 8.01)
    assert answers.p50_ms == pytest.approx(2.9)
    assert answers.p99_ms == pytest.approx(0.85)


def test_answers_that_are_not_2xx_and_broken_sockets_are_bad() -> None:
    errors = "  Socket errors: connect 1, read 20, write 0, timeout 3\n  Non-2xx or 3xx responses: 1000\n"
    assert parse_wrk(WRK + errors).bad == 1024


def test_medians_are_taken_of_the_rounds_and_ratios_to_the_first_contestant() -> None:
    found = compared({"goproxy": [one_round(50), one_round(10), one_round(40)], "ours": [one_round(20)]})
    assert found["goproxy"]["cpu_us_per_request"] == 40
    assert found["goproxy"]["cpu_ratio"] == 1.0
    assert found["ours"]["cpu_ratio"] == 0.5


def test_the_table_has_a_line_for_each_contestant_and_a_column_for_each_figure() -> None:
    titles, *lines = table(compared({"goproxy": [one_round(40)], "ours": [one_round(20)]})).splitlines()
    assert [line.split()[0] for line in lines] == ["goproxy", "ours"]
    assert all(len(line.split()) == len(COLUMNS) + 1 for line in lines)
    assert len(titles) == len(lines[0]) == len(lines[1])


def test_a_target_is_met_at_its_very_value() -> None:
    assert verdict("memory", 50, "MB", at_most=50) == (True, "memory: 50 MB (target: at most 50 MB: met)")
    assert verdict("memory", 51, "MB", at_most=50)[1] == "memory: 51 MB (target: at most 50 MB: MISSED)"
