"""Every error of ours, in one tree.

    ProxyError
    ├── ConfigError           the configuration is wrong; the process must not start
    ├── TokenFileError        a token file cannot be used; carries a sentence for a person
    ├── BodyRefused           a request's body is not acceptable; status and message for the client
    └── UpstreamError         an attempt that ended without a reply from Tinybird
        ├── ConnectFailed     nothing was written: the same bytes may go again, no duplicates
        ├── ConnectionBroken  it broke after the first body byte: the outcome is unknown
        └── ResponseTimeout   everything was written, no reply in time: the outcome is unknown

Library errors are translated where they enter, chained with ``from``. Messages never hold a token or a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ProxyError(Exception):
    """Base of all errors that this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the configuration: where, and what is allowed instead."""

    variable: str
    message: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.message}"


class ConfigError(ProxyError):
    """The configuration has at least one problem; ``problems`` lists all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class TokenFileError(ProxyError):
    """A token file is missing, empty, unreadable or unparsable."""


class BodyRefused(ProxyError):
    """A body that is not taken, whole: ``status`` and ``message`` are what the client is told."""

    def __init__(self, status: int, message: str, *, reason: str | None = None) -> None:
        """``reason`` is the metric's label, by default the status."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason or f"http_{status}"


class UpstreamError(ProxyError):
    """An attempt got no reply. ``ambiguous`` says whether Tinybird may have taken the rows all the same."""

    ambiguous = False


class ConnectFailed(UpstreamError):
    """Refused, unresolvable, TLS failure, or lost before the first body byte was written."""


class ConnectionBroken(UpstreamError):
    """The connection broke after the first body byte was written."""

    ambiguous = True


class ResponseTimeout(UpstreamError):
    """The request was written, whole or in part, and Tinybird did not answer in time."""

    ambiguous = True
