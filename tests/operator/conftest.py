"""What several test files use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.clusters import Cluster, connection, running_cluster

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.testing.fake_api import FakeApi, running_api


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A fake cluster with a reconciler."""
    async with running_cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    """A fake API server."""
    async with running_api() as running:
        yield running


@pytest.fixture
async def kube(api: FakeApi, tmp_path: Path) -> AsyncIterator[Kube]:
    """The real client before it."""
    async with connection(api, tmp_path) as connected:
        yield connected
