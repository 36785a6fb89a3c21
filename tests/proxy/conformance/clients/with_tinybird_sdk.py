"""PyPI ``tinybird-sdk``, as an application uses it."""

from typing import Any

from tinybird_sdk import create_client  # type: ignore[import-not-found]


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
    """Do one job."""
    client = create_client({"base_url": base_url, "token": token})
    if query is not None:
        return client.sql(query)
    options: dict[str, Any] = {}
    if wait is not None:
        options["wait"] = wait
    if max_retries is not None:
        options["max_retries"] = max_retries
    if one_by_one:
        return [client.ingest(datasource, row, options) for row in rows]
    if len(rows) == 1:
        return client.ingest(datasource, rows[0], options)
    return client.ingest_batch(datasource, rows, options)


def told_by(error: Exception) -> tuple[str, int | None]:
    """What an application can read off the error: the message and the status."""
    return str(error), getattr(error, "status_code", None)
