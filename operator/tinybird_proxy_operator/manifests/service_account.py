"""The pods' ServiceAccount: an identity without any right in the API."""

from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest:
    """Its token is mounted nowhere."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(desired),
        "automountServiceAccountToken": False,
    }
