"""What a look at a resource tells in Events."""

from collections.abc import Mapping
from typing import Any, Final

from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import Observed
from tinybird_proxy_operator.preflight import Step
from tinybird_proxy_operator.spec import Proxy
from tinybird_proxy_operator.status import ended_by_force

# Conditions that are Events too, where no problem is told before.
_TOLD: Final = (("TokenValid", "False"), ("UpstreamThrottled", "True"))


async def tell(events: Events, proxy: Proxy, observed: Observed, status: Mapping[str, Any]) -> None:
    """``status``: as it was made of ``observed``. Raises ``NamespaceTerminating``."""
    for problem in [*observed.problems, *([] if observed.otlp_headers is None else [observed.otlp_headers])]:
        await events.tell(proxy, problem.reason, problem.message, warning=True, about=problem.message)
    if (held := observed.held) is not None:
        what, _, _ = held.partition(":")  # a template, or a rollout
        await events.tell(proxy, Reason.ROLLOUT_HELD, held, warning=True, about=what)
    if observed.queued is not None:
        await events.tell(proxy, Reason.ROLLOUT_HELD, observed.queued, warning=False, about="upgrade")
    tried = observed.preflight
    if tried is not None and tried.step is Step.FAILED:
        await events.tell(proxy, Reason.PREFLIGHT_FAILED, tried.message, warning=True, about=tried.message)
    for condition in status["conditions"]:
        if (condition["type"], condition["status"]) in _TOLD and not observed.problems:
            await events.tell(proxy, Reason(condition["reason"]), condition["message"], warning=True)
    for pod in observed.pods:
        for reason, text in ended_by_force([pod]).items():
            await events.tell(proxy, reason, text, warning=True, about=pod.name)
