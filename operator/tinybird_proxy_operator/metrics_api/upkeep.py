"""Keeps the metrics API going: who is believed, which certificate is shown, and that the API server knows of it.

Each pass looks at everything anew. Replicas agree through the Secret and resourceVersions alone: whoever comes second
gets a conflict, and looks again at the next pass. The APIServices are read before the Secret, and written as they were
read: so nobody registers a bundle that is older than the registered one.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import aiohttp

from tinybird_proxy_operator.errors import Conflict, Forbidden, KubeError, NotFound
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.metrics_api.api import GROUP, VERSIONS
from tinybird_proxy_operator.metrics_api.authentication import (
    CONFIGURATION_NAME,
    CONFIGURATION_NAMESPACE,
    Authenticator,
)
from tinybird_proxy_operator.metrics_api.certificates import ends_at
from tinybird_proxy_operator.metrics_api.registration import (
    API_SERVICES,
    Lives,
    Registrant,
    api_service,
    is_like,
    others,
    registered_bundle,
)
from tinybird_proxy_operator.metrics_api.renewal import Issued, advance, from_data, to_data
from tinybird_proxy_operator.metrics_api.settings import MetricsApiSettings
from tinybird_proxy_operator.metrics_api.telemetry import Standing
from tinybird_proxy_operator.metrics_api.tls import ServerTLS
from tinybird_proxy_operator.names import FIELD_MANAGER, MANAGED_BY_LABEL

PERIOD_S: Final = 10.0
NOT_READY_PERIOD_S: Final = 2.0
# A replica must have looked several times before an overlap ends.
_PERIODS_IN_OVERLAP: Final = 5
_SELF_CHECK_TIMEOUT_S: Final = 5.0
_ATTEMPTS: Final = 2
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
        self._now = now
        self._utc_now = utc_now
        self._jitter = jitter
        self._check_self = check_self
        self._held: Issued | None = None
        self._held_at = 0.0
        self._shown: tuple[object, str] | None = None
        self._withdrawn = False
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        period_s = min(PERIOD_S, self._settings.lifetimes.overlap_s / _PERIODS_IN_OVERLAP)
        while True:
            await self.look()
            # While nothing can be answered, what is missing (rights, mostly) may come any moment.
            wait_s = period_s if self._standing.not_ready is None else min(period_s, NOT_READY_PERIOD_S)
            await asyncio.sleep(wait_s * (1.0 - self._jitter(0.2)))

    async def look(self) -> None:
        """One pass. What fails is told, and tried again with the next one."""
        where = f"ConfigMap {CONFIGURATION_NAMESPACE}/{CONFIGURATION_NAME}"
        await self._try(f"whom to believe ({where})", self._authenticator.read)
        await self._try("certificates and registration", self._look_at_registration)
        self._standing.not_ready = self._why_not_ready()

    async def _try(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Conflict:
            pass  # another replica was faster; the next look shows what it did
        except (KubeError, ValueError) as error:
            self._tell(what, logging.WARNING, f"{what}: {error}; it is tried again")
        except Exception:  # noqa: BLE001 - the process goes on with what it has
            _log.exception("%s: a fault of the metrics API's; it is tried again", what)
        else:
            self._told.pop(what, None)

    def _why_not_ready(self) -> str | None:
        settings = self._settings
        if self._withdrawn:
            return f"The ClusterRole {settings.cluster_role} is gone: the metrics API was turned off."
        if self._authenticator.configuration is None:
            return "The API server's configuration was not read yet, so nobody can be known."
        if not self._tls.is_ready:
            return "There is no certificate yet."
        if self._now() - self._held_at > settings.lifetimes.overlap_s:
            return (
                "The certificates could not be read for so long that others may have forgotten the one that is shown."
            )
        return None

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
        issued = await self._issued(registrant, lives)
        await self._show(issued)
        await self._register(registrant, lives, issued)

    async def _issued(self, registrant: Registrant, lives: Lives) -> Issued:
        """What the Secret says, after the step that is due."""
        for _ in range(_ATTEMPTS):
            with suppress(Conflict):
                return await self._issued_once(registrant, lives)
        return await self._issued_once(registrant, lives)

    async def _issued_once(self, registrant: Registrant, lives: Lives) -> Issued:
        settings = self._settings
        found = await self._kube.find("Secret", settings.namespace, settings.secret)
        if found is None:
            # Empty, so that it does not matter who makes it; what is in it is written as it was read.
            found = await self._kube.apply_where(None, self._empty_secret(registrant))
        data = found.get("data") or {}
        stored = from_data(data)
        issued = advance(
            stored,
            names=settings.server_names,
            lifetimes=settings.lifetimes,
            now=self._utc_now(),
            registered=registered_bundle(lives, registrant),
            held=self._held,
        )
        if issued is not stored:
            written: dict[str, Any] = {**dict.fromkeys(data), **to_data(issued)}
            await self._kube.change({**found, "kind": "Secret"}, {"data": written})
            _log.info("wrote the certificates to the Secret %s: %s", settings.secret, _told_of(issued))
        self._held, self._held_at = issued, self._now()
        return issued

    def _empty_secret(self, registrant: Registrant) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._settings.secret,
                "namespace": self._settings.namespace,
                "labels": {MANAGED_BY_LABEL: FIELD_MANAGER},
                "ownerReferences": [registrant.owner()],
            },
        }

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
        self._tell("standing", logging.INFO if sentence in (REGISTERED, JUST_REGISTERED) else logging.WARNING, sentence)

    def _tell(self, what: str, level: int, message: str) -> None:
        if self._told.get(what) != message:
            self._told[what] = message
            _log.log(level, "%s", message)


def self_check(
    session: aiohttp.ClientSession, *, port: Callable[[], int], server_name: str
) -> Callable[[str], Awaitable[None]]:
    """Ask our own listener as the API server will: over TLS, by the Service's name, with the CAs of a bundle.

    What it returns raises ``ValueError`` if that does not work.
    """

    async def check(bundle: str) -> None:
        context = ssl.create_default_context(cadata=bundle)
        url, timeout = f"https://localhost:{port()}/healthz", aiohttp.ClientTimeout(total=_SELF_CHECK_TIMEOUT_S)
        try:
            async with session.get(url, ssl=context, server_hostname=server_name, timeout=timeout) as response:
                if response.status != 200:
                    raise ValueError(f"/healthz answers {response.status}")
        except aiohttp.ClientConnectorCertificateError as error:
            raise ValueError(str(error.certificate_error)) from error
        except aiohttp.ClientConnectorError as error:
            raise ValueError(str(error.os_error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(type(error).__name__) from error

    return check


def _told_of(issued: Issued) -> str:
    ends = ends_at(issued.serving.certificate).isoformat()
    if issued.next_authority is not None:
        return f"the serving certificate ends {ends}, and its next CA is made known"
    if issued.previous is not None:
        return f"the serving certificate ends {ends}, and is signed by a new CA"
    return f"the serving certificate ends {ends}"
