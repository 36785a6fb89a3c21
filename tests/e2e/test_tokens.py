"""Tokens: a wrong one holds the rows until the Secret is right."""

from tests.e2e.kubectl import Namespace, token_secret, until


def test_a_wrong_token_holds_the_rows_until_the_secret_has_the_right_one(namespace: Namespace) -> None:
    namespace.apply(token_secret("p.wrong"), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    namespace.post("held")
    message = namespace.until_condition("TokenValid", "False", "Rejected")
    assert "Secret tinybird" in message
    assert namespace.rows() == []
    assert namespace.get("tinybirdproxy", "events")["status"]["buffer"]["rows"] == 1
    namespace.apply(token_secret())
    namespace.until_arrived("held", timeout_s=60)
    namespace.until_condition("TokenValid", "True", "Accepted")
    namespace.until_condition("Ready", "True", "Ready")
    assert namespace.pods() == pods
    restarts = [each["status"]["containerStatuses"][0]["restartCount"] for each in namespace.find("pods")]
    assert set(restarts) == {0}


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
