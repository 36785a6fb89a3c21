"""Compression towards Tinybird, and inflation of what clients send: in bounded pieces, whatever it claims to be."""

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Final, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.codec import (
    ENCODINGS,
    INFLATED_PIECE_BYTES,
    compress,
    content_encoding,
    halves,
    inflate,
    rows_in,
    rows_of,
)
from tinybird_proxy.errors import BodyRefused

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14
except ImportError:
    from backports import zstd

MB: Final = 1_000_000
ROWS: Final = b'{"id":12345,"path":"/checkout"}\n' * 20_000


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


COMPRESSORS: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd.compress),
}
every_format = pytest.mark.parametrize(("encoding", "pack"), COMPRESSORS.values(), ids=COMPRESSORS)


def inflated(body: bytes, encoding: str, max_bytes: int = 64 * MB) -> bytes:
    pieces = list(inflate(body, encoding, max_bytes))
    assert all(0 < len(piece) <= INFLATED_PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


def refusal(body: bytes, encoding: str, max_bytes: int = 64 * MB) -> tuple[int, str]:
    with pytest.raises(BodyRefused) as caught:
        inflated(body, encoding, max_bytes)
    return caught.value.status, caught.value.message


def peak_memory(body: bytes, encoding: str, max_bytes: int) -> tuple[int, int]:
    """The refusal's status, and the most bytes that were allocated on the way to it."""
    tracemalloc.start()
    try:
        with pytest.raises(BodyRefused) as caught:
            for _ in inflate(body, encoding, max_bytes):
                pass
        return caught.value.status, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Content-Encoding.


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        (" GZip ", "gzip"),
        ("deflate", "deflate"),
        ("zstd", "zstd"),
    ],
)
def test_the_known_encodings_are_understood_in_any_spelling(header: str, encoding: str | None) -> None:
    assert content_encoding(header) == encoding


@pytest.mark.parametrize("header", ["br", "gzip, gzip", "gzip;q=1", "compress", "\u0130dentity", "none", "utf-8"])
def test_another_encoding_is_refused_with_the_list_of_ours(header: str) -> None:
    with pytest.raises(BodyRefused) as caught:
        content_encoding(header)
    assert caught.value.status == 415
    assert caught.value.message == (
        f"Content-Encoding {header!a} is not supported; use one of gzip, deflate, zstd, or none"
    )


def test_the_encoding_that_is_refused_is_shown_short_and_printable() -> None:
    with pytest.raises(BodyRefused) as caught:
        content_encoding(" \x1b[2J\udc80" + "x" * 1000)
    shown = caught.value.message.removeprefix("Content-Encoding ").partition(" is not")[0]
    assert shown == "'\\x1b[2J\\udc80" + "x" * 35 + "...'"


def test_every_encoding_of_the_list_can_be_inflated() -> None:
    assert {encoding for encoding, _ in COMPRESSORS.values()} == set(ENCODINGS)


# Inflating.


