"""What a stopping process says while rows are at risk, and in the end: how many, why, and how much time is left."""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.app.last_words import LOG_INTERVAL_S, MESSAGE_MAX_BYTES, LastWords
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, after, unreachable
from tinybird_proxy.testing.pipelines import Client, Setup, numbered

pytestmark = pytest.mark.looptime(idle_timeout=1)

TIME_S = 10.0
STOPPING = "stopping: delivering what is left"


@asynccontextmanager
async def stopping(
    tmp_path: Path, answer: Script, *, rows: int = 3, setup: Setup | None = None
) -> AsyncIterator[tuple[Pipeline, LastWords]]:
    """A pipeline with so many rows of ``hits`` that stops within `TIME_S` while Tinybird answers so."""
    tinybird = FakeUpstream()
    async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
        hits, clicks = Client(pipeline, "hits"), Client(pipeline, "clicks")
        await hits.confirm()
        await clicks.confirm()
        tinybird.will(then=answer)
        if rows:
            assert hits.offer(numbered(range(rows))) is None
            assert clicks.offer(numbered([0])) is None
        await asyncio.sleep(2)
        deadline = pipeline.surroundings.now() + TIME_S
        words = LastWords(pipeline, tmp_path / "termination-log", deadline=deadline)
        yield pipeline, words
        await pipeline.drain(deadline, stop_now=asyncio.Event(), report=words.at_risk)


