"""Kubernetes Events about a TinybirdProxy: fixed reasons, each told once in a while."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from tinybird_proxy_operator.errors import KubeError, NamespaceTerminating
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import API_VERSION, FIELD_MANAGER, KIND, Reason
from tinybird_proxy_operator.spec import Proxy

REPEAT_AFTER_S = 600.0
_REMEMBERED_MAX = 10_000
_MESSAGE_MAX_CHARS = 1000


@dataclass(slots=True)
class Events:
    """``now`` is a clock in seconds, ``utc_now`` the wall's, ``chance`` makes the end of a name."""

    kube: Kube
    instance: str
    now: Callable[[], float]
    utc_now: Callable[[], datetime]
    chance: Callable[[], str]
    _told: dict[tuple[str, str, str], float] = field(default_factory=dict)

    async def tell(self, proxy: Proxy, reason: Reason, message: str, *, warning: bool, about: str = "") -> None:
        """Tell it, unless the same was told a short while ago. An Event that cannot be written is no error.

        ``about`` tells apart Events of one reason; the message does not, for it may be full of figures.
        Raises ``NamespaceTerminating``: then there is nobody left to tell.
        """
        key, now = (proxy.uid, str(reason), about), self.now()
        if now - self._told.get(key, float("-inf")) < REPEAT_AFTER_S:
            return
        if len(self._told) >= _REMEMBERED_MAX:
            self._told.clear()
        self._told[key] = now
        at = self.utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            await self.kube.create(
                {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {"name": f"{proxy.name}.{self.chance()}", "namespace": proxy.namespace},
                    "involvedObject": {
                        "apiVersion": API_VERSION,
                        "kind": KIND,
                        "name": proxy.name,
                        "namespace": proxy.namespace,
                        "uid": proxy.uid,
                        "resourceVersion": proxy.resource_version,
                    },
                    "reason": str(reason),
                    "message": message[:_MESSAGE_MAX_CHARS],
                    "type": "Warning" if warning else "Normal",
                    "source": {"component": FIELD_MANAGER},
                    "reportingComponent": FIELD_MANAGER,
                    "reportingInstance": self.instance,
                    "firstTimestamp": at,
                    "lastTimestamp": at,
                    "count": 1,
                }
            )
        except NamespaceTerminating:
            raise
        except KubeError:
            self._told.pop(key, None)
