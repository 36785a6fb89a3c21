"""Reviews as they come, from whoever, and their answers."""

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.operator.injection_cases import CASES, Case
from tests.operator.injection_pods import SIDECAR, container, native, pod, port
from tests.operator.webhooks import review

from tinybird_proxy_operator.sidecars.injection import chosen, inject, is_mirror, refusal
from tinybird_proxy_operator.webhook.review import NotAReview, Review, answer, read


def sent(document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_pod_of_the_table_is_read_as_it_is(case: Case) -> None:
    found = read(sent(review(case.pod)))
    assert (found.uid, found.namespace, found.is_of_a_pod) == ("705ab4f5", "shop", True)
    assert found.labels == case.pod["metadata"].get("labels", {})
    assert found.pod() == case.pod


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"subResource": "status"},
        {"operation": "DELETE", "object": None},
    ],
)
def test_a_question_about_something_else_is_none_about_a_pod(request_: Any) -> None:
    assert read(sent({**review(pod()), "request": {**review(pod())["request"], **request_}})) == Review(
        "705ab4f5", "shop"
    )


def wrong(path: str, value: Any) -> Any:
    """A review with another value at a path."""
    document = review(pod(container("app", ports=[port(80)]), initContainers=[native("proxy")]))
    place: Any = document
    last: Any
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        place = place[part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "Review"),
        ("apiVersion", "admission.k8s.io/v1beta1"),
        ("request", None),
        ("request.uid", 5),
        ("request.namespace", ".."),
        ("request.namespace", ""),
        ("request.object", None),
        ("request.object", []),
        ("request.object.metadata", "x"),
        ("request.object.metadata.labels", ["x"]),
        ("request.object.metadata.labels", {"x": 1}),
        ("request.object.metadata.annotations", 1),
        ("request.object.spec", None),
        ("request.object.spec.containers", {}),
        ("request.object.spec.containers.0", "app"),
        ("request.object.spec.containers.0.name", {}),
        ("request.object.spec.containers.0.ports", 80),
        ("request.object.spec.containers.0.ports.0.containerPort", [80]),
        ("request.object.spec.containers.0.env", [{"value": "x"}]),
        ("request.object.spec.containers.0.env", [{"name": "x", "value": ["x"]}]),
        ("request.object.spec.containers.0.resources", {"limits": {"cpu": []}}),
        ("request.object.spec.initContainers.0.name", None),
        ("request.object.spec.volumes", [{}]),
        ("request.object.spec.os", "linux"),
        ("request.object.spec.hostNetwork", "no"),
        ("request.object.spec.terminationGracePeriodSeconds", "30"),
    ],
)
def test_what_has_other_types_than_a_review_of_a_pod_is_none(path: str, value: Any) -> None:
    with pytest.raises(NotAReview):
        read(sent(wrong(path, value)))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"\xff", b'"\\ud800"', b"[" * 100_000, b'{"request":' * 100_000],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_that_can_be_read_is_told_so(body: bytes) -> None:
    with pytest.raises(NotAReview):
        read(body)


def test_what_is_nested_too_deeply_where_nobody_looks_is_told_when_the_pod_is_read() -> None:
    body = sent(review({**pod(), "x": 1})).replace(b'"x": 1', b'"x": ' + b"[" * 5000 + b"]" * 5000)
    with pytest.raises(NotAReview, match="is no JSON that can be read"):
        read(body).pod()


def test_what_is_wrong_is_told_by_its_place_and_not_by_what_is_there() -> None:
    with pytest.raises(NotAReview) as refused:
        read(sent(wrong("request.object.spec.containers.0.env", [{"name": ["secret-value"]}])))
    assert "containers" in str(refused.value)
    assert "secret-value" not in str(refused.value)


def test_a_pod_is_always_allowed() -> None:
    assert answer("1", [], None)["response"] == {"uid": "1", "allowed": True}
    assert answer("1", [], "why")["response"] == {"uid": "1", "allowed": True, "warnings": ["why"]}
    response = answer("1", [{"op": "remove", "path": "/spec/volumes/0"}], None)["response"]
    assert response["patchType"] == "JSONPatch"
    assert json.loads(base64.b64decode(response["patch"])) == [{"op": "remove", "path": "/spec/volumes/0"}]


_WORDS = """metadata spec labels annotations containers initContainers volumes env ports name containerPort protocol
resources limits requests cpu memory restartPolicy hostNetwork os value tinybird-proxy tinybird-proxy.io/inject
tinybird-proxy.io/sidecar-hash"""
_NAMES = st.sampled_from(_WORDS.split())
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _NAMES
    | st.sampled_from(["1e99999999999999999999", "100m", "-0", "events", "Always", ""])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in places(each, (*path, key)))]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_in_the_place_of_whatever_is_refused_or_can_be_decided(data: st.DataObject) -> None:
    document = copy.deepcopy(review(data.draw(st.sampled_from([case.pod for case in CASES]))))
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from([path for path in places(document) if path]))
        place = document
        for part in parents:
            place = place[part]
        place[last] = data.draw(_VALUES)
    try:
        found = read(json.dumps(document).encode("utf-8", "surrogatepass"))
    except NotAReview:
        return
    if found.is_of_a_pod and not is_mirror(found.pod()) and chosen(found.labels, {}) is not None:
        said, operations = refusal(found.pod(), SIDECAR), inject(found.pod(), "events", SIDECAR)
        assert json.dumps(answer(found.uid, operations, said))
