"""Bodies that were JSON before something happened to them, against a slow reader that shares nothing with ``rows``.

The reader is the standard library's ``json``, one row at a time. It says what is accepted, the exact bytes of each row,
and which row is to blame. Packed bodies are held against ``zlib`` and ``zstd``. How long it looks: see ``fuzzing``.
"""

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.proxy.fuzzing import bounded, rounds

from tinybird_proxy import codec
from tinybird_proxy import rows as rows_module
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.rows import MAX_DEPTH, Rows, check, check_in_pieces, cut

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14
except ImportError:
    from backports import zstd

pytestmark = bounded
BLANK: Final = b" \t\r\n"
fuzzed = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    print_blob=True,
)


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


# Bodies.

_STRUCTURE: Final = (
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"/", b"'", b"{}", b"[]", b'""', b"},{", b"}{", b"]["),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"\t", b"\x0b", b"\x0c", b"\x00", b"\x1f", b"\x7f", b"#", b"//", b"\x1e"),
    *(b"0", b"-", b"+", b".", b"e", b"E", b"1.", b".5", b"01", b"-0", b"1e", b"1e+", b"0x1", b"1_0", b"9" * 400),
    *(b"1e400", b"-1e-400", b"true", b"tru", b"false", b"null", b"NaN", b"-Infinity", b"Infinity", b"undefined"),
    *(b'"a":', b'"a":1', b',"a":1', b'{"a":1}', b'{"a":1}\n', b'\n{"a":1}', b'{"a":\n1}', b'\r{"a":1}'),
    *(b"\\u0000", b"\\ud83d", b"\\ude00", b"\\uD800", b"\\udFFF", b"\\u", b"\\u00", b"\\u00g0", b"\\x41", b"\\\\"),
    *(b"\xff", b"\x80", b"\xc3", b"\xc3\xa9", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xf4\x90\x80\x80"),
    *(b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\xf0\x9f", b"\xef\xbb\xbf", b"\xef\xbf\xbd", b"\xc2\xa0", b"\xc2\x85"),
)
_KEYS: Final = ("a", "b", "a", "", "é", "\U0001f600", "\ud800", '"', "\\", "\n", "\x7f", "\u2028", "k" * 40, "/{[")
_NUMBERS: Final = ("0", "-0", "1", "0.10", "1E+5", "1e400", "-1e-400", "9007199254740993", "7" * 60, "-1.5e-7")
_WORDS: Final = ("true", "false", "null")


def _text(chance: random.Random, text: str) -> str:
    """``text`` as a JSON string, escaped more or less; what no encoder can write always is."""
    raw = json.dumps(text, ensure_ascii=chance.random() < 0.5)
    raw = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in raw)
    if chance.random() < 0.2:
        raw = raw.replace("a", "\\u0061").replace("/", "\\/")
    return raw.replace("\\ud", "\\uD") if chance.random() < 0.2 else raw


def _value(chance: random.Random, levels: int, spaces: tuple[str, ...]) -> str:
    kind = chance.randrange(6) if levels else chance.randrange(4)
    if kind == 0:
        return chance.choice(_NUMBERS)
    if kind == 1:
        return chance.choice(_WORDS)
    if kind in (2, 3):
        return _text(chance, "".join(chance.choices(_KEYS, k=chance.randrange(3))))
    if kind == 4:
        return _object(chance, levels - 1, spaces)
    inner = ",".join(_value(chance, levels - 1, spaces) for _ in range(chance.randrange(4)))
    return f"[{chance.choice(spaces)}{inner}{chance.choice(spaces)}]"


def _object(chance: random.Random, levels: int, spaces: tuple[str, ...]) -> str:
    def space() -> str:
        return chance.choice(spaces)

    pairs = (
        f"{space()}{_text(chance, chance.choice(_KEYS))}{space()}:{space()}{_value(chance, levels, spaces)}{space()}"
        for _ in range(chance.randrange(4))
    )
    return f"{{{','.join(pairs)}{space()}}}"


def _deep(chance: random.Random) -> str:
    levels = chance.choice((MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 2 * MAX_DEPTH, 5000)) - 1
    opened, closed = chance.choice((("[", "]"), ('{"a":', "}"), ('[{"":', "}]")))
    times = levels // opened.count("{") // 2 if opened == '[{"":' else levels
    padding = chance.choice(("1", '"]}"', '"' + '\\"[{' * 300 + '"'))
    return '{"a":' + opened * times + padding + closed * times + "}"


