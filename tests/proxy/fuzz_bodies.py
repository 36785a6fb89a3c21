"""Bodies for the fuzz tests: JSON in any style, and what may happen to bytes."""

import json
import random
from typing import Final

from hypothesis import strategies as st

from tinybird_proxy.rows import MAX_DEPTH

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


def changed(body: bytes, kind: int, at: float, length: int, inserted: bytes) -> bytes:
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


changes = st.lists(
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
    for change in draw(changes):
        body = changed(body, *change)
    encoding = draw(st.sampled_from((*[None] * 40, "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037")))
    if encoding is not None:
        body = body.decode("utf-8", "replace").encode(encoding, "replace")
    return body
