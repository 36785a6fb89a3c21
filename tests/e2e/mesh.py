"""A service mesh's injector, as Istio's is: a webhook, asked after our policies, and after our webhook by its name.

It runs in the test's own process, where only the API server of tests/cluster finds it.
"""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml
from tests.e2e.kubectl import Namespace, run
from tests.operator.injection_pods import Pod, native

SIDECAR: Final = "istio-proxy"
_HOST: Final = "127.0.0.1"


@contextmanager
def mesh(namespace: Namespace, directory: Path, *, first: bool) -> Iterator[list[list[str]]]:
    """Every pod in the namespace gets the mesh's native sidecar, before all init containers or after them.

    In the list: for each time that it was asked, the init containers that there were.
    """
    key, certificate = directory / "mesh.key", directory / "mesh.crt"
    made = ("-newkey", "rsa:2048", "-noenc", "-keyout", key, "-out", certificate, "-days", "2")
    run("openssl", "req", "-x509", *made, "-subj", f"/CN={_HOST}", "-addext", f"subjectAltName=IP:{_HOST}")
    asked: list[list[str]] = []

    class Injector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            init = [each["name"] for each in request["object"]["spec"].get("initContainers", [])]
            asked.append(init)
            patch = json.dumps(_patch(init, first=first)).encode()
            response = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch"}
            review = {"response": {**response, "patch": base64.b64encode(patch).decode()}}
            body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", **review}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer((_HOST, 0), Injector) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        name = f"zz-mesh-{namespace.name}"
        bundle = base64.b64encode(certificate.read_bytes()).decode()
        try:
            configuration = _configuration(name, namespace, f"https://{_HOST}:{server.server_port}/", bundle)
            run("kubectl", "apply", "--filename=-", stdin=yaml.safe_dump(configuration))
            yield asked
        finally:
            run("kubectl", "delete", "mutatingwebhookconfiguration", name, "--ignore-not-found")
            server.shutdown()
            thread.join()


def _patch(init: list[str], *, first: bool) -> list[dict[str, Any]]:
    if SIDECAR in init:
        return []
    if not init:
        return [{"op": "add", "path": "/spec/initContainers", "value": [native(SIDECAR)]}]
    return [{"op": "add", "path": f"/spec/initContainers/{0 if first else '-'}", "value": native(SIDECAR)}]


def _configuration(name: str, namespace: Namespace, url: str, bundle: str) -> Pod:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "mesh.example.com",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": url, "caBundle": bundle},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "sideEffects": "None",
                "timeoutSeconds": 5,
            }
        ],
    }
