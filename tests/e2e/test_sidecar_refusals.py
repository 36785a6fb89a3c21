"""Somebody may write TinybirdProxies, and tries to get more out of it than a sidecar for their rows."""

import json
from typing import Any, Final

import pytest
from tests.e2e import sidecar_pods
from tests.e2e.injected_pods import app_deployment, has_sidecar, sidecar
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE, CommandFailed, Namespace, run, token_secret, until

from tinybird_proxy_operator.names import INJECT_LABEL, SIDECAR_CONTAINER

# By the name of the resource: what it asks for, and why it gets nothing.
EVIL: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "image": ({"image": "evil.example.com/proxy:1"}, "ImageNotAllowed"),
    "url": (
        {"tinybird": {"url": "https://evil.example.com", "tokenSecretRef": {"name": "tinybird"}}},
        "UpstreamNotAllowed",
    ),
    "collector": ({"telemetry": {"otlpEndpoint": "http://evil.example.com:4318"}}, "CollectorNotAllowed"),
    "secret": ({"tinybird": {"tokenSecretRef": {"name": "database"}}}, "SecretNotShared"),
}


def test_what_is_not_allowed_comes_into_no_pod(namespace: Namespace) -> None:
    database = token_secret(name="database")
    del database["metadata"]["labels"]
    namespace.apply(token_secret(), database, *(sidecar(namespace, name, **spec) for name, (spec, _) in EVIL.items()))
    for name, (_, reason) in EVIL.items():
        namespace.until_condition("Ready", "False", reason, name=name)
        assert "sidecar" not in namespace.get("tinybirdproxy", name)["status"]
    app = app_deployment(command=["sleep", "600"])
    namespace.apply(sidecar_pods.app_script())
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": app["spec"]["template"]["spec"]}
    for name in EVIL:
        asks = {"name": name, "labels": {INJECT_LABEL: name}}
        made = namespace.kubectl("create", "--output=json", "--filename=-", stdin=json.dumps({**pod, "metadata": asks}))
        assert not has_sidecar(json.loads(made))
    names = [f"pod/{name}" for name in EVIL]
    namespace.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *names)


def test_the_rendered_sidecar_is_the_operators_to_write(namespace: Namespace) -> None:
    """The aggregated role for authors has no right to the status, from which pods get it, and neither has a create."""
    namespace.apply(token_secret())
    forged = {"hash": "00000000", "container": {"name": SIDECAR_CONTAINER, "image": "evil"}, "volumes": []}
    namespace.create({**sidecar(namespace, controllerClass="nobody"), "status": {"sidecar": forged}})
    assert "sidecar" not in namespace.get("tinybirdproxy", "events").get("status", {})
    namespace.kubectl("create", "serviceaccount", "author")
    namespace.kubectl(
        "create", "rolebinding", "author", "--clusterrole=edit", f"--serviceaccount={namespace.name}:author"
    )
    author = f"--as=system:serviceaccount:{namespace.name}:author"
    said = until(
        "rights, which are aggregated",
        lambda: "yes" in namespace.kubectl("auth", "can-i", "patch", "tinybirdproxies", author) and "yes",
    )
    assert said == "yes"
    with pytest.raises(CommandFailed):
        namespace.kubectl("auth", "can-i", "patch", "tinybirdproxies", "--subresource=status", author)


def test_a_path_of_the_node_or_another_namespaces_secret_cannot_even_be_named(namespace: Namespace) -> None:
    namespace.apply(token_secret())
    elsewhere = {"url": namespace.tinybird_url, "tokenSecretRef": {"name": "tinybird", "namespace": "kube-system"}}
    path = {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}
    for evil in (sidecar(namespace, tinybird=elsewhere), sidecar(namespace, pod=path)):
        with pytest.raises(CommandFailed, match="unknown field"):
            namespace.create(evil)
    with pytest.raises(CommandFailed, match="Invalid value"):
        namespace.create(sidecar(namespace, pod={"env": [{"name": "LD_PRELOAD", "value": "evil.so"}]}))


def test_the_pods_of_the_operator_get_none_whatever_they_ask(namespace: Namespace) -> None:
    found = run("kubectl", "--namespace", OPERATOR_NAMESPACE, "get", "pods", "--output", "name").split()
    assert [each for each in found if OPERATOR in each]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "asks", "labels": {"tinybird-proxy.io/inject": "events"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }
    system = Namespace(OPERATOR_NAMESPACE)
    made = json.loads(
        system.kubectl("create", "--dry-run=server", "--output=json", "--filename=-", stdin=json.dumps(pod))
    )
    assert "initContainers" not in made["spec"]
