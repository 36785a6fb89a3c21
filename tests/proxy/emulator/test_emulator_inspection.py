"""`tinybird_proxy.emulator.inspection`: what is found in a body as it was sent."""

import gzip
import hashlib
from typing import Any

import pytest

from tinybird_proxy.emulator.inspection import Inspected, inspect_body
from tinybird_proxy.emulator.replies import Refused
from tinybird_proxy.emulator.rules import CheckedBody

_RAW = b'{"a":1}\n{"a":2}'


def _inspect(body: bytes, **rules: Any) -> Inspected:
    defaults: dict[str, Any] = {
        "encoding": "",
        "is_document": False,
        "schema": None,
        "row_patterns": (),
        "max_inflated_bytes": 1000,
    }
    return inspect_body(body, **{**defaults, **rules})


def test_sizes_and_hashes_are_those_of_the_body_as_sent_and_of_the_rows_in_it() -> None:
    body = gzip.compress(_RAW)
    inspected = _inspect(body, encoding="gzip")
    assert inspected.body_bytes == len(body)
    assert inspected.body_sha256 == hashlib.sha256(body).hexdigest()
    assert inspected.raw_bytes == len(_RAW)
    assert inspected.raw_sha256 == hashlib.sha256(_RAW).hexdigest()
    assert isinstance(inspected.found, CheckedBody)
    assert len(inspected.found.rows) == 2


@pytest.mark.parametrize(
    ("sentence", "body", "encoding", "status"),
    [
        ("a bad row", b"1", "", 400),
        ("a body that is not gzip", _RAW, "gzip", 400),
        ("an unknown encoding", _RAW, "br", 415),
        ("a body that inflates too far", gzip.compress(b" " * 1001), "gzip", 413),
    ],
)
def test_what_cannot_be_taken_is_refused(sentence: str, body: bytes, encoding: str, status: int) -> None:
    inspected = _inspect(body, encoding=encoding)
    assert isinstance(inspected.found, Refused), sentence
    assert inspected.found.status == status, sentence
    assert inspected.body_bytes == len(body)
