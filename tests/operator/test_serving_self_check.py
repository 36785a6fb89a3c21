"""A process asks itself before it registers anything."""

from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web

from tinybird_proxy_operator.serving.certificates import Pair, make_authority, make_serving
from tinybird_proxy_operator.serving.self_check import self_check
from tinybird_proxy_operator.serving.tls import ServerTLS

NAME = "service.tinybird-system.svc"


def authority() -> Pair:
    return make_authority(NAME, now=datetime.now(UTC), lifetime_s=1000)


async def checked(bundle: str, signed_by: Pair, *, name: str = NAME, status: int = 200) -> None:
    tls, app = ServerTLS(), web.Application()
    await tls.use(make_serving(signed_by, [NAME], now=datetime.now(UTC), lifetime_s=500), "")

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(status=status)

    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "localhost", 0, ssl_context=tls.context).start()
        async with aiohttp.ClientSession() as session:
            await self_check(session, port=lambda: runner.addresses[0][1], server_name=name)(bundle)
    finally:
        await runner.cleanup()


async def test_with_the_ca_that_signed_it_answers() -> None:
    ours = authority()
    await checked(authority().certificate + ours.certificate, ours)


async def test_with_another_ca_or_another_name_it_says_what_is_wrong() -> None:
    ours = authority()
    with pytest.raises(ValueError, match="certificate verify failed"):
        await checked(authority().certificate, ours)
    with pytest.raises(ValueError, match="certificate verify failed"):
        await checked(ours.certificate, ours, name="another.tinybird-system.svc")


async def test_an_answer_that_is_none_is_told() -> None:
    ours = authority()
    with pytest.raises(ValueError, match="/healthz answers 500"):
        await checked(ours.certificate, ours, status=500)


async def test_that_nobody_listens_is_told() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="Connect"):
            await self_check(session, port=lambda: 1, server_name=NAME)(authority().certificate)
