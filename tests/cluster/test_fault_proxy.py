"""The fault proxy of the end-to-end tests, on loopback before an API server of the tests' own."""

import asyncio
import http.client
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.cluster.certificates import kubeconfig, write_certificates
from tests.e2e.api_faults import BadFault, Script, parse
from tests.e2e.fault_proxy import Proxy, Settings, running
from tests.e2e.faulty_api import SERVICE_NAME, fault_proxy, in_front_of, redirection, redirection_undone

HEADERS = {"Authorization": "Bearer secret", "User-Agent": "kopf/1"}
PODS = "/api/v1/namespaces/a%20b/pods?labelSelector=x%3Dy"
WATCH = "/api/v1/pods?watch=true&timeoutSeconds=300"
EVENT = b'{"type": "ADDED", "object": {"metadata": {"name": "one"}}}\n'
LONG = b"x" * 300_000


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cluster's own parts use."""
    pki = tmp_path_factory.mktemp("cluster") / "pki"
    write_certificates(pki, node="node1", host="127.0.0.1", api_service="198.19.0.1")
    return pki


class ApiServer:
    """What was asked, and watches whose events the test sends."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.watches = 0
        self.watch_ended = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        if request.query.get("watch"):
            return await self._watch(request)
        if request.path == "/long":
            return web.Response(body=LONG)
        if request.path == "/broken":
            response = web.StreamResponse()
            response.content_length = 100
            await response.prepare(request)
            await response.write(b"not all")
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.json_response({"kind": "PodList"}, headers={"Audit-Id": "1"})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.watches += 1
        try:
            while (event := await self.events.get()) is not None:
                await response.write(event)
            await response.write_eof()
            return response
        finally:
            self.watch_ended.set()


@asynccontextmanager
async def api_server(pki: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    api.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        await runner.cleanup()


def settings(pki: Path, upstream: str, **more: Any) -> Settings:
    files = {"ca": pki / "ca.crt", "certificate": pki / "apiserver.crt", "key": pki / "apiserver.key"}
    return Settings(**{"host": "127.0.0.1", "port": 0, "upstream": upstream, **files, **more})


def trusting(pki: Path) -> ssl.SSLContext:
    """A pod: it knows the cluster's authority and no more."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(pki / "ca.crt")
    return tls


