"""Queries and client entries of any kind, against readings of their own: no query does harm, and no entry is misread.

How long it looks: see ``fuzzing``.
"""

import re
import ssl
from typing import Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote_to_bytes, urlsplit

from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.fuzzing import bounded, fuzzed, rounds
from yarl import URL

from tinybird_proxy.batch import DestinationKey
from tinybird_proxy.errors import TokenFileError
from tinybird_proxy.server.events import PATH
from tinybird_proxy.server.query import EventsQuery, parse_query
from tinybird_proxy.tokens import ClientEntry, ClientTokens
from tinybird_proxy.upstream import Upstream, UpstreamSettings

pytestmark = bounded
ORIGIN: Final = "https://api.tinybird.co"
MARKER: Final = "sEcReT"


# Queries.

_NAMES: Final = ("name", "wait", "format", "token", "ack", "x-vercel-verify", "__tb__min_deployment", "__tb_a", "mode")
_VALUES: Final = (
    *("clicks", "true", "True", "on", "0", "json", "JSON", "ndjson", "memory", "disk", "tape", "p.x", "abc-1.~_", ""),
    *("%63licks", "a+b", "a%2Bb", "a%20b", "a%00", "a%0d%0ab", "caf%C3%A9", "café", "%FF", "%", "%zz", "%ED%A0%80"),
    *("\udcff", "\ud800", "x" * 512, "x" * 513, "é" * 257, "a=b", "a;b", "%26", "%3D", "\U0001f600", "\x7f", "\u2028"),
)
_OTHER: Final = ("&", "&&", "=", "==", "%", "%2", "+", ";", "#", "?", "%25", "&" * 201, "&name=a" * 70, "\x00", " ")
_anything: Final = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)


def _spelt(name: str, style: int) -> str:
    if style == 1:
        return "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass"))
    return name.upper() if style == 2 else name


_pairs = st.builds(
    lambda name, style, value: f"{_spelt(name, style)}={value}",
    st.sampled_from(_NAMES) | _anything,
    st.sampled_from((0, 0, 0, 1, 2)),
    st.sampled_from(_VALUES) | _anything,
)


@st.composite
def queries(draw: st.DrawFn) -> str:
    """Pairs that mean something, and what is left of them once something happened."""
    parts = draw(st.lists(_pairs, max_size=6))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), "name=clicks")
    text = "&".join(parts)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        kept = draw(st.integers(0, 3))
        text = text[:place] + draw(st.sampled_from(_OTHER) | st.just("")) + text[place + kept :]
    return text


def _decoded(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode()


def read(text: str) -> EventsQuery:
    """The same by hand: split, unquote, and judge."""
    if not _is_utf8(text):
        return EventsQuery(problem="the query is not valid UTF-8")
    parts = text.split("&")
    if len(parts) > 200:
        return EventsQuery(problem="the query has more than 200 parameters")
    try:
        pairs = [(_decoded(name), _decoded(value)) for name, _, value in (p.partition("=") for p in parts if p)]
    except UnicodeDecodeError:
        return EventsQuery(problem="the query is not valid UTF-8")

    def last(name: str) -> str | None:
        return next((value for other, value in reversed(pairs) if other == name), None)

    name, ack, verify = last("name") or "", last("ack"), last("x-vercel-verify")
    problem = None
    if not name:
        problem = "the parameter 'name' is missing: the data source to write to, as in /v0/events?name=clicks"
    elif len(name) > 512 or any(ord(c) < 32 or ord(c) == 127 for c in name):
        problem = "the parameter 'name' is not the name of a data source"
    elif ack is not None and ack not in ("memory", "disk"):
        problem = "the parameter 'ack' must be memory or disk"
    unreserved = verify is not None and quote_plus(verify, safe="~") == verify
    return EventsQuery(
        name=name,
        wait=(last("wait") or "").lower() in ("true", "1", "yes", "t", "y", "on"),
        document=(last("format") or "").lower() == "json",
        token=last("token") or None,
        params=tuple(sorted((pair for pair in pairs if pair[0].startswith("__tb_")), key=lambda pair: pair[0])),
        ack=ack,
        verify=verify if verify is not None and unreserved and 1 <= len(verify) <= 256 else None,
        problem=problem,
    )


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _upstream() -> Upstream:
    upstream_settings = UpstreamSettings(
        origin=ORIGIN, timeout_s=1.0, instance="i", user_agent="t", proxies={}, bypasses_proxy=lambda host: True
    )
    return Upstream(upstream_settings, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), now=lambda: 0.0)


