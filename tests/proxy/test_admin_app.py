"""The admin port: who may look, who may act, and what it tells nobody."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from tests.proxy.running import (
    TOKEN,
    Answer,
    World,
    ask,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    until,
)

from tinybird_proxy.admin.app import AdminToken, make_admin_app
from tinybird_proxy.emulator import Fault
from tinybird_proxy.server.availability import Availability

ADMIN = "the-admin-token"
DELIBERATE = {"X-Tinybird-Proxy": "1"}


async def _get(world: World, path: str) -> Answer:
    return await ask(world.proxy.admin_port, path, method="GET", token=None)


# Open to everybody.


async def test_a_running_proxy_is_live_and_ready_and_says_how_it_is() -> None:
    async with running_world() as world:
        live = await _get(world, "/livez")
        assert (live.status, live.json()) == (200, {"live": True})
        ready = await _get(world, "/readyz")
        assert ready.status == 200
        assert ready.json() == {
            "ready": True,
            "phase": "running",
            "sentence": "All is well.",
            "not_delivering": [],
        }


async def test_trouble_is_told_by_readyz_with_200() -> None:
    async with running_world(TINYBIRD_TOKEN="no_longer_good", BUFFER_SIZE="2", BATCH_SIZE="2") as world:
        assert (await post(world.port, body=b"{}\n{}")).status == 202
        ready = await _get(world, "/readyz")
        assert (ready.status, ready.json()["ready"]) == (200, True)
        assert "not delivering (hits)" in ready.json()["sentence"]
        assert "buffer is full" in ready.json()["sentence"]


async def test_a_proxy_that_has_not_started_is_not_ready() -> None:
    async with running_world() as world:
        reporter = world.proxy.reporter
        availability = Availability(drain_delay_s=0.0, now=asyncio.get_running_loop().time)
        assert (availability.ready, availability.phase) == (False, "starting")
        runner = web.AppRunner(make_admin_app(reporter, availability, AdminToken(None)), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            ready = await ask(port, "/readyz", method="GET")
            assert (ready.status, ready.json()["phase"]) == (503, "starting")
            assert (await ask(port, "/livez", method="GET")).status == 200
            availability.started = True
            assert (await ask(port, "/readyz", method="GET")).status == 200
        finally:
            await runner.cleanup()


async def test_metrics_are_what_prometheus_reads() -> None:
    async with running_world() as world:
        assert (await post(world.port, "name=hits&wait=true", b"{}\n{}")).status == 200
        assert (await post(world.port, "", b"{}")).status == 400
        page = await _get(world, "/metrics")
        assert page.status == 200
        assert page["Content-Type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(page.body.decode())}
    assert all(name.startswith("tinybird_proxy_") for name in families)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["tinybird_proxy_ready",] == 1
    assert values["tinybird_proxy_rows_accepted_total",] == values["tinybird_proxy_rows_delivered_total",] == 2
    assert values["tinybird_proxy_requests_refused_total", "http_400"] == 1
    assert values["tinybird_proxy_datasource_rows_delivered", "hits"] == 2
    assert values["tinybird_proxy_ledger_imbalance_rows",] == 0
    assert values["tinybird_proxy_buffer_utilization_percent",] == values["tinybird_proxy_drain_time_seconds",] == 0
    assert values["tinybird_proxy_cpu_percent",] % 1 == 0
    assert families["tinybird_proxy_upstream_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


async def test_metrics_can_be_read_while_everything_is_in_trouble() -> None:
    async with running_world(TINYBIRD_TOKEN=None) as world:
        for n in range(5):
            await post(world.port, f"name=guessed_{n}", token="nobody")
        text = (await _get(world, "/metrics")).body.decode()
        assert list(text_string_to_metric_families(text))
        assert "guessed" not in text, "names that Tinybird never confirmed would fill the monitoring"


@pytest.mark.parametrize("path", ["/", "/elsewhere", "/v0/events?name=hits", "/v1/liveness", "/drain/x", "//status"])
async def test_other_paths_are_404_with_json(path: str) -> None:
    async with running_world() as world:
        for method in ("GET", "POST"):
            answer = await ask(world.proxy.admin_port, path, method=method)
            assert answer.status == 404
            assert answer.error


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/status", "GET,HEAD"),
        ("DELETE", "/metrics", "GET,HEAD"),
        ("GET", "/drain", "DELETE,POST"),
        ("PUT", "/livez", "GET,HEAD"),
    ],
)
async def test_other_methods_are_405_with_json(method: str, path: str, allowed: str) -> None:
    async with running_world() as world:
        answer = await ask(world.proxy.admin_port, path, method=method, headers=DELIBERATE)
        assert (answer.status, answer["Allow"]) == (405, allowed)
        assert answer.error


async def test_no_page_of_another_origin_can_read_anything_here() -> None:
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-tinybird-proxy",
    }
    async with running_world() as world:
        for path in ("/livez", "/readyz", "/status", "/metrics", "/drain", "/elsewhere"):
            for method in ("OPTIONS", "GET", "HEAD", "POST", "DELETE"):
                answer = await ask(world.proxy.admin_port, path, method=method, headers=headers)
                assert not any(name.lower().startswith("access-control") for name, _ in answer.headers), (method, path)
                if method == "OPTIONS":
                    assert answer.status in (404, 405)
        assert not world.proxy.availability.refusing


async def test_what_is_not_http_is_no_error_of_ours() -> None:
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url)) as proxy:
        for sent in (
            b"GARBAGE\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
            b"GET /status HTTP/1.1\r\nHost: x\r\nAuthorization Bearer secret\r\n\r\n",
            b"GET /status?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            async with connected(proxy.admin_port) as peer:
                await peer.send(sent)
                assert (await peer.answer()).status == 400
        assert await proxy.stop() == 0
        assert b"secret" not in proxy.output
        assert [line for line in proxy.lines if line["level"] not in ("info", "debug")] == []


# Actions.


async def _drain(port: int, method: str = "POST", *, host: str = "localhost", **headers: str) -> Answer:
    named = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await ask(port, "/drain", method=method, headers=named, token=None)


async def test_a_drain_makes_it_unready_and_refusing_and_can_be_taken_back() -> None:
    async with running_world(FLUSH_INTERVAL="1h") as world:
        await post(world.port)
        await world.tinybird.wait_for_rows("hits", 1)
        world.tinybird.set_faults(Fault(status=503))  # so that the rows stay
        assert (await post(world.port, body=b"{}\n{}")).status == 202
        port = world.proxy.admin_port
        for _ in range(2):  # once more changes nothing
            answer = await ask(port, "/drain", headers=DELIBERATE)
            assert answer.status == 202
            assert answer.json() == {
                **{"draining": True, "refusing": True, "rows_left": 2},
                "seconds_to_drain": answer.json()["seconds_to_drain"],
            }
            ready = await _get(world, "/readyz")
            assert (ready.status, ready.json()["phase"]) == (503, "draining")
            assert (await post(world.port)).status == 503
        for _ in range(2):
            answer = await ask(port, "/drain", method="DELETE", headers=DELIBERATE)
            assert (answer.status, answer.json()["draining"], answer.json()["refusing"]) == (200, False, False)
            assert (await _get(world, "/readyz")).status == 200
            assert (await post(world.port)).status == 202


async def test_a_drain_delivers_at_once_what_waits_for_company_and_afterwards_rows_wait_for_it_again() -> None:
    async with running_world(FLUSH_INTERVAL="1h", DRAIN_DELAY="200ms") as world:
        await post(world.port, "name=hits&wait=true")
        assert (await post(world.port)).status == 202
        port = world.proxy.admin_port
        answer = await ask(port, "/drain", headers=DELIBERATE)
        assert (answer.json()["rows_left"], answer.json()["refusing"]) == (1, False)
        assert (await post(world.port)).status == 202, "it takes rows during the delay"
        await until(lambda: world.status()["drain"]["rows_left"] == 0)
        assert world.status()["drain"]["refusing"] is True
        await world.tinybird.wait_for_rows("hits", 3)
        assert (await ask(port, "/drain", method="DELETE", headers=DELIBERATE)).status == 200
        assert (await post(world.port)).status == 202
        await asyncio.sleep(0.1)
        assert world.status()["drain"]["rows_left"] == 1


async def test_rows_of_a_first_contact_count_as_left_before_anybody_is_promised_anything() -> None:
    async with running_world() as world:
        world.tinybird.set_faults(Fault(hang=True))
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b"{}\n{}"))
            await until(lambda: world.status()["drain"]["rows_left"] == 2)


async def test_a_drain_goes_on_delivering() -> None:
    async with running_world(FLUSH_INTERVAL="200ms") as world:
        await post(world.port)
        await world.tinybird.wait_for_rows("hits", 1)
        assert (await post(world.port)).status == 202
        assert (await ask(world.proxy.admin_port, "/drain", headers=DELIBERATE)).json()["rows_left"] == 1
        await world.tinybird.wait_for_rows("hits", 2)
        await until(lambda: world.status()["drain"]["rows_left"] == 0)


async def test_a_drain_refuses_only_after_the_delay_and_not_at_all_if_it_is_taken_back_before() -> None:
    async with running_world(DRAIN_DELAY="250ms") as world:
        port = world.proxy.admin_port
        assert (await ask(port, "/drain", headers=DELIBERATE)).json()["refusing"] is False
        assert (await _get(world, "/readyz")).status == 503
        assert (await post(world.port)).status == 202
        assert (await ask(port, "/drain", method="DELETE", headers=DELIBERATE)).status == 200
        began_at = asyncio.get_running_loop().time()
        assert (await ask(port, "/drain", headers=DELIBERATE)).status == 202
        await until(lambda: world.proxy.availability.refusing)
        assert asyncio.get_running_loop().time() - began_at >= 0.25
        assert (await post(world.port)).status == 503


async def test_a_process_that_stops_cannot_be_told_otherwise() -> None:
    async with running_world() as world:
        world.proxy.availability.begin_drain()
        world.proxy.availability.stopping = True
        answer = await ask(world.proxy.admin_port, "/drain", method="DELETE", headers=DELIBERATE)
        assert answer.status == 409
        assert "stopping" in answer.error
        assert world.proxy.availability.refusing


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:1234", "127.0.0.1", "127.0.0.1:8001", "127.3.2.1", "[::1]", "[::1]:8001"),
        "[::ffff:127.0.0.1]:8001",
    ],
)
async def test_without_a_token_a_deliberate_call_from_this_machine_may_act(host: str) -> None:
    async with running_world() as world:
        assert (await _drain(world.proxy.admin_port, host=host, x_tinybird_proxy="1")).status == 202


@pytest.mark.parametrize(
    "host",
    [
        # A page that has its own name resolved to 127.0.0.1 still sends its own name.
        *("evil.example", "evil.example:8001", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example@x"),
        *("10.0.0.1", "[::]", "[::ffff:10.0.0.1]", "2130706433", "", ":8001", "[", "localhost, evil.example"),
    ],
)
async def test_a_call_by_another_name_may_not(host: str) -> None:
    async with running_world() as world:
        for method in ("POST", "DELETE"):
            answer = await _drain(world.proxy.admin_port, method, host=host, x_tinybird_proxy="1")
            assert answer.status == 403
            assert "localhost" in answer.error
        assert not world.proxy.availability.refusing


async def test_a_call_without_a_name_may_not() -> None:
    async with running_world() as world, connected(world.proxy.admin_port) as peer:
        await peer.send(b"POST /drain HTTP/1.0\r\nX-Tinybird-Proxy: 1\r\n\r\n")
        assert (await peer.answer()).status in (400, 403)
        assert not world.proxy.availability.refusing


@pytest.mark.parametrize("value", [None, "", "0", "2", "true", "11"])
async def test_a_call_that_any_page_or_form_could_make_may_not(value: str | None) -> None:
    async with running_world() as world:
        headers = {} if value is None else {"x_tinybird_proxy": value}
        for method in ("POST", "DELETE"):
            answer = await _drain(world.proxy.admin_port, method, **headers)
            assert answer.status == 403
            assert "X-Tinybird-Proxy: 1" in answer.error
        assert not world.proxy.availability.refusing


async def test_a_call_from_this_machine_may_also_where_both_families_are_listened_on() -> None:
    async with running_world(ADMIN_HOST="::") as world:
        assert (await _drain(world.proxy.admin_port, host="localhost", x_tinybird_proxy="1")).status == 202


@pytest.mark.parametrize("admin_host", ["0.0.0.0", "::"])  # noqa: S104 - that is the point
async def test_a_call_from_another_machine_may_not(admin_host: str) -> None:
    address = _own_address()
    if address is None:
        pytest.skip("not in CI: needs an address beyond loopback")
    async with running_world(ADMIN_HOST=admin_host) as world:
        reader, writer = await asyncio.open_connection(address, world.proxy.admin_port)
        writer.write(request("/drain", headers={"Host": "localhost", **DELIBERATE}))
        assert (await reader.readline()).split()[1] == b"403"
        writer.close()
        await writer.wait_closed()
        assert not world.proxy.availability.refusing


def _own_address() -> str | None:
    """An address of this machine that is not loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


