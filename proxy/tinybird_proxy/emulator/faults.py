"""Faults on demand: what the next requests to ``/v0/events`` get instead of an honest answer.

A fault says *which* requests it is for (``datasource``, ``above_bytes``, ``row_matches``, ``share``, and how
many ``times``) and *what* happens to them. The first fault of the list that is for a request applies to it,
alone. Does no I/O; chance is an argument.
"""

import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeGuard

MAX_FAULTS = 100
_MAX_DELAY_S = 3600.0
_COUNTS = ("successful_rows", "quarantined_rows")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_STATUS_TOO_LARGE = 413
_STATUS_BAD_ROW = 400


class BadFault(ValueError):
    """A fault that cannot be; the message says what is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault. Raises `BadFault` if a value is not allowed, or if nothing would happen."""

    datasource: str | None = None
    """Applies to this data source only; absent: to all."""
    above_bytes: int | None = None
    """Applies to bodies of more than so many bytes as sent; the status is then 413 unless said otherwise."""
    row_matches: str | None = None
    """Applies when a row contains this text, or, written ``/…/``, matches that regular expression; the
    status is then 400 unless said otherwise."""
    times: int | None = None
    """Applies to so many requests; absent: until cleared."""
    share: float = 1.0
    """Applies to this share of the requests, 0 to 1."""

    status: int | None = None
    """Answer with this status; absent: the honest answer."""
    body: str | None = None
    """Answer with exactly this body."""
    text: bool = False
    """Answer as text/plain instead of JSON."""
    rate_headers: bool = True
    """False leaves out the X-RateLimit headers, as when a load balancer answers instead of Tinybird."""
    headers: Mapping[str, str] | None = None
    """More response headers."""
    retry_after: int | str | None = None
    """The Retry-After header: seconds, or a date."""
    counts: Mapping[str, int] | None = None
    """Overrides ``successful_rows`` or ``quarantined_rows`` in the answer."""
    delay_s: float = 0.0
    """Seconds to wait before the answer, on top of the ``wait`` delay."""
    reset: Literal["before_body", "during_body", "after_body"] | None = None
    """Reset the connection instead of answering, before the body is read, after a first piece of it, or after all."""
    hang: bool = False
    """Read everything and never answer; when the faults change the connection is reset."""
    quarantine: int | Literal["all"] | None = None
    """So many of the request's rows, from the first, go to quarantine."""
    ingest: bool | None = None
    """Whether the rows are stored; absent: not if the fault has a status, resets or hangs, else yes."""

    def __post_init__(self) -> None:
        for name, (is_allowed, allowed) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not is_allowed(value):
                raise BadFault(f"{name}: {value!r}, must be {allowed}")
        if self.status is None and not self._sets(_OUTCOMES):
            if self.above_bytes is not None:
                object.__setattr__(self, "status", _STATUS_TOO_LARGE)
            elif self.row_matches is not None:
                object.__setattr__(self, "status", _STATUS_BAD_ROW)
            elif not self._sets(_DECORATIONS):
                allowed = ", ".join(("status", *_OUTCOMES, *_DECORATIONS))
                raise BadFault(f"a fault must do something: set one of {allowed}")
        if self.resets_early and (self.row_matches is not None or self.ingest):
            raise BadFault(f"reset: '{self.reset}' knows no rows, so neither row_matches nor ingest can be set")
        if self.quarantine is not None and not self.ingests:
            raise BadFault("quarantine: with status, reset or hang it needs ingest: true")

    @property
    def ingests(self) -> bool:
        """Whether the rows of the request are stored."""
        if self.ingest is not None:
            return self.ingest
        return self.status is None and self.reset is None and not self.hang

    @property
    def resets_early(self) -> bool:
        """Whether the connection is reset before all of the body was read."""
        return self.reset in ("before_body", "during_body")

    def _sets(self, names: Collection[str]) -> bool:
        return any(getattr(self, field.name) != field.default for field in fields(self) if field.name in names)

    @classmethod
    def from_json(cls, value: object) -> "Fault":
        """A fault from a decoded JSON object. Raises `BadFault`."""
        if not isinstance(value, dict):
            raise BadFault("a fault must be a JSON object")
        known = [field.name for field in fields(cls)]
        for name in value:
            if name not in known:
                raise BadFault(f"{name}: unknown, must be one of {', '.join(known)}")
        given: dict[str, Any] = {name: field for name, field in value.items() if field is not None}
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """What was set, as `from_json` takes it."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


class FaultList:
    """The faults in force, and how often each was applied."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._faults: list[tuple[Fault, int]] = []

    def replace(self, faults: Sequence[Fault]) -> None:
        """Put ``faults`` in force instead of the present ones. Raises `BadFault` if there are too many."""
        if len(faults) > MAX_FAULTS:
            raise BadFault(f"faults: {len(faults)}, must be at most {MAX_FAULTS}")
        self._faults = [(fault, 0) for fault in faults]

    def applied(self) -> list[tuple[Fault, int]]:
        """Each fault with the number of requests it was applied to."""
        return list(self._faults)

    def row_patterns(self, datasource: str) -> list[str]:
        """What to look for in the rows of a request to ``datasource``."""
        return [
            fault.row_matches
            for fault, applied in self._faults
            if fault.row_matches is not None and _is_for(fault, applied, datasource)
        ]

    def take_before_body(self, datasource: str, declared_bytes: int | None) -> Fault | None:
        """The fault that strikes before all of the body is read, counted as applied."""
        return self._take(datasource, declared_bytes or 0, (), before_body=True)

    def take(self, datasource: str, size_bytes: int, matching: Collection[str]) -> Fault | None:
        """The fault for a request whose body was read, counted as applied.

        ``matching`` holds those of `row_patterns` that occur in its rows.
        """
        return self._take(datasource, size_bytes, matching, before_body=False)

    def _take(self, datasource: str, size_bytes: int, matching: Collection[str], *, before_body: bool) -> Fault | None:
        for index, (fault, applied) in enumerate(self._faults):
            if (
                fault.resets_early == before_body
                and _is_for(fault, applied, datasource)
                and (fault.above_bytes is None or size_bytes > fault.above_bytes)
                and (fault.row_matches is None or fault.row_matches in matching)
                and (fault.share >= 1 or self._rng.random() < fault.share)
            ):
                self._faults[index] = (fault, applied + 1)
                return fault
        return None


