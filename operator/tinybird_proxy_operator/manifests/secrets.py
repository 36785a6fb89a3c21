"""The generated Secrets. They are created only if absent, never rewritten: apps and pods hold what is in them.

They do not carry the label that lets a Secret of a user's be mounted: no other resource may send them anywhere.
"""

import base64

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def client_secret(desired: Desired, token: str) -> Manifest:
    """``token`` for apps to send, and the list of what the proxy accepts, where it goes by the Secret's name."""
    name = names.client_secret(desired.proxy.name)
    accepted = f"{token} name={name}\n"
    return _secret(desired, name, {names.CLIENT_TOKEN_KEY: token, names.CLIENT_ACCEPTED_KEY: accepted})


def admin_secret(desired: Desired, token: str) -> Manifest:
    """``token`` for the actions of the pods' admin port."""
    return _secret(desired, names.admin_secret(desired.proxy.name), {names.ADMIN_TOKEN_KEY: token})


def _secret(desired: Desired, name: str, values: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(desired, name=name),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
