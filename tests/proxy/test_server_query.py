"""What the proxy reads of a query, and that no query can do harm."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.server.query import EventsQuery, parse_query

NO_NAME = "the parameter 'name' is missing: the data source to write to, as in /v0/events?name=clicks"
BAD_NAME = "the parameter 'name' is not the name of a data source"
BAD_UTF8 = "the query is not valid UTF-8"
TOO_MANY = "the query has more than 200 parameters"
BAD_ACK = "the parameter 'ack' must be memory or disk"


def query(name: str = "clicks", **values: object) -> EventsQuery:
    return EventsQuery(name=name, **values)  # type: ignore[arg-type]


# What real clients send.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("name=clicks", query(), id="the least"),
        pytest.param("name=clicks&wait=true&from=ts-sdk", query(wait=True), id="the TypeScript SDK"),
        pytest.param("mode=append&name=clicks&format=ndjson&wait=false", query(), id="tinybird-python-sdk"),
        pytest.param("name=clicks&token=p.x&format=json", query(token="p.x", document=True), id="a webhook"),
        pytest.param("name=clicks&schema=a%20b&utm_source=x&&=&y", query(), id="anything else is ignored"),
        pytest.param(
            "name=t_1a2b&__tb__min_deployment=7&cli_version=4",
            query("t_1a2b", params=(("__tb__min_deployment", "7"),)),
            id="a deployment",
        ),
        pytest.param("name=clicks&x-vercel-verify=abc-1", query(verify="abc-1"), id="Vercel's question"),
        pytest.param("name=clicks&ack=memory", query(ack="memory"), id="how safe it must be"),
    ],
)
def test_what_senders_ask_for_is_understood(text: str, expected: EventsQuery) -> None:
    assert parse_query(text) == expected


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "1", "yes", "t", "y", "on"])
def test_wait_is_true_in_the_usual_spellings(text: str) -> None:
    assert parse_query(f"name=a&wait={text}").wait


@pytest.mark.parametrize("text", ["wait=false", "wait=0", "wait=", "wait", "wait=2", "wait=%00true", "await=true", ""])
def test_anything_else_is_no_wish_to_wait(text: str) -> None:
    assert not parse_query(f"name=a&{text}").wait


@pytest.mark.parametrize(
    ("text", "document"), [("json", True), ("JSON", True), ("ndjson", False), ("", False), ("csv", False)]
)
def test_only_format_json_says_that_the_body_is_one_document(text: str, document: bool) -> None:
    assert parse_query(f"name=a&format={text}").document is document


# Spellings.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("name=a%20b", "a b"),
        ("name=a+b", "a b"),
        ("name=a%2Bb", "a+b"),
        ("n%61me=a", "a"),
        ("name=caf%C3%A9", "café"),
        ("name=café", "café"),
        ("name=a%2526", "a%26"),
        ("name=a=b", "a=b"),
        ("name=a;b", "a;b"),
        ("name=%zz", "%zz"),
        ("name=a&name=b", "b"),
        ("name=&name=b", "b"),
        ("name=" + "x" * 512, "x" * 512),
    ],
)
def test_a_name_is_decoded_and_the_last_one_counts(text: str, name: str) -> None:
    assert parse_query(text) == EventsQuery(name=name)


@pytest.mark.parametrize("text", ["token=a&token=b", "token=&token=b", "token=a&token=%62"])
def test_the_last_token_counts(text: str) -> None:
    assert parse_query(f"name=a&{text}").token == "b"


def test_an_empty_token_is_none() -> None:
    assert parse_query("name=a&token=").token is None


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("__tb__b=2&name=a&__tb__a=1", (("__tb__a", "1"), ("__tb__b", "2"))),
        ("name=a&__tb__a=1&__tb__b=2", (("__tb__a", "1"), ("__tb__b", "2"))),
        ("name=a&__tb_min_deployment=7", (("__tb_min_deployment", "7"),)),
        ("name=a&__tb__a=", (("__tb__a", ""),)),
        ("name=a&%5F_tb__a=%26", (("__tb__a", "&"),)),
        ("name=a&_tb__a=1&x__tb_=1&__TB__a=1", ()),
        ("name=a&__tb__a=2&__tb__a=1", (("__tb__a", "2"), ("__tb__a", "1"))),
        ("name=a&__tb__a=1&__tb__a=2", (("__tb__a", "1"), ("__tb__a", "2"))),
    ],
)
def test_tinybirds_own_parameters_are_kept_by_name_and_repeated_ones_in_their_order(
    text: str, params: tuple[tuple[str, str], ...]
) -> None:
    assert parse_query(text).params == params


# Problems.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", NO_NAME, id="an empty query"),
        pytest.param("name=", NO_NAME, id="an empty name"),
        pytest.param("name", NO_NAME, id="a name without a value"),
        pytest.param("Name=a&wait=true", NO_NAME, id="another spelling"),
        pytest.param("name=a%00", BAD_NAME, id="NUL"),
        pytest.param("name=a%0Ab", BAD_NAME, id="a line break"),
        pytest.param("name=a%7F", BAD_NAME, id="DEL"),
        pytest.param("name=" + "x" * 513, BAD_NAME, id="too long"),
        pytest.param("name=%FF", BAD_UTF8, id="no UTF-8"),
        pytest.param("name=a&x=%ED%A0%80", BAD_UTF8, id="a surrogate, anywhere"),
        pytest.param("name=a%C3", BAD_UTF8, id="half a character"),
        pytest.param("name=a\udcff", BAD_UTF8, id="a raw byte that is no UTF-8"),
        pytest.param("name=a&__tb__\udcff=1", BAD_UTF8, id="that in a parameter"),
        pytest.param("name=a" + "&x" * 200, TOO_MANY, id="201 parameters"),
        pytest.param("name=a&ack=", BAD_ACK, id="an empty ack"),
        pytest.param("name=a&ack=Disk", BAD_ACK, id="another ack"),
        pytest.param("ack=tape", NO_NAME, id="two problems: the name comes first"),
    ],
)
def test_a_query_that_cannot_be_used_says_why(text: str, problem: str) -> None:
    assert parse_query(text).problem == problem


def test_two_hundred_parameters_are_taken() -> None:
    assert parse_query("name=a" + "&x" * 199) == EventsQuery(name="a")


def test_problems_never_quote_the_query() -> None:
    for text in ("token=p.sEcReT", "name=a%00sEcReT", "name=sEcReT%FF", "name=a&ack=sEcReT"):
        assert "sEcReT" not in str(parse_query(text).problem)


def test_a_token_is_in_no_repr() -> None:
    assert "sEcReT" not in repr(parse_query("name=a&token=p.sEcReT"))


# The echo for Vercel is a response header: nothing may get into it but what Vercel sends.


@pytest.mark.parametrize(
    "value",
    [
        "a%0D%0ASet-Cookie:%20x=1",
        "a%0Ab",
        "a%00",
        "a%20b",
        "a%3Cscript%3E",
        "caf%C3%A9",
        "a:b",
        "x" * 257,
        "",
        "%E2%80%A8",
    ],
)
def test_nothing_dangerous_is_echoed(value: str) -> None:
    found = parse_query(f"name=a&x-vercel-verify={value}")
    assert found.verify is None
    assert found.problem is None


def test_an_ordinary_challenge_is_echoed() -> None:
    assert parse_query("name=a&x-vercel-verify=" + "aZ0._~-" * 36).verify == "aZ0._~-" * 36


# The cache.


@pytest.mark.parametrize("padding", [0, 600], ids=["short enough to be remembered", "too long to be remembered"])
def test_asking_twice_gives_the_same(padding: int) -> None:
    text = f"name=a&wait=1&__tb__x=1&pad={'x' * padding}"
    first, second = parse_query(text), parse_query(text)
    assert first == second == EventsQuery(name="a", wait=True, params=(("__tb__x", "1"),))
    assert (first is second) is (padding == 0)


def test_queries_that_differ_in_one_character_are_never_taken_for_each_other() -> None:
    assert parse_query("name=a&token=x").token == "x"
    assert parse_query("name=a&token=y").token == "y"


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(["name=", "name=a", "&", "=", "wait=true", "%", "%00", "%FF", "\udcff", "ack=", "é", "__tb_"])
        | st.text(st.characters(codec=None, exclude_categories=()), max_size=6),
        max_size=12,
    ).map("".join)
)
def test_parsing_never_fails_and_what_it_gives_can_be_sent_on(text: str) -> None:
    found = parse_query(text)
    if found.problem is None:
        assert 1 <= len(found.name) <= 512
    for part in (found.name, found.token or "", found.verify or "", *(word for pair in found.params for word in pair)):
        part.encode()
    assert all(name.startswith("__tb_") for name, _ in found.params)
