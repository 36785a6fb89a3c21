"""Read the metrics off the pods' open ``/metrics``, when somebody asks for them."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import aiohttp

from tinybird_proxy_operator.metrics_api.inventory import OurPod
from tinybird_proxy_operator.recent import Recent
from tinybird_proxy_operator.scaling.targets import METRICS

KEEP_S: Final = 1.0
ANSWER_TIMEOUT_S: Final = 1.0
ANSWER_MAX_BYTES: Final = 4 * 2**20
PODS_AT_ONCE: Final = 64
_PODS_KEPT: Final = 5000


@dataclass(frozen=True, slots=True)
class Scraped:
    """What a pod said, and when."""

    values: Mapping[str, int]
    at: datetime


def read_metrics(body: bytes) -> dict[str, int]:
    """Our gauges in Prometheus' text format; what is no number from 0 on is left out. Fractions count as a whole."""
    found = {}
    for line in body.split(b"\n"):
        name, _, rest = line.partition(b" ")
        metric = name.decode("ascii", "replace")
        if metric not in METRICS:
            continue
        try:
            value = float(rest.split()[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value) and value >= 0:
            found[metric] = math.ceil(value)
    return found


class Scraper:
    """Asks pods. ``port``: their admin port. ``now``: a clock in seconds; ``utc_now``: what values are dated with."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        port: int,
        now: Callable[[], float],
        utc_now: Callable[[], datetime],
        count: Callable[[str], None],
    ) -> None:
        self._session = session
        self._port = port
        self._utc_now = utc_now
        self._count = count
        self._recent: Recent[tuple[str, str], Scraped | None] = Recent(
            self._scraped, keep_s=KEEP_S, capacity=_PODS_KEPT, at_once=PODS_AT_ONCE, now=now
        )

    async def ask(self, pod: OurPod) -> Scraped | None:
        """What a pod says; None if it does not answer, or not like a proxy."""
        return await self._recent.get((pod.uid, pod.ip))

    async def close(self) -> None:
        """Ask no more."""
        await self._recent.close()

    async def _scraped(self, pod: tuple[str, str]) -> Scraped | None:
        body = await self._body(pod[1])
        values = {} if body is None else read_metrics(body)
        self._count("ok" if values else "error")
        return Scraped(values, self._utc_now()) if values else None

    async def _body(self, ip: str) -> bytes | None:
        url = f"http://{f'[{ip}]' if ':' in ip else ip}:{self._port}/metrics"
        body = bytearray()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                # A redirect would lead us to wherever a pod likes.
                async with self._session.get(url, allow_redirects=False) as response:
                    if response.status != 200:
                        return None
                    async for chunk in response.content.iter_any():
                        body += chunk
                        if len(body) > ANSWER_MAX_BYTES:
                            return None
        except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
            return None
        return bytes(body)
