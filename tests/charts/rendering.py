"""Charts as the tests see them: helm and promtool found, templates rendered and read."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
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
    """The objects of a YAML stream, empty documents left out."""
    return [found for found in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if found]


def one(rendered: Sequence[Object], kind: str, name: str = "") -> Object:
    """The only object of a kind, whose name ends in `name`."""
    [found] = [each for each in rendered if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    return found


@cache
def values_files(chart: Path) -> tuple[Path, ...]:
    """The chart's examples of values."""
    return tuple(sorted((chart / "ci").glob("*-values.yaml")))
