"""The API of several Kubernetes versions, and what one of them does not know or not take in an object.

Types and fields come from `api/openapi-spec/swagger.json`, the values of enumerations from generated Go code; both are
in the Go module k8s.io/kubernetes. ``python -m tests.charts.kubernetes_api`` brings them into .cache.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

# The oldest with native sidecars, one in between, and that of tests/cluster; the sums as in a go.sum.
SUMS: Final = {
    "v1.29.6": "h1:jn8kA/oVOAWZOeoorx6xZ4d+KgGp+Evgi90x9bEI/DE=",
    "v1.33.13": "h1:bmH31xUdSzeA5vk0wZAK9MZp11mdLuzUSeKk0qN3hPQ=",
    "v1.36.3": "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=",
}
_MODULE: Final = "k8s.io/kubernetes"
_SWAGGER: Final = "api/openapi-spec/swagger.json"
_GENERATED: Final = "pkg/generated/openapi/zz_generated.openapi.go"
_CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "kubernetes-api"
_FUNCTION: Final = re.compile(r"func schema_k8sio_api_([a-z]+)_(\w+?)_(\w+)\(")
_PROPERTY: Final = re.compile(r'\t{5}"(\w+)": {$')
_ENUM: Final = re.compile(r"\t+Enum: +\[\]interface{}{(.*)},$")
_ANYTHING: Final = {"type": "object"}
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
# Beside strings these are read from numbers.
_OR_NUMBER: Final = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": (str, int, float),
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": (str, int),
}


def problems(version: str, kind: str, value: Any) -> list[str]:
    """What a Kubernetes of that version does not know or does not take in an object, for instance `core.v1.Pod`."""
    return list(_Walk(_definitions(version), _enums(version)).problems({"$ref": f"/io.k8s.api.{kind}"}, value, kind))


def pod_problems(version: str, pod: Mapping[str, Any]) -> list[str]:
    """``problems`` of a pod, and of it in the templates of a Deployment and a Job."""
    template = {"metadata": {"labels": {"app": "app"}}, "spec": pod["spec"]}
    deployment = {"selector": {"matchLabels": {"app": "app"}}, "template": template}
    return [
        *problems(version, "core.v1.Pod", pod),
        *problems(version, "apps.v1.Deployment", {"spec": deployment}),
        *problems(version, "batch.v1.Job", {"spec": {"template": template}}),
    ]


class _Walk:
    def __init__(self, definitions: Mapping[str, Any], enums: Mapping[tuple[str, str], list[str]]) -> None:
        self._definitions = definitions
        self._enums = enums

    def problems(self, schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
        name = schema.get("$ref", "").rpartition("/")[2]
        if name:
            schema = self._definitions[name]
        expected = _OR_NUMBER.get(name) or _TYPES[schema.get("type", "object")]
        # JSON's true is no number, although Python's is.
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            yield f"{path}: {value!r} is no {name or schema['type']}"
        elif isinstance(value, list):
            for index, each in enumerate(value):
                yield from self.problems(schema["items"], each, f"{path}[{index}]")
        elif isinstance(value, dict) and "additionalProperties" in schema:
            for key, each in value.items():
                yield from self.problems(schema["additionalProperties"], each, f"{path}.{key}")
        elif isinstance(value, dict) and (schema.keys() - {"description"} != _ANYTHING.keys()):
            yield from self._fields(name, schema, value, path)

    def _fields(self, name: str, schema: Mapping[str, Any], value: Mapping[str, Any], path: str) -> Iterator[str]:
        fields = schema["properties"]
        yield from (f"{path}.{field}: is missing" for field in schema.get("required", ()) if field not in value)
        for field, inner in value.items():
            if field not in fields:
                yield f"{path}.{field}: no such field"
                continue
            yield from self.problems(fields[field], inner, f"{path}.{field}")
            if allowed := self._enums.get((name, field)):
                for each in inner if isinstance(inner, list) else [inner]:
                    if each not in allowed:
                        yield f"{path}.{field}: {each!r} is none of {', '.join(allowed)}"


@cache
def _definitions(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_file(version, _SWAGGER).read_text())["definitions"]
    return found


@cache
def _enums(version: str) -> dict[tuple[str, str], list[str]]:
    """By definition and field."""
    found, definition, field = {}, "", ""
    for line in _file(version, _GENERATED).read_text().splitlines():
        if line.startswith("func "):
            match = _FUNCTION.match(line)
            definition = f"io.k8s.api.{match[1]}.{match[2]}.{match[3]}" if match else ""
        elif match := _PROPERTY.match(line):
            field = match[1]
        elif definition and (match := _ENUM.match(line)):
            found[definition, field] = json.loads(f"[{match[1]}]")
    return found


def _file(version: str, place: str) -> Path:
    """A file of the module. Without Go the test is skipped, which fails in CI."""
    path = _place(version, place)
    if not path.exists():
        if _go() is None:
            pytest.skip(f"{path} is missing, and so is Go, which fetches it")
        fetch(version)
    return path


def _place(version: str, place: str) -> Path:
    return _CACHE / version / Path(place).name


def _go() -> str | None:
    return shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")


def fetch(version: str) -> None:
    """Two files out of the module, whose sum must be the one above."""
    go = _go()
    if go is None:
        sys.exit("kubernetes_api: go is missing; see https://go.dev/doc/install")
    proxy, modules = subprocess.run(
        [go, "env", "GOPROXY", "GOMODCACHE"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    _CACHE.mkdir(parents=True, exist_ok=True)
    # Go unpacks all of a module, some 100 MB; what is there already is not fetched again.
    with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        here = {"GOMODCACHE": scratch, "GOFLAGS": "-modcacherw", "GOSUMDB": "off", "GOWORK": "off"}
        done = subprocess.run(
            [go, "mod", "download", "-json", f"{_MODULE}@{version}"],
            cwd=scratch,
            env={**os.environ, **here, "GOPROXY": f"file://{modules}/cache/download,{proxy}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        said = json.loads(done.stdout or "{}")
        if "Sum" not in said:
            raise AssertionError(f"go mod download {_MODULE}@{version}: {said.get('Error') or done.stderr}")
        assert said["Sum"] == SUMS[version], f"{_MODULE}@{version} has the sum {said['Sum']}, not {SUMS[version]}"
        for place in (_SWAGGER, _GENERATED):
            target = _place(version, place)
            target.parent.mkdir(exist_ok=True)
            shutil.move(Path(said["Dir"]) / place, target)


if __name__ == "__main__":
    for each in SUMS:
        if not all(_place(each, place).exists() for place in (_SWAGGER, _GENERATED)):
            fetch(each)
