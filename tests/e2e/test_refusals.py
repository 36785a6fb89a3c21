"""What a TinybirdProxy may not name is refused in words, and what runs is left as it is."""

from functools import partial
from typing import Any, Final

from tests.e2e.kubectl import TINYBIRD_TOKEN, Namespace, token_secret, until

USE_LABEL: Final = "tinybird-proxy.io/use"
# What is asked for, the reason, and what the sentence names: what was asked, and what would have to be changed.
REFUSALS: Final[dict[str, tuple[dict[str, Any], str, tuple[str, ...]]]] = {
    "upstream": (
        {"tinybird": {"url": "https://rows.example.com", "tokenSecretRef": {"name": "tinybird"}}},
        "UpstreamNotAllowed",
        ("rows.example.com", "allowedUpstreams", "*.tinybird.co"),
    ),
    "collector": (
        {"telemetry": {"otlpEndpoint": "http://spans.example.com:4318"}},
        "CollectorNotAllowed",
        ("spans.example.com", "allowedCollectors", "*.svc"),
    ),
    "image": (
        {"image": "registry.example.com/theirs/tinybird-proxy:0.1.0"},
        "ImageNotAllowed",
        ("registry.example.com/theirs/tinybird-proxy:0.1.0", "allowedImages", "ghcr.io/tinybird-proxy/tinybird-proxy"),
    ),
    "secret": (
        {"tinybird": {"url": "http://tinybird.{namespace}.svc:7181", "tokenSecretRef": {"name": "theirs"}}},
        "SecretNotShared",
        ("Secret theirs", f"{USE_LABEL}=token"),
    ),
}


def _named(namespace: Namespace, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A TinybirdProxy of that name that asks for this."""
    asked = {**spec}
    if "{namespace}" in asked.get("tinybird", {}).get("url", ""):
        asked["tinybird"] = {**asked["tinybird"], "url": namespace.tinybird_url}
    return {**namespace.forwarding_to_tinybird(**asked), "metadata": {"name": name}}


def _unlabelled(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"token": TINYBIRD_TOKEN}}


def test_a_resource_that_names_what_it_may_not_gets_nothing_but_a_sentence(namespace: Namespace) -> None:
    namespace.apply(
        token_secret(),
        _unlabelled("theirs"),
        *(_named(namespace, name, spec) for name, (spec, _, _) in REFUSALS.items()),
    )
    for name, (_, reason, words) in REFUSALS.items():
        message = namespace.until_condition("Degraded", "True", reason, name=name)
        assert [word for word in words if word not in message] == [], message
        assert namespace.condition("Ready", name)[:2] == ("False", reason)
        assert message in until(f"an Event {reason}", partial(namespace.events, reason))
    assert namespace.find("deployments,replicasets,services,jobs,secrets", "tinybird-proxy.io/proxy") == []


def test_a_running_proxy_that_is_changed_to_what_it_may_not_name_goes_on_as_it_was(namespace: Namespace) -> None:
    namespace.apply(token_secret(), _unlabelled("theirs"), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods, before = namespace.pods(), namespace.get("deployment", "events")["spec"]
    for name, (spec, reason, words) in REFUSALS.items():
        namespace.apply(_named(namespace, "events", spec))
        message = namespace.until_condition("Degraded", "True", reason)
        assert [word for word in words if word not in message] == [], message
        namespace.post(name)
        namespace.until_arrived(name)
    assert namespace.get("deployment", "events")["spec"] == before
    namespace.apply(namespace.forwarding_to_tinybird())
    namespace.until_condition("Degraded", "False", "AsExpected")
    namespace.until_condition("Ready", "True", "Ready")
    # The label is as good as the right to use it: without it nothing is mounted anew, and what runs goes on.
    namespace.kubectl("label", "secret", "tinybird", f"{USE_LABEL}-")
    namespace.until_condition("Degraded", "True", "SecretNotShared")
    namespace.post("unlabelled")
    namespace.until_arrived("unlabelled")
    namespace.kubectl("label", "secret", "tinybird", f"{USE_LABEL}=token")
    namespace.until_condition("Degraded", "False", "AsExpected")
    assert namespace.get("deployment", "events")["spec"] == before
    assert namespace.pods() == pods
    assert namespace.restarts() == 0
