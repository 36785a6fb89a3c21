"""The CRD: a person can read it, a server can bound it, and it says what spec.py and status.py say."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from tests.charts.rendering import OPERATOR, ROOT, Object, objects, one, render

from tinybird_proxy_operator import checks, names, settings
from tinybird_proxy_operator.manifests import Desired, build
from tinybird_proxy_operator.manifests.environment import ALLOWED, ALLOWED_PATTERN, RESERVED
from tinybird_proxy_operator.spec import SIDECAR_DEFAULTS, ProxySpec, parse

CRD_FILE = OPERATOR / "files" / "crd.yaml"
[CRD] = objects(CRD_FILE.read_text())
[VERSION] = CRD["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC, STATUS = SCHEMA["properties"]["spec"], SCHEMA["properties"]["status"]
# Their values are pod parts, checked by the schema alone; spec.py takes them as they are.
PARTS = {"pod.resources", "pod.affinity"}
# Pod parts that the operator writes, and that the API server checks when they come into a pod.
RENDERED = {f".status.sidecar.{field}" for field in ("container", "guaranteedResources", "volumes[]")}
# They depend on the mode, which the schema's defaults cannot.
BY_MODE = {f"{part}.{field}" for part, fields in SIDECAR_DEFAULTS.items() for field in fields}


def walk(schema: Object, path: str) -> Iterator[tuple[str, Object]]:
    """Every part of a schema, with its place."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    for inside in ("items", "additionalProperties"):
        if inside in schema:
            yield from walk(schema[inside], f"{path}[]")


PLACES = [place for place in walk(SCHEMA, "") if place[0] != ".metadata"]


