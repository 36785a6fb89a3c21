"""What the API server of tests/cluster recorded from a moment on: who wrote what and when, by the pod that did it.

log = AuditLog()  # from now on
...
late = [write for write in log.writes("tinybird-system:tinybird-proxy-operator") if write.pod == "the-old-one"]
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tests.e2e.privileges import user_of

_READS: Final = frozenset({"get", "list", "watch"})
_POD: Final = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True, slots=True)
class Write:
    """One request that would change something, and what was answered."""

    pod: str
    """Whose token it came with; empty for a token that is no pod's."""
    verb: str
    resource: str
    """With the subresource, as rules have it: `pods/eviction`."""
    namespace: str
    name: str
    """Empty for what the API server names."""
    status: int
    received_at: datetime
    answered_at: datetime

    def __str__(self) -> str:
        what = f"{self.verb} {self.resource} {self.namespace}/{self.name}"
        return f"{self.received_at:%H:%M:%S.%f} to {self.answered_at:%H:%M:%S.%f} {self.pod}: {what}: {self.status}"


class AuditLog:
    """The log from now on, or from its beginning if ``from_now`` is False."""

    def __init__(self, path: Path | None = None, *, from_now: bool = True) -> None:
        self._path = path or Path(os.environ["KUBECONFIG"]).parent / "logs" / "audit.log"
        self._begin = self._path.stat().st_size if from_now else 0

    def writes(self, service_account: str) -> list[Write]:
        """Those of ``namespace:name``, by the time at which they came in."""
        user = user_of(service_account)
        found = [_write(each) for each in self._entries(user) if each["user"]["username"] == user]
        return sorted((write for write in found if write.verb not in _READS), key=lambda write: write.received_at)

    def _entries(self, text: str) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as lines:
            lines.seek(self._begin)
            for line in lines:
                if text.encode() not in line:
                    continue
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # the line that is being written


def _write(entry: dict[str, Any]) -> Write:
    asked = entry.get("objectRef", {})
    return Write(
        pod=entry["user"].get("extra", {}).get(_POD, [""])[0],
        verb=entry["verb"],
        resource="/".join(part for part in (asked.get("resource"), asked.get("subresource")) if part),
        namespace=asked.get("namespace", ""),
        name=asked.get("name", ""),
        status=entry.get("responseStatus", {}).get("code", 0),
        received_at=datetime.fromisoformat(entry["requestReceivedTimestamp"]),
        answered_at=datetime.fromisoformat(entry["stageTimestamp"]),
    )
