"""Faults of an API server as values: which requests they are for, and what happens to those. Does no I/O."""

import random
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal

_MAX_FAULTS: Final = 50
_RECENT: Final = 200


class BadFault(ValueError):
    """A fault that cannot be; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault. Raises ``BadFault``."""

    method: str | None = None
    """Only requests with this method."""
    path: str | None = None
    """Only requests in whose path and query this regular expression is found."""
    watch: bool | None = None
    """Only watches, or only what is none."""
    share: float = 1.0
    """Only this share of them, 0 to 1."""
    times: int | None = None
    """Only so many of them; absent: until the faults change."""

    status: int | None = None
    """Answer with this status, 400 to 599; the API server hears nothing."""
    retry_after_s: int | None = None
    """With a status: the header Retry-After."""
    watch_error: int | None = None
    """An `ERROR` event with this code inside of a watch, and the watch's end."""
    reset: Literal["before_request", "before_answer", "during_answer"] | None = None
    """Reset the connection (RST) before the API server hears of it, when it has done it, or within its answer."""
    hang: bool = False
    """No answer, and the API server hears nothing; when the faults change the connection is reset."""
    delay_s: float = 0.0
    """Seconds, at most 60, before any of it, or before the API server hears of it."""

    def __post_init__(self) -> None:
        outcomes = [self.status is not None, self.watch_error is not None, self.reset is not None, self.hang]
        wrong = {
            "set at most one of status, watch_error, reset and hang": sum(outcomes) > 1,
            "set one of status, watch_error, reset, hang and delay_s": sum(outcomes) == 0 and self.delay_s == 0,
            "share must be above 0 and at most 1": not 0 < self.share <= 1,
            "times must be at least 1": self.times is not None and self.times < 1,
            "status must be 400 to 599": self.status is not None and not 400 <= self.status <= 599,
            "retry_after_s goes with a status": self.retry_after_s is not None and self.status is None,
            "watch_error is for watches: leave out watch, or set it to true": self.watch_error is not None
            and self.watch is False,
            "reset must be before_request, before_answer or during_answer": self.reset
            not in (None, "before_request", "before_answer", "during_answer"),
            "delay_s must be 0 to 60": not 0 <= self.delay_s <= 60,
        }
        if problem := next((sentence for sentence, is_so in wrong.items() if is_so), None):
            raise BadFault(problem)
        try:
            re.compile(self.path or "")
        except re.error as error:
            raise BadFault(f"path: {error}") from error

    @property
    def label(self) -> str:
        """What it is counted as."""
        if self.status is not None:
            return str(self.status)
        if self.watch_error is not None:
            return f"watch_error {self.watch_error}"
        return f"reset {self.reset}" if self.reset else "hang" if self.hang else "delay"

    @property
    def strikes_open_watches(self) -> bool:
        """Whether it is also for watches that were open before it was set."""
        return self.watch_error is not None or self.reset == "during_answer"

    @property
    def reaches_the_api_server(self) -> bool:
        """Whether it is done to an answer, and not in place of one."""
        return self.status is None and self.reset != "before_request" and not self.hang

    @property
    def is_only_a_delay(self) -> bool:
        """Whether the answer is the API server's."""
        return self.reaches_the_api_server and self.reset is None and self.watch_error is None

    def is_for(self, method: str, path: str, *, is_watch: bool) -> bool:
        """Whether a request is one of those; chance and ``times`` aside."""
        if self.watch_error is not None and not is_watch:
            return False
        return (
            self.method in (None, method)
            and self.watch in (None, is_watch)
            and (self.path is None or re.search(self.path, path) is not None)
        )


def parse(given: object) -> list[Fault]:
    """The faults of a list as JSON has it. Raises ``BadFault``."""
    if not isinstance(given, list) or len(given) > _MAX_FAULTS:
        raise BadFault(f"faults must be a list of at most {_MAX_FAULTS}")
    known = {field.name for field in fields(Fault)}
    faults = []
    for each in given:
        if not isinstance(each, dict) or not known.issuperset(each):
            raise BadFault(f"{each!r}: a fault is an object of {', '.join(sorted(known))}")
        try:
            faults.append(Fault(**each))
        except TypeError as error:
            raise BadFault(f"{each!r}: {error}") from error
    return faults


class Script:
    """The faults that are set, and what has come of them. Chance is an argument: one seed, one order, one outcome."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._faults: list[Fault] = []
        self._left: list[int | None] = []
        self.injected: Counter[str] = Counter()
        self.recent: deque[str] = deque(maxlen=_RECENT)

    def set(self, faults: Sequence[Fault]) -> None:
        """These from now on, with all their ``times``; the counts go on."""
        self._faults = list(faults)
        self._left = [fault.times for fault in faults]

    def decide(self, method: str, path: str, *, is_watch: bool, is_open: bool = False) -> Fault | None:
        """What is to happen to this request, or to a watch that is open. Once it has happened: ``count``."""
        for index, fault in enumerate(self._faults):
            if self._left[index] == 0 or not fault.is_for(method, path, is_watch=is_watch):
                continue
            if (is_open and not fault.strikes_open_watches) or self._chance.random() >= fault.share:
                continue
            if (left := self._left[index]) is not None:
                self._left[index] = left - 1
            return fault
        return None

    def count(self, fault: Fault, method: str, path: str) -> None:
        """It has happened."""
        self.injected[fault.label] += 1
        self.recent.append(f"{fault.label}: {method} {path}")
