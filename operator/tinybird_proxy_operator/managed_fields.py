"""Who owns which fields of an object, as ``metadata.managedFields`` tells it to server-side apply. Pure."""

from collections.abc import Sequence
from typing import Any

from tinybird_proxy_operator.names import FIELD_MANAGER

Object = dict[str, Any]


def applied_entries(entries: Sequence[Object]) -> list[Object] | None:
    """``managedFields`` with what we created counted as applied by us; None if it is so already."""

    def is_ours(entry: Object, operation: str) -> bool:
        return (entry["manager"], entry["operation"], entry.get("subresource", "")) == (FIELD_MANAGER, operation, "")

    created = [entry for entry in entries if is_ours(entry, "Update")]
    if not created:
        return None
    fields: Object = {}
    for entry in entries:
        if is_ours(entry, "Update") or is_ours(entry, "Apply"):
            fields = _united(fields, entry["fieldsV1"])
    others = [entry for entry in entries if not is_ours(entry, "Update") and not is_ours(entry, "Apply")]
    return [*others, {**created[0], "operation": "Apply", "fieldsV1": fields}]


def _united(one: Object, other: Object) -> Object:
    return {key: _united(one.get(key, {}), other.get(key, {})) for key in {**one, **other}}
