"""The cluster tool, as far as it can be known without a cluster."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tests.cluster import configuration
from tests.cluster.addresses import FAMILIES, Addresses
from tests.cluster.binaries import HERE, MODULES, Binaries, key
from tests.cluster.certificates import kubeconfig
from tests.cluster.command import default_directory, why_not
from tests.cluster.evidence import refused
from tests.cluster.node import references_in
from tests.cluster.processes import Processes
from tests.cluster.refusal import Refusal

COMMAND = HERE / "cluster"
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A copy of what the programs are built from."""
    for name in MODULES:
        shutil.copytree(HERE / name, tmp_path / "modules" / name)
    return tmp_path / "modules"


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    for name in ("records", "logs"):
        (tmp_path / name).mkdir()
    return Processes(tmp_path / "records", tmp_path / "logs")


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, COMMAND, *arguments]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_help_names_every_command() -> None:
    told = run("--help")
    assert told.returncode == 0
    for command in ("build", "up", "status", "env", "load", "refused", "logs", "down"):
        assert f"    {command} " in told.stdout


def test_the_scripts_are_executable_and_have_no_syntax_error() -> None:
    ast.parse(COMMAND.read_text())
    subprocess.run(["bash", "-n", HERE / "base-image"], check=True)
    assert os.access(COMMAND, os.X_OK)
    assert os.access(HERE / "base-image", os.X_OK)


@pytest.mark.parametrize(
    ("command", "machine", "sentence"),
    [
        ("up", {"system": "Darwin"}, "needs Linux, and this is Darwin; the end-to-end tests also run on any other"),
        ("build", {"system": "Darwin"}, "needs Linux, and this is Darwin; the end-to-end tests also run on any other"),
        ("up", {"is_root": False}, "`up` needs root, for containers, mounts and a network bridge; run: sudo "),
        ("up", {"missing": {"runc", "iptables"}}, "on Debian and Ubuntu: apt-get install iptables runc"),
    ],
)
def test_a_machine_that_cannot_is_told_why(command: str, machine: dict[str, object], sentence: str) -> None:
    able: dict[str, object] = {"system": "Linux", "is_root": True, "missing": set()}
    assert sentence in (why_not(command, **(able | machine)) or "")  # type: ignore[arg-type]
    assert why_not(command, **able) is None  # type: ignore[arg-type]


def test_building_needs_neither_root_nor_packages() -> None:
    assert why_not("build", system="Linux", is_root=False, missing={"runc"}) is None


def test_a_cluster_can_be_stopped_after_its_packages_were_removed() -> None:
    assert why_not("down", system="Linux", is_root=True, missing={"runc"}) is None


def test_without_go_the_build_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"go is missing.*https://go.dev/doc/install"):
        Binaries(tmp_path).build(path="/nowhere")


def test_everything_is_in_the_cache_directory_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/tinybird-proxy-cluster")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_directory() == Path.home() / ".cache" / "tinybird-proxy-cluster"


@pytest.mark.parametrize("file", ["go.mod", "go.sum"])
@pytest.mark.parametrize("changed", MODULES)
def test_a_changed_module_is_built_again_and_the_others_are_not(modules: Path, changed: str, file: str) -> None:
    before = {name: key(modules / name) for name in MODULES}
    with (modules / changed / file).open("a") as target:
        target.write("\n")
    assert {name for name in MODULES if key(modules / name) != before[name]} == {changed}


def test_an_unchanged_module_has_the_same_key_in_another_checkout(modules: Path) -> None:
    assert {name: key(modules / name) for name in MODULES} == {name: key(HERE / name) for name in MODULES}


def test_a_build_that_was_broken_off_does_not_count(tmp_path: Path, modules: Path) -> None:
    for name in MODULES:
        (tmp_path / f"{name}-{key(modules / name)}.partial").mkdir()
    assert not Binaries(tmp_path, modules).complete
    for name in MODULES:
        (tmp_path / f"{name}-{key(modules / name)}.partial").rename(tmp_path / f"{name}-{key(modules / name)}")
    assert Binaries(tmp_path, modules).complete


