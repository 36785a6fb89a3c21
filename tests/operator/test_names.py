"""Names that the charts, the CRD and people rely on."""

import re
from enum import StrEnum

import pytest

from tinybird_proxy_operator import names

REVISION_HASH = "-0123456789"  # as a StatefulSet's controller appends it in a label


def test_every_name_and_label_of_the_longest_resource_fits() -> None:
    longest = "e" * names.NAME_MAX_LENGTH
    for name in (
        names.client_secret(longest),
        names.admin_secret(longest),
        names.metrics_service(longest),
        f"{longest}-preflight",
        longest + REVISION_HASH,
    ):
        assert len(name) <= 63
    assert all(len(value) <= 63 for value in names.child_labels(longest).values())


@pytest.mark.parametrize(
    ("name", "fits"), [("events", True), ("a", True), ("a-1", True), ("1a", False), ("a-", False), ("a.b", False)]
)
def test_a_name_is_a_dns_label_that_begins_with_a_letter(name: str, fits: bool) -> None:
    assert bool(re.fullmatch(names.NAME_PATTERN, name)) is fits


def test_the_status_selector_leaves_draining_pods_out() -> None:
    assert names.status_selector("events") == (
        "app.kubernetes.io/instance=events,app.kubernetes.io/name=tinybird-proxy,"
        "tinybird-proxy.io/proxy=events,!tinybird-proxy.io/draining"
    )


def test_children_carry_what_selects_them() -> None:
    assert names.selector_labels("events").items() <= names.child_labels("events").items()


@pytest.mark.parametrize("kind", [names.Reason, names.ConditionType])
def test_reasons_and_conditions_are_camel_case_words(kind: type[StrEnum]) -> None:
    assert all(re.fullmatch("([A-Z][a-z]+|API|HPA)+", word) for word in kind)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0, 0),
        (-1, 0),
        (0.4, 0),
        (0.6, 1),
        (9, 9),
        (99, 99),
        (99.6, 100),
        (123, 120),
        (999, 1000),
        (1_234_567, 1_200_000),
    ],
)
def test_two_digits(value: float, rounded: int) -> None:
    assert names.two_digits(value) == rounded
