"""Secrets: the ones that a resource names, and the ones that are generated for it."""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final

from tinybird_proxy.config import token_hash
from tinybird_proxy.errors import TokenFileError
from tinybird_proxy.telemetry.otel_env import parse_headers
from tinybird_proxy_operator.children import NameTaken, is_ours
from tinybird_proxy_operator.errors import Conflict, NotFound
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.manifests.secrets import (
    RETAINED_FOR_ANNOTATION,
    admin_secret,
    client_secret,
    is_retained_for,
)
from tinybird_proxy_operator.names import (
    CLIENT_ACCEPTED_KEY,
    CLIENT_TOKEN_KEY,
    USE_LABEL,
    USE_TOKEN,
    Reason,
)
from tinybird_proxy_operator.names import client_secret as client_secret_name
from tinybird_proxy_operator.observed import Problem
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.rotation import (
    OVERLAP_ENDS_AT_ANNOTATION,
    ROTATE_ANNOTATION,
    ROTATED_FOR_ANNOTATION,
    ROTATING_FOR_ANNOTATION,
    ROTATING_SINCE_ANNOTATION,
    Content,
    Step,
    step,
)
from tinybird_proxy_operator.spec import Proxy, SecretKey

CLIENT_NEXT_KEY: Final = "next"
# Where each part of a rotation's state is in the Secret.
_KEYS: Final = {"token": CLIENT_TOKEN_KEY, "accepted": CLIENT_ACCEPTED_KEY, "next_token": CLIENT_NEXT_KEY}
_ANNOTATIONS: Final = {
    "rotated_for": ROTATED_FOR_ANNOTATION,
    "rotating_for": ROTATING_FOR_ANNOTATION,
    "rotating_since": ROTATING_SINCE_ANNOTATION,
    "overlap_ends_at": OVERLAP_ENDS_AT_ANNOTATION,
}


@dataclass(frozen=True, slots=True)
class Token:
    """What the operator knows of a token: its hash, never itself. ``note``: a sentence about its Secret."""

    hash: str | None
    problem: Problem | None
    note: str | None = None


async def read_token(kube: Kube, namespace: str, ref: SecretKey) -> Token:
    """Look at the key of a Secret that a resource names. The Secret must be meant for us, by its label."""
    secret = await kube.find("Secret", namespace, ref.name)
    problem = _problem_of(secret, namespace, ref)
    if secret is None or problem is not None:
        return Token(None, problem)
    note = None
    if secret.get("immutable"):
        note = (
            f"The Secret {ref.name} is immutable: its token cannot be changed. To rotate it, make another Secret and"
            " name that one in the resource."
        )
    return Token(token_hash(_value(secret, ref.key)), None, note)


async def read_headers(kube: Kube, proxy: Proxy) -> Problem | None:
    """What is wrong with the Secret of the collector's headers, where one is named. Nothing waits for it."""
    ref = proxy.spec.telemetry.otlp_headers_secret_ref
    if ref is None:
        return None
    secret = await kube.find("Secret", proxy.namespace, ref.name)
    problem = _problem_of(secret, proxy.namespace, ref)
    if secret is not None and problem is None:
        try:
            parse_headers(_value(secret, ref.key))
        except TokenFileError as error:
            text = f"Secret {ref.name}, key {ref.key}, cannot be used: {error}."
            problem = Problem(reason=Reason.SECRET_MALFORMED, message=text)
    if problem is None:
        return None
    return replace(problem, message=f"{problem.message} It is for the headers of spans alone: no row waits for it.")


def headers_stay_out(problem: Problem | None, ref: SecretKey | None, live: Mapping[str, Any] | None) -> bool:
    """Whether new pods of a Deployment go without the headers' Secret: what is not known to be shared comes into none.

    One that is gone was shared, where pods have it already. That it is gone is no reason to replace them.
    """
    if problem is None or ref is None:
        return False
    there_already = live is not None and mounts(live, ref.name)
    gone = problem.reason is Reason.SECRET_NOT_FOUND
    return problem.reason is Reason.SECRET_NOT_SHARED or (gone and not there_already)


