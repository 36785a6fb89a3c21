"""The README's section on Kubernetes, run as printed on a cluster that has heard of none of it."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.e2e import sidecar_pods
from tests.e2e.conftest import LABEL
from tests.e2e.kubectl import OPERATOR, OPERATOR_NAMESPACE, TINYBIRD_TOKEN, Namespace, install_operator, run, until
from tests.test_readme import blocks, checkout

__all__ = ["checkout"]  # the fixture: the project's files as a new user has them

pytestmark = pytest.mark.alone

README_NAMESPACE: Final = "tinybird-proxy"
KIND: Final = "tinybirdproxies.tinybird-proxy.io"
TIMEOUT_S: Final = 240


def _changed(text: str, **changes: str) -> str:
    """The text with what a test must change; each printed once."""
    for printed, here in changes.items():
        assert text.count(printed) == 1, printed
        text = text.replace(printed, here)
    return text


def _installing(namespace: Namespace) -> str:
    """The block with what a test without Tinybird must change: the token, the address, and the leave to send there."""
    [block] = blocks("sh kubernetes")
    changes = {
        "p.your-append-token": TINYBIRD_TOKEN,
        "https://api.tinybird.co": namespace.tinybird_url,
        "--create-namespace": "--create-namespace --set 'allowedUpstreams={*.svc}'",
    }
    return _changed("\n".join(block), **changes)


def _operating(namespace: Namespace) -> tuple[str, str]:
    """The blocks on operating it, as one script, and the last one, on deleting."""
    *others, last = ("\n".join(block) for block in blocks("sh operations"))
    changes = {"p.your-new-token": TINYBIRD_TOKEN, "default/events": f"{namespace.name}/events"}
    return _changed("\n".join(others), **changes), last


def _sidecars(namespace: Namespace) -> str:
    """Both blocks on sidecars, as one script, for an app that is there and knows of no Tinybird yet."""
    waiting = 'until [ "$TINYBIRD_URL" ]; do sleep 600; done; exec python /app/app.py shop'
    app = sidecar_pods.app(command=["sh", "-c", waiting])
    pod = {"containers": [app], "volumes": [sidecar_pods.app_volume()]}
    namespace.apply(sidecar_pods.app_script(), sidecar_pods.deployment(pod, "shop"))
    script = "\n".join("\n".join(block) for block in blocks("sh sidecars"))
    return _changed(script, **{"https://api.tinybird.co": namespace.tinybird_url})


def _kubeconfig(namespace: Namespace, path: Path) -> Path:
    """Of the same cluster; its current namespace is the test's."""
    path.touch(mode=0o600)
    path.write_text(run("kubectl", "config", "view", "--raw", "--flatten", "--minify"))
    run("kubectl", "--kubeconfig", path, "config", "set-context", "--current", "--namespace", namespace.name)
    return path


def _bash(script: str, *, cwd: Path, env: dict[str, str]) -> str:
    """What the script prints. It ends with the first command that fails; after ``TIMEOUT_S``, with all it started."""
    command = ["bash", "-e", "-c", script]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdout=pipe, stderr=both, text=True, start_new_session=True
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=TIMEOUT_S)
        except BaseException:
            os.killpg(shell.pid, signal.SIGKILL)
            raise
    assert shell.returncode == 0, said
    return said


def _refuse_a_cluster_that_others_use() -> None:
    """The kind goes with every resource of it, and the README's namespace with all that is in it."""
    there = run("kubectl", "get", "namespace", README_NAMESPACE, "--ignore-not-found", "--output", "name")
    assert not there, f"{there.strip()} is there, and this test would delete it; delete it yourself if nobody needs it"
    ours = json.loads(run("kubectl", "get", "namespaces", "--selector", LABEL, "--output", "json"))["items"]
    resources = json.loads(run("kubectl", "get", KIND, "--all-namespaces", "--output", "json"))["items"]
    namespaces = {each["metadata"]["namespace"] for each in resources}
    others = sorted(namespaces - {each["metadata"]["name"] for each in ours})
    assert not others, f"this test would delete the TinybirdProxies in {', '.join(others)}"


def _forget_everything() -> None:
    run("helm", "uninstall", OPERATOR, "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "60s")
    run("kubectl", "delete", "customresourcedefinition", KIND, "--timeout=60s")


def _bring_back_the_operator_of_the_tests() -> None:
    where = ("--namespace", README_NAMESPACE)
    try:
        run("helm", "uninstall", OPERATOR, *where, "--ignore-not-found", "--wait", "--timeout", "60s")
        run("kubectl", "delete", "namespace", README_NAMESPACE, "--ignore-not-found", "--timeout=60s")
    finally:
        install_operator("--take-ownership")


@pytest.mark.timeout(360)
def test_the_commands_for_kubernetes_and_for_operating_it_work_as_printed(
    namespace: Namespace, checkout: Path, tmp_path: Path
) -> None:
    kubeconfig = _kubeconfig(namespace, tmp_path / "kubeconfig")
    # Without what kubectl remembers of this cluster: whoever follows the README is there for the first time.
    env = {**os.environ, "KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": str(tmp_path / "cache")}
    _refuse_a_cluster_that_others_use()
    try:
        _forget_everything()
        said = _bash(_installing(namespace), cwd=checkout, env=env)
        assert re.search(r"^NAME +MODE +READY ", said, re.MULTILINE), said
        assert re.search(r"^events +Deployment +True +2 ", said, re.MULTILINE), said
        # "Apps send rows to http://events/v0/events?name=… with the token in the Secret events-client."
        assert namespace.client("post", "http://events", namespace.client_token(), "readme") == [202]
        namespace.until_arrived("readme")
        pods, token = namespace.pods(), namespace.client_token()
        operating, deleting = _operating(namespace)
        said = _bash(operating, cwd=checkout, env=env)
        assert f"TinybirdProxy {namespace.name}/events: healthy" in said, said
        assert '"podsCurrent":2' in said, said
        assert "has been upgraded" in said, said
        until("another token for apps", lambda: namespace.client_token() != token, timeout_s=60)
        # Scaled down to one: it has gone, and none was replaced.
        until("one of the two", lambda: set(namespace.pods()) < set(pods), timeout_s=40)
        [autoscaling] = blocks("sh autoscaling")
        said = _bash("\n".join(autoscaling), cwd=checkout, env=env)
        assert re.search(r"^events +TinybirdProxy/events .* 2 +8 ", said, re.MULTILINE), said
        said = _bash(_sidecars(namespace), cwd=checkout, env=env)
        assert "1 pod has the sidecar as it is now." in said, said
        until("rows of the app", lambda: [each for each in namespace.rows() if each.startswith("shop-")])
        other = namespace.forwarding_to_tinybird() | {"metadata": {"name": "other"}}
        namespace.apply(other)
        namespace.wait_ready("other")
        pods = namespace.pods("other")
        _bash(deleting, cwd=checkout, env=env)
        assert [each["metadata"]["name"] for each in namespace.find("tbp")] == ["other", "sidecar"]
    finally:
        _bring_back_the_operator_of_the_tests()
    # "The CRD, the resources and what they run stay", and another release took the CRD over.
    namespace.until_condition("Ready", "True", "Ready", name="other")
    namespace.post("after", name="other")
    namespace.until_arrived("after")
    assert namespace.pods("other") == pods
