"""The table, clients by cases: what each client hears and does on either way.

Both ways must agree. Where they may differ is said by `Allowed`, and a cell that differs names it. What errors say is
not compared, as Tinybird's words are not known; but what the client makes of them is, and that they can be read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from tests.proxy.conformance.drivers import (
    CLIENTS,
    OLD_PYTHON_SDK,
    PYTHON_SDK,
    TS_SDK,
    ZOD_BIRD,
    Client,
    Heard,
    Raised,
    Returned,
)


class Allowed(Enum):
    """What the proxy may do that Tinybird does not."""

    QUARANTINE_NOT_KNOWN = "without wait, quarantined_rows is 0: the proxy answers before Tinybird has looked"
    ABSORBED = "the proxy takes the rows and deals with Tinybird's 429 and 503 itself"


@dataclass(frozen=True, slots=True)
class Fails:
    """The client raises an error that can be read. ``message`` is a regular expression that finds its words."""

    type: str
    message: str
    status: int | None


@dataclass(frozen=True, slots=True)
class Saw:
    """One way: the statuses that the client was answered with, and what its caller got."""

    statuses: tuple[int, ...]
    gives: Any
    """The value returned, or a `Fails`."""
    arrives: bool

    def differs(self, heard: Heard) -> str | None:
        """In what ``heard`` is different; None if it is as expected."""
        if heard.statuses != self.statuses:
            return f"answers {heard.statuses}, not {self.statuses} ({heard.outcome})"
        match heard.outcome, self.gives:
            case Returned(value), expected if not isinstance(expected, Fails):
                return None if value == expected else f"returned {value}, not {expected}"
            case Raised(kind, message, status), Fails() as expected:
                if (kind, status) != (expected.type, expected.status) or not re.search(expected.message, message):
                    return f"raised {heard.outcome}, not {expected}"
                return None
        return f"{heard.outcome}, not {self.gives}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One client in one case."""

    direct: Saw
    proxied: Saw
    allowed: Allowed | None = None

    def unexplained(self) -> str | None:
        """What differs between the ways beyond what ``allowed`` allows."""
        direct, proxied = self.direct, self.proxied
        match self.allowed:
            case None:
                same = (direct.statuses, _without_words(direct.gives), direct.arrives) == (
                    *(proxied.statuses, _without_words(proxied.gives), proxied.arrives),
                )
            case Allowed.QUARANTINE_NOT_KNOWN:
                total = direct.gives["successful_rows"] + direct.gives["quarantined_rows"]
                same = direct.statuses == proxied.statuses == (202,) and proxied.gives == counts(total)
            case Allowed.ABSORBED:
                kept = tuple(status for status in direct.statuses if status not in (429, 503))
                same = proxied.arrives and len(kept) < len(direct.statuses)
                if not isinstance(direct.gives, Fails):
                    same = same and (proxied.statuses, proxied.gives) == (kept, direct.gives)
        return None if same else f"{direct} and {proxied}"


def _without_words(gives: Any) -> Any:
    return (gives.type, gives.status) if isinstance(gives, Fails) else gives


def counts(successful: int, quarantined: int = 0) -> dict[str, int]:
    """What a client returns that returns what it was answered."""
    return {"successful_rows": successful, "quarantined_rows": quarantined}


def _saw(*statuses: int, gives: Any, arrives: bool | None = None) -> Saw:
    """Rows arrive if no error is raised, unless said otherwise."""
    return Saw(statuses, gives, not isinstance(gives, Fails) if arrives is None else arrives)


def _both(*statuses: int, gives: Any, arrives: bool | None = None) -> Cell:
    saw = _saw(*statuses, gives=gives, arrives=arrives)
    return Cell(saw, saw)


def _fail(status: int, direct: str, proxied: str | None = None) -> dict[Client, Cell]:
    """Every client raises what it raises at an error, with the words of either way."""
    return {
        client: Cell(
            _saw(status, gives=_error(client, status, direct)),
            _saw(status, gives=_error(client, status, direct if proxied is None else proxied)),
        )
        for client in CLIENTS
    }


def _error(client: Client, status: int, words: str) -> Fails:
    if client is ZOD_BIRD:  # says nothing of the status, and of a 403 only this
        return Fails(
            "Error", r"^Unable to ingest to \S*: " + ("Unauthorized$" if status == 403 else f".*{words}"), None
        )
    if client is OLD_PYTHON_SDK:
        return Fails("HTTPError", f"^{status} (Client|Server) Error: .*{words}", status)
    return Fails("TinybirdError", words, status)


def _absorbed(direct: Saw, proxied: Saw) -> Cell:
    return Cell(direct, proxied, Allowed.ABSORBED)


def _quarantine_not_known(successful: int, quarantined: int) -> Cell:
    return Cell(
        _saw(202, gives=counts(successful, quarantined)),
        _saw(202, gives=counts(successful + quarantined)),
        Allowed.QUARANTINE_NOT_KNOWN,
    )


