"""Which pods a query is about, and how their answers become values."""

from datetime import UTC, datetime

import pytest

from tinybird_proxy_operator.metrics_api.api import PODS, PROXIES, MetricQuery, Refused
from tinybird_proxy_operator.metrics_api.inventory import Inventory, OurPod
from tinybird_proxy_operator.metrics_api.scrape import Scraped
from tinybird_proxy_operator.metrics_api.selectors import parse
from tinybird_proxy_operator.metrics_api.values import values_of, wanted_pods
from tinybird_proxy_operator.names import DRAINING_LABEL
from tinybird_proxy_operator.scaling.targets import METRICS

AT, EARLIER = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
PERCENT, ROWS, SECONDS, CPU = METRICS


def query(resource: str = PODS, name: str = "*", metric: str = ROWS, selector: str = "") -> MetricQuery:
    return MetricQuery(
        version="v1beta2", namespace="shop", resource=resource, name=name, metric=metric, selector=parse(selector)
    )


def pod(name: str, proxy: str = "events", **labels: str) -> OurPod:
    return OurPod(uid=name, name=name, ip="", proxy=proxy, labels={"proxy": proxy, **labels})


DRAINING = pod("events-2", **{DRAINING_LABEL: "true"})
INVENTORY = Inventory(
    {"events": {"team": "a"}, "logs": {"team": "b"}, "empty": {}},
    (pod("events-0"), pod("events-1"), DRAINING, pod("logs-0", "logs")),
)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (query(), ["events-0", "events-1", "logs-0"]),
        (query(selector="proxy=events"), ["events-0", "events-1"]),
        (query(selector=f"proxy=events,!{DRAINING_LABEL}"), ["events-0", "events-1"]),
        (query(selector=DRAINING_LABEL), ["events-2"]),
        (query(selector="proxy=other"), []),
        (query(name="events-0", selector="proxy=other"), ["events-0"]),
        (query(name="events-2"), ["events-2"]),
        (query(name="other"), []),
        (query(PROXIES, "events"), ["events-0", "events-1"]),
        (query(PROXIES, "empty"), []),
        (query(PROXIES), ["events-0", "events-1", "logs-0"]),
        (query(PROXIES, selector="team=b"), ["logs-0"]),
    ],
)
def test_a_query_is_about_these_pods(asked: MetricQuery, names: list[str]) -> None:
    assert [found.name for found in wanted_pods(asked, INVENTORY)] == names


def said(at: datetime = AT, **values: int) -> Scraped:
    return Scraped({f"tinybird_proxy_{name}": value for name, value in values.items()}, at)


def test_each_pod_that_answers_has_a_value_and_no_other() -> None:
    answers = [(pod("a"), said(buffer_rows=3)), (pod("b"), None), (pod("c"), said(cpu_percent=9)), (pod("d"), None)]
    [value] = values_of(query(), answers)
    assert (value.kind, value.api_version, value.namespace, value.name, value.value) == ("Pod", "/v1", "shop", "a", 3)
    assert value.at == AT


@pytest.mark.parametrize(("metric", "value"), [(ROWS, 7), (PERCENT, 60), (SECONDS, 5), (CPU, 90)])
def test_the_rows_of_a_proxy_add_up_and_the_worst_pod_stands_for_the_rest(metric: str, value: int) -> None:
    one = said(buffer_rows=3, buffer_utilization_percent=60, drain_time_seconds=0, cpu_percent=90)
    other = said(EARLIER, buffer_rows=4, buffer_utilization_percent=10, drain_time_seconds=5, cpu_percent=1)
    [found] = values_of(query(PROXIES, "events", metric), [(pod("a"), one), (pod("b"), other)])
    assert (found.kind, found.api_version, found.name) == ("TinybirdProxy", "tinybird-proxy.io/v1alpha1", "events")
    assert (found.value, found.at) == (value, EARLIER)


def test_a_sum_without_one_of_the_pods_is_no_sum_and_a_maximum_is() -> None:
    answers = [
        (pod("a"), said(buffer_rows=3, cpu_percent=9)),
        (pod("b"), None),
        (pod("l", "logs"), said(buffer_rows=1)),
    ]
    assert [(value.name, value.value) for value in values_of(query(PROXIES), answers)] == [("logs", 1)]
    [cpu] = values_of(query(PROXIES, "events", CPU), answers[:2])
    assert cpu.value == 9
    with pytest.raises(Refused, match="a pod of events does not say it") as refused:
        values_of(query(PROXIES), answers[:2])
    assert refused.value.code == 503


def test_several_proxies_have_a_value_each() -> None:
    answers = [
        (pod("l", "logs"), said(buffer_rows=1)),
        (pod("a"), said(buffer_rows=3)),
        (pod("b"), said(buffer_rows=4)),
    ]
    found = values_of(query(PROXIES), answers)
    assert [(value.name, value.value) for value in found] == [("events", 7), ("logs", 1)]


def test_no_pod_is_not_found_and_silence_is_an_error_and_neither_is_zero() -> None:
    with pytest.raises(Refused, match="no running pod of a TinybirdProxy there fits") as refused:
        values_of(query(), [])
    assert refused.value.code == 404
    with pytest.raises(Refused) as refused:
        values_of(query(), [(pod("a"), None), (pod("b"), said(cpu_percent=1))])
    assert refused.value.code == 503
    assert str(refused.value) == (
        f"there is no {ROWS} of pods/* in shop now: none of its pods says it (a, b); see whether they run"
    )
