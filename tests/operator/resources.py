"""TinybirdProxies for tests: one with nothing but its defaults, one with everything set, and any valid one."""

from typing import Any, Final

from hypothesis import strategies as st

from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.scaling.autoscaling import NONE, Plan, asked
from tinybird_proxy_operator.settings import OperatorSettings, from_env
from tinybird_proxy_operator.spec import Proxy, parse

UID: Final = "6f0b0a2e-6b1c-4d38-9a0b-0d7f3ad1c001"
IMAGE: Final = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.3"
OPERATOR_ENV: Final = {
    "POD_NAMESPACE": "tinybird-system",
    "POD_MONITORS": "true",
    "METRICS_API_SERVICE": "operator-metrics-api",
    "OPERATOR_POD_LABELS": "app.kubernetes.io/name=tinybird-proxy-operator",
    "PROXY_IMAGE": IMAGE,
    "ALLOWED_COLLECTORS": "collector.observability.svc",
}
OWN_TOKEN: Final = {"tinybird": {"tokenSecretRef": {"name": "tinybird"}}}

EVERYTHING: Final[dict[str, Any]] = {
    "mode": "Deployment",
    "image": "ghcr.io/tinybird-proxy/tinybird-proxy:2.0.0",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "autoscaling": {
        "minReplicas": 2,
        "maxReplicas": 10,
        "targets": {
            "bufferUtilizationPercent": 50,
            "bufferRowsPerPod": 100_000,
            "drainTimeSeconds": 30,
            "cpuPercent": 70,
        },
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600, "tolerance": "0.05"}},
    },
    "tinybird": {"url": "https://api.us-east.tinybird.co", "tokenSecretRef": {"name": "tinybird", "key": "ingest"}},
    "clients": {
        "tokenSecretRef": {"name": "apps", "key": "list"},
        "overlapSeconds": 3600,
        "secretDeletionPolicy": "Retain",
    },
    "batch": {"maxRows": 50_000, "maxSize": "5M", "flushIntervalMilliseconds": 250},
    "buffer": {"maxRows": 200_000, "maxSize": "1Gi"},
    "drain": {"shutdownTimeoutSeconds": 110},
    "telemetry": {
        "otlpEndpoint": "http://collector.observability.svc:4318",
        "otlpHeadersSecretRef": {"name": "collector", "key": "all"},
    },
    "monitoring": {"podMonitor": "Enabled"},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"example.com/lb": "internal"}},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"team": "web"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "ingress": {
        "policy": "Managed",
        "className": "nginx",
        "host": "events.example.com",
        "tlsSecretName": "events-tls",
        "annotations": {"example.com/body-size": "10m"},
    },
    "pod": {
        "resources": {"limits": {"memory": "2Gi", "cpu": "2"}, "requests": {"cpu": "500m"}},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"team": "data"}},
                        },
                    }
                ]
            }
        },
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "high",
        "annotations": {"example.com/team": "data"},
        "labels": {"team": "data"},
        "env": [
            {"name": "LOG_LEVEL", "value": "debug"},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
    },
}


def resource(spec: dict[str, Any] | None = None, *, name: str = "events", **metadata: Any) -> Proxy:
    """A resource as the API server gives it, read."""
    body = {
        "metadata": {"name": name, "namespace": "shop", "uid": UID, "generation": 1, **metadata},
        "spec": spec or {},
    }
    return parse(body)


def operator_settings(**env: str) -> OperatorSettings:
    return from_env({**OPERATOR_ENV, **env})