def _problem_of(secret: Mapping[str, Any] | None, namespace: str, ref: SecretKey) -> Problem | None:
    """Why the key of a Secret cannot be used."""
    if secret is None:
        text = f"Secret {ref.name} does not exist in namespace {namespace}. Create it, with the key {ref.key}."
        return Problem(reason=Reason.SECRET_NOT_FOUND, message=text)
    labels: Mapping[str, str] = secret["metadata"].get("labels") or {}
    if labels.get(USE_LABEL) != USE_TOKEN:
        text = (
            f"Secret {ref.name} does not carry the label {USE_LABEL}={USE_TOKEN}, which says that proxies may use it:"
            f" kubectl label secret {ref.name} {USE_LABEL}={USE_TOKEN}"
        )
        return Problem(reason=Reason.SECRET_NOT_SHARED, message=text)
    if not _value(secret, ref.key):
        keys = ", ".join(sorted(secret.get("data") or {})) or "none"
        text = f"Secret {ref.name} has no value under the key {ref.key}; its keys: {keys}."
        return Problem(reason=Reason.SECRET_KEY_MISSING, message=text)
    return None


async def read_tokens(kube: Kube, proxy: Proxy) -> Token:
    """The token for Tinybird, with what is to be said of the Secrets that the resource names."""
    ref = proxy.spec.tinybird.token_secret_ref
    if ref is None:
        return Token(None, None)
    token = await read_token(kube, proxy.namespace, ref)
    clients = proxy.spec.clients.token_secret_ref
    if token.problem is not None or clients is None:
        return token
    other = await read_token(kube, proxy.namespace, clients)
    notes = [note for note in (token.note, other.note) if note is not None]
    return Token(token.hash, other.problem, " ".join(notes) or None)


async def ensure_generated(kube: Kube, desired: Desired, make_token: Callable[[], str], *, client: bool) -> list[str]:
    """Create the admin Secret, and the client one if asked for, where they are absent. Names of the new ones.

    Raises ``NameTaken``.
    """
    made = []
    for build in (admin_secret, client_secret) if client else (admin_secret,):
        manifest = build(desired, make_token())
        name = manifest["metadata"]["name"]
        live = await kube.find("Secret", desired.proxy.namespace, name)
        if live is None:
            try:
                await kube.create(manifest)
                made.append(name)
                continue
            except Conflict:
                live = await kube.get("Secret", desired.proxy.namespace, name)
        if not is_ours(live, desired.proxy) and not is_retained_for(live, desired.proxy):
            raise NameTaken("Secret", name)
    return made


async def find_client_secret(kube: Kube, proxy: Proxy) -> Object | None:
    """The generated client Secret, one that was kept for this resource too; None: none, or a stranger's."""
    live = await kube.find("Secret", proxy.namespace, client_secret_name(proxy.name))
    return live if live is not None and (is_ours(live, proxy) or is_retained_for(live, proxy)) else None


async def rotate_client_token(
    kube: Kube,
    desired: Desired,
    live: Object,
    *,
    pods: Mapping[str, str | None] | None,
    now: datetime,
    fresh_token: str,
) -> Step:
    """Take the next step with the client Secret, which was read before the pods were asked: see ``rotation``.

    It also gets or loses its owner, as ``clients.secretDeletionPolicy`` says. What was not written is not told.
    """
    proxy, content = desired.proxy, _content(live)
    taken = step(
        live["metadata"]["name"],
        content,
        asked=proxy.annotations.get(ROTATE_ANNOTATION, ""),
        overlap_s=proxy.spec.clients.overlap_seconds,
        pods=pods,
        now=now,
        fresh_token=fresh_token,
        immutable=bool(live.get("immutable")),
    )
    data, annotations = _changes(content, content if taken.content is None else taken.content)
    metadata = _ownership(desired, live)
    annotations |= metadata.pop("annotations", {})
    if annotations:
        metadata["annotations"] = annotations
    if not data and not metadata:
        return taken
    try:
        await kube.change(live, {**({"data": data} if data else {}), "metadata": metadata})
    except (Conflict, NotFound):
        return replace(taken, content=None, told=None, again_s=0.0)
    return taken


def mounts(deployment: Mapping[str, Any], secret: str) -> bool:
    """Whether the pods of a Deployment have the Secret of this name as files."""
    volumes = deployment["spec"].get("template", {}).get("spec", {}).get("volumes") or []
    return any((volume.get("secret") or {}).get("secretName") == secret for volume in volumes)


def generates_client_token(proxy: Proxy) -> bool:
    """Whether clients show a token of the operator's making."""
    return proxy.spec.tinybird.token_secret_ref is not None and proxy.spec.clients.token_secret_ref is None


