"""A changed URL or image is tried by a Job before any pod is replaced."""

from typing import Any

from tests.e2e.kubectl import Namespace, token_secret, until

IMAGE_THAT_IS_NOT = "ghcr.io/tinybird-proxy/tinybird-proxy:e2e-no-such-tag"


def _with_url(namespace: Namespace, url: str, **spec: Any) -> dict[str, Any]:
    return namespace.forwarding_to_tinybird(tinybird={"url": url, "tokenSecretRef": {"name": "tinybird"}}, **spec)


def _url_of_pods(namespace: Namespace) -> set[str]:
    """TINYBIRD_URL of every pod of the proxy."""
    pods = namespace.find("pods", "tinybird-proxy.io/proxy=events")
    env = [entry for pod in pods for entry in pod["spec"]["containers"][0]["env"]]
    return {entry["value"] for entry in env if entry["name"] == "TINYBIRD_URL"}


def test_a_first_install_is_not_held_and_a_wrong_url_fails_the_preflight_and_leaves_the_pods(
    namespace: Namespace,
) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    assert namespace.find("jobs") == []
    pods = namespace.pods()
    wrong = f"http://nowhere.{namespace.name}.svc:7181"
    namespace.apply(_with_url(namespace, wrong))
    message = namespace.until_condition("Progressing", "False", "PreflightFailed", timeout_s=40)
    assert f"nowhere.{namespace.name}.svc" in message, message
    assert "preflight: Disabled" in message
    assert namespace.pods() == pods
    assert _url_of_pods(namespace) == {namespace.tinybird_url}
    # Its pod is none of the proxy's, and no Service knows it.
    [pod] = namespace.find("pods", "tinybird-proxy.io/preflight=events")
    assert pod["metadata"]["name"] not in pods
    slices = namespace.find("endpointslices", "kubernetes.io/service-name=events")
    assert [len(each["endpoints"]) for each in slices] == [1]
    assert namespace.get("tinybirdproxy", "events")["status"]["replicas"] == 1
    # The number of pods is followed while the template is held.
    namespace.apply(_with_url(namespace, wrong, replicas=2))
    until("two pods", lambda: len(namespace.pods()) == 2)
    assert _url_of_pods(namespace) == {namespace.tinybird_url}
    namespace.wait_ready()
    namespace.post("meanwhile")
    namespace.until_arrived("meanwhile")
    # The right one, written otherwise than the one before, so that it is tried and the pods are replaced.
    namespace.apply(_with_url(namespace, f"{namespace.tinybird_url}/", replicas=2))
    until("two other pods", lambda: len(now := set(namespace.pods())) == 2 and not now & set(pods), timeout_s=60)
    namespace.until_condition("Progressing", "False", "UpToDate")
    until("no Job is left", lambda: namespace.find("jobs") == [])


def test_an_image_that_is_not_there_is_told_before_the_deadline_and_leaves_the_pods(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    namespace.apply(namespace.forwarding_to_tinybird(image=IMAGE_THAT_IS_NOT))
    message = namespace.until_condition("Progressing", "False", "PreflightFailed", timeout_s=40)
    assert "e2e-no-such-tag" in message, message
    assert namespace.pods() == pods
    namespace.apply(namespace.forwarding_to_tinybird())
    namespace.until_condition("Progressing", "False", "UpToDate")
    until("no Job is left", lambda: namespace.find("jobs") == [])
    assert namespace.pods() == pods


def test_a_refused_token_with_a_changed_url_fails_the_preflight_and_the_right_one_lets_it_out(
    namespace: Namespace,
) -> None:
    namespace.apply(token_secret("p.wrong"), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    namespace.apply(_with_url(namespace, f"{namespace.tinybird_url}/"))
    message = namespace.until_condition("Progressing", "False", "PreflightFailed", timeout_s=40)
    assert "refuses the token" in message, message
    assert "p.wrong" not in message
    assert namespace.pods() == pods
    namespace.apply(token_secret())
    until("other pods", lambda: len(now := namespace.pods()) == 1 and now != pods, timeout_s=60)
