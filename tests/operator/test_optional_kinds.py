"""Kinds that a cluster may not have, or that the operator may not make."""

import pytest
from tests.operator.resources import operator_settings

from tinybird_proxy_operator.manifests import KINDS
from tinybird_proxy_operator.optional_kinds import granted_kinds, is_granted, no_right, not_there


@pytest.mark.parametrize(("kind", "variable"), [("PodMonitor", "POD_MONITORS"), ("ScaledObject", "SCALED_OBJECTS")])
def test_a_kind_of_somebody_elses_is_read_and_made_only_with_its_right(kind: str, variable: str) -> None:
    without, allowed = operator_settings(**{variable: "false"}), operator_settings(**{variable: "true"})
    assert (is_granted(kind, without), is_granted(kind, allowed)) == (False, True)
    assert kind not in granted_kinds(without)
    assert kind in granted_kinds(allowed)


def test_every_other_kind_is_always_granted() -> None:
    settings = operator_settings(POD_MONITORS="false", SCALED_OBJECTS="false")
    assert granted_kinds(settings) == [kind for _, kind in KINDS if kind not in ("PodMonitor", "ScaledObject")]


def test_a_sentence_names_the_field_the_right_and_what_brings_the_kind() -> None:
    assert no_right("ScaledObject") == (
        "spec.autoscaling.provider: the operator has no right to make ScaledObjects. Set it to Builtin, or ask whoever"
        " runs the operator to set its chart's rbac.scaledObjects to true."
    )
    assert not_there("PodMonitor") == (
        "spec.monitoring.podMonitor: the cluster has no PodMonitors. Install prometheus-operator,"
        " or set it to Disabled."
    )
    assert not_there("Service") is None
