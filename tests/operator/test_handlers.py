"""kopf's part: what is watched, and which resources an event is about."""

from typing import Any

import kopf
import pytest

from tinybird_proxy_operator import handlers
from tinybird_proxy_operator.handlers import AUTOSCALERS, CHILDREN, Watches, register
from tinybird_proxy_operator.names import (
    FIELD_MANAGER,
    GROUP,
    INJECTED_LABEL,
    MANAGED_BY_LABEL,
    PLURAL,
    PROXY_LABEL,
    SIDECAR_HASH_ANNOTATION,
    USE_LABEL,
    VERSION,
)
from tinybird_proxy_operator.queue import Key


class Heard:
    """What the watches called."""

    def __init__(self) -> None:
        self.changed: list[Key] = []
        self.alive = 0
        self.pods: list[tuple[str, bool]] = []
        self.waits_s: list[float] = []
        self.watches = Watches(changed=self.note_change, alive=self.note, saw_pod=self.saw_pod)

    def note_change(self, key: Key, after_s: float = 0.0) -> None:
        self.changed.append(key)
        self.waits_s.append(after_s)

    def saw_pod(self, body: Any, deleted: bool) -> None:
        self.pods.append((body["metadata"]["name"], deleted))

    def note(self) -> None:
        self.alive += 1


def resource(name: str, *, secret: str | None = None, clients: str | None = None, namespace: str = "shop") -> Any:
    spec: dict[str, Any] = {}
    if secret is not None:
        spec["tinybird"] = {"tokenSecretRef": {"name": secret}}
    if clients is not None:
        spec["clients"] = {"tokenSecretRef": {"name": clients}}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def child(**labels: str) -> Any:
    return {"metadata": {"name": "x", "namespace": "shop", "labels": labels}}


def test_a_resource_is_reconciled_when_it_changes_and_when_it_goes() -> None:
    heard = Heard()
    heard.watches.resource(resource("a"), False)
    assert heard.watches.known() == [Key("shop", "a")]
    heard.watches.resource(resource("a"), True)
    assert heard.changed == [Key("shop", "a")] * 2
    assert heard.watches.known() == []
    heard.watches.resource(resource("a"), True)
    assert heard.alive == 3


def test_an_event_about_a_status_alone_is_no_news_and_any_other_is() -> None:
    heard, body = Heard(), resource("a")
    body["metadata"] |= {"uid": "u", "generation": 1, "resourceVersion": "7"}
    heard.watches.resource(body, False)
    heard.changed.clear()
    said = {**body, "metadata": {**body["metadata"], "resourceVersion": "8"}, "status": {"replicas": 1}}
    heard.watches.resource(said, False)
    assert (heard.changed, heard.alive) == ([], 2)
    for name, value in (
        ("uid", "v"),
        ("generation", 2),
        ("annotations", {"tinybird-proxy.io/roll": "now"}),
        ("labels", {"team": "web"}),
        ("finalizers", ["tinybird-proxy.io/drain"]),
        ("deletionTimestamp", "2026-01-01T00:00:00Z"),
    ):
        body["metadata"][name] = value
        heard.watches.resource(body, False)
        heard.watches.resource(body, False)
    assert len(heard.changed) == 6


def test_a_resource_that_was_deleted_and_is_made_again_as_it_was_is_news() -> None:
    heard = Heard()
    for deleted in (False, True, False):
        heard.watches.resource(resource("a"), deleted)
    assert heard.changed == [Key("shop", "a")] * 3


def test_a_child_or_a_pod_is_about_the_resource_that_it_carries() -> None:
    heard = Heard()
    heard.watches.child(child(**{PROXY_LABEL: "events"}))
    heard.watches.child(child())
    heard.watches.child({"metadata": {"name": "x", "namespace": "shop", "labels": None}})
    assert heard.changed == [Key("shop", "events")]
    assert heard.alive == 3


def test_a_secret_is_about_the_resources_of_its_namespace_that_name_it() -> None:
    heard = Heard()
    for body in (
        resource("a", secret="tinybird"),
        resource("b", secret="tinybird", clients="apps"),
        resource("c", secret="other"),
        resource("d", secret="tinybird", namespace="else"),
    ):
        heard.watches.resource(body, False)
    heard.changed.clear()
    heard.watches.secret({"metadata": {"name": "tinybird", "namespace": "shop"}})
    assert heard.changed == [Key("shop", "a"), Key("shop", "b")]
    heard.changed.clear()
    heard.watches.secret({"metadata": {"name": "apps", "namespace": "shop"}})
    assert heard.changed == [Key("shop", "b")]


