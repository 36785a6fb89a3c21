"""Alerts and dashboard of the operator's chart: promtool runs the alerts, and both name only metrics that there are."""

import json
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from tests.charts.rendering import OPERATOR, one, render, tool
from tests.proxy.test_telemetry_prometheus import EMPTY, facts

from tinybird_proxy import admission
from tinybird_proxy.telemetry import prometheus
from tinybird_proxy_operator.metrics import Meters, Telemetry
from tinybird_proxy_operator.metrics_api import telemetry as metrics_api
from tinybird_proxy_operator.webhook import telemetry as webhook

RULES = OPERATOR / "files" / "alerts.yaml"
RULE_TESTS = Path(__file__).parent / "alerts_test.yaml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((OPERATOR / "files" / "dashboard.json").read_text())
NAME = re.compile(r"\btinybird_proxy_[a-z_]+\b")
# What means that rows are lost, wait or soon will: each has its alert.
GRAVE = {
    "rows_dropped_total",
    "letter_rows_evicted_total",
    "letter_rows_lost_at_exit_total",
    "ledger_imbalance_rows",
    "rows_not_delivering",
    "buffer_utilisation_ratio",
    "requests_refused_total",
    "dead_letters_total",
    "dead_letter_bytes",
    "rows_quarantined_total",
    "internal_errors_total",
    "sender_restarts_total",
    "ready",
    "event_loop_lag_seconds",
    "operator_rows_lost_total",
    "operator_reconciles_total",
    "operator_queue_oldest_age_seconds",
    "operator_last_reconcile_age_seconds",
    "operator_resources",
    "operator_leader",
    "metrics_api_reached",
    "metrics_api_certificate_expiry_seconds",
    "webhook_registered",
    "webhook_reviews_total",
    "webhook_certificate_expiry_seconds",
}


def emitted() -> set[str]:
    """The names of all samples that proxy and operator show, from the types on their pages."""
    meters = Meters(heard_at=1.0, reconciled_at=1.0)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        Telemetry(
            meters,
            queue_depth=lambda: 0,
            queue_age_s=lambda: 0.0,
            resources=lambda: 0,
            is_leader=lambda: True,
            now=lambda: 2.0,
        )
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    registry.register(metrics_api.Telemetry(metrics_api.Standing(certificate_ends_at=now), utc_now=lambda: now))
    registry.register(webhook.Telemetry(webhook.Standing(certificate_ends_at=now), utc_now=lambda: now))
    pages = generate_latest(registry).decode() + prometheus.render(EMPTY).decode()
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", pages, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