def _by_default(row_count: int) -> dict[Client, Cell]:
    """What the clients do if nothing is said: both official SDKs wait, the others do not."""
    return {
        TS_SDK: _both(200, gives=counts(row_count)),
        ZOD_BIRD: _both(202, gives=counts(row_count)),
        PYTHON_SDK: _both(200, gives=counts(row_count)),
        OLD_PYTHON_SDK: _both(202, gives=None),
    }


def _all(cell: Cell) -> dict[Client, Cell]:
    return dict.fromkeys(CLIENTS, cell)


TABLE: Final[Mapping[str, Mapping[Client, Cell]]] = {
    "one row": _by_default(1),
    "wait": _all(_both(200, gives=counts(1))),
    "no wait": _all(_both(202, gives=counts(1))),
    "many rows": _by_default(500),
    "many calls": _all(_both(202, gives=[counts(1)] * 20)),
    "no rows": {
        TS_SDK: _both(gives=counts(0), arrives=False),
        ZOD_BIRD: _both(202, gives=counts(0), arrives=False),  # the only one that asks
        PYTHON_SDK: _both(gives=counts(0), arrives=False),
        OLD_PYTHON_SDK: _both(gives=None, arrives=False),
    },
    "quarantine": _all(_both(200, gives=counts(2, 1))),
    "quarantine, no wait": _all(_quarantine_not_known(2, 1)),
    "wrong token": _fail(403, "invalid authentication token"),
    "token for another data source": _fail(403, "this token may not append to 'cell_"),
    "proxy's token": _by_default(1),
    "wrong token, proxy's own": _fail(403, "invalid authentication token", "the proxy does not know this token"),
    "token for another data source, proxy's own": _fail(
        403, "this token may not append to 'cell_", "this token may not write to the data source 'cell_"
    ),
    "429": {
        TS_SDK: _absorbed(_saw(429, 200, gives=counts(1)), _saw(200, gives=counts(1))),
        ZOD_BIRD: _absorbed(_saw(429, 202, gives=counts(1)), _saw(202, gives=counts(1))),
        PYTHON_SDK: _absorbed(_saw(429, 200, gives=counts(1)), _saw(200, gives=counts(1))),
        OLD_PYTHON_SDK: _absorbed(_saw(429, 202, gives=None), _saw(202, gives=None)),
    },
    "503": {
        TS_SDK: _absorbed(_saw(503, 200, gives=counts(1)), _saw(200, gives=counts(1))),
        ZOD_BIRD: _absorbed(_saw(503, 202, gives=counts(1)), _saw(202, gives=counts(1))),
        PYTHON_SDK: _absorbed(_saw(503, 200, gives=counts(1)), _saw(200, gives=counts(1))),
        # It does not retry 503: its rows are lost without the proxy.
        OLD_PYTHON_SDK: _absorbed(_saw(503, gives=_error(OLD_PYTHON_SDK, 503, "fault")), _saw(202, gives=None)),
    },
    "400: no name": _fail(400, "the parameter 'name' is missing"),
    "400: bad name": _fail(400, "cannot be that of a data source"),
    "400: bad row": {
        **_fail(400, "line 2 is not ", "row 2: is "),
        TS_SDK: _both(gives=Fails("TypeError", "null", None)),  # it sees to that itself
    },
    "404: unknown data source": _fail(404, "Data Source 'cell_.* does not exist"),
    "413": {
        **_fail(413, "larger than 1000000 bytes"),
        # It tries again as it is closed, with the buffer that it has emptied before: a request without a row.
        OLD_PYTHON_SDK: _both(413, 202, gives=_error(OLD_PYTHON_SDK, 413, "larger than 1000000 bytes")),
    },
    # Those that can be told to retry are not; the others do it until there is room.
    "429 of the proxy's: buffer full of undelivered rows": {
        **_fail(429, "fault", "not being delivered and the buffer is full"),
        ZOD_BIRD: _both(429, 202, gives=counts(1)),
        OLD_PYTHON_SDK: _both(429, 202, gives=None),
    },
    # Here they are told.
    "503 of the proxy's: buffer full": {
        TS_SDK: _both(503, 200, gives=counts(1)),
        ZOD_BIRD: _both(503, 202, gives=counts(1)),
        PYTHON_SDK: _both(503, 200, gives=counts(1)),
        OLD_PYTHON_SDK: _fail(503, "fault", "the proxy's buffer is full")[OLD_PYTHON_SDK],
    },
    "503 of the proxy's: draining": {
        **_fail(503, "fault", "the proxy is draining"),
        ZOD_BIRD: _both(503, 202, gives=counts(1)),
    },
    "query": {
        **_all(
            _both(
                200, gives={"meta": [{"name": "one", "type": "Int64"}], "data": [{"one": 1}], "rows": 1}, arrives=False
            )
        ),
        ZOD_BIRD: _both(200, gives={"meta": [], "data": [], "rows": 0}, arrives=False),
    },
}
