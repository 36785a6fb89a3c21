"""The README's sidecar by hand: as printed, but for the address, the app and its image."""

import json
from typing import Any, Final

import pytest
import yaml
from tests.e2e import sidecar_pods
from tests.e2e.kubectl import Namespace, run, token_secret, until
from tests.test_readme import blocks

SIDECAR: Final = "tinybird-proxy"
# Run beside the app: rows that hardly compress until there is no room, then compressed bodies, as large as is allowed.
_FILL_UP: Final = """
import base64, gzip, http.client, json, os, threading
from collections import Counter

def post(body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", 18000, timeout=60)
    try:
        connection.request("POST", "/v0/events?name=events", body, headers)
        response = connection.getresponse()
        said = response.read()
        if b"buffer is full" in said:
            return "full"
        return "too many at once" if b"too many large uploads" in said else str(response.status)
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()

def row(number):
    return json.dumps({"id": f"full-{number}", "text": base64.b64encode(os.urandom(500)).decode()})

rows, compressed = Counter(), Counter()
while not set(rows) - {"202"}:
    rows[post("\\n".join(map(row, range(100))))] += 1
text = "\\n".join(map(row, range(17000)))
filler = "\\n" + json.dumps({"text": "x" * 1000})
text += filler * ((15_999_000 - len(text)) // len(filler))
large = gzip.compress(text.encode(), 1)
assert 8_500_000 < len(large) < 10_000_000 and 15_800_000 < len(text) < 16_000_000, (len(large), len(text))

def post_large():
    for _ in range(10):
        compressed[post(large, **{"Content-Encoding": "gzip"})] += 1

threads = [threading.Thread(target=post_large) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"rows": rows, "compressed": compressed}))
"""


def printed(namespace: Namespace, *arguments: str, grace_s: int = 30, shutdown_timeout: str = "25s") -> dict[str, Any]:
    """The README's pod with sidecar_app.py as its app."""
    [block] = blocks("yaml sidecar")
    text = "\n".join(block)
    for there, here in (
        ("https://api.tinybird.co", namespace.tinybird_url),
        ("terminationGracePeriodSeconds: 30", f"terminationGracePeriodSeconds: {grace_s}"),
        ("value: 25s", f"value: {shutdown_timeout}"),
    ):
        assert text.count(there) == 1, there
        text = text.replace(there, here)
    pod: dict[str, Any] = yaml.safe_load(text)
    [app] = pod["containers"]
    assert app.pop("image") == "your-app"
    pod["containers"] = [sidecar_pods.app(*arguments, **app)]
    pod["volumes"].append(sidecar_pods.app_volume())
    return pod


def ready(namespace: Namespace, pod: dict[str, Any]) -> str:
    """The name of the one pod of a Deployment, which is ready."""
    namespace.apply(sidecar_pods.app_script(), sidecar_pods.deployment(pod))
    namespace.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
    return sidecar_pods.the_pod(namespace)


def in_shell(namespace: Namespace, command: str, pod: str) -> str:
    """What a command of the README prints."""
    command = command.replace("kubectl ", f"kubectl --namespace {namespace.name} ", 1)
    return run("env", f"POD={pod}", f"NAMESPACE={namespace.name}", "bash", "-c", command)


def test_a_deployment_delivers_and_an_init_container_after_the_sidecar_can_already_send(namespace: Namespace) -> None:
    pod = printed(namespace, "app")
    early = sidecar_pods.app("init", "--count", "3", name="early", env=pod["containers"][0]["env"])
    pod["initContainers"].append(early)
    namespace.apply(token_secret())
    name = ready(namespace, pod)
    assert sidecar_pods.accepted(namespace, name, "early") == ["init-1", "init-2", "init-3"]
    until("some rows with a 2xx", lambda: len(sidecar_pods.accepted(namespace, name)) > 20)
    namespace.until_arrived("init-1", "init-2", "init-3", *sidecar_pods.accepted(namespace, name))
    said = [in_shell(namespace, command, name) for command in blocks("sh sidecar")[0]]
    assert len(said) == 3
    assert "All is well." in said[0]
    assert said[1] == ""  # it has not ended yet
    assert said[2] == "There are no dead letters.\n"


def test_a_job_completes_and_exactly_what_it_sent_has_arrived(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar_pods.app_script())
    namespace.apply(sidecar_pods.job(printed(namespace, "job", "--count", "200", "--rate", "200")))
    namespace.kubectl("wait", "--for=condition=Complete", "--timeout=80s", "job/app")
    ids = [f"job-{number}" for number in range(1, 201)]
    assert sidecar_pods.accepted(namespace, sidecar_pods.the_pod(namespace)) == ids
    # The Job is complete when the sidecar has ended, too.
    assert sorted(namespace.rows()) == sorted(ids)


