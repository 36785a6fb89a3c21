"""One listener whose certificate and client CA change while it runs: each handshake takes what is in use by then.

OpenSSL lets the callback that looks at the server's name put another context in place, whose certificate and store of
CAs count from there on; it is called without a name, too. What the context in place says of resumption does not count,
so no ticket is ever given out by the first one.
"""

import asyncio
import os
import ssl
import tempfile
from pathlib import Path

from tinybird_proxy_operator.serving.certificates import Pair


class ServerTLS:
    """``context`` is the listener's. Before the first ``use`` every handshake fails.

    ``asks_for_certificates``: whether clients are asked for theirs at all; one that is asked may still show none.
    """

    def __init__(self, *, asks_for_certificates: bool = True) -> None:
        self._asks_for_certificates = asks_for_certificates
        self.context = _context(asks_for_certificates)
        self.context.sni_callback = self._choose
        self._in_use: ssl.SSLContext | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is a certificate."""
        return self._in_use is not None

    async def use(self, serving: Pair, client_ca: str) -> None:
        """Show ``serving`` from now on, and verify certificates of clients by ``client_ca``; empty: none is good.

        Raises ``ValueError`` if either cannot be used; then nothing has changed.
        """
        try:
            # A key can only be loaded from a file, and files are not for the event loop.
            self._in_use = await asyncio.to_thread(_loaded, serving, client_ca, self._asks_for_certificates)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"OpenSSL does not take it: {error}") from error

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        if self._in_use is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._in_use
        return None


def _context(asks_for_certificates: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client with a certificate of no CA of ours ends in the handshake; one without goes on, and needs a token.
    context.verify_mode = ssl.CERT_OPTIONAL if asks_for_certificates else ssl.CERT_NONE
    # As Go does it: what is named is trusted, whether it signed itself or not.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    return context


def _loaded(serving: Pair, client_ca: str, asks_for_certificates: bool) -> ssl.SSLContext:
    context = _context(asks_for_certificates)
    if client_ca:
        context.load_verify_locations(cadata=client_ca)
    descriptor, name = tempfile.mkstemp(suffix=".pem")  # for its owner alone
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(serving.key + serving.certificate)
        context.load_cert_chain(name)
    finally:
        Path(name).unlink()
    return context
