"""From the first packaged charts to the present ones: what cannot change does not, and old values are still taken."""

from pathlib import Path

import pytest
import yaml
from tests.charts.proxy_chart import PROXY
from tests.charts.rendering import OPERATOR, ROOT, Object, helm, objects, one

FIXTURES = ROOT / "tests" / "e2e" / "fixtures"
FIRST = {chart: FIXTURES / f"{chart.name}-0.1.0.tgz" for chart in (OPERATOR, PROXY)}
# As users may have them on their command lines.
NOTHING: tuple[str, ...] = ()
NAMED = ("fullnameOverride=tinybird", "serviceAccount.name=robot", "commonLabels.team=data")
OPERATOR_EVERYTHING = (
    "nameOverride=batcher",
    "allowedUpstreams={*.tinybird.co,tinybird.internal}",
    "allowedCollectors={*.svc}",
    "image.tag=0.1.0",
    "rbac.podMonitors=true",
    "monitoring.podMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
    "monitoring.dashboard.enabled=true",
    "resources.limits.memory=512Mi",
)
NAMESPACED = ("watchNamespaces={team-a,team-b}", "crds.enabled=false", "controllerClass=blue")
PROXY_EVERYTHING = (
    "nameOverride=batcher",
    "tinybird.token.existingSecret=tinybird",
    "clients.existingSecret=apps",
    "buffer.maxSize=1Gi",
    "ingress.enabled=true",
    "ingress.host=events.example.com",
    "monitoring.podMonitor.enabled=true",
    "monitoring.dashboard.enabled=true",
)


def made(chart: Path, given: tuple[str, ...]) -> list[Object]:
    sets = [word for each in given for word in ("--set", each)]
    rendered = helm("template", "release", chart, "--namespace", "here", *sets)
    assert rendered.returncode == 0, rendered.stderr
    return objects(rendered.stdout)


def lasting(rendered: list[Object]) -> dict[tuple[str, str, str], Object]:
    """What the API server lets nobody change, and what users' objects refer to, for each object but hooks."""
    found = {}
    for each in rendered:
        metadata, spec = each["metadata"], each.get("spec", {})
        if "helm.sh/hook" in metadata.get("annotations", {}):
            continue
        fixed = {"apiVersion": each["apiVersion"], "roleRef": each.get("roleRef")}
        if each["kind"] == "Deployment":
            fixed |= {"selector": spec["selector"], "account": spec["template"]["spec"]["serviceAccountName"]}
        if each["kind"] == "Service":
            fixed |= {"ports": [(port["name"], port["port"]) for port in spec["ports"]]}
        if each["kind"] == "CustomResourceDefinition":
            fixed |= {field: spec[field] for field in ("group", "scope", "names")}
            assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"
        found[each["kind"], metadata.get("namespace", ""), metadata["name"]] = fixed
    return found


@pytest.mark.parametrize(
    ("chart", "given"),
    [
        (OPERATOR, NOTHING),
        (OPERATOR, NAMED),
        (OPERATOR, OPERATOR_EVERYTHING),
        (OPERATOR, NAMESPACED),
        (PROXY, NOTHING),
        (PROXY, NAMED),
        (PROXY, PROXY_EVERYTHING),
    ],
    ids=lambda part: part.name if isinstance(part, Path) else (part[0].partition("=")[0] if part else "nothing"),
)
def test_what_the_first_chart_made_keeps_its_name_and_what_cannot_change(chart: Path, given: tuple[str, ...]) -> None:
    first, present = lasting(made(FIRST[chart], given)), lasting(made(chart, given))
    assert ("Deployment", "here", one(made(chart, given), "Deployment")["metadata"]["name"]) in first
    for each, fixed in first.items():
        assert present.get(each) == fixed, each


@pytest.mark.parametrize("chart", [OPERATOR, PROXY], ids=lambda chart: chart.name)
def test_the_whole_values_file_of_the_first_chart_is_still_taken(chart: Path) -> None:
    """Many copy it and keep it."""
    shown = helm("show", "values", FIRST[chart])
    assert yaml.safe_load(shown.stdout)["fullnameOverride"] == ""
    rendered = helm("template", "release", chart, "--values", "-", given=shown.stdout)
    assert rendered.returncode == 0, rendered.stderr


def test_the_versions_of_the_resource_that_the_first_chart_served_and_stored_are_still_served() -> None:
    first, present = (one(made(chart, NOTHING), "CustomResourceDefinition") for chart in (FIRST[OPERATOR], OPERATOR))
    served = {version["name"] for version in present["spec"]["versions"] if version["served"]}
    assert {version["name"] for version in first["spec"]["versions"]} <= served


@pytest.mark.parametrize("chart", [OPERATOR, PROXY], ids=lambda chart: chart.name)
def test_the_first_charts_are_those_of_version_0_1_0(chart: Path) -> None:
    shown = yaml.safe_load(helm("show", "chart", FIRST[chart]).stdout)
    assert (shown["name"], shown["version"], shown["appVersion"]) == (chart.name, "0.1.0", "0.1.0")
