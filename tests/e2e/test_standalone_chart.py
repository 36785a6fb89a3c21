"""charts/tinybird-proxy: the proxy without the operator."""

from tests.e2e.kubectl import PROXY_CHART, Namespace, run, token_secret


def test_the_standalone_chart_delivers_without_the_operator(namespace: Namespace) -> None:
    namespace.apply(token_secret())
    namespace.create(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "apps"}, "stringData": {"token": "for-apps"}}
    )
    values = {
        "tinybird.url": namespace.tinybird_url,
        "tinybird.token.existingSecret": "tinybird",
        "clients.existingSecret": "apps",
    }
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    where = ("--namespace", namespace.name, "--timeout", "60s")
    run("helm", "install", "events", PROXY_CHART, *where, "--wait", "--set", "fullnameOverride=events", *sets)
    namespace.post("one", "two", token="for-apps")
    namespace.until_arrived("one", "two")
    assert namespace.client("post", namespace.service_url(), "wrong", "x") == [403]
    run("helm", "test", "events", *where)
    run("helm", "uninstall", "events", *where, "--wait")
    assert namespace.rows() == ["one", "two"]
