"""The certificates that all replicas share, in a Secret: read, taken a step further, and written as they were read.

Replicas agree through it and resourceVersions alone: whoever comes second gets a conflict, and looks again.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from tinybird_proxy_operator.errors import Conflict
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.names import FIELD_MANAGER, MANAGED_BY_LABEL
from tinybird_proxy_operator.serving.certificates import ends_at
from tinybird_proxy_operator.serving.renewal import Issued, Lifetimes, advance, from_data, to_data

# Why a process is not ready, where the Secret ``is_stale``.
STALE: Final = "The certificates could not be read for so long that others may have forgotten the one that is shown."
_ATTEMPTS: Final = 2
_log = logging.getLogger(__name__)


class CertificateSecret:
    """One replica's view of it. ``now`` is a clock in seconds; ``server_names``: what the certificates are for."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        server_names: Sequence[str],
        lifetimes: Lifetimes,
        now: Callable[[], float],
        utc_now: Callable[[], datetime],
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._server_names = server_names
        self._lifetimes = lifetimes
        self._now = now
        self._utc_now = utc_now
        self._held: Issued | None = None
        self._held_at = 0.0

    @property
    def is_stale(self) -> bool:
        """Whether it could not be read for so long that others may have forgotten what it said then."""
        return self._now() - self._held_at > self._lifetimes.overlap_s

    async def issued(self, owner: Object, registered: str | None) -> Issued:
        """What it says, after the step that is due.

        ``owner``: an ownerReference to what it goes with. ``registered``: the bundle that clients know, as read before
        this; None if they know none.
        """
        for _ in range(_ATTEMPTS):
            with suppress(Conflict):
                return await self._issued_once(owner, registered)
        return await self._issued_once(owner, registered)

    async def _issued_once(self, owner: Object, registered: str | None) -> Issued:
        found = await self._kube.find("Secret", self._namespace, self._name)
        if found is None:
            # Empty, so that it does not matter who makes it; what is in it is written as it was read.
            found = await self._kube.apply_where(None, self._empty(owner))
        data = found.get("data") or {}
        stored = from_data(data)
        issued = advance(
            stored,
            names=self._server_names,
            lifetimes=self._lifetimes,
            now=self._utc_now(),
            registered=registered,
            held=self._held,
        )
        if issued is not stored:
            written: dict[str, Any] = {**dict.fromkeys(data), **to_data(issued)}
            await self._kube.change({**found, "kind": "Secret"}, {"data": written})
            _log.info("wrote the certificates to the Secret %s: %s", self._name, _told_of(issued))
        self._held, self._held_at = issued, self._now()
        return issued

    def _empty(self, owner: Object) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "labels": {MANAGED_BY_LABEL: FIELD_MANAGER},
                "ownerReferences": [owner],
            },
        }


def _told_of(issued: Issued) -> str:
    ends = ends_at(issued.serving.certificate).isoformat()
    if issued.next_authority is not None:
        return f"the serving certificate ends {ends}, and its next CA is made known"
    if issued.previous is not None:
        return f"the serving certificate ends {ends}, and is signed by a new CA"
    return f"the serving certificate ends {ends}"
