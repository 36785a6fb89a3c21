"""Least privilege, by the API server's audit log: what the operator may do is what it did in these tests."""

import os
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
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


def test_what_the_operator_may_do_is_what_it_did_and_nothing_was_refused(capsys: pytest.CaptureFixture[str]) -> None:
    audit_log = Path(os.environ["KUBECONFIG"]).parent / "logs" / "audit.log"
    since = datetime.fromisoformat(os.environ["E2E_BEGAN_AT"])
    found = of_the_cluster(audit_log, f"{OPERATOR_NAMESPACE}:{OPERATOR}", since)
    with capsys.disabled():  # what was granted, and which test used it, is worth seeing in a green run
        print(f"\n{found.table()}")
    assert found.problems(EXCUSED) == []