def test_the_names_are_those_of_the_operator() -> None:
    spec = CRD["spec"]
    assert CRD["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert (spec["group"], VERSION["name"], spec["scope"]) == (names.GROUP, names.VERSION, "Namespaced")
    assert (spec["names"]["kind"], spec["names"]["plural"]) == (names.KIND, names.PLURAL)
    assert spec["names"]["shortNames"] == ["tbp", "tbproxy"]


def test_the_crd_is_kept_on_uninstall_and_may_be_left_out() -> None:
    assert CRD["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert one(render(OPERATOR), "CustomResourceDefinition") == CRD
    without = render(OPERATOR, given={"crds": {"enabled": False}})
    assert "CustomResourceDefinition" not in {each["kind"] for each in without}


def test_status_and_scale_are_subresources() -> None:
    scale = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    assert VERSION["subresources"] == {"status": {}, "scale": {**scale, "labelSelectorPath": ".status.selector"}}


def test_the_columns_answer_what_people_ask_first() -> None:
    columns = [column["name"] for column in VERSION["additionalPrinterColumns"] if not column.get("priority")]
    assert columns == ["Mode", "Ready", "Desired", "Buffered", "Oldest", "Token", "Age"]
    for column in VERSION["additionalPrinterColumns"]:
        root, *fields = re.sub(r"\[.*?\]", "", column["jsonPath"].removeprefix(".")).split(".")
        schema = {"spec": SPEC, "status": STATUS, "metadata": {}}[root]
        for field in fields if schema else ():
            schema = (schema["items"] if schema.get("type") == "array" else schema)["properties"][field]


def test_every_field_is_described() -> None:
    assert [path for path, schema in PLACES if not schema.get("description", "").strip()] == []


def test_nothing_is_without_a_type_or_a_bound() -> None:
    unbounded = []
    for path, schema in PLACES:
        kind = schema.get("type")
        assert kind or schema.get("x-kubernetes-int-or-string"), path
        assert ("x-kubernetes-preserve-unknown-fields" in schema) == (path in RENDERED), path
        bounded = {
            "array": "maxItems" in schema,
            "integer": "minimum" in schema or path.endswith("tolerationSeconds"),
            "string": "maxLength" in schema or "format" in schema or path in (".apiVersion", ".kind"),
            "object": "properties" in schema or "maxProperties" in schema,
            None: "maxLength" in schema,
        }[kind]
        if not bounded:
            unbounded.append(path)
    assert unbounded == []


def test_every_list_says_how_it_is_merged() -> None:
    lists = {path: schema for path, schema in PLACES if schema.get("type") == "array"}
    assert {
        path for path, schema in lists.items() if schema.get("x-kubernetes-list-type") not in ("map", "atomic")
    } == set()
    maps = {path: s["x-kubernetes-list-map-keys"] for path, s in lists.items() if s["x-kubernetes-list-type"] == "map"}
    assert maps == {
        ".spec.imagePullSecrets": ["name"],
        ".spec.pod.env": ["name"],
        ".spec.pod.topologySpreadConstraints": ["topologyKey", "whenUnsatisfiable"],
        ".status.conditions": ["type"],
        ".status.draining": ["pod"],
    }


def test_replicas_has_no_default_and_is_related_to_nothing() -> None:
    """A default fights every autoscaler, and a rule would refuse what they write through /scale."""
    assert "default" not in SPEC["properties"]["replicas"]
    rules = [rule["rule"] for _, schema in PLACES for rule in schema.get("x-kubernetes-validations", [])]
    assert len(rules) > 20
    # But to the mode: a sidecar has no pods that anybody could scale.
    assert [rule for rule in rules if re.search(r"\breplicas\b", rule)] == [
        "self.mode != 'Sidecar' || !has(self.replicas)"
    ]


def test_every_rule_says_what_is_wrong_in_words() -> None:
    for path, schema in PLACES:
        for rule in schema.get("x-kubernetes-validations", []):
            assert len(rule["message"]) > 20, path


def test_the_mode_is_immutable() -> None:
    [rule] = SPEC["properties"]["mode"]["x-kubernetes-validations"]
    assert rule["rule"] == "self == oldSelf"


def test_choices_with_a_default_name_it_in_their_description() -> None:
    for path, schema in PLACES:
        default = schema.get("default")
        if isinstance(default, str | int) and default != "":
            described = f"Default: {default}" in schema["description"]
            assert described or path.endswith(".key"), f"{path} does not state its default, {default}"


def test_names_have_the_length_and_the_letters_that_the_operator_counts_on() -> None:
    rules = [rule["rule"] for rule in SCHEMA["x-kubernetes-validations"]]
    assert rules == [
        f"size(self.metadata.name) <= {names.NAME_MAX_LENGTH}",
        f"self.metadata.name.matches('^{names.NAME_PATTERN}$')",
    ]


def test_the_variables_that_users_may_not_set_are_those_of_the_operator() -> None:
    rules = SPEC["properties"]["pod"]["properties"]["env"]["items"]["properties"]["name"]["x-kubernetes-validations"]
    [listed] = [rule["rule"] for rule in rules if rule["rule"].startswith("!(self in [")]
    assert set(re.findall(r"'([A-Z_]+)'", listed)) == set(RESERVED)


def test_the_same_variables_are_taken_as_by_the_operator() -> None:
    rules = SPEC["properties"]["pod"]["properties"]["env"]["items"]["properties"]["name"]["x-kubernetes-validations"]
    [taken] = [rule["rule"] for rule in rules if "||" in rule["rule"]]
    pattern, _, listed = taken.partition(" || ")
    assert pattern == f"self.matches('^({ALLOWED_PATTERN})$')"
    assert set(re.findall(r"'([A-Z_]+)'", listed)) == ALLOWED


def _compare(struct: type[msgspec.Struct], schema: Object, path: str) -> None:
    """Fields and defaults, both ways."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    assert set(fields) == set(schema["properties"]), path
    for name, field in fields.items():
        where, inner = f"{path}.{name}".removeprefix("."), schema["properties"][name]
        kind = _struct(field.type)
        assert (name in schema.get("required", [])) == field.required, where
        if kind is not None:
            assert inner["type"] == "object", where
            _compare(kind, inner, where)
        elif where in BY_MODE:
            part, _, key = where.partition(".")
            defaults = f"Default: {field.default}, in mode Sidecar {SIDECAR_DEFAULTS[part][key]}"
            assert "default" not in inner, where
            assert defaults in inner["description"], where
        elif field.default is not msgspec.NODEFAULT and field.default is not None:
            assert inner["default"] == field.default, where
        else:
            # None, or an empty list or mapping: absent and empty are the same.
            assert "default" not in inner or where in PARTS, where
        if choices := _choices(field.type):
            assert sorted(inner["enum"]) == sorted(choices), where


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    found = [each for each in (kind, *getattr(kind, "__args__", ())) if isinstance(each, type)]
    return next((each for each in found if issubclass(each, msgspec.Struct)), None)


def _choices(kind: Any) -> list[str]:
    info = msgspec.inspect.type_info(kind)
    parts = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return [str(v) for part in parts if isinstance(part, msgspec.inspect.LiteralType) for v in part.values]


def test_fields_choices_and_defaults_are_those_that_the_operator_reads() -> None:
    _compare(ProxySpec, SPEC, "")


def _defaulted(schema: Object, value: Object) -> Object:
    """What the API server makes of it."""
    filled = dict(value)
    for name, inner in schema.get("properties", {}).items():
        if name not in filled and "default" in inner:
            filled[name] = inner["default"]
        if isinstance(filled.get(name), dict):
            filled[name] = _defaulted(inner, filled[name])
    return filled


def test_a_resource_without_fields_means_the_same_with_and_without_the_servers_defaults() -> None:
    metadata = {"name": "events", "namespace": "here", "uid": "u"}
    assert parse({"metadata": metadata, "spec": {}}) == parse({"metadata": metadata, "spec": _defaulted(SPEC, {})})


@pytest.mark.parametrize("file", sorted((OPERATOR / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_operator_reads_every_example(file: Any) -> None:
    found = objects(file.read_text())
    resources = [each for each in found if each["kind"] == names.KIND]
    secrets = {each["metadata"]["name"]: each for each in found if each["kind"] == "Secret"}
    assert resources
    for each in resources:
        assert each["apiVersion"] == names.API_VERSION
        parsed = parse({**each, "metadata": {**each["metadata"], "namespace": "here", "uid": "u"}})
        spec = parsed.spec
        for reference in (
            spec.tinybird.token_secret_ref,
            spec.clients.token_secret_ref,
            spec.telemetry.otlp_headers_secret_ref,
        ):
            if reference is not None:
                secret = secrets[reference.name]
                assert secret["metadata"]["labels"][names.USE_LABEL] == names.USE_TOKEN
                assert reference.key in secret["stringData"]


def test_no_two_examples_make_objects_of_the_same_name() -> None:
    found = [each for file in (OPERATOR / "examples").glob("*.yaml") for each in objects(file.read_text())]
    assert len({(each["kind"], each["metadata"]["name"]) for each in found}) == len(found)


def test_the_table_of_bad_resources_names_each_once_with_a_message() -> None:
    table = yaml.safe_load((ROOT / "tests" / "e2e" / "bad_resources.yaml").read_text())
    assert set(table) == {"bad", "good"}
    assert all(set(case) == {"name", "resource", "message"} for case in table["bad"])
    assert all(set(case) == {"name", "resource"} for case in table["good"])
    cases = [case["name"] for case in [*table["bad"], *table["good"]]]
    assert len(set(cases)) == len(cases)


def test_every_message_of_a_rule_is_seen_in_the_table_of_bad_resources() -> None:
    table = yaml.safe_load((ROOT / "tests" / "e2e" / "bad_resources.yaml").read_text())
    expected = [case["message"].rpartition("Invalid value: ")[2] for case in table["bad"]]
    untried = []
    for path, schema in PLACES:
        for rule in schema.get("x-kubernetes-validations", []):
            said = [part for part in expected if _is_said(part, rule["message"])]
            if not said and rule["rule"] != "self == oldSelf":
                untried.append(f"{path}: {rule['message']}")
    assert untried == []


def _is_said(part: str, message: str) -> bool:
    """`part` of the server's answer may begin with the refused value."""
    after_value = re.sub(r'^("[^"]*"|-?[0-9]+): ', "", part)
    return after_value in message


def _allowing_everything() -> settings.OperatorSettings:
    lists = dict.fromkeys(("ALLOWED_UPSTREAMS", "ALLOWED_COLLECTORS", "ALLOWED_IMAGES"), "*")
    return settings.from_env({"POD_NAMESPACE": "here", "OPERATOR_POD_LABELS": "a=b", **lists})


def test_the_operator_finds_nothing_wrong_with_what_the_server_takes() -> None:
    table = yaml.safe_load((ROOT / "tests" / "e2e" / "bad_resources.yaml").read_text())
    examples = [each for file in (OPERATOR / "examples").glob("*.yaml") for each in objects(file.read_text())]
    taken = [case["resource"] for case in table["good"]] + [each for each in examples if each["kind"] == names.KIND]
    for each in taken:
        metadata = {"name": "events", "namespace": "here", "uid": "u", **each.get("metadata", {})}
        proxy = parse({"metadata": metadata, "spec": _defaulted(SPEC, each["spec"])})
        assert checks.problems(proxy, _allowing_everything()) == [], each
        assert build(Desired(proxy=proxy, replicas=1, settings=_allowing_everything()))


def test_a_rule_reads_into_nothing_that_may_be_absent_before_it_has_seen_that_it_is_there() -> None:
    """A path into a part that is not there is an error, and refuses whatever else the resource says."""
    unguarded = []
    for path, schema in PLACES:
        for rule in (each["rule"] for each in schema.get("x-kubernetes-validations", ())):
            for part in sorted(set(re.findall(r"(?<![\w.])self\.(\w+)\.\w+", rule))):
                inner = schema.get("properties", {}).get(part)
                if inner is None or "default" in inner or part in (*schema.get("required", ()), "metadata"):
                    continue
                if f"has(self.{part})" not in rule:
                    unguarded.append((path, part, rule))
    assert unguarded == []
