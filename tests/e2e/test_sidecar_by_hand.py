"""The README's sidecar by hand: as printed, but for the address, the app and its image."""

import json
from typing import Any, Final

import pytest
import yaml
from tests.e2e import sidecar_pods
from tests.e2e.kubectl import Namespace, run, token_secret, until
from tests.test_readme import blocks

SIDECAR: Final = "tinybird-proxy"
ACCOUNT_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
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


def printed(namespace: Namespace, *arguments: str, shutdown_timeout: str = "25s") -> dict[str, Any]:
    """The README's pod with sidecar_app.py as its app."""
    [block] = blocks("yaml sidecar")
    text = "\n".join(block)
    for there, here in (
        ("https://api.tinybird.co", namespace.tinybird_url),
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
    """The name of the one pod of a Deployment, which is ready, and of which nobody was warned."""
    namespace.apply(sidecar_pods.app_script())
    workload = yaml.safe_dump(sidecar_pods.deployment(pod))
    namespace.kubectl("apply", "--filename", "-", "--warnings-as-errors", stdin=workload)
    namespace.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
    return sidecar_pods.the_pod(namespace)


def in_shell(namespace: Namespace, command: str, pod: str) -> str:
    """What a command of the README prints."""
    command = command.replace("kubectl ", f"kubectl --namespace {namespace.name} ", 1)
    return run("env", f"POD={pod}", f"NAMESPACE={namespace.name}", "bash", "-c", command)


def test_a_deployment_delivers_an_init_container_can_already_send_and_the_pods_account_is_hidden(
    namespace: Namespace,
) -> None:
    run("kubectl", "label", "namespace", namespace.name, "pod-security.kubernetes.io/warn=restricted")
    pod = printed(namespace, "app")
    early = sidecar_pods.app("init", "--count", "3", name="early", env=pod["containers"][0]["env"])
    pod["initContainers"].append(early)
    # What is not ours keeps to the standard here, so that any warning would be about the sidecar.
    for each in (early, *pod["containers"]):
        each["securityContext"] = pod["initContainers"][0]["securityContext"]
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
    for container, empty in (("app", False), (SIDECAR, True)):
        there = namespace.kubectl("exec", name, "--container", container, "--", "ls", ACCOUNT_DIR)
        assert (there == "") is empty, container


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
