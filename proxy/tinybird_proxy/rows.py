"""Check a request's body and say which rows it holds, without changing a byte of them.

A row is one line that holds exactly one JSON object in valid UTF-8, at most ``MAX_DEPTH`` levels deep. A body that
is one JSON document (an array of objects, or one object over several lines) becomes its rows. Anything else raises
``BodyRefused`` with the row's number and the reason; nothing of that body is taken.

Nothing is decoded into objects and nothing is encoded again: what leaves is a slice of what came. There are three
exceptions, all outside of JSON values: blank lines go, a carriage return at a line's end goes, and raw line breaks
*inside* one pretty-printed row become spaces (JSON allows them only between tokens).

Large bodies are checked in pieces: ``check_in_pieces`` is a generator that yields where the caller may let others run.
A single row, or a document, is checked in one call whatever its size (about 10 ms a MB).
"""

import re
from collections.abc import Generator, Iterator
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from tinybird_proxy.errors import BodyRefused

MAX_DEPTH: Final = 512
PIECE_BYTES: Final = 256 * 1024
PIECE_LINES: Final = 4096

# n levels take at least 2n bytes and a key, so a shorter row cannot be too deep.
_SHALLOW_BYTES: Final = 2 * MAX_DEPTH + 2
# What is taken apart at quotes at once: a row of many small strings becomes many objects.
_SPLIT_BYTES: Final = 32 * 1024
_BRACE: Final = ord("{")
_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
_LINE_BREAKS_TO_SPACES: Final = bytes.maketrans(b"\r\n", b"  ")
_STEPS: Final = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes
_NEITHER_BRACKETS_NOR_QUOTES: Final = bytes(sorted(set(range(256)) - set(b'{}[]"')))
_BETWEEN_ELEMENTS: Final = re.compile(rb"[ \t\r\n,]*+")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

_validate = msgspec.json.Decoder(msgspec.Raw).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_KIND_OF_TYPE: Final = {"array": "an array", "str": "a string", "bool": "true or false", "null": "null"}


class _AnyObject(msgspec.Struct, gc=False):
    """Any JSON object: its members are skipped."""


_objects = msgspec.json.Decoder(list[_AnyObject]).decode


class Rows(NamedTuple):
    """Checked rows: ``body`` holds ``row_count`` lines joined by ``\\n``, without a line break at the end."""

    body: bytes
    row_count: int


NO_ROWS: Final = Rows(b"", 0)


def is_small(body: bytes) -> bool:
    """Whether ``body`` is one piece, so that ``check`` may run on the event loop in one call."""
    return len(body) <= PIECE_BYTES and (len(body) <= PIECE_LINES or body.count(b"\n") <= PIECE_LINES)


def check(body: bytes, *, document: bool = False) -> Rows:
    """Return the rows of ``body``, or raise ``BodyRefused``. ``document``: the client said ``format=json``."""
    if not document and b"\n" not in body:  # the everyday case: one row, one line
        try:
            _validate(body)
            if body[0] == _BRACE and len(body) < _SHALLOW_BYTES and body.isascii() and body[-1] != 13:
                return Rows(body, 1)
        except (msgspec.DecodeError, RecursionError):
            pass
    steps = check_in_pieces(body, document=document)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            rows: Rows = done.value
            return rows


def check_in_pieces(body: bytes, *, document: bool = False) -> Generator[None, None, Rows]:
    """``check`` in pieces of at most ``PIECE_BYTES`` or ``PIECE_LINES``; it yields between them."""
    start = body.lstrip(_BLANK)[:1] if body[:1] in (b" ", b"\t", b"\r", b"\n") else body[:1]
    if not start and not body.strip(_BLANK):
        return NO_ROWS
    if body.startswith(_BOM):
        raise BodyRefused(400, "row 1: begins with a byte order mark; send UTF-8 without one")
    if document or start == b"[":
        why = "as format=json says" if document else "although it begins with ["
        return (yield from _document(body, f"the body is not one JSON document, {why}"))
    try:
        return (yield from _lines(body))
    except _FirstRowIncomplete as first:
        if start == b"{" and _is_one_document(body):
            return (yield from _document(body, "the body is not one JSON document"))
        raise BodyRefused(400, first.message) from None


