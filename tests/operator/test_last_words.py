"""The proxy's last words, as the proxy writes them, and the pods in which they are found."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tinybird_proxy.app.last_words import LastWords as ProxysLastWords
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, hang, unreachable
from tinybird_proxy.testing.pipelines import Client, Setup, numbered
from tinybird_proxy_operator.last_words import Ended, LastWords, ended, read, untold

STOPPED = "3 rows lost, 1 of them may have arrived; hits: 3 rows, no connection"
AT, LATER = "2026-01-01T00:00:10Z", "2026-01-01T00:01:00Z"


async def written(tmp_path: Path, answer: Script, *, rows: int = 3, data_sources: int = 1) -> tuple[str, str]:
    """What a stopping proxy with so many rows of each data source writes: while it delivers, and at its end."""
    (message := tmp_path / "termination-log").touch()
    tinybird = FakeUpstream()
    async with Setup().pipeline(tinybird).running() as pipeline:
        clients = [Client(pipeline, f"data_source_{n}") for n in range(data_sources)]
        for client in clients:
            await client.confirm()
        tinybird.will(then=answer)
        for client in clients if rows else ():
            assert client.offer(numbered(range(rows))) is None
        await asyncio.sleep(2)
        deadline = pipeline.surroundings.now() + 10
        words = ProxysLastWords(pipeline, message, deadline=deadline)
        await pipeline.drain(deadline, stop_now=asyncio.Event(), report=words.at_risk)
        at_risk = message.read_text()
    words.farewell()
    return at_risk, message.read_text()


def told(text: str) -> tuple[int, int, int, bool]:
    words = read(text)
    assert words is not None, text
    return words.rows, words.in_doubt_rows, words.dead_letter_rows, words.still_delivering


@pytest.mark.looptime(idle_timeout=1)
@pytest.mark.parametrize(
    ("answer", "rows", "data_sources", "at_risk", "at_the_end"),
    [
        pytest.param(200, 0, 1, (0, 0, 0, True), (0, 0, 0, False), id="nothing there"),
        pytest.param(200, 5, 2, (0, 0, 0, True), (0, 0, 0, False), id="delivered"),
        pytest.param(unreachable(), 1, 1, (1, 1, 0, True), (1, 0, 0, False), id="one row"),
        pytest.param(unreachable(), 1234, 1, (1234, 1234, 0, True), (1234, 0, 0, False), id="thousands"),
        pytest.param(403, 2, 3, (6, 6, 0, True), (6, 0, 0, False), id="held"),
        pytest.param(hang(), 4000, 2, (8000, 8000, 0, True), (8000, 8000, 0, False), id="in flight"),
        pytest.param(422, 1500, 1, (0, 0, 1500, True), (0, 0, 1500, False), id="dead letters"),
        pytest.param(unreachable(), 2, 300, (600, 600, 0, True), (600, 0, 0, False), id="many data sources"),
    ],
)
async def test_what_the_proxy_writes_is_read_as_it_was_meant(
    answer: Script,
    rows: int,
    data_sources: int,
    at_risk: tuple[int, int, int, bool],
    at_the_end: tuple[int, int, int, bool],
    tmp_path: Path,
) -> None:
    first, last = await written(tmp_path, answer, rows=rows, data_sources=data_sources)
    assert (told(first), told(last)) == (at_risk, at_the_end)
    assert told(first[:200]) == at_risk, "Kubernetes may leave no more of it where a pod has many containers"
    assert told(last[:200]) == at_the_end


@pytest.mark.looptime(idle_timeout=1)
async def test_why_is_told_in_the_proxys_words(tmp_path: Path) -> None:
    for text in await written(tmp_path, unreachable()):
        words = read(text)
        assert words is not None
        assert words.why.startswith("data_source_0: ")
        assert "connection refused" in words.why


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"level":"info","message":"stopped"}\n3 rows lost\n',
        "Traceback (most recent call last):\n  3 rows lost",
        "The container could not be located when the pod was deleted.",
        "3 rows lost by somebody else",
        "-3 rows lost",
        "1234 rows lost",
        "9,999,999,999,999,999 rows lost",
        "٣ rows lost",
    ],
)
def test_what_is_not_the_proxys_word_is_none(text: str) -> None:
    assert read(text) is None


def terminated(message: str | None, at: str | None = AT) -> dict[str, Any]:
    return {"terminated": {"exitCode": 1, "finishedAt": at, "message": message}}


def container(name: str, *, state: Mapping[str, Any] | None = None, last: Mapping[str, Any] | None = None) -> Any:
    return {"name": name, "state": state or {"running": {}}, "lastState": last or {}}


def deployment_pod(*containers: Any, **metadata: Any) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "events-5d8f", "uid": "r", "controller": True}
    own = {"name": "events-5d8f-abcde", "namespace": "shop", "uid": "u1", "ownerReferences": [owner]}
    labels = {"tinybird-proxy.io/proxy": "events"}
    return {"metadata": {**own, "labels": labels, **metadata}, "status": {"containerStatuses": list(containers)}}


def app_pod(*containers: Any, **metadata: Any) -> dict[str, Any]:
    own = {"name": "web-0", "namespace": "shop", "uid": "u2", "labels": {"tinybird-proxy.io/injected": "side"}}
    annotations = {"tinybird-proxy.io/sidecar-hash": "1a2b3c4d"}
    status = {"initContainerStatuses": list(containers), "containerStatuses": [container("web")]}
    return {"metadata": {**own, "annotations": annotations, **metadata}, "status": status}


def test_the_words_of_a_deployments_pod_are_those_of_its_proxy() -> None:
    other = container("proxy-not", state=terminated(STOPPED))
    [found] = ended(deployment_pod(other, container("proxy", state=terminated(f"{STOPPED}\n"))))
    words = LastWords(
        rows=3, in_doubt_rows=1, dead_letter_rows=0, still_delivering=False, why="hits: 3 rows, no connection"
    )
    assert found == Ended(
        proxy="events", pod="events-5d8f-abcde", uid="u1", container="proxy", at=AT, words=words, sidecar=False
    )


def test_the_words_of_an_apps_pod_are_those_of_its_sidecar() -> None:
    [found] = ended(
        app_pod(container("setup", state=terminated(STOPPED)), container("tinybird-proxy", last=terminated(STOPPED)))
    )
    assert (found.proxy, found.pod, found.container, found.sidecar) == ("side", "web-0", "tinybird-proxy", True)


def test_a_container_that_ended_twice_has_two_last_words() -> None:
    both = container("proxy", last=terminated(STOPPED), state=terminated("0 rows lost", LATER))
    assert [(each.at, each.words.rows) for each in ended(deployment_pod(both))] == [(AT, 3), (LATER, 0)]


@pytest.mark.parametrize(
    "pod",
    [
        deployment_pod(container("proxy")),
        deployment_pod(container("proxy", state=terminated(None))),
        deployment_pod(container("proxy", state=terminated(STOPPED, None))),
        deployment_pod(container("proxy", state=terminated(STOPPED, "yesterday"))),
        deployment_pod(container("proxy", state={"terminated": {"reason": "OOMKilled", "exitCode": 137}})),
        deployment_pod(container("proxy", state=terminated(STOPPED)), ownerReferences=[]),
        deployment_pod(container("proxy", state=terminated(STOPPED)), name="other"),
        deployment_pod(container("proxy", state=terminated(STOPPED)), labels={"tinybird-proxy.io/proxy": "other"}),
        app_pod(container("tinybird-proxy", state=terminated(STOPPED)), annotations={}),
        app_pod(container("tinybird-proxy", state=terminated(STOPPED)), labels=None),
        {"metadata": {"name": "x"}},
        {"metadata": {"name": "x", "labels": {"tinybird-proxy.io/injected": "side"}, "annotations": None}},
    ],
)
def test_a_pod_that_says_nothing_or_is_not_made_like_ours_has_no_last_words(pod: Any) -> None:
    assert ended(pod) == []


@pytest.mark.parametrize(
    ("state", "told_nothing"),
    [
        ({"running": {}}, True),  # removed by force, or with its node
        ({"terminated": {"exitCode": 137, "finishedAt": AT}}, True),
        ({"terminated": {"exitCode": 137, "finishedAt": AT, "message": STOPPED}}, False),
        ({"terminated": {"exitCode": 0, "finishedAt": AT, "message": "0 rows lost"}}, False),
        ({"terminated": {"exitCode": 0, "finishedAt": AT}}, False),
        ({"waiting": {"reason": "PodInitializing"}}, False),
    ],
)
def test_a_proxy_that_is_gone_without_a_word_is_known(state: dict[str, Any], told_nothing: bool) -> None:
    assert untold(deployment_pod(container("proxy", state=state))) == (["events"] if told_nothing else [])
    assert untold(app_pod(container("tinybird-proxy", state=state))) == (["side"] if told_nothing else [])
    assert untold(app_pod(container("setup", state=state))) == []
