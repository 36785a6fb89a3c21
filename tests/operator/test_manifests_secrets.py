"""The generated Secrets: what apps read, what the proxy accepts, and the admin token."""

from base64 import b64decode
from typing import Any

import pytest
from tests.operator.resources import UID, desired, resource

from tinybird_proxy.tokens import ClientTokens
from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.secrets import (
    RETAINED_FOR_ANNOTATION,
    admin_secret,
    client_secret,
    is_retained_for,
)
from tinybird_proxy_operator.rotation import ROTATE_ANNOTATION, ROTATED_FOR_ANNOTATION

RETAIN: dict[str, Any] = {"clients": {"secretDeletionPolicy": "Retain"}}


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


def test_a_new_client_token_needs_no_rotation_whatever_the_annotation_says() -> None:
    assert "annotations" not in client_secret(desired(), "t")["metadata"]
    metadata = client_secret(desired(annotations={ROTATE_ANNOTATION: "June"}), "t")["metadata"]
    assert metadata["annotations"] == {ROTATED_FOR_ANNOTATION: "June"}


def test_a_secret_goes_with_its_resource_unless_it_is_retained_and_the_admin_secret_always_does() -> None:
    for manifest in (client_secret(desired(), "t"), admin_secret(desired(RETAIN), "t")):
        assert [owner["uid"] for owner in manifest["metadata"]["ownerReferences"]] == [UID]
        assert not is_retained_for(manifest, resource())
    metadata = client_secret(desired(RETAIN), "t")["metadata"]
    assert "ownerReferences" not in metadata
    assert metadata["annotations"] == {RETAINED_FOR_ANNOTATION: "shop/events"}
    assert metadata["labels"] == names.child_labels("events")


def test_a_retained_secret_is_known_by_any_resource_of_that_name_and_namespace() -> None:
    manifest = client_secret(desired(RETAIN), "t")
    assert is_retained_for(manifest, resource())
    assert is_retained_for(manifest, resource(uid="another"))
    others = [{"controller": False, "uid": "x", "kind": "ConfigMap", "name": "x"}]
    assert is_retained_for({"metadata": {**manifest["metadata"], "ownerReferences": others}}, resource())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ownerReferences": [{"controller": True, "uid": "x"}]}, "it has a controller"),
        ({"annotations": {}}, "it does not say for whom it is"),
        ({"annotations": None, "labels": None}, "it says nothing"),
        ({"annotations": {RETAINED_FOR_ANNOTATION: "shop/other"}}, "it is for another one"),
        ({"annotations": {RETAINED_FOR_ANNOTATION: "prod/events"}}, "it is a copy from another namespace"),
        ({"name": "events-admin"}, "it is a copy under another name"),
        ({"labels": {names.PROXY_LABEL: "events"}}, "nobody says that an operator made it"),
        ({"labels": {**names.child_labels("events"), names.PROXY_LABEL: "other"}}, "it is another one's by label"),
    ],
)
def test_a_strangers_secret_is_not_taken_for_a_retained_one(changes: dict[str, Any], why: str) -> None:
    manifest = client_secret(desired(RETAIN), "t")
    assert not is_retained_for({"metadata": {**manifest["metadata"], **changes}}, resource()), why
