"""Take one body in: receive it within its limits, look at it, and store its rows unless a fault forbids."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from tinybird_proxy.emulator.faults import Fault
from tinybird_proxy.emulator.inspection import Inspected, Rules, inspect_body
from tinybird_proxy.emulator.replies import Refused
from tinybird_proxy.emulator.rules import CheckedBody
from tinybird_proxy.emulator.schemas import RowError
from tinybird_proxy.emulator.state import RECEIVED, STATE, EmulatorState
from tinybird_proxy.emulator.store import QuarantinedRow

# A body of this size is checked in about a millisecond: less than changing threads is worth.
_SMALL_BODY_BYTES = 16_384
_RECEIVE_TIMEOUT_S = 60.0
_FAULT_ERROR = RowError(("",), ("quarantined by a fault",))


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a body."""

    fault: Fault | None
    successful_count: int
    quarantined_count: int


async def receive_body(request: web.Request, *, max_bytes: int) -> bytes:
    """The body as sent. Raises `Refused`: 413 as soon as it is known to be too large, 408 if it stalls."""
    too_large = Refused(413, f"the body is larger than {max_bytes} bytes; split it", closes=True)
    if (request.content_length or 0) > max_bytes:
        raise too_large
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(_RECEIVE_TIMEOUT_S):
            while piece := await request.content.readany():
                size_bytes += len(piece)
                if size_bytes > max_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError as exc:
        raise Refused(408, "the body did not arrive in time", closes=True) from exc
    return b"".join(pieces)


async def take_in(request: web.Request, datasource: str) -> Taken:
    """Receive, judge and store one body; its rows are committed when this returns.

    Raises `Refused` if the body cannot be taken, and no fault hides that.
    """
    state = request.app[STATE]
    rules: Rules = {
        "encoding": request.headers.get("Content-Encoding", ""),
        "is_document": request.query.get("format") == "json",
        "schema": state.schemas.get(datasource),
        "row_patterns": state.faults.row_patterns(datasource),
        "max_inflated_bytes": state.settings.max_inflated_bytes,
    }
    length = request.content_length
    if length is not None and length <= _SMALL_BODY_BYTES and not rules["encoding"]:
        body = await receive_body(request, max_bytes=state.settings.max_body_bytes)
        if not rules["row_patterns"]:
            return await _store(request, datasource, inspect_body(body, **rules))
        return await _store(request, datasource, await _inspect_in_thread(state, body, rules))
    async with state.large_bodies:
        body = await receive_body(request, max_bytes=state.settings.max_body_bytes)
        async with state.checked_bodies:
            return await _store(request, datasource, await _inspect_in_thread(state, body, rules))


async def _inspect_in_thread(state: EmulatorState, body: bytes, rules: Rules) -> Inspected:
    work = partial(inspect_body, body, **rules)
    return await asyncio.get_running_loop().run_in_executor(state.checkers, work)


async def _store(request: web.Request, datasource: str, inspected: Inspected) -> Taken:
    state, received = request.app[STATE], request[RECEIVED]
    received.body_bytes = inspected.body_bytes
    received.body_sha256 = inspected.body_sha256
    received.raw_bytes = inspected.raw_bytes
    received.raw_sha256 = inspected.raw_sha256
    found = inspected.found
    if isinstance(found, Refused):
        # A fault that stores nothing hides what is wrong with the rows, as an outage would.
        fault = _take_fault(request, datasource, ())
        if fault is None or fault.ingests:
            raise found
        return Taken(fault, 0, 0)
    received.row_count = len(found.rows)
    fault = _take_fault(request, datasource, found.matching)
    rows, quarantined = _divide(found, fault)
    if fault is None or fault.ingests:
        await state.keep(datasource, received.request_id, rows, quarantined)
    return Taken(fault, len(rows), len(quarantined))


def _take_fault(request: web.Request, datasource: str, matching: Collection[str]) -> Fault | None:
    state, received = request.app[STATE], request[RECEIVED]
    fault = state.faults.take(datasource, received.body_bytes or 0, matching)
    if fault:
        received.fault = fault.to_json()
        state.log.note_progress()
    return fault


def _divide(checked: CheckedBody, fault: Fault | None) -> tuple[list[bytes], list[QuarantinedRow]]:
    """The rows to keep and those to set aside, by their schema or because a fault wants so many."""
    wanted = fault.quarantine if fault and fault.quarantine is not None else 0
    if wanted == "all":
        wanted = len(checked.rows)
    errors = dict(checked.quarantined)
    for index in range(min(wanted, len(checked.rows))):
        errors.setdefault(index, _FAULT_ERROR)
    if not errors:
        return list(checked.rows), []
    kept = [row for index, row in enumerate(checked.rows) if index not in errors]
    set_aside = [QuarantinedRow(checked.rows[index], error) for index, error in sorted(errors.items())]
    return kept, set_aside
