"""What the schema cannot say, in sentences for the resource's author."""

from typing import Any

import pytest
from tests.operator.resources import EVERYTHING, OWN_TOKEN, changed, operator_settings, resource

from tinybird_proxy_operator.checks import problems
from tinybird_proxy_operator.names import Reason


def said(spec: dict[str, Any], **env: str) -> list[tuple[Reason, str]]:
    return problems(resource(spec), operator_settings(**env))


@pytest.mark.parametrize("spec", [{}, OWN_TOKEN, EVERYTHING], ids=["nothing", "own token", "everything"])
def test_what_can_be_carried_out_has_no_problem(spec: dict[str, Any]) -> None:
    assert said(spec) == []


@pytest.mark.parametrize(
    "url",
    ["https://api.evil.example", "https://tinybird.co", "https://api.tinybird.co.evil.example", "http://10.0.0.1"],
)
def test_an_upstream_that_is_not_allowed_is_named_with_those_that_are(url: str) -> None:
    [(reason, sentence)] = said({"tinybird": {"url": url}})
    assert reason == Reason.UPSTREAM_NOT_ALLOWED
    assert sentence == (
        f"spec.tinybird.url: host {url.partition('//')[2]!r} is not in the operator's allowedUpstreams "
        "(*.tinybird.co); choose one of them, or ask whoever runs the operator to add it"
    )


def test_headers_need_a_collector() -> None:
    sentence = (
        "spec.telemetry.otlpHeadersSecretRef: needs spec.telemetry.otlpEndpoint: there is no collector to send to"
    )
    assert said({"telemetry": {"otlpHeadersSecretRef": {"name": "collector"}}}) == [(Reason.INVALID_SPEC, sentence)]


def test_a_host_of_ones_own_may_be_allowed() -> None:
    spec = {"tinybird": {"url": "http://Emulator.test.svc:7181"}}
    assert said(spec, ALLOWED_UPSTREAMS="emulator.test.svc") == []
    assert said(spec, ALLOWED_UPSTREAMS="*.test.svc") == []
    assert said(spec, ALLOWED_UPSTREAMS="*") == []


@pytest.mark.parametrize(
    "url",
    ["api.tinybird.co", "ftp://api.tinybird.co", "https://api.tinybird.co/v0/events", "https://u:p@api.tinybird.co"],
)
def test_an_upstream_that_is_no_origin_is_an_invalid_spec_and_no_password_is_shown(url: str) -> None:
    [(reason, sentence)] = said({"tinybird": {"url": url}})
    assert reason == Reason.INVALID_SPEC
    assert sentence.startswith("spec.tinybird.url: ")
    assert "u:p" not in sentence


@pytest.mark.parametrize(
    "endpoint", ["http://evil.example:4318", "https://xcollector.observability.svc/v1/traces", "http://[::1]:4318"]
)
def test_a_collector_that_is_not_allowed_is_named(endpoint: str) -> None:
    [(reason, sentence)] = said({"telemetry": {"otlpEndpoint": endpoint}})
    assert reason == Reason.COLLECTOR_NOT_ALLOWED
    assert "is not in the operator's allowedCollectors (collector.observability.svc)" in sentence


def test_where_no_collector_is_allowed_the_sentence_says_whom_to_ask() -> None:
    [(reason, sentence)] = said({"telemetry": {"otlpEndpoint": "http://c:4318"}}, ALLOWED_COLLECTORS="")
    assert reason == Reason.COLLECTOR_NOT_ALLOWED
    assert sentence.endswith("allowedCollectors (none); ask whoever runs the operator to add it")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://evil.example\\@collector.observability.svc:4318",
        "http://evil.example:80@collector.observability.svc",
        "http://collector.observability.svc#@evil.example",
        "http://collector.observability.svc?@evil.example",
        "http://collector.observability.svc:4318 ",
        "grpc://collector.observability.svc:4317",
        "collector.observability.svc:4318",
    ],
)
def test_a_collector_on_whose_host_parsers_might_disagree_is_refused_unshown(endpoint: str) -> None:
    assert said({"telemetry": {"otlpEndpoint": endpoint}}) == [
        (
            Reason.INVALID_SPEC,
            "spec.telemetry.otlpEndpoint: must be an http or https URL such as http://collector:4318",
        )
    ]


def test_an_image_that_is_not_allowed_is_named() -> None:
    [(reason, sentence)] = said({"image": "evil.example/x:1"})
    assert reason == Reason.IMAGE_NOT_ALLOWED
    assert sentence.startswith("spec.image: 'evil.example/x:1' is not in the operator's allowedImages (ghcr.io/")


