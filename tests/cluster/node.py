"""The one node: started, asked, given images, stopped, and nothing left of it but what was built."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.cluster import configuration
from tests.cluster.addresses import FAMILIES, Addresses
from tests.cluster.binaries import Binaries
from tests.cluster.certificates import USERS, kubeconfig, write_certificates
from tests.cluster.processes import Processes, end_programs_with
from tests.cluster.refusal import Refusal

_LAST_FIRST: Final = (
    "coredns",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
    "containerd",
)
_OCI_NAME: Final = "org.opencontainers.image.ref.name"
_BRIDGE_NETFILTER: Final = Path("/proc/sys/net/bridge")
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


class Node:
    """A cluster whose files are all below one directory: `builds/` stays, `run/` is there while it is up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = directory / "run"
        self.logs = self.run / "logs"
        self.kubeconfig = self.run / "admin.kubeconfig"
        self.binaries = Binaries(directory / "builds")
        self._processes = Processes(self.run / "processes", self.logs)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the directory's lock: two commands at a time would undo each other's work."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"cluster: waiting for another command on {self.directory}", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def is_up(self) -> bool:
        alive = self._processes.alive()
        started = (self.run / "ready").exists() and len(alive) > len(_LAST_FIRST) and all(alive.values())
        return started and self._answers("get", "--raw", "/readyz")

    @property
    def family(self) -> str:
        """Of the addresses, as it was started; IPv4 if it was not."""
        file = self.run / "family"
        return file.read_text() if file.exists() else "ipv4"

    @property
    def addresses(self) -> Addresses:
        """Where node, pods and Services are."""
        return FAMILIES[self.family]

    def processes(self) -> dict[str, bool]:
        return self._processes.alive()

    def kubectl(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.binaries["kubectl"]), f"--kubeconfig={self.kubeconfig}", *arguments]
        environment = os.environ | {"KUBECACHEDIR": str(self.run / "kubectl-cache")}
        return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=False)

    def up(self, family: str | None = None) -> None:
        """Start everything; nothing if it is up already. What an earlier run left is removed first.

        ``family``: of the addresses; None: IPv4, or what is up already.
        """
        if self.is_up:
            if family not in (None, self.family):
                raise Refusal(f"a cluster is up whose addresses are of {self.family}; first run: cluster down")
            return
        self.binaries.build()
        if self.run.exists():
            ended = [name for name, alive in self.processes().items() if not alive]
            reason = f"{', '.join(ended)} ended" if ended else "it did not answer"
            print(f"cluster: {reason}; starting a new one in place of the last", file=sys.stderr, flush=True)
        self.down()
        self._refuse_a_taken_place()
        self._write_files(family or "ipv4")
        self._make_network()
        addresses = self.addresses
        self._start("etcd", "etcd", configuration.etcd(self.run))
        self._start("containerd", "containerd", ["--config", f"{self.run}/containerd.toml"])
        self._start("kube-apiserver", "kube-apiserver", configuration.api_server(self.run, addresses))
        self._processes.wait("containerd", lambda: self._ctr("version").returncode == 0)
        self._import_pause()
        self._processes.wait("kube-apiserver", lambda: self._answers("get", "--raw", "/readyz"))
        self._start("kube-controller-manager", "kube-controller-manager", configuration.controller_manager(self.run))
        self._start("kube-scheduler", "kube-scheduler", configuration.scheduler(self.run))
        self._start("kubelet", "kubelet", configuration.kubelet(self.run, addresses))
        self._start("kube-proxy", "kube-proxy", configuration.kube_proxy(self.run, addresses))
        applied = self.kubectl("apply", "--filename", "-", given=configuration.FIRST_OBJECTS)
        if applied.returncode:
            raise Refusal(f"the first objects were refused: {applied.stderr.strip()}")
        self._start("coredns", "coredns", ["-conf", f"{self.run}/Corefile"])
        ready = ("wait", "--for=condition=Ready", f"node/{configuration.NODE}", "--timeout=1s")
        self._processes.wait("the node", lambda: self._answers(*ready))
        account = ("get", "serviceaccount", "default", "--namespace=default")
        self._processes.wait("the default service account", lambda: self._answers(*account))
        (self.run / "ready").touch()

    def restart(self, name: str) -> None:
        """Stop a part and start it again, and wait until the API server answers."""
        self._processes.restart(name)
        self._processes.wait("kube-apiserver", lambda: self._answers("get", "--raw", "/readyz"))

    def load(self, archive: Path) -> list[str]:
        """Import the images of a docker- or oci-archive; returns the references that pods can name from now on."""
        references = references_in(archive)
        imported = self._ctr("images", "import", str(archive))
        if imported.returncode:
            raise Refusal(f"{archive} was not imported: {imported.stderr.strip()}")
        return references

    def down(self) -> None:
        """Stop what `up` started and remove what it left: processes, containers, mounts, bridge, rules, `run/`."""
        if not self.run.exists():
            return
        self._processes.stop("kubelet")
        if self._processes.alive().get("containerd"):
            self._end_containers()
        for name in _LAST_FIRST:
            self._processes.stop(name)
        end_programs_with(str(configuration.socket(self.run)), "containerd-shim-runc-v2")
        self._unmount()
        self._remove_network()
        self._remove_traces()
        shutil.rmtree(self.run)

    def _refuse_a_taken_place(self) -> None:
        if Path(f"/sys/class/net/{configuration.BRIDGE}").exists():
            raise Refusal(
                f"there is a network bridge {configuration.BRIDGE} already: a cluster is up whose directory is not "
                f"{self.directory}; stop that one first (cluster --directory DIR down)"
            )
        for port, owner in configuration.PORTS.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    raise Refusal(
                        f"port {port} of this machine is taken, and {owner} needs it; stop what listens there "
                        f"(ss -ltnp 'sport = :{port}'), perhaps another Kubernetes"
                    ) from None
        if len(str(self.run)) > 60:  # a socket's whole path may have 107 characters, and the kubelet's are long
            raise Refusal(f"{self.run} is too long a path for the sockets below it; name another with --directory")

    def _write_files(self, family: str) -> None:
        run, pki = self.run, self.run / "pki"
        run.mkdir()
        (run / "family").write_text(family)
        addresses = self.addresses
        write_certificates(pki, node=configuration.NODE, host=addresses.host, api_service=addresses.api_service)
        for name in ("logs", "processes", "cni", "volumes"):
            (run / name).mkdir()
        for user in USERS:
            (run / f"{user}.kubeconfig").write_text(kubeconfig(user, pki, addresses.api))
            (run / f"{user}.kubeconfig").chmod(0o600)
        cgroup_v1 = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
        (run / "audit-policy.json").write_text(configuration.audit_policy())
        (run / "kubelet.json").write_text(configuration.kubelet_configuration(run, addresses, cgroup_v1=cgroup_v1))
        (run / "containerd.toml").write_text(configuration.containerd_configuration(run))
        (run / "cni" / "10-pods.conflist").write_text(configuration.network(run, addresses))
        (run / "Corefile").write_text(configuration.corefile(run, addresses))
        if not os.path.lexists(configuration.HOST_PATH_VOLUMES):
            configuration.HOST_PATH_VOLUMES.symlink_to(run / "volumes")

    def _make_network(self) -> None:
        if not _BRIDGE_NETFILTER.exists():
            subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
        if not _BRIDGE_NETFILTER.exists():
            raise Refusal("this kernel has no br_netfilter, and Services need it: modprobe br_netfilter found nothing")
        addresses, bridge = self.addresses, configuration.BRIDGE
        (_BRIDGE_NETFILTER / f"bridge-nf-call-{addresses.firewall}").write_text("1")
        Path("/proc/sys/net", addresses.forwarding).write_text("1")
        _must("ip", "link", "add", bridge, "type", "bridge")
        # Nobody else is asked whether an IPv6 address is free: it could not be listened on until nobody answered.
        nodad = ["nodad"] if self.family == "ipv6" else []
        _must("ip", "addr", "add", f"{addresses.host}/{addresses.prefix_bits}", "dev", bridge, *nodad)
        _must("ip", "link", "set", bridge, "up")
        for chain, *rule in configuration.FIREWALL:
            _must(addresses.firewall, "--wait", "-I", chain, *rule, "-j", "ACCEPT")

    def _remove_network(self) -> None:
        for chain, *rule in configuration.FIREWALL:
            _try(self.addresses.firewall, "--wait", "-D", chain, *rule, "-j", "ACCEPT")
        if self.binaries.complete:
            _try(str(self.binaries["kube-proxy"]), "--cleanup")
        for program in ("iptables", "ip6tables"):  # the one chain that kube-proxy's own cleaning forgets
            for chain in ("INPUT", "OUTPUT"):
                _try(program, "--wait", "-D", chain, "-j", "KUBE-FIREWALL")
            _try(program, "--wait", "-F", "KUBE-FIREWALL")
            _try(program, "--wait", "-X", "KUBE-FIREWALL")
        _try("ip", "link", "del", configuration.BRIDGE)

    def _remove_traces(self) -> None:
        """What the parts leave in places that are not ours to choose."""
        volumes = configuration.HOST_PATH_VOLUMES
        if volumes.is_symlink() and volumes.readlink() == self.run / "volumes":
            volumes.unlink()
        for result in Path("/var/lib/cni/results").glob("*"):
            if f"{self.run}/" in result.read_text(errors="replace"):
                result.unlink(missing_ok=True)
        for group in sorted(Path("/sys/fs/cgroup").glob("**/kubepods/**/"), reverse=True):
            with suppress(OSError):  # a group with a process in it stays
                group.rmdir()

    def _start(self, name: str, program: str, arguments: list[str]) -> None:
        path = f"{self.binaries.path}:{_SYSTEM_PATH}"
        self._processes.start(name, self.binaries[program], *arguments, path=path)

    def _answers(self, *arguments: str) -> bool:
        return self.kubectl(*arguments).returncode == 0

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        address = str(configuration.socket(self.run))
        command = [str(self.binaries["ctr"]), "--address", address, "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _import_pause(self) -> None:
        archive = self.run / "pause.tar"
        archive.write_bytes(_image_of_one_program(self.binaries["pause"], configuration.PAUSE_IMAGE))
        self.load(archive)

    def _end_containers(self) -> None:
        tasks = self._ctr("tasks", "list", "--quiet").stdout.split()
        for task in tasks:
            self._ctr("tasks", "kill", "--signal", "SIGKILL", task)
        for task in tasks:
            self._ctr("tasks", "delete", "--force", task)

    def _unmount(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self.run}/")), reverse=True):
            _try("umount", "--lazy", mount)


def references_in(archive: Path) -> list[str]:
    """The names that a docker- or oci-archive gives to its images; refused if it gives none."""
    try:
        with tarfile.open(archive) as contents:
            names = contents.getnames()
            if "manifest.json" in names:
                images = _json_of(contents, "manifest.json")
                references = [name for image in images for name in image.get("RepoTags") or ()]
            elif "index.json" in names:
                annotations = [image.get("annotations", {}) for image in _json_of(contents, "index.json")["manifests"]]
                references = [found[_OCI_NAME] for found in annotations if _OCI_NAME in found]
            else:
                raise Refusal(f"{archive} is no docker-archive and no oci-archive")
    except (OSError, tarfile.TarError, ValueError) as exc:
        raise Refusal(f"{archive} cannot be read as an image archive: {exc}") from exc
    if not references:
        raise Refusal(f"{archive} does not name its image; write it with: buildah push IMAGE docker-archive:FILE:IMAGE")
    return references


def _json_of(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file")
    return json.loads(member.read())


def _image_of_one_program(program: Path, reference: str) -> bytes:
    """A docker archive with one layer, which is one static program."""
    layer = _tar({program.name: (program.read_bytes(), 0o755)})
    layer_id = hashlib.sha256(layer).hexdigest()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": [f"{layer_id}.tar"]}]).encode()
    return _tar(
        {config_name: (config, 0o644), f"{layer_id}.tar": (layer, 0o644), "manifest.json": (manifest, 0o644)},
    )


def _tar(members: dict[str, tuple[bytes, int]]) -> bytes:
    """An archive of contents and modes by name."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, (content, mode) in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


def _try(*command: str) -> None:
    """Remove something that may be gone already."""
    subprocess.run(command, capture_output=True, check=False)
