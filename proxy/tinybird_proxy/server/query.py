"""The query of an events request, parsed once for each spelling of it. Pure."""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Final
from urllib.parse import parse_qsl

_TRUE: Final = frozenset(("true", "1", "yes", "t", "y", "on"))
_CACHED_MAX_CHARS: Final = 512
_FIELDS_MAX: Final = 200
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,512}")
_VERIFY: Final = re.compile(r"[A-Za-z0-9._~-]{1,256}")


@dataclass(frozen=True, slots=True)
class EventsQuery:
    """What the proxy reads of a query; everything else is ignored.

    ``params`` are those that begin with ``__tb_``, sorted by name: they belong to the batch key. ``problem`` says why
    the query cannot be used. ``verify`` is echoed as the header ``x-vercel-verify``, as Tinybird does for Vercel.
    """

    name: str = ""
    wait: bool = False
    document: bool = False
    token: str | None = field(default=None, repr=False)
    params: tuple[tuple[str, str], ...] = ()
    ack: str | None = None
    verify: str | None = None
    problem: str | None = None


def parse_query(query: str) -> EventsQuery:
    """Parse the part of the target after ``?``. Never raises."""
    return _cached(query) if len(query) <= _CACHED_MAX_CHARS else _parse(query)


def _parse(query: str) -> EventsQuery:
    try:
        query.encode()  # raw bytes that are not UTF-8 arrive as lone surrogates
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX)
    except UnicodeError:
        return EventsQuery(problem="the query is not valid UTF-8")
    except ValueError:
        return EventsQuery(problem=f"the query has more than {_FIELDS_MAX} parameters")
    last = dict(pairs)
    name = last.get("name", "")
    problem = None
    if not name:
        problem = "the parameter 'name' is missing: the data source to write to, as in /v0/events?name=clicks"
    elif not _NAME.fullmatch(name):
        problem = "the parameter 'name' is not the name of a data source"
    ack = last.get("ack")
    if ack not in (None, "memory", "disk"):
        problem = problem or "the parameter 'ack' must be memory or disk"
    verify = last.get("x-vercel-verify")
    return EventsQuery(
        name=name,
        wait=last.get("wait", "").lower() in _TRUE,
        document=last.get("format", "").lower() == "json",
        token=last.get("token") or None,
        params=tuple(sorted((pair for pair in pairs if pair[0].startswith("__tb_")), key=itemgetter(0))),
        ack=ack,
        verify=verify if verify is not None and _VERIFY.fullmatch(verify) else None,
        problem=problem,
    )


_cached = lru_cache(maxsize=1024)(_parse)
