"""Whether a changed template may go out: a changed URL or image is first tried by a Job. Pure; ``now`` is UTC.

    unchanged template, or neither URL nor image of it changed   goes out; a Job that is left over is deleted
    no Job, or one that checked something else                   a (new) Job
    it runs                                                      wait
    its container ended with 0                                   goes out; the Job is deleted once it is applied
    anything else                                                held, in the check's own words; a new Job after a while

What a Job checks is on it, as an annotation; so whoever looks, after a restart too, comes to the same decision. Once
the template is applied nothing is changed any more: then no Job is made, whether the last one is still there or not.
A change that is first seen while no pod is ready goes out unchecked. A check that has begun stays binding.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from tinybird_proxy.config import OPTIONS
from tinybird_proxy_operator.names import CONTAINER, GROUP, ROLL_ANNOTATION
from tinybird_proxy_operator.spec import Proxy

# On the Job: the template and the token that it checks.
CHECKS_ANNOTATION: Final = f"{GROUP}/checks"
DEADLINE_S: Final = 60
# A failed check may be an outage of Tinybird's, so it is tried again by itself.
RETRY_AFTER_S: Final = 300
WORDS_MAX_CHARS: Final = 500

_URL_VARIABLE: Final = next(option.variable for option in OPTIONS if option.field == "tinybird_url")
_PULL_ERRORS: Final = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
)
_VARIABLES: Final = frozenset(option.variable for option in OPTIONS)
# The proxy hides its own token in what it prints. This is for an image that does not.
_SECRETS: Final = (
    (re.compile(r"\bp\.eyJ[\w=-]+(?:\.[\w=-]+)*"), "(token)"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s(]{8,}"), r"\1 (token)"),
    (re.compile(r"(?i)\b(token|password|secret)=[^\s&]+"), r"\1=(not shown)"),
    (re.compile(r"//[^\s/@]+@"), "//"),
)
_Object = Mapping[str, Any]


class Step(StrEnum):
    """What to do with the template, or for it."""

    GO = "Go"
    START = "Start"
    WAIT = "Wait"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``message``: why the template is held, for people; empty for GO."""

    step: Step
    message: str = ""


def job_name(name: str) -> str:
    """The Job of a resource. With the longest resource's name still a label's value, as which Kubernetes uses it."""
    return f"{name}-preflight"


def checks(template_hash: str, token_hash: str | None) -> str:
    """What a Job checks, as its annotation says it: another token is another check."""
    return f"{template_hash}-{token_hash or 'none'}"


def changes(live: _Object | None, wanted: _Object) -> list[str]:
    """Which fields of a live Deployment the wanted one changes, of those that are tried first."""
    if live is None:
        return []
    before, after = _container(live), _container(wanted)
    fields = (
        ("tinybird.url", _url(before), _url(after)),
        ("image", before.get("image"), after.get("image")),
    )
    return [field for field, old, new in fields if old != new]


def is_about(job: _Object | None, template_hash: str) -> bool:
    """Whether a Job checks, or has checked, this template, with whatever token."""
    said: str = "" if job is None else (job["metadata"].get("annotations") or {}).get(CHECKS_ANNOTATION, "")
    return said.startswith(f"{template_hash}-")


def is_needed(proxy: Proxy, live: _Object | None, wanted: _Object, *, changed: bool, begun: bool = False) -> bool:
    """Whether the wanted Deployment must be tried first. ``changed``: its template is not the one applied last.

    Where no pod is ready nothing that works could be lost: then as at the first install. ``begun``: that template was
    to be tried before, so it must be: a moment without a ready pod is no reason to let out what failed.
    """
    if live is None or not changed or not changes(live, wanted):
        return False
    if proxy.spec.preflight == "Disabled" or proxy.annotations.get(ROLL_ANNOTATION) == "now":
        return False
    ready: int = live.get("status", {}).get("readyReplicas", 0)
    return begun or ready > 0


