"""Tinybird's token: a wrong one holds the rows until the Secret is right; a changed one is tried before it is used."""

from tests.e2e.kubectl import (
    SECOND_TINYBIRD_TOKEN,
    SECRET_TIMEOUT_S,
    TINYBIRD_TOKEN,
    Namespace,
    doctor,
    token_secret,
    until,
)

from tinybird_proxy.config import token_hash

WRONG_TOKEN = "p.wrong"


def _all_pods_have(namespace: Namespace, token: str) -> bool:
    found = namespace.get("tinybirdproxy", "events")["status"]["token"]
    return bool(found["expectedHash"] == token_hash(token) and found["podsCurrent"] == found["podsTotal"] > 0)


def test_a_wrong_token_holds_the_rows_until_the_secret_has_the_right_one(namespace: Namespace) -> None:
    namespace.apply(token_secret(WRONG_TOKEN), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    namespace.post("held")
    message = namespace.until_condition("TokenValid", "False", "Rejected")
    assert "Secret tinybird" in message
    assert namespace.rows() == []
    assert namespace.get("tinybirdproxy", "events")["status"]["buffer"]["rows"] == 1
    namespace.apply(token_secret())
    namespace.until_arrived("held", timeout_s=SECRET_TIMEOUT_S)
    namespace.until_condition("TokenValid", "True", "Accepted")
    namespace.until_condition("Ready", "True", "Ready")
    assert namespace.pods() == pods
    assert namespace.restarts() == 0


def test_a_secret_that_is_missing_or_not_meant_for_proxies_is_named_and_then_used(namespace: Namespace) -> None:
    namespace.apply(namespace.forwarding_to_tinybird())
    assert "Secret tinybird" in namespace.until_condition("Degraded", "True", "SecretNotFound")
    assert not namespace.find("deployments")
    secret = token_secret()
    namespace.create({**secret, "metadata": {"name": "tinybird"}})
    message = namespace.until_condition("Degraded", "True", "SecretNotShared")
    _, _, command = message.partition("kubectl ")
    namespace.kubectl(*command.rstrip(".").split())
    namespace.wait_ready()
    until("nothing is wrong", lambda: namespace.condition("Degraded")[:2] == ("False", "AsExpected"))


def test_the_token_is_rotated_under_load_without_a_restart_and_every_pod_proves_it(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=2))
    namespace.wait_ready()
    pods = namespace.pods()
    with namespace.load() as said:
        until("both pods use the first token", lambda: _all_pods_have(namespace, TINYBIRD_TOKEN))
        namespace.until_condition("TokenValid", "True", "Accepted")
        namespace.apply(token_secret(SECOND_TINYBIRD_TOKEN))
        until(
            "both pods use the second token",
            lambda: _all_pods_have(namespace, SECOND_TINYBIRD_TOKEN),
            timeout_s=SECRET_TIMEOUT_S,
        )
        namespace.until_condition("TokenValid", "True", "Accepted")
        assert namespace.condition("Ready")[:2] == ("True", "Ready")
    assert said["other"] == {}
    namespace.all_arrived(said)
    assert namespace.pods() == pods
    assert namespace.restarts() == 0


def test_a_wrong_token_in_a_rotation_leaves_the_old_one_in_use_until_a_right_one_comes(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    with namespace.load() as said:
        until("the pod uses the first token", lambda: _all_pods_have(namespace, TINYBIRD_TOKEN))
        namespace.apply(token_secret(WRONG_TOKEN))
        message = namespace.until_condition("TokenValid", "False", "CandidateRejected", timeout_s=SECRET_TIMEOUT_S)
        assert "the Secret tinybird" in message
        assert pods[0] in message
        assert WRONG_TOKEN not in message
        namespace.post("meanwhile")
        namespace.until_arrived("meanwhile", timeout_s=10)
        assert namespace.condition("TokenValid")[:2] == ("False", "CandidateRejected")
        status, text = doctor(namespace)
        assert status == 1, text
        assert "CandidateRejected" in text
        assert "Secret tinybird" in text
        namespace.apply(token_secret(SECOND_TINYBIRD_TOKEN))
        namespace.until_condition("TokenValid", "True", "Accepted", timeout_s=SECRET_TIMEOUT_S)
        until("the pod uses the second token", lambda: _all_pods_have(namespace, SECOND_TINYBIRD_TOKEN))
    assert said["other"] == {}
    namespace.all_arrived(said)
    assert namespace.pods() == pods
    assert namespace.restarts() == 0


def test_the_doctor_is_content_with_a_healthy_proxy_and_names_the_secret_whose_token_is_refused(
    namespace: Namespace,
) -> None:
    wrong = namespace.forwarding_to_tinybird(
        tinybird={"url": namespace.tinybird_url, "tokenSecretRef": {"name": "refused"}}
    )
    wrong["metadata"]["name"] = "wrong"
    namespace.apply(token_secret(), token_secret(WRONG_TOKEN, "refused"), namespace.forwarding_to_tinybird(), wrong)
    namespace.wait_ready()
    namespace.wait_ready("wrong")
    namespace.post("delivered")
    namespace.until_arrived("delivered")
    namespace.post("held", name="wrong")
    namespace.until_condition("TokenValid", "False", "Rejected", name="wrong")
    namespace.until_condition("Ready", "True", "Ready")
    status, healthy = doctor(namespace)
    assert status == 0, healthy
    assert f"TinybirdProxy {namespace.name}/events: healthy" in healthy
    assert token_hash(TINYBIRD_TOKEN) in healthy
    status, ill = doctor(namespace, "wrong")
    assert status == 1, ill
    assert f"TinybirdProxy {namespace.name}/wrong: somebody has to look" in ill
    assert "Secret refused" in ill
    assert token_hash(WRONG_TOKEN) in ill
    tokens = (TINYBIRD_TOKEN, WRONG_TOKEN, namespace.client_token(), namespace.client_token("wrong"))
    assert not [token for token in tokens if token in healthy + ill]
