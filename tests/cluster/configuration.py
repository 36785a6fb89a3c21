"""Every file and command line of the cluster, as values: what the parts are told, and nothing that acts.

Every port is on the node's own address or on loopback.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.cluster.addresses import Addresses

NODE: Final = "node1"
BRIDGE: Final = "tbp-cluster0"
PAUSE_IMAGE: Final = "localhost/pause:1"
CNI_PROGRAMS: Final = Path("/usr/lib/cni")
# Where kube-controller-manager's provisioner puts its volumes; it cannot be told otherwise.
HOST_PATH_VOLUMES: Final = Path("/tmp/hostpath_pv")  # noqa: S108

_ETCD: Final = "http://127.0.0.1:12379"
_ETCD_PEER: Final = "http://127.0.0.1:12380"

# On loopback, apart from the node's own: 6443 and the kubelet's 10250.
PORTS: Final = {12379: "etcd", 12380: "etcd", 10248: "kubelet", 10249: "kube-proxy", 10256: "kube-proxy"} | {
    10257: "kube-controller-manager",
    10259: "kube-scheduler",
}

# Accepted whatever else the machine's firewall says (Docker, for one, sets FORWARD to DROP).
FIREWALL: Final = (("FORWARD", "-i", BRIDGE, "-o", BRIDGE), ("INPUT", "-i", BRIDGE))


def etcd(run: Path) -> list[str]:
    return [
        f"--data-dir={run}/etcd",
        "--unsafe-no-fsync",  # state that nobody needs after a power cut
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEER}",
        f"--initial-advertise-peer-urls={_ETCD_PEER}",
        f"--initial-cluster=default={_ETCD_PEER}",
    ]


def audit_policy() -> str:
    """Who asked for what and what was answered, without bodies; not what the cluster's own parts do all day.

    A policy cannot select by the answer: everything of everyone else is recorded, so that a 403 certainly is.
    """
    parts = ["system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy", "system:apiserver"]
    return json.dumps(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
                {"level": "None", "users": [*parts, "coredns"]},
                {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]},
                {"level": "Metadata"},
            ],
        }
    )


def api_server(run: Path, addresses: Addresses) -> list[str]:
    pki = run / "pki"
    return [
        f"--etcd-servers={_ETCD}",
        f"--bind-address={addresses.host}",
        f"--advertise-address={addresses.host}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={addresses.services}",
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--audit-policy-file={run}/audit-policy.json",
        f"--audit-log-path={run}/logs/audit.log",
        "--audit-log-maxsize=10000",  # MB; one file, so that a reader misses nothing
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/service-accounts.pub",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        # The aggregation layer: how an API server behind this one knows who asks.
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front-proxy.crt",
        f"--proxy-client-key-file={pki}/front-proxy.key",
    ]


def controller_manager(run: Path) -> list[str]:
    pki = run / "pki"
    return [
        *_controller(run, "controller-manager"),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--enable-hostpath-provisioner=true",
        # A HorizontalPodAutoscaler acts within seconds, so that a test can wait for it.
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=5s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=0s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=0s",
    ]


def scheduler(run: Path) -> list[str]:
    return _controller(run, "scheduler")


def _controller(run: Path, user: str) -> list[str]:
    config = f"{run}/{user}.kubeconfig"
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]


def kube_proxy(run: Path, addresses: Addresses) -> list[str]:
    return [
        f"--kubeconfig={run}/proxy.kubeconfig",
        "--proxy-mode=iptables",
        f"--hostname-override={NODE}",
        f"--cluster-cidr={addresses.pods}",
        # The machine's own limits stay as they are.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--metrics-bind-address=127.0.0.1:10249",
        "--healthz-bind-address=127.0.0.1:10256",
    ]


def kubelet(run: Path, addresses: Addresses) -> list[str]:
    return [
        f"--config={run}/kubelet.json",
        f"--kubeconfig={run}/kubelet.kubeconfig",
        f"--root-dir={run}/kubelet",
        f"--cert-dir={run}/kubelet-pki",
        f"--hostname-override={NODE}",
        f"--node-ip={addresses.host}",
    ]


def kubelet_configuration(run: Path, addresses: Addresses, *, cgroup_v1: bool) -> str:
    pki = run / "pki"
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": addresses.host,
            "authentication": {
                "x509": {"clientCAFile": f"{pki}/ca.crt"},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{pki}/kubelet.crt",
            "tlsPrivateKeyFile": f"{pki}/kubelet.key",
            "containerRuntimeEndpoint": f"unix://{socket(run)}",
            "clusterDNS": [addresses.host],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "podLogsDir": str(pod_logs(run)),
            "volumePluginDir": f"{run}/volume-plugins",
            "maxPods": 100,
            # A changed Secret is in its pods within seconds.
            "syncFrequency": "5s",
            "nodeStatusUpdateFrequency": "2s",
            # The machine is not the cluster's alone: firewall, old kernels, swap and a full disk are not its business.
            "makeIPTablesUtilChains": False,
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": not cgroup_v1,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "oomScoreAdj": 0,
            "localStorageCapacityIsolation": False,
            "imageMaximumGCAge": "0s",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi"},
        }
    )


def containerd_configuration(run: Path) -> str:
    return f"""version = 3
root = "{run}/containerd/root"
state = "{run}/containerd/state"
[grpc]
  address = "{socket(run)}"
[ttrpc]
  address = "{socket(run)}.ttrpc"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{CNI_PROGRAMS}"]
    conf_dir = "{run}/cni"
"""


def socket(run: Path) -> Path:
    return run / "containerd.sock"


def pod_logs(run: Path) -> Path:
    return run / "pod-logs"


def network(run: Path, addresses: Addresses) -> str:
    ipam: Mapping[str, Any] = {
        "type": "host-local",
        "dataDir": str(run / "addresses"),
        "ranges": [[{"subnet": addresses.pods, "rangeStart": addresses.first_pod}]],
        "routes": [{"dst": addresses.range}],
    }
    plugins: Sequence[Mapping[str, Any]] = [
        {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})


def corefile(run: Path, addresses: Addresses) -> str:
    return f""".:53 {{
  bind {addresses.host}
  errors
  kubernetes cluster.local {{
    kubeconfig {run}/coredns.kubeconfig tinybird-proxy-cluster
    pods insecure
    ttl 1
  }}
}}
"""


FIRST_OBJECTS: Final = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: coredns}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/host-path
"""
