"""The values that answer a query: found, asked for, and put together."""

import asyncio
from collections.abc import Sequence
from typing import Final

from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.metrics_api.api import ALL, PODS, MetricQuery, Refused, Value
from tinybird_proxy_operator.metrics_api.inventory import Inventories, Inventory, OurPod
from tinybird_proxy_operator.metrics_api.scrape import Scraped, Scraper
from tinybird_proxy_operator.names import API_VERSION, DRAINING_LABEL, KIND, some

# What adds up over the pods of a TinybirdProxy. Of the others the largest counts: shares and seconds do not add up.
_SUMMED: Final = frozenset(("tinybird_proxy_buffer_rows",))
Answers = Sequence[tuple[OurPod, Scraped | None]]


def wanted_pods(query: MetricQuery, inventory: Inventory) -> list[OurPod]:
    """The pods that a query is about.

    Draining ones are not, unless they are named or the selector speaks of draining: they take nothing new, and go.
    """
    if query.resource == PODS and query.name != ALL:
        return [pod for pod in inventory.pods if pod.name == query.name]
    if query.resource == PODS:
        named = query.selector.speaks_of(DRAINING_LABEL)
        return [
            pod
            for pod in inventory.pods
            if query.selector.matches(pod.labels) and (named or DRAINING_LABEL not in pod.labels)
        ]
    proxies = {query.name} if query.name != ALL else set()
    if query.name == ALL:
        proxies = {name for name, labels in inventory.proxies.items() if query.selector.matches(labels)}
    return [pod for pod in inventory.pods if pod.proxy in proxies and DRAINING_LABEL not in pod.labels]


def values_of(query: MetricQuery, answers: Answers) -> list[Value]:
    """Put answers together: a value a pod, or one for each TinybirdProxy, the sum of rows and the maximum of the rest.

    A pod without an answer is left out. Raises ``Refused`` if none is left, for nothing is not zero: 404 where there is
    no pod to ask, 503 where none of them answers.
    """
    if not answers:
        raise Refused(404, f"there is no {query}: no running pod of a TinybirdProxy there fits")
    said = [
        (pod, scraped.values[query.metric], scraped.at)
        for pod, scraped in answers
        if scraped is not None and query.metric in scraped.values
    ]
    if not said:
        silent = some([pod.name for pod, _ in answers])
        raise Refused(503, f"there is no {query} now: none of its pods says it ({silent}); see whether they run")
    if query.resource == PODS:
        return [
            Value(kind="Pod", api_version="/v1", namespace=query.namespace, name=pod.name, value=value, at=at)
            for pod, value, at in said
        ]
    combine = sum if query.metric in _SUMMED else max
    # A sum without one of the pods is no sum: it would say least when the fullest is too busy to answer.
    partial = {pod.proxy for pod, scraped in answers if scraped is None or query.metric not in scraped.values}
    names = sorted({pod.proxy for pod, _, _ in said} - (partial if combine is sum else set()))
    if not names:
        raise Refused(503, f"there is no {query} now: a pod of {some(sorted(partial))} does not say it")
    values = []
    for name in names:
        its = [(value, at) for pod, value, at in said if pod.proxy == name]
        values.append(
            Value(
                kind=KIND,
                api_version=API_VERSION,
                namespace=query.namespace,
                name=name,
                value=combine(value for value, _ in its),
                at=min(at for _, at in its),
            )
        )
    return values


class Values:
    """Answers queries."""

    def __init__(self, inventories: Inventories, scraper: Scraper) -> None:
        self._inventories = inventories
        self._scraper = scraper

    async def answer(self, query: MetricQuery) -> list[Value]:
        """At least one value. Raises ``Refused``."""
        try:
            inventory = await self._inventories.of(query.namespace)
        except KubeError as error:
            raise Refused(
                503, f"there is no {query} now: the API server did not say which pods run: {error}"
            ) from error
        pods = wanted_pods(query, inventory)
        answers = await asyncio.gather(*map(self._scraper.ask, pods))
        return values_of(query, list(zip(pods, answers, strict=True)))
