"""Keeps the metrics API going: who is believed, which certificate is shown, and that the API server knows of it.

Each pass looks at everything anew. Replicas agree through the Secret and resourceVersions alone: whoever comes second
gets a conflict, and looks again at the next pass. The APIServices are read before the Secret, and written as they were
read: so nobody registers a bundle that is older than the registered one.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from tinybird_proxy_operator.errors import Forbidden, KubeError, NotFound
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.api import GROUP, VERSIONS
from tinybird_proxy_operator.metrics_api.authentication import (
    CONFIGURATION_NAME,
    CONFIGURATION_NAMESPACE,
    Authenticator,
)
from tinybird_proxy_operator.metrics_api.registration import (
    API_SERVICES,
    Lives,
    Registrant,
    api_service,
    is_like,
    others,
    registered_bundle,
)
from tinybird_proxy_operator.metrics_api.settings import MetricsApiSettings
from tinybird_proxy_operator.metrics_api.telemetry import Standing
from tinybird_proxy_operator.serving.certificates import ends_at
from tinybird_proxy_operator.serving.looks import Teller, look_again
from tinybird_proxy_operator.serving.renewal import Issued
from tinybird_proxy_operator.serving.secret import STALE, CertificateSecret
from tinybird_proxy_operator.serving.tls import ServerTLS

JUST_REGISTERED: Final = "Registered; whether the API server reaches it is seen at the next look."
REGISTERED: Final = "Registered, and the API server reaches it."
_log = logging.getLogger(__name__)


class Upkeep:
    """One process's part in it. ``now`` is a clock in seconds, ``jitter(limit)`` a random number up to ``limit``."""

    def __init__(
        self,
        kube: Kube,
        settings: MetricsApiSettings,
        *,
        tls: ServerTLS,
        authenticator: Authenticator,
        standing: Standing,
        now: Callable[[], float],
        utc_now: Callable[[], datetime],
        jitter: Callable[[float], float],
        check_self: Callable[[str], Awaitable[None]],
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._tls = tls
        self._authenticator = authenticator
        self._standing = standing
        self._jitter = jitter
        self._check_self = check_self
        self._secret = CertificateSecret(
            kube,
            namespace=settings.namespace,
            name=settings.secret,
            server_names=settings.server_names,
            lifetimes=settings.lifetimes,
            now=now,
            utc_now=utc_now,
        )
        self._teller = Teller(_log, "the metrics API's")
        self._shown: tuple[object, str] | None = None
        self._withdrawn = False

    async def run(self) -> None:
        """Until it is cancelled."""
        await look_again(
            self.look,
            is_ready=lambda: self._standing.not_ready is None,
            overlap_s=self._settings.lifetimes.overlap_s,
            jitter=self._jitter,
        )

    async def look(self) -> None:
        """One pass. What fails is told, and tried again with the next one."""
        where = f"ConfigMap {CONFIGURATION_NAMESPACE}/{CONFIGURATION_NAME}"
        await self._teller.attempt(f"whom to believe ({where})", self._authenticator.read)
        await self._teller.attempt("certificates and registration", self._look_at_registration)
        self._standing.not_ready = self._why_not_ready()

    def _why_not_ready(self) -> str | None:
        settings = self._settings
        if self._withdrawn:
            return f"The ClusterRole {settings.cluster_role} is gone: the metrics API was turned off."
        if self._authenticator.configuration is None:
            return "The API server's configuration was not read yet, so nobody can be known."
        if not self._tls.is_ready:
            return "There is no certificate yet."
        return STALE if self._secret.is_stale else None

    async def _look_at_registration(self) -> None:
        settings = self._settings
        try:
            role = await self._kube.find("ClusterRole", None, settings.cluster_role)
        except Forbidden as error:
            self._stand(False, f"Not registered: {error}. It is off, or its rights are missing.")
            return
        self._withdrawn = role is None
        if role is None:
            self._stand(
                False, f"Not registered: the ClusterRole {settings.cluster_role} is gone, so it was turned off."
            )
            return
        registrant = Registrant(
            namespace=settings.namespace,
            service=settings.service,
            cluster_role=settings.cluster_role,
            cluster_role_uid=role["metadata"]["uid"],
        )
        lives = {name: await self._kube.find("APIService", None, name) for name in API_SERVICES}
        issued = await self._secret.issued(registrant.owner(), registered_bundle(lives, registrant))
        await self._show(issued)
        await self._register(registrant, lives, issued)

    async def _show(self, issued: Issued) -> None:
        configuration = self._authenticator.configuration
        shown = (issued.serving, "" if configuration is None else configuration.client_ca)
        if configuration is None or shown == self._shown:
            return
        await self._tls.use(*shown)
        self._shown = shown
        self._standing.certificate_ends_at = ends_at(issued.serving.certificate)

    async def _register(self, registrant: Registrant, lives: Lives, issued: Issued) -> None:
        if self._shown is None:
            self._stand(False, "Not registered yet: the API server's configuration was not read.")
            return
        if (in_the_way := others(lives, registrant)) is not None:
            await self._withdraw(registrant, lives)
            self._stand(False, in_the_way)
            return
        wanted = {name: api_service(name, registrant, issued.bundle) for name in API_SERVICES}
        changed = [name for name, live in lives.items() if live is None or not is_like(live, wanted[name])]
        if not changed:
            await self._check_through_the_api_server()
            return
        try:
            await self._check_self(issued.bundle)
        except ValueError as error:
            self._stand(self._standing.registered, f"Not registered anew, because it does not answer itself: {error}")
            return
        for name in changed:
            await self._kube.apply_where(lives[name], wanted[name])
        _log.info("registered %s", ", ".join(changed))
        self._stand(True, JUST_REGISTERED)

    async def _withdraw(self, registrant: Registrant, lives: Lives) -> None:
        """Both or neither: ours goes if the other is somebody else's by now."""
        for name, live in lives.items():
            if live is not None and registrant.is_owner_of(live):
                await self._kube.delete("APIService", None, name, uid=live["metadata"]["uid"])
                _log.warning("deleted our APIService %s, because the other version is somebody else's", name)

    async def _check_through_the_api_server(self) -> None:
        """A registration that the API server calls available may still fail: its own check verifies no certificate."""
        try:
            for version in VERSIONS:
                answer = await self._kube.read(f"/apis/{GROUP}/{version}")
                if answer.get("groupVersion") != f"{GROUP}/{version}":
                    raise NotFound(f"/apis/{GROUP}/{version} is answered by something else")
        except KubeError as error:
            text = "Registered, but the API server does not reach it: see that it may connect to the pods' TLS port"
            self._stand(True, f"{text} (metricsAPI.apiServerCIDRs, firewalls): {error}")
        else:
            self._stand(True, REGISTERED)

    def _stand(self, registered: bool, sentence: str) -> None:
        self._standing.registered, self._standing.sentence = registered, sentence
        self._standing.reached = sentence == REGISTERED
        self._teller.tell(
            "standing", logging.INFO if sentence in (REGISTERED, JUST_REGISTERED) else logging.WARNING, sentence
        )