def test_a_program_that_is_not_built_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="kubectl is not built yet; run: cluster build"):
        Binaries(tmp_path)["kubectl"]


@pytest.mark.parametrize("name", MODULES)
def test_every_program_of_a_module_is_pinned_by_hash(name: str) -> None:
    sums = (HERE / name / "go.sum").read_text()
    mod = (HERE / name / "go.mod").read_text()
    required = [
        line.split()[:2] for line in mod.splitlines() if line.startswith("\t") and " v" in line and "=>" not in line
    ]
    replaced = {line.split()[0] for line in mod.splitlines() if line.startswith("\t") and "=>" in line}
    assert required
    for module, version in required:
        assert module in replaced or f"{module} {version}" in sums


def test_env_can_be_evaluated_by_a_shell(tmp_path: Path) -> None:
    directory = tmp_path / "with space"
    script = f'eval "$({sys.executable} {COMMAND} --directory "{directory}" env)"; echo "$KUBECONFIG"; echo "$PATH"'
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    kubeconfig, path = told.stdout.splitlines()
    assert kubeconfig == f"{directory}/run/admin.kubeconfig"
    assert path == f"{Binaries(directory / 'builds').path}:{os.environ['PATH']}"


def test_a_process_is_stopped_by_its_id(processes: Processes) -> None:
    processes.start("sleeper", "sleep", "60", path=os.environ["PATH"])
    assert processes.alive() == {"sleeper": True}
    processes.stop("sleeper")
    assert processes.alive() == {}


def test_a_process_is_started_anew_as_it_was_started(processes: Processes) -> None:
    processes.start("sleep", "sleep", "60", path=os.environ["PATH"])
    first = processes._pid("sleep")
    processes.restart("sleep")
    try:
        assert processes.alive() == {"sleep": True}
        assert processes._pid("sleep") not in (None, first)
    finally:
        processes.stop("sleep")
    with pytest.raises(Refusal, match="there is no part etcd that runs; these do: none"):
        processes.restart("etcd")


