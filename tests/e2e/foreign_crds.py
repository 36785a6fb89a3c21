"""CRDs of other projects, out of their Go modules, checked against go.sum. None of their controllers runs here."""

import json
import os
import subprocess
from pathlib import Path
from typing import Final

from tests.e2e.kubectl import HERE, run

KEDA: Final = ("github.com/kedacore/keda/v2", "config/crd/bases/keda.sh_{}.yaml", "keda.sh")
PROMETHEUS_OPERATOR: Final = (
    "github.com/prometheus-operator/prometheus-operator",
    "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml",
    "monitoring.coreos.com",
)


def install(project: tuple[str, str, str], *plurals: str) -> None:
    """Give the cluster these kinds; they stay."""
    module, place, group = project
    directory = _module(module)
    for plural in plurals:
        run("kubectl", "apply", "--server-side", "--filename", directory / place.format(plural))
    names = [f"crd/{plural}.{group}" for plural in plurals]
    run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", *names)


def _module(name: str) -> Path:
    done = subprocess.run(
        ["go", "mod", "download", "-json", name],
        cwd=HERE / "foreign",
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return Path(json.loads(done.stdout)["Dir"])