def test_any_query_is_read_as_a_reading_by_hand_reads_it() -> None:
    @fuzzed
    @given(queries())
    def any_query(text: str) -> None:
        expected = read(text)
        assert parse_query(text) == expected
        assert parse_query(text) == expected, "and once more, from memory"

    rounds(any_query, share=0.05)


def test_whatever_can_be_asked_for_is_what_tinybird_is_asked_for() -> None:
    upstream = _upstream()

    @fuzzed
    @given(queries(), st.booleans())
    def any_query(text: str, wait: bool) -> None:
        found = parse_query(text)
        if found.problem is not None:
            return
        key = DestinationKey(PATH, found.name, found.params, None)
        url = upstream.url(key, wait=wait)
        assert url.isascii()
        assert url.isprintable()
        parts = urlsplit(url)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == ORIGIN + PATH
        assert parts.fragment == ""
        waits = (("wait", "true"),) if wait else ()
        assert tuple(parse_qsl(parts.query, keep_blank_values=True)) == (("name", key.name), *key.params, *waits)
        back = parse_query(parts.query)
        assert (back.name, back.params, back.wait, back.token, back.ack) == (key.name, key.params, wait, None, None)
        assert URL(url, encoded=True).raw_query_string == parts.query, "nor does the client change it"
        # A destination is known by what was asked, however it was spelt.
        respelt = [f"{quote_plus(name)}={quote(value)}" for name, value in (*key.params, ("name", key.name))]
        again = parse_query("&".join(respelt))
        assert DestinationKey(PATH, again.name, again.params, None) == key

    rounds(any_query, share=0.05)


# Client entries.

_OPTION: Final = re.compile(r"name=([A-Za-z0-9_.@-]{1,128})|allow=([A-Za-z0-9_.@-]{1,128}(?:,[A-Za-z0-9_.@-]{1,128})*)")
_LINE_END: Final = re.compile("\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
_WORDS: Final = (
    *(f"{MARKER}1", f"p.{MARKER}", f"{MARKER}#", f"{MARKER}\x00", f"{MARKER}é", f"\ufeff{MARKER}", f"{MARKER}=="),
    *("name=app", "name=", "name=a/b", "name=" + "n" * 128, "name=" + "n" * 129, "Name=app", "name==a", "name"),
    *("allow=a", "allow=a,b", "allow=a,", "allow=,a", "allow=a,,b", "allow=", "allow=é", "allow=a;b", "allow"),
    *("#", "#x", "# x", "name=a#b", "\x7f", "\u3000", "\xa0", "\u200b"),
)
_GAPS: Final = (" ", "  ", "\t", "\n", "\r\n", "\n\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\u2028", "")


def read_entries(text: str) -> dict[str, ClientEntry] | int:
    """The entries by token, or the number of the first bad line (0: there is none)."""
    found: dict[str, ClientEntry] = {}
    for number, line in enumerate(_LINE_END.split(text), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        token, *options = words
        matches = [_OPTION.fullmatch(option) for option in options]
        if None in matches or not all(33 <= ord(character) <= 126 for character in token):
            return number
        names = [match[1] for match in matches if match and match[1]]
        allowed = [match[2] for match in matches if match and match[2]]
        found[token] = ClientEntry(
            names[-1] if names else f"line-{number}", frozenset(allowed[-1].split(",")) if allowed else None
        )
    return found or 0


def parsed(text: str) -> ClientTokens | TokenFileError:
    try:
        return ClientTokens(text, key=b"key")
    except TokenFileError as error:
        return error


def test_any_list_of_client_tokens_is_read_or_refused_with_its_line_and_without_a_token() -> None:
    @fuzzed
    @given(st.lists(st.sampled_from(_WORDS) | st.sampled_from(_GAPS) | _anything, max_size=14).map("".join))
    def any_text(text: str) -> None:
        expected = read_entries(text)
        tokens = parsed(text)
        if isinstance(tokens, TokenFileError):
            assert isinstance(expected, int), f"refused ({tokens}), but it can be read"
            assert str(tokens).startswith(f"line {expected}: ") if expected else str(tokens) == "holds no token"
            assert MARKER not in str(tokens)
            return
        assert isinstance(expected, dict), f"taken, but line {expected} is wrong"
        assert len(tokens) == len(expected)
        for token, entry in expected.items():
            assert tokens.find(token) == entry
            for other in (token[:-1], token + "x", token.swapcase(), token + "\udcff", f" {token}"):
                assert tokens.find(other) == expected.get(other)

    rounds(any_text, share=0.05)
