"""`tinybird_proxy.emulator.schemas`: which rows fit their columns."""

import json

import pytest

from tinybird_proxy.emulator.schemas import FloatText, IntegerText, Schema


def _decoded(row: str) -> dict[str, object]:
    value: dict[str, object] = json.loads(row, parse_int=IntegerText, parse_float=FloatText)
    return value


@pytest.mark.parametrize(
    ("type_name", "value", "fits"),
    [
        ("String", '"x"', True),
        ("String", '""', True),
        ("String", "1", False),
        ("String", "{}", False),
        ("FixedString(3)", '"abc"', True),
        ("Enum8('a' = 1)", '"a"', True),
        ("Int8", "127", True),
        ("Int8", "128", False),
        ("Int8", "-128", True),
        ("Int8", "-129", False),
        ("Int64", "9223372036854775807", True),
        ("Int64", "9223372036854775808", False),
        ("Int64", "1.0", False),
        ("Int64", '"1"', False),
        ("Int64", "true", False),
        ("Int64", "9" * 5000, False),
        ("UInt8", "-1", False),
        ("UInt8", "true", True),
        ("UInt64", "18446744073709551615", True),
        ("UInt256", str(2**256 - 1), True),
        ("UInt256", str(2**256), False),
        ("Float64", "1", True),
        ("Float64", "1e400", True),
        ("Float64", '"1"', False),
        ("Decimal(10, 2)", "1.25", True),
        ("Bool", "true", True),
        ("Bool", "1", False),
        ("DateTime", '"2026-11-01 12:30:00"', True),
        ("DateTime", '"2026-11-01T12:30:00Z"', True),
        ("DateTime", "1790000000", True),
        ("DateTime", "-1", False),
        ("DateTime", '"yesterday"', False),
        ("DateTime64(3)", '"2026-11-01 12:30:00.123"', True),
        ("Date", '"2026-11-01"', True),
        ("Date", '"2026-13-01"', False),
        ("UUID", '"123e4567-e89b-12d3-a456-426614174000"', True),
        ("UUID", '"123e4567"', False),
        ("JSON", '{"b":1}', True),
        ("Map(String, String)", '{"b":"c"}', True),
        ("Array(Int64)", "[1,2]", True),
        ("Array(Int64)", '[1,"2"]', False),
        ("Array(Int64)", "[1,null]", False),
        ("Array(Nullable(Int64))", "[1,null]", True),
        ("LowCardinality(String)", '"x"', True),
        ("LowCardinality(Nullable(String))", "null", True),
        ("Nullable(Int64)", "null", True),
        ("Nullable(Int64)", '"x"', False),
        ("Int64", "null", False),
        ("Int64 DEFAULT 7", "null", True),
        ("Int64 default 7", "null", True),
        ("Int64 DEFAULT 7", '"x"', False),
    ],
)
def test_a_value_fits_its_column_or_not(type_name: str, value: str, fits: bool) -> None:
    error = Schema({"a": type_name}).judge(_decoded(f'{{"a":{value}}}'))
    assert (error is None) is fits


def test_a_missing_column_that_has_no_default_is_named_as_tinybird_does() -> None:
    error = Schema({"site_uuid": "String", "n": "Int64", "note": "Nullable(String)"}).judge(_decoded("{}"))
    assert error is not None
    assert error.columns == ("site_uuid", "n")
    assert error.messages[0] == "Strict type checking failed. Object does not have column 'site_uuid'"


def test_missing_columns_that_are_nullable_or_have_a_default_are_accepted() -> None:
    assert Schema({"a": "Nullable(String)", "b": "Int64 DEFAULT 1"}).judge(_decoded("{}")) is None


def test_fields_without_a_column_are_ignored() -> None:
    assert Schema({"a": "Int64"}).judge(_decoded('{"a":1,"b":{"c":[]}}')) is None


@pytest.mark.parametrize("type_name", ["Strin", "Nullable(Strin)", "Array()", "", "Int65", "String(3)"])
def test_a_type_that_is_not_known_is_refused_with_its_column(type_name: str) -> None:
    with pytest.raises(ValueError, match="column 'a'"):
        Schema({"a": type_name})
