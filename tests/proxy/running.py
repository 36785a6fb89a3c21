"""What tests of the ports start: proxies inside the test or as processes, plain servers, a client that hides nothing.

Everything listens on loopback and on a free port. Whatever is waited for has a deadline.
"""

import asyncio
import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tinybird_proxy.app.run import Proxy, running
from tinybird_proxy.app.secrets import load_secrets
from tinybird_proxy.config import from_env
from tinybird_proxy.emulator import Emulator, EmulatorSettings, running_emulator

TOKEN: Final = "tinybird-admin"
DEADLINE_S: Final = 20.0
_LINE_MAX_BYTES: Final = 16 * 1024 * 1024


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6: Final = pytest.mark.skipif(not _has_ipv6(), reason="not in CI: needs ::1")


def environment(url: str, **env: str | None) -> dict[str, str]:
    """A proxy's variables: quick flushes to ``url`` with a token of ours. None takes a variable away."""
    defaults = {
        **{"HOST": "127.0.0.1", "PORT": "0", "ADMIN_PORT": "0", "LOG_FORMAT": "json", "FLUSH_INTERVAL": "20ms"},
        **{"TINYBIRD_URL": url, "TINYBIRD_TOKEN": TOKEN},
    }
    return {name: value for name, value in {**defaults, **env}.items() if value is not None}


@asynccontextmanager
async def running_proxy(env: Mapping[str, str], *, instance: str = "proxy-1") -> AsyncIterator[Proxy]:
    """A proxy inside this process, until the block ends; its ledger must balance then."""
    config = from_env(env)
    proxies: list[Proxy] = []

    def probe_all() -> None:
        for proxy in proxies:
            proxy.pipeline.probe_all()

    secrets = load_secrets(config, utc_now=time.time, hash_key=b"a key", on_new_token=probe_all)
    async with AsyncExitStack() as stack:
        # Nothing here is certified by anybody, and reading the authorities takes most of a proxy's start.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", os.devnull)
            proxy = await stack.enter_async_context(running(config, secrets, instance=instance, env=env))
        proxies.append(proxy)
        yield proxy
    assert proxy.pipeline.ledger().imbalance(proxy.pipeline.buffered_rows()) == 0


@dataclass(frozen=True, slots=True)
class World:
    """A proxy and the emulated Tinybird behind it."""

    proxy: Proxy
    tinybird: Emulator

    @property
    def port(self) -> int:
        """The public port."""
        return self.proxy.port

    def status(self) -> dict[str, Any]:
        """What ``/status`` says."""
        return self.proxy.reporter.status()


@asynccontextmanager
async def running_world(emulator: Mapping[str, Any] | None = None, /, **env: str | None) -> AsyncIterator[World]:
    """Both, until the block ends. ``emulator`` holds settings of the emulator, ``env`` variables of the proxy."""
    async with (
        running_tinybird(**(emulator or {})) as tinybird,
        running_proxy(environment(tinybird.url, **env)) as proxy,
    ):
        yield World(proxy, tinybird)


@asynccontextmanager
async def running_tinybird(**settings: Any) -> AsyncIterator[Emulator]:
    """An emulator that answers at once and has no limit on requests, unless ``settings`` say otherwise."""
    defaults = {"token": TOKEN, "port": 0, "wait_delay_s": 0.0, "requests_per_s": 0}
    async with running_emulator(EmulatorSettings(**{**defaults, **settings})) as emulator:
        yield emulator


# A proxy as a process of its own, as people run it.