def _rows(chance: random.Random, spaces: tuple[str, ...]) -> list[bytes]:
    count = chance.choice((0, 1, 1, 2, 3, 5, 12))
    odd = chance.random()
    found = [_object(chance, 2, spaces) for _ in range(count)]
    if odd < 0.06:
        found.insert(chance.randint(0, count), _deep(chance))
    elif odd < 0.12:
        found.insert(chance.randint(0, count), '{"a":"%s"}' % ("é" * chance.choice((500, 511, 1000)) + "[" * 600))
    elif odd < 0.18:
        found.insert(chance.randint(0, count), _value(chance, 1, spaces))
    return [row.encode() for row in found]


def _well_formed(chance: random.Random) -> bytes:
    style = chance.randrange(4)
    if style <= 1:
        rows = _rows(chance, ("", "", " ", "\t", " \r " if style else ""))
        ends = (b"\n",) if chance.random() < 0.5 else (b"\n", b"\r\n", b"\n\n", b" \r\n\r\n", b"\r\r\n", b" \n")
        body = b"".join(row + chance.choice(ends) for row in rows)
        return body[: -chance.randrange(3) or None]
    rows = _rows(chance, ("", " ", "\n", "\r\n  "))
    if style == 2:
        return rows[0] if rows else b"\n"
    gaps = (b"", b" ", b"\n", b"\r\n")
    inner = b",".join(chance.choice(gaps) + row + chance.choice(gaps) for row in rows)
    return chance.choice(gaps) + b"[" + inner + b" ]" + chance.choice(gaps)


def _changed(body: bytes, kind: int, at: float, length: int, inserted: bytes) -> bytes:
    place = min(int(at * (len(body) + 1)), len(body))
    if kind == 0:
        return body[:place] + inserted + body[place:]
    if kind == 1:
        return body[:place] + inserted + body[place + length :]
    if kind == 2:
        return body[:place] + body[place + length :]
    if kind == 3 and place < len(body):
        return body[:place] + bytes([body[place] ^ (1 << length % 8)]) + body[place + 1 :]
    if kind == 4:
        return body[:place]
    if kind == 5:
        return body[:place] + body[place : place + 8 * length] * 2 + body[place + 8 * length :]
    return body


