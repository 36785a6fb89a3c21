"""What holds for every child: the API's own types take it, it is ours, and it depends on nothing that it need not."""

import copy
import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes import client
from tests.operator.resources import (
    EVERYTHING,
    OWN_TOKEN,
    UID,
    changed,
    desired,
    operator_settings,
    resource,
    valid_names,
    valid_specs,
)

from tinybird_proxy_operator import names
from tinybird_proxy_operator.checks import problems
from tinybird_proxy_operator.children import part
from tinybird_proxy_operator.manifests import KINDS, Desired, Manifest, build
from tinybird_proxy_operator.manifests.secrets import admin_secret, client_secret

TYPES: Final[dict[str, Any]] = {
    "ServiceAccount": client.V1ServiceAccount,
    "NetworkPolicy": client.V1NetworkPolicy,
    "PodDisruptionBudget": client.V1PodDisruptionBudget,
    "Service": client.V1Service,
    "Deployment": client.V1Deployment,
    "Ingress": client.V1Ingress,
    "HorizontalPodAutoscaler": client.V2HorizontalPodAutoscaler,
    "Secret": client.V1Secret,
}


def template(wanted: Desired) -> Manifest:
    found = next(manifest for manifest in build(wanted) if manifest["kind"] == "Deployment")
    return dict(found["spec"]["template"])


def everything(wanted: Desired) -> list[Manifest]:
    return [*build(wanted), client_secret(wanted, "t"), admin_secret(wanted, "t")]


def test_children_come_in_the_order_of_application() -> None:
    for provider, left_out in (("Builtin", "ScaledObject"), ("KEDA", "HorizontalPodAutoscaler")):
        spec = changed(EVERYTHING, "autoscaling.provider", provider)
        built = [(manifest["apiVersion"], manifest["kind"]) for manifest in build(desired(spec))]
        assert list(dict.fromkeys(built)) == [kind for kind in KINDS if kind[1] != left_out]


@given(spec=valid_specs())
@settings(max_examples=50, deadline=None)
def test_no_two_children_are_of_one_kind_and_name(spec: dict[str, Any]) -> None:
    parts = [part(manifest) for manifest in everything(desired(spec))]
    assert len(set(parts)) == len(parts)


def test_a_resource_that_asks_for_nothing_has_no_ingress_hpa_or_pod_monitor() -> None:
    built = [manifest["kind"] for manifest in build(desired())]
    assert built == ["ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment"]


@pytest.mark.parametrize("field", ["service", "networkPolicy", "podDisruptionBudget", "ingress"])
def test_a_child_with_policy_none_is_not_built(field: str) -> None:
    kind = field[0].upper() + field[1:]
    spec = changed(EVERYTHING, f"{field}.policy", "None")
    assert kind not in [manifest["kind"] for manifest in build(desired(spec))]


@pytest.mark.parametrize("spec", [{}, OWN_TOKEN, EVERYTHING], ids=["nothing", "own token", "everything"])
def test_the_apis_own_types_know_every_field(spec: dict[str, Any]) -> None:
    for manifest in everything(desired(spec)):
        if manifest["kind"] in TYPES:
            typed = TYPES[manifest["kind"]].from_dict(manifest)
            assert typed.model_dump(by_alias=True, exclude_none=True) == manifest


@given(spec=valid_specs(), name=valid_names, replicas=st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_any_valid_spec_builds_the_same_json_twice(spec: dict[str, Any], name: str, replicas: int) -> None:
    wanted = desired(spec, name=name, replicas=replicas)
    assert problems(wanted.proxy, wanted.settings) == []
    built = everything(wanted)
    again = everything(desired(copy.deepcopy(spec), name=name, replicas=replicas))
    assert json.dumps(built) == json.dumps(again)
    assert json.loads(json.dumps(built)) == built


@given(spec=valid_specs(), name=valid_names)
@settings(max_examples=50, deadline=None)
def test_every_child_is_ours_and_named_within_63_characters(spec: dict[str, Any], name: str) -> None:
    for manifest in everything(desired(spec, name=name)):
        metadata = manifest["metadata"]
        assert metadata["name"].startswith(name)
        assert len(metadata["name"]) <= 63
        assert metadata["namespace"] == "shop"
        assert metadata["labels"] == names.child_labels(name)
        assert all(len(value) <= 63 for value in metadata["labels"].values())
        if "tinybird-proxy.io/retained-for" in metadata.get("annotations", {}):
            assert (manifest["kind"], "ownerReferences" in metadata) == ("Secret", False)
            continue
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "tinybird-proxy.io/v1alpha1",
                "kind": "TinybirdProxy",
                "name": name,
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


@given(
    spec=valid_specs(),
    other=st.fixed_dictionaries(
        {
            "generation": st.integers(1, 1000),
            "resourceVersion": st.text("0123456789", min_size=1, max_size=9),
            "annotations": st.dictionaries(st.sampled_from([names.ROLL_ANNOTATION, "a"]), st.just("now")),
            "uid": st.uuids().map(str),
            "labels": st.just({"a": "b"}),
        }
    ),
    replicas=st.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_the_template_depends_on_nothing_that_no_pod_consumes(
    spec: dict[str, Any], other: dict[str, Any], replicas: int
) -> None:
    rest = {
        **spec,
        "replicas": replicas,
        "service": {"policy": "None"},
        "networkPolicy": {"policy": "None"},
        "podDisruptionBudget": {"policy": "None"},
        "monitoring": {},
        "ingress": {},
        "managementState": "Managed",
    }
    assert template(desired(spec)) == template(desired(rest, replicas=replicas, **other))


@pytest.mark.parametrize(
    "env",
    [
        {"ALLOWED_UPSTREAMS": "*", "ALLOWED_IMAGES": "*", "ALLOWED_COLLECTORS": "*"},
        {"POD_NAMESPACE": "elsewhere", "POD_NAME": "other", "OPERATOR_POD_LABELS": "a=b"},
        {"RESYNC_SECONDS": "7", "METRICS_PORT": "9", "LOG_LEVEL": "debug", "UPGRADE_MAX_CONCURRENT": "3"},
    ],
)
def test_the_template_depends_on_no_setting_but_the_image(env: dict[str, str]) -> None:
    wanted = Desired(proxy=resource(OWN_TOKEN), replicas=2, settings=operator_settings(**env))
    assert template(wanted) == template(desired(OWN_TOKEN))


def test_building_changes_nothing_that_it_was_given() -> None:
    wanted = desired(EVERYTHING)
    before = copy.deepcopy(wanted)
    for manifest in build(wanted):
        _scribble(manifest)
    assert wanted == before


def _scribble(value: Any) -> None:
    """What a client may do with a body before it sends it: fill in what it knows."""
    value["metadata"]["uid"] = "live"
    value["metadata"]["labels"]["scribbled"] = "x"
    value["metadata"].setdefault("annotations", {})["scribbled"] = "x"
