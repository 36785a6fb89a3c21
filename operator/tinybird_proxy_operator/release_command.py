"""``tinybird-proxy-operator release``: what the chart runs before it is uninstalled.

It stops the operator, which would put its finalizer back, and takes that finalizer off every TinybirdProxy: otherwise,
with the operator gone, none could be deleted any more. Resources and what they run stay. Once more does no harm.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import click

from tinybird_proxy_operator.errors import Conflict, Forbidden, KubeError, NotFound, SettingsError
from tinybird_proxy_operator.kube import Kube, Object, kubernetes_connection
from tinybird_proxy_operator.names import KIND, ConditionType, finalizer
from tinybird_proxy_operator.settings import OperatorSettings, from_env
from tinybird_proxy_operator.upgrades import HALF_WAY

# The operator's pods end within their grace period of 30 s, or their node is not there.
STOP_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.5
CONFIGURATION_STATUS: Final = 2
_ATTEMPTS: Final = 5
# The operator's Deployment, in POD_NAMESPACE. Empty: there is none to stop.
DEPLOYMENT_VARIABLE: Final = "OPERATOR_DEPLOYMENT"


@click.command()
def release() -> None:
    """Stop the operator and take its finalizer off every TinybirdProxy; done before it is uninstalled.

    Reads the operator's own variables, and OPERATOR_DEPLOYMENT. Exit status 1: something is left, and named; 2: the
    settings are wrong.
    """
    try:
        settings = from_env(os.environ)
    except SettingsError as error:
        click.echo("The settings have problems:\n" + "\n".join(f"  {each}" for each in error.problems), err=True)
        sys.exit(CONFIGURATION_STATUS)
    problems = asyncio.run(_connected(settings, os.environ))
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)


async def _connected(settings: OperatorSettings, env: Mapping[str, str]) -> Sequence[str]:
    async with kubernetes_connection(env.get("KUBECONFIG")) as kube:
        deployment = env.get(DEPLOYMENT_VARIABLE, "")
        return await release_all(kube, settings, deployment, sleep=asyncio.sleep, say=click.echo)


async def release_all(
    kube: Kube,
    settings: OperatorSettings,
    deployment: str,
    *,
    sleep: Callable[[float], Awaitable[None]],
    say: Callable[[str], None],
) -> list[str]:
    """Stop the operator, then release. Returns what could not be done, in sentences."""
    stopped = (
        f"The operator is stopped, or about to. Uninstall again when that is put right, or start it: kubectl scale"
        f" --namespace {settings.operator_namespace} deployment/{deployment} --replicas=2"
    )
    try:
        if left := await _stop(kube, settings, deployment, sleep):
            return [
                f"Still there after {STOP_TIMEOUT_S:.0f} s: {', '.join(left)} in {settings.operator_namespace}. The"
                " operator would put its finalizers back, so none was removed. Delete the pod, and uninstall again.",
                stopped,
            ]
        found = await _resources(kube, settings.watch_namespaces, say)
    except KubeError as error:
        return [f"Nothing was released: {error}", *([stopped] if deployment else [])]
    ours, problems, released = finalizer(settings.controller_class), [], 0
    for body in found:
        name = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        try:
            if await _without(kube, body, ours):
                say(f"{name}: released{_while_draining(body) or _standing(body)}")
                released += 1
        except KubeError as error:
            problems.append(f"{name} keeps the finalizer {ours}: {error}")
    if problems and deployment:
        problems.append(stopped)
    say(f"{released} of {len(found)} TinybirdProxies were released; they stay, and so does what they run.")
    return problems


async def _stop(
    kube: Kube, settings: OperatorSettings, deployment: str, sleep: Callable[[float], Awaitable[None]]
) -> list[str]:
    """Scale the operator to none. Names of pods that did not end."""
    namespace = settings.operator_namespace
    live = await kube.find("Deployment", namespace, deployment) if deployment else None
    if live is None:
        return []
    if live["spec"].get("replicas", 1) != 0:
        await kube.set_replicas(namespace, deployment, 0, uid=live["metadata"]["uid"])
    names: list[str] = []
    for _ in range(round(STOP_TIMEOUT_S / LOOK_S)):
        pods = await kube.list("Pod", namespace, labels=settings.operator_pod_labels)
        names = [
            pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        ]
        if not names:
            break
        await sleep(LOOK_S)
    return names


async def _resources(kube: Kube, namespaces: Sequence[str], say: Callable[[str], None]) -> list[Object]:
    """Every TinybirdProxy there, or everywhere. Without the CRD there are none."""
    found: list[Object] = []
    for namespace in namespaces or (None,):
        try:
            found += await kube.list(KIND, namespace)
        except NotFound:
            continue
        except Forbidden as error:
            if namespace is None:
                raise
            # The rights of this release go with the namespace, and so do its resources.
            say(f"Namespace {namespace} was passed over, and should be gone: {error}")
    return found


async def _without(kube: Kube, body: Object, ours: str) -> bool:
    """Take our finalizer off, and no other; whether it was there."""
    metadata = body["metadata"]
    live: Object | None = body
    for attempt in range(_ATTEMPTS):
        finalizers = [] if live is None else live["metadata"].get("finalizers") or []
        if live is None or ours not in finalizers:
            return False
        try:
            await kube.set_finalizers(live, [each for each in finalizers if each != ours])
        except NotFound:
            return False
        except Conflict:  # somebody else has written to it
            if attempt == _ATTEMPTS - 1:
                raise
            live = await kube.find(KIND, metadata["namespace"], metadata["name"])
        else:
            return True
    return False


def _while_draining(body: Object) -> str:
    if "deletionTimestamp" not in body["metadata"]:
        return ""
    buffer = (body.get("status") or {}).get("buffer")
    held = (
        "what its pods hold is not known" if buffer is None else f"with {buffer.get('rows', 0):,} rows at the last look"
    )
    return f" while it was being deleted, {held}: its pods deliver what they can and stop"


def _standing(body: Object) -> str:
    conditions = (body.get("status") or {}).get("conditions", [])
    said = [str(each.get("message")) for each in conditions if each.get("type") == ConditionType.PROGRESSING]
    if not any(each.startswith(HALF_WAY) for each in said):
        return ""
    return "; its rollout stands half-way, because rows wait in old pods, and goes on when an operator is back"
