"""PyPI ``tinybird-python-sdk``, as an application uses it: a buffered ``Datasource``, or ``API`` for ``wait``."""

import asyncio
import json
from typing import Any

from tb.a.api import AsyncAPI  # type: ignore[import-not-found]
from tb.a.datasource import AsyncDatasource  # type: ignore[import-not-found]
from tb.api import API  # type: ignore[import-not-found]
from tb.datasource import Datasource  # type: ignore[import-not-found]


def run(
    *,
    base_url: str,
    token: str,
    datasource: str,
    rows: list[Any],
    one_by_one: bool,
    wait: bool | None,
    max_retries: int | None,
    query: str | None,
    by: str | None,
) -> Any:
    """Do one job. This client has no say about retries."""
    if query is not None:
        return API(token, base_url).get("sql", params={"q": query}).json()
    if wait is not None:
        api = API(token, base_url)
        asked = {"name": datasource, "wait": "true" if wait else "false"}
        if one_by_one:
            return [api.post("events", params=asked, data=json.dumps(row)).json() for row in rows]
        return api.post("events", params=asked, data="\n".join(map(json.dumps, rows))).json()
    match by:
        case "AsyncDatasource":
            return asyncio.run(_write(AsyncDatasource(datasource, token, api_url=base_url), rows))
        case "TinybirdLitellmSyncHandler":  # this is all that it does, besides asking litellm
            return API(token, base_url).send(f"events?name={datasource}", data=json.dumps(rows[0])).status_code
        case "TinybirdLitellmAsyncHandler":
            return asyncio.run(_send(AsyncAPI(token, base_url), f"events?name={datasource}", json.dumps(rows[0])))
    with Datasource(datasource, token, api_url=base_url) as writer:
        for row in rows:
            writer << (row if isinstance(row, dict) else json.dumps(row))
    return None


async def _write(writer: Any, rows: list[Any]) -> None:
    async with writer:
        for row in rows:
            await writer.append(row)
        await writer.buffer.flush()  # closing it does not: by itself it would do that after a second


async def _send(api: Any, path: str, body: str) -> int:
    async with api:
        status: int = (await api.send(path, data=body)).status
        return status


def told_by(error: Exception) -> tuple[str, int | None]:
    """What an application can read off the error: the message, with what the answer said, and the status."""
    response = getattr(error, "response", None)
    if response is None:
        return str(error), None
    return f"{error}: {response.json()['error']}", response.status_code
