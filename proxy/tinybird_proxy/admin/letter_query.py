"""Which dead letters a query means. Pure, and strict: what is misspelt must not mean all of them.

The parameters of a filter are those of ``LetterFilter``; what else may stand in a query depends on what is asked.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tinybird_proxy.dead_letter import EVERY_LETTER, LetterFilter
from tinybird_proxy.ledger import LetterReason

_SHOWN_CHARS: Final = 80
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
# Twelve digits and more are milliseconds by mistake: a time so late would choose everything, or nothing.
_UNIX_SECONDS: Final = re.compile(r"\d{1,11}(?:\.\d{1,9})?", re.ASCII)
_AGO: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = "a time such as 2026-01-31T12:00:00Z, Unix seconds, or how long ago, such as 15m"


class BadQuery(ValueError):
    """A query that means nothing for sure; the message names the parameter and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterQuery:
    """Which letters, and how they are shown. ``everything``: all of them are meant, and somebody said so."""

    wanted: LetterFilter = EVERY_LETTER
    limit: int | None = None
    with_rows: bool = False
    only_rows: bool = False
    everything: bool = False


def parse_letter_query(pairs: Iterable[tuple[str, str]], *, also: Collection[str], now_utc_s: float) -> LetterQuery:
    """Read a query's parameters. ``also``: those allowed besides the filter's. Raises ``BadQuery``."""
    known = {name: parameter for name, parameter in _PARAMETERS.items() if parameter.of_filter or name in also}
    ids: set[str] = set()
    found: dict[str, Any] = {}
    for name, text in pairs:
        parameter = known.get(name)
        if parameter is None:
            raise BadQuery(f"{name[:_SHOWN_CHARS]!a}: is no parameter here; it must be one of {', '.join(known)}")
        try:
            value = parameter.parse(text, now_utc_s)
        except ValueError as error:
            raise BadQuery(f"{name}: {text[:_SHOWN_CHARS]!a}, must be {parameter.allowed}") from error
        if name == "id":
            ids |= value
        elif parameter.field in found:
            raise BadQuery(f"{name}: is given twice")
        else:
            found[parameter.field] = value
    beside = {
        parameter.field: found.pop(parameter.field) for parameter in known.values() if _is_beside(parameter, found)
    }
    return LetterQuery(wanted=LetterFilter(ids=frozenset(ids) or None, **found), **beside)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """``parse`` raises ``ValueError`` for what is not ``allowed``."""

    field: str
    parse: Callable[[str, float], Any]
    allowed: str
    of_filter: bool = True


def _is_beside(parameter: _Parameter, found: Mapping[str, Any]) -> bool:
    return not parameter.of_filter and parameter.field in found


def _text(text: str, _: float) -> str:
    if not text:
        raise ValueError
    return text


def _ids(text: str, _: float) -> set[str]:
    ids = text.split(",")
    if not all(ids):
        raise ValueError
    return set(ids)


def _flag(text: str, _: float) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _true(text: str, _: float) -> bool:
    if text != "true":
        raise ValueError
    return True


def _whole(low: int, high: int) -> Callable[[str, float], int]:
    def parse(text: str, _: float) -> int:
        if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not low <= (value := int(text)) <= high:
            raise ValueError
        return value

    return parse


def _only_rows(text: str, _: float) -> bool:
    if text not in ("letters", "rows"):
        raise ValueError
    return text == "rows"


def _time(text: str, now_utc_s: float) -> float:
    """UTC seconds since 1970."""
    if _UNIX_SECONDS.fullmatch(text):
        return float(text)
    if ago := _AGO.fullmatch(text):
        return now_utc_s - float(ago[1]) * _UNITS_S[ago[2]]
    if "T" in text.upper():
        text = text.replace(" ", "+")  # a plus sign that nobody escaped
    if not _RFC_3339.fullmatch(text):
        raise ValueError
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except OverflowError as error:
        raise ValueError from error


_PARAMETERS: Final[dict[str, _Parameter]] = {
    "id": _Parameter("ids", _ids, "the id of a dead letter, or several with commas between them"),
    "name": _Parameter("data_source", _text, "the name of a data source"),
    "reason": _Parameter("reason", lambda text, _: LetterReason(text), f"one of {', '.join(LetterReason)}"),
    "status": _Parameter("status", _whole(100, 599), "an HTTP status from 100 to 599"),
    "batch": _Parameter("batch_id", _text, "the id of a batch"),
    "since": _Parameter("since", _time, _TIME),
    "until": _Parameter("until", _time, _TIME),
    "client_told": _Parameter("client_told", _flag, "true or false"),
    "limit": _Parameter("limit", _whole(1, 10**9), "a whole number from 1 to 1000000000", of_filter=False),
    "rows": _Parameter("with_rows", _flag, "true or false", of_filter=False),
    "format": _Parameter("only_rows", _only_rows, "letters or rows", of_filter=False),
    "all": _Parameter("everything", _true, "true", of_filter=False),
}