def told(caplog: pytest.LogCaptureFixture, message: str) -> list[tuple[int, dict[str, Any]]]:
    """Level and fields of each log line with this message."""
    return [(r.levelno, r.__dict__["fields"]) for r in caplog.records if r.getMessage() == message]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(unreachable(), "no connection to tinybird.test:443: connection refused", id="unreachable"),
        pytest.param(500, "Tinybird answered with an error (500)", id="failing"),
        pytest.param(403, "Tinybird does not accept the token for this data source (403: status 403", id="held"),
    ],
)
async def test_each_line_of_a_stop_says_how_many_rows_why_and_how_much_time_is_left(
    answer: Script, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    message = tmp_path / "termination-log"
    message.touch()
    async with stopping(tmp_path, answer) as (_, words):
        pass
    lines = told(caplog, STOPPING)
    assert len(lines) >= TIME_S / LOG_INTERVAL_S
    for level, fields in lines:
        assert level == logging.WARNING
        assert (fields["rows_left"], fields["data_source"]) == (4, "hits")
        assert reason in fields["because"]
    left = [fields["seconds_left"] for _, fields in lines]
    assert left == sorted(left, reverse=True)
    assert (left[0], left[-1] < 1) == (TIME_S, True)
    at_risk = re.compile(r"4 rows were not delivered when this was written, \d+(\.\d)? s before the end; hits: ")
    assert at_risk.match(message.read_text())
    assert reason in message.read_text()
    assert words.farewell() is ExitStatus.ROWS_LOST
    ((level, lost),) = told(caplog, "stopped with rows lost")
    assert (level, lost["rows_lost"]) == (logging.ERROR, 4)
    assert lost["data_sources"] == {"hits": 3, "clicks": 1}
    assert lost["because"].keys() == {"hits", "clicks"}
    assert all(why.startswith(reason) for why in lost["because"].values())
    summary = message.read_text()
    assert summary.startswith("4 rows lost, ")
    assert f"; hits: 3 rows, {reason}" in summary
    assert f"; clicks: 1 row, {reason}" in summary


async def test_rows_that_are_merely_slow_are_explained_too_and_are_no_warning_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with stopping(tmp_path, after(4, 200)) as (pipeline, words):
        pass
    level, fields = told(caplog, STOPPING)[0]
    assert (level, fields["rows_left"], fields["data_source"]) == (logging.INFO, 4, "hits")
    assert "1 request is in flight" in fields["because"]
    assert pipeline.buffered_rows() == 0
    assert words.farewell() is ExitStatus.NOTHING_LOST


async def test_rows_that_tinybird_never_answered_for_are_lost_for_that_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stopping(tmp_path, after(1000, 200)) as (_, words):
        pass
    assert words.farewell() is ExitStatus.ROWS_LOST
    ((_, lost),) = told(caplog, "stopped with rows lost")
    assert (lost["rows_lost"], lost["of_them_may_have_arrived"]) == (4, 4)
    assert lost["because"] == dict.fromkeys(("hits", "clicks"), "Tinybird had not answered in time")


async def test_rows_of_a_batch_that_was_being_searched_are_lost_for_what_tinybird_refused_it_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (message := tmp_path / "termination-log").touch()
    tinybird = FakeUpstream()
    async with Setup().pipeline(tinybird).running() as pipeline:
        client = Client(pipeline)
        await client.confirm()
        bad = set(range(0, 1000, 5))
        tinybird.will(then=lambda attempt: 400 if any(row["n"] in bad for row in attempt.rows) else 200)
        client.offer(numbered(range(1000)))
        await asyncio.sleep(5)
    assert LastWords(pipeline, message, deadline=0.0).farewell() is ExitStatus.ROWS_LOST
    ((_, lost),) = told(caplog, "stopped with rows lost")
    assert "400" in lost["because"]["hits"]
    assert f"; hits: {lost['data_sources']['hits']} rows, {lost['because']['hits']}" in message.read_text()


async def test_dead_letters_in_memory_are_warned_of_at_once_and_counted_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (message := tmp_path / "termination-log").touch()
    async with stopping(tmp_path, 422) as (_, words):
        pass
    ((level, fields),) = told(caplog, "stopping: dead letters are in memory only and will be lost; export them now")
    assert (level, fields["rows"]) == (logging.WARNING, 4)
    at_risk = "0 rows were not delivered and 4 rows of dead letters not saved when this was written\n"
    assert message.read_text() == at_risk
    assert words.farewell() is ExitStatus.ROWS_LOST
    assert message.read_text() == "0 rows lost; 4 rows of dead letters lost\n"


async def test_a_stop_with_nothing_left_says_that_and_no_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (message := tmp_path / "termination-log").touch()
    async with stopping(tmp_path, 200, rows=0) as (_, words):
        pass
    assert told(caplog, STOPPING) == [(logging.INFO, {"rows_left": 0, "seconds_left": TIME_S})]
    assert message.read_text() == "0 rows were not delivered when this was written\n"
    assert words.farewell() is ExitStatus.NOTHING_LOST
    ((level, fields),) = told(caplog, "stopped")
    assert (level, fields["balances"]) == (logging.INFO, True)


@asynccontextmanager
async def many_data_sources(count: int, tmp_path: Path) -> AsyncIterator[LastWords]:
    """So many with one row each, the first with two, and then a Tinybird that is not there."""
    (message := tmp_path / "termination-log").touch()
    tinybird = FakeUpstream()
    async with Setup(max_destinations=count).pipeline(tinybird).running() as pipeline:
        clients = [Client(pipeline, f"data_source_{n}") for n in range(count)]
        await asyncio.gather(*(client.confirm() for client in clients))
        tinybird.will(then=unreachable())
        for client in [*clients, clients[-1]]:
            assert client.offer(numbered([0])) is None
        yield LastWords(pipeline, message, deadline=pipeline.surroundings.now())


async def test_the_words_about_a_thousand_data_sources_fit_and_their_numbers_come_first(tmp_path: Path) -> None:
    async with many_data_sources(1000, tmp_path) as words:
        words.at_risk(1001)
        text = (tmp_path / "termination-log").read_text()
        assert text.startswith("1,001 rows were not delivered when this was written")
    assert words.farewell() is ExitStatus.ROWS_LOST
    data = (tmp_path / "termination-log").read_bytes()
    assert len(data) <= MESSAGE_MAX_BYTES
    assert data.startswith(b"1,001 rows lost, 0 of them may have arrived; data_source_999: 2 rows, ")
    named = data.count(b"; data_source_")
    assert named > 10
    assert data.endswith(f"; and {1000 - named} more data sources\n".encode())


async def test_a_shorter_word_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (message := tmp_path / "termination-log").write_text("x" * 3000)
    async with stopping(tmp_path, 200, rows=0) as (_, words):
        words.at_risk(0)
        assert message.read_text() == "0 rows were not delivered when this was written\n"


async def test_there_is_no_moment_at_which_the_message_is_empty(tmp_path: Path) -> None:
    """SIGKILL may come at any moment: whoever looks finds the old word or the new one."""
    (message := tmp_path / "termination-log").touch()
    async with stopping(tmp_path, 200, rows=0) as (_, words):
        words.at_risk(1)
        seen: set[str] = set()
        with ThreadPoolExecutor(1) as looking:
            stop = threading.Event()

            def look() -> None:
                while not stop.is_set():
                    seen.add(message.read_text().partition("\n")[0])

            looked = looking.submit(look)
            for rows in range(2, 3000):
                words.at_risk(rows)
            stop.set()
            looked.result()
    assert len(seen) > 10
    wrong = [
        text for text in seen if not re.match(r"[\d,]+ rows? (was|were) not delivered when this was written", text)
    ]
    assert wrong == []


@pytest.mark.parametrize("damage", ["accepted", "letters_deleted", "row_count"])
async def test_a_ledger_that_is_off_anywhere_is_the_end_with_3(damage: str, tmp_path: Path) -> None:
    async with stopping(tmp_path, 200) as (pipeline, words):
        target: Any = pipeline.destinations()[0].ledger
        if damage == "row_count":
            target = pipeline.surroundings.buffer.occupancy
        setattr(target, damage, getattr(target, damage) + 1)
    assert words.farewell() is ExitStatus.LEDGER_DOES_NOT_BALANCE


async def test_mistakes_of_two_destinations_do_not_make_up_for_each_other(tmp_path: Path) -> None:
    async with stopping(tmp_path, 200) as (pipeline, words):
        one, other = pipeline.destinations()
        one.ledger.accepted += 1
        other.ledger.accepted -= 1
    assert pipeline.ledger().imbalance(0) == 0
    assert words.farewell() is ExitStatus.LEDGER_DOES_NOT_BALANCE
