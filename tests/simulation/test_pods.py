"""Pods become ready and leave the Service in time, and are removed in Kubernetes' order."""

import random

from tests.simulation.pods import Deployment, Pod, removal_order
from tests.simulation.proxy import Proxy, ProxyModel


def pod(name: str, *, ready_s: float = 10.0, cost: int = 0, created_s: float = 0.0) -> Pod:
    return Pod(name, created_s, ready_s, Proxy(ProxyModel()), deletion_cost=cost)


def test_a_pod_starts_answers_and_becomes_ready() -> None:
    one = pod("a", ready_s=8.0)
    assert [one.pending(now_s) for now_s in (1.0, 2.0)] == [True, False]
    assert [one.answers(now_s) for now_s in (6.0, 7.0)] == [False, True]
    assert [one.ready(now_s) for now_s in (7.0, 8.0)] == [False, True]
    assert [one.serves(now_s) for now_s in (8.0, 9.0)] == [False, True]


def test_a_draining_pod_is_unready_after_a_probe_and_out_of_service_before_it_refuses() -> None:
    one = pod("a")
    one.proxy.drain(100.0)
    assert [one.ready(now_s) for now_s in (101.0, 102.0)] == [True, False]
    assert [one.serves(now_s) for now_s in (102.0, 103.0)] == [True, False]
    assert [one.proxy.refuses(now_s) for now_s in (104.0, 105.0)] == [False, True]


def test_pods_go_in_the_order_of_kubernetes() -> None:
    old, new, cheap = pod("old", ready_s=10.0), pod("new", ready_s=20.0), pod("cheap", cost=-1000)
    unready, starting = pod("unready"), pod("starting", created_s=99.0, ready_s=108.0)
    unready.unready_until_s = 200.0
    order = removal_order([old, cheap, new, unready, starting], 100.0)
    assert [one.name for one in order] == ["starting", "unready", "cheap", "new", "old"]


def test_a_deployment_makes_and_removes_pods() -> None:
    deployment = Deployment(ProxyModel(), random.Random(1))
    assert deployment.scale(0.0, 3) == []
    assert [one.name for one in deployment.pods] == ["pod-1", "pod-2", "pod-3"]
    deployment.pods[1].deletion_cost = -1000
    assert [one.name for one in deployment.scale(60.0, 2)] == ["pod-2"]
    assert deployment.scale(60.0, 2) == []