def test_a_changed_secret_of_a_collectors_headers_is_news_of_who_names_it() -> None:
    heard = Heard()
    traced = resource("a")
    traced["spec"]["telemetry"] = {"otlpHeadersSecretRef": {"name": "collector"}}
    heard.watches.resource(traced, False)
    heard.changed.clear()
    heard.watches.secret({"metadata": {"name": "collector", "namespace": "shop"}})
    assert heard.changed == [Key("shop", "a")]


def test_a_resource_that_names_another_secret_or_is_gone_no_longer_follows_the_old_one() -> None:
    heard = Heard()
    heard.watches.resource(resource("a", secret="tinybird"), False)
    heard.watches.resource(resource("a", secret="new"), False)
    heard.watches.resource(resource("b", secret="tinybird"), False)
    heard.watches.resource(resource("b", secret="tinybird"), True)
    heard.changed.clear()
    heard.watches.secret({"metadata": {"name": "tinybird", "namespace": "shop"}})
    assert heard.changed == []


@pytest.mark.parametrize(
    "spec",
    [
        *(None, 7, {"tinybird": None}, {"tinybird": 7}, {"tinybird": {"tokenSecretRef": 7}}, {"clients": []}),
        *({"telemetry": 7}, {"telemetry": {"otlpHeadersSecretRef": []}}),
    ],
)
def test_no_body_makes_a_handler_raise(spec: Any) -> None:
    heard = Heard()
    heard.watches.resource({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}, False)
    assert heard.changed == [Key("shop", "a")]


def test_an_hpa_is_news_when_it_changes_and_goes_and_not_when_it_has_read_a_metric() -> None:
    heard, hpa = Heard(), child(**{PROXY_LABEL: "events"})
    hpa |= {"spec": {"maxReplicas": 4}, "status": {"currentReplicas": 2}}
    heard.watches.autoscaler(hpa, False)
    heard.watches.autoscaler({**hpa, "status": {"currentReplicas": 3}}, False)
    assert heard.changed == [Key("shop", "events")]
    heard.watches.autoscaler({**hpa, "spec": {"maxReplicas": 5}}, False)
    heard.watches.autoscaler(hpa, True)
    heard.watches.autoscaler(hpa, False)
    assert heard.changed == [Key("shop", "events")] * 4
    assert heard.alive == 5


def test_each_event_about_a_resources_pod_is_news_and_the_pod_is_looked_at() -> None:
    heard = Heard()
    for deleted in (False, False, True):
        heard.watches.pod(child(**{PROXY_LABEL: "events"}), deleted)
    assert heard.changed == [Key("shop", "events")] * 3
    assert heard.pods == [("x", False), ("x", False), ("x", True)]


