"""Logs, as JSON lines or for a terminal. WARN: nothing was lost. ERROR: rows were lost, how many and why.

Fields ride in ``extra={"fields": {...}}``. Rows and tokens never do.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

LOGGER = "tinybird_proxy"


def get_logger(part: str) -> logging.Logger:
    """The logger of one part of the proxy."""
    return logging.getLogger(f"{LOGGER}.{part}")


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """``extra`` for a log call: named values beside the sentence."""
    return {"fields": values}


class Sparingly:
    """What is counted each time and logged at most once in ``interval_s``, with the number since it was logged last."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._told_at: float | None = None
        self._untold = 0

    def count(self, now: float, number: int = 1) -> int:
        """So many more: how many there were since it was told last, or 0 if there is nothing to tell yet."""
        self._untold += number
        if self._told_at is not None and now - self._told_at < self._interval_s:
            return 0
        return self.rest(now)

    def rest(self, now: float) -> int:
        """What was not told, whenever that was; it counts as told from here on."""
        untold = self._untold
        if untold:
            self._untold, self._told_at = 0, now
        return untold


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and an exception's type and place."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "node": self._node,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = _where(record)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except UnicodeEncodeError:  # a path of ours that is not UTF-8
            return json.dumps(entry, default=str)


class ConsoleFormatter(logging.Formatter):
    """A line for a person: time, level, sentence, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        values = " ".join(f"{name}={_on_one_line(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{when} {record.levelname:<7} {record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f" [{_where(record)}]"
        return f"{line}  {values}" if values else line


def _on_one_line(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)


def _where(record: logging.LogRecord) -> str:
    """An exception's type and the places it passed: its text may quote what was sent, so it stays out."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    places, traceback = [], record.exc_info[2]
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno} in {code.co_name}")
        traceback = traceback.tb_next
    return f"{record.exc_info[0].__name__} at {' < '.join(reversed(places[-8:]))}"


def configure(level: str, form: Literal["auto", "json", "console"], *, node: str, stream: TextIO) -> None:
    """Send everything to ``stream``; other libraries only from WARNING on."""
    as_json = form == "json" or (form == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(node) if as_json else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level.upper())
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    get_logger("process").critical("the process ends on an unexpected error", exc_info=(kind, error, traceback))
