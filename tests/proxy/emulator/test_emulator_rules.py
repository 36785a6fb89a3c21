"""`tinybird_proxy.emulator.rules`: cutting a body into rows and judging them."""

import time

import pytest

from tinybird_proxy.emulator.rules import BadRow, check_body
from tinybird_proxy.emulator.schemas import Schema


def _rows(body: bytes, *, is_document: bool = False) -> list[bytes]:
    return list(check_body(body, is_document=is_document).rows)


@pytest.mark.parametrize(
    ("sentence", "body", "rows"),
    [
        ("one row needs no newline", b'{"a":1}', [b'{"a":1}']),
        ("a trailing newline adds no row", b'{"a":1}\n', [b'{"a":1}']),
        ("rows keep their order", b'{"a":2}\n{"a":1}', [b'{"a":2}', b'{"a":1}']),
        ("blank lines are no rows", b'\n \n{"a":1}\n\t\n', [b'{"a":1}']),
        ("CRLF separates rows too", b'{"a":1}\r\n{"a":2}\r\n', [b'{"a":1}', b'{"a":2}']),
        ("spaces around a row belong to it", b'  {"a" : 1} \n', [b'  {"a" : 1} ']),
        ("an empty body has no rows", b"", []),
        ("huge numbers keep their spelling", b'{"a":1e400,"b":' + b"9" * 5000 + b"}", None),
        ("duplicate keys are kept", b'{"a":1,"a":2}', None),
        ("a pair of surrogate escapes is a character", b'{"a":"\\ud83d\\ude00"}', None),
        ("a NUL may be escaped", b'{"a":"\\u0000"}', None),
        ("other line separators are text", '{"a":"\u2028\u0085"}'.encode(), None),
        ("an array gives its elements", b' [{"a":1} , {"a": 2}]\n', [b'{"a":1}', b'{"a": 2}']),
        ("an empty array has no rows", b"[ ]", []),
    ],
)
def test_a_body_becomes_rows_of_exactly_its_bytes(sentence: str, body: bytes, rows: list[bytes] | None) -> None:
    checked = check_body(body, is_document=False)
    assert list(checked.rows) == ([body] if rows is None else rows), sentence
    assert not checked.quarantined, sentence


def test_a_document_may_span_lines() -> None:
    body = b'{\n  "a": 1,\n  "b": [\n 2]\n}\n'
    assert _rows(body, is_document=True) == [body.strip()]


def test_an_empty_document_has_no_rows() -> None:
    assert _rows(b" \n", is_document=True) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a":1}\n\n{"a":\n', "line 3 is not valid JSON"),
        (b'{"a":1}\n1', "line 2 is not a JSON object"),
        (b'{"a":1}\n[1]', "line 2 is not a JSON object"),
        (b'"a"', "line 1 is not a JSON object"),
        (b'{"a":1}{"a":2}', "line 1 holds more than one JSON value"),
        (b'{"a":1} x', "line 1 holds more than one JSON value"),
        (b'{"a":NaN}', "line 1 is not valid JSON"),
        (b'{"a":-Infinity}', "line 1 is not valid JSON"),
        (b"{'a':1}", "line 1 is not valid JSON"),
        (b'{"a":"\t"}', "line 1 is not valid JSON"),
        (b'{"a":"\x00"}', "line 1 is not valid JSON"),
        (b'{\n"a":1}', "line 1 is not valid JSON"),
        (b'{"a":' * 100_000, "line 1 is nested too deeply"),
        (b'{"a":"\xff"}', "the body is not valid UTF-8"),
        (b'[{"a":1},2]', "element 2 of the array is not a JSON object"),
        (b'[{"a":1}', "the array ends too early, after element 1"),
        (b'[{"a":1},]', "element 2 of the array is not valid JSON"),
        (b'[{"a":1}]\n{"a":2}', "the document is followed by something else"),
    ],
)
def test_a_body_with_one_bad_row_is_refused_whole_and_names_it(body: bytes, message: str) -> None:
    with pytest.raises(BadRow, match=f"^{message}$"):
        check_body(body, is_document=False)


def test_two_documents_are_one_too_many() -> None:
    with pytest.raises(BadRow, match="followed by something else"):
        check_body(b'{"a":1}\n{"a":2}', is_document=True)


@pytest.mark.parametrize("escape", [b"\\ud800", b"\\uDFFF", b"x\\udc00\\ud800"])
def test_a_row_with_a_lone_surrogate_is_quarantined_and_the_others_are_not(escape: bytes) -> None:
    checked = check_body(b'{"a":1}\n{"a":"' + escape + b'"}\n{"a":"\\ud83d\\ude00"}', is_document=False)
    assert list(checked.quarantined) == [1]
    assert "surrogate" in checked.quarantined[1].messages[0]


def test_an_escaped_backslash_before_u_is_no_surrogate() -> None:
    assert not check_body(b'{"a":"\\\\ud800"}', is_document=False).quarantined


def test_a_row_that_does_not_fit_the_schema_is_quarantined() -> None:
    checked = check_body(b'{"a":"1"}\n{"a":1}', is_document=False, schema=Schema({"a": "Int64"}))
    assert len(checked.rows) == 2
    assert checked.quarantined.keys() == {0}


def test_patterns_that_occur_in_a_row_are_found() -> None:
    patterns = ['"a":1', "/a.:[2-9]/", '"c"', "a.b", "/^x/"]
    checked = check_body(b'{"a":1}\n{"a":3}', is_document=False, row_patterns=patterns)
    assert checked.matching == {'"a":1', "/a.:[2-9]/"}


def test_a_hundred_thousand_rows_are_checked_in_less_than_a_second_and_a_half() -> None:
    row = b'{"id":"5f1c","timestamp":"2026-11-01 00:00:00","path":"/a/b","v":1.5,"n":{"a":[1,2]},"s":"%s"}'
    body = b"\n".join([row % (b"x" * 150)] * 100_000)
    started = time.process_time()
    checked = check_body(body, is_document=False)
    assert time.process_time() - started < 1.5
    assert len(checked.rows) == 100_000
