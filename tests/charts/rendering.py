"""Charts as the tests see them: helm and promtool found, templates rendered and read, values and schema walked."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.cluster.binaries import Binaries
from tests.cluster.command import default_directory

ROOT: Final = Path(__file__).resolve().parent.parent.parent
TOOLS: Final = ROOT / ".cache" / "tools"
OPERATOR: Final = ROOT / "charts" / "tinybird-proxy-operator"
Object = dict[str, Any]
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def tool(program: str) -> Path:
    """Where a program is; the test is skipped without it, which fails in CI."""
    ours = f"{TOOLS}:{Binaries(default_directory() / 'builds').path}"
    found = shutil.which(program, path=f"{ours}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{program} is missing: run tests/charts/install-tools")
    return Path(found)


def helm(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm without a cluster and without anything of the user's."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(TOOLS), "KUBECONFIG": os.devnull}
    return subprocess.run(
        [tool("helm"), *arguments], input=given, env=environment, capture_output=True, text=True, timeout=60
    )


def render(chart: Path, *, values: Path | None = None, given: Mapping[str, Any] | None = None) -> list[Object]:
    """What a release called `release` in the namespace `here` would be made of."""
    chosen: Sequence[str | Path] = () if values is None else ("--values", values)
    rendered = helm(
        "template", "release", chart, "--namespace", "here", *chosen, "--values", "-", given=yaml.safe_dump(given or {})
    )
    assert rendered.returncode == 0, rendered.stderr
    return objects(rendered.stdout)


def objects(text: str) -> list[Object]:
    """The objects of a YAML stream, empty documents left out. No key may be there twice: YAML readers choose either."""
    loader, found = _Loader(text), []
    while loader.check_node():
        node = loader.get_node()
        twice = sorted(_repeated(node))
        assert not twice, f"twice in one mapping: {', '.join(twice)}"
        found.append(loader.construct_document(node))
    return [each for each in found if each]


def _repeated(node: yaml.Node | None) -> Iterator[str]:
    """Every key that a mapping has more than once, with its line."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _repeated(each)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield f"{key.value} (line {key.start_mark.line + 1})"
            seen.add(key.value)
            yield from _repeated(value)


def one(rendered: Sequence[Object], kind: str, name: str = "") -> Object:
    """The only object of a kind, whose name ends in `name`."""
    [found] = [each for each in rendered if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    return found


@cache
def values_files(chart: Path) -> tuple[Path, ...]:
    """The chart's examples of values."""
    return tuple(sorted((chart / "ci").glob("*-values.yaml")))


def with_each_file(chart: Path) -> pytest.MarkDecorator:
    """A parameter ``values``: each of the chart's examples of values."""
    return pytest.mark.parametrize("values", values_files(chart), ids=lambda path: path.stem.removesuffix("-values"))


def refusal(chart: Path, given: Object) -> str:
    """What helm says of values that the chart must refuse."""
    refused = helm("template", "release", chart, "--values", "-", given=yaml.safe_dump(given))
    assert refused.returncode != 0, refused.stdout[:2000]
    return refused.stderr


def keys(node: yaml.MappingNode, path: str = "") -> Iterator[tuple[str, int, yaml.Node]]:
    """Every key of a mapping and of those in it: path, line from 0, value."""
    for key, value in node.value:
        yield f"{path}{key.value}", key.start_mark.line, value
        if isinstance(value, yaml.MappingNode):
            yield from keys(value, f"{path}{key.value}.")


def schema_names(schema: Object, path: str = "") -> set[str]:
    """The path of every field that a values schema names; each must be described."""
    assert "description" in schema or "title" in schema, path
    found = set()
    for name, inner in schema.get("properties", {}).items():
        found |= {f"{path}{name}", *schema_names(inner, f"{path}{name}.")}
    return found


def is_named(schema: Object, path: str) -> bool:
    """Whether the schema names the fields of what holds `path`."""
    for part in path.split(".")[:-1]:
        schema = schema.get("properties", {}).get(part, {})
    return "properties" in schema
