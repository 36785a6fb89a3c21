"""Secrets: the ones that a resource names, and the ones that are generated for it."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.children import NameTaken, is_ours
from tinybird_proxy_operator.errors import Conflict
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.manifests.secrets import admin_secret, client_secret
from tinybird_proxy_operator.names import USE_LABEL, USE_TOKEN, Reason
from tinybird_proxy_operator.observed import Problem
from tinybird_proxy_operator.spec import SecretKey


@dataclass(frozen=True, slots=True)
class Token:
    """What the operator knows of a token: its hash, never itself."""

    hash: str | None
    problem: Problem | None


async def read_token(kube: Kube, namespace: str, ref: SecretKey) -> Token:
    """Look at the key of a Secret that a resource names. The Secret must be meant for us, by its label."""
    secret = await kube.find("Secret", namespace, ref.name)
    if secret is None:
        text = f"Secret {ref.name} does not exist in namespace {namespace}. Create it, with the key {ref.key}."
        return Token(None, Problem(reason=Reason.SECRET_NOT_FOUND, message=text))
    labels: Mapping[str, str] = secret["metadata"].get("labels") or {}
    if labels.get(USE_LABEL) != USE_TOKEN:
        text = (
            f"Secret {ref.name} does not carry the label {USE_LABEL}={USE_TOKEN}, which says that proxies may use it:"
            f" kubectl label secret {ref.name} {USE_LABEL}={USE_TOKEN}"
        )
        return Token(None, Problem(reason=Reason.SECRET_NOT_SHARED, message=text))
    value = _value(secret, ref.key)
    if not value:
        keys = ", ".join(sorted(secret.get("data") or {})) or "none"
        text = f"Secret {ref.name} has no value under the key {ref.key}; its keys: {keys}."
        return Token(None, Problem(reason=Reason.SECRET_KEY_MISSING, message=text))
    return Token(token_hash(value), None)


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
        if not is_ours(live, desired.proxy):
            raise NameTaken("Secret", name)
    return made


def _value(secret: Mapping[str, Any], key: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, ""), validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        return ""
