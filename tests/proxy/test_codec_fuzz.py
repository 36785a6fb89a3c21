"""Packed bodies, whole and damaged, in any number of members, against ``zlib`` and ``zstd``.

How long it looks: see ``fuzzing``.
"""

import gzip
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.fuzz_bodies import changed, changes
from tests.proxy.fuzzing import bounded, fuzzed, rounds

from tinybird_proxy import codec
from tinybird_proxy.errors import BodyRefused

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14
except ImportError:
    from backports import zstd

pytestmark = bounded


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
    found = bytearray()
    try:
        while True:
            decoder = _standard_decoder(body, encoding)
            found += decoder.decompress(body)
            if not decoder.eof:
                return None
            body = decoder.unused_data
            if not body.strip(b"\0"):
                return bytes(found)
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

    rounds(any_members, share=0.06)


def test_a_packed_body_that_was_damaged_is_refused_or_read_as_the_standard_library_reads_it() -> None:
    @fuzzed
    @given(st.sampled_from(codec.ENCODINGS), st.integers(0, 2**32), _sizes, changes)
    def any_damage(
        encoding: str, chosen: int, sizes: tuple[int, int], damage: list[tuple[int, float, int, bytes]]
    ) -> None:
        chance = random.Random(chosen)
        contents = [_content(chance)[:3000] for _ in range(chance.choice((1, 1, 2)))]
        body = b"".join(_member(encoding, content, chance) for content in contents)
        for kind, at, length, inserted in damage:
            # Most of it is data; the first and the last bytes say what it is and whether it is whole.
            place = at if chance.random() < 0.4 else chance.choice((at * 20, len(body) - at * 12)) / (len(body) + 1)
            body = changed(body, kind, min(max(place, 0.0), 1.0), length, inserted)
        found = inflated(body, encoding, 1_000_000, piece_bytes=sizes[0], input_bytes=sizes[1])
        expected = unpacked(body, encoding)
        if isinstance(found, BodyRefused):
            assert expected is None or len(expected) > 1_000_000, f"refused ({found}), but it can be read"
            assert found.status == (400 if expected is None else 413)
        else:
            assert found == expected

    rounds(any_damage, share=0.08)
