"""Which bodies are taken, unchanged, and which are refused, with which words.

Besides the tables there is an oracle: the standard library's ``json``, told to be strict. What it takes line by line,
``rows`` must take, and the other way round.
"""

import json
import random
import time
import tracemalloc
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.rows import (
    MAX_DEPTH,
    NO_ROWS,
    PIECE_BYTES,
    PIECE_LINES,
    Rows,
    _pieces,
    check,
    check_in_pieces,
    cut,
    is_small,
)

BLANK: Final = b" \t\r\n"
MARKER: Final = "sEcReT"


def nested(levels: int) -> bytes:
    """An object with exactly so many levels, itself included."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def in_pieces(body: bytes, *, document: bool = False) -> tuple[Rows, int]:
    """What ``check_in_pieces`` returns, and how often it let others run."""
    return _exhaust(check_in_pieces(body, document=document))


def _exhaust(steps: Generator[None, None, Rows]) -> tuple[Rows, int]:
    turns = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            rows: Rows = done.value
            return rows, turns
        turns += 1


def refusal(body: bytes, *, document: bool = False) -> BodyRefused | None:
    try:
        check(body, document=document)
    except BodyRefused as refused:
        return refused
    return None


# The table of nasty bodies: accepted.

UNCHANGED = [
    pytest.param(b'{"a":1}', id="an object"),
    pytest.param(b"{}", id="an empty object"),
    pytest.param(b' \t{ "a" :\t1 } ', id="white space inside and around, no line break"),
    pytest.param(b'{"a":9007199254740993,"b":123456789012345678901234567890}', id="numbers beyond 2^53"),
    pytest.param(b'{"a":1e400,"b":-1e-400,"c":-0,"d":0.10}', id="numbers that no float holds"),
    pytest.param(b'{"a":1,"a":2}', id="the same key twice"),
    pytest.param(rb'{"a":"\u0041\/\b\f\n\r\t\"\\ \u0000"}', id="every escape"),
    pytest.param(rb'{"a":"\ud800"}', id="a lone high surrogate"),
    pytest.param(rb'{"a":"\udfff"}', id="a lone low surrogate"),
    pytest.param(rb'{"\ud800":1}', id="a lone surrogate in a key"),
    pytest.param(rb'{"a":"\ude00\ud83d"}', id="a surrogate pair the wrong way round"),
    pytest.param(rb'{"a":"\uD800\u0041"}', id="half a pair in capitals"),
    pytest.param(rb'{"a":"\ud83d\ude00"}', id="a whole surrogate pair"),
    pytest.param(rb'{"a":"\\ud800"}', id="a backslash before what is no escape"),
    pytest.param(rb'{"a":"\\\ud800\\"}', id="backslashes around a lone surrogate"),
    pytest.param('{"é":"日本語 \U0001f600 \x7f\u2028\ufeff"}'.encode(), id="UTF-8 of every length"),
    pytest.param(b'{"a":\r1}', id="a carriage return between tokens"),
    pytest.param(nested(MAX_DEPTH - 1), id="511 levels"),
    pytest.param(nested(MAX_DEPTH), id="512 levels"),
    pytest.param(b'{"a":"' + b"[{" * 2000 + b'"}', id="brackets in a string are no levels"),
    pytest.param(b'{"a":"' + rb"\"[{" * 2000 + b'"}', id="nor are they after an escaped quote"),
    pytest.param(b'{"a":[' + b"{}," * 2000 + b"{}]}", id="many levels side by side"),
    pytest.param(b'{"a":"' + b"x" * 1_000_000 + b'"}', id="a row of 1 MB"),
    pytest.param(b'{"a":"' + b"x" * 12_000_000 + b'"}', id="a row larger than a batch"),
    pytest.param(b"\n".join([b'{"a":1}', b" {} ", b'{"b":[]}\t']), id="several rows"),
]


@pytest.mark.parametrize("body", UNCHANGED)
@pytest.mark.parametrize("ending", [b"", b"\n"], ids=["no line break at the end", "a line break at the end"])
def test_what_is_accepted_arrives_byte_for_byte(body: bytes, ending: bytes) -> None:
    rows = check(body + ending)
    assert rows.body == body
    assert rows.row_count == body.count(b"\n") + 1


CHANGED = [
    pytest.param(b'{"a":1}\r\n{"b":2}\r\n', False, b'{"a":1}\n{"b":2}', 2, id="CRLF"),
    pytest.param(
        b'{"a":1} \r\r\n{"b":2}\r', False, b'{"a":1} \n{"b":2}', 2, id="carriage returns at the ends of lines"
    ),
    pytest.param(b'\n \r\n{"a":1}\n\t\n\n{"b":2}\n\n', False, b'{"a":1}\n{"b":2}', 2, id="blank lines"),
    pytest.param(b'{"a":\n1}', False, b'{"a": 1}', 1, id="an object over two lines"),
    pytest.param(b'{"a":\n1}', True, b'{"a": 1}', 1, id="an object over two lines, with format=json"),
    pytest.param(b'\r\n{\r\n  "a": 1\r\n}\r\n', False, b'{    "a": 1  }', 1, id="a pretty-printed object"),
    pytest.param(b'{\n"a": "\\ud800"}', False, b'{ "a": "\\ud800"}', 1, id="a pretty-printed lone surrogate"),
    pytest.param(b'{"a":\r1}\n', True, b'{"a": 1}', 1, id="a carriage return in a document"),
    pytest.param(b'{"a":1}\n\n', True, b'{"a":1}', 1, id="one row with format=json"),
    pytest.param(b'[{"a":1},{"b":2}]', False, b'{"a":1}\n{"b":2}', 2, id="an array of objects"),
    pytest.param(b' [ {"a":1}\n,\n\n{"b":\n[2] } ]\n', False, b'{"a":1}\n{"b": [2] }', 2, id="a pretty-printed array"),
    pytest.param(b'[{"a":"\\ud800"} , {"b":1e400}]', True, b'{"a":"\\ud800"}\n{"b":1e400}', 2, id="an odd array"),
    pytest.param(b"", False, b"", 0, id="an empty body"),
    pytest.param(b"", True, b"", 0, id="an empty body with format=json"),
    pytest.param(b"\n\r\n \t\n", False, b"", 0, id="blank lines only"),
    pytest.param(b"\n\r\n \t\n", True, b"", 0, id="blank lines only with format=json"),
    pytest.param(b" [ \n ] ", False, b"", 0, id="an empty array"),
    pytest.param(b"[" + nested(MAX_DEPTH) + b"]", False, nested(MAX_DEPTH), 1, id="512 levels in an array"),
]


@pytest.mark.parametrize(("body", "document", "expected", "row_count"), CHANGED)
def test_only_line_breaks_and_blank_lines_ever_change(
    body: bytes, document: bool, expected: bytes, row_count: int
) -> None:
    assert check(body, document=document) == Rows(expected, row_count)


# The table of nasty bodies: refused.

GOES_ON = "goes on after its JSON value; a row is one object, and rows are separated by \\n"
TOO_EARLY = "is not complete JSON: it ends too early"
NO_DOCUMENT = "the body is not one JSON document, as format=json says"

REFUSED = [
    pytest.param(b'{"a":1}{"b":2}', False, f"row 1: {GOES_ON}", id="two objects on a line"),
    pytest.param(b'{"a":1} {"b":2}', False, f"row 1: {GOES_ON}", id="two objects and a space"),
    pytest.param(b'{"a":1}\r{"b":2}', False, f"row 1: {GOES_ON}", id="CR alone as separator"),
    pytest.param(b'{"a":1},\n{"b":2}', False, f"row 1: {GOES_ON}", id="a comma after a row"),
    pytest.param(b'{"a":1}\n{"b":2}', True, f"row 1: {NO_DOCUMENT}: {GOES_ON}", id="rows as format=json"),
    pytest.param(b"5", False, "row 1: is a number, not a JSON object", id="a number"),
    pytest.param(b'"a"', False, "row 1: is a string, not a JSON object", id="a string"),
    pytest.param(b" true", False, "row 1: is true, not a JSON object", id="true"),
    pytest.param(b"false", False, "row 1: is false, not a JSON object", id="false"),
    pytest.param(b"null", True, "row 1: is null, not a JSON object", id="null with format=json"),
    pytest.param(b'{}\n["\\ud800"]', False, "row 2: is an array, not a JSON object", id="an array in the second row"),
    pytest.param(b"[{},[]]", False, "row 2: is an array, not a JSON object", id="an array in an array"),
    pytest.param(b"[{},{},-1]", True, "row 3: is a number, not a JSON object", id="a number in an array"),
    pytest.param(b'{"a":"\xff"}', False, "row 1: is not valid UTF-8", id="invalid UTF-8"),
    pytest.param(b'{}\n{"\xc3":1}', False, "row 2: is not valid UTF-8", id="invalid UTF-8 in a key"),
    pytest.param(b'{}\n{"a":"\xed\xa0\x80"}', False, "row 2: is not valid UTF-8", id="a surrogate as UTF-8"),
    pytest.param(b'\n{}\n\n{"a":"\xff"}', False, "row 2 (line 4): is not valid UTF-8", id="that after blank lines"),
    pytest.param(b'{"a":\n\n"\xff"}', True, "row 1: is not valid UTF-8", id="that in a document's third line"),
    pytest.param(b'[{},\n\n{"a":"\xff"}]', False, "row 2: is not valid UTF-8", id="that in an array"),
    pytest.param(b'{"a":"\x00"}', False, "row 1: is not valid JSON: invalid character (byte 6)", id="NUL in a string"),
    pytest.param(b'{"a":1}\x00', False, f"row 1: {GOES_ON}", id="NUL after a row"),
    pytest.param(b"\x00", False, "row 1: is not valid JSON: invalid character (byte 0)", id="NUL alone"),
    pytest.param(
        b'{"a":"\t"}', False, "row 1: is not valid JSON: invalid character (byte 6)", id="a raw tab in a string"
    ),
    pytest.param(b'{"a":"\n"}', False, f"row 1: {TOO_EARLY}", id="a raw line break in a string"),
    pytest.param(nested(513), False, "row 1: is nested deeper than 512 levels", id="513 levels"),
    pytest.param(b"{}\n" + nested(513), False, "row 2: is nested deeper than 512 levels", id="513 in the second row"),
    pytest.param(b"[{}," + nested(513) + b"]", False, "row 2: is nested deeper than 512 levels", id="513 in an array"),
    pytest.param(b"{}\n" + nested(100_000), False, "row 2: is nested deeper than 512 levels", id="100,000 levels"),
    pytest.param(
        nested(513).replace(b"[]", rb'["\ud800"]'), False, "row 1: is nested deeper than 512 levels", id="513 and odd"
    ),
    pytest.param(b"\xef\xbb\xbf{}", False, "row 1: begins with a byte order mark; send UTF-8 without one", id="a BOM"),
    pytest.param(
        b"\xef\xbb\xbf[{}]", True, "row 1: begins with a byte order mark; send UTF-8 without one", id="BOM, []"
    ),
    pytest.param(b'{"a":1', False, f"row 1: {TOO_EARLY}", id="an unfinished object"),
    pytest.param(b'{"a":\n1}\n{"b":2}', False, f"row 1: {TOO_EARLY}", id="a pretty-printed object and another"),
    pytest.param(b'{"a":1}\n{"b":\n2}', False, f"row 2: {TOO_EARLY}", id="a pretty-printed second object"),
    pytest.param(b'{"a":NaN}', False, "row 1: is not valid JSON: invalid character (byte 5)", id="NaN"),
    pytest.param(b'{"a":-Infinity}', False, "row 1: is not valid JSON: invalid character (byte 6)", id="-Infinity"),
    pytest.param(b'{"a":01}', False, "row 1: is not valid JSON: invalid number (byte 6)", id="a leading zero"),
    pytest.param(b'{"a":1,}', False, "row 1: is not valid JSON: trailing comma in object (byte 7)", id="a last comma"),
    pytest.param(b"{'a':1}", False, "row 1: is not valid JSON: expected '\"' (byte 1)", id="single quotes"),
    pytest.param(b"a,b\n1,2", False, "row 1: is not valid JSON: invalid character (byte 0)", id="CSV"),
    pytest.param(b"\n\n{}\n\nx", False, "row 2 (line 5): is not valid JSON: invalid character (byte 0)", id="lines"),
    pytest.param(
        b"[{}]\n{}",
        False,
        f"row 1: the body is not one JSON document, although it begins with [: {GOES_ON}",
        id="an array and more",
    ),
    pytest.param(
        b"[{},]",
        True,
        f"row 1: {NO_DOCUMENT}: is not valid JSON: trailing comma in array (byte 4)",
        id="an array with a last comma",
    ),
]


@pytest.mark.parametrize(("body", "document", "message"), REFUSED)
def test_what_is_refused_is_refused_with_the_number_of_the_row_and_the_reason(
    body: bytes, document: bool, message: str
) -> None:
    refused = refusal(body, document=document)
    assert refused is not None
    assert (refused.status, refused.message) == (400, message)


def test_the_table_of_nasty_bodies_holds_in_pieces_too() -> None:
    for body in [param.values[0] for param in UNCHANGED]:
        assert isinstance(body, bytes)
        assert in_pieces(body)[0] == check(body)
    for body, document, message in [param.values for param in REFUSED]:
        assert isinstance(body, bytes)
        with pytest.raises(BodyRefused) as caught:
            in_pieces(body, document=bool(document))
        assert caught.value.message == message


@pytest.mark.parametrize("position", [1, 2, 4096, 4097, 5000, 10_000])
@pytest.mark.parametrize("bad", [b'{"a":', b'{"a":"\xff"}', b"[]"], ids=["unfinished", "invalid UTF-8", "an array"])
def test_one_bad_row_among_ten_thousand_is_named_wherever_it_stands(position: int, bad: bytes) -> None:
    rows = [b'{"a":"\xc3\xa9"}'] * 10_000
    rows[position - 1] = bad
    body = b"\n".join(rows)
    if position == 1 and bad == b"[]":
        assert "although it begins with [" in str(refusal(body))  # such a body can only be meant as one array
    else:
        assert str(refusal(body)).startswith(f"row {position}: is ")


def test_lines_are_counted_through_blank_ones_in_every_piece() -> None:
    body = b"\n" * (3 * PIECE_LINES) + b"{}\n" * 10 + b"\n" * PIECE_LINES + b"x"
    expected_line = 3 * PIECE_LINES + 10 + PIECE_LINES + 1
    assert str(refusal(body)).startswith(f"row 11 (line {expected_line}): is not valid JSON")


@pytest.mark.parametrize(
    ("element", "kind"),
    [
        (b"1", "a number"),
        (b"-1.5e3", "a number"),
        (b"1e400", "a number"),
        (b'"a"', "a string"),
        (b"[{}]", "an array"),
        (b"null", "null"),
        (b"true", "true or false"),
    ],
)
@pytest.mark.parametrize("odd", [b"{}", b'{"a":"\\ud800"}'], ids=["plain", "with a lone surrogate"])
def test_a_large_array_that_holds_more_than_objects_is_refused_where_it_does(
    element: bytes, kind: str, odd: bytes
) -> None:
    body = b"[" + odd + b",{}" * 5000 + b"," + element + b",{}]"
    assert str(refusal(body)) == f"row 5002: is {kind}, not a JSON object"


def test_a_large_array_of_no_objects_takes_no_memory_for_its_elements() -> None:
    body = b"[" + b"1," * 1_000_000 + b"1]"
    tracemalloc.start()
    try:
        assert str(refusal(body)) == "row 1: is a number, not a JSON object"
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "part",
    [b'{"id":12345,"name":"abc"},', b'{"[":[],"\\\\\\"]":"{"},', b'"\\n\\n\\n\\n\\ud800",'],
    ids=["objects", "brackets in strings", "escapes"],
)
def test_a_large_row_takes_no_memory_for_each_of_its_strings(part: bytes) -> None:
    body = b'{"a":[' + part * (2_000_000 // len(part)) + b"0]}"
    tracemalloc.start()
    try:
        assert check(body) == Rows(body, 1)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b"\\ud800" * 300_000 + b'"}',
        b'{"a":"' + b"\\n" * 900_000 + b'\\ud800"}',
        b'{"a":"' + b"\\\\" * 900_000 + b'\\ud800"}',
        b"[" + b" " * 1_800_000 + b'{"a":"\\ud800"}]',
    ],
    ids=["surrogates", "escapes", "backslashes", "spaces"],
)
def test_a_lone_surrogate_makes_no_large_row_slow_to_check(body: bytes) -> None:
    plain = b'{"a":"' + b"x" * len(body) + b'"}'
    assert cpu_s(body) < 40 * cpu_s(plain)


def cpu_s(body: bytes) -> float:
    found = []
    for _ in range(3):
        began_at = time.process_time()
        assert check(body).row_count == 1
        found.append(time.process_time() - began_at)
    return min(found)


@pytest.mark.parametrize("filler", [b"1,", b'"[",', b'"\\"[[",', b'"]\\\\",', b'{"}":"{[["},'])
def test_brackets_in_strings_do_not_count_as_levels_anywhere_in_a_large_row(filler: bytes) -> None:
    fill = filler * (PIECE_BYTES // len(filler) + 600)
    for levels in (MAX_DEPTH, MAX_DEPTH + 1):
        deepest = b"[" * (levels - 2) + b"]" * (levels - 2)  # in the object and its array
        refused = refusal(b'{"a":[' + fill + deepest + b"," + fill + b"0]}")
        assert (refused is None) == (levels == MAX_DEPTH), refused


@pytest.mark.parametrize("odd", [b"{}", b'{"a":"\\ud800"}'], ids=["plain", "with a lone surrogate"])
def test_a_large_array_of_objects_becomes_its_rows(odd: bytes) -> None:
    assert check(b"[" + odd + b" ,{}" * 5000 + b"]") == Rows(b"\n".join([odd, *[b"{}"] * 5000]), 5001)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b",]", "is not valid JSON: trailing comma in array (byte {})"),
        (b",{]", "is not valid JSON: expected '\"' (byte {})"),
        (b"", "is not complete JSON: it ends too early"),
        (b"," + nested(2000) + b"]", "is nested deeper than 512 levels"),
    ],
)
def test_a_large_array_that_is_no_json_is_refused_as_a_small_one_is(tail: bytes, reason: str) -> None:
    for count in (10, 5000):
        body = b"[{}" + b",{}" * count + tail
        refused = str(refusal(body)).replace(str(len(body) - 1), "{}").replace(str(len(body) - 2), "{}")
        assert refused == f"row 1: the body is not one JSON document, although it begins with [: {reason}"


# Pieces.


def test_ten_megabytes_of_tiny_rows_are_checked_in_pieces_of_bounded_size() -> None:
    body = b"{}\n" * (10_000_000 // 3)
    assert not is_small(body)
    sizes = [len(lines) for lines in _pieces(body)]
    assert max(sizes) == PIECE_LINES
    assert sum(sizes) == 3_333_333
    rows, turns = in_pieces(body)
    assert rows == Rows(body[:-1], 3_333_333)
    assert turns == len(sizes) - 1


@pytest.mark.parametrize(
    ("body", "turns"),
    [
        pytest.param(b"{}\n" * (3 * PIECE_LINES), 2, id="many short rows"),
        pytest.param(b'{"a":"%s"}\n' % (b"x" * 1000) * 1000, 3, id="many bytes"),
        pytest.param(b"\n" * (2 * PIECE_LINES) + b"{}", 2, id="mostly blank lines before a row"),
        pytest.param(b"{}" + b"\n" * (2 * PIECE_LINES), 1, id="mostly blank lines after a row"),
        pytest.param(b"[" + b"{}," * (2 * PIECE_LINES) + b"{}]", 2, id="an array"),
    ],
)
def test_between_pieces_others_may_run(body: bytes, turns: int) -> None:
    assert in_pieces(body)[1] == turns


def test_a_row_larger_than_a_piece_is_a_piece_of_its_own() -> None:
    large = b'{"a":"%s"}' % (b"x" * PIECE_BYTES)
    assert [list(map(len, lines)) for lines in _pieces(b"{}\n" + large + b"\n{}\n")] == [[2], [len(large)], [2]]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3 * PIECE_BYTES // 2) | st.integers(0, 20), max_size=12),
    st.integers(0, 3 * PIECE_LINES),
    st.booleans(),
)
def test_pieces_are_the_lines_and_none_is_too_large(lengths: list[int], short: int, ends: bool) -> None:
    lines = [b"x" * length for length in lengths] + [b"{}"] * short
    body = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    found = list(_pieces(body))
    expected = body.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line for piece in found for line in piece] == expected
    for piece in found:
        assert 0 < len(piece) <= PIECE_LINES
        assert len(piece) == 1 or sum(map(len, piece)) + len(piece) - 1 <= PIECE_BYTES


@pytest.mark.parametrize(
    ("body", "small"),
    [
        pytest.param(b"{}", True, id="a row"),
        pytest.param(b"x" * PIECE_BYTES, True, id="a piece of one line"),
        pytest.param(b"x" * (PIECE_BYTES + 1), False, id="a byte more"),
        pytest.param(b"{}\n" * PIECE_LINES, True, id="a piece of short lines"),
        pytest.param(b"{}\n" * (PIECE_LINES + 1), False, id="a line more"),
    ],
)
def test_a_small_body_is_one_piece(body: bytes, small: bool) -> None:
    assert is_small(body) is small
    if small:
        assert len(list(_pieces(body))) == 1


# Cutting.


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=60),
    st.integers(1, 70),
    st.integers(1, 200),
)
def test_parts_keep_within_both_limits_and_join_to_the_body(lengths: list[int], max_rows: int, max_bytes: int) -> None:
    lines = [b'{"a":"%s"}' % (b"x" * length) for length in lengths]
    rows = Rows(b"\n".join(lines), len(lines))
    parts = list(cut(rows, max_rows=max_rows, max_bytes=max_bytes))
    assert b"\n".join(part.body for part in parts) == rows.body
    assert sum(part.row_count for part in parts) == rows.row_count
    for part in parts:
        assert part.row_count == part.body.count(b"\n") + 1 <= max_rows
        assert len(part.body) <= max_bytes or part.row_count == 1
    for part, following in pairwise(parts):  # no part could have taken the next row in as well
        first = following.body.partition(b"\n")[0]
        assert part.row_count == max_rows or len(part.body) + 1 + len(first) > max_bytes


def test_nothing_is_cut_into_nothing() -> None:
    assert list(cut(NO_ROWS, max_rows=1, max_bytes=1)) == []


# Properties: rendered JSON, in any style.

_KEYS = st.text(st.characters(codec=None, exclude_categories=()), max_size=4) | st.sampled_from(
    ("a", "a", "\ud800", "")
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from((2**53 + 1, -0.0, 10**30, 0.1, "\ud83d", "\U0001f600", '"\\/', "\x00\x1f\x7f\u2028"))
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _KEYS
)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))
_OBJECTS = st.dictionaries(_KEYS, _VALUES, max_size=4)


def render(value: Any, style: random.Random, spaces: Sequence[str]) -> str:
    """``value`` as JSON, with white space of any kind and strings escaped more or less."""

    def space() -> str:
        return style.choice(spaces)

    if isinstance(value, dict):
        pairs = (f"{space()}{string(k, style)}{space()}:{render(v, style, spaces)}" for k, v in value.items())
        return f"{space()}{{{','.join(pairs)}{space()}}}{space()}"
    if isinstance(value, list):
        return f"{space()}[{','.join(render(v, style, spaces) for v in value)}{space()}]{space()}"
    text = string(value, style) if isinstance(value, str) else json.dumps(value)
    if isinstance(value, float) and style.random() < 0.5:
        text = text.replace("e", "E")
    return f"{space()}{text}{space()}"


def string(text: str, style: random.Random) -> str:
    raw = json.dumps(text, ensure_ascii=style.random() < 0.5)
    # json.dumps leaves lone surrogates as they are where it does not escape; no encoder could write them.
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in raw)


def rendered(rows: Sequence[Any], style: random.Random, spaces: Sequence[str] = ("", "", " ", "\t ")) -> list[bytes]:
    return [render(row, style, spaces).encode() for row in rows]


@settings(deadline=None, max_examples=60)
@given(st.lists(_OBJECTS, max_size=6), st.randoms(use_true_random=False))
def test_objects_in_any_style_one_a_line_are_taken_as_they_are(objects: list[Any], style: random.Random) -> None:
    rows = rendered(objects, style)
    body = b""
    for row in rows:
        body += b"".join(style.choice((b"", b"", b"\n", b" \r\n")) for _ in range(2))
        body += row + style.choice((b"\n", b"\r\n"))
    if style.random() < 0.5:
        body = body.removesuffix(b"\n").removesuffix(b"\r")
    assert check(body) == Rows(b"\n".join(rows), len(rows))


@settings(deadline=None, max_examples=60)
@given(st.lists(_OBJECTS, max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_an_array_in_any_style_becomes_its_objects(objects: list[Any], style: random.Random, document: bool) -> None:
    spaces = ("", " ", "\n", "\r\n\t")
    body = render(objects, style, spaces).encode()
    rows = check(body, document=document)
    assert rows.row_count == len(objects)
    lines = rows.body.split(b"\n") if objects else []
    assert [exact(line.decode()) for line in lines] == [exact(json.dumps(row)) for row in objects]
    # Byte for byte but for the white space between rows: every row is a slice of what came.
    flat = body.translate(bytes.maketrans(b"\r\n", b"  "))
    position = 0
    for line in lines:
        position = flat.index(line, position) + len(line)


@settings(deadline=None, max_examples=50)
@given(_OBJECTS, st.randoms(use_true_random=False), st.booleans())
def test_one_object_over_several_lines_keeps_every_byte_but_its_line_breaks(
    row: Any, style: random.Random, document: bool
) -> None:
    body = render(row, style, ("", "\n", "\r\n  ")).encode()
    rows = check(body, document=document)
    assert rows.row_count == 1
    expected = body.strip(BLANK) if document or b"\n" in body.strip(BLANK) else body.strip(b"\r\n")
    assert rows.body.strip() == expected.translate(bytes.maketrans(b"\r\n", b"  ")).strip()


def exact(text: str) -> Any:
    """``text`` as values that compare equal only if every number, key and string is spelt the same."""
    return json.loads(text, parse_int=str, parse_float=spelt, parse_constant=_refuse, object_pairs_hook=list)


def spelt(number: str) -> str:
    return number.lower()


def _refuse(constant: str) -> None:
    raise ValueError(constant)


# The oracle.


def oracle(body: bytes) -> int | None:
    """How many rows a strict reader finds in ``body``; None if it refuses."""
    stripped = body.strip(BLANK)
    if not stripped:
        return 0
    if stripped.startswith(b"["):
        array = strictly(body)
        if not isinstance(array, list) or not all(is_row(element) for element in array):
            return None
        return len(array)
    lines = [line for line in body.split(b"\n") if line.strip(BLANK)]
    if all(is_row(strictly(line)) for line in lines):
        return len(lines)
    return 1 if is_row(strictly(body)) else None


class Pairs(dict[str, Any]):
    """An object with all of its values, also those whose key comes again."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.all = [value for _, value in pairs]


