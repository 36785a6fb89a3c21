"""Keeps the webhook going: which certificate is shown, and that the API server knows its CA.

The configuration is read before the Secret, and written as it was read: so nobody registers a bundle that is older than
the registered one. A new CA is in the configuration for an overlap before it signs, and the old one after.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from tinybird_proxy_operator.errors import Forbidden
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.serving.certificates import Pair, ends_at
from tinybird_proxy_operator.serving.looks import PERIOD_S, Teller, look_again
from tinybird_proxy_operator.serving.secret import STALE, CertificateSecret
from tinybird_proxy_operator.serving.tls import ServerTLS
from tinybird_proxy_operator.webhook.registration import KIND, owner, registered_bundle, with_bundle
from tinybird_proxy_operator.webhook.settings import OwnCertificates, WebhookSettings
from tinybird_proxy_operator.webhook.telemetry import Standing

REGISTERED: Final = "Registered."
NOT_OURS: Final = "The certificate is somebody else's to make known (cert-manager's cainjector)."
_log = logging.getLogger(__name__)


class _Upkeep:
    """What both ways have in common. ``jitter(limit)`` is a random number up to ``limit``."""

    def __init__(self, *, tls: ServerTLS, standing: Standing, jitter: Callable[[float], float]) -> None:
        self._tls = tls
        self._standing = standing
        self._jitter = jitter
        self._teller = Teller(_log, "the webhook's")
        self._shown: Pair | None = None

    async def _look_again(self, look: Callable[[], Awaitable[None]], overlap_s: float) -> None:
        await look_again(
            look, is_ready=lambda: self._standing.not_ready is None, overlap_s=overlap_s, jitter=self._jitter
        )

    async def _show(self, serving: Pair) -> None:
        if serving == self._shown:
            return
        await self._tls.use(serving, "")
        self._shown = serving
        self._standing.certificate_ends_at = ends_at(serving.certificate)

    def _stand(self, registered: bool, sentence: str) -> None:
        self._standing.registered, self._standing.sentence = registered, sentence
        self._teller.tell("standing", logging.INFO if registered else logging.WARNING, sentence)


class OwnUpkeep(_Upkeep):
    """One process's part in it, where the replicas make the certificates themselves.

    ``now`` is a clock in seconds; ``check_self`` raises ``ValueError`` if the process does not answer itself.
    """

    def __init__(
        self,
        kube: Kube,
        settings: WebhookSettings,
        own: OwnCertificates,
        *,
        tls: ServerTLS,
        standing: Standing,
        now: Callable[[], float],
        utc_now: Callable[[], datetime],
        jitter: Callable[[float], float],
        check_self: Callable[[str], Awaitable[None]],
    ) -> None:
        super().__init__(tls=tls, standing=standing, jitter=jitter)
        self._kube = kube
        self._settings = settings
        self._own = own
        self._check_self = check_self
        self._secret = CertificateSecret(
            kube,
            namespace=settings.namespace,
            name=own.secret,
            server_names=settings.server_names,
            lifetimes=own.lifetimes,
            now=now,
            utc_now=utc_now,
        )
        self._is_off = False

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._look_again(self.look, self._own.lifetimes.overlap_s)

    async def look(self) -> None:
        """One pass. What fails is told, and tried again with the next one."""
        await self._teller.attempt("certificates and registration", self._look)
        self._standing.not_ready = self._why_not_ready()

    def _why_not_ready(self) -> str | None:
        if self._is_off:
            return f"The {KIND} {self._own.configuration} is gone: the webhook was turned off."
        if not self._tls.is_ready:
            return "There is no certificate yet."
        return STALE if self._secret.is_stale else None

    async def _look(self) -> None:
        own, where = self._own, (self._settings.namespace, self._settings.service)
        try:
            live = await self._kube.find(KIND, None, own.configuration)
        except Forbidden as error:
            self._stand(False, f"Not registered: {error}. It is off, or its rights are missing.")
            return
        self._is_off = live is None
        if live is None:
            self._stand(False, f"Not registered: the {KIND} {own.configuration} is gone, so it was turned off.")
            return
        registered = registered_bundle(live, *where)
        issued = await self._secret.issued(owner(live), registered)
        await self._show(issued.serving)
        if registered == issued.bundle:
            self._stand(True, REGISTERED)
            return
        wanted = with_bundle(live, *where, issued.bundle)
        try:
            await self._check_self(issued.bundle)
        except ValueError as error:
            self._stand(self._standing.registered, f"Not registered anew, because it does not answer itself: {error}")
            return
        await self._kube.apply_where(live, wanted)
        self._stand(True, REGISTERED)


class FileUpkeep(_Upkeep):
    """The same, where somebody else puts the certificate into files, and tells the API server of its CA."""

    def __init__(self, directory: str, *, tls: ServerTLS, standing: Standing, jitter: Callable[[float], float]) -> None:
        super().__init__(tls=tls, standing=standing, jitter=jitter)
        self._directory = Path(directory)

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._look_again(self.look, overlap_s=PERIOD_S * 5)

    async def look(self) -> None:
        """One pass. While files cannot be used, what is shown stays."""
        await self._teller.attempt(f"the certificate in {self._directory}", self._look)
        self._standing.not_ready = None if self._tls.is_ready else "There is no certificate yet."

    async def _look(self) -> None:
        try:
            serving = await asyncio.to_thread(self._read)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}: {error.filename}") from error
        await self._show(serving)
        self._stand(True, NOT_OURS)

    def _read(self) -> Pair:
        return Pair((self._directory / "tls.crt").read_text(), (self._directory / "tls.key").read_text())