def faults_from_json(document: object) -> list[Fault]:
    """Read ``{"faults": [{…}, …]}``. Raises `BadFault`, naming the fault by its number."""
    listed = document.get("faults") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise BadFault('the body must be {"faults": [{…}, …]}')
    faults = []
    for number, value in enumerate(listed, 1):
        try:
            faults.append(Fault.from_json(value))
        except BadFault as exc:
            raise BadFault(f"fault {number}: {exc}") from exc
    return faults


def _is_for(fault: Fault, applied: int, datasource: str) -> bool:
    return fault.datasource in (None, datasource) and (fault.times is None or applied < fault.times)


_OUTCOMES = ("body", "counts", "delay_s", "reset", "hang", "quarantine", "ingest")
_DECORATIONS = ("text", "rate_headers", "headers", "retry_after")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object, highest: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= highest


def _is_header_value(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and value.isascii()


def _are_headers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and _HEADER_NAME.fullmatch(name)
        and name.lower() not in ("content-length", "transfer-encoding")
        and _is_header_value(text)
        for name, text in value.items()
    )


def _are_counts(value: object) -> bool:
    return isinstance(value, Mapping) and all(name in _COUNTS and _is_count(count) for name, count in value.items())


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string that UTF-8 can carry: no lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_row_pattern(value: object) -> bool:
    if not _is_text(value) or not value:
        return False
    if len(value) > 1 and value.startswith("/") and value.endswith("/"):
        try:
            re.compile(value[1:-1].encode())
        except re.error:
            return False
    return True


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_RULES: Mapping[str, tuple[Any, str]] = {
    "datasource": (lambda value: _is_text(value) and value != "", "the name of a data source"),
    "above_bytes": (_is_count, "a number of bytes, 0 or more"),
    "row_matches": (_is_row_pattern, "text, or a regular expression between slashes"),
    "times": (lambda value: _is_count(value) and value > 0, "a number of requests, 1 or more"),
    "share": (lambda value: _is_number(value, 1), "a number from 0 to 1"),
    "status": (lambda value: _is_count(value) and 200 <= value <= 599, "an HTTP status from 200 to 599"),
    "body": (lambda value: _is_text(value), "a string"),
    "text": (_is_bool, "true or false"),
    "rate_headers": (_is_bool, "true or false"),
    "headers": (_are_headers, "an object of header names and printable ASCII strings"),
    "retry_after": (
        lambda value: _is_count(value) or _is_header_value(value),
        "a number of seconds or a string, such as a date",
    ),
    "counts": (_are_counts, "an object of successful_rows, quarantined_rows, each 0 or more"),
    "delay_s": (lambda value: _is_number(value, _MAX_DELAY_S), f"seconds from 0 to {_MAX_DELAY_S:g}"),
    "reset": (
        lambda value: value in ("before_body", "during_body", "after_body"),
        "'before_body', 'during_body' or 'after_body'",
    ),
    "hang": (_is_bool, "true or false"),
    "quarantine": (
        lambda value: value == "all" or (_is_count(value) and value > 0),
        "a number of rows, 1 or more, or 'all'",
    ),
    "ingest": (_is_bool, "true or false"),
}


def parse_faults(faults: Iterable["Fault | Mapping[str, object]"]) -> list[Fault]:
    """Faults from either form: as values, or as the JSON objects that `Fault.from_json` takes."""
    return [fault if isinstance(fault, Fault) else Fault.from_json(dict(fault)) for fault in faults]
