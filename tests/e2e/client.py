"""What tests do from inside of the cluster. It runs in the pod `tinybird`: ``python -c "$(cat client.py)" COMMAND …``.

Each command prints one JSON document.

    serve                  commands from stdin until it ends, each a line with a JSON list; for each a line with
                           {"said": what the command would have printed} or {"failed": why}
    post URL TOKEN ID...   one row for each id; prints the statuses
    load URL TOKEN PAUSE_S posts rows, each of some clients one by one, until stdin ends; a number there is another
                           pause from then on; prints {"accepted": [id], "other": {what: count}}
    spread URL TOKEN ID... one row for each id, each by a connection of its own; prints the statuses
    rows                   the ids that the emulator has, sorted
    faults JSON            what the emulator does to requests from now on
    get URL                what is there
"""

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import aiohttp

EMULATOR = "http://127.0.0.1:7181"
EMULATOR_TOKEN = "p.admin"
LOAD_WORKERS = 4
CONNECT_ATTEMPTS = 10
CONNECT_PAUSE_S = 0.3
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=10)


async def main(command: str, *args: str) -> Any:
    async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:
        match command, args:
            case "serve", ():
                return await serve()
            case "post", (url, token, *ids):
                return [await post_soon(session, url, token, each) for each in ids]
            case "load", (url, token, pause_s):
                return await load(session, url, token, float(pause_s))
            case "spread", (url, token, *ids):
                async with aiohttp.ClientSession(
                    timeout=REQUEST_TIMEOUT, connector=aiohttp.TCPConnector(force_close=True)
                ) as each_anew:
                    return [await post_soon(each_anew, url, token, each) for each in ids]
            case "rows", ():
                return await rows(session)
            case "faults", (faults,):
                async with session.put(f"{EMULATOR}/emulator/faults", json={"faults": json.loads(faults)}) as response:
                    return await answer(response)
            case "get", (url,):
                async with session.get(url) as response:
                    return await answer(response)
    raise SystemExit(f"{command}: no such command, or other arguments")


async def serve() -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            told = {"said": await main(*json.loads(line))}
        except (SystemExit, aiohttp.ClientError, OSError) as error:
            told = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)


async def answer(response: aiohttp.ClientResponse) -> Any:
    if response.status >= 300:
        raise SystemExit(f"{response.url}: {response.status} {await response.text()}")
    return await response.json()


async def post(session: aiohttp.ClientSession, url: str, token: str, row_id: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    body = json.dumps({"id": row_id}) + "\n"
    async with session.post(f"{url}/v0/events?name=events", data=body, headers=headers) as response:
        await response.read()
        return response.status


async def post_soon(session: aiohttp.ClientSession, url: str, token: str, row_id: str) -> int:
    """``post``; kube-proxy hears of a pod that has become ready a moment after everybody else."""
    for _ in range(CONNECT_ATTEMPTS):
        try:
            return await post(session, url, token, row_id)
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(CONNECT_PAUSE_S)
    return await post(session, url, token, row_id)


async def load(session: aiohttp.ClientSession, url: str, token: str, pause_s: float) -> Any:
    accepted: list[str] = []
    other: Counter[str] = Counter()
    stop = asyncio.Event()

    async def listen() -> None:
        nonlocal pause_s
        while line := await asyncio.to_thread(sys.stdin.readline):
            pause_s = float(line)
        stop.set()

    async def work(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            row_id = f"load-{worker}-{number}"
            try:
                status = await post(session, url, token, row_id)
            except (aiohttp.ClientError, OSError) as error:
                other[type(error).__name__] += 1
            else:
                if 200 <= status < 300:
                    accepted.append(row_id)
                else:
                    other[str(status)] += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)

    async with asyncio.TaskGroup() as group:
        for worker in range(LOAD_WORKERS):
            group.create_task(work(worker))
        group.create_task(listen())
    return {"accepted": accepted, "other": other}


async def rows(session: aiohttp.ClientSession) -> Any:
    query = {"q": "SELECT id FROM events ORDER BY id FORMAT JSON", "token": EMULATOR_TOKEN}
    async with session.get(f"{EMULATOR}/v0/sql", params=query) as response:
        if response.status in (400, 404):
            return []  # nothing has arrived, so there is no such data source yet
        return [row["id"] for row in (await answer(response))["data"]]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
