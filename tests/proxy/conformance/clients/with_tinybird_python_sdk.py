"""PyPI ``tinybird-python-sdk``, as an application uses it: a buffered ``Datasource``, or ``API`` for ``wait``."""

import json
from typing import Any

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
    with Datasource(datasource, token, api_url=base_url) as writer:
        for row in rows:
            writer << (row if isinstance(row, dict) else json.dumps(row))
    return None


def told_by(error: Exception) -> tuple[str, int | None]:
    """What an application can read off the error: the message, with what the answer said, and the status."""
    response = getattr(error, "response", None)
    if response is None:
        return str(error), None
    return f"{error}: {response.json()['error']}", response.status_code
