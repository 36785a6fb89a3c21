"""How a proxy starts: its ports, its problems, its TLS, what it loads; and proxies that lead to one another."""

import asyncio
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from tests.proxy.running import (
    DEADLINE_S,
    TOKEN,
    ask,
    connected,
    ended_process,
    environment,
    make_authority,
    make_certificate,
    post,
    request,
    running_process,
    running_proxy,
    running_tinybird,
    until,
)

from tinybird_proxy.app.run import make_instance
from tinybird_proxy.app.secrets import load_secrets
from tinybird_proxy.config import from_env
from tinybird_proxy.errors import ConfigError

NOWHERE = "http://127.0.0.1:9"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


# Ports.


async def test_both_ports_may_be_any_free_ones_and_the_log_says_which() -> None:
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url)) as proxy:
        assert 0 < proxy.port != proxy.admin_port > 0
        ready = await proxy.logged("ready")
        assert ready["upstream"] == tinybird.url
        assert ready["tokens"] == "ours"
        assert (await post(proxy.port, "name=hits&wait=true")).status == 200
        assert (await ask(proxy.admin_port, "/readyz", method="GET")).status == 200
        assert await proxy.stop() == 0


@pytest.mark.parametrize("variable", ["PORT", "ADMIN_PORT"])
def test_a_port_that_is_taken_is_told_in_a_sentence(variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = ended_process(environment(NOWHERE, **{variable: str(port)}))
    assert ended.returncode == 2
    assert ended.stderr == (
        f"The configuration has 1 problem:\n  {variable}: 127.0.0.1:{port} is already in use; choose another one\n"
    )


@pytest.mark.parametrize(
    ("variable", "host", "problem"),
    [
        ("HOST", "203.0.113.1", "203.0.113.1 is no address of this machine; "),
        ("ADMIN_HOST", "no-such-host.invalid", "'no-such-host.invalid' is no address: "),
        ("HOST", "x" * 64, f"'{'x' * 64}' is no address: "),
    ],
)
def test_an_address_that_is_not_ours_is_told_in_a_sentence(variable: str, host: str, problem: str) -> None:
    ended = ended_process(environment(NOWHERE, **{variable: host}))
    assert ended.returncode == 2
    assert f"\n  {variable}: {problem}" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_port_is_free_again_once_it_has_stopped() -> None:
    async with running_tinybird() as tinybird:
        env = environment(tinybird.url, PORT=str(_free_port()), ADMIN_PORT=str(_free_port()))
        for _ in range(2):
            async with running_process(env) as proxy:
                assert (await post(proxy.port)).status == 202
                assert await proxy.stop() == 0


# Problems.


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    empty.write_text("\n")
    env = environment(
        NOWHERE,
        TINYBIRD_TOKEN=None,
        TINYBIRD_TOKEN_FILE=str(empty),
        AUTHORIZATION_TOKEN_FILE=str(missing),
        ADMIN_TOKEN_FILE=str(tmp_path),
        TLS_CERT_FILE=str(missing),
        TLS_KEY_FILE=str(missing),
    )
    ended = ended_process(env)
    assert ended.returncode == 2
    first, *problems = ended.stderr.splitlines()
    assert first == "The configuration has 5 problems:"
    assert problems == [
        f"  TINYBIRD_TOKEN_FILE: {empty}: is empty",
        f"  AUTHORIZATION_TOKEN_FILE: {missing}: cannot be read: no such file or directory",
        f"  ADMIN_TOKEN_FILE: {tmp_path}: cannot be read: is a directory",
        f"  TLS_CERT_FILE: {missing}: cannot be read: no such file or directory",
        f"  TLS_KEY_FILE: {missing}: cannot be read: no such file or directory",
    ]


def test_authorization_token_without_tinybird_token_stops_the_start() -> None:
    for variable in ("AUTHORIZATION_TOKEN", "AUTHORIZATION_TOKEN_FILE"):
        ended = ended_process(environment(NOWHERE, **{"TINYBIRD_TOKEN": None, variable: "x"}))
        assert ended.returncode == 2
        assert f"{variable}: needs TINYBIRD_TOKEN" in ended.stderr


def test_client_tokens_that_cannot_be_read_stop_the_start() -> None:
    ended = ended_process(environment(NOWHERE, AUTHORIZATION_TOKEN="first\nsecond word"))
    assert ended.returncode == 2
    assert "  AUTHORIZATION_TOKEN: line 2: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "second" not in ended.stderr


async def test_an_open_port_beyond_localhost_is_warned_of_once() -> None:
    warning = "anybody who reaches the public port may write to Tinybird: AUTHORIZATION_TOKEN is not set"
    for env, warned in (
        ({"HOST": "0.0.0.0"}, True),  # noqa: S104 - that is the point
        ({"HOST": "::"}, True),
        ({"HOST": "0.0.0.0", "AUTHORIZATION_TOKEN": "x"}, False),  # noqa: S104
        ({"HOST": "0.0.0.0", "TINYBIRD_TOKEN": None}, False),  # noqa: S104
    ):
        async with running_process(environment(NOWHERE, **env)) as proxy:
            assert await proxy.stop() == 0
            warnings = [line["message"] for line in proxy.lines if line["level"] == "warning"]
            assert warnings == ([warning] if warned else [])


def test_an_instance_has_the_nodes_name_and_something_that_no_restart_repeats() -> None:
    config = from_env({"TINYBIRD_TOKEN": "x", "NODE_ID": "node-7"})
    assert make_instance(config, host_name="host", chance="0123abcd") == "node-7-0123abcd"
    assert make_instance(from_env({}), host_name="host", chance="0123abcd") == "host-0123abcd"


# What is loaded.

_LIST_MODULES = """
import atexit, sys
atexit.register(lambda: print("modules", *sorted(sys.modules), file=sys.stderr))
sys.argv = ["tinybird-proxy", "run"]
from tinybird_proxy.cli import main
main()
"""


async def test_run_loads_nothing_that_is_not_needed() -> None:
    async with running_tinybird() as tinybird:
        env = environment(tinybird.url)
        async with running_process(env, sys.executable, "-c", _LIST_MODULES) as proxy:
            assert (await post(proxy.port, "name=hits&wait=true")).status == 200
            for path in ("/status", "/metrics"):
                assert (await ask(proxy.admin_port, path, method="GET")).status == 200
            assert await proxy.stop() == 0
    loaded = proxy.output.decode().rpartition("modules ")[2].split()
    assert "tinybird_proxy.app.run" in loaded
    unwanted = ("rich", "opentelemetry", "sqlite3", "google", "requests", "pytest")
    ours = ("emulator", "testing", "telemetry.otlp", "cli.demo", "cli.emulator", "app.ask")
    prefixes = (*unwanted, *(f"tinybird_proxy.{name}" for name in ours))
    assert [
        name for name in loaded if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    ] == []


# TLS on the public port.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("authority"))


async def test_the_public_port_speaks_tls_and_the_admin_port_does_not(authority: Path) -> None:
    cert, key = make_certificate(authority, "localhost")
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    env = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        async with connected(proxy.port, tls=trusting) as peer:
            for body in (b'{"n":1}', b'{"text":"%s"}' % (b"x" * 300_000)):
                await peer.send(request("/v0/events?name=hits&wait=true", body))
                answer = await peer.answer()
                assert (answer.status, answer.json()["successful_rows"]) == (200, 1)
        assert (await ask(proxy.admin_port, "/livez", method="GET")).status == 200
        # What is not TLS, or not with us, is no trouble of ours.
        async with connected(proxy.port) as peer:
            await peer.send(request("/v1/liveness", method="GET"))
            assert b"200" not in await peer.rest()
        distrusting = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connected(proxy.port, tls=distrusting):
                pass
        async with connected(proxy.port) as peer:
            peer.writer.transport.abort()
        async with connected(proxy.port, tls=trusting) as idle:
            await idle.send(b"POST /v0/events")
            assert await proxy.stop() == 0
        assert [line for line in proxy.lines if line["level"] != "info"] == []
        assert len(await tinybird.rows("hits")) == 2


@pytest.mark.parametrize("wrong", ["another key", "no key", "no certificate"])
def test_a_certificate_that_cannot_be_used_stops_the_start(authority: Path, tmp_path: Path, wrong: str) -> None:
    cert, key = make_certificate(authority, "localhost")
    if wrong == "another key":
        key = make_certificate(authority, "localhost", label="another-")[1]
    elif wrong == "no key":
        key = cert
    else:
        cert = tmp_path / "cert.pem"
        cert.write_text("nothing of that kind\n")
    config = from_env(environment(NOWHERE, TLS_CERT_FILE=str(cert), TLS_KEY_FILE=str(key)))
    with pytest.raises(ConfigError) as raised:
        load_secrets(config, utc_now=lambda: 0.0, hash_key=b"x", on_new_token=lambda: None)
    assert [problem.variable for problem in raised.value.problems] == ["TLS_CERT_FILE", "TLS_KEY_FILE"]
    assert all("certificate and key cannot be used together: " in str(problem) for problem in raised.value.problems)


def test_nobody_is_asked_for_the_passphrase_of_a_key(authority: Path, tmp_path: Path) -> None:
    cert, key = make_certificate(authority, "localhost")
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    # In a session of its own there is no terminal to ask at, and nothing comes from the pipe either.
    process = subprocess.Popen(
        [sys.executable, "-m", "tinybird_proxy", "run"],
        env=environment(NOWHERE, TLS_CERT_FILE=str(cert), TLS_KEY_FILE=str(locked)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.wait(DEADLINE_S) == 2
        assert process.stderr is not None
        said = process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert "certificate and key cannot be used together" in said
    assert "Traceback" not in said


# Proxies that lead to one another.


@pytest.mark.parametrize("token", [TOKEN, None])
async def test_a_proxy_that_leads_to_itself_holds_the_rows_and_says_why(token: str | None) -> None:
    port = _free_port()
    env = environment(f"http://127.0.0.1:{port}", PORT=str(port), TINYBIRD_TOKEN=token)
    async with running_proxy(env) as proxy:
        assert (await post(port, "name=hits&wait=true")).status == 202
        (destination,) = proxy.reporter.status()["destinations"]
        assert (destination["state"], destination["buffered_rows"]) == ("held", 1)
        assert "TINYBIRD_URL leads to itself" in destination["sentence"]
        assert proxy.reporter.status()["requests"]["refused"] == {"loop": 1}
        assert proxy.reporter.status()["upstream_requests"]["replies"] == {"508": 1}
        if token is None:
            answer = await ask(port, "/v0/pipes", method="GET")
            assert answer.status == 508
            assert "leads back to it" in answer.error


@pytest.mark.parametrize("count", [2, 4])
async def test_a_ring_of_proxies_ends_where_it_closes(count: int) -> None:
    ports = [_free_port() for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        proxies = {}

        async def run(n: int) -> None:
            url = f"http://127.0.0.1:{ports[(n + 1) % count]}"
            async with running_proxy(environment(url, PORT=str(ports[n])), instance=f"proxy-{n}") as proxy:
                proxies[n] = proxy
                await stop.wait()

        for n in range(count):
            group.create_task(run(n))
        await until(lambda: len(proxies) == count)
        assert (await post(ports[0])).status == 202
        last = proxies[count - 1].reporter
        await until(lambda: bool(last.status()["destinations"]) and last.status()["destinations"][0]["state"] == "held")
        assert last.status()["destinations"][0]["buffered_rows"] == 1
        assert "leads to itself" in last.status()["destinations"][0]["reason"]
        assert proxies[0].reporter.status()["requests"] == {
            **{"accepted": 1, "refused": {"loop": 1}, "waiting": 0},
            "waits": proxies[0].reporter.status()["requests"]["waits"],
        }
        stop.set()


async def test_two_proxies_in_a_row_are_no_loop() -> None:
    async with (
        running_tinybird() as tinybird,
        running_proxy(environment(tinybird.url), instance="near") as near,
        running_proxy(environment(f"http://127.0.0.1:{near.port}"), instance="far") as far,
    ):
        for row_count in (2, 1):
            answer = await post(far.port, "name=hits&wait=true", b"{}\n" * row_count)
            assert (answer.status, answer.json()["successful_rows"]) == (200, row_count)
        assert len(await tinybird.rows("hits")) == 3
        assert {received.headers["X-Batch-Via"] for received in tinybird.requests} == {"far, near"}


async def test_two_ports_that_are_taken_are_told_both_at_once() -> None:
    async with running_tinybird() as tinybird, running_proxy(environment(tinybird.url)) as proxy:
        env = environment(tinybird.url, PORT=str(proxy.port), ADMIN_PORT=str(proxy.admin_port))
        ended = await asyncio.to_thread(ended_process, env)
    assert ended.returncode == 2
    assert f"ADMIN_PORT: 127.0.0.1:{proxy.admin_port} is already in use" in ended.stderr
    assert f"  PORT: 127.0.0.1:{proxy.port} is already in use" in ended.stderr
