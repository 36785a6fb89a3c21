"""`tinybird_proxy.emulator.settings`: what an emulator can be started with."""

import json
from pathlib import Path
from typing import Any

import pytest

from tinybird_proxy.emulator.settings import EmulatorSettings, is_datasource_name, read_schema_file
from tinybird_proxy.emulator.tokens import TokenEntry


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": ""}, "token must not be empty"),
        ({"token": "T", "port": 70000}, "port: 70000, must be from 0 to 65535"),
        ({"token": "T", "wait_delay_s": -1}, "wait_delay_s: -1, must be 0 or more"),
        ({"token": "T", "requests_per_s": -1}, "requests_per_s: -1, must be 0 or more"),
        ({"token": "T", "max_body_bytes": 0}, "max_body_bytes: 0, must be 1 or more"),
        ({"token": "T", "schemas": {"a b": {}}}, "schemas: 'a b' is not the name of a data source"),
        ({"token": "T", "schemas": {"hits": {"a": "Strin"}}}, "schemas: hits: column 'a': type 'Strin'"),
        ({"token": "T", "schemas": {"hits": {"a": 1}}}, "schemas: hits: must be an object of column names"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmulatorSettings(**settings)


def test_the_token_is_admin_and_comes_before_the_others() -> None:
    other = TokenEntry("o", ("DATASOURCES:APPEND:hits",))
    assert EmulatorSettings(token="T", tokens=(other,)).token_entries == (TokenEntry("T"), other)


def test_the_token_never_shows_in_a_repr() -> None:
    assert "secret" not in repr(EmulatorSettings(token="secret"))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("hits", True), ("_h1", True), ("a" * 256, True), ("a" * 257, False), ("1a", False), ("a-b", False), ("", False)],
)
def test_names_of_data_sources(name: str, is_one: bool) -> None:
    assert is_datasource_name(name) is is_one


def test_schemas_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schemas.json"
    path.write_text(json.dumps({"hits": {"path": "String"}}))
    assert [column.name for column in read_schema_file(path)["hits"].columns] == ["path"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"hits": []}'])
def test_a_schema_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "schemas.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"schema_file: .*schemas\.json"):
        read_schema_file(path)