class Bench:
    """The API server, the proxy before it, and a client of the proxy."""

    def __init__(self, api: ApiServer, proxy: Proxy, port: int, session: aiohttp.ClientSession, tls: ssl.SSLContext):
        self.api = api
        self.proxy = proxy
        self.port = port
        self.session = session
        self._tls = tls

    def inject(self, *faults: dict[str, Any]) -> None:
        self.proxy.inject(parse(list(faults)))

    @property
    def injected(self) -> dict[str, int]:
        found: dict[str, int] = self.proxy.counts()["injected"]
        return found

    async def get(self, path: str = PODS, method: str = "GET", **more: Any) -> tuple[int, bytes]:
        async with self.session.request(method, path, headers=HEADERS, **more) as answer:
            return answer.status, await answer.read()

    async def raw(self, path: str, method: str = "GET") -> bytes:
        """All that comes over a connection of its own. Raises ``ConnectionResetError`` for RST alone."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self._tls, server_hostname=SERVICE_NAME
        )
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n".encode())
            return await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not so():  # noqa: ASYNC110 - the proxy's counts are all that tells
                await asyncio.sleep(0.001)


@pytest.fixture
async def bench(pki: Path) -> AsyncIterator[Bench]:
    async with api_server(pki) as api, running(settings(pki, api.url)) as (proxy, port, _):
        connector = aiohttp.TCPConnector(ssl=trusting(pki))
        base = f"https://127.0.0.1:{port}"
        async with aiohttp.ClientSession(base, connector=connector) as session:
            yield Bench(api, proxy, port, session, trusting(pki))


async def test_without_faults_a_request_and_its_answer_are_passed_on_as_they_are(bench: Bench) -> None:
    async with bench.session.patch(PODS, headers=HEADERS, data=b'{"a": 1}') as answer:
        assert (answer.status, answer.headers["Audit-Id"], await answer.json()) == (200, "1", {"kind": "PodList"})
    ((method, path, headers, body),) = bench.api.asked
    assert (method, path, body) == ("PATCH", PODS, b'{"a": 1}')
    assert (headers["Authorization"], headers["User-Agent"]) == ("Bearer secret", "kopf/1")
    assert bench.injected == {}
    assert await bench.get("/long") == (200, LONG)


async def test_the_name_that_pods_know_the_api_server_by_is_the_proxys_as_well(bench: Bench) -> None:
    assert (await bench.raw(PODS)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_events_of_a_watch_are_passed_on_one_by_one_and_its_end_too(bench: Bench) -> None:
    async with bench.session.get(WATCH) as answer:
        for _ in range(3):
            bench.api.events.put_nowait(EVENT)
            assert await answer.content.readline() == EVENT
        assert bench.proxy.counts()["open_watches"] == 1
        bench.api.events.put_nowait(None)
        assert await answer.content.read() == b""
    await bench.until(lambda: bench.proxy.counts()["open_watches"] == 0)
    assert bench.proxy.counts()["upstream_failures"] == 0


async def test_a_client_that_goes_ends_its_watch_at_the_api_server(bench: Bench) -> None:
    answer = await bench.session.get(WATCH)
    answer.close()
    async with asyncio.timeout(10):
        await bench.api.watch_ended.wait()


async def test_a_status_is_answered_as_the_api_server_would_and_the_api_server_hears_nothing(bench: Bench) -> None:
    bench.inject({"status": 429, "retry_after_s": 7, "times": 2})
    async with bench.session.post(PODS, data=b"{}") as answer:
        said = await answer.json()
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    assert (said["kind"], said["code"], said["reason"]) == ("Status", 429, "TooManyRequests")
    assert said["details"] == {"retryAfterSeconds": 7}
    assert (await bench.get())[0] == 429
    assert bench.api.asked == []
    assert (await bench.get())[0] == 200
    assert bench.injected == {"429": 2}
    assert bench.proxy.counts()["recent"] == [f"429: POST {PODS}", f"429: GET {PODS}"]


@pytest.mark.parametrize("status", [410, 500, 503, 504])
async def test_a_status_can_be_for_watches_only(bench: Bench, status: int) -> None:
    bench.inject({"status": status, "watch": True})
    assert (await bench.get(WATCH))[0] == status
    assert (await bench.get())[0] == 200


async def test_a_watch_that_is_open_gets_an_error_event_and_ends(bench: Bench) -> None:
    async with bench.session.get(WATCH) as answer:
        bench.api.events.put_nowait(EVENT)
        assert await answer.content.readline() == EVENT
        bench.inject({"watch_error": 410, "times": 1})
        error = json.loads(await answer.content.readline())
        assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
        assert await answer.content.read() == b""
    assert bench.injected == {"watch_error 410": 1}
    async with bench.session.get(WATCH) as answer:
        bench.api.events.put_nowait(EVENT)
        assert await answer.content.readline() == EVENT


async def test_a_new_watch_gets_the_error_event_first_and_what_is_no_watch_none(bench: Bench) -> None:
    bench.inject({"watch_error": 410})
    assert (await bench.get())[0] == 200
    assert json.loads((await bench.get(WATCH))[1])["object"]["code"] == 410
    assert bench.injected == {"watch_error 410": 1}


async def test_an_error_event_waits_for_the_end_of_the_event_before_it(bench: Bench) -> None:
    async with bench.session.get(WATCH) as answer:
        bench.api.events.put_nowait(EVENT[:20])
        assert await answer.content.readexactly(20) == EVENT[:20]
        bench.inject({"watch_error": 410})
        bench.api.events.put_nowait(EVENT[20:] + EVENT)
        assert await answer.content.readline() == EVENT[20:]
        assert json.loads(await answer.content.readline())["type"] == "ERROR"
        assert await answer.content.read() == b""


@pytest.mark.parametrize(
    ("reset", "is_done"), [("before_request", False), ("before_answer", True), ("during_answer", True)]
)
async def test_a_reset_is_one_and_the_api_server_has_done_it_or_not(bench: Bench, reset: str, is_done: bool) -> None:
    bench.inject({"reset": reset, "times": 1})
    with pytest.raises(ConnectionResetError):
        await bench.raw("/long", "DELETE")
    assert bool(bench.api.asked) is is_done
    assert bench.injected == {f"reset {reset}": 1}
    assert bench.proxy.counts()["upstream_failures"] == 0
    assert (await bench.raw(PODS)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_an_answer_that_is_reset_never_looks_like_a_whole_one(bench: Bench) -> None:
    bench.inject({"reset": "during_answer"})
    for path in (PODS, "/long"):
        with pytest.raises((aiohttp.ClientError, OSError)):
            await bench.get(path)


async def test_open_watches_are_reset_as_soon_as_it_is_asked_for(bench: Bench) -> None:
    async with bench.session.get(WATCH) as answer:
        bench.inject({"reset": "during_answer", "watch": True})
        with pytest.raises((aiohttp.ClientError, OSError)):
            await answer.content.read()
    assert bench.injected == {"reset during_answer": 1}
    async with asyncio.timeout(10):
        await bench.api.watch_ended.wait()


async def test_what_is_for_new_requests_leaves_open_watches_alone(bench: Bench) -> None:
    async with bench.session.get(WATCH) as answer:
        bench.inject({"status": 410, "watch": True}, {"hang": True})
        bench.api.events.put_nowait(EVENT)
        assert await answer.content.readline() == EVENT
    assert bench.injected == {}


async def test_who_hangs_is_reset_when_the_faults_change(bench: Bench) -> None:
    bench.inject({"hang": True})
    asking = asyncio.create_task(bench.raw(PODS))
    await bench.until(lambda: bench.injected == {"hang": 1})
    assert not asking.done()
    bench.inject()
    with pytest.raises(ConnectionResetError):
        await asking
    assert bench.api.asked == []


async def test_a_client_may_give_up_while_it_hangs(bench: Bench) -> None:
    bench.inject({"hang": True})
    with pytest.raises(TimeoutError):
        await bench.get(timeout=aiohttp.ClientTimeout(total=0.2))
    bench.inject()
    assert (await bench.get())[0] == 200


async def test_a_delayed_request_is_passed_on_after_it(bench: Bench) -> None:
    began_at = asyncio.get_running_loop().time()
    bench.inject({"delay_s": 0.1})
    assert (await bench.get())[0] == 200
    assert asyncio.get_running_loop().time() - began_at >= 0.1
    assert bench.injected == {"delay": 1}


async def test_an_api_server_that_breaks_off_looks_so_to_the_client(bench: Bench) -> None:
    with pytest.raises(ConnectionResetError):
        await bench.raw("/broken")
    assert bench.proxy.counts()["upstream_failures"] == 1


async def test_an_api_server_that_is_away_is_a_reset(pki: Path) -> None:
    async with api_server(pki) as api:
        gone = api.url
    async with running(settings(pki, gone)) as (proxy, port, _):
        connector = aiohttp.TCPConnector(ssl=trusting(pki))
        async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector) as session:
            with pytest.raises((aiohttp.ClientError, OSError)):
                await session.post(PODS)  # a GET the client would repeat
        assert proxy.counts()["upstream_failures"] == 1


async def test_an_upgrade_is_refused_and_not_half_done(bench: Bench) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    async with bench.session.get(PODS, headers=headers) as answer:
        assert answer.status == 501
    assert bench.api.asked == []


async def test_the_proxy_ends_with_watches_open_and_requests_hanging(pki: Path) -> None:
    async with api_server(pki) as api, asyncio.timeout(20):
        async with running(settings(pki, api.url)) as (proxy, port, _):
            connector = aiohttp.TCPConnector(ssl=trusting(pki))
            session = aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector)
            answer = await session.get(WATCH)
            proxy.inject(parse([{"hang": True}]))
            hanging = asyncio.create_task(session.get(PODS))
            while not proxy.counts()["injected"]:  # noqa: ASYNC110 - the proxy's counts are all that tells
                await asyncio.sleep(0.001)
        with pytest.raises((aiohttp.ClientError, OSError)):
            await hanging
        answer.close()
        await session.close()


# The process, as the end-to-end tests use it.


def test_a_process_of_its_own_takes_faults_and_tells_what_it_did(pki: Path) -> None:
    with fault_proxy(settings(pki, "https://127.0.0.1:1")) as faults:
        assert faults.counts()["injected"] == {}
        faults.inject({"status": 429, "times": 1})
        with pytest.raises(BadFault, match="status must be 400 to 599"):
            faults.inject({"status": 200})
        assert asyncio.run(_status_of(pki, faults.port)) == 429
        assert faults.counts()["injected"] == {"429": 1}


def test_the_process_ends_with_its_lifetime(pki: Path) -> None:
    def ask_until_it_is_gone() -> None:
        while True:
            faults.counts()

    with (
        fault_proxy(settings(pki, "https://127.0.0.1:1", lifetime_s=0.1)) as faults,
        pytest.raises((OSError, http.client.HTTPException)),
    ):
        ask_until_it_is_gone()


def test_a_process_that_cannot_start_is_an_error_at_once(pki: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="did not start"), fault_proxy(settings(pki, "https://a", key=Path("/no"))):
        pass
    assert "fault proxy: [Errno 2] No such file or directory" in capfd.readouterr().err


async def _status_of(pki: Path, port: int) -> int:
    connector = aiohttp.TCPConnector(ssl=trusting(pki))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"https://127.0.0.1:{port}{PODS}") as answer,
    ):
        return answer.status


def test_where_the_cluster_has_its_certificates_is_read_from_its_kubeconfig(pki: Path, tmp_path: Path) -> None:
    file = tmp_path / "admin.kubeconfig"
    file.write_text(kubeconfig("admin", pki, "https://198.18.1.1:6443"))
    found = in_front_of(file)
    assert (found.host, found.port, found.upstream) == ("198.18.1.1", 443, "https://198.18.1.1:6443")
    assert all(path.is_file() for path in (found.ca, found.certificate, found.key))


def test_pods_are_sent_to_the_proxy_and_back_by_the_same_fields() -> None:
    there = redirection("198.18.1.1", 443)["spec"]["template"]["spec"]
    assert there["hostAliases"] == [{"ip": "198.18.1.1", "hostnames": ["kubernetes.default.svc"]}]
    back = redirection_undone()["spec"]["template"]["spec"]
    assert set(back) == set(there)
    assert back["hostAliases"] is None

    def names(spec: dict[str, Any]) -> list[tuple[str, list[str]]]:
        return [(each["name"], [variable["name"] for variable in each["env"]]) for each in spec["containers"]]

    assert names(there) == names(back) == [("operator", ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"])]


# What is decided.


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ({"status": 429}, "must be a list"),
        ([{"status": 429}] * 51, "at most 50"),
        (["429"], "a fault is an object of"),
        ([{"statuss": 429}], "a fault is an object of"),
        ([{}], "set one of status, watch_error, reset, hang and delay_s"),
        ([{"status": 429, "hang": True}], "set at most one of"),
        ([{"status": 200}], "status must be 400 to 599"),
        ([{"hang": True, "retry_after_s": 1}], "retry_after_s goes with a status"),
        ([{"hang": True, "share": 0}], "share must be above 0"),
        ([{"hang": True, "times": 0}], "times must be at least 1"),
        ([{"watch_error": 410, "watch": False}], "watch_error is for watches"),
        ([{"reset": "later"}], "reset must be"),
        ([{"delay_s": 61}], "delay_s must be 0 to 60"),
        ([{"delay_s": "1"}], "not supported between"),
        ([{"hang": True, "path": "("}], "path: "),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_a_reason(faults: object, sentence: str) -> None:
    with pytest.raises(BadFault, match=sentence):
        parse(faults)


def script(*faults: dict[str, Any], seed: int = 1) -> Script:
    made = Script(random.Random(seed))
    made.set(parse(list(faults)))
    return made


def test_the_first_fault_that_is_for_a_request_applies_to_it() -> None:
    decided = script({"method": "PATCH", "path": "/status$", "status": 500}, {"watch": False, "status": 503})

    def label(method: str, path: str, *, is_watch: bool = False) -> str | None:
        fault = decided.decide(method, path, is_watch=is_watch)
        return fault.label if fault else None

    assert label("PATCH", "/a/status") == "500"
    assert label("GET", "/a/status") == "503"
    assert label("PATCH", "/a") == "503"
    assert label("GET", "/a", is_watch=True) is None


def test_a_share_is_one_and_the_same_seed_chooses_the_same_requests() -> None:
    def chosen(seed: int) -> list[int]:
        decided = script({"status": 429, "share": 0.3}, seed=seed)
        return [number for number in range(1000) if decided.decide("GET", "/", is_watch=False)]

    assert 240 < len(chosen(1)) < 360
    assert chosen(1) == chosen(1) != chosen(2)


def test_a_fault_is_over_after_its_times_and_chance_that_spared_a_request_does_not_count() -> None:
    decided = script({"status": 429, "share": 0.5, "times": 3})
    assert sum(decided.decide("GET", "/", is_watch=False) is not None for _ in range(100)) == 3
    decided.set(parse([{"status": 429, "times": 1}]))
    assert decided.decide("GET", "/", is_watch=False) is not None
    assert decided.decide("GET", "/", is_watch=False) is None
