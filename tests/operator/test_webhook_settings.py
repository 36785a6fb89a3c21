"""The webhook's own variables."""

import pytest
from tests.operator.webhooks import ENV

from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.serving.renewal import Lifetimes
from tinybird_proxy_operator.webhook.settings import OwnCertificates, WebhookSettings, from_env

NAMES = ("POD_NAMESPACE", "SERVICE_NAME", "WEBHOOK_CONFIGURATION", "CERTIFICATE_SECRET")
LEAST = {key: ENV[key] for key in NAMES}


def test_only_the_names_must_be_said() -> None:
    assert from_env(LEAST) == WebhookSettings(
        namespace="tinybird-system",
        service="webhook",
        port=6443,
        metrics_port=8080,
        certificates=OwnCertificates(
            configuration="operator-webhook",
            secret="operator-webhook-certificates",
            lifetimes=Lifetimes(serving_s=7_776_000, overlap_s=600),
        ),
        log_level="info",
        log_format="auto",
    )
    assert from_env(LEAST).server_names[0] == "webhook.tinybird-system.svc"


def test_where_somebody_else_makes_the_certificates_nothing_of_them_must_be_said_but_where() -> None:
    env = {"POD_NAMESPACE": "here", "SERVICE_NAME": "webhook", "CERTIFICATE_DIRECTORY": "/certificates"}
    assert from_env(env).certificates == "/certificates"


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"SERVICE_NAME": "a.b"}, "SERVICE_NAME: 'a.b': must be"),
        ({"WEBHOOK_CONFIGURATION": "A"}, "WEBHOOK_CONFIGURATION: 'A': must be an object's name"),
        ({"CERTIFICATE_DIRECTORY": ""}, "CERTIFICATE_DIRECTORY: is set but empty"),
        ({"METRICS_PORT": "6443"}, "METRICS_PORT: must not be TLS_PORT"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: 'loud': must be one of"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(env: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        from_env({**LEAST, **env})
    [said] = refused.value.problems
    assert said.startswith(problem)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        from_env({"LOG_FORMAT": "x"})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [*NAMES, "LOG_FORMAT"]
