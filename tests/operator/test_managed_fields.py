"""Who owns which fields, by table."""

from typing import Any

from tinybird_proxy_operator.managed_fields import applied_entries
from tinybird_proxy_operator.names import FIELD_MANAGER


def test_fields_of_others_and_of_the_status_stay_theirs() -> None:
    def entry(manager: str, operation: str, **more: Any) -> dict[str, Any]:
        return {"manager": manager, "operation": operation, "fieldsV1": {"f:spec": {f"f:{operation}": {}}}, **more}

    others = [entry("kubectl", "Update"), entry(FIELD_MANAGER, "Update", subresource="status")]
    assert applied_entries([*others, entry(FIELD_MANAGER, "Apply")]) is None
    found = applied_entries([entry(FIELD_MANAGER, "Update"), *others, entry(FIELD_MANAGER, "Apply")])
    assert found == [
        *others,
        {**entry(FIELD_MANAGER, "Apply"), "fieldsV1": {"f:spec": {"f:Update": {}, "f:Apply": {}}}},
    ]
