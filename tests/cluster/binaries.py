"""What the cluster is made of: programs built from Go modules, kept until their recipe changes.

Each directory with a go.mod here names its programs in the `tool` block and pins every version by hash in go.sum. What
was built stays in `builds/<module>-<key>` below the tool's directory; the key is the hash of go.mod, go.sum and of how
we build, so that nothing is built twice. A build that was broken off goes on where it was: Go keeps the packages.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.cluster.refusal import Refusal

HERE: Final = Path(__file__).resolve().parent
MODULES: Final = ("containerd", "coredns", "kubernetes")

# The smallest drivers that do; the node has neither ZFS nor Btrfs nor device mapper volumes.
_TAGS: Final = "no_btrfs no_zfs no_devmapper"
_ENVIRONMENT: Final = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
# go names a program after its folder, and this one's folder is called `server`.
_RENAMED: Final = {"server": "etcd"}

_GO_DIRECTORY: Final = "/usr/local/go/bin"  # where Go's own archive is unpacked, and sudo does not look

# A pod's sandbox needs a process that does nothing until it is told to stop.
_PAUSE: Final = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
"""


def recipe(module: Path) -> list[str]:
    """The arguments of `go build` for one module's tools, without its output directory."""
    link = ["-s", "-w"]
    found = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\S*)", (module / "go.mod").read_text(), re.MULTILINE)
    if found:
        version, major, minor = found.groups()
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            for name, value in {"gitVersion": version, "gitMajor": major, "gitMinor": minor}.items():
                link += ["-X", f"{package}.{name}={value}"]
    return ["-trimpath", "-tags", _TAGS, "-ldflags", " ".join(link)]


def key(module: Path) -> str:
    """What the programs of a module depend on, as 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in (
        (module / "go.mod").read_bytes(),
        (module / "go.sum").read_bytes(),
        json.dumps([recipe(module), _ENVIRONMENT, _RENAMED, _PAUSE, os.uname().machine]).encode(),
    ):
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:12]


class Binaries:
    """The programs below one directory, built or not."""

    def __init__(self, directory: Path, modules: Path = HERE) -> None:
        self._modules = modules
        self._builds = {name: directory / f"{name}-{key(modules / name)}" for name in MODULES}

    @property
    def complete(self) -> bool:
        return all(path.is_dir() for path in self._builds.values())

    @property
    def path(self) -> str:
        """The directories, joined for PATH."""
        return ":".join(str(build) for build in self._builds.values())

    def __getitem__(self, program: str) -> Path:
        found = shutil.which(program, path=self.path)
        if found is None:
            raise Refusal(f"{program} is not built yet; run: cluster build")
        return Path(found)

    def build(self, path: str | None = None) -> None:
        """Build what is missing, with the Go of `path` or of PATH. Safe to break off and to call again."""
        search = f"{os.environ.get('PATH', '')}:{_GO_DIRECTORY}" if path is None else path
        for name, target in self._builds.items():
            if not target.is_dir():
                began_at = time.monotonic()
                print(f"cluster: building {name} ...", file=sys.stderr, flush=True)
                self._build(self._modules / name, target, shutil.which("go", path=search))
                print(f"cluster: built {name} in {time.monotonic() - began_at:.0f} s", file=sys.stderr, flush=True)

    def _build(self, module: Path, target: Path, go: str | None) -> None:
        if go is None:
            raise Refusal("go is missing, and the cluster is built from Go modules; see https://go.dev/doc/install")
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        environment = {**os.environ, **_ENVIRONMENT}
        built = subprocess.run([go, "build", *recipe(module), "-o", f"{partial}/", "tool"], cwd=module, env=environment)
        if built.returncode:
            raise Refusal(
                f"go could not build {module.name} (its words are above); it needs the Go version that {module}/go.mod "
                "names and a module proxy; run `cluster build` again to go on"
            )
        for name, ours in _RENAMED.items():
            if (partial / name).exists():
                (partial / name).rename(partial / ours)
        if module.name == "containerd":
            with tempfile.TemporaryDirectory() as source:
                (Path(source) / "pause.go").write_text(_PAUSE)
                pause = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(partial / "pause"), "pause.go"]
                subprocess.run(pause, cwd=source, env={**environment, "GOFLAGS": ""}, check=True)
        partial.rename(target)
