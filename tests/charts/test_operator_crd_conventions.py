"""The CRD against Kubernetes' API conventions, field by field: sig-architecture's api-conventions.md."""

import re
from typing import Final

from tests.charts.test_operator_crd import PLACES, SPEC, STATUS

# Parts of Kubernetes' own types, which have names, numbers and choices of their own.
KUBERNETES_OWN: Final = (
    ".spec.pod.affinity",
    ".spec.pod.tolerations",
    ".spec.pod.topologySpreadConstraints",
    ".spec.pod.resources",
    ".spec.pod.env[].valueFrom",
    ".spec.networkPolicy.from",
    ".spec.networkPolicy.metricsFrom",
    ".spec.autoscaling.behavior",
    ".status.conditions",
)
OURS: Final = [(path, schema) for path, schema in PLACES if path and not path.startswith(KUBERNETES_OWN)]
# What an integer counts, at the end of its name; the others are Kubernetes' words for a number of something.
UNITS: Final = ("Seconds", "Milliseconds", "Rows", "rows", "Percent", "replicas", "Replicas", "port")
COUNTS: Final = {
    *("RowsPerPod", "podsCurrent", "podsTotal", "podsUnknown", "observedGeneration", "maxUnavailable"),
    *("ports.events", "ports.admin"),
    *(f"sidecars.{state}" for state in ("injected", "stale", "missed", "refused", "unknown")),
}


def _name(path: str) -> str:
    return path.rpartition(".")[2].removesuffix("[]")


def test_fields_are_in_camel_case() -> None:
    wrong = [path for path, _ in OURS if not re.fullmatch("[a-z][A-Za-z0-9]*", _name(path))]
    assert wrong == []


def test_a_switch_is_a_choice_of_words_to_which_a_third_may_be_added() -> None:
    assert [path for path, schema in OURS if schema.get("type") == "boolean"] == []


def test_choices_are_in_upper_camel_case() -> None:
    choices = [(path, choice) for path, schema in OURS for choice in schema.get("enum", [])]
    assert len(choices) > 10
    assert [found for found in choices if not re.fullmatch("[A-Z][A-Za-z]*", found[1])] == []


def test_no_number_is_a_fraction() -> None:
    assert [path for path, schema in PLACES if schema.get("type") == "number"] == []


def test_a_whole_number_says_what_it_counts() -> None:
    integers = [path for path, schema in OURS if schema.get("type") == "integer"]
    assert len(integers) > 10
    unsaid = [path for path in integers if not path.endswith((*UNITS, *COUNTS))]
    assert unsaid == []


def test_a_size_is_a_quantity_and_called_so() -> None:
    sizes = [schema for path, schema in OURS if _name(path) in ("maxSize", "size")]
    assert len(sizes) == 3
    assert [schema for schema in sizes if schema.get("type") == "integer"] == []


def test_what_points_to_another_object_ends_in_ref_and_names_it() -> None:
    references = [(path, schema) for path, schema in OURS if path.endswith("Ref")]
    assert {_name(path) for path, _ in references} == {"tokenSecretRef", "otlpHeadersSecretRef"}
    assert [path for path, schema in references if "name" not in schema["properties"]] == []


def test_lists_are_in_the_plural() -> None:
    lists = [_name(path) for path, schema in OURS if schema.get("type") == "array"]
    assert [name for name in lists if not name.endswith("s") and name not in ("env", "draining", "recent")] == []


def test_moments_are_in_the_form_of_kubernetes() -> None:
    moments = [path for path, schema in PLACES if schema.get("format") == "date-time"]
    assert {_name(path) for path in moments} == {"lastTransitionTime", "since", "at", "countedUntil"}


def test_a_condition_is_one_of_kubernetes() -> None:
    condition = STATUS["properties"]["conditions"]["items"]
    assert set(condition["properties"]) == {
        *("type", "status", "reason", "message", "lastTransitionTime", "observedGeneration")
    }
    assert {"type", "status", "reason", "message", "lastTransitionTime"} <= set(condition["required"])
    assert condition["properties"]["status"]["enum"] == ["True", "False", "Unknown"]


def test_the_status_says_which_spec_it_is_about_and_the_spec_is_no_place_for_what_was_seen() -> None:
    assert "observedGeneration" in STATUS["properties"]
    assert not SPEC["properties"].keys() & {"status", "conditions", "observedGeneration"}
