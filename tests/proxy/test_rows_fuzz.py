"""Bodies that were JSON before something happened to them, against a slow reader that shares nothing with ``rows``.

The reader is the standard library's ``json``, one row at a time. It says what is accepted, the exact bytes of each row,
and which row is to blame. How long it looks: see ``fuzzing``.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.fuzz_bodies import bodies
from tests.proxy.fuzzing import bounded, fuzzed, rounds

from tinybird_proxy import rows as rows_module
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.rows import MAX_DEPTH, Rows, check, check_in_pieces, cut

pytestmark = bounded
BLANK: Final = b" \t\r\n"

# The slow reader.


@dataclass(frozen=True, slots=True)
class Blame:
    """Why there are no rows: the number of each row that a refusal may name, with its line (0: in a document)."""

    places: frozenset[tuple[int, int]]


def _no_constant(name: str) -> None:
    raise ValueError(name)


_scan: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant).raw_decode


def read(body: bytes, *, document: bool) -> list[bytes] | Blame:
    """The rows of ``body``, or who is to blame that there are none."""
    stripped = body.strip(BLANK)
    if not stripped:
        return []
    if document or stripped.startswith(b"["):
        return read_document(stripped)
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip(BLANK)]
    if all(is_row(line) for _, line in lines):
        return [line.rstrip(b"\r") for _, line in lines]
    if not is_object(lines[0][1]) and is_object(body):
        return read_document(stripped)
    return blame((line, number) for number, line in lines)


def read_document(stripped: bytes) -> list[bytes] | Blame:
    """The same of one JSON document without white space around it."""
    if depth(stripped) > MAX_DEPTH + stripped.startswith(b"["):
        # Nobody reads so deep, whatever comes behind it; it may be any row that is too deep.
        return Blame(frozenset((number, 0) for number in range(1, stripped.count(b",") + 2)))
    elements, is_whole = divide(stripped)
    if is_whole and all(map(is_row, elements)):
        return [element.replace(b"\n", b" ").replace(b"\r", b" ") for element in elements]
    found = blame((element, 0) for element in elements)
    return found if is_whole else Blame(found.places | {(1, 0)})


def divide(stripped: bytes) -> tuple[list[bytes], bool]:
    """The elements of an array, or the one value; and whether that was all. The last one may not be JSON."""
    text = stripped.decode("latin-1")  # so that a place in the text is a place in the bytes
    if not text.startswith("["):
        return [stripped], end_of_value(text, 0) == len(text)
    elements: list[bytes] = []
    position = end_of_space(text, 1)
    if text.startswith("]", position):
        return elements, position + 1 == len(text)
    while (end := end_of_value(text, position)) is not None:
        elements.append(stripped[position:end])
        end = end_of_space(text, end)
        if text.startswith("]", end):
            return elements, end + 1 == len(text)
        if not text.startswith(",", end):
            return elements, False
        position = end_of_space(text, end + 1)
    return [*elements, stripped[position:]], False


def blame(rows: Iterator[tuple[bytes, int]]) -> Blame:
    """The bad rows, as far as the first that is no JSON object: UTF-8 and depth are looked at after that."""
    places = set()
    for number, (row, line) in enumerate(rows, 1):
        if not is_row(row):
            places.add((number, line))
        if not is_object(row):
            break
    return Blame(frozenset(places))


def is_row(text: bytes) -> bool:
    """Whether it is one JSON object, in UTF-8, and not too deep."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return is_object(text) and depth(text) <= MAX_DEPTH


def is_object(text: bytes) -> bool:
    """Whether it is one JSON object, if every byte beyond ASCII were some character."""
    read_as = text.decode("latin-1")
    start = end_of_space(read_as, 0)
    if not read_as.startswith("{", start):
        return False
    if depth(text) > MAX_DEPTH:
        return True  # or not, but it is refused in any case
    end = end_of_value(read_as, start)
    return end is not None and end_of_space(read_as, end) == len(read_as)


def end_of_value(text: str, start: int) -> int | None:
    try:
        return int(_scan(text, start)[1])
    except (ValueError, RecursionError):
        return None


def end_of_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def depth(text: bytes) -> int:
    """How deep it gets, character by character."""
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return 0
    level = deepest = 0
    in_string = escaped = False
    for byte in text:
        if escaped:
            escaped = False
        elif in_string:
            escaped, in_string = byte == ord("\\"), byte != ord('"')
        elif byte == ord('"'):
            in_string = True
        elif byte in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif byte in b"]}":
            level -= 1
    return deepest


# What must hold.

_LOCATED: Final = re.compile(r"row (\d+)(?: \(line (\d+)\))?: ")


def outcome(checked: Callable[[], Rows]) -> Rows | BodyRefused:
    try:
        return checked()
    except BodyRefused as refused:
        return refused


def in_pieces(body: bytes, *, document: bool, piece_bytes: int, piece_lines: int) -> Rows | BodyRefused:
    """What checking comes to if a piece were so small."""

    def checked() -> Rows:
        steps = check_in_pieces(body, document=document)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                rows: Rows = done.value
                return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "PIECE_BYTES", piece_bytes)
        patch.setattr(rows_module, "PIECE_LINES", piece_lines)
        return outcome(checked)


def compare(found: Rows | BodyRefused, expected: list[bytes] | Blame) -> None:
    if isinstance(found, Rows):
        assert isinstance(expected, list), f"taken, but the slow reader blames {expected}"
        assert found.body.split(b"\n") == expected or not expected
        assert found.row_count == len(expected)
        return
    assert isinstance(expected, Blame), f"refused ({found}), but the slow reader takes it"
    assert found.status == 400
    located = _LOCATED.match(found.message)
    assert located is not None, found.message
    number, line = int(located[1]), int(located[2] or located[1])
    # A document has no lines: there a row is named by its number only.
    assert {(number, line), (number, 0)} & expected.places, (found.message, expected)
    assert len(found.message) < 300


def test_a_body_is_taken_or_refused_as_the_slow_reader_says() -> None:
    @fuzzed
    @given(bodies(), st.booleans())
    def any_body(body: bytes, document: bool) -> None:
        compare(outcome(lambda: check(body, document=document)), read(body, document=document))

    rounds(any_body, share=0.18)


def test_checking_in_pieces_of_any_size_comes_to_the_same() -> None:
    @fuzzed
    @given(bodies(), st.booleans(), st.integers(1, 64), st.integers(1, 4))
    def any_body(body: bytes, document: bool, piece_bytes: int, piece_lines: int) -> None:
        found = in_pieces(body, document=document, piece_bytes=piece_bytes, piece_lines=piece_lines)
        whole = outcome(lambda: check(body, document=document))
        if isinstance(whole, Rows):
            assert found == whole
        else:
            compare(found, read(body, document=document))

    rounds(any_body, share=0.08)


def test_every_row_that_was_taken_survives_being_cut() -> None:
    @fuzzed
    @given(bodies(), st.booleans(), st.integers(1, 6), st.integers(1, 200))
    def any_body(body: bytes, document: bool, max_rows: int, max_bytes: int) -> None:
        taken = outcome(lambda: check(body, document=document))
        if isinstance(taken, BodyRefused) or not taken.row_count:
            return
        parts = list(cut(taken, max_rows=max_rows, max_bytes=max_bytes))
        assert b"\n".join(part.body for part in parts) == taken.body
        for part in parts:
            assert check(part.body) == part
            assert part.row_count <= max_rows
            assert part.row_count == 1 or len(part.body) <= max_bytes

    rounds(any_body, share=0.04)