def test_the_operators_own_image_is_always_allowed_and_any_of_its_repository_by_default() -> None:
    own = operator_settings().proxy_image
    repository = own.rpartition(":")[0]
    assert said({"image": own}, ALLOWED_IMAGES="") == []
    assert said({"image": f"{repository}:9"}) == []
    assert [reason for reason, _ in said({"image": f"{repository}:9"}, ALLOWED_IMAGES="")] == [Reason.IMAGE_NOT_ALLOWED]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("batch.maxSize", "lots", "spec.batch.maxSize: 'lots' is not a size such as 512Mi or 10M"),
        ("buffer.maxSize", "-1", "spec.buffer.maxSize: '-1' is not a size such as 512Mi or 10M"),
        ("batch.maxSize", "600Mi", "spec.batch.maxSize: 629145600: must be at most spec.buffer.maxSize, 536870912"),
        ("batch.maxRows", 2_000_000, "spec.batch.maxRows: 2000000: must be at most spec.buffer.maxRows, 1000000"),
        ("batch.maxRows", 0, "spec.batch.maxRows: '0': must be a whole number from 1 to 10000000"),
        ("batch.flushIntervalMilliseconds", 0, "spec.batch.flushIntervalMilliseconds: '0ms': must be from 1ms to 1h"),
        ("drain.shutdownTimeoutSeconds", 3, "DRAIN_DELAY: 5s: must be at most spec.drain.shutdownTimeoutSeconds, 3s"),
        ("ingress", {"policy": "Managed"}, "spec.ingress.host: is missing; a managed Ingress needs it"),
        ("pod.labels", {"tinybird-proxy.io/x": ""}, "spec.pod.labels: tinybird-proxy.io/x belongs to the operator"),
        ("pod.env", [{"name": "PORT", "value": "1"}], "spec.pod.env[0]: PORT is set by the operator"),
        (
            "pod.env",
            [{"name": "UPSTREAM_RATE", "value": "fast"}],
            "spec.pod.env UPSTREAM_RATE: 'fast': must be a number from 0.01 to 100000",
        ),
        (
            "pod.env",
            [{"name": "TOKEN_FILE_WAIT", "value": "true"}],
            "spec.pod.env TOKEN_FILE_WAIT: needs spec.tinybird.tokenSecretRef: there is no file to wait for",
        ),
        (
            "pod.resources",
            {"limits": {"memory": "600Mi"}},
            "spec.pod.resources.limits.memory: 600Mi is less than 768Mi, which a buffer of 512Mi needs",
        ),
        (
            "clients.tokenSecretRef",
            {"name": "apps"},
            "spec.clients.tokenSecretRef: needs spec.tinybird.tokenSecretRef: without it clients send Tinybird's own",
        ),
    ],
)
def test_what_the_proxy_would_refuse_is_said_in_the_resources_words(field: str, value: Any, says: str) -> None:
    [(reason, sentence)] = said(changed({}, field, value))
    assert reason == Reason.INVALID_SPEC
    assert sentence.startswith(says)


def test_an_ingress_needs_the_service_that_it_leads_to() -> None:
    spec = {"service": {"policy": "None"}, "ingress": {"policy": "Managed", "host": "a.example"}}
    [(reason, sentence)] = said(spec)
    assert (reason, sentence.partition(":")[0]) == (Reason.INVALID_SPEC, "spec.ingress.policy")


@pytest.mark.parametrize("value", [0, -1, "0%", "1", "many", "-5%"])
def test_a_budget_that_would_block_every_node_drain_is_refused(value: int | str) -> None:
    [(reason, sentence)] = said({"podDisruptionBudget": {"maxUnavailable": value}})
    assert reason == Reason.INVALID_SPEC
    assert f"{value!r} must be a number or percentage above 0" in sentence


@pytest.mark.parametrize("name", ["e" * 53, "1events", "events.shop", "Events", "events-"])
def test_a_name_that_no_service_can_have_is_refused(name: str) -> None:
    [(reason, sentence)] = problems(resource({}, name=name), operator_settings())
    assert (reason, sentence.partition(":")[0]) == (Reason.INVALID_SPEC, "metadata.name")


def test_every_problem_is_told_at_once() -> None:
    spec = {
        "image": "evil.example/x",
        "tinybird": {"url": "https://evil.example"},
        "telemetry": {"otlpEndpoint": "http://evil.example"},
        "batch": {"maxSize": "lots"},
        "pod": {"env": [{"name": "PORT"}], "labels": {"tinybird-proxy.io/x": ""}},
    }
    assert sorted(reason for reason, _ in said(spec)) == sorted(
        [Reason.INVALID_SPEC] * 3
        + [Reason.UPSTREAM_NOT_ALLOWED, Reason.COLLECTOR_NOT_ALLOWED, Reason.IMAGE_NOT_ALLOWED]
    )


def test_one_wrong_size_is_one_problem() -> None:
    assert len(said({"buffer": {"maxSize": "lots"}})) == 1
