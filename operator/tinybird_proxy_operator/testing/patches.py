"""What a patch makes of an object and of its fields' owners, or why it is refused. Pure.

Merge patches and server-side apply, to the object, its ``/status`` or its ``/scale``, with their preconditions.
"""

from tinybird_proxy_operator.testing.field_owners import (
    Object,
    drop,
    entries_of,
    fields_of,
    leaves,
    manager_of,
    merged,
    owned_by,
    paths_of,
    value_at,
    with_ports_beside,
    with_webhooks_of,
)
from tinybird_proxy_operator.testing.served import Served


class Refused(Exception):
    """A request that is not carried out. ``status``: of the answer; ``cause``: the reason that it names, if any."""

    def __init__(self, status: int, message: str, cause: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause


def check_precondition(old: Object, given: Object) -> None:
    """Whether ``old`` is the object that is meant, as far as ``given`` says which. Raises ``Refused``."""
    for name in ("uid", "resourceVersion"):
        if name in given and given[name] != old["metadata"][name]:
            raise Refused(409, f"the {name} in the precondition ({given[name]}) is not the object's")


def merge_patched(old: Object, patch: Object, *, sub: str | None, manager: str, known: Served) -> Object:
    """``old`` after a merge patch by ``manager``, who owns from then on what it changed. Raises ``Refused``."""
    check_precondition(old, patch.get("metadata") or {})
    if sub == "scale":
        replicas = merged(scale_of(old, reading=False), patch)["spec"].get("replicas")
        if not isinstance(replicas, int) or replicas < 0:
            raise Refused(422, "spec.replicas: must be a number from 0 on")
        new: Object = merged(old, {"spec": {"replicas": replicas}})
    else:
        new = _confined(sub, old, merged(old, patch), known)
    if "deletionTimestamp" in old["metadata"] and finalizers_of(new) - finalizers_of(old):
        raise Refused(422, "metadata.finalizers: Forbidden: no new finalizers can be added")
    if (patch.get("metadata") or {}).get("managedFields") is not None:  # the owners are what is patched
        return new
    before = fields_of(old)
    changed = {path for path, value in leaves(new) if path not in before or value_at(old, path) != value}
    return owned_by(new, (manager, "Update", sub or ""), changed, add=True)


def applied(old: Object, body: Object, *, sub: str | None, manager: str, force: bool, known: Served) -> Object:
    """``old`` after ``manager`` applied ``body``. ``force``: also over fields of others. Raises ``Refused``."""
    check_precondition(old, body["metadata"])
    kind, name, who = body["kind"], body["metadata"]["name"], (manager, "Apply", sub or "")
    if kind == "MutatingWebhookConfiguration":
        body = with_webhooks_of(body, old)
    wanted = fields_of(body)
    new = merged(old, body)
    others = {path for other in entries_of(old) if manager_of(other) != who for path in paths_of(other["fieldsV1"])}
    taken = sorted(path for path in wanted & others if value_at(old, path) != value_at(new, path))
    if taken and not force:
        raise Refused(409, f"Apply failed with {len(taken)} conflicts: {taken}")
    owned = {path for own in entries_of(old) if manager_of(own) == who for path in paths_of(own["fieldsV1"])}
    for path in owned - wanted - others:
        drop(new, path)
    if kind == "Service" and ("spec", "ports") in others:
        try:
            new = with_ports_beside(new, old)
        except ValueError as error:
            raise Refused(422, f'Service "{name}" is invalid: {error}') from error
    new = _confined(sub, old, new, known)
    return owned_by(new, who, wanted, forced={path for path in wanted if value_at(old, path) != value_at(new, path)})


def finalizers_of(found: Object) -> set[str]:
    """What keeps it from going when it is deleted."""
    return set(found["metadata"].get("finalizers") or [])


def scale_of(found: Object, *, reading: bool) -> Object:
    """``/scale`` of an object. ``reading``: of one without a number of replicas it cannot be read, only written."""
    spec = found.get("spec", {})
    if reading and "replicas" not in spec:
        raise Refused(500, 'Internal error occurred: the spec replicas field ".spec.replicas" does not exist')
    metadata = {name: found["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
    replicas = {"replicas": spec["replicas"]} if "replicas" in spec else {}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": replicas}


def _confined(sub: str | None, old: Object, new: Object, known: Served) -> Object:
    """A write to the object leaves the status alone, and one to the status everything else."""
    if sub == "status":
        return {**old, "status": new.get("status", {})}
    if known.has_status:
        new = {name: value for name, value in new.items() if name != "status"}
        return {**new, "status": old["status"]} if "status" in old else new
    return new
