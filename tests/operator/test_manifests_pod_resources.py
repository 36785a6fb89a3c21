"""Memory and CPU of the container."""

from typing import Any

import pytest
from tests.operator.resources import resource

from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests.pod_resources import format_bytes, problems, resources


def built(buffer: str | int = "512Mi", env: dict[str, str] | None = None, **given: Any) -> dict[str, Any]:
    return resources(resource(spec_of(buffer, env, **given)).spec)


def said(buffer: str | int = "512Mi", env: dict[str, str] | None = None, **given: Any) -> list[str]:
    return problems(resource(spec_of(buffer, env, **given)).spec)


def spec_of(buffer: str | int, env: dict[str, str] | None, **given: Any) -> dict[str, Any]:
    entries = [{"name": name, "value": value} for name, value in (env or {}).items()]
    return {"buffer": {"maxSize": buffer}, "pod": {"resources": given, "env": entries}}


@pytest.mark.parametrize(
    ("buffer", "memory"), [("512Mi", "896Mi"), ("64Mi", "448Mi"), ("1Gi", "1408Mi"), ("100M", "502653184")]
)
def test_memory_is_the_buffer_and_384_mi_and_requested_in_full(buffer: str, memory: str) -> None:
    assert built(buffer) == {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": memory}}


def test_larger_pools_beside_the_buffer_need_a_higher_limit() -> None:
    more = {"DEAD_LETTER_BYTES": "164MB", "RECEIVE_BYTES": "65MB"}
    assert built("512Mi", more)["limits"] == {"memory": str(896 * 2**20 + 101_000_000)}
    assert built("512Mi", {"DEAD_LETTER_BYTES": "0", "RECEIVE_BYTES": "wrong"})["limits"] == {"memory": "896Mi"}
    assert said("512Mi", more, limits={"memory": "800Mi"}) != []


@pytest.mark.parametrize(
    ("given", "requests", "limits"),
    [
        ({"limits": {"memory": "2Gi"}}, {"cpu": "100m", "memory": "2Gi"}, {"memory": "2Gi"}),
        ({"limits": {"cpu": "50m"}}, {"memory": "896Mi"}, {"cpu": "50m", "memory": "896Mi"}),
        ({"requests": {"cpu": 2}}, {"cpu": 2, "memory": "896Mi"}, {"memory": "896Mi"}),
        ({"requests": {"memory": "600Mi"}}, {"cpu": "100m", "memory": "600Mi"}, {"memory": "896Mi"}),
        ({"limits": None, "requests": {}}, {"cpu": "100m", "memory": "896Mi"}, {"memory": "896Mi"}),
    ],
)
def test_what_users_give_wins_name_by_name(
    given: dict[str, Any], requests: dict[str, Any], limits: dict[str, Any]
) -> None:
    assert built(**given) == {"requests": requests, "limits": limits}
    assert said(**given) == []


def test_a_limit_that_the_buffer_would_burst_is_refused_with_the_figure() -> None:
    assert said(limits={"memory": "768Mi"}) == []
    [sentence] = said(limits={"memory": "767Mi"})
    assert sentence.startswith("spec.pod.resources.limits.memory: 767Mi is less than 768Mi, which a buffer of 512Mi")
    assert said(limits={"memory": 768 * 2**20}) == []


def test_a_request_above_the_limit_is_refused() -> None:
    assert said(requests={"memory": "1Gi"}) == ["spec.pod.resources.requests.memory: 1Gi is more than the limit, 896Mi"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"buffer": "lots"}, "spec.buffer.maxSize"),
        ({"limits": {"memory": "1e9"}}, "spec.pod.resources.limits.memory"),
        ({"requests": {"memory": "x"}}, "spec.pod.resources.requests.memory"),
    ],
)
def test_a_size_that_is_none_is_named(given: dict[str, Any], field: str) -> None:
    [sentence] = said(**given)
    assert sentence.startswith(f"{field}: ")


def test_a_buffer_of_no_size_cannot_be_built() -> None:
    with pytest.raises(SpecError, match=r"spec\.buffer\.maxSize"):
        built("lots")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1, "1"), (2**20, "1Mi"), (2**30, "1024Mi"), (10**9, "1000000000")]
)
def test_bytes_are_written_in_mi_where_that_is_exact(count: int, text: str) -> None:
    assert format_bytes(count) == text
