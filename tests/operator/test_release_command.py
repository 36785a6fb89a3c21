"""`release`: the operator is stopped first, then its finalizers are removed, and nothing else is."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from tests.operator.clusters import TRIES
from tests.operator.resources import operator_settings

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import API_VERSION, KIND, finalizer
from tinybird_proxy_operator.release_command import CONFIGURATION_STATUS, LOOK_S, STOP_TIMEOUT_S, release, release_all
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.upgrades import HALF_WAY

OURS, THEIRS = finalizer(""), "example.com/theirs"
OPERATOR = "tinybird-proxy-operator"
HERE = "tinybird-system"
LABELS = {"app.kubernetes.io/name": OPERATOR}


def proxy(api: FakeApi, name: str = "events", namespace: str = "shop", *finalizers: str, **metadata: Any) -> None:
    given = {"name": name, "namespace": namespace, "finalizers": list(finalizers or (OURS,)), **metadata}
    api.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": given, "spec": {"replicas": 1}})


def installed(api: FakeApi) -> None:
    """The operator, with a pod."""
    api.put({"kind": "Deployment", "metadata": {"name": OPERATOR, "namespace": HERE}, "spec": {"replicas": 2}})
    pod = {"name": f"{OPERATOR}-1", "namespace": HERE, "labels": LABELS}
    api.put({"kind": "Pod", "metadata": pod, "spec": {}, "status": {"phase": "Running"}})


class Run:
    """The command with an operator that stops after so many looks."""

    def __init__(self, api: FakeApi, kube: Kube) -> None:
        self.api = api
        self.kube = kube
        self.slept: list[float] = []
        self.said: list[str] = []
        self.while_waiting: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.while_waiting()

    async def __call__(self, deployment: str = OPERATOR, **env: str) -> list[str]:
        return await release_all(
            self.kube, operator_settings(**env), deployment, sleep=self.sleep, say=self.said.append
        )

    def finalizers(self, name: str = "events", namespace: str = "shop") -> list[str]:
        found: list[str] = self.api.get(KIND, name, namespace)["metadata"].get("finalizers", [])
        return found


@pytest.fixture
def run(api: FakeApi, kube: Kube) -> Run:
    return Run(api, kube)


async def test_the_operator_is_stopped_before_the_first_finalizer_is_removed(api: FakeApi, run: Run) -> None:
    installed(api)
    proxy(api)

    def end() -> None:
        assert run.finalizers() == [OURS]
        assert api.get("Deployment", OPERATOR, HERE)["spec"]["replicas"] == 0
        api.remove("Pod", f"{OPERATOR}-1", HERE)

    run.while_waiting = end
    assert await run() == []
    assert (run.slept, run.finalizers()) == ([LOOK_S], [])
    assert run.said[-1] == "1 of 1 TinybirdProxies were released; they stay, and so does what they run."


async def test_an_operator_that_does_not_end_keeps_every_finalizer_and_is_named(api: FakeApi, run: Run) -> None:
    installed(api)
    proxy(api)
    problem, _ = await run()
    assert f"{OPERATOR}-1 in {HERE}" in problem
    assert sum(run.slept) == STOP_TIMEOUT_S
    assert run.finalizers() == [OURS]


async def test_a_pod_that_has_ended_is_not_waited_for(api: FakeApi, run: Run) -> None:
    installed(api)
    api.put({**api.get("Pod", f"{OPERATOR}-1", HERE), "status": {"phase": "Failed"}})
    assert await run() == []
    assert run.slept == []


async def test_what_others_have_put_there_stays_and_nothing_else_is_written(api: FakeApi, run: Run) -> None:
    proxy(api, "mixed", "shop", THEIRS, OURS, finalizer("blue"))
    proxy(api, "free", "shop", THEIRS)
    assert await run() == []
    assert run.finalizers("mixed") == [THEIRS, finalizer("blue")]
    assert [path for _, path in api.writes] == [
        "/apis/tinybird-proxy.io/v1alpha1/namespaces/shop/tinybirdproxies/mixed"
    ]
    assert api.get(KIND, "mixed")["spec"] == {"replicas": 1}
    api.asked.clear()
    assert await run() == []
    assert api.writes == []


async def test_only_the_finalizer_of_its_own_class_is_removed(api: FakeApi, run: Run) -> None:
    proxy(api, "events", "shop", OURS, finalizer("blue"))
    assert await run(CONTROLLER_CLASS="blue") == []
    assert run.finalizers() == [OURS]


async def test_only_the_watched_namespaces_are_looked_at(api: FakeApi, run: Run) -> None:
    for namespace in ("team-a", "team-b", "team-c"):
        proxy(api, "events", namespace)
    assert await run(WATCH_NAMESPACES="team-a,team-b") == []
    assert [run.finalizers("events", name) for name in ("team-a", "team-b", "team-c")] == [[], [], [OURS]]
    assert not [asked for asked in api.asked if asked.path.endswith("/v1alpha1/tinybirdproxies")]


async def test_a_watched_namespace_that_is_gone_keeps_nothing_back(api: FakeApi, run: Run) -> None:
    proxy(api, "events", "team-b")
    api.fail(403, path="/namespaces/team-a/", times=9)
    assert await run(WATCH_NAMESPACES="team-a,team-b") == []
    assert run.finalizers("events", "team-b") == []
    assert [text for text in run.said if text.startswith("Namespace team-a was passed over, and should be gone: ")]


async def test_what_may_not_be_read_at_all_is_told(api: FakeApi, run: Run) -> None:
    api.fail(403, path="/tinybirdproxies", times=9)
    [problem, what_now] = await run()
    assert problem.startswith("Nothing was released: ")
    assert "kubectl scale" in what_now


async def test_without_an_operator_a_crd_or_a_resource_it_is_done_at_once(api: FakeApi, run: Run) -> None:
    assert await run() == []
    del api.kinds[KIND]
    assert await run("") == []
    assert await run(WATCH_NAMESPACES="team-a") == []
    assert (api.writes, run.slept) == ([], [])


async def test_a_resource_that_is_being_deleted_goes_and_its_rows_are_told(api: FakeApi, run: Run) -> None:
    proxy(api, deletionTimestamp="2026-01-01T00:00:00Z")
    api.put({**api.get(KIND, "events"), "status": {"buffer": {"rows": 1200}}})
    assert await run() == []
    assert api.names(KIND) == []
    assert "1,200 rows at the last look" in run.said[0]


async def test_a_resource_that_changes_meanwhile_is_read_again(api: FakeApi, run: Run) -> None:
    proxy(api)
    api.fail(409, method="PATCH", times=2)
    assert await run() == []
    assert run.finalizers() == []


async def test_what_could_not_be_released_is_named_and_the_others_are_released(api: FakeApi, run: Run) -> None:
    proxy(api, "a")
    proxy(api, "b")
    api.fail(403, method="PATCH", path="tinybirdproxies/a", message="no right")
    problem, _ = await run()
    assert problem.startswith(f"shop/a keeps the finalizer {OURS}: ")
    assert problem.endswith("no right")
    assert (run.finalizers("a"), run.finalizers("b")) == ([OURS], [])


async def test_one_that_goes_meanwhile_is_no_problem(api: FakeApi, run: Run) -> None:
    proxy(api)
    api.fail(404, method="PATCH")
    assert await run() == []


async def test_an_api_server_that_fails_is_told(api: FakeApi, run: Run) -> None:
    proxy(api)
    api.fail(500, method="GET", times=TRIES)
    (problem, what_now) = await run()
    assert problem.startswith("Nothing was released: ")
    assert "The operator is stopped" in what_now
    assert run.finalizers() == [OURS]


def test_wrong_settings_are_told_with_every_problem() -> None:
    done = CliRunner().invoke(release, env={"POD_NAMESPACE": "", "OPERATOR_POD_LABELS": "x"})
    assert done.exit_code == CONFIGURATION_STATUS
    assert "POD_NAMESPACE" in done.output
    assert "OPERATOR_POD_LABELS" in done.output


async def test_the_process_releases_and_says_so_by_its_exit_status(api: FakeApi, tmp_path: Any) -> None:
    proxy(api)
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(api.kubeconfig())
    env = {"POD_NAMESPACE": HERE, "OPERATOR_POD_LABELS": f"app.kubernetes.io/name={OPERATOR}"}
    env |= {"KUBECONFIG": str(kubeconfig), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    command = "from tinybird_proxy_operator.release_command import release; release()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, env=env, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode().splitlines()[0]) == (0, "shop/events: released")
    assert api.get(KIND, "events")["metadata"]["finalizers"] == []


async def test_of_a_resource_that_goes_and_whose_pods_do_not_answer_it_is_told_that_nobody_knows(
    api: FakeApi, run: Run
) -> None:
    proxy(api, deletionTimestamp="2026-01-01T00:00:00Z")
    api.put({**api.get(KIND, "events"), "status": {"observedGeneration": 1}})
    assert await run() == []
    assert "what its pods hold is not known" in run.said[0]


async def test_a_rollout_that_stands_half_way_is_told_for_nobody_lets_it_go_on(api: FakeApi, run: Run) -> None:
    proxy(api)
    held = f"{HALF_WAY}: 7 rows wait."
    api.put({**api.get(KIND, "events"), "status": {"conditions": [{"type": "Progressing", "message": held}]}})
    assert await run() == []
    assert "its rollout stands half-way, because rows wait in old pods, and goes on when" in run.said[0]