def cut(rows: Rows, *, max_rows: int, max_bytes: int) -> Iterator[Rows]:
    """Cut ``rows`` at row boundaries into parts within both limits; a single larger row is a part of its own."""
    body, position = rows.body, 0
    many = re.compile(rb"(?:[^\n]*+\n){%d}+" % max_rows) if rows.row_count > max_rows else None
    while position < len(body):
        end = len(body)
        if end - position > max_bytes:
            end = body.rfind(b"\n", position, position + max_bytes + 1)
            if end < 0:
                end = body.find(b"\n", position)
                end = len(body) if end < 0 else end
        if many is not None and (match := many.match(body, position)) and match.end() - 1 < end:
            end = match.end() - 1
        yield Rows(body[position:end], body.count(b"\n", position, end) + 1)
        position = end + 1


class _FirstRowIncomplete(BodyRefused):
    """The first line is not JSON by itself: the body may still be one pretty-printed object."""


def _lines(body: bytes) -> Generator[None, None, Rows]:
    ascii_only = body.isascii()
    kept: list[bytes] = []
    changed = False
    count = line_count = 0
    for lines in _pieces(body):
        if line_count:
            yield
        rows_before = count
        piece_is_clean = True
        for index, line in enumerate(lines):
            try:
                _validate(line)
                if line[0] != _BRACE and not _is_object(line):
                    raise BodyRefused(400, _located(count, line_count + index, f"is {_kind(line)}, not a JSON object"))
                if len(line) >= _SHALLOW_BYTES and _too_deep(line):
                    raise BodyRefused(400, _located(count, line_count + index, _TOO_DEEP))
            except (msgspec.DecodeError, RecursionError) as error:
                if not line.strip(_BLANK):
                    piece_is_clean = False
                    continue
                if (reason := _complaint(line, error)) is not None:
                    refusal = _FirstRowIncomplete if count == 0 else BodyRefused
                    raise refusal(400, _located(count, line_count + index, reason)) from None
            count += 1
            if line[-1] == 13:
                piece_is_clean = False
        if not ascii_only:
            _require_utf8(lines, rows_before, line_count)
        line_count += len(lines)
        if not piece_is_clean:
            lines = [line.rstrip(b"\r") for line in lines if line.strip(_BLANK)]
            changed = True
        if lines:
            kept.append(b"\n".join(lines))
    if count == 0:
        return NO_ROWS
    if changed:
        return Rows(b"\n".join(kept), count)
    return Rows(body[:-1] if body.endswith(b"\n") else body, count)


def _pieces(body: bytes) -> Iterator[list[bytes]]:
    """The lines of ``body``, without their line feeds, in lists that are one piece each."""
    position = 0
    while position < len(body):
        end = position + PIECE_BYTES
        if end < len(body):
            last_break = body.rfind(b"\n", position, end)
            if last_break < 0:
                last_break = body.find(b"\n", end)  # a row larger than a piece
            end = last_break + 1 if last_break >= 0 else len(body)
        lines = body[position:end].split(b"\n", PIECE_LINES)
        end = min(end, len(body))
        if len(lines) > PIECE_LINES:
            end -= len(lines.pop())
        elif not lines[-1]:
            lines.pop()  # what follows the last line feed is not a line
        position = end
        yield lines


def _document(body: bytes, otherwise: str) -> Generator[None, None, Rows]:
    ascii_only = body.isascii()
    stripped = body.strip(_BLANK)
    if not stripped:
        return NO_ROWS
    is_array = stripped[:1] == b"["
    try:
        elements = _split_array(stripped) if is_array else [_whole(stripped)]
    except (msgspec.DecodeError, RecursionError) as error:
        raise BodyRefused(400, f"row 1: {otherwise}: {_plain(error)}") from None
    kept = []
    for index, element in enumerate(elements):
        if index and index % PIECE_LINES == 0:
            yield
        if element[0] != _BRACE:
            raise BodyRefused(400, f"row {index + 1}: is {_kind(element)}, not a JSON object")
        if len(element) >= _SHALLOW_BYTES and _too_deep(element):
            raise BodyRefused(400, f"row {index + 1}: {_TOO_DEEP}")
        if b"\n" in element or b"\r" in element:
            element = element.translate(_LINE_BREAKS_TO_SPACES)
        if not ascii_only:
            _require_utf8([element], index, index)
        kept.append(element)
    return Rows(b"\n".join(kept), len(kept))


def _whole(text: bytes) -> bytes:
    try:
        _validate(text)
    except msgspec.DecodeError:
        if not _SURROGATE.search(text):
            raise
        _validate(_without_surrogates(text))
    return text


