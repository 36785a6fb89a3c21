"""What ended proxies said last: their termination messages, as the pods carry them. Pure.

The proxy writes the message, see ``tinybird_proxy.app.last_words``: one line that begins with its numbers. It is there
from SIGTERM on, so that a process that SIGKILL ended has left one too. What was killed without SIGTERM, for want of
memory for instance, has left none; then it is the end of its log, or nothing, and no number is read out of that.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.names import (
    CONTAINER,
    INJECTED_LABEL,
    PROXY_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
)

# No proxy ever held more, and sums of it stay what an int64 can hold.
_NUMBER: Final = r"([0-9]{1,3}(?:,[0-9]{3}){0,4})"
_STILL_DELIVERING: Final = re.compile(
    rf"{_NUMBER} rows? (?:was|were) not delivered(?: and {_NUMBER} rows? of dead letters not saved)?"
    r" when this was written(?:, [\d.]+ (?:s|min|h) before the end)?(?:; (.*))?"
)
_STOPPED: Final = re.compile(
    rf"{_NUMBER} rows? lost(?:, {_NUMBER} of them may have arrived)?(?:; {_NUMBER} rows? of dead letters lost)?"
    r"(?:; (.*))?"
)
# So times compare as text.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """Rows that were lost, ``in_doubt_rows`` of them perhaps not; and rows of dead letters. ``why``: in its own words.

    ``still_delivering``: the process was ended before it could say how it ended. Then any of the rows may have
    arrived: it may have sent them after it wrote this.
    """

    rows: int
    in_doubt_rows: int
    dead_letter_rows: int
    still_delivering: bool
    why: str

    @property
    def tells_of_a_loss(self) -> bool:
        """Whether there is anything to count."""
        return self.rows > 0 or self.dead_letter_rows > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A process that ended ``at`` a time, RFC 3339 in UTC. ``proxy``: the name of its resource, in the pod's namespace.

    ``sidecar``: the pod is an app's.
    """

    proxy: str
    pod: str
    uid: str
    container: str
    at: str
    words: LastWords
    sidecar: bool


def read(message: str) -> LastWords | None:
    """The proxy's last words; None: these are not.

    Kubernetes may have cut the message off at its end, after the numbers.
    """
    line = message.partition("\n")[0]
    if (found := _STILL_DELIVERING.fullmatch(line)) is not None:
        rows, letters, why = found.groups()
        number = _number(rows)
        return LastWords(
            rows=number,
            in_doubt_rows=number,
            dead_letter_rows=_number(letters),
            still_delivering=True,
            why=why or "",
        )
    if (found := _STOPPED.fullmatch(line)) is not None:
        rows, in_doubt, letters, why = found.groups()
        return LastWords(
            rows=_number(rows),
            in_doubt_rows=min(_number(in_doubt), _number(rows)),
            dead_letter_rows=_number(letters),
            still_delivering=False,
            why=why or "",
        )
    return None


def ended(pod: _Body) -> list[Ended]:
    """Every process of a proxy in ``pod`` that ended, as far as the pod still tells, and left its last words.

    What a body proves: a pod of a Deployment says that it is of a ReplicaSet that is named as one of the resource's
    would be, and is named as that one's pods are. Not proved is that the ReplicaSet is ours: when the message can be
    read, it may be gone. Whoever may create pods in a namespace can write such a pod, or give one the labels of a
    sidecar, and any message; it counts for a resource of that namespace, and decides nothing.
    """
    found: list[Ended] = []
    for name, container, statuses in _proxies_in(pod):
        found += _of_container(container, statuses, pod["metadata"], name, sidecar=container == SIDECAR_CONTAINER)
    return found


def untold(pod: _Body) -> list[str]:
    """The resources whose proxy in ``pod``, which is gone, has left no word of how its last process ended."""
    return [name for name, container, statuses in _proxies_in(pod) if _told_nothing(container, statuses)]


def _proxies_in(pod: _Body) -> Iterator[tuple[str, str, object]]:
    """Of each proxy in it the resource, the container, and the list in which that one's status is."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if (name := labels.get(PROXY_LABEL)) and _is_of_a_deployment(metadata, name):
        yield name, CONTAINER, status.get("containerStatuses")
    if (name := labels.get(INJECTED_LABEL)) and SIDECAR_HASH_ANNOTATION in annotations:
        yield name, SIDECAR_CONTAINER, status.get("initContainerStatuses")


def _told_nothing(name: str, statuses: object) -> bool:
    for container in statuses if isinstance(statuses, list) else ():
        if container.get("name") == name:
            state = container.get("state") or {}
            end = state.get("terminated") or {}
            return "running" in state or (bool(end.get("exitCode")) and read(end.get("message") or "") is None)
    return False


def _of_container(name: str, statuses: object, metadata: _Body, proxy: str, *, sidecar: bool) -> Iterator[Ended]:
    for container in statuses if isinstance(statuses, list) else ():
        if container.get("name") != name:
            continue
        for state in ("lastState", "state"):  # a restarted container has one of each
            terminated = (container.get(state) or {}).get("terminated") or {}
            at, words = terminated.get("finishedAt") or "", read(terminated.get("message") or "")
            if words is not None and _TIME.fullmatch(at):
                yield Ended(
                    proxy=proxy,
                    pod=metadata["name"],
                    uid=metadata.get("uid") or "",
                    container=name,
                    at=at,
                    words=words,
                    sidecar=sidecar,
                )


def _is_of_a_deployment(metadata: _Body, proxy: str) -> bool:
    owner: _Body = next((each for each in metadata.get("ownerReferences") or () if each.get("controller")), {})
    replica_set = str(owner.get("name"))
    name, _, template = replica_set.rpartition("-")
    is_named_so = name == proxy and template != "" and metadata["name"].startswith(f"{replica_set}-")
    return owner.get("kind") == "ReplicaSet" and is_named_so


def _number(digits: str | None) -> int:
    return int((digits or "0").replace(",", ""))
