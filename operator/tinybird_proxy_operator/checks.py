"""What the CRD's schema cannot say: the operator's allowed lists, and what the proxy would refuse at its start.

Pure: of Secrets only the names are known here.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from tinybird_proxy.config import from_env
from tinybird_proxy.errors import ConfigError
from tinybird_proxy_operator import names
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests import deployment, environment, guest, pod_resources
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy, ProxySpec, host_is_allowed, host_of, image_is_allowed

_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*[A-Z0-9]")
# Narrower than what URL parsers take: they disagree on the rest, and with it on the host that the rows' spans go to.
_COLLECTOR: Final = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")

Found = list[tuple[Reason, str]]


def problems(proxy: Proxy, settings: OperatorSettings) -> Found:
    """Everything that keeps the resource from being carried out, each with a sentence for its author."""
    spec = proxy.spec
    invalid = [
        *_name(proxy.name),
        *environment.problems(spec),
        *deployment.metadata_problems(spec.pod),
        *_ways_in(spec),
        *_budget(spec.pod_disruption_budget.max_unavailable),
        *_headers(spec),
        *(guest.problems(spec) if environment.is_sidecar(spec) else []),
    ]
    options = _options(spec)
    # A size that is none is named by both.
    invalid += dict.fromkeys([*pod_resources.problems(spec), *options])
    upstream_is_a_url = not any(sentence.startswith("spec.tinybird.url:") for sentence in options)
    return [
        *((Reason.INVALID_SPEC, sentence) for sentence in invalid),
        *(_upstream(spec, settings) if upstream_is_a_url else []),
        *_collector(spec, settings),
        *_image(spec, settings),
    ]


def _name(name: str) -> list[str]:
    if len(name) <= names.NAME_MAX_LENGTH and re.fullmatch(names.NAME_PATTERN, name):
        return []
    return [
        f"metadata.name: {name!r} must be at most {names.NAME_MAX_LENGTH} lower-case letters, digits and dashes, "
        "beginning with a letter, for its Service and pods are named after it"
    ]


def _ways_in(spec: ProxySpec) -> list[str]:
    if spec.ingress.policy == "None":
        return []
    found = [] if spec.ingress.host else ["spec.ingress.host: is missing; a managed Ingress needs it"]
    if spec.service.policy == "None":
        found.append("spec.ingress.policy: a managed Ingress needs the Service; set spec.service.policy to Managed")
    return found


def _budget(max_unavailable: int | str) -> list[str]:
    text = str(max_unavailable)
    fits = re.fullmatch(r"[0-9]{1,9}", text) if isinstance(max_unavailable, int) else re.fullmatch(r"[0-9]{1,3}%", text)
    if fits and int(text.rstrip("%")) > 0:
        return []
    return [
        f"spec.podDisruptionBudget.maxUnavailable: {max_unavailable!r} must be a number or percentage above 0: "
        "otherwise no node with a pod of it could ever be drained"
    ]


def _headers(spec: ProxySpec) -> list[str]:
    if spec.telemetry.otlp_headers_secret_ref is None or spec.telemetry.otlp_endpoint:
        return []
    return ["spec.telemetry.otlpHeadersSecretRef: needs spec.telemetry.otlpEndpoint: there is no collector to send to"]


def _options(spec: ProxySpec) -> list[str]:
    """What the proxy would say of its options, in the resource's words."""
    try:
        ours = environment.operator_env(spec)
    except SpecError as error:
        return list(error.problems)
    reserved = environment.RESERVED
    added = {name: value for name, value in environment.user_values(spec).items() if name not in reserved}
    env = {**added, **{entry["name"]: entry["value"] for entry in ours if "value" in entry}}
    try:
        from_env(env)
    except ConfigError as error:
        fields: Mapping[str, str] = {**{name: f"spec.pod.env {name}" for name in added}, **environment.SPEC_FIELDS}
        return [_VARIABLE.sub(lambda match: fields.get(match[0], match[0]), str(each)) for each in error.problems]
    return []


def _upstream(spec: ProxySpec, settings: OperatorSettings) -> Found:
    host = host_of(spec.tinybird.url)
    if host_is_allowed(host, settings.allowed_upstreams):
        return []
    return [_not_allowed(Reason.UPSTREAM_NOT_ALLOWED, "spec.tinybird.url: host", host, "allowedUpstreams", settings)]


def _collector(spec: ProxySpec, settings: OperatorSettings) -> Found:
    endpoint = spec.telemetry.otlp_endpoint
    if not endpoint:
        return []
    if not _COLLECTOR.fullmatch(endpoint):
        # Not shown: it may hold a user name or a token.
        sentence = "spec.telemetry.otlpEndpoint: must be an http or https URL such as http://collector:4318"
        return [(Reason.INVALID_SPEC, sentence)]
    host = host_of(endpoint)
    if host_is_allowed(host, settings.allowed_collectors):
        return []
    where = "spec.telemetry.otlpEndpoint: host"
    return [_not_allowed(Reason.COLLECTOR_NOT_ALLOWED, where, host, "allowedCollectors", settings)]


def _image(spec: ProxySpec, settings: OperatorSettings) -> Found:
    image = spec.image
    if not image or image == settings.proxy_image or image_is_allowed(image, settings.allowed_images):
        return []
    return [_not_allowed(Reason.IMAGE_NOT_ALLOWED, "spec.image:", image, "allowedImages", settings)]


def _not_allowed(reason: Reason, where: str, what: str, value: str, settings: OperatorSettings) -> tuple[Reason, str]:
    lists: dict[str, Any] = {
        "allowedUpstreams": settings.allowed_upstreams,
        "allowedCollectors": settings.allowed_collectors,
        "allowedImages": settings.allowed_images,
    }
    allowed = ", ".join(lists[value]) or "none"
    advice = "choose one of them, or ask whoever runs the operator to add it"
    if not lists[value]:
        advice = "ask whoever runs the operator to add it"
    return reason, f"{where} {what!r} is not in the operator's {value} ({allowed}); {advice}"
