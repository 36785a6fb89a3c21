"""Which dead letters a query means, and what it is told that means nothing for sure."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybird_proxy.admin.letter_query import BadQuery, LetterQuery, parse_letter_query
from tinybird_proxy.dead_letter import EVERY_LETTER, LetterFilter
from tinybird_proxy.ledger import LetterReason

NOW = 1_800_000_000.0
LOOKING = ("limit", "rows", "format")


def parse(*pairs: tuple[str, str], also: tuple[str, ...] = LOOKING) -> LetterQuery:
    return parse_letter_query(pairs, also=also, now_utc_s=NOW)


def test_no_parameters_mean_every_letter_without_its_rows() -> None:
    assert parse() == LetterQuery(wanted=EVERY_LETTER)


def test_every_parameter_means_what_it_says() -> None:
    query = parse(
        *(("id", "a-1"), ("id", "a-2.1,a-3"), ("name", "hits"), ("reason", "partial"), ("status", "422")),
        *(("batch", "a-1"), ("since", "1h"), ("until", "1799999999.5"), ("client_told", "false")),
        *(("limit", "7"), ("rows", "true"), ("format", "rows")),
    )
    assert query == LetterQuery(
        wanted=LetterFilter(
            ids=frozenset({"a-1", "a-2.1", "a-3"}),
            data_source="hits",
            reason=LetterReason.PARTIAL,
            status=422,
            batch_id="a-1",
            since=NOW - 3600,
            until=1_799_999_999.5,
            client_told=False,
        ),
        limit=7,
        with_rows=True,
        only_rows=True,
    )
    assert parse(("all", "true"), also=("all",)).everything


@pytest.mark.parametrize(
    ("text", "utc_s"),
    [
        ("0", 0.0),
        ("1767225600", 1_767_225_600.0),
        ("2026-01-01T00:00:00Z", 1_767_225_600.0),
        ("2026-01-01t00:00:00z", 1_767_225_600.0),
        ("2026-01-01 00:00:00Z", 1_767_225_600.0),
        ("2026-01-01T02:00:00+02:00", 1_767_225_600.0),
        ("2026-01-01T02:00:00 02:00", 1_767_225_600.0),  # a plus sign that nobody escaped
        ("2025-12-31T19:00:00.250-05:00", 1_767_225_600.25),
        ("0s", NOW),
        ("250ms", NOW - 0.25),
        ("15m", NOW - 900),
        ("1.5h", NOW - 5400),
        ("2d", NOW - 172_800),
    ],
)
def test_a_time_is_a_date_or_seconds_or_a_while_ago(text: str, utc_s: float) -> None:
    assert parse(("since", text)).wanted.since == utc_s


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("id", text) for text in ("", ",", "a,", "a,,b")),
        *(("name", ""), ("batch", "")),
        *(("reason", text) for text in ("", "REJECTED", "all", "rejected,partial")),
        *(("status", text) for text in ("", "99", "600", "4xx", "+400", "4\u0660\u0660")),
        *(("client_told", text) for text in ("", "1", "True")),
        *(("limit", text) for text in ("0", "-1", "1e3", "99999999999")),
        *(("rows", "yes"), ("format", "json")),
        *(("until", text) for text in ("", "yesterday", "15 m", "-5m", "5w", "nan", "1e9", "Infinity")),
        *(("since", text) for text in ("2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z")),
        *(("since", text) for text in ("1767225600000", "0000-01-01T00:00:00Z", "20260101T000000Z")),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(name: str, text: str) -> None:
    with pytest.raises(BadQuery) as refused:
        parse((name, text))
    assert str(refused.value).startswith(f"{name}: {text!a}, must be ")


def test_what_is_allowed_is_listed() -> None:
    with pytest.raises(BadQuery, match=r"one of rejected, too_large, undecided, partial, unauthorized, expired$"):
        parse(("reason", "quarantined"))


@pytest.mark.parametrize("name", ["nmae", "datasource", "Name", "token", "", "limit\n", "all"])
def test_a_parameter_that_nobody_knows_is_refused_and_its_value_is_not_repeated(name: str) -> None:
    with pytest.raises(BadQuery) as refused:
        parse((name, "p.sEcReT"))
    assert str(refused.value).startswith(f"{name!a}: is no parameter here; it must be one of id, name, reason,")
    assert "sEcReT" not in str(refused.value)


@pytest.mark.parametrize("name", LOOKING)
def test_what_is_for_looking_only_is_refused_elsewhere(name: str) -> None:
    with pytest.raises(BadQuery, match="is no parameter here"):
        parse((name, "1"), also=("all",))


@pytest.mark.parametrize("name", ["name", "reason", "since", "limit"])
def test_only_an_id_may_be_given_twice(name: str) -> None:
    text = {"reason": "expired"}.get(name, "5")
    if name == "since":
        text = "5s"
    with pytest.raises(BadQuery, match=f"^{name}: is given twice$"):
        parse((name, text), (name, text))


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(BadQuery) as refused:
        parse(("status", "4" * 10_000))
    assert len(str(refused.value)) < 200


@given(st.lists(st.tuples(st.sampled_from(["id", "name", "since", "status", "all", "x"]), st.text()), max_size=3))
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        query = parse(*pairs, also=("all",))
    except BadQuery as error:
        said = str(error)
    else:
        said = ""
        assert bool(pairs) == (query != LetterQuery())
    assert said == "" or said.isprintable()


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2900, 1, 1)))  # noqa: DTZ001 - made UTC below
def test_a_time_as_letters_show_it_is_understood(when: datetime) -> None:
    aware = when.replace(tzinfo=UTC)
    shown = aware.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    since = parse(("since", shown)).wanted.since
    assert since is not None
    assert 0 <= aware.timestamp() - since < 0.00101