def strictly(text: bytes) -> Any:
    try:
        decoded = text.decode("utf-8", "strict")
        if decoded.startswith("\ufeff"):
            return None
        return json.loads(decoded, parse_int=str, parse_float=str, parse_constant=_refuse, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return None


def is_row(value: Any) -> bool:
    return isinstance(value, Pairs) and depth(value) <= MAX_DEPTH


def depth(value: Any) -> int:
    level, values = 0, [value]
    while values := [value for value in values if isinstance(value, Pairs | list)]:
        level += 1
        values = [inner for value in values for inner in (value.all if isinstance(value, Pairs) else value)]
    return level


_TOKENS = st.sampled_from(
    (
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b'"a"',
            b'"b":',
            b'{"a":1}',
            b"{}",
            b'{"a":\n1}',
            nested(512),
            nested(513),
        ),
        *(b"1", b"-", b"0", b"1e400", b"1.", b"true", b"null", b"NaN", b"Infinity"),
        *(b"\n", b"\r", b"\r\n", b" ", b"\t", b"\x0b", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
        *(b'"', b"\\", b'"\xc3\xa9"', rb'"\ud800"', rb'"\\"', rb'"\u00"'),
    )
)


@st.composite
def near_json(draw: st.DrawFn) -> bytes:
    """Bytes that are a body, or were one before a few of them changed."""
    if draw(st.booleans()):
        return b"".join(draw(st.lists(_TOKENS, max_size=12)))
    style = draw(st.randoms(use_true_random=False))
    objects = draw(st.lists(_OBJECTS, max_size=4))
    spaces = draw(st.sampled_from((("", " "), ("", "\n", "\r"))))
    if draw(st.booleans()):
        body = bytearray(b"\n".join(rendered(objects, style, spaces)))
    else:
        body = bytearray(render(objects, style, spaces).encode())
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(_TOKENS)
    return bytes(body)


@settings(deadline=None, max_examples=500)
@given(near_json())
def test_a_body_is_accepted_exactly_if_the_standard_library_accepts_it(body: bytes) -> None:
    refused = refusal(body)
    expected = oracle(body)
    if expected is None:
        assert refused is not None
        assert refused.status == 400
        assert refused.message.startswith("row ")
    else:
        assert refused is None
        assert check(body).row_count == expected


@settings(deadline=None, max_examples=200)
@given(near_json(), st.booleans())
def test_checking_at_once_and_in_pieces_come_to_the_same(body: bytes, document: bool) -> None:
    at_once = refusal(body, document=document)
    if at_once is None:
        assert in_pieces(body, document=document)[0] == check(body, document=document)
    else:
        with pytest.raises(BodyRefused) as caught:
            in_pieces(body, document=document)
        assert (caught.value.status, caught.value.message) == (at_once.status, at_once.message)


@settings(deadline=None, max_examples=120)
@given(near_json(), st.booleans())
def test_accepted_rows_are_lines_that_would_be_accepted_again_unchanged(body: bytes, document: bool) -> None:
    if refusal(body, document=document) is not None:
        return
    rows = check(body, document=document)
    if rows == NO_ROWS:
        return
    lines = rows.body.split(b"\n")
    assert len(lines) == rows.row_count
    assert check(rows.body) == rows
    assert all(is_row(strictly(line)) for line in lines)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(_OBJECTS, max_size=8),
    st.sampled_from([b'{"a"', b"{} {}", b"7", b'{"a":"\xff"}', b"\x00", nested(513), b'{"a":NaN}', b'"\\ud800"']),
    st.integers(0, 8),
    st.randoms(use_true_random=False),
)
def test_the_refused_row_is_named_by_its_number_at_any_position(
    objects: list[Any], bad: bytes, position: int, style: random.Random
) -> None:
    rows = rendered(objects, style)
    position = min(position, len(rows))
    rows.insert(position, bad)
    blank_before = 0
    body = b""
    for index, row in enumerate(rows):
        blank = style.choice((0, 0, 0, 2))
        blank_before += blank if index <= position else 0
        body += b"\r\n" * blank + row + b"\n"
    refused = refusal(body)
    assert refused is not None
    line = f" (line {position + blank_before + 1})" if blank_before else ""
    assert refused.message.startswith(f"row {position + 1}{line}: ")


