"""One listener whose certificate and client CA change while it runs: with a real handshake for everything said."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.operator.metrics_apis import ClientCA, client_context

from tinybird_proxy_operator.serving.certificates import Pair, make_authority, make_serving
from tinybird_proxy_operator.serving.tls import ServerTLS

NAMES = ("metrics.system.svc",)
REFUSED = (ConnectionError, ssl.SSLError)


class Issuer:
    """A CA for servers, and a certificate of it."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.authority = make_authority("metrics", now=now, lifetime_s=1000)
        self.serving: Pair = make_serving(self.authority, NAMES, now=now, lifetime_s=500)


@asynccontextmanager
async def listening(tls: ServerTLS) -> AsyncIterator[int]:
    """A server that tells each client whose certificate it has seen."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("peercert") or {}
        names = [value for part in certificate.get("subject", ()) for _, value in part]
        writer.write(f"{','.join(names)}\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(tell, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def seen(port: int, context: ssl.SSLContext, name: str | None = NAMES[0], **more: Any) -> str:
    """The name that the server saw. Raises ``OSError`` if there is no handshake."""
    if name is None:
        context.check_hostname = False
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "", **more)
    try:
        line = await reader.readline()
        if not line:
            raise ConnectionResetError("it hung up")
        return line.decode().strip()
    finally:
        writer.close()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


async def test_without_a_certificate_there_is_no_handshake(issuer: Issuer) -> None:
    tls = ServerTLS()
    assert not tls.is_ready
    async with listening(tls) as port:
        with pytest.raises(REFUSED):
            await seen(port, client_context(issuer.authority.certificate))


async def test_a_client_may_show_a_certificate_or_none(issuer: Issuer, tmp_path: Path) -> None:
    tls, clients = ServerTLS(), ClientCA()
    await tls.use(issuer.serving, clients.certificate)
    async with listening(tls) as port:
        ca = issuer.authority.certificate
        assert await seen(port, client_context(ca)) == ""
        assert (
            await seen(port, client_context(ca, clients.client(tmp_path, "front-proxy-client"))) == "front-proxy-client"
        )


async def test_a_certificate_of_another_ca_or_for_another_use_is_refused(issuer: Issuer, tmp_path: Path) -> None:
    tls, clients, others = ServerTLS(), ClientCA(), ClientCA()
    await tls.use(issuer.serving, clients.certificate)
    async with listening(tls) as port:
        server = clients.client(tmp_path, "front-proxy-client", usage=ExtendedKeyUsageOID.SERVER_AUTH)
        for wrong in (others.client(tmp_path, "front-proxy-client"), server):
            with pytest.raises(REFUSED):
                await seen(port, client_context(issuer.authority.certificate, wrong))


async def test_where_no_client_ca_is_known_no_certificate_is_good(issuer: Issuer, tmp_path: Path) -> None:
    tls, clients = ServerTLS(), ClientCA()
    await tls.use(issuer.serving, "")
    async with listening(tls) as port:
        assert await seen(port, client_context(issuer.authority.certificate)) == ""
        with pytest.raises(REFUSED):
            await seen(port, client_context(issuer.authority.certificate, clients.client(tmp_path, "any")))


async def test_where_nobody_is_asked_for_a_certificate_whatever_a_client_has_is_good(
    issuer: Issuer, tmp_path: Path
) -> None:
    tls = ServerTLS(asks_for_certificates=False)
    await tls.use(issuer.serving, "")
    async with listening(tls) as port:
        client = ClientCA().client(tmp_path, "any")
        assert await seen(port, client_context(issuer.authority.certificate, client)) == ""


@pytest.mark.parametrize("name", [NAMES[0], None], ids=["by name", "without a name"])
async def test_certificate_and_client_ca_change_for_the_next_handshake(
    issuer: Issuer, tmp_path: Path, name: str | None
) -> None:
    tls, clients, later, next_clients = ServerTLS(), ClientCA(), Issuer(), ClientCA()
    old, new = clients.client(tmp_path, "old"), next_clients.client(tmp_path, "new")
    await tls.use(issuer.serving, clients.certificate)
    async with listening(tls) as port:
        assert await seen(port, client_context(issuer.authority.certificate, old), name) == "old"
        # Both client CAs, the old certificate.
        await tls.use(issuer.serving, clients.certificate + next_clients.certificate)
        assert await seen(port, client_context(issuer.authority.certificate, old), name) == "old"
        assert await seen(port, client_context(issuer.authority.certificate, new), name) == "new"
        # The new client CA and the new certificate alone.
        await tls.use(later.serving, next_clients.certificate)
        assert await seen(port, client_context(later.authority.certificate, new), name) == "new"
        with pytest.raises(REFUSED):
            await seen(port, client_context(later.authority.certificate, old), name)
        with pytest.raises(ssl.SSLCertVerificationError):
            await seen(port, client_context(issuer.authority.certificate, new), name)


async def test_what_cannot_be_used_changes_nothing(issuer: Issuer) -> None:
    tls, other = ServerTLS(), Issuer()
    await tls.use(issuer.serving, "")
    for serving, client_ca in (
        (Pair(issuer.serving.certificate, other.serving.key), ""),
        (other.serving, "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"),
        (Pair("", ""), ""),
    ):
        with pytest.raises(ValueError, match="OpenSSL does not take it"):
            await tls.use(serving, client_ca)
    async with listening(tls) as port:
        assert await seen(port, client_context(issuer.authority.certificate)) == ""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_client_gets_a_ticket_to_come_back_with(issuer: Issuer, version: ssl.TLSVersion) -> None:
    tls = ServerTLS()
    await tls.use(issuer.serving, "")
    context = client_context(issuer.authority.certificate)
    context.minimum_version = context.maximum_version = version
    async with listening(tls) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAMES[0])
        await reader.read()
        session = writer.get_extra_info("ssl_object").session
        assert session is None or not session.has_ticket
        writer.close()


async def test_the_key_is_nowhere_on_disk_afterwards(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await ServerTLS().use(issuer.serving, "")
    assert os.listdir(tmp_path) == []


async def test_many_changes_refuse_nobody(issuer: Issuer) -> None:
    """Clients that know both CAs connect all the time, while certificates go back and forth."""
    tls, later, done = ServerTLS(), Issuer(), asyncio.Event()
    await tls.use(issuer.serving, "")
    both = issuer.authority.certificate + later.authority.certificate
    async with listening(tls) as port:

        async def connect() -> int:
            count = 0
            while not done.is_set():
                assert await seen(port, client_context(both)) == ""
                count += 1
            return count

        clients = [asyncio.create_task(connect()) for _ in range(4)]
        for _ in range(10):
            for each in (later, issuer):
                await tls.use(each.serving, "")
        done.set()
        assert all(await asyncio.gather(*clients))
