"""What a review needs to be read for, and what comes of it.

Everything is read when it is asked for. A cache would have to be watched, and one that is behind puts in yesterday's
sidecar, or none right after a TinybirdProxy was made: each time a pod that has to be replaced, and that nobody expects.
Two reads are a few milliseconds, for pods that ask and no others.
"""

import asyncio
import logging
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tinybird_proxy_operator.errors import Forbidden, KubeError
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.names import INJECT_LABEL, INJECT_OFF, KIND
from tinybird_proxy_operator.sidecars.injection import Operation, chosen, inject, is_mirror, refusal
from tinybird_proxy_operator.webhook.review import Review

# The API server waits 3 s for the whole answer.
READS_TIMEOUT_S: Final = 1.5
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_OR_NONE: Final = f"or have none by the label {INJECT_LABEL}={INJECT_OFF}"
_log = logging.getLogger(__name__)


class Result(StrEnum):
    """What comes of a review."""

    INJECTED = "injected"
    UNCHANGED = "unchanged"
    NOT_ASKED = "not_asked"
    REFUSED = "refused"
    NO_RESOURCE = "no_resource"
    NOT_RENDERED = "not_rendered"
    NOT_READ = "not_read"
    FAULT = "fault"
    NOT_A_REVIEW = "not_a_review"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``why_not``: why a pod that asks gets nothing, a sentence for who makes it."""

    result: Result
    operations: list[Operation] = field(default_factory=list)
    why_not: str | None = None


class Injector:
    """Answers reviews."""

    def __init__(self, kube: Kube, *, timeout_s: float = READS_TIMEOUT_S) -> None:
        self._kube = kube
        self._timeout_s = timeout_s
        self._failing: str | None = None

    async def outcome(self, review: Review) -> Outcome:
        """What is to be done with the pod. Takes ``timeout_s`` at most. Raises ``NotAReview``."""
        if not review.is_of_a_pod:
            return Outcome(Result.NOT_ASKED)
        try:
            async with asyncio.timeout(self._timeout_s):
                name = await self._asked_for(review)
                if name is None:
                    return Outcome(Result.NOT_ASKED)
                found = await self._kube.find(KIND, review.namespace, name) if _NAME.fullmatch(name) else None
        except TimeoutError:
            return self._not_read("nothing", f"the API server did not answer within {self._timeout_s} s", "")
        except Forbidden as error:
            return self._not_read("no right", "the webhook may not read what it needs; its log says more", str(error))
        except KubeError as error:
            return self._not_read(type(error).__name__, "the API server could not be asked", str(error))
        self._failing = None
        if found is None:
            sentence = f"there is no TinybirdProxy {name} in namespace {review.namespace}; make it, {_OR_NONE}"
            return Outcome(Result.NO_RESOURCE, why_not=sentence)
        if (sidecar := _sidecar_of(found)) is None:
            sentence = f"TinybirdProxy {name} gives none; see whether it has mode Sidecar and is ready, {_OR_NONE}"
            return Outcome(Result.NOT_RENDERED, why_not=sentence)
        # Nothing is waited for from here on, so that there is one pod at a time.
        pod = review.pod()
        if is_mirror(pod):
            return Outcome(Result.NOT_ASKED)
        if (why_not := refusal(pod, sidecar)) is not None:
            return Outcome(Result.REFUSED, why_not=why_not)
        operations = inject(pod, name, sidecar)
        return Outcome(Result.INJECTED if operations else Result.UNCHANGED, operations)

    async def _asked_for(self, review: Review) -> str | None:
        """The name of a TinybirdProxy. The namespace is asked only where the pod's own label does not say."""
        if INJECT_LABEL in review.labels:
            return chosen(review.labels, None)
        namespace = await self._kube.get("Namespace", None, review.namespace)
        return chosen(review.labels, namespace["metadata"].get("labels"))

    def _not_read(self, kind: str, sentence: str, detail: str) -> Outcome:
        # Once for each kind of failure, and not for each pod.
        if self._failing != kind:
            self._failing = kind
            _log.warning("pods that ask get no sidecar: %s%s", sentence, f" ({detail})" if detail else "")
        return Outcome(Result.NOT_READ, why_not=f"{sentence}; make the pod again, {_OR_NONE}")


def _sidecar_of(resource: Object) -> Object | None:
    found: Object | None = (resource.get("status") or {}).get("sidecar")
    return found