def app_pod() -> Any:
    sidecar = {"name": "tinybird-proxy", "state": {"running": {}}, "ready": True, "restartCount": 0}
    status = {
        "phase": "Running",
        "initContainerStatuses": [sidecar],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    metadata = {"name": "web-0", "namespace": "shop", "uid": "u", "labels": {INJECTED_LABEL: "side"}}
    return {"metadata": {**metadata, "annotations": {SIDECAR_HASH_ANNOTATION: "1"}}, "status": status}


def test_an_event_about_an_apps_pod_is_news_if_it_concerns_its_sidecar() -> None:
    heard, pod = Heard(), app_pod()
    heard.watches.app_pod(pod, False)
    assert heard.changed == [Key("shop", "side")]
    status, metadata = pod["status"], pod["metadata"]
    condition = {"type": "Other", "status": "True"}
    web = {"name": "web", "state": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}}
    for nothing in (
        {**pod, "metadata": {**metadata, "resourceVersion": "7", "annotations": {**metadata["annotations"], "a": "b"}}},
        {**pod, "status": {**status, "podIP": "10.0.0.1", "conditions": [condition, *status["conditions"]]}},
        {**pod, "status": {**status, "containerStatuses": [web]}},
    ):
        heard.watches.app_pod(nothing, False)
    assert heard.changed == [Key("shop", "side")]
    assert heard.pods == [("web-0", False)]
    [sidecar] = status["initContainerStatuses"]
    end = {"terminated": {"finishedAt": "2026-01-01T00:00:09Z"}}
    news: list[Any] = [
        {**pod, "metadata": {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {**pod, "metadata": {**metadata, "annotations": {SIDECAR_HASH_ANNOTATION: "2"}}},
        {**pod, "metadata": {**metadata, "labels": {**metadata["labels"], "a": "b"}}},
        {**pod, "status": {**status, "phase": "Succeeded"}},
        {**pod, "status": {**status, "conditions": [{"type": "Ready", "status": "False"}]}},
        {**pod, "status": {**status, "initContainerStatuses": [{**sidecar, "state": end}]}},
        {**pod, "status": {**status, "initContainerStatuses": [{**sidecar, "lastState": end, "restartCount": 1}]}},
    ]
    for body in news:
        heard.watches.app_pod(body, False)
    heard.watches.app_pod(pod, True)
    assert heard.changed == [Key("shop", "side")] * (2 + len(news))
    assert heard.pods[-1] == ("web-0", True)
    assert heard.alive == 5 + len(news)


def test_of_apps_pods_no_more_are_remembered_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "APP_PODS_MAX", 2)
    heard = Heard()
    for uid in ("a", "b", "c", "c", "a"):
        pod = app_pod()
        pod["metadata"]["uid"] = uid
        heard.watches.app_pod(pod, False)
    assert len(heard.changed) == 4


@pytest.mark.parametrize("status", [None, {}, {"conditions": None, "initContainerStatuses": None}])
def test_an_apps_pod_without_a_status_is_about_its_resource_too(status: Any) -> None:
    heard = Heard()
    heard.watches.app_pod({"metadata": {**app_pod()["metadata"], "annotations": None}, "status": status}, False)
    assert heard.changed == [Key("shop", "side")]


def registered() -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    register(registry, Heard().watches)
    return registry


def test_kopf_watches_the_resource_its_children_their_pods_and_shared_secrets_and_nothing_else() -> None:
    found = {
        (handler.selector.group, handler.selector.version, handler.selector.any_name, handler.id): dict(
            handler.labels or {}
        )
        for handler in registered()._watching.get_all_handlers()
        if handler.selector is not None
    }
    ours = {MANAGED_BY_LABEL: FIELD_MANAGER}
    assert found == {
        (GROUP, VERSION, PLURAL, "register.<locals>.on_resource"): {},
        **{(group, version, plural, f"child-{plural}"): ours for group, version, plural in CHILDREN},
        ("", "v1", "pods", "child-pods"): {PROXY_LABEL: kopf.PRESENT},
        ("", "v1", "pods", "app-pods"): {INJECTED_LABEL: kopf.PRESENT},
        (*AUTOSCALERS, "autoscalers"): ours,
        ("", "v1", "secrets", "shared"): {USE_LABEL: kopf.PRESENT},
        ("", "v1", "secrets", "made"): ours,
    }


def test_kopf_keeps_no_state_and_no_finalizer_for_it_only_watches() -> None:
    registry = registered()
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()


def test_kopf_logs_in_as_the_pods_service_account_or_as_a_kubeconfig_says() -> None:
    assert [handler.id for handler in registered()._activities.get_all_handlers()] == [
        "login_with_service_account",
        "login_with_kubeconfig",
    ]


def test_what_kopf_calls_answers_nothing_and_tells_the_watches() -> None:
    registry, heard = kopf.OperatorRegistry(), Heard()
    register(registry, heard.watches)
    bodies = {"secrets": resource("tinybird"), PLURAL: resource("events", secret="tinybird")}
    for handler in registry._watching.get_all_handlers():
        plural = "" if handler.selector is None else str(handler.selector.any_name)
        body = bodies.get(plural, child(**{PROXY_LABEL: "events", INJECTED_LABEL: "events"}))
        call: Any = handler.fn
        assert call(body=body, type="MODIFIED", labels={}) is None
    assert set(heard.changed) == {Key("shop", "events")}
