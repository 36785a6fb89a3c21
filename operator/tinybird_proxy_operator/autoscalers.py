"""Read what an HPA can be given, and what the HPAs say. What all resources share is read once in a while for all."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final, Generic, TypeVar

from tinybird_proxy_operator.children import is_ours
from tinybird_proxy_operator.errors import Forbidden, Invalid, NotFound, Unavailable
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.observed import Observed
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.scaling import throttle, verdict
from tinybird_proxy_operator.scaling.autoscaling import (
    NONE,
    Plan,
    asked,
    from_adapter,
    from_own_api,
    hpas_of,
    pinned_by,
    with_kept,
)
from tinybird_proxy_operator.scaling.targets import METRICS_GROUP, METRICS_VERSIONS
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy

# How old what was read for another resource may be: a metrics API, and the HPAs of a namespace.
METRICS_API_S: Final = 15.0
HPAS_S: Final = 10.0
API_SERVICES: Final = tuple(f"{version}.{METRICS_GROUP}" for version in METRICS_VERSIONS)
_Value = TypeVar("_Value")


@dataclass(slots=True)
class _Remembered(Generic[_Value]):
    """Values by name, each for a while; whoever asks for one that is being read waits for it."""

    lifetime_s: float
    now: Callable[[], float]
    _values: dict[str, tuple[float, _Value]] = field(default_factory=dict)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, name: str, read: Callable[[], Awaitable[_Value]]) -> _Value:
        """The value, read anew if it is too old. What ``read`` raises is not remembered."""
        async with self._reading:
            oldest = self.now() - self.lifetime_s
            self._values = {key: found for key, found in self._values.items() if found[0] > oldest}
            if name not in self._values:
                self._values[name] = self.now(), await read()
            return self._values[name][1]


class Autoscalers:
    """``now`` is a clock in seconds that only goes forward."""

    def __init__(self, kube: Kube, settings: OperatorSettings, now: Callable[[], float]) -> None:
        self._kube = kube
        self._settings = settings
        self._now = now
        self._services: _Remembered[Sequence[Object] | None] = _Remembered(METRICS_API_S, now)
        self._served: _Remembered[frozenset[str] | None] = _Remembered(METRICS_API_S, now)
        self._hpas: _Remembered[Sequence[Object]] = _Remembered(HPAS_S, now)
        self._throttles: dict[Key, throttle.Throttle] = {}

    async def plan(self, key: Key, proxy: Proxy, status: Mapping[str, Any]) -> Plan:
        """What an HPA of the resource is to be made from. ``status``: the old one of the resource."""
        autoscaling = proxy.spec.autoscaling
        if autoscaling is None or autoscaling.provider == "External":
            return NONE
        wanted = asked(autoscaling)
        if autoscaling.provider == "KEDA":
            plan = Plan(targets=wanted)
        elif autoscaling.provider == "PrometheusAdapter":
            plan = from_adapter(wanted, await self._served.get("", self._read_served))
        else:
            name = self._settings.metrics_api_service
            own = (self._settings.operator_namespace, name) if name else None
            plan = from_own_api(wanted, await self._services.get("", self._read_services), own)
        if not plan.targets:
            live = await self._kube.find("HorizontalPodAutoscaler", proxy.namespace, proxy.name)
            plan = with_kept(plan, live if live is not None and is_ours(live, proxy) else None)
        return replace(plan, throttled=self._throttle(key, status).throttled)

    def saw(self, key: Key, proxy: Proxy, status: Mapping[str, Any], observed: Observed) -> Observed:
        """``observed``, with what its pods say of being throttled."""
        self._throttles[key] = found = throttle.look(self._throttle(key, status), observed.pods, self._now())
        said = throttle.judge(found, autoscaled=proxy.spec.autoscaling is not None)
        return replace(observed, upstream_throttled=said)

    async def judged(self, proxy: Proxy, body: Object, plan: Plan, observed: Observed) -> Observed:
        """``observed``, with what the HPAs say. ``body``: the resource as it was read."""
        if proxy.spec.autoscaling is None:
            return observed
        hpas = hpas_of(proxy, await self._hpas.get(proxy.namespace, lambda: self._read_hpas(proxy.namespace)))
        keda = await self._read_scaled_object(proxy) if hpas.ours is None else None
        said = verdict.judge(proxy, plan, hpas, scaled_object=keda, pinned_by=pinned_by(body))
        return replace(observed, autoscaling=said)

    def again_s(self, key: Key, plan: Plan) -> float:
        """When to look again: at once if throttling began or ended since ``plan``."""
        known = self._throttles.get(key)
        return 0.0 if plan.targets and known is not None and known.throttled != plan.throttled else inf

    def forget(self, key: Key) -> None:
        """The resource is no more, or no longer ours."""
        self._throttles.pop(key, None)

    def _throttle(self, key: Key, status: Mapping[str, Any]) -> throttle.Throttle:
        return self._throttles.get(key) or throttle.remembered(status)

    async def _read_services(self) -> list[Object] | None:
        """None: the operator may not. With rights in namespaces only it has none to what is the whole cluster's."""
        try:
            found = [await self._kube.find("APIService", None, name) for name in API_SERVICES]
        except Forbidden:
            return None
        return [service for service in found if service is not None]

    async def _read_served(self) -> frozenset[str] | None:
        """None: nobody serves the group, or whoever does is not well, which is no fault of the API server's."""
        for version in METRICS_VERSIONS:
            with suppress(NotFound, Unavailable, Forbidden, Invalid):
                return await self._kube.served(f"{METRICS_GROUP}/{version}")
        return None

    async def _read_hpas(self, namespace: str) -> list[Object]:
        try:
            return await self._kube.list("HorizontalPodAutoscaler", namespace)
        except Forbidden:
            return []  # that it cannot make any either is told as a problem

    async def _read_scaled_object(self, proxy: Proxy) -> Object | None:
        """The resource's own, where KEDA has made no HPA of it."""
        autoscaling = proxy.spec.autoscaling
        if autoscaling is None or autoscaling.provider != "KEDA" or not self._settings.scaled_objects:
            return None
        with suppress(Forbidden):
            return await self._kube.find("ScaledObject", proxy.namespace, proxy.name)
        return None