def desired(
    spec: dict[str, Any] | None = None,
    *,
    replicas: int = 2,
    name: str = "events",
    plan: Plan | None = None,
    **metadata: Any,
) -> Desired:
    """Without ``scaling`` every metric is served that is asked for."""
    proxy = resource(spec, name=name, **metadata)
    if plan is None:
        plan = NONE if proxy.spec.autoscaling is None else Plan(targets=asked(proxy.spec.autoscaling))
    return Desired(proxy=proxy, replicas=replicas, settings=operator_settings(), plan=plan)


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``spec`` with ``value`` at ``path``, a.b.c."""
    first, _, rest = path.partition(".")
    return {**spec, first: changed(spec.get(first, {}), rest, value) if rest else value}


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
_SECRET = st.fixed_dictionaries({"name": _NAMES}, optional={"key": st.sampled_from(["token", "key.txt"])})
_WORDS = st.dictionaries(st.sampled_from(["team", "example.com/a"]), st.sampled_from(["", "x"]))
_PEERS = st.lists(st.fixed_dictionaries({"podSelector": st.just({"matchLabels": {"a": "b"}})}), max_size=2)

valid_names = st.from_regex(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", fullmatch=True)


def _autoscaling() -> st.SearchStrategy[dict[str, Any]]:
    rule = _some(
        stabilizationWindowSeconds=st.integers(0, 3600),
        selectPolicy=st.sampled_from(["Max", "Min", "Disabled"]),
        policies=st.just([{"type": "Pods", "value": 2, "periodSeconds": 60}]),
        tolerance=st.sampled_from(["0", "0.05", "1", "20m"]),
    )
    return st.fixed_dictionaries(
        {
            "maxReplicas": st.integers(5, 1000),
            "targets": _some(bufferRowsPerPod=st.integers(1, 100_000)).map(lambda more: {"cpuPercent": 70, **more}),
        },
        optional={
            "minReplicas": st.integers(1, 5),
            "behavior": _some(scaleUp=rule, scaleDown=rule),
            "provider": st.sampled_from(["Builtin", "PrometheusAdapter", "KEDA", "External"]),
        },
    )


_TELEMETRY: Final = {"otlpEndpoint": "http://collector.observability.svc:4318/v1/traces"}


@st.composite
def valid_specs(draw: st.DrawFn) -> dict[str, Any]:
    """Any spec that nothing refuses."""
    clients = _some(
        tokenSecretRef=_SECRET,
        overlapSeconds=st.integers(0, 2_419_200),
        secretDeletionPolicy=st.sampled_from(["Delete", "Retain"]),
    )
    tinybird = draw(_some(url=st.sampled_from(["https://api.tinybird.co"]), tokenSecretRef=_SECRET))
    spec = draw(
        _some(
            image=st.just(IMAGE),
            imagePullPolicy=st.sampled_from(["Always", "IfNotPresent", "Never"]),
            imagePullSecrets=st.lists(_NAMES, max_size=2, unique=True).map(
                lambda given: [{"name": each} for each in given]
            ),
            replicas=st.integers(0, 100),
            autoscaling=_autoscaling(),
            clients=clients if "tokenSecretRef" in tinybird else st.just({}),
            batch=_some(
                maxRows=st.integers(1, 100_000),
                maxSize=st.sampled_from(["1M", "10M", "1Mi", 1_000_000]),
                flushIntervalMilliseconds=st.integers(1, 60_000),
            ),
            buffer=_some(
                maxRows=st.integers(100_000, 10**9), maxSize=st.sampled_from(["64Mi", "512Mi", "0.5Gi", 10**9])
            ),
            drain=_some(shutdownTimeoutSeconds=st.integers(5, 3600)),
            telemetry=st.sampled_from([{}, _TELEMETRY, {**_TELEMETRY, "otlpHeadersSecretRef": {"name": "collector"}}]),
            monitoring=_some(podMonitor=st.sampled_from(["Enabled", "Disabled"])),
            service=_some(
                type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
                port=st.integers(1, 65535),
                annotations=_WORDS,
            ),
            networkPolicy=_some(policy=st.sampled_from(["Managed", "None"]), **{"from": _PEERS}, metricsFrom=_PEERS),
            podDisruptionBudget=_some(
                policy=st.sampled_from(["Managed", "None"]), maxUnavailable=st.sampled_from([1, 2, "50%"])
            ),
            ingress=_some(host=st.just("events.example.com"), policy=st.sampled_from(["None"]))
            | st.just({"policy": "Managed", "host": "events.example.com"}),
            pod=_some(
                resources=_some(limits=_some(memory=st.just("4Gi"), cpu=st.just(2)), requests=_some(cpu=st.just("1"))),
                nodeSelector=_WORDS,
                priorityClassName=_NAMES,
                annotations=_WORDS,
                labels=_WORDS,
                env=st.just([]) | st.just([{"name": "COMPRESSION", "value": "zstd"}, {"name": "TZ", "value": "UTC"}]),
            ),
        )
    )
    return {**spec, "tinybird": tinybird}
