"""Answer SELECTs over the stored rows, read-only, in Tinybird's JSON shape.

Each query gets a connection of its own, opened with ``mode=ro``, on which the data sources that it mentions
become temporary views; an authorizer then allows nothing but reading, and a progress handler ends what takes
too long. Queries run one at a time in a thread of their own, so they never delay an `ingest`.
"""

import asyncio
import json
import math
import re
import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from tinybird_proxy.emulator.schemas import Schema

_TIMEOUT_S = 10.0
_MAX_RESULT_ROWS = 100_000
_MAX_RESULT_BYTES = 64_000_000
_MAX_VALUE_BYTES = 128_000_000
_MAX_DISCOVERED_KEYS = 100
_DISCOVERED_ROWS = 100
_DISCOVERED_ROW_BYTES = 65_536
_INSTRUCTIONS_BETWEEN_CHECKS = 10_000

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STARTS_WELL = re.compile(r"\s*(?:select|with)\b", re.IGNORECASE)
_FORMAT = re.compile(r"\bformat\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_QUOTED_OR_COUNT = re.compile(
    r"""('(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | --[^\n]* | /\*.*?\*/) | \bcount\s*\(\s*\)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_COMMENT = re.compile(r"""('(?:[^']|'')*' | "(?:[^"]|"")*") | --[^\n]* | /\*.*?\*/""", re.DOTALL | re.VERBOSE)
# A JSON path can quote a key, but nothing inside the quotes.
_SAFE_KEY = re.compile(r"""[^"\\\x00-\x1f\ud800-\udfff]{1,256}""")
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


class BadQuery(Exception):
    """A query that is not answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def translate(query: str) -> str:
    """ClickHouse's spelling into SQLite's: no FORMAT clause, and ``count(*)`` for ``count()``.

    Raises `BadQuery` for what is no SELECT, or asks for another format than JSON.
    """
    if not _STARTS_WELL.match(_COMMENT.sub(lambda found: found[1] or " ", query)):
        raise BadQuery(403, "only SELECT queries are allowed")
    if wanted := _FORMAT.search(query):
        if wanted[1].lower() != "json":
            raise BadQuery(400, f"FORMAT {wanted[1][:40]}: the emulator answers FORMAT JSON only")
        query = query[: wanted.start()]
    return _QUOTED_OR_COUNT.sub(lambda found: found[1] or "count(*)", query)


class QueryRunner:
    """Run queries against the database at ``path``; an ``async with`` that owns its thread."""

    def __init__(self, path: Path, schemas: Mapping[str, Schema]) -> None:
        self._path = path
        self._schemas = schemas
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="emulator-query")

    async def __aenter__(self) -> "QueryRunner":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    async def run(self, query: str) -> dict[str, Any]:
        """The answer, ready for JSON. Raises `BadQuery`."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, translate(query))

    def _run(self, query: str) -> dict[str, Any]:
        started = time.monotonic()
        deadline = started + _TIMEOUT_S
        with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            try:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
                connection.text_factory = lambda text: text.decode("utf-8", "replace")
                rows_read, bytes_read = _create_views(connection, query, self._schemas)
                connection.set_authorizer(_authorize)
                connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS_BETWEEN_CHECKS)
                names, values = _fetch(connection, query)
            except (sqlite3.Error, sqlite3.Warning, ValueError) as exc:
                raise _explained(exc) from exc
        return {
            "meta": [
                {"name": name, "type": _clickhouse_type([row[index] for row in values])}
                for index, name in enumerate(names)
            ],
            "data": [dict(zip(names, row, strict=True)) for row in values],
            "rows": len(values),
            "statistics": {
                "elapsed": time.monotonic() - started,
                "rows_read": rows_read,
                "bytes_read": bytes_read,
            },
        }


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _explained(exc: Exception) -> BadQuery:
    message = str(exc)
    if "interrupted" in message:
        return BadQuery(408, f"the query took more than {_TIMEOUT_S:g} s")
    if "not authorized" in message or "prohibited" in message:
        return BadQuery(403, f"only reading is allowed: {message}")
    return BadQuery(400, message)