class ProxyProcess:
    """``tinybird-proxy run``. Made by `running_process`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.port = 0
        self.admin_port = 0
        self.lines: list[dict[str, Any]] = []
        self.output = b""
        self._process = process
        self._logged = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def peak_bytes(self) -> int:
        """The most memory that it ever had in use."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def logged(self, message: str, **fields: Any) -> dict[str, Any]:
        """The first line with this message and these fields, once it is there."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                self._logged.clear()
                for line in self.lines:
                    if line["message"] == message and all(line.get(name) == fields[name] for name in fields):
                        return line
                if self._reading.done():
                    raise AssertionError(f"ended without {message!r}: {self.output.decode()}")
                await self._logged.wait()

    async def ended(self, *, within_s: float = DEADLINE_S) -> int:
        """The exit status, once there is one."""
        async with asyncio.timeout(within_s):
            await asyncio.shield(self._reading)
            return await self._process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.terminate(number)
        return await self.ended()

    async def status(self) -> dict[str, Any]:
        """What ``/status`` says."""
        found: dict[str, Any] = (await ask(self.admin_port, "/status", method="GET")).json()
        return found

    async def status_until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What ``/status`` says once ``is_so`` holds for it."""
        found: dict[str, Any] = {}

        async def asked() -> bool:
            found.clear()
            found.update(await self.status())
            return is_so(found)

        await until(asked)
        return found

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.output += line
            if line.startswith(b"{"):
                self.lines.append(json.loads(line))
            self._logged.set()
        self._logged.set()

    async def _kill(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def running_process(env: Mapping[str, str], *command: str) -> AsyncIterator[ProxyProcess]:
    """A proxy that has said that it is ready. If it still runs when the block ends, it is killed."""
    process = await asyncio.create_subprocess_exec(
        *(command or (sys.executable, "-m", "tinybird_proxy", "run")),
        env={"PATH": os.environ["PATH"], **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        limit=_LINE_MAX_BYTES,
    )
    proxy = ProxyProcess(process)
    try:
        ready = await proxy.logged("ready")
        proxy.port, proxy.admin_port = ready["port"], ready["admin_port"]
        yield proxy
    finally:
        await proxy._kill()


def ended_process(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself. Blocks."""
    return subprocess.run(
        [sys.executable, "-m", "tinybird_proxy", *(arguments or ("run",))],
        env={"PATH": os.environ["PATH"], **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


# A client that sends exactly what it is given.


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came over the wire, its body without the transfer encoding."""

    version: str
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        """The one header of this name; KeyError if it is not there, or more than once."""
        values = self.all(name)
        if len(values) != 1:
            raise KeyError(f"{name}: {values} in {self.headers}")
        return values[0]

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def all(self, name: str) -> list[str]:
        """Every header of this name."""
        return [value for other, value in self.headers if other.lower() == name.lower()]

    def json(self) -> Any:
        """The body, which must say that it is JSON."""
        assert self["Content-Type"] == "application/json", self
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """What a refusal says."""
        assert self.status >= 400, self
        message = self.json()["error"]
        assert isinstance(message, str)
        assert message
        return message


class Peer:
    """One connection. Made by `connected`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send, waiting for room."""
        self.writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            await self.writer.drain()

    async def head(self) -> tuple[str, list[tuple[str, str]]]:
        """The first line and the headers of what comes next. Raises IncompleteReadError at the end."""
        async with asyncio.timeout(DEADLINE_S):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text[:-4].split("\r\n")
        pairs = [line.partition(":") for line in lines]
        return first, [(name, value.strip()) for name, _, value in pairs]

    async def answer(self, *, method: str = "POST") -> Answer:
        """The next answer. Raises IncompleteReadError if the connection ends in it, ConnectionError if it is reset."""
        first, headers = await self.head()
        version, status, *_ = first.split(" ")
        answer = Answer(version, int(status), headers, b"")
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return answer
        async with asyncio.timeout(DEADLINE_S):
            return Answer(version, int(status), headers, await self._body(answer))

    async def _body(self, answer: Answer) -> bytes:
        if "Content-Length" in answer:
            assert "Transfer-Encoding" not in answer, answer
            return await self.reader.readexactly(int(answer["Content-Length"]))
        if "Transfer-Encoding" not in answer:
            return await self.reader.read()
        assert answer["Transfer-Encoding"] == "chunked"
        found = b""
        while piece := await self.piece():
            found += piece
        return found

    async def piece(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    def pause(self) -> None:
        """Read nothing more from the connection."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    async def rest(self) -> bytes:
        """Everything until the other side closes the connection."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read()


@asynccontextmanager
async def connected(port: int, *, tls: ssl.SSLContext | None = None, host: str = "localhost") -> AsyncIterator[Peer]:
    """A connection to a local port until the block ends."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, limit=_LINE_MAX_BYTES, ssl=tls, server_hostname=host if tls else None
    )
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def request(
    target: str,
    body: bytes | None = None,
    *,
    method: str = "POST",
    token: str | None = TOKEN,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    version: str = "1.1",
) -> bytes:
    """A request's bytes. With a body, or a POST, its length is added."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    names = {name.lower() for name, _ in pairs}
    if "host" not in names:
        pairs.insert(0, ("Host", "localhost"))
    if token is not None and "authorization" not in names:
        pairs.append(("Authorization", f"Bearer {token}"))
    if (body is not None or method == "POST") and not names & {"content-length", "transfer-encoding"}:
        pairs.append(("Content-Length", str(len(body or b""))))
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + (body or b"")


async def ask(
    port: int,
    target: str,
    body: bytes | None = None,
    *,
    method: str = "POST",
    token: str | None = TOKEN,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    version: str = "1.1",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own."""
    async with connected(port, tls=tls) as peer:
        await peer.send(request(target, body, method=method, token=token, headers=headers, version=version))
        return await peer.answer(method=method)


async def post(
    port: int,
    query: str = "name=hits",
    body: bytes = b'{"n":1}',
    *,
    token: str | None = TOKEN,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
) -> Answer:
    """One events request on a connection of its own."""
    return await ask(port, f"/v0/events?{query}", body, token=token, headers=headers)


def chunked(*pieces: bytes) -> bytes:
    """A whole chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


# A server that does exactly what a test says.


@dataclass(frozen=True, slots=True)
class Asked:
    """The head of a request that a plain server got."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """Every header of this name."""
        return [value for other, value in self.headers if other.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        """The one header of this name."""
        (value,) = self.all(name)
        return value


async def asked(peer: Peer) -> Asked:
    """The head of the next request."""
    first, headers = await peer.head()
    method, target, _ = first.split(" ")
    return Asked(method, target, headers)


@asynccontextmanager
async def serving(
    handle: Callable[[Peer], Awaitable[None]], *, tls: ssl.SSLContext | None = None, limit: int = _LINE_MAX_BYTES
) -> AsyncIterator[int]:
    """A server that calls ``handle`` for each connection and closes it after that; its port. A failure is raised."""
    async with asyncio.TaskGroup() as group:
        tasks: set[asyncio.Task[None]] = set()

        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handle(Peer(reader, writer))
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the other side left
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(group.create_task(serve_one(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, limit=limit)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in tasks:
                task.cancel()


async def until(is_so: Callable[[], bool] | Callable[[], Awaitable[bool]], *, within_s: float = DEADLINE_S) -> None:
    """Return once ``is_so()``, asked again and again: for what another process or the kernel does."""
    async with asyncio.timeout(within_s):
        while True:
            found = is_so()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


class PlainTinybird:
    """Answers every request with 200 and counts, and keeps what it was asked. Made by `plain_tinybird`."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[Asked, bytes]] = []

    async def handle(self, peer: Peer) -> None:
        """Serve one connection until the other side closes it."""
        while True:
            head = await asked(peer)
            assert head.all("Transfer-Encoding") == []
            body = await peer.reader.readexactly(int(head["Content-Length"]))
            self.asked.append((head, body))
            raw = gzip.decompress(body) if head.all("Content-Encoding") == ["gzip"] else body
            counts = {"successful_rows": raw.count(b"\n") + 1, "quarantined_rows": 0}
            await peer.send(answer_bytes(200, json.dumps(counts).encode()))


@asynccontextmanager
async def plain_tinybird() -> AsyncIterator[PlainTinybird]:
    """A server that looks at nothing, for what the emulator would refuse."""
    tinybird = PlainTinybird()
    async with serving(tinybird.handle) as port:
        tinybird.url = f"http://127.0.0.1:{port}"
        yield tinybird


def answer_bytes(status: int, body: bytes = b"", *headers: tuple[str, str]) -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers)]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


# Certificates, made with the openssl command.


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=DEADLINE_S)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


def make_authority(directory: Path) -> Path:
    """``ca.pem`` and its key in ``directory``, which is returned."""
    paths = ("-keyout", str(directory / "ca.key"), "-out", str(directory / "ca.pem"))
    _openssl("req", "-x509", *_KEY, *paths, "-days", "2", "-subj", "/CN=Test authority")
    return directory


def make_certificate(authority: Path, name: str, *, label: str = "") -> tuple[Path, Path]:
    """A certificate for ``name`` and its key. ``label`` tells two for one name apart."""
    cert, key = (authority / f"{label}{name}.{kind}" for kind in ("pem", "key"))
    ca = ("-CA", str(authority / "ca.pem"), "-CAkey", str(authority / "ca.key"))
    san = ("-addext", f"subjectAltName=DNS:{name}")
    subject = ("-subj", f"/CN={label}{name}")
    _openssl("req", "-x509", *_KEY, *ca, "-keyout", str(key), "-out", str(cert), "-days", "1", *subject, *san)
    return cert, key


def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """What a TLS server of a test needs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*map(str, certificate))
    return context
