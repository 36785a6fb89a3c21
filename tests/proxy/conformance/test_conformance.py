"""Unmodified clients, against Tinybird's emulator and against the proxy in front of it: both are held to one table."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.proxy.conformance.cases import CASES, Sender, datasource_of
from tests.proxy.conformance.drivers import CLIENTS, Client, Driver, Heard
from tests.proxy.conformance.table import TABLE, Cell
from tests.proxy.conformance.worlds import Way, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

async def test_probe(world, driver) -> None:
    for name, case in CASES.items():
        for client in CLIENTS:
            here = await world(case.world)
            async def go(way):
                s = Sender(await driver(client, way), way, datasource_of(name, client))
                try:
                    h = await case.run(s)
                except BaseException as e:
                    return repr(e)
                await asyncio.sleep(0.3)
                return h, len(await s.arrived(0)), len(await way.tinybird.quarantined_rows(s.datasource)), [r.status for r in way.tinybird.requests if r.datasource==s.datasource][:6]
            import time
            t=time.time()
            d, p = await asyncio.gather(*map(go, here.ways))
            print(f"{name:40} {client.module:20} {time.time()-t:.1f}\n      {d}\n      {p}", flush=True)
