"""What is read for a review, and what comes of what is there, or not."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.operator.injection_cases import CASES, Case
from tests.operator.injection_pods import SIDECAR, SIDECARS, injected, patched, pod, why_not
from tests.operator.webhooks import namespace, resource, review

from tinybird_proxy_operator.kube import Kube, kubernetes_connection
from tinybird_proxy_operator.names import INJECT_LABEL
from tinybird_proxy_operator.sidecars.injection import chosen
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.served import kubeconfig
from tinybird_proxy_operator.webhook.injector import Injector, Outcome, Result
from tinybird_proxy_operator.webhook.review import read


@pytest.fixture
def shop(api: FakeApi) -> FakeApi:
    """A namespace with all the TinybirdProxies of the table."""
    api.put(namespace())
    for name, sidecar in SIDECARS.items():
        api.put(resource(name, sidecar))
    return api


async def outcome(kube: Kube, given: Any, **request: Any) -> Outcome:
    return await Injector(kube).outcome(read(json.dumps(review(given, **request)).encode()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_each_pod_of_the_table_gets_what_injection_says(shop: FakeApi, kube: Kube, case: Case) -> None:
    shop.put(namespace(**dict(case.namespace or {})))
    found = await outcome(kube, case.pod)
    assert patched(case.pod, found.operations) == injected(case.pod, case.namespace)
    if (said := why_not(case.pod, case.namespace)) is not None and found.result != Result.NOT_ASKED:
        assert (found.result, found.why_not) == (Result.REFUSED, said)
    asks = chosen(case.pod["metadata"].get("labels"), case.namespace) is not None
    assert asks or found.result == Result.NOT_ASKED


async def test_a_pod_with_a_label_is_not_worth_a_look_at_its_namespace(shop: FakeApi, kube: Kube) -> None:
    assert (await outcome(kube, pod())).result == Result.INJECTED
    assert [asked.path for asked in shop.asked] == [
        "/apis/tinybird-proxy.io/v1alpha1/namespaces/shop/tinybirdproxies/events"
    ]


async def test_a_namespace_that_asks_gives_its_pods_sidecars_but_those_that_want_none(
    shop: FakeApi, kube: Kube
) -> None:
    shop.put(namespace(**{INJECT_LABEL: "events"}))
    assert (await outcome(kube, pod(asks=None))).result == Result.INJECTED
    assert (await outcome(kube, pod(asks="false"))).result == Result.NOT_ASKED


async def test_a_resource_that_was_made_this_moment_counts(shop: FakeApi, kube: Kube) -> None:
    injector, asked = Injector(kube), read(json.dumps(review(pod(asks="new"))).encode())
    assert (await injector.outcome(asked)).result == Result.NO_RESOURCE
    shop.put(resource("new"))
    assert (await injector.outcome(asked)).result == Result.INJECTED
    shop.put(resource("new", {**SIDECAR, "hash": "22222222"}))
    assert "22222222" in json.dumps((await injector.outcome(asked)).operations)


@pytest.mark.parametrize(
    ("asks", "result", "sentence"),
    [
        (
            "missing",
            Result.NO_RESOURCE,
            "there is no TinybirdProxy missing in namespace shop; make it, or have none by",
        ),
        (
            "waiting",
            Result.NOT_RENDERED,
            "TinybirdProxy waiting gives none; see whether it has mode Sidecar and is ready",
        ),
        ("Not_A.Name", Result.NO_RESOURCE, "there is no TinybirdProxy Not_A.Name in namespace shop"),
        ("..", Result.NO_RESOURCE, "there is no TinybirdProxy .. in namespace shop"),
    ],
)
async def test_who_gets_none_is_told_why(shop: FakeApi, kube: Kube, asks: str, result: Result, sentence: str) -> None:
    found = await outcome(kube, pod(asks=asks))
    assert (found.result, found.operations) == (result, [])
    assert str(found.why_not).startswith(sentence)


async def test_a_name_that_no_resource_can_have_is_not_asked_for(shop: FakeApi, kube: Kube) -> None:
    await outcome(kube, pod(asks="../../../secrets"))
    assert shop.asked == []


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (
            403,
            "the webhook may not read what it needs; its log says more; make the pod again, or have none by the label",
        ),
        (503, "the API server could not be asked; make the pod again"),
        (0, "the API server could not be asked; make the pod again"),
    ],
)
async def test_a_read_that_fails_lets_the_pod_in_and_is_told_once(
    shop: FakeApi, kube: Kube, status: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    injector, asked = Injector(kube), read(json.dumps(review(pod())).encode())
    shop.fail(status, times=1000)
    for _ in range(3):
        found = await injector.outcome(asked)
        assert (found.result, found.operations) == (Result.NOT_READ, [])
        assert str(found.why_not).startswith(sentence)
    assert len(caplog.records) == 1
    shop.heal()
    assert (await injector.outcome(asked)).result == Result.INJECTED
    shop.fail(status, times=1000)
    await injector.outcome(asked)
    assert len(caplog.records) == 2


async def test_an_api_server_that_does_not_answer_is_waited_for_in_vain_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    async def say_nothing(request: web.BaseRequest) -> web.Response:
        await gone.wait()
        return web.Response()

    runner = web.ServerRunner(web.Server(say_nothing), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "kubeconfig"
    path.write_text(kubeconfig(f"http://127.0.0.1:{runner.addresses[0][1]}"))
    async with kubernetes_connection(str(path)) as kube, asyncio.timeout(2):
        found = await Injector(kube, timeout_s=0.2).outcome(read(json.dumps(review(pod())).encode()))
    gone.set()
    await runner.cleanup()
    assert found.result == Result.NOT_READ
    assert str(found.why_not).startswith("the API server did not answer within 0.2 s; make the pod again")


async def test_a_namespace_that_is_gone_lets_the_pod_in(shop: FakeApi, kube: Kube) -> None:
    shop.remove("Namespace", "shop", "")
    assert (await outcome(kube, pod(asks=None))).result == Result.NOT_READ
