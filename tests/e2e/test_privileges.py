"""Least privilege, by the API server's audit log: what the operator may do is what it did in these tests."""

import os
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
from tests.e2e.custom_metrics import SERVICE
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE
from tests.e2e.privileges import of_the_cluster

pytestmark = [pytest.mark.alone, pytest.mark.control_plane]

# Granted, and not used here.
EXCUSED: Final = {
    "update tinybirdproxies.tinybird-proxy.io/finalizers": "only OpenShift asks for it",
    "list events": "doctor, of a pod that waits for a node's answer",
    "delete deployments.apps": "only of one that carries the resource's UID under another name",
    "delete serviceaccounts": "the same",
}


METRICS_API_EXCUSED: Final = {
    'list configmaps "extension-apiserver-authentication"': "of a role of Kubernetes' own",
    'watch configmaps "extension-apiserver-authentication"': "the same",
    'delete apiservices.apiregistration.k8s.io "v1beta1.custom.metrics.k8s.io"': "only if somebody takes the other",
    'delete apiservices.apiregistration.k8s.io "v1beta2.custom.metrics.k8s.io"': "the same",
}


WEBHOOK_EXCUSED: Final[dict[str, str]] = {}


@pytest.mark.parametrize(
    ("account", "excused"),
    [(OPERATOR, EXCUSED), (SERVICE, METRICS_API_EXCUSED), (f"{OPERATOR}-webhook", WEBHOOK_EXCUSED)],
)
def test_what_may_be_done_is_what_was_done_and_nothing_was_refused(
    account: str, excused: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    audit_log = Path(os.environ["KUBECONFIG"]).parent / "logs" / "audit.log"
    since = datetime.fromisoformat(os.environ["E2E_BEGAN_AT"])
    found = of_the_cluster(audit_log, f"{OPERATOR_NAMESPACE}:{account}", since)
    with capsys.disabled():  # what was granted, and which test used it, is worth seeing in a green run
        print(f"\n{found.table()}")
    assert found.problems(excused) == []