@dataclass(slots=True)
class Rotations:
    """Rotations of the client tokens of all resources, and when to look at which of them again.

    ``make_token`` makes a token; ``utc_now`` is the wall's clock, ``now`` one that only goes forward, in seconds.
    """

    kube: Kube
    events: Events
    make_token: Callable[[], str]
    utc_now: Callable[[], datetime]
    now: Callable[[], float]
    _known: dict[Key, tuple[float, str | None]] = field(
        default_factory=dict
    )  # when to look again; what to say till then

    async def read(self, key: Key, proxy: Proxy, *, changed: bool) -> Object | None:
        """The Secret, if there is one and it is time to look at it; at once if something may have ``changed``.

        It is read before the pods are asked: what they report is then proved for what it held.
        """
        if not generates_client_token(proxy):
            self._known.pop(key, None)
            return None
        if not changed and self.now() < self._known.get(key, (0.0, None))[0]:
            return None
        return await find_client_secret(self.kube, proxy)

    async def go_on(self, key: Key, desired: Desired, live: Object, pods: Mapping[str, str | None] | None) -> None:
        """Take the next step with the Secret that was read, and tell of it. ``pods``: see ``rotation.step``."""
        self._known.pop(key, None)
        utc_now, fresh_token = self.utc_now(), self.make_token()
        taken = await rotate_client_token(self.kube, desired, live, pods=pods, now=utc_now, fresh_token=fresh_token)
        again_s = math.inf if taken.again_s is None else taken.again_s
        self._known[key] = self.now() + again_s, taken.sentence
        if taken.immutable and taken.sentence is not None:
            await self.events.tell(desired.proxy, Reason.SECRET_IMMUTABLE, taken.sentence, warning=True, about="client")
        if taken.told is not None:
            reason, warning = Reason.CLIENT_TOKEN_ROTATED, taken.warning
            await self.events.tell(desired.proxy, reason, taken.told, warning=warning, about=taken.told)

    def again_s(self, key: Key) -> float:
        """In how many seconds to look again."""
        return max(0.0, self._known.get(key, (math.inf, None))[0] - self.now())

    def note(self, key: Key, proxy: Proxy) -> str | None:
        """A sentence for the status."""
        if not generates_client_token(proxy) and proxy.annotations.get(ROTATE_ANNOTATION):
            return f"The annotation {ROTATE_ANNOTATION} has no effect: it is for a client token that the operator made."
        return self._known.get(key, (0.0, None))[1]

    def forget(self, key: Key) -> None:
        """The resource is no more."""
        self._known.pop(key, None)


def _content(secret: Mapping[str, Any]) -> Content:
    annotations: Mapping[str, str] = secret["metadata"].get("annotations") or {}
    values = {name: _text(secret, key) for name, key in _KEYS.items()}
    return Content(**values, **{name: annotations.get(key, "") for name, key in _ANNOTATIONS.items()})


def _changes(old: Content, new: Content) -> tuple[Object, Object]:
    """What of data and annotations is to be merged into the Secret; None takes a key away."""
    data: Object = {}
    annotations: Object = {}
    for each in fields(Content):
        value = getattr(new, each.name)
        if value == getattr(old, each.name):
            continue
        if each.name in _KEYS:
            data[_KEYS[each.name]] = base64.b64encode(value.encode()).decode() if value else None
        else:
            annotations[_ANNOTATIONS[each.name]] = value or None
    return data, annotations


def _ownership(desired: Desired, live: Object) -> Object:
    """What of the metadata is to be merged, so that the Secret goes with its resource, or does not."""
    wanted, found = client_secret(desired, "")["metadata"], live["metadata"]
    owners = found.get("ownerReferences") or []
    others = [owner for owner in owners if owner["uid"] != desired.proxy.uid]
    changes: Object = {}
    if (all_owners := [*others, *wanted.get("ownerReferences", [])]) != owners:
        changes["ownerReferences"] = all_owners
    labels: Mapping[str, str] = found.get("labels") or {}
    if missing := {key: value for key, value in wanted["labels"].items() if labels.get(key) != value}:
        changes["labels"] = missing
    retained_for = wanted.get("annotations", {}).get(RETAINED_FOR_ANNOTATION)
    if (found.get("annotations") or {}).get(RETAINED_FOR_ANNOTATION) != retained_for:
        changes["annotations"] = {RETAINED_FOR_ANNOTATION: retained_for}
    return changes


def _value(secret: Mapping[str, Any], key: str) -> str:
    return _text(secret, key).strip()


def _text(secret: Mapping[str, Any], key: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
