"""Requests whose answers are known, and what may happen to bytes on their way. All of it comes from ``chance``."""

import gzip
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tests.proxy.running import TOKEN, chunked, request

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14
except ImportError:
    from backports import zstd

MAX_BODY_BYTES: Final = 100_000
MAX_INFLATED_BYTES: Final = 300_000
TWO_WAYS: Final = (400, 501)  # the answers to what could be read in two ways
_PACKED: Final[tuple[tuple[str, Callable[[bytes], bytes]], ...]] = (
    ("gzip", gzip.compress),
    ("x-gzip", lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])),
    ("deflate", zlib.compress),
    # With a checksum, or nobody could tell that something happened to it.
    ("Zstd", lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})),
)
_HARMLESS: Final = (
    "",
    "&wait=false",
    "&format=ndjson",
    "&from=ts-sdk",
    "&__tb__min_deployment=7",
    "&x=%20&&y",
    "&ack=memory",
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A request as it goes over the wire, and what must be answered.

    ``rows`` are those that arrive if the answer is a 2xx; None: it has none. ``plain`` is the body before it was
    packed. ``may_end``: the answer may be the last one on its connection.
    """

    what: str
    wire: bytes
    statuses: tuple[int, ...]
    rows: Sequence[bytes] | None = None
    plain: bytes = b""
    may_end: bool = False


def _rows(chance: random.Random, tag: str) -> list[bytes]:
    count = chance.choice((1, 1, 1, 2, 3, 30))
    texts = ("", "x", "é", "\\ud800", '\\"}\\n{', "]" * 50, "\U0001f600", "0\\r\\n\\r\\nPOST / HTTP/1.1")
    rows = [
        f'{{"id":"{tag}-{number}",{chance.choice(("", " "))}"text":"{chance.choice(texts)}","n":1e400}}'.encode()
        for number in range(count)
    ]
    if chance.random() < 0.08:
        size = chance.choice((4000, 4097, 66_000, 70_000))
        rows[-1] = b'{"id":"%s-large","text":"%s"}' % (tag.encode(), b"x" * size)
    return rows


def _body(chance: random.Random, rows: Sequence[bytes]) -> bytes:
    style = chance.randrange(5)
    if style == 0:
        return b"[" + b" ,\n".join(rows) + b"]"
    end = (b"\n", b"\r\n", b"\n\n", b"\n \r\n")[style - 1]
    return end.join(rows) + chance.choice((b"", end))


def _framed(
    chance: random.Random, target: str, body: bytes, headers: list[tuple[str, str]], token: str | None
) -> bytes:
    if chance.random() < 0.3:
        cuts = sorted({0, len(body), *(chance.randrange(len(body) + 1) for _ in range(chance.randrange(6)))})
        pieces = [body[start:end] for start, end in pairwise(cuts)]
        sent = chunked(*pieces).replace(b"\r\n", b";ext=1\r\n", 1) if chance.random() < 0.3 else chunked(*pieces)
        return request(target, token=token, headers=[*headers, ("Transfer-Encoding", "chunked")]) + sent
    return request(target, body, token=token, headers=headers)


def plan(chance: random.Random, name: str, tag: str, *, own_token: bool) -> Planned:
    """One request of any kind, to the data source ``name``; ``tag`` makes its rows its own."""
    if chance.random() < 0.4:
        return _odd(chance, name, tag, own_token=own_token)
    rows = _rows(chance, tag)
    plain = body = _body(chance, rows)
    target = f"/v0/events?name={name}{chance.choice(_HARMLESS)}"
    headers = [("Content-Type", chance.choice(("application/json", "text/plain", "x")))] * chance.randrange(2)
    statuses = [202]
    if chance.random() < 0.15:
        target, statuses = target + "&wait=true", [200]
    if chance.random() < 0.3:
        encoding, pack = chance.choice(_PACKED)
        body = pack(plain)
        headers.append(("Content-Encoding", encoding))
    if chance.random() < 0.1:
        headers.append(("Expect", "100-continue"))
    if may_end := chance.random() < 0.05:
        headers.append(("Connection", "close"))
    token: str | None = TOKEN
    if chance.random() < 0.1:
        target, token = f"{target}&token={TOKEN}", None
    if len(body) > 60_000:  # too many of these at once are refused
        statuses, may_end = [*statuses, 503], True
    wire = _framed(chance, target, body, headers, token)
    return Planned("rows", wire, tuple(statuses), rows, plain, may_end)


def _odd(chance: random.Random, name: str, tag: str, *, own_token: bool) -> Planned:
    target = f"/v0/events?name={name}"
    rows = _rows(chance, tag)
    body = _body(chance, rows)
    passed_on = 404 if own_token else 200
    match chance.randrange(18):
        case 0:
            broken = chance.choice((b'\n{"a":', b"\n5", b'\n{"a":"\xff"}', b"\n{}{}", b"\x00", b"\n[]"))
            body = b"\n".join(rows) + broken
            return Planned("a broken row", _framed(chance, target, body, [], TOKEN), (400,), plain=body)
        case 1:
            blank = chance.choice((b"", b"\n", b" \r\n\n", b"[]"))
            return Planned("no rows", _framed(chance, target, blank, [], TOKEN), (202,), [])
        case 2:
            query = chance.choice(("", "?", "?name=", "?name=%00", "?name=a&ack=disk", "?name=%FF", "?wait=true"))
            return Planned("no name", _framed(chance, f"/v0/events{query}", body, [], TOKEN), (400,), plain=body)
        case 3:
            taken = (rows, 202) if not own_token else (None, 403)
            wire = _framed(chance, target, body, [], "wrong")
            return Planned("a wrong token", wire, (taken[1], 503), taken[0], body, len(body) > 60_000)
        case 4:
            return Planned("no token", _framed(chance, target, body, [], None), (401,), plain=body)
        case 5:
            return Planned("GET", request(target, method="GET"), (405,))
        case 6:
            return Planned("OPTIONS", request(target, method="OPTIONS"), (204,))
        case 7:
            return Planned("HEAD", request(chance.choice((target, "/v1/liveness")), method="HEAD"), (405, 200))
        case 8:
            return Planned("liveness", request("/v1/liveness?x", method="GET"), (200,))
        case 9:
            path = chance.choice(("/", "/v0/sql?q=1", "/v0/events/", "/v0/eventsx?name=a", "/%00", "/v0/events%20"))
            return Planned("another path", request(path, method="GET"), (passed_on,))
        case 10:
            wire = _framed(chance, "/v0/datasources", body[:5000], [], TOKEN)
            return Planned("another path with a body", wire, (passed_on,), plain=body)
        case 11:
            wire = _framed(
                chance, target, body, [("Content-Encoding", chance.choice(("br", "gzip, gzip", "?")))], TOKEN
            )
            return Planned("an unknown encoding", wire, (415,), plain=body, may_end=True)
        case 12:
            packed = chance.choice((b"\x1f\x8b", b"", gzip.compress(body)[:-1], gzip.compress(body) + b"x", body))
            wire = _framed(chance, target, packed, [("Content-Encoding", "gzip")], TOKEN)
            # An empty body is no rows, however it says that it is packed.
            return Planned("broken gzip", wire, (400,) if packed else (202,), None if packed else [], body)
        case 13:
            large = b'{"large":"%s"}' % (b"x" * MAX_BODY_BYTES)
            return Planned("too large", _framed(chance, target, large, [], TOKEN), (413, 503), may_end=True)
        case 14:
            bomb = gzip.compress(b"{}\n" * MAX_INFLATED_BYTES)
            wire = _framed(chance, target, bomb, [("Content-Encoding", "gzip")], TOKEN)
            return Planned("too large when inflated", wire, (413,))
        case 15:
            wire = request(target, body, version="1.0")
            return Planned("HTTP/1.0", wire, (202, 503), rows, body, may_end=True)
        case 16:
            upgrade = [("Connection", "Upgrade"), ("Upgrade", chance.choice(("h2c", "websocket")))]
            # Nobody may send more before the offer is answered.
            return Planned("an upgrade", request(target, body, headers=upgrade), (202, 503), rows, body, may_end=True)
        case _:
            two_ways = chance.choice(
                (
                    b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                    b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
                    b"Content-Length: +2\r\n\r\n{}",
                    b"Content-Length : 2\r\n\r\n{}",
                    b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                    b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
                )
            )
            head = request(target, method="GET").replace(b"GET", b"POST", 1)[:-2]
            return Planned("could be read in two ways", head + two_ways, TWO_WAYS, may_end=True)


# What may happen to bytes on their way.

_INSERTED: Final = (
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"f", b"-", b"\xff", b"\x80"),
    *(b"0\r\n\r\n", b"5\r\n", b"ffffffffffffffff\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Host: b\r\n",
        b"HTTP/1.1",
    ),
    *(
        b"%",
        b"%00",
        b"&name=",
        b"?",
        b"#",
        b"//",
        b"http://a/",
        b"&wait=true",
        b"GET / HTTP/1.1\r\n",
        b"X: y\r\n z\r\n",
    ),
    *(b"A" * 40_000, b"X: y\r\n" * 200, b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Trailer: X\r\n", b"\xef\xbb\xbf"),
)


def damaged(chance: random.Random, wires: Sequence[bytes]) -> bytes:
    """The requests one behind the other, after some damage; most of it is done to heads."""
    stream = bytearray()
    starts = []
    for wire in wires:
        starts.append(len(stream))
        stream += wire
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = (
            chance.choice(starts) + chance.randrange(260)
            if chance.random() < 0.75
            else chance.randrange(len(stream) + 1)
        )
        at = min(at, len(stream))
        length = chance.choice((1, 1, 2, 5, 30))
        match chance.randrange(7):
            case 0 if at < len(stream):
                stream[at] ^= 1 << chance.randrange(8)
            case 1:
                stream[at : at + chance.choice((0, length))] = chance.choice(_INSERTED)
            case 2:
                del stream[at : at + length]
            case 3:
                stream[at:at] = stream[at : at + chance.choice((length, 200))]
            case 4:
                del stream[at:]
            case 5:
                stream[at : at + 1] = bytes([chance.randrange(256)])
            case _:
                end = stream.find(b"\r\n", at) + 2
                start = stream.rfind(b"\r\n", 0, at) + 2
                if 2 <= start < end:  # a line once more, or nowhere
                    stream[start:end] = stream[start:end] * chance.choice((0, 2))
    return bytes(stream)
