"""Column types, and whether a row fits them.

A schema maps column names to ClickHouse types as one writes them: ``String``, ``Int64``, ``Nullable(T)``,
``LowCardinality(T)``, ``Array(T)``, ``T DEFAULT x``. A row that lacks a column which is neither Nullable nor
has a default, or holds another type there, does not fit; fields without a column are ignored. Does no I/O.
"""

import datetime as dt
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_DEFAULT = re.compile(r"\s+DEFAULT\s+", re.IGNORECASE)
_INTEGER_TYPE = re.compile(r"(U?)Int(8|16|32|64|128|256)")
_DATETIME_TYPE = re.compile(r"DateTime(?:64)?(?:\(.*\))?")
_FLOAT_TYPE = re.compile(r"Float(?:32|64)|Decimal(?:32|64|128|256)?(?:\(.*\))?")
_DIGITS_IN_256_BITS = 79


class IntegerText(str):
    """A JSON integer, as it was spelled."""

    __slots__ = ()


class FloatText(str):
    """A JSON number with a fraction or an exponent, as it was spelled."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``fits`` judges a decoded JSON value whose numbers are still text."""

    name: str
    type: str
    optional: bool
    fits: Callable[[object], bool]


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row is quarantined; the two tuples run in parallel, as in Tinybird's quarantine tables."""

    columns: tuple[str, ...]
    messages: tuple[str, ...]


class Schema:
    """The columns of one data source. Raises ``ValueError`` for a type that is not known."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = tuple(parse_column(name, spelled) for name, spelled in columns.items())

    def judge(self, row: Mapping[str, object]) -> RowError | None:
        """What is wrong with ``row``, or None when it fits."""
        wrong = [(column.name, message) for column in self.columns if (message := _mismatch(column, row))]
        if not wrong:
            return None
        names, messages = zip(*wrong, strict=True)
        return RowError(names, messages)


def parse_column(name: str, spelled: str) -> Column:
    """Read ``T``, ``Nullable(T)`` or ``T DEFAULT x``."""
    type_name, *default = _DEFAULT.split(spelled.strip(), maxsplit=1)
    nullable, fits = _parse_type(name, type_name)
    return Column(name, type_name, nullable or bool(default), fits)


def _mismatch(column: Column, row: Mapping[str, object]) -> str | None:
    value = row.get(column.name)
    if value is None:
        if column.optional:
            return None
        if column.name in row:
            return f"Strict type checking failed. Column '{column.name}' is not Nullable"
        return f"Strict type checking failed. Object does not have column '{column.name}'"
    if column.fits(value):
        return None
    return f"Strict type checking failed. Value of column '{column.name}' is not {column.type}"


def _parse_type(name: str, spelled: str) -> tuple[bool, Callable[[object], bool]]:
    outer, parenthesis, inner = spelled.partition("(")
    if parenthesis and inner.endswith(")"):
        match outer:
            case "Nullable":
                return True, _parse_type(name, inner[:-1])[1]
            case "LowCardinality":
                return _parse_type(name, inner[:-1])
            case "Array":
                nullable, element_fits = _parse_type(name, inner[:-1])
                return False, _array_of(element_fits, nullable)
    if integer := _INTEGER_TYPE.fullmatch(spelled):
        return False, _integer(bits=int(integer[2]), signed=not integer[1])
    if _DATETIME_TYPE.fullmatch(spelled):
        return False, _fits_datetime
    if _FLOAT_TYPE.fullmatch(spelled):
        return False, _fits_float
    if simple := _SIMPLE.get(outer if outer in _WITH_ARGUMENTS else spelled):
        return False, simple
    raise ValueError(f"column {name!r}: type {spelled!r} is not known to the emulator")


def _integer(*, bits: int, signed: bool) -> Callable[[object], bool]:
    lowest = -(1 << bits - 1) if signed else 0
    highest = (1 << bits - 1 if signed else 1 << bits) - 1

    def fits(value: object) -> bool:
        if isinstance(value, IntegerText):
            return len(value) <= _DIGITS_IN_256_BITS and lowest <= int(value) <= highest
        return isinstance(value, bool) and not signed

    return fits


def _array_of(element_fits: Callable[[object], bool], nullable: bool) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        return isinstance(value, list) and all(
            nullable if element is None else element_fits(element) for element in value
        )

    return fits


def _fits_string(value: object) -> bool:
    return isinstance(value, str) and not isinstance(value, (IntegerText, FloatText))


def _fits_float(value: object) -> bool:
    return isinstance(value, (IntegerText, FloatText))


def _fits_datetime(value: object) -> bool:
    if isinstance(value, str) and _fits_string(value):
        return _is_parsed_by(dt.datetime.fromisoformat, value)
    return isinstance(value, IntegerText) and 0 <= len(value) <= 19 and not value.startswith("-")


def _fits_date(value: object) -> bool:
    return isinstance(value, str) and _fits_string(value) and _is_parsed_by(dt.date.fromisoformat, value)


def _fits_uuid(value: object) -> bool:
    return isinstance(value, str) and _fits_string(value) and _is_parsed_by(uuid.UUID, value)


def _is_parsed_by(parse: Callable[[str], object], value: str) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True


_SIMPLE: Mapping[str, Callable[[object], bool]] = {
    "String": _fits_string,
    "FixedString": _fits_string,
    "Bool": lambda value: isinstance(value, bool),
    "Date": _fits_date,
    "Date32": _fits_date,
    "UUID": _fits_uuid,
    "JSON": lambda value: isinstance(value, (dict, list)),
    "Map": lambda value: isinstance(value, dict),
    "Enum8": _fits_string,
    "Enum16": _fits_string,
}
_WITH_ARGUMENTS = ("FixedString", "Map", "Enum8", "Enum16")
