"""What the doctor is given: the resource and what belongs to it, as read at one moment. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from tinybird_proxy_operator.live_objects import read_pod
from tinybird_proxy_operator.names import ADMIN_PORT, CONTAINER, DRAINING_LABEL, SIDECAR_CONTAINER
from tinybird_proxy_operator.observed import PodFacts, Problem, ProxyReport
from tinybird_proxy_operator.proxy_answers import read_report
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.sidecars.app_pods import AppPod


class Level(StrEnum):
    """How much a finding matters. Only with nothing but notes is a resource healthy."""

    PROBLEM = "problem"  # somebody has to do something
    UNKNOWN = "unknown"  # what matters could not be seen
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is, why, what to do next, and commands to copy. ``reason`` is a condition's where there is one."""

    level: Level
    reason: str
    what: str
    why: str = ""
    next: str = ""
    commands: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A proxy's ``/status``. None: its version does not say. ``sentence`` is that of ``/readyz``, too."""

    report: ProxyReport
    sentence: str | None
    phase: str | None
    dead_letter_rows: int | None
    candidate_hash: str | None
    seconds_to_drain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """A pod of ours as the API server gives it; ``answer`` None: it did not answer. ``events``: its latest warnings.

    ``app``: an app's pod, with a proxy in it as its sidecar.
    """

    pod: Mapping[str, Any]
    answer: Answer | None
    events: Sequence[str] = ()
    app: AppPod | None = None
    admin_port: int = ADMIN_PORT

    @property
    def facts(self) -> PodFacts:
        """What the operator makes of it."""
        return read_pod(
            self.pod, None if self.answer is None else self.answer.report, container=self.container_name or CONTAINER
        )

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.pod["metadata"]["name"])

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded, Failed or Unknown."""
        return str(self.pod.get("status", {}).get("phase", "Unknown"))

    @property
    def ended(self) -> bool:
        """Whether it is over: such a pod stays as an object for a while."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out, on purpose."""
        metadata = self.pod["metadata"]
        return "deletionTimestamp" in metadata or DRAINING_LABEL in (metadata.get("labels") or {})

    @property
    def container_name(self) -> str | None:
        """The proxy's, where kubectl has to be told it; None: the pod has no other."""
        return None if self.app is None else SIDECAR_CONTAINER

    @property
    def container(self) -> Mapping[str, Any]:
        """The status of the proxy's container; empty before there is one."""
        if self.app is not None:
            native = self.pod.get("status", {}).get("initContainerStatuses") or []
            return next((each for each in native if each.get("name") == SIDECAR_CONTAINER), {})
        found: list[Mapping[str, Any]] = self.pod.get("status", {}).get("containerStatuses") or []
        return next((each for each in found if each.get("name") == CONTAINER), found[0] if found else {})

    @property
    def runs(self) -> bool:
        """Whether its process may be there, and hold rows."""
        if self.app is not None:  # the pod is Pending while the app's own init containers run beside it
            return not self.ended and "running" in (self.container.get("state") or {})
        state = self.container.get("state") or {"running": {}}
        return self.phase in ("Running", "Unknown") and "running" in state

    @property
    def last_end(self) -> Mapping[str, Any]:
        """How its container ended the last time; empty if it never did."""
        for state in (self.container.get("state") or {}, self.container.get("lastState") or {}):
            if found := state.get("terminated"):
                ended: Mapping[str, Any] = found
                return ended
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSeen:
    """A Secret that the resource names in ``field``: its values are not here. ``optional``: nothing waits for it."""

    field: str
    name: str
    key: str
    problem: Problem | None
    immutable: bool
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything. ``body`` None: there is no such resource. ``pods`` None: they could not be listed.

    ``apps``: the pods that ask for its sidecar or have it, whatever its mode, and even if there is no such resource;
    None: they could not be listed. In mode Sidecar ``pods`` are those of them that have a proxy. ``astray``: pods of
    the namespace that ask for the sidecar of a resource that does not exist, by its name.

    ``settings`` None: asked from outside of the operator. ``deployment``: ours, or None; ``taken``: objects of our
    children's names that are somebody else's. ``not_known``: sentences on what could not be read.
    """

    namespace: str
    name: str
    body: Mapping[str, Any] | None
    kind_known: bool = True
    others: Sequence[str] = ()
    settings: OperatorSettings | None = None
    deployment: Mapping[str, Any] | None = None
    deployment_known: bool = True
    taken: Sequence[str] = ()
    pods: Sequence[PodSeen] | None = ()
    apps: Sequence[AppPod] | None = ()
    astray: Mapping[str, Sequence[str]] = field(default_factory=dict)
    secrets: Sequence[SecretSeen] = ()
    expected_token_hash: str | None = None
    not_known: Sequence[str] = ()

    @property
    def status(self) -> Mapping[str, Any]:
        """The resource's status; empty if the operator has not written one."""
        found: Mapping[str, Any] = (self.body or {}).get("status") or {}
        return found

    @property
    def status_is_current(self) -> bool:
        """Whether the status speaks of the spec as it is now."""
        generation = (self.body or {}).get("metadata", {}).get("generation", 0)
        return bool(self.status) and self.status.get("observedGeneration", 0) >= generation

    def condition(self, kind: str) -> Mapping[str, Any]:
        """A condition of the status; empty if there is none."""
        found: Mapping[str, Any] = next((c for c in self.status.get("conditions", []) if c.get("type") == kind), {})
        return found

    def kubectl(self, command: str) -> str:
        """A command to copy, in the resource's namespace."""
        return f"kubectl --namespace {self.namespace} {command}"


class _Letters(msgspec.Struct):
    rows: int


class _Candidate(msgspec.Struct):
    hash: str


class _Tokens(msgspec.Struct):
    candidate: _Candidate | None = None


class _Drain(msgspec.Struct):
    seconds_to_drain: float | None = None


class _Rest(msgspec.Struct):
    sentence: str | None = None
    phase: str | None = None
    dead_letters: _Letters | None = None
    tokens: _Tokens | None = None
    drain: _Drain | None = None


def read_answer(body: bytes | bytearray) -> Answer:
    """``/status`` of a proxy. Raises ``msgspec.DecodeError`` if it is not that."""
    report, rest = read_report(body), msgspec.json.decode(body, type=_Rest)
    candidate = None if rest.tokens is None else rest.tokens.candidate
    return Answer(
        report=report,
        sentence=rest.sentence,
        phase=rest.phase,
        dead_letter_rows=None if rest.dead_letters is None else rest.dead_letters.rows,
        candidate_hash=None if candidate is None else candidate.hash,
        seconds_to_drain=None if rest.drain is None else rest.drain.seconds_to_drain,
    )