def decide(
    fields: Sequence[str],
    wanted_checks: str,
    job: _Object | None,
    pods: Sequence[_Object],
    *,
    now: datetime,
    may_retry: bool = True,
) -> Decision:
    """What to do, where a check is needed. ``fields``: what changed; ``job``: ours; ``pods``: all that may be its.

    ``may_retry`` False: what failed is not tried once more now, and stays failed.
    """
    what = _what(fields)
    if job is None or (job["metadata"].get("annotations") or {}).get(CHECKS_ANNOTATION) != wanted_checks:
        return Decision(step=Step.START, message=f"{what} is tried by a Job before any pod is replaced.")
    name = job["metadata"]["name"]
    if "deletionTimestamp" in job["metadata"]:
        return Decision(step=Step.WAIT, message=f"{what} is tried again when the Job {name} before it is gone.")
    pod = _newest([pod for pod in pods if _controller_uid(pod) == job["metadata"]["uid"]])
    # The container first: a mesh's sidecar may keep the pod, and with it the Job, from ever ending.
    ended = _state(pod, CONTAINER).get("terminated")
    finished, finished_at, why = _end_of(job)
    if finished == "Complete" or (ended is not None and ended.get("exitCode") == 0):
        return Decision(step=Step.GO)
    retry_after = timedelta(seconds=RETRY_AFTER_S)
    if may_retry and finished == "Failed" and finished_at is not None and now - finished_at >= retry_after:
        return Decision(step=Step.START, message=f"{what} is tried once more by a Job, the last one failed.")
    if ended is not None:
        return failed(fields, _words(ended))
    waiting = _state(pod, CONTAINER).get("waiting") or {}
    if waiting.get("reason") in _PULL_ERRORS:
        return failed(fields, _clean(f"{waiting['reason']}: {waiting.get('message', '')}"))
    if finished == "Failed":
        return failed(fields, _why_unfinished(why, job))
    return Decision(step=Step.WAIT, message=f"{what} is tried by the Job {name} before any pod is replaced.{_on(pod)}")


def failed(fields: Sequence[str], words: str) -> Decision:
    """The check of these fields came to nothing, because of ``words``."""
    said = words if words.endswith((".", "…")) else f"{words}."
    return Decision(
        step=Step.FAILED,
        message=f"{_what(fields)} did not pass the preflight, and the pods stay as they are: {said}"
        " Put it right; or let it go out unchecked, with spec.preflight: Disabled"
        f" or the annotation {ROLL_ANNOTATION}=now."
        f" It is tried again every {RETRY_AFTER_S // 60} minutes, and at once when it or the token changes.",
    )


def words_of(text: str) -> str:
    """What a check said last, of the end of its output: without the options it lists, tokens and line breaks."""
    lines = text.splitlines()
    listed = [number for number, line in enumerate(lines) if line.partition(" ")[0] in _VARIABLES]
    if listed:
        # Before the first one stands at most what the limit of the message left of a line.
        lines = [line for number, line in enumerate(lines) if number > listed[0] and number not in listed]
    paragraphs = "\n".join(line.rstrip() for line in lines).strip().split("\n\n")
    return _clean(paragraphs[-1])


def _what(fields: Sequence[str]) -> str:
    return "The changed " + " and ".join(fields)


def _words(ended: _Object) -> str:
    said = words_of(ended.get("message") or "")
    return said or f"the check ended with status {ended.get('exitCode')} ({ended.get('reason') or 'no reason'})"


def _why_unfinished(why: str, job: _Object) -> str:
    name, namespace = job["metadata"]["name"], job["metadata"].get("namespace", "default")
    look = f"see kubectl -n {namespace} describe job {name}, and the namespace's events"
    if why == "DeadlineExceeded":
        return (
            f"it did not end within {DEADLINE_S} s; perhaps its image is slow to pull, no node has room, or a quota"
            f" allows no pod; {look}"
        )
    return f"the Job failed ({why or 'no reason'}) and its pod is gone; {look}"


def _on(pod: _Object | None) -> str:
    """What the pod waits for."""
    if pod is None:
        return ""
    status = pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f" {_clean('Its pod has no node: ' + (condition.get('message') or condition.get('reason') or ''))}"
    waiting = _state(pod, CONTAINER).get("waiting") or {}
    return f" Its pod: {_clean(waiting['reason'])}." if waiting.get("reason") else ""


def _clean(text: str) -> str:
    """One bounded line without a token. The end is kept: it is what was said last."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for pattern, instead in _SECRETS:
        line = pattern.sub(instead, line)
    return line if len(line) <= WORDS_MAX_CHARS else f"…{line[1 - WORDS_MAX_CHARS :]}"


def _end_of(job: _Object) -> tuple[str | None, datetime | None, str]:
    """``Complete`` or ``Failed``, since when, and the reason; None while it runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True":
            since = condition.get("lastTransitionTime")
            return condition["type"], since and datetime.fromisoformat(since), condition.get("reason", "")
    return None, None, ""


def _newest(pods: Sequence[_Object]) -> _Object | None:
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def _controller_uid(found: _Object) -> str | None:
    owners = found["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def _state(pod: _Object | None, container: str) -> _Object:
    statuses = [] if pod is None else pod.get("status", {}).get("containerStatuses", [])
    found: _Object = next((each.get("state", {}) for each in statuses if each.get("name") == container), {})
    return found


def _container(deployment: _Object) -> _Object:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    found: _Object = next((container for container in containers if container["name"] == CONTAINER), {})
    return found


def _url(container: _Object) -> str | None:
    return next((entry.get("value") for entry in container.get("env", []) if entry["name"] == _URL_VARIABLE), None)
