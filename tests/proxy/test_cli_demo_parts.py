"""The demo's smaller parts: figures, rows, scene, the proxy's log, the children's environment, the screen."""

import io
import json
import random
from datetime import UTC, datetime
from itertools import islice

import pytest
from rich.console import Console

from tinybird_proxy.cli.demo.children import plain_environment
from tinybird_proxy.cli.demo.figures import (
    BufferStatus,
    DestinationStatus,
    History,
    LedgerStatus,
    Sample,
    Status,
    Tally,
    UpstreamStatus,
    percentile,
    sparkline,
)
from tinybird_proxy.cli.demo.page_hits import page_hit
from tinybird_proxy.cli.demo.proxy_log import Ports, ProxyLog
from tinybird_proxy.cli.demo.scene import Outage, outages, words
from tinybird_proxy.cli.demo.screen import View, picture, plain_line
from tinybird_proxy.rows import check

STATUS = Status(
    sentence="1 destination not delivering (page_hits): 1,234 rows kept, none lost.",
    phase="running",
    ledger=LedgerStatus(
        accepted=6234,
        delivered=5000,
        quarantined=0,
        unverified=0,
        dead_lettered=0,
        dropped={},
        buffered=1234,
        ambiguous=0,
    ),
    buffer=BufferStatus(rows=1234, oldest_age_s=2.54),
    upstream_requests=UpstreamStatus(replies={"200": 10, "503": 2}, raw_bytes=7400, wire_bytes=1000),
    destinations=(DestinationStatus(data_source="page_hits", sentence="Throttled by Tinybird. " * 8),),
)


def _view() -> View:
    tally = Tally(posted=6234, promised=6234)
    tally.latencies.extend([0.0004] * 98 + [0.0041] * 2)
    history = History()
    for second in range(60):
        history.add(Sample(at_s=second, promised=100 * second, delivered=90 * second, buffered=10 * second))
    return View(
        elapsed_s=12.3,
        seconds=20.0,
        tally=tally,
        status=STATUS,
        history=history,
        scene=words(Outage(8.0, 11.0), 9.0),
        said=("18:45:06 warning something " + "that is very long " * 9,) * 3,
        wait_delay_s=1.0,
    )


def _drawn(view: View) -> str:
    drawn = io.StringIO()
    Console(file=drawn, width=80, height=24).print(picture(view))
    return drawn.getvalue()


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("values", "curve"),
    [([], ""), ([0, 0], "▁▁"), ([0, 1, 2, 4], "▁▃▅█"), ([9, 9, 9, 9, 9, 1, 8], "██▁█")],
)
def test_a_sparkline_shows_the_last_values_against_the_highest_of_them(values: list[float], curve: str) -> None:
    assert sparkline(values, 4) == curve


def test_history_forgets_and_turns_counts_into_rates() -> None:
    history = History(length=3)
    for second, promised in enumerate((0, 10, 30, 60, 100)):
        history.add(Sample(at_s=second, promised=promised, delivered=0, buffered=promised))
    assert history.buffered() == [30, 60, 100]
    assert history.promised_per_s() == [30.0, 40.0]
    assert history.delivered_per_s() == [0.0, 0.0]


def test_page_hits_are_rows_with_the_id_they_were_given() -> None:
    chance = random.Random(1)
    for number in range(1, 50):
        hit = page_hit(number, datetime(2026, 1, 2, tzinfo=UTC), chance)
        assert check(hit).row_count == 1
        assert json.loads(hit)["id"] == number
        assert 250 < len(hit) < 450


def test_a_demo_with_an_end_has_one_outage_that_is_over_before_it() -> None:
    assert list(outages(20.0)) == [Outage(8.0, 11.0)]
    assert list(outages(4.0)) == [Outage(1.6, 2.6)]


def test_a_demo_without_an_end_has_an_outage_a_minute() -> None:
    assert list(islice(outages(None), 2)) == [Outage(15.0, 20.0), Outage(75.0, 80.0)]


@pytest.mark.parametrize(
    ("at_s", "says"),
    [
        (3.0, "In 5 s the emulator will answer 503."),
        (9.0, "The emulator now answers 503, for another 2 s."),
        (11.5, "The emulator now answers 503, for another 0 s."),
    ],
)
def test_the_scene_is_told_before_and_while_it_happens(at_s: float, says: str) -> None:
    assert words(Outage(8.0, 11.0), at_s) == says


def test_the_log_tells_the_ports_the_rows_at_risk_and_the_ledger() -> None:
    log = ProxyLog()
    start = {"time": "2026-01-02T03:04:05.678+00:00", "level": "info"}
    lines: list[dict[str, object]] = [
        {"message": "ready", "port": 8000, "admin_port": 8001},
        {"message": "stopping: delivering what is left", "rows_left": 1234},
        {"message": "stopping: delivering what is left", "rows_left": 5},
        {"message": "stopped", "ledger": {**dict.fromkeys(LedgerStatus.__struct_fields__, 0), "dropped": {}}},
    ]
    assert [log.heed(json.dumps(start | line)) for line in lines] == [Ports(8000, 8001), None, None, None]
    assert log.heed("Traceback (most recent call last):") is None
    assert log.left_at_stop == 1234
    assert log.ledger is not None
    assert log.recent[0] == "03:04:05 info    stopping: delivering what is left (1,234 rows left)"


def test_children_do_not_inherit_what_configures_another_proxy() -> None:
    env = {
        "PATH": "/bin",
        "TINYBIRD_TOKEN": "secret",
        "TINYBIRD_BASE_URL": "https://api.tinybird.co",
        "PORT": "80",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector",
        "https_proxy": "http://proxy",
        "ALL_PROXY": "http://proxy",
    }
    assert plain_environment(env) == {"PATH": "/bin"}


def test_the_picture_fits_a_terminal_of_80_by_24() -> None:
    lines = _drawn(_view()).rstrip("\n").split("\n")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for expected in (
        "12 s of 20 s   The emulator now answers 503",
        "6,234 requests became 12: 6,222 saved.",
        "The emulator answers wait=true after 1 s; Tinybird takes about 4 s. Ctrl-C ends.",
        "rows buffered    1,234",
        "oldest row       2.5 s",
        "compression      7.4 x",
        "replies 503          2",
        "p99             4.1 ms",
        "1 destination not delivering (page_hits): 1,234 rows kept, none lost.",
    ):
        assert expected in text


def test_the_picture_can_be_drawn_before_anything_is_known() -> None:
    view = View(
        elapsed_s=0.0,
        seconds=None,
        tally=Tally(),
        status=None,
        history=History(),
        scene="",
        said=(),
        wait_delay_s=1.0,
    )
    assert "It has not been asked yet." in _drawn(view)
    assert plain_line(view) == "    0 s; 0 requests accepted"


def test_the_plain_line_says_the_same_in_ascii() -> None:
    assert plain_line(_view()) == (
        "   12 s; 6,234 requests accepted; 1,234 rows buffered (oldest 2.5 s);"
        " 5,000 delivered in 12 requests, compressed 7.4x; p50 0.4 ms, p99 4.1 ms;"
        " 1 destination not delivering (page_hits): 1,234 rows kept, none lost."
    )
