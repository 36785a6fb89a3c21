"""Label selectors as Kubernetes has them: ``a=b,c!=d,e in (f,g),h notin (),i,!j,k>1``. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_TOKEN: Final = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_KEY: Final = re.compile(
    r"(?:(?=.{1,253}/)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_SYMBOLS: Final = frozenset(("==", "!=", *"=!(),<>"))


class Operator(StrEnum):
    """How a label is compared."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "!"
    GREATER = ">"
    LESS = "<"


_BINARY: Final = {
    "=": Operator.IN,
    "==": Operator.IN,
    "!=": Operator.NOT_IN,
    "in": Operator.IN,
    "notin": Operator.NOT_IN,
    ">": Operator.GREATER,
    "<": Operator.LESS,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it. A label that is missing is not in any set."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.EXISTS:
                return value is not None
            case Operator.ABSENT:
                return value is None
            case Operator.IN:
                return value in self.values
            case Operator.NOT_IN:
                return value not in self.values
        [limit] = self.values
        if value is None or not _NUMBER.fullmatch(value):
            return False
        return int(value) > int(limit) if self.operator is Operator.GREATER else int(value) < int(limit)


@dataclass(frozen=True, slots=True)
class Selector:
    """All terms. None: everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet every term."""
        return all(each.matches(labels) for each in self.requirements)

    def speaks_of(self, key: str) -> bool:
        """Whether any term is about this label."""
        return any(each.key == key for each in self.requirements)


def parse(text: str) -> Selector:
    """Read a selector. Raises ``ValueError`` with a sentence."""
    return Selector(tuple(_Parser(text).all()))


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def all(self) -> list[Requirement]:
        found: list[Requirement] = []
        while self._next() is not None:
            found.append(self._requirement())
            if (after := self._take()) is None:
                break
            if after != "," or self._next() is None:
                raise ValueError(f"after {found[-1].key} comes {after!r}, where a comma and another label must stand")
        return found

    def _requirement(self) -> Requirement:
        absent = self._next() == "!"
        if absent:
            self._take()
        key = self._word("a label")
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no label")
        if absent:
            return Requirement(key, Operator.ABSENT)
        if self._next() in (None, ","):
            return Requirement(key, Operator.EXISTS)
        sign = self._take() or ""
        operator = _BINARY.get(sign)
        if operator is None:
            raise ValueError(f"after {key} comes {sign!r}, which is none of {', '.join(_BINARY)}")
        values = self._values() if sign in ("in", "notin") else {self._value()}
        if wrong := sorted(value for value in values if not _VALUE.fullmatch(value)):
            raise ValueError(f"{wrong[0]!r} is no value of a label")
        if operator in (Operator.GREATER, Operator.LESS) and not all(_NUMBER.fullmatch(value) for value in values):
            raise ValueError(f"{key} is compared with {next(iter(values))!r}, which is no whole number")
        return Requirement(key, operator, frozenset(values))

    def _value(self) -> str:
        return "" if self._next() in (None, ",") else self._word("a value")

    def _values(self) -> set[str]:
        if self._take() != "(":
            raise ValueError("after in and notin must stand the values, in parentheses")
        found = set[str]()
        while True:
            found.add("" if self._next() in (",", ")") else self._word("a value"))
            after = self._take()
            if after == ")":
                return found
            if after != ",":
                raise ValueError("a list of values must end with a parenthesis, and have commas between them")

    def _word(self, what: str) -> str:
        word = self._take()
        if word is None or word in _SYMBOLS:
            raise ValueError(f"where {what} must stand comes {'the end' if word is None else repr(word)}")
        return word

    def _next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> str | None:
        token = self._next()
        self._at += 1
        return token
