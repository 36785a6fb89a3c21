"""`tinybird_proxy.emulator.encodings`: undoing a Content-Encoding within bounds."""

import gzip
import sys
import zlib

import pytest

from tinybird_proxy.emulator.encodings import CorruptBody, InflatedTooLarge, UnknownEncoding, inflate

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_RAW = b'{"a":1}\n' * 1000
_COMPRESSED = {
    "gzip": gzip.compress(_RAW),
    "deflate": zlib.compress(_RAW),
    "zstd": zstd.compress(_RAW),
}


def _raw_deflate(raw: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(raw) + stream.flush()


@pytest.mark.parametrize("encoding", _COMPRESSED)
def test_each_encoding_gives_the_bytes_back(encoding: str) -> None:
    assert inflate(_COMPRESSED[encoding], encoding, max_bytes=len(_RAW)) == _RAW


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_body_that_is_not_encoded_is_the_very_same_object(encoding: str) -> None:
    assert inflate(_RAW, encoding, max_bytes=1) is _RAW


def test_deflate_without_a_zlib_header_is_understood() -> None:
    assert inflate(_raw_deflate(_RAW), "deflate", max_bytes=len(_RAW)) == _RAW


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_streams_that_follow_one_another_are_joined(encoding: str) -> None:
    assert inflate(_COMPRESSED[encoding] * 3, encoding, max_bytes=3 * len(_RAW)) == _RAW * 3


@pytest.mark.parametrize("encoding", _COMPRESSED)
def test_one_byte_more_than_allowed_is_too_large(encoding: str) -> None:
    with pytest.raises(InflatedTooLarge, match="more than 7999 bytes"):
        inflate(_COMPRESSED[encoding], encoding, max_bytes=len(_RAW) - 1)


@pytest.mark.parametrize("encoding", _COMPRESSED)
def test_a_body_that_was_cut_short_is_corrupt(encoding: str) -> None:
    with pytest.raises(CorruptBody, match=encoding):
        inflate(_COMPRESSED[encoding][:-1], encoding, max_bytes=len(_RAW))


@pytest.mark.parametrize("encoding", _COMPRESSED)
@pytest.mark.parametrize("body", [b"", b'{"a":1}'])
def test_a_body_that_is_not_what_it_claims_is_corrupt(encoding: str, body: bytes) -> None:
    with pytest.raises(CorruptBody, match=encoding):
        inflate(body, encoding, max_bytes=len(_RAW))


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "lz4"])
def test_other_encodings_are_refused_with_those_that_exist(encoding: str) -> None:
    with pytest.raises(UnknownEncoding, match="must be gzip, deflate, zstd or identity"):
        inflate(_RAW, encoding, max_bytes=1)
