"""A review, as the API server asks for it, and the answer. Pure.

Nothing of what comes is believed: what injection reads of a pod has the types of a pod's fields, or there is no pod.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tinybird_proxy_operator.sidecars.injection import Operation

API_VERSION: Final = "admission.k8s.io/v1"
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_POD_CREATE: Final = ("", "v1", "Pod", "", "CREATE")
Document = dict[str, Any]


class NotAReview(ValueError):
    """What came is no review of a pod. Says where, and nothing of what was there."""


@dataclass(frozen=True, slots=True)
class Review:
    """One pod that is to be made, or, if ``is_of_a_pod`` is false, something else that nobody should ask about.

    The pod itself stays as it came until it is needed: made to be bad, it takes thirty times as much when it is read.
    """

    uid: str
    namespace: str
    is_of_a_pod: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    encoded_pod: bytes | memoryview = b""

    def pod(self) -> Document:
        """The pod. Raises ``NotAReview``."""
        try:
            found: Document = msgspec.json.decode(self.encoded_pod)
        except RecursionError as error:
            raise NotAReview("is no JSON that can be read") from error
        return found


class _Named(msgspec.Struct):
    name: str


class _Variable(_Named):
    value: str | None = None


class _Port(msgspec.Struct):
    containerPort: int
    protocol: str = ""


class _Resources(msgspec.Struct):
    limits: dict[str, str | int | float] | None = None
    requests: dict[str, str | int | float] | None = None


class _Container(msgspec.Struct):
    name: str
    restartPolicy: str | None = None
    ports: list[_Port] | None = None
    env: list[_Variable] | None = None
    resources: _Resources | None = None


class _Spec(msgspec.Struct):
    containers: list[_Container]
    initContainers: list[_Container] | None = None
    volumes: list[_Named] | None = None
    hostNetwork: bool | None = None
    os: _Named | None = None
    nodeSelector: dict[str, str] | None = None
    resources: _Resources | None = None
    terminationGracePeriodSeconds: int | None = None


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec


class _Kind(msgspec.Struct):
    group: str
    version: str
    kind: str


class _Request(msgspec.Struct):
    uid: str
    kind: _Kind
    operation: str
    object: msgspec.Raw = msgspec.Raw(b"null")
    namespace: str = ""
    subResource: str = ""


class _Asked(msgspec.Struct):
    apiVersion: str
    kind: str
    request: _Request


def read(body: bytes) -> Review:
    """The review in a request's body. Raises ``NotAReview``."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
        request, kind = asked.request, asked.request.kind
        if (asked.apiVersion, asked.kind) != (API_VERSION, "AdmissionReview"):
            raise NotAReview(f"must be an AdmissionReview of {API_VERSION}")
        if (kind.group, kind.version, kind.kind, request.subResource, request.operation) != _POD_CREATE:
            return Review(request.uid, request.namespace)
        if not _NAMESPACE.fullmatch(request.namespace):
            raise NotAReview("request.namespace: must be a namespace's name")
        pod = msgspec.json.decode(request.object, type=_Pod)
    except msgspec.DecodeError as error:  # with the path of what is wrong
        raise NotAReview(str(error)) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise NotAReview("is no JSON that can be read") from error
    labels = pod.metadata.labels or {}
    return Review(request.uid, request.namespace, True, labels, memoryview(request.object))


def answer(uid: str, operations: Sequence[Operation], warning: str | None) -> Document:
    """Always allowed: who wants pods without a sidecar refused has the chart's ValidatingAdmissionPolicy do that.

    ``kubectl`` shows the warning to whoever makes the pod.
    """
    response: Document = {"uid": uid, "allowed": True}
    if operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(operations)).decode()
    if warning is not None:
        response["warnings"] = [warning]
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