@asynccontextmanager
async def _with_token() -> AsyncIterator[World]:
    async with running_world(ADMIN_TOKEN=ADMIN) as world:
        yield world


async def test_with_an_admin_token_it_is_asked_for_and_nothing_else_counts() -> None:
    async with _with_token() as world:
        port = world.proxy.admin_port
        for headers, status in (
            ({}, 401),
            ({"x_tinybird_proxy": "1"}, 401),
            ({"authorization": "Basic x"}, 401),
            ({"authorization": f"Bearer {TOKEN}"}, 403),
            ({"authorization": f"Bearer {ADMIN}x", "x_tinybird_proxy": "1"}, 403),
            ({"authorization": "Bearer \u00fc"}, 403),
        ):
            for method in ("POST", "DELETE"):
                answer = await _drain(port, method, **headers)
                assert answer.status == status
                assert "ADMIN_TOKEN" in answer.error
                assert ADMIN not in answer.error
        assert (await ask(port, f"/drain?token={ADMIN}", token=None)).status == 401, "a URL ends up in logs"
        assert not world.proxy.availability.refusing
        assert (await _drain(port, authorization=f"Bearer {ADMIN}")).status == 202
        assert (await _drain(port, "DELETE", authorization=f"bearer {ADMIN}", host="evil.example")).status == 200


async def test_looking_needs_no_admin_token() -> None:
    async with _with_token() as world:
        for path in ("/livez", "/readyz", "/status", "/metrics"):
            assert (await _get(world, path)).status == 200


async def test_the_public_port_has_nothing_of_it() -> None:
    async with running_world() as world:
        for path in ("/status", "/metrics", "/readyz"):
            assert (await ask(world.port, path, method="GET")).status == 404
        assert (await ask(world.port, "/drain", headers=DELIBERATE)).status == 404
        assert not world.proxy.availability.refusing