def _split_array(text: bytes) -> list[bytes]:
    """The array's elements as they stand in ``text``, without the white space around them."""
    try:
        return [bytes(element) for element in _elements_of(text)]
    except msgspec.DecodeError:
        if not _SURROGATE.search(text):
            raise
    found, position = [], 1
    for element in _elements_of(_without_surrogates(text)):  # same length everywhere, so the places are the same
        if (between := _BETWEEN_ELEMENTS.match(text, position)) is not None:
            position = between.end()
        found.append(text[position : position + len(bytes(element))])
        position += len(found[-1])
    return found


def _elements_of(text: bytes) -> list[msgspec.Raw]:
    """The elements of an array. Each takes memory, so where they may be many all must be known to be objects first."""
    if text.count(b",") >= PIECE_LINES:
        try:
            _objects(text)
        except msgspec.ValidationError as error:
            if place := re.search(r"(?:got `(\w+)` )?- at `\$\[(\d+)\]`", str(error)):
                kind = _KIND_OF_TYPE.get(place[1], "a number")  # also where it says that one is out of range
                raise BodyRefused(400, f"row {int(place[2]) + 1}: is {kind}, not a JSON object") from None
        except (msgspec.DecodeError, RecursionError):
            pass  # and the next line says so in its own words
    return _elements(text)


def _is_one_document(body: bytes) -> bool:
    try:
        _whole(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _complaint(line: bytes, error: Exception) -> str | None:
    """Why ``line`` is refused after the decoder's ``error``; None if it is well-formed all the same.

    The decoder refuses lone surrogates (``"\\ud800"``), which are valid JSON: Tinybird is the one to judge them.
    """
    if _SURROGATE.search(line):
        try:
            _validate(_without_surrogates(line))
        except (msgspec.DecodeError, RecursionError) as other:
            return _plain(other)
        if not _is_object(line):
            return f"is {_kind(line)}, not a JSON object"
        return _TOO_DEEP if _too_deep(line) else None
    return _plain(error)


def _without_surrogates(text: bytes) -> bytes:
    """``text`` with each escaped surrogate as another character's escape: same length, and valid exactly if it is.

    Three searches in C: whoever sends nothing but escapes must not hold up the others for seconds.
    """
    unescaped = text.replace(rb"\\", b"__")  # else the second of them looks like the beginning of an escape
    return unescaped.replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0")


_TOO_DEEP: Final = f"is nested deeper than {MAX_DEPTH} levels"


def _too_deep(text: bytes) -> bool:
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return False
    # Escaped backslashes first: one that is still before a quote then escapes it.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(_STEPS, _NEITHER_BRACKETS_NOR_QUOTES)
    depth, in_string = 0, 0
    for start in range(0, len(unescaped), _SPLIT_BYTES):
        parts = unescaped[start : start + _SPLIT_BYTES].split(b'"')
        depths = list(accumulate(memoryview(b"".join(parts[in_string::2])).cast("b"), initial=depth))
        if max(depths) > MAX_DEPTH:
            return True
        depth = depths[-1]
        in_string ^= (len(parts) - 1) & 1
    return False


def _is_object(line: bytes) -> bool:
    return line.lstrip(_BLANK)[:1] == b"{"


def _kind(text: bytes) -> str:
    first = text.lstrip(_BLANK)[:1]
    return {b"[": "an array", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}.get(first, "a number")


def _plain(error: Exception) -> str:
    """The decoder's complaint as a clause for the client; it never quotes the row."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    text = str(error).removeprefix("JSON is malformed: ")
    if text == "Input data was truncated":
        return "is not complete JSON: it ends too early"
    if text.startswith("trailing characters"):
        return "goes on after its JSON value; a row is one object, and rows are separated by \\n"
    return f"is not valid JSON: {text}"


def _located(rows_before: int, lines_before: int, reason: str) -> str:
    """The refusal's sentence; the line is named too where blank lines make it another number."""
    line = f" (line {lines_before + 1})" if lines_before != rows_before else ""
    return f"row {rows_before + 1}{line}: {reason}"


def _require_utf8(lines: list[bytes], rows_before: int, lines_before: int) -> None:
    text = b"\n".join(lines)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        index = text.count(b"\n", 0, error.start)
        rows = sum(bool(line.strip(_BLANK)) for line in lines[:index])
        raise BodyRefused(400, _located(rows_before + rows, lines_before + index, "is not valid UTF-8")) from None