def _fetch(connection: sqlite3.Connection, query: str) -> tuple[list[str], list[list[Any]]]:
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or ()]
    values: list[list[Any]] = []
    size_bytes = 0
    for row in cursor:
        plain = [_plain(value) for value in row]
        size_bytes += sum(len(value) if isinstance(value, str) else 8 for value in plain)
        values.append(plain)
        if len(values) > _MAX_RESULT_ROWS or size_bytes > _MAX_RESULT_BYTES:
            raise BadQuery(
                400, f"the result is larger than {_MAX_RESULT_ROWS} rows or {_MAX_RESULT_BYTES} bytes: use LIMIT"
            )
    return names, values


def _plain(value: Any) -> Any:
    """A value that JSON can carry; like ClickHouse, infinities become null."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _clickhouse_type(values: list[Any]) -> str:
    types = {type(value) for value in values}
    is_nullable = type(None) in types
    types.discard(type(None))
    name = "String" if str in types or not types else "Float64" if float in types else "Int64"
    return f"Nullable({name})" if is_nullable else name


def _create_views(connection: sqlite3.Connection, query: str, schemas: Mapping[str, Schema]) -> tuple[int, int]:
    """Make a view of each data source that ``query`` mentions; return how many rows and bytes they hold."""
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(
        "CREATE TEMP VIEW __emulator_rows AS SELECT d.name AS datasource, r.id, r.request_id, r.received_at,"
        " CAST(r.row AS TEXT) AS row FROM main.rows r JOIN main.datasources d ON d.id = r.datasource_id"
    )
    found = {
        name: (key, row_count, size_bytes)
        for key, name, row_count, size_bytes in connection.execute(
            "SELECT id, name, row_count, size_bytes FROM main.datasources"
        )
    }
    rows_read = bytes_read = 0
    for word in sorted(set(_WORD.findall(query))):
        base = word.removesuffix("_quarantine")
        if word in found:
            key, row_count, size_bytes = found[word]
            rows_read += row_count
            bytes_read += size_bytes
            _create_view(connection, word, key, schemas.get(word), is_quarantine=False)
        elif base in found:
            _create_view(connection, word, found[base][0], schemas.get(base), is_quarantine=True)
    return rows_read, bytes_read


def _create_view(
    connection: sqlite3.Connection, name: str, key: int, schema: Schema | None, *, is_quarantine: bool
) -> None:
    table = "quarantine" if is_quarantine else "rows"
    columns = []
    if is_quarantine:
        columns = [
            "error_columns AS c__error_column",
            "errors AS c__error",
            "request_id AS c__import_id",
            "datetime(received_at, 'unixepoch') AS insertion_date",
        ]
    keys = [column.name for column in schema.columns] if schema else _discovered(connection, table, key)
    taken = {"__row"}
    for json_key in keys:
        if _SAFE_KEY.fullmatch(json_key) and json_key.lower() not in taken:
            taken.add(json_key.lower())
            path = f'$."{json_key}"'.replace("'", "''")
            columns.append(f"CASE WHEN json_valid(t) THEN json_extract(t, '{path}') END AS \"{json_key}\"")
    columns.append('t AS "__row"')
    try:
        # Every piece is a constant, an integer, or a name or key that was checked and is quoted.
        connection.execute(
            f'CREATE TEMP VIEW "{name}" AS SELECT {", ".join(columns)} FROM'  # noqa: S608 — see above
            f" (SELECT *, CAST(row AS TEXT) AS t FROM main.{table} WHERE datasource_id = {key:d})"
        )
    except sqlite3.OperationalError as exc:
        raise BadQuery(400, f"{name}: {exc}; SQLite does not tell names apart by their case") from exc


def _discovered(connection: sqlite3.Connection, table: str, key: int) -> list[str]:
    """The keys of the first rows, in the order in which they appear."""
    keys: dict[str, None] = {}
    for (row,) in connection.execute(
        f"SELECT row FROM main.{table} WHERE datasource_id = ? AND length(row) <= ?"  # noqa: S608 — a constant
        " ORDER BY id LIMIT ?",
        (key, _DISCOVERED_ROW_BYTES, _DISCOVERED_ROWS),
    ):
        try:
            keys.update(dict.fromkeys(json.loads(row, parse_int=str)))
        except RecursionError:
            continue
        if len(keys) >= _MAX_DISCOVERED_KEYS:
            break
    return list(keys)[:_MAX_DISCOVERED_KEYS]