@every_format
def test_what_was_packed_comes_out_again(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert inflated(pack(ROWS), encoding) == ROWS


def test_a_bare_deflate_stream_is_recognised_although_it_begins_almost_like_zlib() -> None:
    stored, last = b"\x08\x05\x00\xfa\xff{'a'}", b"\x01\x00\x00\xff\xff"  # 8 is padding here, not zlib's method
    assert inflated(stored + last, "deflate") == b"{'a'}"


@every_format
def test_a_packed_nothing_is_nothing(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert inflated(pack(b""), encoding) == b""


@every_format
def test_members_one_after_the_other_are_one_body(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert inflated(pack(b"{}\n") + pack(b"") + pack(ROWS), encoding) == b"{}\n" + ROWS


@every_format
@pytest.mark.parametrize("missing", [1, 4, 9, 100], ids="{} bytes".format)
def test_a_body_that_ends_too_early_is_refused(encoding: str, pack: Callable[[bytes], bytes], missing: int) -> None:
    status, message = refusal(pack(ROWS)[:-missing], encoding)
    assert (status, message) == (400, f"the body is not complete {encoding} data: it ends too early")


@every_format
def test_an_empty_body_is_no_packed_body(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert refusal(b"", encoding) == (400, f"the body is not complete {encoding} data: it ends too early")


@every_format
def test_what_is_not_packed_at_all_is_refused(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    status, message = refusal(ROWS, encoding)
    assert (status, message) == (400, f"the body is not valid {encoding} data, as Content-Encoding says")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_garbage_after_the_end_is_refused(encoding: str) -> None:
    pack = next(pack for name, pack in COMPRESSORS.values() if name == encoding)
    assert refusal(pack(ROWS) + b"garbage that is no member of anything", encoding)[0] == 400


@every_format
@pytest.mark.parametrize("zeros", [1, 512, 100_000])
def test_zeros_after_the_end_are_padding(encoding: str, pack: Callable[[bytes], bytes], zeros: int) -> None:
    assert inflated(pack(ROWS) + bytes(zeros), encoding) == ROWS


@pytest.mark.parametrize(("encoding", "pack"), [COMPRESSORS["gzip"], COMPRESSORS["zlib"]], ids=["gzip", "zlib"])
@pytest.mark.parametrize("from_end", [1, 4], ids="byte -{}".format)
def test_a_wrong_checksum_is_refused(encoding: str, pack: Callable[[bytes], bytes], from_end: int) -> None:
    body = bytearray(pack(ROWS))
    body[-from_end] ^= 1
    assert refusal(bytes(body), encoding) == (400, f"the body is not valid {encoding} data, as Content-Encoding says")


@every_format
def test_a_body_may_be_exactly_as_large_as_allowed(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert len(inflated(pack(ROWS), encoding, len(ROWS))) == len(ROWS)
    too_large = f"the body is larger than {len(ROWS) - 1} bytes after decompression"
    assert refusal(pack(ROWS), encoding, len(ROWS) - 1) == (413, too_large)


@every_format
def test_a_bomb_takes_no_more_memory_than_a_few_pieces(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    status, peak = peak_memory(pack(bytes(30 * MB)), encoding, 20 * MB)
    assert status == 413
    assert peak < 8 * INFLATED_PIECE_BYTES


def test_a_thousand_members_are_taken_and_one_more_is_not() -> None:
    member = gzip.compress(b"{}\n")
    assert inflated(member * 1000, "gzip") == b"{}\n" * 1000
    assert refusal(member * 1001, "gzip") == (400, "the body has more than 1000 gzip members")


@every_format
def test_empty_members_are_counted_although_nothing_comes_of_them(
    encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    assert refusal(pack(b"") * 1001, encoding) == (400, f"the body has more than 1000 {encoding} members")


def test_members_that_begin_with_a_zero_byte_cost_no_more_than_others() -> None:
    # Each begins with an empty stored block. Is the rest padding? That must not copy the rest, each time.
    empty = b"\x00\x00\x00\xff\xff\x01\x00\x00\xff\xff"
    status, peak = peak_memory(empty * 900 + b"\xff" * (5 * MB), "deflate", MB)
    assert status == 400
    assert peak < MB


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(COMPRESSORS)),
    st.lists(st.binary(max_size=40).map(lambda row: row * 50), min_size=1, max_size=5),
    st.integers(0, 64),
)
def test_any_bytes_survive_any_format_and_no_limit_is_passed(name: str, members: list[bytes], spare: int) -> None:
    encoding, pack = COMPRESSORS[name]
    body = b"".join(map(pack, members))
    whole = b"".join(members)
    assert inflated(body, encoding, len(whole) + spare) == whole
    if whole:
        assert refusal(body, encoding, max(0, len(whole) - 1 - spare))[0] == 413


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(COMPRESSORS)),
    st.randoms(use_true_random=False),
    st.integers(0, 4),
    st.floats(0, 1),
)
def test_whatever_is_broken_in_it_a_body_is_inflated_or_refused(
    name: str, chance: random.Random, changes: int, kept: float
) -> None:
    encoding, pack = COMPRESSORS[name]
    body = bytearray(pack(ROWS[:3000]) * 2)
    for _ in range(changes):
        body[chance.randrange(len(body))] = chance.randrange(256)
    try:
        inflated(bytes(body[: int(kept * len(body))]), encoding, 5 * MB)
    except BodyRefused as refused:
        status, message = refused.status, refused.message
        assert (status, encoding in message) in ((400, True), (413, False))


# Compressing.


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_bodies_are_joined_by_line_feeds_and_packed_as_told(compression: Literal["gzip", "zstd", "none"]) -> None:
    payload = compress([b'{"a":1}', b'{"b":2}\n{"c":3}'], compression)
    joined = b'{"a":1}\n{"b":2}\n{"c":3}'
    if payload.encoding is None:
        assert compression == "none"
        assert payload.body == joined
    else:
        assert payload.encoding == compression
        assert inflated(payload.body, payload.encoding) == joined


def test_other_readers_understand_what_leaves() -> None:
    assert gzip.decompress(compress([ROWS], "gzip").body) == ROWS
    assert zlib.decompress(compress([ROWS], "gzip").body, 31) == ROWS
    assert zstd.decompress(compress([ROWS], "zstd").body) == ROWS


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_equal_rows_give_equal_bytes_however_they_came(compression: Literal["gzip", "zstd", "none"]) -> None:
    together = compress([b"{}\n{}", b"{}"], compression)
    assert compress([b"{}", b"{}", b"{}"], compression) == together
    assert compress([b"{}\n{}\n{}"], compression) == together


def test_a_gzip_header_holds_neither_time_nor_name() -> None:
    header = compress([ROWS], "gzip").body[:10]
    flags, mtime = header[3], header[4:8]
    assert header[:3] == b"\x1f\x8b\x08"
    assert (flags, mtime) == (0, bytes(4))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_ordinary_rows_become_much_smaller(compression: Literal["gzip", "zstd"]) -> None:
    assert len(compress([ROWS], compression).body) < len(ROWS) / 20


# Rows out of what was compressed.

Compression = Literal["gzip", "zstd", "none"]
every_compression = pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
LINES = st.lists(st.binary(min_size=1, max_size=40).filter(lambda line: b"\n" not in line), min_size=1, max_size=30)


@every_compression
def test_rows_come_out_of_a_payload_by_their_numbers(compression: Compression) -> None:
    payload = compress([b'{"n":0}\n{"n":1}', b'{"n":2}', b'{"n":3}'], compression)
    assert rows_of(payload, []) == []
    assert rows_of(payload, [(0, 1)]) == [b'{"n":0}']
    assert rows_of(payload, [(1, 3), (3, 4), (0, 4)]) == [
        b'{"n":1}\n{"n":2}',
        b'{"n":3}',
        b'{"n":0}\n{"n":1}\n{"n":2}\n{"n":3}',
    ]


@every_compression
def test_all_rows_of_several_payloads_come_out_in_their_order(compression: Compression) -> None:
    payloads = [compress([b"one", b"two"], compression), compress([b"three"], compression)]
    assert rows_in(payloads) == [b"one\ntwo", b"three"]
    assert rows_in([]) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"a\nb", (b"a", b"b"), id="two rows"),
        pytest.param(b"aa\nbb\ncc\ndd", (b"aa\nbb", b"cc\ndd"), id="even rows"),
        pytest.param(b"a\n" + b"b" * 90, (b"a", b"b" * 90), id="a small row and a large one"),
        pytest.param(b"a" * 90 + b"\nb", (b"a" * 90, b"b"), id="a large row and a small one"),
        pytest.param(b"a\n" + b"b" * 90 + b"\nc\nd", (b"a\n" + b"b" * 90, b"c\nd"), id="the nearer cut is after it"),
        pytest.param(b"a\nb\n" + b"c" * 90 + b"\nd", (b"a\nb", b"c" * 90 + b"\nd"), id="the nearer cut is before it"),
    ],
)
@every_compression
def test_a_payload_is_halved_at_the_row_nearest_to_the_middle(
    body: bytes, expected: tuple[bytes, bytes], compression: Compression
) -> None:
    assert halves(compress([body], compression)) == expected


@settings(deadline=None, max_examples=150)
@given(LINES, st.sampled_from(["gzip", "zstd", "none"]), st.data())
def test_whatever_the_rows_are_they_come_out_as_they_went_in(
    lines: list[bytes], compression: Compression, data: st.DataObject
) -> None:
    body = b"\n".join(lines)
    payload = compress(lines, compression)
    assert rows_in([payload, payload]) == [body, body]
    first = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(first + 1, len(lines)))
    ranges = [(first, end), (0, len(lines))]
    assert rows_of(payload, ranges) == [b"\n".join(lines[first:end]), body]
    if len(lines) > 1:
        left, right = halves(payload)
        assert left + b"\n" + right == body
        assert left
        assert right
        cuts = [len(b"\n".join(lines[:count])) for count in range(1, len(lines))]
        middle = len(body) // 2
        assert abs(len(left) - middle) == min(abs(cut - middle) for cut in cuts)


@pytest.mark.parametrize("flags", [0x20, 0x40, 0x80, 0xE4])
def test_a_gzip_member_with_flags_that_nobody_has_defined_is_refused(flags: int) -> None:
    member = bytearray(gzip.compress(b'{"n":1}', mtime=0))
    good = bytes(member)
    member[3] |= flags
    for body in (bytes(member), good + bytes(member)):
        with pytest.raises(BodyRefused) as refused:
            b"".join(inflate(body, "gzip", 1000))
        assert refused.value.status == 400
