"""Ask a proxy how it is, and to drain, on its admin port.

``reconcile`` asks only pods that are ours: the answers decide, and the token is theirs.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import aiohttp
import msgspec

from tinybird_proxy_operator.observed import ProxyReport
from tinybird_proxy_operator.proxy_answers import DrainState, read_drain, read_report

ANSWER_TIMEOUT_S = 2.0
ANSWER_MAX_BYTES = 16 * 2**20
_Answer = TypeVar("_Answer")


class Pods:
    """Close it with the session that it was given. ``port``: the pods' admin port."""

    def __init__(self, session: aiohttp.ClientSession, *, port: int) -> None:
        self._session = session
        self._port = port

    async def report(
        self, ip: str, *, port: int | None = None, reading: asyncio.Semaphore | None = None
    ) -> ProxyReport | None:
        """What the proxy at ``ip`` says; None if it does not answer, or not like a proxy.

        ``reading``: held while its answer is read, for whoever asks many and has no memory for all of their answers.
        """
        return await self._ask("GET", ip, "/status", read_report, port=port, reading=reading)

    async def status(self, ip: str, read: Callable[[bytearray], _Answer], *, port: int | None = None) -> _Answer | None:
        """The same, as ``read`` makes it of the body; it raises ``msgspec.DecodeError`` if that is no proxy's."""
        return await self._ask("GET", ip, "/status", read, port=port)

    async def begin_drain(self, ip: str, token: str) -> DrainState | None:
        """Have the proxy at ``ip`` refuse what is new and deliver the rest. None if it does not.

        Once more changes nothing.
        """
        said = await self._ask("POST", ip, "/drain", read_drain, token=token)
        return said if said is not None and said.draining else None

    async def cancel_drain(self, ip: str, token: str) -> bool:
        """Have the proxy at ``ip`` serve as before. False if it does not, for instance because its process stops."""
        said = await self._ask("DELETE", ip, "/drain", read_drain, token=token)
        return said is not None and not said.draining

    async def _ask(
        self,
        method: str,
        ip: str,
        path: str,
        read: Callable[[bytearray], _Answer],
        *,
        token: str | None = None,
        port: int | None = None,
        reading: asyncio.Semaphore | None = None,
    ) -> _Answer | None:
        host = f"[{ip}]" if ":" in ip else ip
        url, timeout = f"http://{host}:{port or self._port}{path}", aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = bytearray()
        try:
            # A redirect would lead the operator, and the token, to wherever a pod likes.
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),  # the client's own does not run while it is not read
                self._session.request(method, url, headers=headers, timeout=timeout, allow_redirects=False) as response,
            ):
                if response.status not in (200, 202):
                    return None
                async with reading or nullcontext():
                    async for chunk in response.content.iter_any():
                        body += chunk
                        if len(body) > ANSWER_MAX_BYTES:
                            return None
                    return read(body)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError):
            return None
