"""The sidecar ends after the app: what had a 2xx is delivered, or is told of to the row."""

import re

from tests.e2e import sidecar_pods
from tests.e2e.injected_pods import app_deployment, roll_out, sidecar, until_counted
from tests.e2e.kubectl import Namespace, token_secret, until


def _started(namespace: Namespace, *arguments: str, grace_s: int = 30) -> str:
    """The name of an app's pod under load."""
    namespace.apply(token_secret(), sidecar(namespace))
    namespace.wait_ready()
    roll_out(namespace, app_deployment(*arguments, grace_s=grace_s))
    name = sidecar_pods.the_pod(namespace)
    until("load", lambda: len(sidecar_pods.accepted(namespace, name)) > 100)
    return name


def test_each_row_with_a_2xx_arrives_when_a_pod_is_deleted_under_load(namespace: Namespace) -> None:
    name = _started(namespace, "load", "--rate", "300")
    with sidecar_pods.followed(namespace, name) as log:
        namespace.kubectl("delete", "deployment", "app", "--wait=false")
    assert "# SIGTERM: end" in log
    assert not [line for line in log if re.match("# load-", line)], "a row was refused"
    sidecar_pods.all_arrive(namespace, sidecar_pods.accepted_ids(log), at_least=100)
    until("no pod", lambda: not namespace.find("pods", "app=app"))
    assert namespace.get("tinybirdproxy", "events")["status"].get("lost") is None


def test_what_an_app_sends_until_it_is_killed_is_delivered_or_counted_to_the_row(namespace: Namespace) -> None:
    """It ignores SIGTERM and takes its whole grace, and Tinybird is away: the sidecar has 2 s, and then its message."""
    name = _started(namespace, "late", "--rate", "100", "--on-sigterm", "ignore", grace_s=5)
    namespace.faults({"status": 503})
    with sidecar_pods.followed(namespace, name) as log:
        namespace.kubectl("delete", "deployment", "app", "--wait=false")
    accepted = sidecar_pods.accepted_ids(log)
    assert len(log[log.index("# SIGTERM: ignore") :]) > 200
    # It was killed between two rows, or with one at hand: taken or not, and if so, it could not say it any more.
    at_hand = {line.removeprefix("# sending ") for line in log[-1:]} - set(accepted)
    lost = until("what was lost", lambda: namespace.get("tinybirdproxy", "events")["status"].get("lost"))
    delivered = namespace.rows()
    assert set(delivered) <= set(accepted)
    assert len(set(delivered)) == len(delivered)
    exact = range(len(accepted), len(accepted) + len(at_hand) + 1)
    assert len(delivered) + lost["rows"] in exact, (len(delivered), lost, len(accepted), at_hand)
    assert lost["rows"] > 100
    [told] = until("the Event", lambda: namespace.events("RowsLost"))
    assert f"{lost['rows']:,} rows" in told
    assert name in told
    until_counted(namespace)