def expressions() -> list[str]:
    """Every query of the dashboard, those of its variables too."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return queries + [v["definition"] for v in DASHBOARD["templating"]["list"] if "definition" in v]


def test_promtool_sees_each_alert_fire_when_it_must_and_only_then(tmp_path: Path) -> None:
    tests = tmp_path / "alerts_test.yaml"
    tests.write_text(RULE_TESTS.read_text().replace("RULES", str(RULES)))
    checked = subprocess.run([tool("promtool"), "check", "rules", RULES], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    run = subprocess.run([tool("promtool"), "test", "rules", tests], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_is_tried_both_ways() -> None:
    tried: dict[bool, set[str]] = {True: set(), False: set()}
    for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            tried[bool(case["exp_alerts"])].add(case["alertname"])
    assert tried[True] == tried[False] == {alert["alert"] for alert in ALERTS}
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)


def test_alerts_name_metrics_that_there_are_and_leave_out_none_that_is_grave() -> None:
    used = {name for alert in ALERTS for name in NAME.findall(alert["expr"])}
    assert used - emitted() == set()
    assert {f"tinybird_proxy_{name}" for name in GRAVE} - used == set()


def test_the_reasons_that_alerts_look_for_are_those_of_the_code() -> None:
    source = Path(admission.__file__).read_text()
    [alert] = [alert for alert in ALERTS if alert["alert"] == "TinybirdProxyRefusesRows"]
    [reasons] = re.findall(r'reason=~"(.*?)"', alert["expr"])
    by_reason = {reason: status for status, reason in re.findall(r'Refusal\((\d+), "(\w+)"', source)}
    # 413 is the client's own doing.
    assert set(reasons.split("|")) == {reason for reason, status in by_reason.items() if status != "413"}


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert len(alert["annotations"]["summary"]) > 20
        assert len(alert["annotations"]["description"]) > 40


def test_the_dashboard_names_only_metrics_that_there_are() -> None:
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used - emitted() == set()


def test_the_dashboard_shows_every_way_in_which_rows_are_lost() -> None:
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    ways = ("rows_dropped", "letter_rows_evicted", "letter_rows_lost_at_exit", "operator_rows_lost")
    assert {f"tinybird_proxy_{way}_total" for way in ways} - used == set()


def test_the_dashboard_groups_only_by_labels_that_there_are() -> None:
    page = prometheus.render(replace(EMPTY, destinations=(facts("a"),))).decode()
    for expression in expressions():
        for by, name in re.findall(r"sum by \((\w+)\) \((?:rate\()?(tinybird_proxy_\w+)", expression):
            if by == "pod" or name.endswith("_bucket"):
                continue
            family = name.removesuffix("_total")
            kinds = dict(re.findall(rf"^# TYPE ({family}\w*) (\w+)$", page, re.MULTILINE))
            assert kinds, name
            samples = re.findall(rf"^{name}\{{(.*?)}} ", page, re.MULTILINE)
            assert not samples or f'{by}="' in samples[0], expression


def test_the_dashboard_shows_each_panel_once_and_in_its_place() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_chart_ships_the_files_unchanged() -> None:
    rendered = render(OPERATOR, values=OPERATOR / "ci" / "everything-values.yaml")
    assert one(rendered, "PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())
    assert json.loads(one(rendered, "ConfigMap")["data"]["tinybird-proxy.json"]) == DASHBOARD
    assert not {"PrometheusRule", "PodMonitor", "ConfigMap"} & {each["kind"] for each in render(OPERATOR)}


CERTIFICATES = {"metricsAPI": "TinybirdProxyMetricsAPICertificate", "webhook": "TinybirdProxyWebhookCertificate"}


@pytest.mark.parametrize("part", CERTIFICATES)
@pytest.mark.parametrize(("lifetime_s", "late_s"), [(7_776_000, 1_296_000), (86_400, 14_400)])
def test_late_means_half_of_the_time_for_renewal(part: str, lifetime_s: int, late_s: int) -> None:
    given = {
        part: {"certificates": {"lifetimeSeconds": lifetime_s}},
        "monitoring": {"prometheusRule": {"enabled": True}},
    }
    groups = one(render(OPERATOR, given=given), "PrometheusRule")["spec"]["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    for each, alert in CERTIFICATES.items():
        its_late_s = late_s if each == part else 1_296_000
        name = {"metricsAPI": "metrics_api", "webhook": "webhook"}[each]
        assert rules[alert] == f"tinybird_proxy_{name}_certificate_expiry_seconds < {its_late_s}"


@pytest.mark.parametrize(("resync_s", "idle_s"), [(60, 900), (300, 900), (1000, 3000)])
def test_idle_means_three_intervals_without_a_look(resync_s: int, idle_s: int) -> None:
    given = {"resyncSeconds": resync_s, "monitoring": {"prometheusRule": {"enabled": True}}}
    rules = one(render(OPERATOR, given=given), "PrometheusRule")["spec"]["groups"][1]["rules"]
    [idle] = [rule["expr"] for rule in rules if rule["alert"] == "TinybirdProxyOperatorIdle"]
    assert idle.startswith(f"tinybird_proxy_operator_last_reconcile_age_seconds > {idle_s} and ")
