"""Read environment variables, and collect what is wrong with them in sentences. Pure."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY: Final = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_T = TypeVar("_T")


class Reader:
    """Reads variables and collects what is wrong; what is wrong reads as an empty value that nobody gets to see."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def one(self, variable: str, parse: Callable[[str], _T], default: str | None) -> _T:
        """The value of a variable. ``default`` None: it must be set."""
        text = self._env.get(variable, default)
        if text is None:
            self.problems.append(f"{variable}: is missing")
        elif not text.strip():
            self.problems.append(f"{variable}: is set but empty; give it a value or leave it unset")
        else:
            try:
                return parse(text.strip())
            except ValueError as error:
                self.problems.append(f"{variable}: {text.strip()!r}: {error}")
        return ""  # type: ignore[return-value]

    def list(self, variable: str, parse: Callable[[str], _T], default: str) -> tuple[_T, ...]:
        """The values of a variable that has commas between them, each once."""
        found = []
        for word in self._env.get(variable, default).split(","):
            try:
                found += [parse(word.strip())] if word.strip() else []
            except ValueError as error:
                self.problems.append(f"{variable}: {word.strip()!r}: {error}")
        return tuple(dict.fromkeys(found))


def matching(pattern: re.Pattern[str], message: str) -> Callable[[str], str]:
    """Text of that form, else ``message``."""

    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(message)
        return text

    return parse


dns_label = matching(_DNS_LABEL, "must be a namespace's name: lower-case letters, digits and dashes")


def label(text: str) -> tuple[str, str]:
    """A label, as key=value."""
    key, equals, value = text.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
        raise ValueError("must be a label as key=value")
    return key, value


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number between two others."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(*allowed: str) -> Callable[[str], Any]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse
