"""The pods' ServiceAccount."""

from tests.operator.resources import desired

from tinybird_proxy_operator.manifests.service_account import build


def test_its_token_is_mounted_nowhere() -> None:
    manifest = build(desired())
    assert (manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]) == (
        "v1",
        "ServiceAccount",
        "events",
    )
    assert manifest["automountServiceAccountToken"] is False
