"""The generated Secrets: what apps read, what the proxy accepts, and the admin token."""

from base64 import b64decode

from tests.operator.resources import desired

from tinybird_proxy.tokens import ClientTokens
from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.secrets import admin_secret, client_secret


def test_the_proxy_accepts_the_token_that_apps_read_and_names_it_after_the_secret() -> None:
    manifest = client_secret(desired(), "tbp_abc123")
    assert (manifest["metadata"]["name"], manifest["type"]) == ("events-client", "Opaque")
    data = {key: b64decode(value).decode() for key, value in manifest["data"].items()}
    assert data == {"token": "tbp_abc123", "accepted": "tbp_abc123 name=events-client\n"}
    accepted = ClientTokens(data["accepted"], key=b"k")
    entry = accepted.find(data["token"])
    assert entry is not None
    assert (entry.name, entry.allow) == ("events-client", None)


def test_the_longest_name_is_still_one_that_the_proxy_takes() -> None:
    manifest = client_secret(desired(name="e" * names.NAME_MAX_LENGTH), "t")
    assert len(ClientTokens(b64decode(manifest["data"]["accepted"]).decode(), key=b"k")) == 1


def test_the_admin_secret_holds_the_admin_token() -> None:
    manifest = admin_secret(desired(), "tbp_admin")
    assert manifest["metadata"]["name"] == "events-admin"
    assert {key: b64decode(value) for key, value in manifest["data"].items()} == {"token": b"tbp_admin"}


def test_no_other_resource_may_send_a_generated_secret_anywhere() -> None:
    for manifest in (client_secret(desired(), "t"), admin_secret(desired(), "t")):
        assert names.USE_LABEL not in manifest["metadata"]["labels"]
