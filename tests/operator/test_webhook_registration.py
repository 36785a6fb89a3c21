"""The CA in a MutatingWebhookConfiguration: only in entries that lead to us, and nothing but that."""

import base64
import copy

import pytest
from tests.operator.webhooks import CONFIGURATION, ENTRIES, configuration

from tinybird_proxy_operator.webhook.registration import Object, owner, registered_bundle, with_bundle

WHERE = ("tinybird-system", "webhook")


def with_bundles(*bundles: str | None) -> Object:
    found = copy.deepcopy(configuration())
    for entry, bundle in zip(found["webhooks"], bundles, strict=True):
        entry["clientConfig"] = {**entry["clientConfig"]}
        if bundle is not None:
            entry["clientConfig"]["caBundle"] = base64.b64encode(bundle.encode()).decode()
    return found


def foreign(bundle: str) -> Object:
    encoded = base64.b64encode(bundle.encode()).decode()
    return {"name": "other", "clientConfig": {"service": {"namespace": "x", "name": "y"}, "caBundle": encoded}}


@pytest.mark.parametrize(
    ("bundles", "known"),
    [((None, None), None), (("a", "a"), "a"), (("a", "b"), ""), (("a", None), ""), (("", ""), None)],
)
def test_what_is_known_is_what_all_entries_say(bundles: tuple[str | None, str | None], known: str | None) -> None:
    assert registered_bundle(with_bundles(*bundles), *WHERE) == known


def test_what_is_no_text_is_nothing_that_is_known() -> None:
    found = with_bundles("a", "a")
    for entry in found["webhooks"]:
        entry["clientConfig"]["caBundle"] = "/w=="
    assert registered_bundle(found, *WHERE) == ""


def test_an_entry_that_leads_elsewhere_does_not_count_and_is_not_written() -> None:
    found = with_bundles("a", "a")
    found["webhooks"].append(foreign("b"))
    found["webhooks"].append({"name": "by-url", "clientConfig": {"url": "https://x"}})
    assert registered_bundle(found, *WHERE) == "a"
    assert [entry["name"] for entry in with_bundle(found, *WHERE, "c")["webhooks"]] == [*ENTRIES]


def test_nothing_but_the_ca_is_applied() -> None:
    wanted = with_bundle(configuration(), *WHERE, "ca")
    assert wanted["metadata"] == {"name": CONFIGURATION}
    assert wanted["webhooks"] == [{"name": name, "clientConfig": {"caBundle": "Y2E="}} for name in ENTRIES]


def test_a_configuration_that_does_not_lead_to_us_is_told() -> None:
    with pytest.raises(ValueError, match="no entry of the MutatingWebhookConfiguration operator-webhook leads to"):
        with_bundle(configuration(), "elsewhere", "webhook", "ca")


def test_what_belongs_to_it_goes_with_it() -> None:
    found = configuration()
    found["metadata"]["uid"] = "1"
    assert owner(found)["uid"] == "1"
    assert owner(found)["name"] == CONFIGURATION
