"""Read what an HPA can be given, and what the HPAs say. What all resources share is read once in a while for all."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final

from tinybird_proxy_operator.children import is_ours
from tinybird_proxy_operator.errors import Forbidden, Invalid, NotFound, Unavailable
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import Observed
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.recent import Recent
from tinybird_proxy_operator.scaling import throttle, verdict
from tinybird_proxy_operator.scaling.autoscaling import (
    NONE,
    Plan,
    asked,
    from_adapter,
    from_own_api,
    hpas_of,
    pinned_by,
    unread,
    with_kept,
)
from tinybird_proxy_operator.scaling.targets import METRICS_GROUP, METRICS_VERSIONS
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy

# How old what was read for another resource may be: a metrics API, and the HPAs of a namespace.
METRICS_API_S: Final = 15.0
HPAS_S: Final = 10.0
API_SERVICES: Final = tuple(f"{version}.{METRICS_GROUP}" for version in METRICS_VERSIONS)
# Somebody else's server behind the API server: nobody waits longer for it.
READ_TIMEOUT_S: Final = 3.0
_NAMESPACES_MAX: Final = 10_000
_AT_ONCE: Final = 4
_ALL: Final = ""


@dataclass(frozen=True, slots=True)
class _Unread:
    """What could not be read, and why. It is remembered like an answer: else each resource would wait for it anew."""

    why: str


class Autoscalers:
    """``now`` is a clock in seconds that only goes forward."""

    def __init__(self, kube: Kube, settings: OperatorSettings, now: Callable[[], float]) -> None:
        self._kube = kube
        self._settings = settings
        self._now = now
        self._services: Recent[str, Sequence[Object] | _Unread | None] = Recent(
            self._read_services, keep_s=METRICS_API_S, capacity=1, at_once=1, now=now
        )
        self._served: Recent[str, frozenset[str] | None] = Recent(
            self._read_served, keep_s=METRICS_API_S, capacity=1, at_once=1, now=now
        )
        self._hpas: Recent[str, Sequence[Object] | _Unread] = Recent(
            self._read_hpas, keep_s=HPAS_S, capacity=_NAMESPACES_MAX, at_once=_AT_ONCE, now=now
        )
        self._throttles: dict[Key, throttle.Throttle] = {}
        self._scaled: set[Key] = set()  # an HPA adds and removes their pods

    async def close(self) -> None:
        """Read no more."""
        for recent in (self._services, self._served, self._hpas):
            await recent.close()

    async def plan(self, key: Key, proxy: Proxy, status: Mapping[str, Any]) -> Plan:
        """What an HPA of the resource is to be made from. ``status``: the old one of the resource."""
        autoscaling = proxy.spec.autoscaling
        self._scaled.discard(key)
        if autoscaling is None or autoscaling.provider == "External":
            return NONE
        wanted = asked(autoscaling)
        if autoscaling.provider == "KEDA":
            plan = Plan(targets=wanted)
        elif autoscaling.provider == "PrometheusAdapter":
            plan = from_adapter(wanted, await self._served.get(_ALL))
        else:
            name = self._settings.metrics_api_service
            own = (self._settings.operator_namespace, name) if name else None
            services = await self._services.get(_ALL)
            if isinstance(services, _Unread):
                plan = unread(wanted, services.why)
            else:
                namespaced = bool(self._settings.watch_namespaces)
                plan = from_own_api(wanted, services, own, namespaced=namespaced)
        if not plan.targets:
            live = await self._kube.find("HorizontalPodAutoscaler", proxy.namespace, proxy.name)
            plan = with_kept(plan, live if live is not None and is_ours(live, proxy) else None)
        if plan.targets:
            self._scaled.add(key)
        return replace(plan, throttled=self._throttle(key, status).throttled)

    def saw(self, key: Key, status: Mapping[str, Any], observed: Observed) -> Observed:
        """``observed``, with what its pods say of being throttled."""
        self._throttles[key] = found = throttle.look(self._throttle(key, status), observed.pods, self._now())
        said = throttle.judge(found, autoscaled=key in self._scaled)
        return replace(observed, upstream_throttled=said)

    async def judged(self, proxy: Proxy, body: Object, plan: Plan, observed: Observed) -> Observed:
        """``observed``, with what the HPAs say. ``body``: the resource as it was read."""
        if proxy.spec.autoscaling is None:
            return observed
        found = await self._hpas.get(proxy.namespace)
        if isinstance(found, _Unread):  # it is only told: everything else goes on
            text = f"The HPAs could not be read: {found.why}."
            return replace(observed, autoscaling=("Unknown", Reason.UNKNOWN, text))
        hpas = hpas_of(proxy, found)
        keda = await self._read_scaled_object(proxy) if hpas.ours is None else None
        if isinstance(keda, _Unread):
            text = f"The ScaledObject could not be read: {keda.why}."
            return replace(observed, autoscaling=("Unknown", Reason.UNKNOWN, text))
        said = verdict.judge(proxy, plan, hpas, scaled_object=keda, pinned_by=pinned_by(body))
        return replace(observed, autoscaling=said)

    def again_s(self, key: Key, plan: Plan) -> float:
        """When to look again: at once if throttling began or ended since ``plan``."""
        known = self._throttles.get(key)
        return 0.0 if plan.targets and known is not None and known.throttled != plan.throttled else inf

    def forget(self, key: Key) -> None:
        """The resource is no more, or no longer ours."""
        self._throttles.pop(key, None)
        self._scaled.discard(key)

    def _throttle(self, key: Key, status: Mapping[str, Any]) -> throttle.Throttle:
        return self._throttles.get(key) or throttle.remembered(status)

    async def _read_services(self, _: str) -> list[Object] | _Unread | None:
        """None: the operator may not. With rights in namespaces only it has none to what is the whole cluster's."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                found = [await self._kube.find("APIService", None, name) for name in API_SERVICES]
        except Forbidden:
            return None
        except (Unavailable, TimeoutError) as error:
            return _unread(error)
        return [service for service in found if service is not None]

    async def _read_served(self, _: str) -> frozenset[str] | None:
        """None: nobody serves the group, or whoever does is not well, which is no fault of the API server's."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_TIMEOUT_S):
                for version in METRICS_VERSIONS:
                    with suppress(NotFound, Unavailable, Forbidden, Invalid):
                        return await self._kube.served(f"{METRICS_GROUP}/{version}")
        return None

    async def _read_hpas(self, namespace: str) -> list[Object] | _Unread:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await self._kube.list("HorizontalPodAutoscaler", namespace)
        except Forbidden:
            return []  # that it cannot make any either is told as a problem
        except (Unavailable, TimeoutError) as error:
            return _unread(error)

    async def _read_scaled_object(self, proxy: Proxy) -> Object | _Unread | None:
        """The resource's own, where KEDA has made no HPA of it."""
        autoscaling = proxy.spec.autoscaling
        if autoscaling is None or autoscaling.provider != "KEDA" or not self._settings.scaled_objects:
            return None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await self._kube.find("ScaledObject", proxy.namespace, proxy.name)
        except Forbidden:
            return None
        except (Unavailable, TimeoutError) as error:
            return _unread(error)


def _unread(error: Exception) -> _Unread:
    return _Unread(str(error) or f"no answer within {READ_TIMEOUT_S:g} s")
