"""Where the API server has the kinds that the operator touches."""

from tinybird_proxy_operator.api_resources import RESOURCES
from tinybird_proxy_operator.testing.served import KINDS, POD_MONITOR, SCALED_OBJECT


def test_every_kind_is_where_the_api_server_has_it() -> None:
    served = {**KINDS, "PodMonitor": POD_MONITOR, "ScaledObject": SCALED_OBJECT}
    theirs = {kind: (known.api_version, known.plural) for kind, known in served.items()}
    assert {kind: (ours.api_version, ours.plural) for kind, ours in RESOURCES.items()} == theirs
