"""What the demo asks of the emulator: to fail for a while, and in the end what arrived."""

from collections.abc import Collection, Mapping
from typing import Any

import aiohttp

from tinybird_proxy.cli.demo.outcome import Arrived
from tinybird_proxy.cli.demo.page_hits import DATA_SOURCE
from tinybird_proxy.cli.demo.scene import FAULTS
from tinybird_proxy.emulator.request_log import MAX_REQUESTS

_TIMEOUT_S = 30.0
# The query names each of them, and is itself limited to 1 MB.
_NAMED_IDS_MAX = 50_000
_ID = "json_extract(__row, '$.id')"


class EmulatorUnreachable(Exception):
    """The emulator did not answer as it should; the message says what it did."""


class Emulated:
    """The emulator at ``url``. Every method raises `EmulatorUnreachable`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    async def create_data_source(self) -> None:
        """Make the data source, so that it can be counted even if no row ever arrives."""
        await self._ask("POST", f"/v0/datasources?name={DATA_SOURCE}")

    async def fail(self) -> None:
        """Answer 503 from now on."""
        await self._ask("PUT", "/emulator/faults", json=FAULTS)

    async def recover(self) -> None:
        """Answer honestly again."""
        await self._ask("DELETE", "/emulator/faults")

    async def arrived(self, not_promised: Collection[int]) -> Arrived:
        """Count what is there, and how much of it is not among the ids ``not_promised``."""
        if len(not_promised) > _NAMED_IDS_MAX:
            raise EmulatorUnreachable(f"more than {_NAMED_IDS_MAX} rows were refused: too many to tell apart")
        listed = ", ".join(map(str, sorted(not_promised)))
        counted = await self._query(
            f"SELECT count() AS row_count, count(DISTINCT {_ID}) AS distinct_count,"  # noqa: S608 - constants, integers
            f" count(DISTINCT CASE WHEN {_ID} NOT IN ({listed}) THEN {_ID} END) AS promised_count FROM {DATA_SOURCE}"
        )
        log = await self._ask("GET", f"/emulator/requests?limit={MAX_REQUESTS}")
        requests = [request for request in log["requests"] if request["path"] == "/v0/events"]
        return Arrived(
            row_count=int(counted["row_count"]),
            distinct_count=int(counted["distinct_count"]),
            promised_count=int(counted["promised_count"]),
            request_count=len(requests),
        )

    async def _query(self, query: str) -> Mapping[str, Any]:
        answer = await self._ask("POST", "/v0/sql", data=query.encode(), content_type="text/plain")
        found: Mapping[str, Any] = answer["data"][0]
        return found

    async def _ask(
        self, method: str, path: str, *, json: object = None, data: bytes | None = None, content_type: str | None = None
    ) -> dict[str, Any]:
        headers = self._headers if content_type is None else {**self._headers, "Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with self._session.request(
                method, self._url + path, json=json, data=data, headers=headers, timeout=timeout
            ) as reply:
                if reply.status != 200:
                    raise EmulatorUnreachable(f"{method} {path}: {reply.status} {(await reply.text())[:200]}")
                answer: dict[str, Any] = await reply.json()
                return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EmulatorUnreachable(f"{method} {path}: {type(error).__name__}") from error
