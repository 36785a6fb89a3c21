"""Events about a resource: fixed reasons, each once in a while, and no error if the API server takes none."""

from itertools import count

import pytest
from tests.operator.clusters import Clock
from tests.operator.resources import UID, resource

from tinybird_proxy_operator.errors import NamespaceTerminating
from tinybird_proxy_operator.events import REPEAT_AFTER_S, Events
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import FIELD_MANAGER, KIND, Reason
from tinybird_proxy_operator.testing.fake_api import FakeApi

PROXY = resource()


def events(kube: Kube, clock: Clock) -> Events:
    numbers = count()
    return Events(kube, "operator-1", now=clock.now, utc_now=clock.utc_now, chance=lambda: f"{next(numbers)}")


async def test_an_event_is_about_the_resource_and_from_the_operator(api: FakeApi, kube: Kube) -> None:
    await events(kube, Clock()).tell(PROXY, Reason.NAME_TAKEN, "Service events exists.", warning=True)
    (event,) = api.all("Event")
    assert (event["involvedObject"]["kind"], event["involvedObject"]["uid"]) == (KIND, UID)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "NameTaken", "Service events exists.")
    assert (event["source"], event["reportingInstance"]) == ({"component": FIELD_MANAGER}, "operator-1")
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-01-01T00:16:40Z"


async def test_the_same_is_told_again_only_after_a_while_however_its_figures_change(api: FakeApi, kube: Kube) -> None:
    clock = Clock()
    told = events(kube, clock)
    for rows in range(5):
        await told.tell(PROXY, Reason.ROLLOUT_HELD, f"{rows} rows wait.", warning=True)
        clock.seconds += REPEAT_AFTER_S / 5
    assert len(api.all("Event")) == 1
    await told.tell(PROXY, Reason.ROLLOUT_HELD, "9 rows wait.", warning=True)
    assert [event["message"] for event in api.all("Event")] == ["0 rows wait.", "9 rows wait."]


async def test_other_reasons_subjects_and_resources_are_told_at_once(api: FakeApi, kube: Kube) -> None:
    told = events(kube, Clock())
    await told.tell(PROXY, Reason.INVALID_SPEC, "a", warning=True, about="a")
    await told.tell(PROXY, Reason.INVALID_SPEC, "b", warning=True, about="b")
    await told.tell(PROXY, Reason.NAME_TAKEN, "a", warning=True, about="a")
    await told.tell(resource(name="other", uid="2"), Reason.INVALID_SPEC, "a", warning=False, about="a")
    assert [event["type"] for event in api.all("Event")] == ["Warning", "Warning", "Warning", "Normal"]


async def test_an_event_that_could_not_be_written_is_told_next_time(api: FakeApi, kube: Kube) -> None:
    told = events(kube, Clock())
    api.fail(403)
    await told.tell(PROXY, Reason.NAME_TAKEN, "a", warning=True)
    assert api.all("Event") == []
    await told.tell(PROXY, Reason.NAME_TAKEN, "a", warning=True)
    assert len(api.all("Event")) == 1


async def test_in_a_namespace_that_is_being_deleted_there_is_nobody_to_tell(api: FakeApi, kube: Kube) -> None:
    api.terminating.add("shop")
    with pytest.raises(NamespaceTerminating):
        await events(kube, Clock()).tell(PROXY, Reason.NAME_TAKEN, "a", warning=True)


async def test_a_long_message_is_cut(api: FakeApi, kube: Kube) -> None:
    await events(kube, Clock()).tell(PROXY, Reason.APPLY_REFUSED, "x" * 5000, warning=True)
    assert len(api.all("Event")[0]["message"]) == 1000
