"""`tinybird_proxy.emulator.sql`: SELECTs over the rows, and nothing but SELECTs."""

from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tinybird_proxy.emulator import sql
from tinybird_proxy.emulator.schemas import RowError, Schema
from tinybird_proxy.emulator.sql import BadQuery, QueryRunner, translate
from tinybird_proxy.emulator.store import QuarantinedRow, Store, open_store

Run = Callable[[str], Coroutine[Any, Any, dict[str, Any]]]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
async def run(store: Store) -> AsyncIterator[Run]:
    schemas = {"typed": Schema({"id": "Int64", "note": "Nullable(String)"})}
    async with QueryRunner(store.path, schemas) as runner:
        yield runner.run


@pytest.mark.parametrize(
    ("query", "translated"),
    [
        ("SELECT 1 FORMAT JSON", "SELECT 1 "),
        ("select 1 format json ;", "select 1 "),
        ("SELECT count() FROM a", "SELECT count(*) FROM a"),
        ("SELECT COUNT( ) FROM a", "SELECT count(*) FROM a"),
        ("SELECT count(a) FROM a", "SELECT count(a) FROM a"),
        ("SELECT 'count()', \"count()\" FROM a", "SELECT 'count()', \"count()\" FROM a"),
        ("SELECT 'a FORMAT JSON'", "SELECT 'a FORMAT JSON'"),
        ("-- a comment\nSELECT /* count() */ 1", "-- a comment\nSELECT /* count() */ 1"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "WITH a AS (SELECT 1) SELECT * FROM a"),
    ],
)
def test_clickhouse_spellings_are_translated(query: str, translated: str) -> None:
    assert translate(query) == translated


@pytest.mark.parametrize(
    "query",
    [
        "",
        "DROP TABLE a",
        "-- SELECT\nDELETE FROM a",
        "/* SELECT */ PRAGMA user_version",
        "selection",
        "EXPLAIN SELECT 1",
    ],
)
def test_what_does_not_begin_as_a_select_is_refused(query: str) -> None:
    with pytest.raises(BadQuery, match="only SELECT") as refused:
        translate(query)
    assert refused.value.status == 403


def test_another_format_is_refused() -> None:
    with pytest.raises(BadQuery, match="FORMAT CSV: the emulator answers FORMAT JSON only"):
        translate("SELECT 1 FORMAT CSV")


async def test_the_answer_has_the_shape_of_tinybirds(store: Store, run: Run) -> None:
    await store.ingest("hits", "r1", [b'{"n":1,"f":0.5,"s":"x"}', b'{"n":2,"f":1.5,"s":null}'])
    answer = await run("SELECT n, f, s FROM hits ORDER BY n FORMAT JSON")
    assert answer["meta"] == [
        {"name": "n", "type": "Int64"},
        {"name": "f", "type": "Float64"},
        {"name": "s", "type": "Nullable(String)"},
    ]
    assert answer["data"] == [{"n": 1, "f": 0.5, "s": "x"}, {"n": 2, "f": 1.5, "s": None}]
    assert answer["rows"] == 2
    assert answer["statistics"].pop("elapsed") > 0
    assert answer["statistics"] == {"rows_read": 2, "bytes_read": 47}


async def test_rows_are_counted_in_clickhouses_spelling(store: Store, run: Run) -> None:
    await store.ingest("hits", "r1", [b"{}"] * 3)
    assert (await run("SELECT count() AS c FROM hits"))["data"] == [{"c": 3}]


async def test_columns_are_the_keys_of_the_first_rows_and_the_raw_row(store: Store, run: Run) -> None:
    await store.ingest("hits", "r1", [b'{"a":1}', b'{"b b":{"c":[2]},"it\'s":3}'])
    assert (await run("SELECT * FROM hits"))["data"][1] == {
        "a": None,
        "b b": '{"c":[2]}',
        "it's": 3,
        "__row": '{"b b":{"c":[2]},"it\'s":3}',
    }


async def test_columns_are_those_of_the_schema_if_there_is_one(store: Store, run: Run) -> None:
    await store.ingest("typed", "r1", [b'{"id":1,"more":2}'])
    assert [column["name"] for column in (await run("SELECT * FROM typed"))["meta"]] == ["id", "note", "__row"]


