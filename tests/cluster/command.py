"""A real one-node Kubernetes on this machine, without a container engine."""

import argparse
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from tests.cluster import configuration, evidence
from tests.cluster.addresses import FAMILIES
from tests.cluster.node import Node
from tests.cluster.refusal import Refusal

_DESCRIPTION: Final = __doc__
_EPILOG: Final = """
Everything is below one directory: $XDG_CACHE_HOME/tinybird-proxy-cluster, or ~/.cache/tinybird-proxy-cluster.
All but build and env needs root. See README.md beside this command.
"""
_ROOTLESS: Final = ("build", "env", "logs")  # logs of another cluster, that is
# What a program is called, and the package of Debian and Ubuntu that brings it.
_PACKAGES: Final = {
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "mount": "mount",
    str(configuration.CNI_PROGRAMS / "bridge"): "containernetworking-plugins",
    str(configuration.CNI_PROGRAMS / "portmap"): "containernetworking-plugins",
}


def main() -> None:
    """Do what the command line says; exit status 1 and a sentence if that is not possible, 2 for a wrong line."""
    given = _parser().parse_args()
    try:
        reason = why_not(given.command, system=platform.system(), is_root=os.geteuid() == 0, missing=_missing())
        if reason is not None:
            raise Refusal(reason)
        status = _act(given)
    except Refusal as exc:
        sys.exit(f"cluster: {exc}")
    except KeyboardInterrupt:
        sys.exit(f"cluster: broken off; run `cluster {given.command}` again to go on")
    sys.exit(status)


def why_not(command: str, *, system: str, is_root: bool, missing: Collection[str]) -> str | None:
    """Why this machine cannot do `command`, or None; `missing` are packages."""
    if system != "Linux":
        return f"needs Linux, and this is {system}; the end-to-end tests also run on any other cluster: set KUBECONFIG"
    if command in _ROOTLESS:
        return None
    if not is_root:
        return f"`{command}` needs root, for containers, mounts and a network bridge; run: sudo {sys.argv[0]} {command}"
    if command == "up" and missing:
        return f"packages are missing; on Debian and Ubuntu: apt-get install {' '.join(sorted(missing))}"
    return None


def default_directory() -> Path:
    """Where everything is unless the command line says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tinybird-proxy-cluster"


def _missing() -> set[str]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return {package for program, package in _PACKAGES.items() if shutil.which(program, path=path) is None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cluster",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=Path, default=default_directory(), help="another place for everything")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("build", help="build every part from its Go module; nothing if that was done")
    up = commands.add_parser("up", help="start it, and build first what is not built; nothing if it is up")
    up.add_argument("--family", choices=FAMILIES, help="of all addresses in it; default: ipv4, or what is up already")
    commands.add_parser("status", help="say which part runs; exit status 1 unless the cluster is up")
    commands.add_parser("env", help='print KUBECONFIG and PATH (kubectl, helm) for a shell: eval "$(cluster env)"')
    load = commands.add_parser("load", help="import images into the node")
    load.add_argument("archives", type=Path, nargs="+", metavar="IMAGE.tar", help="a docker- or oci-archive")
    restart = commands.add_parser("restart", help="stop a part and start it again, for instance kube-apiserver")
    restart.add_argument("part", metavar="PART", help="as `status` names it")
    refused = commands.add_parser("refused", help="print the requests that the API server answered with 403")
    refused.add_argument("user", nargs="?", default="", metavar="USER", help="only of users with this in their name")
    logs = commands.add_parser("logs", help="write the logs of all parts and pods, events and objects into a directory")
    logs.add_argument("target", type=Path, metavar="DIR")
    commands.add_parser("down", help="stop it and remove all of it but what was built")
    return parser


def _act(given: argparse.Namespace) -> int:
    node = Node(given.directory.resolve())
    began_at = time.monotonic()
    match given.command:
        case "build":
            with node.alone():
                node.binaries.build()
            print(node.binaries.path)
        case "up":
            with node.alone():
                was_up = node.is_up
                node.up(given.family)
            took = "already" if was_up else f"after {time.monotonic() - began_at:.0f} s"
            print(f"cluster: up {took}", file=sys.stderr)
            print(node.kubeconfig)
        case "status":
            return _status(node)
        case "env":
            cache = shlex.quote(str(node.run / "kubectl-cache"))
            print(f"export KUBECONFIG={shlex.quote(str(node.kubeconfig))} KUBECACHEDIR={cache}")
            print(f"export PATH={shlex.quote(node.binaries.path)}:$PATH")
        case "load":
            _must_be_up(node)
            for archive in given.archives:
                with node.alone():
                    print(*node.load(archive.resolve()), sep="\n")
        case "restart":
            _must_be_up(node)
            with node.alone():
                node.restart(given.part)
        case "refused":
            for entry in evidence.refused(node.logs / "audit.log", given.user):
                print(entry)
        case "logs":
            _logs(node, given.target)
        case "down":
            with node.alone():
                node.down()
    return 0


def _status(node: Node) -> int:
    for name, runs in node.processes().items():
        print(f"{name}: {'runs' if runs else 'ended'}")
    is_up = node.is_up
    print(f"cluster: up, {node.addresses.api}" if is_up else "cluster: not up")
    return 0 if is_up else 1


def _logs(node: Node, target: Path) -> None:
    """Of the cluster that KUBECONFIG names, or of ours."""
    kubeconfig = Path(os.environ.get("KUBECONFIG") or node.kubeconfig)
    is_ours = kubeconfig.resolve() == node.kubeconfig
    if is_ours and not node.logs.is_dir():
        raise Refusal("there is nothing to gather: the cluster is not up, and KUBECONFIG names no other")
    kubectl = node.binaries["kubectl"] if is_ours else Path(shutil.which("kubectl") or node.binaries["kubectl"])
    evidence.bundle(kubectl, kubeconfig, target, node.run if is_ours else None)
    print(target)


def _must_be_up(node: Node) -> None:
    if not node.is_up:
        raise Refusal("the cluster is not up; run: cluster up")
