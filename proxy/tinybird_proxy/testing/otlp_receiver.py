"""An OTLP/HTTP collector that keeps spans and shows them: ``python -m tinybird_proxy.testing.otlp_receiver --port 0``.

It runs in a process of its own and prints its port as the first line.

    POST /v1/traces   protobuf, plain, gzip or deflate
    GET  /spans       the spans as JSON, oldest first; with ?count=N it answers once there are N, or after 10 s
    GET  /requests    the header lines of each POST, names in lower case

A span is a plain dict: ``name``, ``kind`` (CLIENT, INTERNAL, …), ``trace_id``, ``span_id``, ``parent_id`` ("" at the
root), ``start_ns``, ``end_ns``, ``attributes``, ``links`` (of ``trace_id`` and ``span_id``), ``dropped_links``,
``status`` (``code`` and ``message``) and ``resource`` (its attributes). Ids are hexadecimal, in lower case.
"""

import argparse
import gzip
import json
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

SPANS_KEPT: Final = 100_000
WAIT_S: Final = 10.0


class _Received:
    """What has arrived so far; threads of the server share it."""

    def __init__(self) -> None:
        self._spans: deque[dict[str, Any]] = deque(maxlen=SPANS_KEPT)
        self._requests: deque[dict[str, str]] = deque(maxlen=SPANS_KEPT)
        self._arrived = threading.Condition()

    def add(self, spans: Iterable[dict[str, Any]], headers: dict[str, str]) -> None:
        with self._arrived:
            self._spans.extend(spans)
            self._requests.append(headers)
            self._arrived.notify_all()

    def spans(self, count: int) -> list[dict[str, Any]]:
        """All spans, once there are ``count`` of them or ``WAIT_S`` have passed."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._spans) >= count, WAIT_S)
            return list(self._spans)

    def requests(self) -> list[dict[str, str]]:
        with self._arrived:
            return list(self._requests)


class OtlpReceiver(ThreadingHTTPServer):
    """The collector. ``server_port`` is the port it listens on."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.received = _Received()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OtlpReceiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if urlsplit(self.path).path != "/v1/traces":
            self._answer(404, b"", "text/plain")
            return
        request = ExportTraceServiceRequest()
        try:
            request.ParseFromString(_inflate(body, self.headers.get("Content-Encoding", "")))
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises, the sender is to blame
            self._answer(400, str(error).encode(), "text/plain")
            return
        self.server.received.add(_spans(request), {name.lower(): value for name, value in self.headers.items()})
        self._answer(200, ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        if target.path == "/spans":
            count = int(parse_qs(target.query).get("count", ["0"])[0])
            self._answer(200, json.dumps(self.server.received.spans(count)).encode(), "application/json")
        elif target.path == "/requests":
            self._answer(200, json.dumps(self.server.received.requests()).encode(), "application/json")
        else:
            self._answer(404, b"", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:
        """Its only output is the port."""

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _inflate(body: bytes, encoding: str) -> bytes:
    match encoding.lower():
        case "" | "identity":
            return body
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
    raise ValueError(f"Content-Encoding {encoding!r} is not known here")


def _spans(request: ExportTraceServiceRequest) -> Iterator[dict[str, Any]]:
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, resource)


def _span(span: Span, resource: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "start_ns": span.start_time_unix_nano,
        "end_ns": span.end_time_unix_nano,
        "attributes": _attributes(span.attributes),
        "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
        "dropped_links": span.dropped_links_count,
        "status": {
            "code": Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
            "message": span.status.message,
        },
        "resource": resource,
    }


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(element) for element in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case kind:
            return getattr(value, kind)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="An OTLP/HTTP collector for tests.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    with OtlpReceiver(parser.parse_args().port) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
