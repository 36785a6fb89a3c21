"""Injection as it is decided: the table, and what holds for every pod."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.injection_cases import CASES, Case
from tests.operator.injection_pods import (
    GUARANTEED,
    SIDECAR,
    SIDECARS,
    Pod,
    container,
    injected,
    limited,
    native,
    patched,
    pod,
    port,
    seen,
    variable,
    why_not,
)

from tinybird_proxy_operator.names import (
    INJECT_LABEL,
    INJECTED_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    SIDECAR_VOLUMES,
)
from tinybird_proxy_operator.sidecars.injection import (
    amount,
    chosen,
    inject,
    injected_hash,
    injected_name,
    refusal,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_pod_of_the_table_becomes_what_it_says(case: Case) -> None:
    before = copy.deepcopy(case.pod)
    after = injected(case.pod, case.namespace)
    assert case.pod == before
    if case.expected is None:
        assert after == before
    else:
        assert {key: value for key, value in seen(after).items() if key in case.expected} == case.expected
        assert seen(after)["injected"] == chosen(case.pod["metadata"].get("labels"), case.namespace)
    said = why_not(case.pod, case.namespace)
    assert (said is None) == (case.refused is None), said
    assert (said or "").startswith(case.refused or "")


def test_the_names_of_the_table_are_each_there_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_pod_knows_what_it_was_given() -> None:
    assert (injected_name(pod()), injected_hash(pod())) == (None, None)
    assert (injected_name(injected(pod())), injected_hash(injected(pod()))) == ("events", "1a2b3c4d")
    copied = pod(labels={INJECTED_LABEL: "events"}, annotations={SIDECAR_HASH_ANNOTATION: "1a2b3c4d"})
    assert injected_name(copied) is None


@pytest.mark.parametrize("missing", [None, {}])
def test_labels_that_are_missing_ask_for_nothing(missing: dict[str, str] | None) -> None:
    assert chosen(missing, missing) is None
    assert chosen(missing, {INJECT_LABEL: "events"}) == "events"


def test_nothing_is_changed_but_what_must_be() -> None:
    bare = pod(container(env=[variable("TINYBIRD_URL"), variable("TINYBIRD_TOKEN")]))
    assert [(each["op"], each["path"]) for each in inject(bare, "events", SIDECAR)] == [
        ("add", "/spec/initContainers"),
        ("add", "/spec/volumes"),
        ("add", "/metadata/labels/tinybird-proxy.io~1injected"),
        ("add", "/metadata/annotations"),
    ]


@pytest.mark.parametrize("field", ["initContainers", "volumes"])
def test_null_is_as_nothing(field: str) -> None:
    given_null = pod(container(env=None, ports=None, resources=None), **{field: None}, annotations=None)
    assert seen(injected(given_null)) == seen(injected(pod()))


def test_defaults_that_the_cluster_filled_in_stay() -> None:
    """A LimitRange gives our container a limit, and would refuse the pod if that was taken away again."""
    defaulted = injected(pod())
    [ours] = defaulted["spec"]["initContainers"]
    ours["terminationMessagePath"] = "/dev/termination-log"
    ours["resources"] = {
        "limits": {"cpu": "1", "memory": "131072Ki"},
        "requests": {"cpu": "0.05", "memory": "134217728"},
    }
    defaulted["spec"]["volumes"][0]["secret"]["defaultMode"] = 420
    assert inject(defaulted, "events", SIDECAR) == []


def test_it_is_moved_and_not_made_anew_where_a_mesh_came_in_after_it() -> None:
    given_mesh = injected(pod())
    given_mesh["spec"]["initContainers"].append(native("istio-proxy"))
    moved = {"op": "move", "from": "/spec/initContainers/0", "path": "/spec/initContainers/1"}
    assert inject(given_mesh, "events", SIDECAR) == [moved]


def test_a_sidecar_without_resources_for_guaranteed_pods_keeps_its_own() -> None:
    without = {key: value for key, value in SIDECAR.items() if key != "guaranteedResources"}
    after = patched(
        pod(container(resources=limited("1"))), inject(pod(container(resources=limited("1"))), "e", without)
    )
    assert seen(after)["resources"] == SIDECAR["container"]["resources"]


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        ("1", 1),
        (2, 2),
        ("100m", 0.1),
        ("1.5Gi", 1.5 * 2**30),
        ("2k", 2000),
        ("2e3", 2000),
        ("3E", 3e18),
        ("1Ei", 2**60),
    ],
)
def test_a_quantity_is_read_as_kubernetes_does(quantity: str | int, number: float) -> None:
    assert float(amount(quantity) or 0) == number


@pytest.mark.parametrize("wrong", ["", "x", "1Q", "Mi", "1 Mi"])
def test_what_is_no_quantity_makes_no_pod_guaranteed(wrong: str) -> None:
    assert amount(wrong) is None
    assert seen(injected(pod(container(resources=limited(wrong)))))["resources"] != GUARANTEED


NAMES = st.sampled_from(["app", "web", "migrate", "istio-proxy", "linkerd-proxy", "logs"])
ENV = st.lists(
    st.builds(variable, st.sampled_from(["A", "B", "TINYBIRD_URL", "TINYBIRD_TOKEN"]), st.sampled_from(["x", "y"])),
    max_size=4,
)
RESOURCES = st.sampled_from(
    [
        {},
        limited("1"),
        limited("1", requests={"cpu": "1"}),
        limited("1", requests={"cpu": "500m"}),
        limited(None),
        limited("0"),
    ]
)
PORTS = st.lists(st.builds(port, st.sampled_from([80, 18000]), protocol=st.sampled_from(["TCP", "UDP"])), max_size=1)
MAKE = st.sampled_from([container, native])


@st.composite
def containers(draw: st.DrawFn, least: int) -> list[dict[str, Any]]:
    found = []
    for name in draw(st.lists(NAMES, min_size=least, max_size=4, unique=True)):
        more: dict[str, Any] = {"resources": draw(RESOURCES)}
        for field, drawn in (("env", ENV), ("ports", PORTS)):
            if draw(st.booleans()):
                more[field] = draw(drawn)
        found.append(draw(MAKE)(name, **more) if least == 0 else container(name, **more))
    return found


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    more: dict[str, Any] = {}
    if draw(st.booleans()):
        more["initContainers"] = draw(containers(0))
    if draw(st.booleans()):
        more["volumes"] = [{"name": name, "emptyDir": {}} for name in draw(st.lists(NAMES, unique=True, max_size=2))]
    if draw(st.booleans()):
        more["terminationGracePeriodSeconds"] = draw(st.integers(0, 90))
    if draw(st.booleans()):
        more["annotations"] = {"a/b": "c"}
    return pod(*draw(containers(1)), asks=draw(st.sampled_from(sorted(SIDECARS))), **more)


def without_ours(given: Pod) -> Pod:
    """The pod without all that injection may put in."""
    result = copy.deepcopy(given)
    spec, metadata = result["spec"], result["metadata"]
    spec["initContainers"] = [each for each in spec.get("initContainers") or [] if each["name"] != SIDECAR_CONTAINER]
    spec["volumes"] = [each for each in spec.get("volumes") or [] if each["name"] not in SIDECAR_VOLUMES]
    for each in (*spec["containers"], *spec["initContainers"]):
        each.pop("env", None)
    spec.pop("terminationGracePeriodSeconds", None)
    metadata["labels"].pop(INJECTED_LABEL, None)
    metadata["annotations"] = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if key != SIDECAR_HASH_ANNOTATION
    }
    return result


def envs(given: Pod) -> dict[str, list[Any]]:
    every = [*(given["spec"].get("initContainers") or []), *given["spec"]["containers"]]
    return {each["name"]: each.get("env") or [] for each in every if each["name"] != SIDECAR_CONTAINER}


@given(before=pods())
def test_a_pod_that_has_it_is_left_as_it_is(before: Pod) -> None:
    after = injected(before)
    sidecar = SIDECARS[before["metadata"]["labels"][INJECT_LABEL]]
    assert injected(after) == after
    if sidecar is not None:
        assert inject(after, before["metadata"]["labels"][INJECT_LABEL], sidecar) == []


@given(before=pods())
def test_what_is_the_pods_own_stays_in_its_order_and_its_env_only_grows_at_the_front(before: Pod) -> None:
    after = injected(before)
    assert without_ours(after) == without_ours(before)
    for name, env in envs(after).items():
        own = envs(before)[name]
        added = env[: len(env) - len(own)]
        assert env[len(added) :] == own
        assert all(each in SIDECAR["env"] and each["name"] not in {e["name"] for e in own} for each in added)


@given(before=pods(), mesh=st.sampled_from(["istio-proxy", "linkerd-proxy"]), where=st.integers(0, 4))
def test_where_others_put_themselves_afterwards_does_not_matter(before: Pod, mesh: str, where: int) -> None:
    """Injected, then a mesh's sidecar, then injected again; or the mesh first: the containers end in the same order."""
    spec = before["spec"]
    spec["initContainers"] = [each for each in spec.get("initContainers") or [] if each["name"] != mesh]
    where = min(where, len(spec["initContainers"]))
    with_mesh = copy.deepcopy(before)
    with_mesh["spec"]["initContainers"].insert(where, native(mesh))
    once = injected(copy.deepcopy(before))
    names = seen(once)["init"]
    follows = seen(before)["init"][where : where + 1]
    once["spec"]["initContainers"].insert(names.index(follows[0]) if follows else len(names), native(mesh))
    assert seen(injected(once))["init"] == seen(injected(with_mesh))["init"]


@given(before=pods())
def test_a_pod_that_is_refused_is_unchanged_and_only_that(before: Pod) -> None:
    sidecar = SIDECARS[before["metadata"]["labels"][INJECT_LABEL]]
    if sidecar is not None:
        assert (injected(before) == before) == (refusal(before, sidecar) is not None)
