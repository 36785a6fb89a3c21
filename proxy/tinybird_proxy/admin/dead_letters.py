"""Dead letters for people: look at them, send them again, delete them; and probe what is held.

All of it needs authorisation, looking too: it shows rows. Tens of thousands of letters may be there, so everything goes
in pieces, between which the event loop turns.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from tinybird_proxy.admin.answers import Refused, as_json
from tinybird_proxy.admin.letter_query import BadQuery, LetterQuery, parse_letter_query
from tinybird_proxy.dead_letter import EVERY_LETTER, DeadLetter, Replay
from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.server.availability import Availability
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.tokens import fingerprint

NDJSON: Final = "application/x-ndjson"
# What is coming, so that a reader knows whether all of it came.
LETTERS_HEADER: Final = "X-Dead-Letters"
ROWS_HEADER: Final = "X-Dead-Letter-Rows"
REPLAYING_HEADER: Final = "X-Dead-Letter-Rows-Replaying"
# As ``until`` it means the letters of this answer and none that came later.
AS_OF_HEADER: Final = "X-As-Of"
# One to four milliseconds of the event loop.
_LETTERS_AT_ONCE: Final = 1000
_LINES_AT_ONCE: Final = 200
_PIECE_BYTES: Final = 256 * 1024
_INFLATED_AT_ONCE_BYTES: Final = 1024 * 1024
# A reader that takes nothing for so long would keep letters in memory that are long gone.
_STALL_S: Final = 60.0
_SKIPPED: Final = {
    "client_told": "their clients heard of the refusal and may have sent the rows again, mended;"
    " to replay them all the same, choose them with client_told=true or by id",
    "partial": "Tinybird took a part of these rows, which a replay doubles;"
    " to replay them all the same, choose them with reason=partial or by id",
    "replaying": "they stand in the buffer again, since an earlier replay; wait until Tinybird has answered for them",
    "no_room": "the buffer has no room for them now, so they stay where they are; replay them again later",
}
_log = get_logger("admin")


class DeadLetterRoutes:
    """``authorise`` raises ``Refused`` for whoever may not."""

    def __init__(
        self, pipeline: Pipeline, availability: Availability, authorise: Callable[[web.Request], None]
    ) -> None:
        self._pipeline = pipeline
        self._letters = pipeline.surroundings.letters
        self._availability = availability
        self._authorise = authorise

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/dead-letters", self.look, allow_head=False)
        router.add_delete("/dead-letters", self.delete)
        router.add_post("/dead-letters/replay", self.replay)
        router.add_post("/probe", self.probe)

    async def look(self, request: web.Request) -> web.StreamResponse:
        """The letters as NDJSON, or nothing but their rows."""
        query = self._query(request, also=("limit", "rows", "format"))
        as_of = _when(self._letters.as_of(self._now_utc_s()), "microseconds")
        chosen = await self._choose(query)
        response = web.StreamResponse(
            headers={
                "Content-Type": NDJSON,
                "Cache-Control": "no-store",
                AS_OF_HEADER: as_of,
                LETTERS_HEADER: str(len(chosen)),
                ROWS_HEADER: str(sum(letter.row_count for letter in chosen)),
                REPLAYING_HEADER: str(sum(letter.row_count for letter in chosen if letter.replaying)),
            }
        )
        await response.prepare(request)
        try:
            async for piece in self._pieces(chosen, query):
                async with asyncio.timeout(_STALL_S):
                    await response.write(piece)
                await asyncio.sleep(0)
        except ConnectionError:
            pass  # the reader left
        except Exception as error:  # noqa: BLE001 - told and logged here; an answer has begun already
            # A body that merely ended here would look whole.
            if request.transport is not None:
                request.transport.abort()
            if isinstance(error, TimeoutError):
                _log.warning("a reader of dead letters took nothing for a while and was cut off")
            else:
                _log.error("reading dead letters broke inside the proxy", exc_info=True)
        return response

    async def replay(self, request: web.Request) -> web.Response:
        """Send the rows again; 409 or 503 while the proxy wants to become empty."""
        query = self._query(request)
        if self._availability.stopping:
            raise Refused(503, "the process is stopping, so nothing can be replayed; export the letters before it ends")
        if self._availability.draining_since is not None:
            raise Refused(409, "the proxy is draining, so nothing can be replayed; DELETE /drain goes back to normal")
        outcome = await self._pipeline.replay(query.wanted)
        skipped = _skipped_by(outcome)
        if outcome.replayed_rows or skipped:
            _log.info(
                "dead letters were replayed on request",
                extra=fields(letters=outcome.replayed_letters, rows=outcome.replayed_rows, skipped_rows=skipped),
            )
        return as_json(
            200,
            {
                "replayed_letters": outcome.replayed_letters,
                "replayed_rows": outcome.replayed_rows,
                "skipped": _in_sentences(skipped),
            },
        )

    async def delete(self, request: web.Request) -> web.Response:
        """Delete what a filter means; all of it only if that is said."""
        query = self._query(request, also=("all",))
        if query.everything and query.wanted != EVERY_LETTER:
            raise Refused(400, "all: cannot stand with a filter; say all=true alone, or only the filter")
        if not query.everything and query.wanted == EVERY_LETTER:
            raise Refused(400, "this would delete every dead letter; choose some with a filter, or say all=true")
        deleted_letters = deleted_rows = replaying_rows = 0
        for number, letter in enumerate(await self._choose(query), 1):
            if query.wanted.matches(letter) and self._letters.delete(letter):
                deleted_letters += 1
                deleted_rows += letter.row_count
            elif letter.replaying:
                replaying_rows += letter.row_count
            if number % _LETTERS_AT_ONCE == 0:
                await asyncio.sleep(0)
        if deleted_letters:
            _log.info("dead letters were deleted on request", extra=fields(letters=deleted_letters, rows=deleted_rows))
        skipped = {"replaying": replaying_rows} if replaying_rows else {}
        return as_json(
            200,
            {"deleted_letters": deleted_letters, "deleted_rows": deleted_rows, "skipped": _in_sentences(skipped)},
        )

    async def probe(self, request: web.Request) -> web.Response:
        """Every hold is tried again now."""
        self._authorise(request)
        if request.query or request.can_read_body:
            raise Refused(400, "a probe is for everything that is held; it takes no parameters and no body")
        held = sum(destination.pacing.state is State.HELD for destination in self._pipeline.destinations())
        self._pipeline.probe_all()
        _log.info("holds are probed on request", extra=fields(held=held))
        what = "1 destination is held and is" if held == 1 else f"{held} destinations are held and are"
        return as_json(200, {"held": held, "sentence": f"{what} tried again now." if held else "Nothing is held."})

    # Which letters.

    def _query(self, request: web.Request, also: tuple[str, ...] = ()) -> LetterQuery:
        """What is asked, by somebody who may ask."""
        self._authorise(request)
        if request.can_read_body:
            raise Refused(400, "filters belong in the query, as in ?name=clicks&reason=rejected; a body is not read")
        try:
            return parse_letter_query(request.query.items(), also=also, now_utc_s=self._now_utc_s())
        except BadQuery as error:
            raise Refused(400, str(error)) from error

    def _now_utc_s(self) -> float:
        return self._pipeline.surroundings.utc_now().timestamp()

    async def _choose(self, query: LetterQuery) -> deque[DeadLetter]:
        """The letters that are meant, oldest first."""
        chosen: deque[DeadLetter] = deque()
        for number, letter in enumerate(self._letters.select(), 1):
            if query.wanted.matches(letter):
                chosen.append(letter)
                if len(chosen) == query.limit:
                    break
            if number % _LETTERS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return chosen

    # How they are shown.

    async def _pieces(self, chosen: deque[DeadLetter], query: LetterQuery) -> AsyncIterator[bytes]:
        """The body of the answer. ``chosen`` is emptied on the way, so that what was shown can be forgotten."""
        if not (query.with_rows or query.only_rows):
            while chosen:
                some = [chosen.popleft() for _ in range(min(_LINES_AT_ONCE, len(chosen)))]
                yield b"".join(_line(letter) + b"\n" for letter in some)
            return
        gathered: list[bytes] = []
        size_bytes = 0
        while chosen:
            some = _inflated_together(chosen)
            bodies = await self._pipeline.surroundings.codec.rows_in([letter.payload for letter in some])
            for letter, body in zip(some, bodies, strict=True):
                for part in _rows_of(body) if query.only_rows else _line_with_rows(letter, body):
                    gathered.append(part)
                    size_bytes += len(part)
                    if size_bytes >= _PIECE_BYTES:
                        yield b"".join(gathered)
                        gathered, size_bytes = [], 0
        if gathered:
            yield b"".join(gathered)


def _inflated_together(chosen: deque[DeadLetter]) -> list[DeadLetter]:
    """The next letters, as many as may be in memory without compression: at least one."""
    some = [chosen.popleft()]
    size_bytes = some[0].raw_bytes
    while chosen and len(some) < _LINES_AT_ONCE and size_bytes + chosen[0].raw_bytes <= _INFLATED_AT_ONCE_BYTES:
        some.append(chosen.popleft())
        size_bytes += some[-1].raw_bytes
    return some


def _line(letter: DeadLetter) -> bytes:
    """One letter as JSON, without its rows and without its token."""
    return msgspec.json.encode(
        {
            "id": letter.id,
            "data_source": letter.key.name,
            "params": dict(letter.key.params),
            "token_hash": None if letter.key.token is None else fingerprint(letter.key.token),
            "reason": letter.reason,
            "status": letter.status,
            "message": letter.message,
            "batch_id": letter.batch_id,
            "rows": letter.row_count,
            "bytes": letter.raw_bytes,
            "first_at": _when(letter.first_at),
            "last_at": _when(letter.last_at),
            "ambiguous": letter.ambiguous,
            "client_told": letter.client_told,
            "replaying": letter.replaying,
            "replays": letter.replays,
        }
    )


def _line_with_rows(letter: DeadLetter, body: bytes) -> Iterator[bytes]:
    """The same with ``data``: the rows as they came. No row holds a line feed, so each becomes a comma."""
    yield _line(letter)[:-1] + b',"data":['
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES].replace(b"\n", b",")
    yield b"]}\n"


def _rows_of(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]
    yield b"\n"


def _when(utc_s: float, precision: str = "milliseconds") -> str:
    return datetime.fromtimestamp(utc_s, UTC).isoformat(timespec=precision).removesuffix("+00:00") + "Z"


def _skipped_by(outcome: Replay) -> dict[str, int]:
    """Rows that were not replayed, by reason."""
    rows = {
        "client_told": outcome.client_told_rows,
        "partial": outcome.partial_rows,
        "replaying": outcome.replaying_rows,
        "no_room": outcome.no_room_rows,
    }
    return {reason: row_count for reason, row_count in rows.items() if row_count}


def _in_sentences(skipped: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "rows": row_count, "sentence": _SKIPPED[reason]} for reason, row_count in skipped.items()
    ]
