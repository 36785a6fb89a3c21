"""What the cluster says of a Deployment, judged."""

from dataclasses import replace

from tests.operator.test_live_objects import workload


def test_a_deployment_is_settled_when_all_its_pods_are_new_and_available() -> None:
    counts = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    assert workload(**counts).settled
    assert not workload(3, **counts).settled
    assert not workload(**{**counts, "replicas": 3}).settled
    assert not workload(**{**counts, "availableReplicas": 1}).settled
    assert workload().settled  # no pods were asked for


def test_a_workload_is_settled_when_none_is_unavailable_but_those_that_are_to_go() -> None:
    found = workload(conditions=[], replicas=3, updatedReplicas=3, availableReplicas=2)
    assert found.rolled_out
    assert not found.settled
    assert replace(found, draining=1).settled
    assert replace(found, draining=2).settled
    assert not replace(found, draining=1, updated=2).settled
