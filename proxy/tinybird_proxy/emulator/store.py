"""The emulator's rows, in SQLite.

One thread owns the connection, so the event loop never waits for a disk and writes need no lock. An
`ingest` is committed before it returns; with WAL and ``synchronous=NORMAL`` that survives the end of the
process, though not the end of the machine.
"""

import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from tinybird_proxy.emulator.schemas import RowError

_Result = TypeVar("_Result")

DATABASE_NAME = "emulator.db"
_VERSION = 1
# Times six columns: SQLite takes 32,766 parameters.
_RECORDS_IN_A_STATEMENT = 1000
_TABLES = """
CREATE TABLE datasources(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at REAL NOT NULL,
    row_count INTEGER NOT NULL DEFAULT 0, size_bytes INTEGER NOT NULL DEFAULT 0,
    quarantined_count INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE rows(
    id INTEGER PRIMARY KEY, datasource_id INTEGER NOT NULL, request_id TEXT NOT NULL,
    received_at REAL NOT NULL, row BLOB NOT NULL
) STRICT;
CREATE INDEX rows_of_datasource ON rows(datasource_id);
CREATE TABLE quarantine(
    id INTEGER PRIMARY KEY, datasource_id INTEGER NOT NULL, request_id TEXT NOT NULL,
    received_at REAL NOT NULL, row BLOB NOT NULL, error_columns TEXT NOT NULL, errors TEXT NOT NULL
) STRICT;
CREATE INDEX quarantine_of_datasource ON quarantine(datasource_id);
"""


class StoreError(RuntimeError):
    """The database cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Datasource:
    """One data source and what it holds."""

    id: int
    name: str
    created_at: float
    """Seconds since 1970."""
    row_count: int
    size_bytes: int
    """Of the rows, quarantined ones not counted."""
    quarantined_count: int


class QuarantinedRow(NamedTuple):
    """A row that was set aside, and why."""

    row: bytes
    error: RowError


class Store:
    """Made by `open_store`; every method runs in the store's own thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, executor: ThreadPoolExecutor) -> None:
        self.path = path
        self._connection = connection
        self._executor = executor

    async def ingest(
        self,
        datasource: str,
        request_id: str,
        rows: Sequence[bytes],
        quarantined: Sequence[QuarantinedRow] = (),
    ) -> None:
        """Keep rows in their order, in one transaction, creating the data source if it is new."""
        await self._run(lambda: self._ingest(datasource, request_id, rows, quarantined))

    async def create(self, datasource: str) -> None:
        """Create a data source; it may exist already."""
        await self.ingest(datasource, "", ())

    async def datasources(self) -> list[Datasource]:
        """All data sources, the oldest first."""
        return await self._run(self._datasources)

    async def row_count(self, datasource: str) -> int:
        """How many rows a data source holds, quarantined ones not counted."""
        return sum(found.row_count for found in await self.datasources() if found.name == datasource)

    async def rows(self, datasource: str) -> list[bytes]:
        """The rows of a data source in order of arrival, duplicates included; empty if there is none."""
        return await self._run(lambda: [row for (row,) in self._select("row FROM rows", datasource)])

    async def quarantined_rows(self, datasource: str) -> list[QuarantinedRow]:
        """The rows of a data source that were set aside, in order of arrival."""
        found = await self._run(lambda: list(self._select("row, error_columns, errors FROM quarantine", datasource)))
        return [
            QuarantinedRow(row, RowError(tuple(json.loads(columns)), tuple(json.loads(errors))))
            for row, columns, errors in found
        ]

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _ingest(
        self,
        datasource: str,
        request_id: str,
        rows: Sequence[bytes],
        quarantined: Sequence[QuarantinedRow],
    ) -> None:
        now = time.time()
        with self._connection as connection:
            connection.execute("BEGIN")
            connection.execute(
                "INSERT INTO datasources(name, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (datasource, now),
            )
            ((key,),) = connection.execute("SELECT id FROM datasources WHERE name = ?", (datasource,))
            _insert_many(
                connection,
                "rows(datasource_id, request_id, received_at, row)",
                [(key, request_id, now, row) for row in rows],
            )
            _insert_many(
                connection,
                "quarantine(datasource_id, request_id, received_at, row, error_columns, errors)",
                [
                    (key, request_id, now, row, json.dumps(error.columns), json.dumps(error.messages))
                    for row, error in quarantined
                ],
            )
            connection.execute(
                "UPDATE datasources SET row_count = row_count + ?, size_bytes = size_bytes + ?,"
                " quarantined_count = quarantined_count + ? WHERE id = ?",
                (len(rows), sum(map(len, rows)), len(quarantined), key),
            )

    def _datasources(self) -> list[Datasource]:
        return [
            Datasource(*found)
            for found in self._connection.execute(
                "SELECT id, name, created_at, row_count, size_bytes, quarantined_count FROM datasources ORDER BY id"
            )
        ]

    def _select(self, columns_and_table: str, datasource: str) -> Iterable[tuple[bytes, ...]]:
        return self._connection.execute(
            f"SELECT {columns_and_table} WHERE datasource_id ="  # noqa: S608 — made of constants only
            " (SELECT id FROM datasources WHERE name = ?) ORDER BY id",
            (datasource,),
        )


def _insert_many(connection: sqlite3.Connection, table: str, records: Sequence[tuple[object, ...]]) -> None:
    # `executemany` gives up the interpreter lock at each record, and beside a busy event loop waits some
    # 300 µs to get it back: half a minute for 100,000 rows. This way it waits once for a thousand of them.
    for start in range(0, len(records), _RECORDS_IN_A_STATEMENT):
        some = records[start : start + _RECORDS_IN_A_STATEMENT]
        one = f"({', '.join('?' * len(some[0]))})"
        statement = f"INSERT INTO {table} VALUES {', '.join([one] * len(some))}"  # noqa: S608 — constants
        connection.execute(statement, list(chain.from_iterable(some)))


@asynccontextmanager
async def open_store(data_dir: Path | None) -> AsyncIterator[Store]:
    """A store in ``data_dir``, or in a directory of its own that is deleted at the end.

    Raises `StoreError` if the file there is not one of ours.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="emulator-store")
    try:
        temporary = None
        if data_dir is None:
            temporary = await loop.run_in_executor(
                executor, lambda: tempfile.TemporaryDirectory(prefix="tinybird-emulator-")
            )
            data_dir = Path(temporary.name)
        try:
            path = data_dir / DATABASE_NAME
            connection = await loop.run_in_executor(executor, _connect, path)
            try:
                yield Store(path, connection, executor)
            finally:
                await loop.run_in_executor(executor, connection.close)
        finally:
            if temporary is not None:
                await loop.run_in_executor(executor, temporary.cleanup)
    finally:
        await loop.run_in_executor(None, executor.shutdown)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            ((version,),) = connection.execute("PRAGMA user_version")
            if version not in (0, _VERSION):
                raise StoreError(f"{path}: made by another version; delete it or choose another directory")
            if version == 0:
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT")
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{path}: {exc}; delete it or choose another directory") from exc
    return connection
