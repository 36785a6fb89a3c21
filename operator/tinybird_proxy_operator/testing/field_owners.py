"""Who owns which field of an object, as ``metadata.managedFields`` tells it. Pure.

A field is a path that ends where a value is no map, or an empty one: lists are one value.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

Object = dict[str, Any]
Path = tuple[str, ...]
Manager = tuple[str, str, str]  # name, operation, subresource
_IDENTITY: Final = frozenset(
    ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
)


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = copy.deepcopy(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = merged(new.get(name), value)
    return new


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field and its value; what identifies the object has no owner."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            here = (*path, name)
            if here not in (("apiVersion",), ("kind",)) and not (path == ("metadata",) and name in _IDENTITY):
                yield from leaves(inner, here)
    elif path not in ((), ("metadata",)):
        yield path, value


def fields_of(body: Object) -> set[Path]:
    """The paths of every field."""
    return {path for path, _ in leaves(body)}


def value_at(value: Any, path: Path) -> Any:
    """The value at a path, or None."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def drop(value: Any, path: Path) -> None:
    """Take a field away, and the maps that are empty without it."""
    parent = value_at(value, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
        if not parent and len(path) > 2:
            drop(value, path[:-1])


def entries_of(found: Object) -> list[Object]:
    """``metadata.managedFields``."""
    entries: list[Object] = found["metadata"].get("managedFields") or []
    return entries


def manager_of(entry: Object) -> Manager:
    """Whose entry it is."""
    return entry["manager"], entry["operation"], entry.get("subresource", "")


def paths_of(fields: Object, path: Path = ()) -> set[Path]:
    """``fieldsV1`` as paths."""
    found = set()
    for name, inner in fields.items():
        here = (*path, name.removeprefix("f:"))
        found |= paths_of(inner, here) if inner else {here}
    return found


def owned_by(
    body: Object, manager: Manager, paths: set[Path], *, add: bool = False, forced: set[Path] | None = None
) -> Object:
    """``body`` with ``manager`` as owner of ``paths``, or of them too; nobody else owns what it changed."""
    owners: dict[Manager, set[Path]] = defaultdict(set)
    for entry in entries_of(body):
        owners[manager_of(entry)] = paths_of(entry["fieldsV1"])
    present = fields_of(body)
    taken = paths if add else forced or set()
    owners = {who: (owned - taken if who != manager else owned) & present for who, owned in owners.items()}
    owners[manager] = paths | owners.get(manager, set()) if add else paths
    entries = []
    for (name, operation, sub), owned in owners.items():
        fields: Object = {}
        for path in sorted(owned):
            inner = fields
            for part in path:
                inner = inner.setdefault(f"f:{part}", {})
        if fields:
            entry = {"manager": name, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields}
            entries.append({**entry, "subresource": sub} if sub else entry)
    return {**body, "metadata": {**body["metadata"], "managedFields": entries}}


def with_ports_beside(service: Object, old: Object) -> Object:
    """An applied Service with the ports of ``old``, which others own, beside its own. Raises ``ValueError``.

    A port is told from another by number and protocol, and no two may have one name.
    """

    def ports_of(found: Object) -> dict[tuple[int, str], Object]:
        ports = value_at(found, ("spec", "ports")) or []
        return {(port["port"], port.get("protocol", "TCP")): port for port in ports}

    ports = list({**ports_of(old), **ports_of(service)}.values())
    names = [port.get("name", "") for port in ports]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f'spec.ports[{number}].name: Duplicate value: "{name}"')
    return {**service, "spec": {**service["spec"], "ports": ports}}


def with_webhooks_of(body: Object, old: Object) -> Object:
    """What is applied to a MutatingWebhookConfiguration, each entry with what ``old`` has in the one of its name."""
    applied = {entry["name"]: entry for entry in body.get("webhooks") or []}
    kept = {entry["name"]: entry for entry in old.get("webhooks") or []}
    return {**body, "webhooks": [merged(kept.get(name, {}), applied.get(name, {})) for name in {**kept, **applied}]}
