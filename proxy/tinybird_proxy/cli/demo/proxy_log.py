"""What the proxy's log says, line by line: where it listens, what worries it, and its ledger when it has stopped."""

from collections import deque
from dataclasses import dataclass

import msgspec

from tinybird_proxy.cli.demo.figures import LedgerStatus

_LINES_SHOWN = 3


class _Entry(msgspec.Struct, frozen=True):
    """One line of the log; fields that a line does not have keep their defaults."""

    time: str
    level: str
    message: str
    port: int = 0
    admin_port: int = 0
    reason: str = ""
    rows_left: int | None = None
    ledger: LedgerStatus | None = None


_decode = msgspec.json.Decoder(_Entry).decode


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the proxy listens."""

    public: int
    admin: int


class ProxyLog:
    """Remembers the last lines for the screen, and the ledger of the very last one."""

    def __init__(self) -> None:
        self.recent: deque[str] = deque(maxlen=_LINES_SHOWN)
        self.ledger: LedgerStatus | None = None
        """Of the line "stopped"; None until then."""
        self.left_at_stop: int | None = None
        """Rows in the buffer when the signal came; None until then."""

    def heed(self, line: str) -> Ports | None:
        """Take a line in; answer with the ports if it is the one that says that the proxy is ready."""
        entry = _entry(line)
        if entry is None:
            return None
        details = [entry.reason] if entry.reason else []
        details += [f"{entry.rows_left:,} rows left"] if entry.rows_left is not None else []
        said = f"{entry.message} ({', '.join(details)})" if details else entry.message
        # ISO 8601: the time of day is its part from the 11th character on.
        self.recent.append(f"{entry.time[11:19]} {entry.level:7} {said}")
        if self.left_at_stop is None:
            self.left_at_stop = entry.rows_left
        if entry.message == "stopped":
            self.ledger = entry.ledger
        return Ports(entry.port, entry.admin_port) if entry.message == "ready" else None


def _entry(line: str) -> _Entry | None:
    """None: not a line of the log, such as a traceback's."""
    try:
        return _decode(line)
    except msgspec.DecodeError:
        return None