def test_a_job_completes_without_tinybird_too_and_the_sidecar_tells_what_was_lost(namespace: Namespace) -> None:
    namespace.apply(token_secret(), sidecar_pods.app_script())
    namespace.faults({"status": 503})
    namespace.apply(sidecar_pods.job(printed(namespace, "lost", "--count", "7", shutdown_timeout="3s"), "lost"))
    namespace.kubectl("wait", "--for=condition=Complete", "--timeout=60s", "job/lost")
    name = sidecar_pods.the_pod(namespace, "lost")
    assert len(sidecar_pods.accepted(namespace, name)) == 7
    assert "7 rows" in in_shell(namespace, blocks("sh sidecar")[0][1], name)
    assert namespace.rows() == []


def test_each_row_with_a_2xx_arrives_when_a_pod_is_deleted_under_load(namespace: Namespace) -> None:
    namespace.apply(token_secret())
    name = ready(namespace, printed(namespace, "load", "--rate", "300"))
    with sidecar_pods.followed(namespace, name) as log:
        until("load", lambda: len(sidecar_pods.accepted(namespace, name)) > 300)
        namespace.kubectl("delete", "deployment", "app", "--wait=false")
    assert "# SIGTERM: end" in log
    sidecar_pods.all_arrive(namespace, sidecar_pods.accepted_ids(log), at_least=300)


def test_each_row_with_a_2xx_arrives_though_the_app_goes_on_until_it_is_killed(namespace: Namespace) -> None:
    namespace.apply(token_secret())
    name = ready(namespace, printed(namespace, "late", "--rate", "100", "--on-sigterm", "ignore", grace_s=5))
    with sidecar_pods.followed(namespace, name) as log:
        until("load", lambda: len(sidecar_pods.accepted(namespace, name)) > 100)
        namespace.kubectl("delete", "deployment", "app", "--wait=false")
    after = log[log.index("# SIGTERM: ignore") :]
    # kubelet tells the sidecar to stop in the moment in which it kills the app, which may see a last answer.
    assert len([line for line in after if line.startswith("# late-")]) <= 2, "the proxy ended before the app"
    assert len(after) > 200
    sidecar_pods.all_arrive(namespace, sidecar_pods.accepted_ids(log), at_least=300)


def test_without_the_secret_the_app_runs_and_its_rows_wait_for_it(namespace: Namespace) -> None:
    name = ready(namespace, printed(namespace, "app"))
    until("some rows with a 2xx", lambda: len(ids := sidecar_pods.accepted(namespace, name)) > 20 and ids)
    assert namespace.rows() == []
    namespace.apply(token_secret())
    ids = sidecar_pods.accepted(namespace, name)
    # kubelet brings the Secret within a minute or so, and the proxy looks at the file every few seconds.
    sidecar_pods.all_arrive(namespace, ids, at_least=20, timeout_s=120)


def test_the_sidecar_keeps_to_the_restricted_standard_and_cannot_use_the_pods_account(namespace: Namespace) -> None:
    run("kubectl", "label", "namespace", namespace.name, "pod-security.kubernetes.io/warn=restricted")
    namespace.apply(token_secret())
    pod = printed(namespace, "app")
    # The app's part of the pod is not ours: it keeps to the standard here, so that any warning is the sidecar's.
    pod["containers"][0]["securityContext"] = pod["initContainers"][0]["securityContext"]
    namespace.apply(sidecar_pods.app_script())
    said = namespace.kubectl(
        "apply", "--filename", "-", "--warnings-as-errors", stdin=yaml.safe_dump(sidecar_pods.deployment(pod))
    )
    assert "created" in said
    namespace.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
    name = sidecar_pods.the_pod(namespace)
    directory = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert namespace.kubectl("exec", name, "--container", "app", "--", "ls", directory).split()
    assert namespace.kubectl("exec", name, "--container", SIDECAR, "--", "ls", directory) == ""


@pytest.mark.timeout(240)
def test_a_full_buffer_and_large_bodies_fit_into_the_memory_that_the_readme_gives_the_sidecar(
    namespace: Namespace,
) -> None:
    namespace.apply(token_secret())
    name = ready(namespace, printed(namespace, "app", "--rate", "1"))
    namespace.until_arrived("app-1")
    namespace.faults({"status": 503})
    said = json.loads(
        namespace.kubectl("exec", name, "--container", "app", "--", "python", "-c", _FILL_UP, timeout_s=120)
    )
    assert said["rows"].keys() == {"202", "full"}, said
    # One is inflated and checked before it hears that there is no room; no more than that are taken in at a time.
    assert said["compressed"].keys() == {"full", "too many at once"}, said
    status = json.loads(in_shell(namespace, blocks("sh sidecar")[0][0], name))
    assert status["buffer"]["bytes"] > 60 * 2**20
    namespace.faults()
    rows = "import json, urllib.request as u; print(json.load(u.urlopen('http://127.0.0.1:18001/status'))['buffer']['rows'])"
    until(
        "few rows in the buffer",
        lambda: int(namespace.kubectl("exec", name, "--container", "app", "--", "python", "-c", rows)) < 10,
        timeout_s=100,
        every_s=1,
    )
    [sidecar, *_] = namespace.get("pod", name)["status"]["initContainerStatuses"]
    assert sidecar["restartCount"] == 0, sidecar