def test_a_process_that_has_the_id_of_ours_by_now_is_left_alone(processes: Processes, tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        processes.start("sleeper", "true", path=os.environ["PATH"])
        record = json.loads((tmp_path / "records" / "sleeper").read_text())
        (tmp_path / "records" / "sleeper").write_text(json.dumps(record | {"pid": stranger.pid, "started": "1"}))
        assert processes.alive() == {"sleeper": False}
        processes.stop("sleeper")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_part_that_ends_is_named_with_the_end_of_its_log(processes: Processes) -> None:
    processes.start("part", "sh", "-c", "echo the port is taken; exit 1", path=os.environ["PATH"])
    with pytest.raises(Refusal, match=r"part ended; the end of .*/part\.log:\nthe port is taken"):
        processes.wait("the part", lambda: False, seconds=10)
    processes.stop("part")


def test_a_process_that_ended_before_it_could_be_looked_at_is_not_taken_for_alive(
    processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "records" / "part").write_text(json.dumps({"pid": 2**22 + 1, "started": None, "boot": BOOT}))
    assert processes.alive() == {"part": False}


REFERENCE = "ghcr.io/tinybird-proxy/tinybird-proxy:0.1.0"
OCI_INDEX = {"manifests": [{"annotations": {"org.opencontainers.image.ref.name": REFERENCE}}]}


@pytest.mark.parametrize(
    ("file", "content"),
    [("manifest.json", [{"RepoTags": [REFERENCE]}]), ("index.json", OCI_INDEX)],
    ids=["docker-archive", "oci-archive"],
)
def test_an_archive_tells_the_reference_that_pods_can_name(tmp_path: Path, file: str, content: object) -> None:
    assert references_in(archive(tmp_path, file, json.dumps(content))) == [REFERENCE]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("manifest.json", '[{"RepoTags": null}]', "does not name its image; write it with: buildah push"),
        ("index.json", '{"manifests": [{}]}', "does not name its image; write it with: buildah push"),
        ("etc/passwd", "", "is no docker-archive and no oci-archive"),
        ("manifest.json", "{", "cannot be read as an image archive"),
    ],
)
def test_an_archive_that_cannot_be_loaded_is_refused(tmp_path: Path, file: str, content: str, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        references_in(archive(tmp_path, file, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot be read as an image archive: .*No such file"):
        references_in(tmp_path / "image.tar")


def archive(directory: Path, name: str, content: str) -> Path:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    with tarfile.open(directory / "image.tar", "w") as target:
        target.addfile(member, io.BytesIO(content.encode()))
    return directory / "image.tar"


def test_the_audit_log_tells_who_was_refused(tmp_path: Path) -> None:
    def entry(user: str, code: int) -> str:
        return json.dumps(
            {
                "verb": "list",
                "requestURI": "/api/v1/secrets",
                "user": {"username": user},
                "responseStatus": {"code": code, "message": "secrets is forbidden"},
                "requestReceivedTimestamp": "2026-01-01T00:00:00Z",
            }
        )

    lines = [entry("system:serviceaccount:a:operator", 403), entry("b", 200), entry("c", 403), '{"verb": "li']
    (tmp_path / "audit.log").write_text("\n".join(lines))
    assert [entry.user for entry in refused(tmp_path / "audit.log")] == ["system:serviceaccount:a:operator", "c"]
    assert [str(entry) for entry in refused(tmp_path / "audit.log", "operator")] == [
        "2026-01-01T00:00:00Z system:serviceaccount:a:operator: list /api/v1/secrets: secrets is forbidden"
    ]


def test_the_audit_policy_leaves_out_nobody_but_the_parts_of_the_cluster() -> None:
    *left_out, last = json.loads(configuration.audit_policy())["rules"]
    assert last == {"level": "Metadata"}
    assert all(rule["level"] == "None" for rule in left_out)
    groups = {group for rule in left_out for group in rule.get("userGroups", ())}
    assert groups == {"system:nodes", "system:serviceaccounts:kube-system"}


def test_the_paths_of_sockets_fit_below_the_default_directory() -> None:
    run_directory = Path("/home/somebody/.cache/tinybird-proxy-cluster/run")
    assert len(str(configuration.socket(run_directory)).encode()) < 108


@pytest.mark.parametrize(("family", "other"), [("ipv4", "ipv6"), ("ipv6", "ipv4")])
def test_no_part_is_told_an_address_of_the_other_family(family: str, other: str, tmp_path: Path) -> None:
    addresses = FAMILIES[family]
    told = [
        *configuration.api_server(tmp_path, addresses),
        *configuration.kubelet(tmp_path, addresses),
        *configuration.kube_proxy(tmp_path, addresses),
        configuration.kubelet_configuration(tmp_path, addresses, cgroup_v1=False),
        configuration.network(tmp_path, addresses),
        configuration.corefile(tmp_path, addresses),
        kubeconfig("admin", tmp_path, addresses.api),
    ]
    start = {"ipv4": "198.1", "ipv6": "fd74:"}
    assert [line for line in told if start[other] in line] == []


@pytest.mark.parametrize("addresses", FAMILIES.values(), ids=FAMILIES)
def test_node_pods_and_services_are_within_the_range_that_pods_have_a_route_to(addresses: Addresses) -> None:
    routed = ip_network(addresses.range)
    for part in (addresses.host, addresses.api_service, addresses.pods, addresses.first_pod, addresses.services):
        assert ip_network(part).subnet_of(routed)  # type: ignore[arg-type] # of one family, or it raises
    # The first address of the pods' network is their gateway, the node; the first of the Services' is the API's.
    assert ip_network(addresses.pods)[1] == ip_address(addresses.host)
    assert ip_network(addresses.services)[1] == ip_address(addresses.api_service)
    assert ip_network(addresses.pods).prefixlen == addresses.prefix_bits
