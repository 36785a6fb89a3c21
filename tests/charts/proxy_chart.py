"""charts/tinybird-proxy as its tests see it: rendered pods, and what is in them."""

from typing import Final

from tests.charts.rendering import ROOT, Object, one

PROXY: Final = ROOT / "charts" / "tinybird-proxy"
EVERY: Final = PROXY / "ci" / "everything-values.yaml"
OWN: Final[Object] = {"tinybird": {"token": {"existingSecret": "tinybird"}}, "clients": {"existingSecret": "apps"}}


def template(rendered: list[Object]) -> Object:
    found = one(rendered, "Deployment")["spec"]["template"]
    assert isinstance(found, dict)
    return found


def container(pod: Object) -> Object:
    [found] = pod["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(pod: Object) -> dict[str, str]:
    """The container's variables as the kubelet fills them in; those from Secrets are left out."""
    entries = container(pod)["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    plain = {entry["name"]: entry["value"] for entry in entries if "value" in entry}
    assert all(isinstance(value, str) for value in plain.values())
    fields = {entry["name"] for entry in entries if "fieldRef" in entry.get("valueFrom", {})}
    return {**plain, **dict.fromkeys(fields, "release-abc-x")}


def files(pod: Object) -> set[str]:
    """Every file that the pod's Secrets come to."""
    mounts = {mount["name"]: mount for mount in container(pod).get("volumeMounts", [])}
    volumes = pod["spec"].get("volumes", [])
    assert mounts.keys() == {volume["name"] for volume in volumes}
    # A file mounted by subPath never changes with its Secret.
    assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts.values())
    return {f"{mounts[v['name']]['mountPath']}/{item['path']}" for v in volumes for item in v["secret"]["items"]}
