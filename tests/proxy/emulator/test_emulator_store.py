"""`tinybird_proxy.emulator.store`: rows in SQLite."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tinybird_proxy.emulator.schemas import RowError
from tinybird_proxy.emulator.store import DATABASE_NAME, QuarantinedRow, StoreError, open_store

_ODD_ROWS = [b'{"a":1e400}', b' {"a" : "\\ud800"} ', b'{"a":1,"a":2}', b'{"a":1,"a":2}', '{"é":"\u2028"}'.encode()]


async def test_rows_come_back_byte_for_byte_in_order_of_arrival_duplicates_included(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.ingest("hits", "r1", _ODD_ROWS[:3])
        await store.ingest("clicks", "r2", [b"{}"])
        await store.ingest("hits", "r3", _ODD_ROWS[3:])
        assert await store.rows("hits") == _ODD_ROWS


async def test_rows_survive_a_restart(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.ingest("hits", "r1", [b'{"a":1}'])
    async with open_store(tmp_path) as store:
        await store.ingest("hits", "r2", [b'{"a":2}'])
        assert await store.rows("hits") == [b'{"a":1}', b'{"a":2}']


async def test_rows_are_on_disk_for_others_when_ingest_returns(tmp_path: Path) -> None:
    async with open_store(tmp_path) as first:
        await first.ingest("hits", "r1", [b'{"a":1}'])
        async with open_store(tmp_path) as second:
            assert await second.rows("hits") == [b'{"a":1}']


async def test_quarantined_rows_are_kept_apart_with_their_errors(tmp_path: Path) -> None:
    set_aside = QuarantinedRow(b'{"a":"x"}', RowError(("a",), ("not Int64",)))
    async with open_store(tmp_path) as store:
        await store.ingest("hits", "r1", [b'{"a":1}'], [set_aside])
        assert await store.rows("hits") == [b'{"a":1}']
        assert await store.quarantined_rows("hits") == [set_aside]


async def test_data_sources_know_what_they_hold(tmp_path: Path) -> None:
    set_aside = QuarantinedRow(b'{"a":"x"}', RowError(("a",), ("not Int64",)))
    async with open_store(tmp_path) as store:
        await store.create("empty")
        await store.create("empty")
        await store.ingest("hits", "r1", [b'{"a":1}', b"{}"], [set_aside])
        described = [
            (found.name, found.row_count, found.size_bytes, found.quarantined_count)
            for found in await store.datasources()
        ]
    assert described == [("empty", 0, 0, 0), ("hits", 2, 9, 1)]


async def test_an_ingest_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        with pytest.raises(sqlite3.IntegrityError):
            await store.ingest("hits", "r1", [b"{}", None])  # type: ignore[list-item] # the failure wanted
        assert await store.datasources() == []
        await store.ingest("hits", "r2", [b"{}"])
        assert await store.rows("hits") == [b"{}"]


async def test_a_data_source_that_does_not_exist_has_no_rows(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        assert await store.rows("hits") == []
        assert await store.quarantined_rows("hits") == []


async def test_without_a_directory_the_file_is_gone_at_the_end() -> None:
    async with open_store(None) as store:
        path = store.path
        await store.ingest("hits", "r1", [b"{}"])
    assert not await asyncio.to_thread(path.parent.exists)


async def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    async with open_store(tmp_path / "a" / "b") as store:
        assert store.path == tmp_path / "a" / "b" / DATABASE_NAME


async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / DATABASE_NAME).write_bytes, b"something else" * 100)
    with pytest.raises(StoreError, match="delete it or choose another directory"):
        async with open_store(tmp_path):
            pass
    assert (await asyncio.to_thread((tmp_path / DATABASE_NAME).read_bytes)).startswith(b"something else")


async def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    def make_another_version() -> None:
        with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
            connection.execute("PRAGMA user_version = 99")

    await asyncio.to_thread(make_another_version)
    with pytest.raises(StoreError, match="made by another version"):
        async with open_store(tmp_path):
            pass


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "file").touch)
    with pytest.raises(StoreError, match="choose another directory"):
        async with open_store(tmp_path / "file"):
            pass