_changes = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 8),
        st.sampled_from(_STRUCTURE) | st.binary(min_size=1, max_size=3),
    ),
    max_size=4,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bytes that were a good body before at most four things happened to them; now and then in another encoding."""
    if draw(st.integers(0, 9)) == 0:
        return b"".join(draw(st.lists(st.sampled_from(_STRUCTURE), max_size=14)))
    body = _well_formed(random.Random(draw(st.integers(0, 2**32))))
    for change in draw(_changes):
        body = _changed(body, *change)
    encoding = draw(st.sampled_from((*[None] * 40, "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037")))
    if encoding is not None:
        body = body.decode("utf-8", "replace").encode(encoding, "replace")
    return body


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

    rounds(any_body, share=0.2)


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

    rounds(any_body, share=0.1)


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

    rounds(any_body, share=0.05)


# Packed bodies.


def _deflated(data: bytes, wbits: int, chance: random.Random) -> bytes:
    strategy = chance.choice((zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE))
    packer = zlib.compressobj(chance.choice((0, 1, 6, 9)), zlib.DEFLATED, wbits, chance.choice((1, 8, 9)), strategy)
    packed = b""
    for start in range(0, len(data), size := chance.choice((7, 1000, 100_000))):
        packed += packer.compress(data[start : start + size])
        packed += packer.flush(chance.choice((zlib.Z_NO_FLUSH, zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)))
    return packed + packer.flush()


def _gzip(data: bytes, chance: random.Random) -> bytes:
    """A gzip member with any of the fields that its header may have."""
    flags = chance.choice((0, 0, 1, 2, 4, 8, 16, 31))
    header = b"\x1f\x8b\x08" + bytes([flags]) + chance.randbytes(4) + b"\x00\xff"
    if flags & 4:
        extra = chance.randbytes(chance.choice((0, 1, 300)))
        header += len(extra).to_bytes(2, "little") + extra
    header += b"a name\0" * (flags >> 3 & 1) + b"a comment\0" * (flags >> 4 & 1)
    if flags & 2:
        header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    trailer = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return header + _deflated(data, -15, chance) + trailer


def _zstd(data: bytes, chance: random.Random) -> bytes:
    options = {zstd.CompressionParameter.checksum_flag: chance.randrange(2)}
    packer = zstd.ZstdCompressor(
        options={**options, zstd.CompressionParameter.compression_level: chance.choice((1, 3))}
    )
    half = len(data) // 2
    packed: bytes = packer.compress(data[:half])
    packed += packer.flush(zstd.ZstdCompressor.FLUSH_BLOCK) if chance.random() < 0.5 else b""
    packed += packer.compress(data[half:]) + packer.flush()
    return packed


def _member(encoding: str, data: bytes, chance: random.Random) -> bytes:
    if encoding == "gzip":
        return _gzip(data, chance) if chance.random() < 0.7 else gzip.compress(data, chance.choice((1, 6)))
    if encoding == "zstd":
        return _zstd(data, chance)
    return _deflated(data, chance.choice((-15, 15, -9, 9)), chance)


def _content(chance: random.Random) -> bytes:
    kind = chance.randrange(5)
    if kind == 0:
        return b""
    if kind == 1:
        return chance.randbytes(chance.choice((1, 50, 70_000)))
    row = b'{"n":%d,"text":"%s"}\n' % (chance.randrange(10**9), b"x" * chance.randrange(50))
    return row * chance.choice((1, 3, 40, 20_000 if kind == 2 else 100))


def inflated(body: bytes, encoding: str, max_bytes: int, *, piece_bytes: int, input_bytes: int) -> bytes | BodyRefused:
    """What is yielded, all of it; or the refusal. Either way no more than ``max_bytes``, in pieces of that size."""
    found = bytearray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "INFLATED_PIECE_BYTES", piece_bytes)
        patch.setattr(codec, "_INPUT_PIECE_BYTES", input_bytes)
        try:
            for piece in codec.inflate(body, encoding, max_bytes):
                assert 0 < len(piece) <= piece_bytes
                found += piece
                assert len(found) <= max_bytes
        except BodyRefused as refused:
            return refused
    return bytes(found)


def unpacked(body: bytes, encoding: str) -> bytes | None:
    """What the standard library makes of it, member by member; None if it refuses."""
    found = b""
    try:
        while True:
            decoder = _standard_decoder(body, encoding)
            found += decoder.decompress(body)
            if not decoder.eof:
                return None
            body = decoder.unused_data
            if not body.strip(b"\0"):
                return found
    except (zlib.error, zstd.ZstdError, EOFError):
        return None


def _standard_decoder(body: bytes, encoding: str) -> Any:
    if encoding == "zstd":
        return zstd.ZstdDecompressor()
    if encoding == "gzip":
        return zlib.decompressobj(31)
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.decompressobj(15 if is_zlib else -15)


# isal loses count in a gzip header that comes in parts and has a checksum of its own. With our pieces that would be a
# header of more than 64 KiB, so the smallest pieces here hold any header of this test.
_sizes = st.sampled_from(((256 * 1024, 64 * 1024), (256 * 1024, 400), (1, 64 * 1024), (3, 401), (100, 500)))


def test_what_was_packed_in_any_number_of_members_comes_out_again_within_its_limit() -> None:
    @fuzzed
    @given(st.sampled_from(codec.ENCODINGS), st.integers(0, 2**32), _sizes, st.integers(-3, 3))
    def any_members(encoding: str, chosen: int, sizes: tuple[int, int], spare: int) -> None:
        chance = random.Random(chosen)
        contents = [_content(chance) for _ in range(chance.choice((1, 1, 2, 5)))]
        if sizes[0] <= 100:
            contents = [content[:5000] for content in contents]
        body = b"".join(_member(encoding, content, chance) for content in contents)
        body += bytes(chance.choice((0, 0, 1, 600)))
        whole = b"".join(contents)
        assert unpacked(body, encoding) == whole, "the test's own packing is wrong"
        limit = max(0, len(whole) + spare)
        found = inflated(body, encoding, limit, piece_bytes=sizes[0], input_bytes=sizes[1])
        if limit >= len(whole):
            assert found == whole
        else:
            assert isinstance(found, BodyRefused)
            assert found.status == 413

    rounds(any_members, share=0.08)


def test_a_packed_body_that_was_damaged_is_refused_or_read_as_the_standard_library_reads_it() -> None:
    @fuzzed
    @given(st.sampled_from(codec.ENCODINGS), st.integers(0, 2**32), _sizes, _changes)
    def any_damage(
        encoding: str, chosen: int, sizes: tuple[int, int], changes: list[tuple[int, float, int, bytes]]
    ) -> None:
        chance = random.Random(chosen)
        contents = [_content(chance)[:3000] for _ in range(chance.choice((1, 1, 2)))]
        body = b"".join(_member(encoding, content, chance) for content in contents)
        for kind, at, length, inserted in changes:
            # Most of it is data; the first and the last bytes say what it is and whether it is whole.
            place = at if chance.random() < 0.4 else chance.choice((at * 20, len(body) - at * 12)) / (len(body) + 1)
            body = _changed(body, kind, min(max(place, 0.0), 1.0), length, inserted)
        found = inflated(body, encoding, 1_000_000, piece_bytes=sizes[0], input_bytes=sizes[1])
        expected = unpacked(body, encoding)
        if isinstance(found, BodyRefused):
            assert expected is None or len(expected) > 1_000_000, f"refused ({found}), but it can be read"
            assert found.status == (400 if expected is None else 413)
        else:
            assert found == expected

    rounds(any_damage, share=0.08)
