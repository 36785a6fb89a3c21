"""What kubelet tells of a sidecar is found among what it tells of others."""

import pytest
from tests.bench import machine
from tests.bench.idle import Told, _told

SAID = """\
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="app",namespace="a",pod="p"} 9 1796021194410
container_cpu_usage_seconds_total{container="tinybird-proxy",namespace="a",pod="p"} 0.425 1796021194406
container_cpu_usage_seconds_total{container="tinybird-proxy",namespace="b",pod="p"} 7 1796021194400
container_memory_working_set_bytes{container="app",namespace="a",pod="p"} 3.796992e+06 1796021194410
container_memory_working_set_bytes{container="tinybird-proxy",namespace="a",pod="p"} 3.4e+07 1796021194406
"""


def test_the_figures_of_one_sidecar_are_those_of_its_own_container() -> None:
    assert _told(SAID, "a", "p") == Told(at_s=1796021194.406, cpu_s=0.425, working_set_mb=34.0)


def test_a_pod_of_which_kubelet_tells_nothing_is_named() -> None:
    with pytest.raises(machine.BenchFailed, match=r"no container_memory_working_set_bytes .* in b/p$"):
        _told(SAID, "b", "p")
