"""Tell pods to drain and to serve again: what deletion and scaling down share.

Only pods that are ours by the chain of controllers may be handed in: they get the admin token.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tinybird_proxy_operator.children import is_ours
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import ADMIN_TOKEN_KEY, admin_secret, some, two_digits
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.spec import Proxy

TOLD_AT_ONCE: Final = 10


async def admin_token(kube: Kube, proxy: Proxy) -> str | None:
    """What the pods' admin ports ask for; None if the Secret is gone, not ours, or not what we wrote."""
    found = await kube.find("Secret", proxy.namespace, admin_secret(proxy.name))
    if found is None or not is_ours(found, proxy):
        return None
    try:
        value = base64.b64decode((found.get("data") or {}).get(ADMIN_TOKEN_KEY, ""), validate=True)
        return value.decode("ascii").strip() or None
    except (binascii.Error, UnicodeDecodeError):
        return None


def no_token(proxy: Proxy) -> str:
    """Why nobody can be told, as a sentence."""
    return f"Secret {admin_secret(proxy.name)}, with the token that tells pods to drain, is gone or not the operator's."


def dead_letters(pods: Sequence[PodFacts]) -> str:
    """What is in the dead letters of pods that go, as a sentence after others; empty if there is nothing."""
    rows = sum(pod.report.dead_letter_rows for pod in pods if pod.report is not None)
    if not rows:
        return ""
    count = "1 row is" if rows == 1 else f"{two_digits(rows):,} rows are"
    return f" {count} in dead letters, which are in the pods' memory and go with them; they are not waited for."


def deaf(proxy: Proxy, names: Sequence[str]) -> str:
    """Of pods that answer and do not do what they are told, as a sentence."""
    return f"{some(names)} did not begin to drain with the token of Secret {admin_secret(proxy.name)}."


async def begin(pods: Pods, pod: PodFacts, token: str) -> PodFacts:
    """Have the process in the pod refuse what is new and deliver the rest; the pod as it says then."""
    if pod.ip is None or pod.report is None:
        return pod
    if (said := await pods.begin_drain(pod.ip, token)) is None:
        return pod
    return replace(pod, report=replace(pod.report, draining=True, refusing=said.refusing, rows=said.rows_left))


async def cancel(pods: Pods, pod: PodFacts, token: str) -> PodFacts:
    """Have the process in the pod serve as before; the pod as it says then. One that is stopping does not."""
    if pod.ip is None or pod.report is None or not await pods.cancel_drain(pod.ip, token):
        return pod
    return replace(pod, report=replace(pod.report, draining=False, refusing=False))
