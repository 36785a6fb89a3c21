"""Logs: every line one record, valid JSON where it is meant to be, and never a row, a token or an exception's text."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.telemetry.logs import LOGGER, ConsoleFormatter, JsonFormatter, configure, fields, get_logger

AT: Final = datetime(2026, 11, 23, 12, 30, 15, 678_900, tzinfo=UTC)


def record(message: str, *args: object, level: int = logging.WARNING, **values: Any) -> logging.LogRecord:
    made = logging.LogRecord("tinybird_proxy.part", level, "file.py", 1, message, args, None)
    made.created = AT.timestamp()
    if values:
        made.fields = values
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter("node-1").format(made)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def raised(error: Exception) -> logging.LogRecord:
    """A record of ``error`` as it was raised a few calls deep."""

    def deeper() -> None:
        raise error

    try:
        try:
            deeper()
        except ValueError as inner:
            raise RuntimeError("outer sEcReT") from inner
    except RuntimeError:
        made = record("something broke")
        made.exc_info = sys.exc_info()
    return made


# JSON.


def test_a_json_line_holds_time_level_logger_message_node_and_fields() -> None:
    assert as_json(record("rows were lost", rows=3, reason="shutdown", level=logging.ERROR)) == {
        "time": "2026-11-23T12:30:15.678+00:00",
        "level": "error",
        "logger": "tinybird_proxy.part",
        "message": "rows were lost",
        "node": "node-1",
        "rows": 3,
        "reason": "shutdown",
    }


def test_a_record_of_another_library_is_a_json_line_too() -> None:
    assert as_json(record("%s of %d", "one", 2))["message"] == "one of 2"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param('two\nlines\u2028and\x1b[2J"quotes"', 'two\nlines\u2028and\x1b[2J"quotes"', id="text"),
        pytest.param("/run/\udcff", "/run/\udcff", id="a path that is not UTF-8"),
        pytest.param(float("nan"), None, id="no number"),
        pytest.param(2**70, 2**70, id="a large number"),
        pytest.param({"a": (1, 2)}, {"a": [1, 2]}, id="a dictionary"),
        pytest.param(None, None, id="nothing"),
        pytest.param(complex(1, 2), "(1+2j)", id="anything else as text"),
    ],
)
def test_any_field_can_be_logged(value: object, shown: object) -> None:
    assert as_json(record("x", value=value))["value"] == shown


def test_one_field_that_cannot_be_written_takes_no_other_with_it() -> None:
    found = as_json(record("x", path="/run/\udcff", when=AT, rows=1))
    assert (found["path"], found["when"], found["rows"]) == ("/run/\udcff", str(AT), 1)


@settings(deadline=None, max_examples=100)
@given(
    st.text(st.characters(codec=None, exclude_categories=())),
    st.dictionaries(st.text(max_size=5), st.text() | st.integers()),
)
def test_every_json_line_is_one_line_of_json(message: str, values: dict[str, Any]) -> None:
    made = record(message.replace("%", "%%"))
    made.fields = values
    for name, value in values.items():
        assert as_json(made)[name] == value


def test_an_exception_is_its_type_and_its_places_without_its_text() -> None:
    made = raised(ValueError("the row was sEcReT"))
    for text in (JsonFormatter("n").format(made), ConsoleFormatter().format(made)):
        assert "sEcReT" not in text
        assert "RuntimeError at test_telemetry_logs.py:" in text
        assert " in raised" in text
    assert as_json(made)["exception"].startswith("RuntimeError at test_telemetry_logs.py:")


def test_of_a_long_way_only_the_last_places_are_named() -> None:
    def down(levels: int) -> None:
        if levels == 0:
            raise KeyError("sEcReT")
        down(levels - 1)

    made = record("broke")
    try:
        down(50)
    except KeyError:
        made.exc_info = sys.exc_info()
    where = as_json(made)["exception"]
    assert where.count(" in down") == 8
    assert "sEcReT" not in where


@pytest.mark.parametrize("exc_info", [None, (None, None, None)])
def test_no_exception_is_no_exception(exc_info: Any) -> None:
    made = record("fine")
    made.exc_info = exc_info
    assert "exception" not in as_json(made)
    assert "[" not in ConsoleFormatter().format(made)


# The console.


def test_a_console_line_is_time_level_sentence_and_fields() -> None:
    local = AT.astimezone().strftime("%H:%M:%S")
    line = ConsoleFormatter().format(record("a destination is held", data_source="clicks", rows=3))
    assert line == f"{local} WARNING a destination is held  data_source=clicks rows=3"
    assert ConsoleFormatter().format(record("ready", level=logging.INFO)) == f"{local} INFO    ready"


@pytest.mark.parametrize("value", ["a\nb", "a\u2028b", "\x1b[2J", "a\x85b"])
def test_no_field_breaks_a_console_line_or_moves_the_cursor(value: str) -> None:
    line = ConsoleFormatter().format(record("x", data_source=value))
    assert line.endswith(f"data_source={value!r}")
    assert line.isprintable()


# Set up.


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(LOGGER)
    before = (root.handlers[:], root.level, ours.level, sys.excepthook)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    sys.excepthook = before[3]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        pytest.param("auto", io.StringIO(), True, id="auto into a pipe"),
        pytest.param("auto", Terminal(), False, id="auto on a terminal"),
        pytest.param("json", Terminal(), True, id="JSON on a terminal"),
        pytest.param("console", io.StringIO(), False, id="console into a pipe"),
    ],
)
def test_the_format_is_as_asked_or_as_fits_the_stream(form: Any, stream: io.StringIO, is_json: bool) -> None:
    configure("info", form, node="node-1", stream=stream)
    get_logger("part").info("hello", extra=fields(rows=1))
    assert stream.getvalue().startswith("{") is is_json
    assert "hello" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")],
)
def test_our_level_is_as_asked_and_other_libraries_speak_from_warnings_on(level: str, shown: str) -> None:
    stream = io.StringIO()
    configure(level, "json", node="n", stream=stream)
    ours, others = get_logger("part"), logging.getLogger("another.library")
    for logger in (ours, others):
        logger.debug("d")
        logger.info("i")
        logger.warning("w")
        logger.error("e")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "".join(line["message"] for line in lines if line["logger"] == ours.name) == shown
    assert "".join(line["message"] for line in lines if line["logger"] == others.name) == "we"


@pytest.mark.usefixtures("_logging_restored")
def test_configuring_twice_logs_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("info", "json", node="n", stream=first)
    configure("info", "json", node="n", stream=second)
    get_logger("part").info("hello")
    assert (first.getvalue(), second.getvalue().count("\n")) == ("", 1)


@pytest.mark.usefixtures("_logging_restored")
def test_an_uncaught_exception_is_a_record_without_its_text() -> None:
    stream = io.StringIO()
    configure("info", "json", node="n", stream=stream)
    made = raised(ValueError("sEcReT"))
    assert made.exc_info is not None
    kind, error, traceback = made.exc_info
    assert kind is not None
    assert error is not None
    sys.excepthook(kind, error, traceback)
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"]) == ("critical", "the process ends on an unexpected error")
    assert line["exception"].startswith("RuntimeError at ")
    assert "sEcReT" not in stream.getvalue()
