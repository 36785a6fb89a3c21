"""The webhook's certificates, which live for seconds in these tests: nobody is missed while they are replaced."""

import time
from typing import Final

import pytest
from tests.e2e.injected_pods import has_sidecar, sidecar
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE, Namespace, run, token_secret

from tinybird_proxy_operator.names import INJECT_LABEL

WEBHOOK: Final = f"{OPERATOR}-webhook"
# At least so many pods, and so many certificates, one after the other.
PODS_MIN: Final = 100
ROTATIONS_MIN: Final = 2
PAUSE_S: Final = 1.0
TIMEOUT_S: Final = 100.0


def _certificate() -> str:
    return str(Namespace(OPERATOR_NAMESPACE).get("secret", f"{WEBHOOK}-certificates")["data"]["tls.crt"])


def _bundle() -> str:
    path = "jsonpath={.webhooks[0].clientConfig.caBundle}"
    return run("kubectl", "get", "mutatingwebhookconfigurations", WEBHOOK, "--output", path)


@pytest.mark.timeout(240)
def test_no_pod_is_missed_while_the_webhooks_certificates_are_rotated(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    # No node has it: the pods are made, and nothing of them runs.
    spec = {"nodeSelector": {"there": "is-none"}, "containers": [{"name": "app", "image": "app"}]}
    metadata = {"generateName": "app-", "labels": {"app": "app", INJECT_LABEL: "events"}}
    batch = [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}] * 4
    certificates, bundles, made, ends_at = [_certificate()], {_bundle()}, 0, time.monotonic() + TIMEOUT_S
    while made < PODS_MIN or len(certificates) <= ROTATIONS_MIN:
        assert time.monotonic() < ends_at, f"{made} pods, {len(certificates) - 1} rotations, {len(bundles)} CA bundles"
        namespace.create(*batch)
        made += len(batch)
        if (now := _certificate()) != certificates[-1]:
            certificates.append(now)
        bundles.add(_bundle())
        time.sleep(PAUSE_S)
    found = namespace.find("pods", "app=app")
    print(f"{len(found)} pods during {len(certificates) - 1} rotations, {len(bundles)} CA bundles")
    assert len(found) == made
    assert [each["metadata"]["name"] for each in found if not has_sidecar(each)] == []
