"""Who is who in the cluster: two authorities, a certificate for each part, a key for service account tokens."""

import json
import subprocess
from pathlib import Path
from typing import Final

_USERS: Final = {  # file name: subject; the names are the ones that Kubernetes' own roles are bound to
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=coredns",
}
USERS: Final = (*_USERS, "kubelet")

_SERVICE_NAMES: Final = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_DAYS: Final = "365"
_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def write_certificates(pki: Path, *, node: str, host: str, api_service: str) -> None:
    """Write every key and certificate into `pki`, which must not exist. About a second."""
    pki.mkdir(mode=0o700, parents=True)
    for authority in ("ca", "front-proxy-ca"):
        key, crt = pki / f"{authority}.key", pki / f"{authority}.crt"
        subject = ("-subj", f"/CN={authority}", "-days", _DAYS)
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", crt, *subject)
    api_names = [*(f"DNS:{name}" for name in _SERVICE_NAMES), f"IP:{host}", "IP:127.0.0.1", f"IP:{api_service}"]
    _certificate(pki, "apiserver", "/CN=kube-apiserver", names=api_names)
    _certificate(pki, "kubelet", f"/O=system:nodes/CN=system:node:{node}", names=[f"DNS:{node}", f"IP:{host}"])
    _certificate(pki, "front-proxy", "/CN=front-proxy", authority="front-proxy-ca")
    for user, subject_name in _USERS.items():
        _certificate(pki, user, subject_name)
    _openssl("genrsa", "-out", pki / "service-accounts.key", "2048")
    _openssl("rsa", "-in", pki / "service-accounts.key", "-pubout", "-out", pki / "service-accounts.pub")


def kubeconfig(user: str, pki: Path, server: str) -> str:
    """The configuration of a client that is `user`; YAML is a superset of this JSON."""
    credentials = {"client-certificate": str(pki / f"{user}.crt"), "client-key": str(pki / f"{user}.key")}
    cluster = {"server": server, "certificate-authority": str(pki / "ca.crt")}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tinybird-proxy-cluster",
            "clusters": [{"name": "tinybird-proxy-cluster", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [
                {"name": "tinybird-proxy-cluster", "context": {"cluster": "tinybird-proxy-cluster", "user": user}}
            ],
        }
    )


def _certificate(pki: Path, name: str, subject: str, *, authority: str = "ca", names: list[str] | None = None) -> None:
    lines = ["keyUsage=digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"]
    lines += [f"subjectAltName={','.join(names)}"] if names else []
    extensions, request = pki / f"{name}.ext", pki / f"{name}.csr"
    extensions.write_text("\n".join(lines) + "\n")
    _openssl("req", *_NEW_KEY, "-keyout", pki / f"{name}.key", "-out", request, "-subj", subject)
    signed_by = ("-CA", pki / f"{authority}.crt", "-CAkey", pki / f"{authority}.key", "-CAcreateserial")
    result = ("-days", _DAYS, "-out", pki / f"{name}.crt", "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *signed_by, *result)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
