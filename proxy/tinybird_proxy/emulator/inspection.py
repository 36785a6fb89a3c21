"""Look at a body as it was sent: inflate it, cut it into rows, judge them; or say why it is refused."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from tinybird_proxy.emulator.encodings import CorruptBody, InflatedTooLarge, UnknownEncoding, inflate
from tinybird_proxy.emulator.replies import Refused
from tinybird_proxy.emulator.rules import BadRow, CheckedBody, check_body
from tinybird_proxy.emulator.schemas import Schema


class Rules(TypedDict):
    """What a body is held to: the keyword arguments of `inspect_body`."""

    encoding: str
    is_document: bool
    schema: Schema | None
    row_patterns: Sequence[str]
    max_inflated_bytes: int


@dataclass(frozen=True, slots=True)
class Inspected:
    """A body that was read, and what is in it."""

    body_bytes: int
    """As sent, like the hash."""
    body_sha256: str
    raw_bytes: int | None
    """After its Content-Encoding was undone, like the hash; None where that failed."""
    raw_sha256: str | None
    found: CheckedBody | Refused
    """Its rows, or why it has none."""


def inspect_body(
    body: bytes,
    *,
    encoding: str,
    is_document: bool,
    schema: Schema | None,
    row_patterns: Sequence[str],
    max_inflated_bytes: int,
) -> Inspected:
    """Takes about 0.4 s for 100,000 rows: call it in a thread unless the body is small."""
    body_sha256 = hashlib.sha256(body).hexdigest()
    raw_bytes = raw_sha256 = None
    found: CheckedBody | Refused
    try:
        raw = inflate(body, encoding, max_bytes=max_inflated_bytes)
        raw_bytes = len(raw)
        raw_sha256 = body_sha256 if raw is body else hashlib.sha256(raw).hexdigest()
        found = check_body(raw, is_document=is_document, schema=schema, row_patterns=row_patterns)
    except (BadRow, CorruptBody) as exc:
        found = Refused(400, str(exc))
    except UnknownEncoding as exc:
        found = Refused(415, str(exc))
    except InflatedTooLarge as exc:
        found = Refused(413, str(exc))
    return Inspected(len(body), body_sha256, raw_bytes, raw_sha256, found)
