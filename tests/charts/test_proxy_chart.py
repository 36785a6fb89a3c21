"""charts/tinybird-proxy: what it renders from which values, and what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.charts.proxy_chart import EVERY, OWN, PROXY, container, environment, files, template
from tests.charts.rendering import (
    OPERATOR,
    Object,
    helm,
    is_named,
    keys,
    objects,
    one,
    render,
    schema_names,
    values_files,
    with_each_file,
)

from tinybird_proxy import __version__
from tinybird_proxy.config import Config, from_env, suspicious_variables
from tinybird_proxy.telemetry.otel_env import problems as tracing_problems
from tinybird_proxy_operator import names

GOLDEN = Path(__file__).parent / "proxy_chart_defaults.yaml"
HELM_LABELS = {"app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}


def named_files(config: Config) -> set[str | None]:
    tokens = {config.tinybird_token_file, config.authorization_token_file, config.admin_token_file}
    return {*tokens, config.otlp_headers_file} - {None}


def test_there_are_examples_of_values() -> None:
    assert len(values_files(PROXY)) >= 5


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((PROXY / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    [image] = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert image["image"] == container(template(render(PROXY)))["image"]


@with_each_file(PROXY)
def test_helm_has_nothing_to_complain_of(values: Path) -> None:
    linted = helm("lint", "--strict", PROXY, "--values", values)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "[WARNING]" not in linted.stdout + linted.stderr


def test_the_defaults_are_what_they_were() -> None:
    """What is different on purpose goes into the file: `helm template release charts/tinybird-proxy -n here`."""
    assert render(PROXY) == objects(GOLDEN.read_text())


@with_each_file(PROXY)
def test_every_object_says_where_it_belongs(values: Path) -> None:
    rendered = render(PROXY, values=values)
    common = (yaml.safe_load(values.read_text()) or {}).get("commonLabels", {})
    found = {(each["kind"], each["metadata"]["name"]) for each in rendered}
    assert len(found) == len(rendered)
    for each in rendered:
        metadata = each["metadata"]
        assert metadata["namespace"] == "here"
        assert metadata["labels"]["app.kubernetes.io/instance"] == "release"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["labels"]["app.kubernetes.io/version"] == __version__
        assert metadata["labels"].items() >= common.items()
        assert len(metadata["name"]) <= 63


@with_each_file(PROXY)
def test_the_proxy_understands_the_environment_that_the_chart_gives_it(values: Path) -> None:
    rendered = render(PROXY, values=values)
    pods = [template(rendered), one(rendered, "Pod", "-test-upstream")]
    for pod in pods:
        env = environment(pod)
        config = from_env(env)
        assert suspicious_variables(env) == tracing_problems(env) == []
        assert named_files(config) == files(pod)
        assert config.checks_clients is config.own_token_mode or "everything" in values.name
    assert container(pods[0])["env"] == container(pods[1])["env"]
    assert container(pods[1])["args"] == ["check", "--upstream"]


def test_each_value_reaches_its_option() -> None:
    config = from_env(environment(template(render(PROXY, values=EVERY))))
    assert (config.host, config.port, config.admin_host, config.admin_port) == ("::", 8000, "::", 8001)
    assert config.tinybird_url == "http://emulator:7181"
    assert (config.batch_size, config.batch_bytes, config.flush_interval_s) == (50_000, 5_000_000, 0.25)
    assert (config.buffer_size, config.buffer_bytes) == (20_000_000, 3 * 2**29)
    assert (config.drain_delay_s, config.shutdown_timeout_s) == (5, 110)
    assert config.dead_letter_bytes == 128_000_000
    assert config.node_id == "release-abc-x"


def test_a_changed_token_or_chart_version_rolls_no_pod() -> None:
    """A changed Secret is read again by the pods themselves."""
    first, second = (
        template(render(PROXY, given={"tinybird": {"token": {"value": value}}, "clients": {"value": value}}))
        for value in ("p.one", "p.two")
    )
    assert first == second
    assert not HELM_LABELS & first["metadata"]["labels"].keys()
    more = {"monitoring": {"dashboard": {"enabled": True}}, "helmTest": {"postEvent": {"row": "{}"}}}
    assert template(render(PROXY, given=more)) == template(render(PROXY))


def test_no_token_is_in_any_object_but_its_secret() -> None:
    rendered = render(PROXY, values=PROXY / "ci" / "trying-out-values.yaml")
    secrets = {each["metadata"]["name"]: each["data"] for each in rendered if each["kind"] == "Secret"}
    assert secrets == {
        "release-tinybird-proxy-tinybird": {"token": "cC50cnlpbmctb3V0"},
        "release-tinybird-proxy-clients": {"token": "Zm9yLXRoZS1hcHAgbmFtZT1hcHAgYWxsb3c9Y2xpY2tzCg=="},
    }
    rest = str([each for each in rendered if each["kind"] != "Secret"])
    assert "p.trying-out" not in rest
    assert "for-the-app" not in rest
    mounted = {volume["secret"]["secretName"] for volume in template(rendered)["spec"]["volumes"]}
    assert mounted == secrets.keys()


def test_replicas_are_left_to_whoever_scales_when_they_are_null() -> None:
    assert one(render(PROXY), "Deployment")["spec"]["replicas"] == 2
    assert one(render(PROXY, given={"replicas": 0}), "Deployment")["spec"]["replicas"] == 0
    assert "replicas" not in one(render(PROXY, given={"replicas": None}), "Deployment")["spec"]


@pytest.mark.parametrize("values", [EVERY, PROXY / "ci" / "default-values.yaml"], ids=["everything", "default"])
def test_selectors_find_the_proxies_and_only_them(values: Path) -> None:
    rendered = render(PROXY, values=values)
    pod = template(rendered)["metadata"]["labels"]
    others = [each["metadata"]["labels"] for each in rendered if each["kind"] == "Pod"]
    # An operator's proxy of the release's name, in the same namespace.
    others.append(names.child_labels("release"))
    kinds = {"Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"}
    found = [each["spec"] for each in rendered if each["kind"] in kinds]
    assert len(found) >= 4
    for spec in found:
        selector = spec.get("selector") or spec["podSelector"]
        selector = selector.get("matchLabels", selector)
        assert selector.items() <= pod.items()
        assert not any(selector.items() <= other.items() for other in others)
    assert not names.selector_labels("release").items() <= pod.items()


@with_each_file(PROXY)
def test_every_pod_meets_the_standard_restricted(values: Path) -> None:
    rendered = render(PROXY, values=values)
    pods = [template(rendered), *(each for each in rendered if each["kind"] == "Pod")]
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is pod["spec"]["enableServiceLinks"] is False
        each = container(pod)["securityContext"]
        assert each["allowPrivilegeEscalation"] is False
        assert each["readOnlyRootFilesystem"] is True
        assert each["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container(pod)["resources"]["limits"]


def test_the_admin_port_is_for_nobody_but_those_who_are_named() -> None:
    ports = {
        rule["ports"][0]["port"]: rule.get("from") for rule in one(render(PROXY), "NetworkPolicy")["spec"]["ingress"]
    }
    assert ports == {8000: [{"namespaceSelector": {}}]}
    rules = one(render(PROXY, values=EVERY), "NetworkPolicy")["spec"]["ingress"]
    events, admin = (
        {peer for rule in rules if rule["ports"][0]["port"] == port for peer in map(str, rule["from"])}
        for port in (8000, 8001)
    )
    assert len(events) == 2
    assert admin == {"{'namespaceSelector': {'matchLabels': {'kubernetes.io/metadata.name': 'monitoring'}}}"}
    outside = one(render(PROXY, given={"service": {"type": "NodePort"}}), "NetworkPolicy")["spec"]["ingress"]
    assert "from" not in outside[0]


def test_labels_that_are_given_twice_are_there_once() -> None:
    given = {
        "commonLabels": {"team": "a", "sub-component": "proxy"},
        "podLabels": {"team": "b"},
        "monitoring": {"dashboard": {"enabled": True, "labels": {"team": "c"}}},
    }
    rendered = render(PROXY, given=given)
    assert template(rendered)["metadata"]["labels"]["team"] == "b"
    assert one(rendered, "ConfigMap")["metadata"]["labels"]["team"] == "c"
    assert one(rendered, "Service")["metadata"]["labels"]["team"] == "a"
    tester = one(rendered, "Pod", "-test-service")["metadata"]["labels"]
    assert (tester["sub-component"], tester["app.kubernetes.io/component"]) == ("proxy", "test")


def test_the_dashboard_and_the_alerts_are_those_of_the_operators_chart() -> None:
    """Its tests run them: test_operator_alerts.py."""
    assert (PROXY / "files" / "dashboard.json").read_text() == (OPERATOR / "files" / "dashboard.json").read_text()
    rules, theirs = (yaml.safe_load((chart / "files" / "alerts.yaml").read_text()) for chart in (PROXY, OPERATOR))
    proxies = [group for group in theirs["groups"] if group["name"] == "tinybird-proxy"]
    for rule in proxies[0]["rules"]:
        text = rule["annotations"]["description"].replace(", and so does kubectl describe tinybirdproxy", "")
        rule["annotations"]["description"] = text
    assert rules["groups"] == proxies
    rendered = render(PROXY, values=EVERY)
    assert one(rendered, "PrometheusRule")["spec"] == rules
    assert one(rendered, "ConfigMap")["data"].keys() == {"tinybird-proxy.json"}


def test_every_value_has_a_comment_and_a_place_in_the_schema() -> None:
    text = (PROXY / "values.yaml").read_text()
    lines, documented = text.splitlines(), set[str]()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    for path, line, value in keys(root):
        if any(path.startswith(f"{above}.") for above in documented):
            continue
        if _is_documented(lines[:line]):
            documented.add(path)
        else:
            assert isinstance(value, yaml.MappingNode), f"{path} has no comment"
            assert value.value, f"{path} has no comment"
    schema = yaml.safe_load((PROXY / "values.schema.json").read_text())
    assert schema_names(schema) - {"global"} - {"resources.limits", "resources.requests"} == {
        path for path, _, _ in keys(root) if is_named(schema, path)
    }


def _is_documented(above: list[str]) -> bool:
    """Whether the comment at the end of ``above`` begins with `# --`."""
    comment = []
    while above and above[-1].strip().startswith("#"):
        comment.append(above.pop().strip())
    return bool(comment) and comment[-1].startswith("# --")


def notes(given: Object) -> str:
    shown = helm(
        "install",
        "release",
        PROXY,
        "--namespace",
        "here",
        "--dry-run=client",
        "--values",
        "-",
        given=yaml.safe_dump(given),
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.partition("NOTES:")[2]


def test_the_notes_name_the_next_commands() -> None:
    by_default = notes({})
    assert "kubectl --namespace here rollout status deployment/release-tinybird-proxy\n" in by_default
    assert "helm test release --namespace here\n" in by_default
    assert (
        "http://release-tinybird-proxy.here.svc/v0/events?name=DATA_SOURCE, with their token of Tinybird's"
        in by_default
    )
    assert "create secret" not in by_default
    own = notes({**OWN, "service": {"port": 8080}})
    assert "create secret generic tinybird --from-literal token=p.YOUR-TOKEN\n" in own
    assert "create secret generic apps --from-literal token=" in own
    assert ".svc:8080/v0/events?name=DATA_SOURCE, with a token from the Secret apps." in own
    traced = notes({"telemetry": {"otlpEndpoint": "http://c:4318", "otlpHeaders": {"existingSecret": "collector"}}})
    assert "create secret generic collector --from-literal headers=NAME=VALUE\n" in traced
    assert "Pods start once" not in traced


def test_the_notes_warn_of_what_is_open_and_of_what_cannot_work() -> None:
    said = notes(
        {
            "tinybird": {"token": {"value": "p.secret"}},
            "clients": {"anyone": True},
            "monitoring": {"podMonitor": {"enabled": True}},
        }
    )
    assert "so it is in Helm's release Secrets, too" in said
    assert "whoever reaches the proxy writes with your token" in said
    assert "Prometheus cannot read the metrics yet" in said
    assert "p.secret" not in said


def test_the_test_writes_a_row_only_when_a_data_source_is_named() -> None:
    quiet = container(one(render(PROXY, given=OWN), "Pod", "-test-service"))
    assert len(quiet["args"]) == 2
    assert quiet["args"][1] == "http://release-tinybird-proxy:80"
    assert "volumeMounts" not in quiet
    loud = one(render(PROXY, given={**OWN, "helmTest": {"postEvent": {"dataSource": "probe"}}}), "Pod", "-test-service")
    assert container(loud)["args"][2:] == ["probe", '{"message":"helm test"}']
    [volume] = loud["spec"]["volumes"]
    assert volume["secret"]["secretName"] == "apps"
    assert files(loud) == {"/etc/tinybird-proxy/test/token"}
    # Nothing is left to ask without the Service but Tinybird.
    [pod] = [each for each in render(PROXY, given={"service": {"enabled": False}}) if each["kind"] == "Pod"]
    assert pod["metadata"]["name"].endswith("-test-upstream")


def test_what_the_readme_sets_is_there() -> None:
    text = (PROXY / "README.md").read_text()
    [command] = re.findall(r"helm install (.*?)\nkubectl", text, re.DOTALL)
    given = re.findall(r"--set (\S+)", command)
    rendered = helm("template", "events", PROXY, *(part for each in given for part in ("--set", each)))
    assert rendered.returncode == 0, rendered.stderr
    assert one(objects(rendered.stdout), "Deployment")["metadata"]["name"] == "events"
    values = yaml.safe_load((PROXY / "values.yaml").read_text())
    for name in re.findall(r"`((?:\w+\.)+\w+)`", text):
        holder = values
        for part in name.split("."):
            assert part in holder, name
            holder = holder[part]


def test_the_script_of_the_test_is_python() -> None:
    script = PROXY / "files" / "ask.py"
    [argument, _] = container(one(render(PROXY), "Pod", "-test-service"))["args"]
    assert argument == script.read_text()
    nowhere = subprocess.run(
        [sys.executable, "-c", argument.replace("TRIES = 30", "TRIES = 1"), "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert nowhere.returncode == 1
    assert "http://127.0.0.1:1/ gave no answer in 1 tries" in nowhere.stderr
