"""From the first packaged chart to the present one, with a proxy at work."""

from typing import Any

import pytest
from tests.e2e.kubectl import (
    HERE,
    OPERATOR,
    OPERATOR_NAMESPACE,
    Namespace,
    install_operator,
    run,
    token_secret,
    until,
)

from tinybird_proxy import __version__

pytestmark = pytest.mark.alone

FIRST_CHART = HERE / "fixtures" / "tinybird-proxy-operator-0.1.0.tgz"
# What it knows of the values that the tests use.
FIRST_VALUES = ("--set", "allowedUpstreams={*.svc}", "--set", "allowedCollectors={*.svc}")
# The cluster has this checkout's images only. So it is the charts that differ: objects, rights, CRD, environment.
PRESENT_IMAGES = ("--set", f"image.tag={__version__}", "--set", f"proxy.image.tag={__version__}")


def _put_the_first_chart_in_place() -> None:
    """Without a wait: what the first chart lets the operator do may not be enough for this checkout's one day."""
    where = ("--namespace", OPERATOR_NAMESPACE, "--timeout", "60s")
    run("helm", "upgrade", OPERATOR, FIRST_CHART, *where, *FIRST_VALUES, *PRESENT_IMAGES)


def _pods(namespace: Namespace) -> dict[str, Any]:
    """Each pod and since when its container runs."""
    return {
        pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["state"]
        for pod in namespace.find("pods", "tinybird-proxy.io/proxy")
    }


def _ready(namespace: Namespace) -> tuple[str, str]:
    """Whether the resource is Ready, and since when: the time changes with the status only."""
    conditions = namespace.get("tinybirdproxy", "events")["status"]["conditions"]
    [ready] = [each for each in conditions if each["type"] == "Ready"]
    return ready["status"], ready["lastTransitionTime"]


def test_an_upgrade_from_the_first_chart_rolls_nothing_and_all_stays_ready(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=2))
    namespace.wait_ready()
    namespace.until_condition("Progressing", "False", "UpToDate")
    pods, ready, token = _pods(namespace), _ready(namespace), namespace.client_token()
    assert (len(pods), ready[0]) == (2, "True")
    try:
        _put_the_first_chart_in_place()
        namespace.post("before")
    finally:
        install_operator()
    # Only an operator that has looked at the resource can have rolled its pods.
    namespace.kubectl("delete", "networkpolicy", "events", "--timeout=30s")
    until("the operator of the present chart at work", lambda: namespace.get("networkpolicy", "events"))
    namespace.until_condition("Progressing", "False", "UpToDate")
    assert _ready(namespace) == ready
    # If a change of the chart must roll proxies one day, say why in the CHANGELOG and here.
    assert _pods(namespace) == pods
    assert namespace.client_token() == token
    namespace.post("after")
    namespace.until_arrived("before", "after")
