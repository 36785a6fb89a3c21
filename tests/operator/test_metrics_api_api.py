"""What is answered to which path, and in which shape."""

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tinybird_proxy_operator.metrics_api.api import (
    MetricQuery,
    Refused,
    Value,
    find,
    metric_value_list,
    parts_of,
)
from tinybird_proxy_operator.metrics_api.selectors import Selector, parse
from tinybird_proxy_operator.scaling.targets import METRICS

ROWS = "tinybird_proxy_buffer_rows"
GROUP = "/apis/custom.metrics.k8s.io"
PREFERRED = {"groupVersion": "custom.metrics.k8s.io/v1beta2", "version": "v1beta2"}
OTHER = {"groupVersion": "custom.metrics.k8s.io/v1beta1", "version": "v1beta1"}


def document(path: str, **query: str) -> dict[str, Any]:
    found = find(parts_of(path), query)
    assert isinstance(found, dict)
    return found


def query(path: str, **given: str) -> MetricQuery:
    found = find(parts_of(path), given)
    assert isinstance(found, MetricQuery)
    return found


def refusal(path: str, **given: str) -> Refused:
    with pytest.raises(Refused) as refused:
        find(parts_of(path), given)
    return refused.value


def test_discovery_names_the_group_and_prefers_the_newer_version() -> None:
    group = {"name": "custom.metrics.k8s.io", "versions": [PREFERRED, OTHER], "preferredVersion": PREFERRED}
    assert document("/apis") == {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    assert document(GROUP) == {"kind": "APIGroup", "apiVersion": "v1", **group}
    assert document("/apis/") == document("/apis")


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
def test_each_version_lists_every_metric_of_pods_and_of_proxies(version: str) -> None:
    listed = document(f"{GROUP}/{version}")
    assert (listed["kind"], listed["apiVersion"]) == ("APIResourceList", "v1")
    assert listed["groupVersion"] == f"custom.metrics.k8s.io/{version}"
    assert [each["name"] for each in listed["resources"]] == [
        f"{resource}/{metric}" for resource in ("pods", "tinybirdproxies.tinybird-proxy.io") for metric in METRICS
    ]
    assert listed["resources"][0] == {
        "name": f"pods/{METRICS[0]}",
        "singularName": "",
        "namespaced": True,
        "kind": "MetricValueList",
        "verbs": ["get"],
    }


def test_the_path_of_the_autoscaler_is_decoded() -> None:
    found = query(
        f"{GROUP}/v1beta2/namespaces/shop/pods/%2A/{ROWS}",
        labelSelector="tinybird-proxy.io/proxy=events,!tinybird-proxy.io/draining",
        metricLabelSelector="",
    )
    assert found == MetricQuery(
        version="v1beta2",
        namespace="shop",
        resource="pods",
        name="*",
        metric=ROWS,
        selector=parse("tinybird-proxy.io/proxy=events,!tinybird-proxy.io/draining"),
    )
    assert query(f"{GROUP}/v1beta2/namespaces/shop/pods/*/{ROWS}").name == "*"
    assert parts_of("/a%2Fb/c") == ("a/b", "c")


def test_a_tinybird_proxy_has_metrics_too() -> None:
    found = query(f"{GROUP}/v1beta1/namespaces/shop/tinybirdproxies.tinybird-proxy.io/events/{ROWS}")
    assert (found.version, found.resource, found.name) == ("v1beta1", "tinybirdproxies.tinybird-proxy.io", "events")
    assert found.selector == Selector()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/version",
        "/openapi/v2",
        "/openapi/v3",
        "/apis/apps/v1",
        f"{GROUP}/v1",
        f"{GROUP}/v1beta2/namespaces/shop/pods",
        f"{GROUP}/v1beta2/namespaces/shop/pods/*/other",
        f"{GROUP}/v1beta2/namespaces/shop/services/*/{ROWS}",
        f"{GROUP}/v1beta2/namespaces/shop/metrics/{ROWS}",
        f"{GROUP}/v1beta2/namespaces/shop//pods/*/{ROWS}",
        f"{GROUP}/v1beta2/pods/*/{ROWS}",
        f"{GROUP}/v1beta2/namespaces/shop/pods/*/{ROWS}/more",
    ],
)
def test_anything_else_is_not_found_in_json(path: str) -> None:
    assert refusal(path).status() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "the server could not find the requested resource",
        "reason": "NotFound",
        "code": 404,
    }


def test_a_selector_that_cannot_be_read_is_a_bad_request() -> None:
    refused = refusal(f"{GROUP}/v1beta2/namespaces/shop/pods/*/{ROWS}", labelSelector="a in b")
    assert refused.status()["reason"] == "BadRequest"
    assert "labelSelector cannot be read: after in" in str(refused)


def test_no_metric_has_labels() -> None:
    path = f"{GROUP}/v1beta2/namespaces/shop/pods/*/{ROWS}"
    assert refusal(path, metricLabelSelector="verb=get").code == 404
    assert query(path, metricLabelSelector=" ").metric == ROWS


def test_values_have_the_shape_of_their_version() -> None:
    at = datetime(2026, 10, 1, 14, 0, 0, 999, tzinfo=timezone(timedelta(hours=2)))
    value = Value(kind="Pod", api_version="/v1", namespace="a", name="p-0", value=1234, at=at)
    described = {"kind": "Pod", "namespace": "a", "name": "p-0", "apiVersion": "/v1"}
    assert metric_value_list("v1beta2", ROWS, [value]) == {
        "kind": "MetricValueList",
        "apiVersion": "custom.metrics.k8s.io/v1beta2",
        "metadata": {},
        "items": [
            {
                "describedObject": described,
                "metric": {"name": ROWS, "selector": None},
                "timestamp": "2026-10-01T12:00:00Z",
                "value": "1234",
            }
        ],
    }
    assert metric_value_list("v1beta1", ROWS, [value]) == {
        "kind": "MetricValueList",
        "apiVersion": "custom.metrics.k8s.io/v1beta1",
        "metadata": {},
        "items": [
            {
                "describedObject": described,
                "metricName": ROWS,
                "timestamp": "2026-10-01T12:00:00Z",
                "value": "1234",
                "selector": None,
            }
        ],
    }


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 500, 503])
def test_every_refusal_has_a_reason(code: int) -> None:
    status = json.loads(json.dumps(Refused(code, "why").status()))
    assert (status["code"], status["message"], bool(status["reason"])) == (code, "why", True)


def test_a_query_says_what_it_wants() -> None:
    found = query(f"{GROUP}/v1beta2/namespaces/shop/pods/%2A/{ROWS}")
    assert str(found) == f"{ROWS} of pods/* in shop"
