"""Ask a proxy how it is, on its admin port. ``reconcile`` asks only pods that are ours, because the answer decides."""

import aiohttp
import msgspec

from tinybird_proxy_operator.observed import ProxyReport, read_report

ANSWER_TIMEOUT_S = 2.0
ANSWER_MAX_BYTES = 16 * 2**20


class Pods:
    """Close it with the session that it was given. ``port``: the pods' admin port."""

    def __init__(self, session: aiohttp.ClientSession, *, port: int) -> None:
        self._session = session
        self._port = port

    async def report(self, ip: str) -> ProxyReport | None:
        """What the proxy at ``ip`` says; None if it does not answer, or not like a proxy."""
        host = f"[{ip}]" if ":" in ip else ip
        url, timeout = f"http://{host}:{self._port}/status", aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        body = bytearray()
        try:
            # A redirect would lead the operator to wherever a pod likes.
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                if response.status != 200:
                    return None
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > ANSWER_MAX_BYTES:
                        return None
            return read_report(body)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError):
            return None