async def test_an_empty_data_source_can_be_queried(store: Store, run: Run) -> None:
    await store.create("hits")
    answer = await run("SELECT * FROM hits")
    assert (answer["data"], answer["rows"]) == ([], 0)


async def test_quarantined_rows_are_a_table_of_their_own(store: Store, run: Run) -> None:
    set_aside = QuarantinedRow(b'{"id":"x"}', RowError(("id",), ("not Int64",)))
    await store.ingest("typed", "r1", [b'{"id":1}'], [set_aside])
    (row,) = (await run("SELECT * FROM typed_quarantine"))["data"]
    assert row["c__error_column"] == '["id"]'
    assert row["c__error"] == '["not Int64"]'
    assert row["c__import_id"] == "r1"
    assert row["id"] == "x"


async def test_all_rows_can_be_queried_together(store: Store, run: Run) -> None:
    await store.ingest("hits", "r1", [b"{}"])
    await store.ingest("clicks", "r2", [b"{}"])
    answer = await run("SELECT datasource, request_id FROM __emulator_rows ORDER BY id")
    assert answer["data"] == [
        {"datasource": "hits", "request_id": "r1"},
        {"datasource": "clicks", "request_id": "r2"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        b'{"a":1e400}',
        b'{"a":-1e400}',
        b'{"a":123456789012345678901234567890}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\u0000"}',
        b'{"a":1,"a":2}',
        b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a":1,"A":2,"__ROW":3}',
        b'{"a":1,"":2,"q\\"uote":3,"back\\\\slash":4,"sur\\ud800":5}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
async def test_odd_rows_do_not_break_a_query(store: Store, run: Run, row: bytes) -> None:
    await store.ingest("hits", "r1", [row])
    answer = await run("SELECT a, __row FROM hits")
    assert answer["data"][0]["__row"] == row.decode()


async def test_infinities_are_null_as_in_clickhouse(store: Store, run: Run) -> None:
    assert (await run("SELECT 1e400 AS a"))["data"] == [{"a": None}]


@pytest.mark.parametrize("name", ["rows", "datasources", "quarantine", "select", "main", "temp"])
async def test_a_data_source_may_have_any_name(store: Store, run: Run, name: str) -> None:
    await store.ingest(name, "r1", [b'{"a":1}'])
    query = f'SELECT a FROM "{name}"'  # noqa: S608 — the names above
    assert (await run(query))["data"] == [{"a": 1}]


async def test_names_that_differ_by_case_only_cannot_be_queried_together(store: Store, run: Run) -> None:
    await store.ingest("hits", "r1", [b'{"a":1}'])
    await store.ingest("Hits", "r1", [b'{"a":2}'])
    assert (await run("SELECT a FROM Hits"))["data"] == [{"a": 2}]
    with pytest.raises(BadQuery, match="by their case"):
        await run("SELECT * FROM hits, Hits")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("SELECT * FROM nowhere", 400),
        ("SELECT", 400),
        ("SELECT 1; SELECT 2", 400),
        ("SELECT 1; DROP TABLE rows", 400),
        ("WITH a AS (SELECT 1) DELETE FROM main.rows", 403),
        ("WITH a AS (SELECT 1) INSERT INTO main.rows SELECT * FROM main.rows", 403),
        ("SELECT * FROM pragma_database_list", 403),
        ("SELECT load_extension('x')", 403),
        ("SELECT hex(zeroblob(1000000000))", 400),
        ("SELECT ?", 400),
        ("SELECT '\0'", 400),
        ("SELECT '\ud800'", 400),
    ],
)
async def test_a_query_that_cannot_be_answered_is_refused_and_nothing_changes(
    store: Store, run: Run, query: str, status: int
) -> None:
    await store.ingest("hits", "r1", [b"{}"])
    with pytest.raises(BadQuery) as refused:
        await run(query)
    assert refused.value.status == status
    assert await store.rows("hits") == [b"{}"]


async def test_a_query_that_takes_too_long_is_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_TIMEOUT_S", 0.05)
    with pytest.raises(BadQuery, match=r"took more than 0\.05 s"):
        await run("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n")


async def test_a_result_that_is_too_large_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_MAX_RESULT_ROWS", 10)
    with pytest.raises(BadQuery, match="use LIMIT"):
        await run("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 11) SELECT x FROM n")
