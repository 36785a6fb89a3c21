"""The generated client token: its rotation breaks no client, and the Secret can outlive its resource."""

import base64

from tests.e2e.kubectl import SECRET_TIMEOUT_S, Namespace, doctor, in_url, token_secret, until

ROTATE = "tinybird-proxy.io/rotate-client-token"


def _decoded(value: str) -> str:
    return base64.b64decode(value).decode()


def _rotated(namespace: Namespace, old: str) -> str:
    """Wait until apps are given another token than ``old``; the new one."""
    until("another client token", lambda: namespace.client_token() != old, timeout_s=SECRET_TIMEOUT_S)
    return namespace.client_token()


def _statuses(namespace: Namespace, token: str) -> set[int]:
    """What each pod of the proxy answers to a row that is sent with the token."""
    pods = namespace.find("pods", "tinybird-proxy.io/proxy=events")
    urls = [f"http://{in_url(pod['status']['podIP'])}:8000" for pod in pods]
    return {status for url in urls for status in namespace.client("post", url, token, "x")}


def test_a_rotation_under_load_refuses_nobody_and_apps_get_the_new_token_once_every_pod_takes_it(
    namespace: Namespace,
) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=2))
    namespace.wait_ready()
    old, pods = namespace.client_token(), namespace.pods()
    fields = (".data.token", ".data.next", ".data.accepted")
    with namespace.watched("secret", "events-client", *fields) as versions, namespace.load() as said:
        until("rows in Tinybird", namespace.rows)
        namespace.kubectl("annotate", "tinybirdproxy", "events", f"{ROTATE}=once")
        new = _rotated(namespace, old)
        # No pod refuses what apps may read.
        assert _statuses(namespace, new) == {202}
        assert _statuses(namespace, old) == {202}
    assert said["other"] == {}
    namespace.all_arrived(said)
    seen = [[_decoded(value) for value in version] for version in versions]
    assert [[token, following] for token, following, _ in seen] == [[old, ""], [old, new], [new, ""]]
    assert [[old in accepted, new in accepted] for _, _, accepted in seen] == [
        [True, False],
        [True, True],
        [True, True],
    ]
    message, *_ = until("the Event", lambda: namespace.events("ClientTokenRotated"))
    assert "Secret events-client has a new client token" in message
    assert old not in message
    assert new not in message
    # Who cannot wait for the end of the overlap ends it.
    namespace.patch("tinybirdproxy", "events", {"spec": {"clients": {"overlapSeconds": 0}}})
    until("the old token is refused", lambda: _statuses(namespace, old) == {403}, timeout_s=SECRET_TIMEOUT_S)
    assert _statuses(namespace, new) == {202}
    assert namespace.pods() == pods
    assert namespace.restarts() == 0


def test_without_an_overlap_the_old_token_is_refused_as_soon_as_apps_can_read_the_new_one(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(clients={"overlapSeconds": 0}))
    namespace.wait_ready()
    old = namespace.client_token()
    namespace.kubectl("annotate", "tinybirdproxy", "events", f"{ROTATE}=once")
    new = _rotated(namespace, old)
    namespace.post("new", token=new)
    until("the old token is refused", lambda: _statuses(namespace, old) == {403}, timeout_s=SECRET_TIMEOUT_S)
    namespace.post("newer", token=new)
    assert old not in _decoded(namespace.get("secret", "events-client")["data"]["accepted"])
    until("the Event", lambda: [each for each in namespace.events("ClientTokenRotated") if "no longer" in each])


def test_a_client_token_that_is_to_be_kept_outlives_its_resource_and_is_used_by_the_next_of_that_name(
    namespace: Namespace,
) -> None:
    keeping = namespace.forwarding_to_tinybird(clients={"secretDeletionPolicy": "Retain"})
    namespace.apply(token_secret(), keeping)
    namespace.wait_ready()
    token, uid = namespace.client_token(), namespace.get("secret", "events-client")["metadata"]["uid"]
    pods = namespace.pods()
    namespace.kubectl("delete", "tinybirdproxy", "events", "--wait", "--timeout=30s")
    # What has an owner goes with it, so this one has none.
    assert "ownerReferences" not in namespace.get("secret", "events-client")["metadata"]
    until("no pod of before", lambda: not set(pods) & set(namespace.pods()))
    namespace.apply(keeping)
    namespace.wait_ready()
    assert namespace.get("secret", "events-client")["metadata"]["uid"] == uid
    namespace.post("with the token of before", token=token)
    namespace.until_arrived("with the token of before")
    status, text = doctor(namespace)
    assert status == 0, text
