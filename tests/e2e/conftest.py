"""A namespace with a Tinybird for each test; it stays if the test fails, for whoever looks at the logs."""

import uuid
from collections.abc import Generator, Iterator

import pytest
from tests.e2e.kubectl import HERE, Namespace, run

LABEL = "tinybird-proxy.io/e2e=test"
_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: changes what all tests share, so it runs when the others have ended")
    config.addinivalue_line("markers", "control_plane: needs the cluster of tests/cluster, not just any")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """Empty but for Tinybird."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    run("kubectl", "create", "namespace", name)
    run("kubectl", "label", "namespace", name, LABEL)
    # The field manager too, for the audit log tells that of a request, and no annotations.
    annotation, manager = f"tinybird-proxy.io/test={request.node.name}", f"--field-manager={request.node.name[:128]}"
    run("kubectl", "annotate", "namespace", name, annotation, manager)
    made = Namespace(name)
    made.kubectl("apply", "--filename", HERE / "tinybird.yaml")
    made.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/tinybird")
    yield made
    made.leave()
    if not request.node.stash.get(_failed, False):
        run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait=false")
