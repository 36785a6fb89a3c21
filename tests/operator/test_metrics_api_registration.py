"""Whose APIServices are: what is ours, what is in the way, and what is to be written."""

import base64
import copy
from typing import Any

import pytest

from tinybird_proxy_operator.metrics_api.registration import (
    API_SERVICES,
    Registrant,
    api_service,
    is_like,
    others,
    registered_bundle,
)

US = Registrant(namespace="system", service="metrics", cluster_role="operator-metrics-api", cluster_role_uid="7")
OURS = {name: api_service(name, US, "a bundle") for name in API_SERVICES}
NEWER, OLDER = API_SERVICES


def changed(name: str, **spec: Any) -> dict[str, Any]:
    live = copy.deepcopy(OURS[name])
    live["spec"] |= spec
    return live


FOREIGN = changed(OLDER, service={"namespace": "monitoring", "name": "prometheus-adapter", "port": 443})


def test_both_versions_lead_to_the_service_and_go_with_the_cluster_role() -> None:
    assert OURS[NEWER] == {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": "v1beta2.custom.metrics.k8s.io",
            "labels": {"app.kubernetes.io/managed-by": "tinybird-proxy-operator"},
            "ownerReferences": [
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "ClusterRole",
                    "name": "operator-metrics-api",
                    "uid": "7",
                }
            ],
        },
        "spec": {
            "group": "custom.metrics.k8s.io",
            "version": "v1beta2",
            "groupPriorityMinimum": 100,
            "versionPriority": 200,
            "caBundle": base64.b64encode(b"a bundle").decode(),
            "service": {"namespace": "system", "name": "metrics", "port": 443},
        },
    }
    assert (OURS[OLDER]["spec"]["version"], OURS[OLDER]["spec"]["versionPriority"]) == ("v1beta1", 100)


def without_owner() -> dict[str, Any]:
    live = copy.deepcopy(OURS[NEWER])
    del live["metadata"]["ownerReferences"]
    return live


def with_owner(uid: str) -> dict[str, Any]:
    live = copy.deepcopy(OURS[NEWER])
    live["metadata"]["ownerReferences"][0]["uid"] = uid
    return live


@pytest.mark.parametrize(
    ("live", "ours"),
    [
        (OURS[NEWER], True),
        (FOREIGN, False),
        (without_owner(), False),
        (with_owner("of an earlier ClusterRole"), False),
        (changed(NEWER, service=None), False),
        (changed(NEWER, service={"namespace": "other", "name": "metrics"}), False),
        (changed(NEWER, caBundle=None), True),
    ],
)
def test_what_leads_to_us_and_goes_with_our_role_is_ours(live: dict[str, Any], ours: bool) -> None:
    assert US.is_owner_of(live) is ours


def test_whoever_is_in_the_way_is_named() -> None:
    assert others({NEWER: None, OLDER: None}, US) is None
    assert others(OURS, US) is None
    said = others({NEWER: None, OLDER: FOREIGN}, US) or ""
    assert "v1beta1.custom.metrics.k8s.io is of the Service monitoring/prometheus-adapter" in said
    assert "It is left untouched" in said
    assert "is the API server's own" in (others({NEWER: changed(NEWER, service=None)}, US) or "")


def test_nothing_is_written_where_nothing_differs() -> None:
    wanted = OURS[NEWER]
    assert is_like(changed(NEWER, something="else"), wanted)
    assert not is_like(changed(NEWER, caBundle="other"), wanted)
    assert not is_like(changed(NEWER, versionPriority=1), wanted)
    assert not is_like(changed(NEWER, service={"namespace": "system", "name": "metrics", "port": 8443}), wanted)


def test_the_bundle_that_is_known_is_known_by_both_versions() -> None:
    assert registered_bundle({NEWER: None, OLDER: None}, US) is None
    assert registered_bundle({NEWER: None, OLDER: FOREIGN}, US) is None
    assert registered_bundle(OURS, US) == "a bundle"
    assert registered_bundle({**OURS, OLDER: FOREIGN}, US) == "a bundle"
    assert registered_bundle({**OURS, OLDER: changed(OLDER, caBundle="b3RoZXI=")}, US) == ""
    assert registered_bundle({NEWER: changed(NEWER, caBundle="%"), OLDER: None}, US) == ""
    assert registered_bundle({NEWER: changed(NEWER, caBundle=None), OLDER: None}, US) == ""
