"""Deletion: no row goes unseen, at whichever request the operator ends and in any history."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.clusters import IPS, Cluster
from tests.operator.deleting_clusters import RUNNING, Deleting, running_deleting
from tests.operator.draining_proxies import Buffer

from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import DELETE_ANNOTATION, KIND, selector_labels
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.testing.field_owners import Object


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Deleting]:
    async with running_deleting(tmp_path) as running:
        yield running


class Killed(BaseException):
    """The process ended."""


class Mortal(Kube):
    """A client whose process ends with its last request: before it, or with its answer still on the way."""

    def __init__(self, cluster: Cluster, *, requests: int, done: bool) -> None:
        super().__init__(cluster.kube._client)
        self.left = requests
        self.done = done

    async def _call(self, *args: Any, **kwargs: Any) -> Object:
        self.left -= 1
        if self.left < 0 and not self.done:
            raise Killed
        answer = await super()._call(*args, **kwargs)
        if self.left < 0:
            raise Killed
        return answer


@pytest.mark.parametrize("done", [False, True])
async def test_ended_at_any_request_the_next_operator_comes_to_the_same(cluster: Deleting, done: bool) -> None:
    survived, requests = False, 0
    while not survived:
        await cluster.installed_and_deleted(rows=(5,))
        real, cluster.kube = cluster.kube, Mortal(cluster, requests=requests, done=done)
        mortal, cluster.kube = cluster.operator(), real
        try:
            await mortal.reconcile(Key("shop", "events"))
            assert not cluster.gone()
            cluster.proxies.hold(0)
            await mortal.reconcile(Key("shop", "events"))
            survived = True
        except Killed:
            pass
        cluster.restart()
        if cluster.proxies.buffers[IPS[0]].rows:
            await cluster.reconcile()
            assert cluster.condition("Draining") == ("True", "Deleting")
            cluster.proxies.hold(0)
        await cluster.reconcile()
        assert cluster.gone()
        assert cluster.api.all("Deployment") == []
        assert cluster.told() == []
        cluster.proxies.buffers.update({ip: Buffer() for ip in IPS})
        requests += 1
    assert requests > 12


STEPS = st.one_of(
    st.tuples(st.just("look"), st.just(0)),
    st.tuples(st.just("time passes"), st.integers(1, 40)),
    st.tuples(st.just("the wall's clock jumps"), st.integers(-1000, 1000)),
    st.tuples(st.just("rows come"), st.integers(0, 2)),
    st.tuples(st.just("rows are delivered"), st.integers(0, 2)),
    st.tuples(st.just("silence"), st.integers(0, 2)),
    st.tuples(st.just("an answer again"), st.integers(0, 2)),
    st.tuples(st.just("the drain is cancelled"), st.integers(0, 2)),
    st.tuples(st.just("a new pod"), st.just(2)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("the API server fails"), st.sampled_from([0, 409, 429, 500])),
    st.tuples(st.just("Drop"), st.just(0)),
    st.tuples(st.just("Keep"), st.just(0)),
    st.tuples(st.just("now"), st.just(0)),
)
LIKELY_STEPS = st.lists(STEPS | st.tuples(st.just("look"), st.just(0)), max_size=25)


@settings(max_examples=40, deadline=None)
@given(on_deadline=st.sampled_from(["Keep", "Drop"]), steps=LIKELY_STEPS)
def test_it_never_goes_while_a_pod_holds_rows_before_the_deadline_drop_or_the_annotation(
    on_deadline: str, steps: list[tuple[str, int]]
) -> None:
    with TemporaryDirectory() as directory:
        asyncio.run(history(Path(directory), on_deadline, steps))


async def history(directory: Path, on_deadline: str, steps: list[tuple[str, int]]) -> None:
    """Take the steps; whenever the resource has gone, it must have been allowed to."""
    deadline_s = 60
    drain: dict[str, Any] = {"deadlineSeconds": deadline_s, "onDeadline": on_deadline}
    async with running_deleting(directory) as cluster:
        await cluster.installed_and_deleted({"drain": drain}, rows=(1,))
        began_s = passed_s = cluster.clock.seconds
        pods = {0, 1}
        for step, number in [*steps, ("look", 0)]:
            buffer = cluster.proxies.buffers[IPS[number]] if number in (0, 1, 2) else Buffer()
            body = cluster.api.get(KIND, "events")
            match step:
                case "time passes":
                    cluster.clock.seconds += number
                    passed_s += number
                case "the wall's clock jumps":
                    cluster.clock.skew_s += number
                case "rows come" if not buffer.draining and number in pods:
                    buffer.rows += 3
                case "rows are delivered":
                    buffer.rows = 0
                case "silence" | "an answer again":
                    buffer.answers = step != "silence"
                case "the drain is cancelled":
                    buffer.draining = False
                case "a new pod" if number not in pods:
                    pods.add(number)
                    sets = cluster.api.get("ReplicaSet", "events-1")
                    cluster.pod("events-1-2", sets, labels=selector_labels("events"), ip=IPS[number], **RUNNING)
                case "restart":
                    cluster.restart()
                case "the API server fails":
                    cluster.api.fail(number)
                case "Drop" | "Keep":
                    drain = {"deadlineSeconds": deadline_s, "onDeadline": step}
                    cluster.api.put({**body, "spec": {**body["spec"], "drain": drain}})
                case "now":
                    cluster.api.put(
                        {**body, "metadata": {**body["metadata"], "annotations": {DELETE_ANNOTATION: "now"}}}
                    )
                case "look":
                    with suppress(KubeError):
                        await cluster.reconciler.reconcile(Key("shop", "events"))
            if cluster.gone():
                spec, annotations = body["spec"], body["metadata"]["annotations"]
                dropped = spec["drain"]["onDeadline"] == "Drop" and passed_s - began_s >= deadline_s
                held = sum(cluster.proxies.buffers[IPS[pod]].rows for pod in pods)
                assert held == 0 or dropped or DELETE_ANNOTATION in annotations
                return
