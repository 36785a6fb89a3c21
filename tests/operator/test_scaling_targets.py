"""The table of targets, and numbers as Kubernetes writes them."""

from decimal import Decimal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tinybird_proxy_operator.scaling.targets import (
    METRICS,
    TARGETS,
    adapter_rule,
    fraction,
    quantity,
    read_quantity,
    served_as,
)
from tinybird_proxy_operator.spec import Targets


def test_the_table_has_every_target_of_the_spec_and_no_other() -> None:
    assert [target.field for target in TARGETS] == [field.encode_name for field in msgspec.structs.fields(Targets)]


def test_metrics_are_series_of_the_proxys_and_no_two_are_the_same() -> None:
    assert METRICS == (
        "tinybird_proxy_buffer_utilization_percent",
        "tinybird_proxy_buffer_rows",
        "tinybird_proxy_drain_time_seconds",
        "tinybird_proxy_cpu_percent",
    )
    assert all(target.unit and target.description.endswith(".") for target in TARGETS)


def test_a_rule_for_prometheus_adapter_is_yaml_and_asks_for_the_series_that_are_wanted() -> None:
    rule = yaml.safe_load(adapter_rule(TARGETS[1:3]))
    series = "tinybird_proxy_buffer_rows|tinybird_proxy_drain_time_seconds"
    assert rule["seriesQuery"] == f'{{__name__=~"{series}",namespace!="",pod!=""}}'
    assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
    assert rule["metricsQuery"] == "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)"
    assert served_as(TARGETS[1]) == "pods/tinybird_proxy_buffer_rows"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (50, "50"),
        (1000, "1k"),
        (1500, "1500"),
        (200_000, "200k"),
        (1_000_000, "1M"),
        (1_001_000, "1001k"),
        (10**9, "1G"),
        (10**12, "1000G"),
    ],
)
def test_a_count_is_written_as_the_api_server_gives_it_back(count: int, text: str) -> None:
    assert quantity(count) == text


@given(st.integers(0, 10**12))
def test_a_count_is_read_back_as_it_was(count: int) -> None:
    assert read_quantity(quantity(count)) == count


@pytest.mark.parametrize(
    ("given", "text"), [("0", "0"), ("0.05", "50m"), ("0.1", "100m"), ("1", "1"), ("50m", "50m"), ("0.125", "125m")]
)
def test_a_tolerance_is_written_as_the_api_server_gives_it_back(given: str, text: str) -> None:
    assert fraction(given) == text


@pytest.mark.parametrize(
    ("text", "value"), [("62", 62), (62, 62), ("1500m", Decimal("1.5")), ("12k", 12_000), ("3M", 3_000_000)]
)
def test_a_number_of_kubernetes_is_read(text: str | int, value: int | Decimal) -> None:
    assert read_quantity(text) == value


@pytest.mark.parametrize("text", ["", "k", "many", "1e"])
def test_what_is_no_number_is_an_arithmetic_error(text: str) -> None:
    with pytest.raises(ArithmeticError):
        read_quantity(text)