QUOTABLE = [
    b'{"%s":1',
    b"%s",
    b'"%s"',
    b'{"a":"%s\xff"}',
    b'{"a":"%s\x00"}',
    b'{"a":%s}',
    b'{}{"%s":1}',
    b'{"\\%s":1}',
    b'{"a":"\\ud800 %s',
    b'["%s"]',
    b'[{"a":1},"%s"]',
    b"{} %s",
    b'{"a":"%s"}' + nested(513),
    b'{"%s":1,}',
    b"\xef\xbb\xbf%s",
]


@pytest.mark.parametrize("template", QUOTABLE)
@pytest.mark.parametrize("document", [False, True], ids=["rows", "document"])
@pytest.mark.parametrize("first", [b"", b"{}\n"], ids=["first", "second"])
def test_no_refusal_quotes_the_row(template: bytes, document: bool, first: bytes) -> None:
    refused = refusal(first + template.replace(b"%s", MARKER.encode()), document=document)
    assert refused is not None
    assert MARKER not in refused.message
    assert MARKER not in str(refused)
    assert refused.__cause__ is None  # nor does what a traceback would show
    assert refused.__suppress_context__ or refused.__context__ is None


@settings(deadline=None, max_examples=120)
@given(near_json(), st.integers(0, 200), st.booleans())
def test_no_refusal_quotes_anything_of_any_body(body: bytes, at: int, document: bool) -> None:
    refused = refusal(body[:at] + MARKER.encode() + body[at:], document=document)
    if refused is not None:
        assert MARKER not in refused.message
        assert len(refused.message) < 300
