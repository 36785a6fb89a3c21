"""The tracer behind ``telemetry.tracing``: spans by the OpenTelemetry SDK, exported over OTLP/HTTP.

The only module that imports OpenTelemetry; imported only when ``otel_env.wants_tracing``. Nothing is made global, and
the SDK reads the standard ``OTEL_*`` variables from the process's environment itself.

**A dead collector harms nothing.** ``flush``, ``attempt`` and ``end`` only append to the SDK's bounded queue; its
daemon thread exports. What does not fit is dropped. ``close`` waits ``CLOSE_TIMEOUT_S`` and then gives up; the SDK
alone would wait half a minute.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_REQUEST_RESEND_COUNT,
    HTTP_RESPONSE_STATUS_CODE,
)
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME, SERVICE_VERSION
from opentelemetry.semconv.attributes.url_attributes import URL_FULL
from opentelemetry.trace import (
    INVALID_SPAN_ID,
    INVALID_TRACE_ID,
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.util.types import Attributes, AttributeValue
from requests import PreparedRequest, Session
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url

from tinybird_proxy.batch import FrozenBatch
from tinybird_proxy.errors import ConfigError, Problem
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.telemetry.tracing import AttemptSpan, FlushSpan, Tracer

DATA_SOURCE: Final = "tinybird_proxy.data_source"
BATCH_ID: Final = "tinybird_proxy.batch.id"
BATCH_ITEMS: Final = "tinybird_proxy.batch.items"
BATCH_ROWS: Final = "tinybird_proxy.batch.rows"
BATCH_BYTES: Final = "tinybird_proxy.batch.bytes"
BATCH_COMPRESSED_BYTES: Final = "tinybird_proxy.batch.compressed_bytes"
BATCH_TRIGGER: Final = "tinybird_proxy.batch.trigger"
OLDEST_ROW_AGE_S: Final = "tinybird_proxy.oldest_row_age_seconds"
LINKS_DROPPED: Final = "tinybird_proxy.links_dropped"
ATTEMPTS: Final = "tinybird_proxy.attempts"
VERDICT: Final = "tinybird_proxy.verdict"

DELIVERED: Final = "delivered"
CLOSE_TIMEOUT_S: Final = 3.0
NOTICE_INTERVAL_S: Final = 60.0

_SERVICE_INSTANCE_ID: Final = "service.instance.id"  # older SDKs have no constant for it
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_PLACEHOLDER: Final = re.compile(r"%(?:\([^)]*\))?[-#0 +]*\d*(?:\.\d+)?[a-zA-Z%]")
_HARMLESS_WORDS: Final = frozenset({"Span", "spans", *(status.phrase for status in HTTPStatus)})

_log = get_logger("tracing")


def make_tracer(
    *,
    instance: str,
    version: str,
    server_address: str,
    server_port: int,
    headers: Callable[[], Mapping[str, str]] | None = None,
) -> Tracer:
    """A tracer as the process's ``OTEL_*`` variables say, with a thread that exports until ``close``.

    ``server_address`` and ``server_port`` are Tinybird's. ``headers``, asked by that thread for each request to the
    collector, come on top of those in the variables, and win. Raises ``ConfigError`` for what the SDK refuses.
    """
    notices = _take_over_sdk_log()
    try:
        limits = SpanLimits()
        provider = TracerProvider(resource=_resource(instance, version), shutdown_on_exit=False, span_limits=limits)
        exporter = OTLPSpanExporter(session=None if headers is None else _session_with(headers))
        processor = _LinkingProcessor(exporter, limits.max_links)
        provider.add_span_processor(processor)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError([Problem("OTEL_*", f"tracing cannot start: {error}")]) from error
    tracer = provider.get_tracer("tinybird_proxy", version)
    server: dict[str, AttributeValue] = {SERVER_ADDRESS: server_address, SERVER_PORT: server_port}
    return _OtlpTracer(tracer, server, processor, _Export(provider, exporter, notices))


def _session_with(headers: Callable[[], Mapping[str, str]]) -> Session:
    session = Session()
    session.auth = _Headers(headers)
    return session


class _Headers(AuthBase):
    """Puts on each request what is asked for then: changed headers need no new exporter."""

    def __init__(self, headers: Callable[[], Mapping[str, str]]) -> None:
        self._headers = headers

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        # Without an auth of a session's, requests does this itself.
        user, password = get_auth_from_url(request.url or "")
        if user or password:
            HTTPBasicAuth(user, password)(request)
        request.headers.update(self._headers())
        return request


def _resource(instance: str, version: str) -> Resource:
    """Who we are. What ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say wins over our own answers."""
    ours = {SERVICE_NAME: "tinybird-proxy", SERVICE_VERSION: version, _SERVICE_INSTANCE_ID: instance}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


class SdkNotices(logging.Handler):
    """Says what the SDK logs in our words: WARNING, one line a minute for each of its loggers, no traceback.

    A collector that is down must not fill the log, and the SDK's arguments may quote headers (with their tokens) or
    a collector's answer: only numbers, HTTP reasons and the types of exceptions are shown.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(logging.WARNING)
        self._now = now
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}
        self._muted = False

    def mute(self) -> None:
        """Say nothing more: we are leaving, and what fails now has been said."""
        self._muted = True

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, or count it."""
        now, source = self._now(), record.name
        last = self._said_at.get(source)
        if self._muted or (last is not None and now - last < NOTICE_INTERVAL_S):
            self._unsaid[source] = self._unsaid.get(source, 0) + 1
            return
        self._said_at[source] = now
        unsaid = self._unsaid.pop(source, 0)
        _log.warning(
            "tracing: %s%s", _without_secrets(record), _raised(record), extra=fields(source=source, unsaid=unsaid)
        )


def _without_secrets(record: logging.LogRecord) -> str:
    if not record.args:
        return str(record.msg)
    shown = iter([_harmless(argument) for argument in record.args] if isinstance(record.args, tuple) else [])
    return _PLACEHOLDER.sub(lambda found: "%" if found[0] == "%%" else next(shown, "…"), str(record.msg))


def _raised(record: logging.LogRecord) -> str:
    kind = record.exc_info[0] if record.exc_info else None
    return f" ({kind.__name__})" if kind is not None else ""


def _harmless(argument: object) -> str:
    match argument:
        case float():
            return f"{argument:.2f}"
        case int():
            return str(argument)
        case BaseException():
            return type(argument).__name__
        case str() if argument in _HARMLESS_WORDS:
            return argument
    return "…"


def _take_over_sdk_log() -> SdkNotices:
    """From now on everything that OpenTelemetry logs comes through a new ``SdkNotices``, and only through it."""
    logger = logging.getLogger("opentelemetry")
    for handler in [known for known in logger.handlers if isinstance(known, SdkNotices)]:
        logger.removeHandler(handler)
    notices = SdkNotices(time.monotonic)
    logger.addHandler(notices)
    logger.propagate = False
    return notices


class _FlushRecord(ReadableSpan):
    """A flush span that has ended, with what its requests sent as ``traceparent``."""

    def __init__(self, span: ReadableSpan, traceparents: Sequence[str], link_count: int, max_links: int | None) -> None:
        super().__init__(
            name=span.name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=span.attributes,
            events=span.events,
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._traceparents = traceparents
        self._link_count = link_count
        self._max_links = max_links

    @property
    def links(self) -> Sequence[Link]:
        """Made when they are asked for: by the exporter, in its thread."""
        contexts = filter(None, map(_parse_traceparent, self._traceparents))
        return tuple(map(Link, islice(contexts, self._max_links)))

    @property
    def dropped_links(self) -> int:
        """Requests beyond the cap, and those whose ``traceparent`` is not valid."""
        return self._link_count - len(self.links)

    @property
    def attributes(self) -> Attributes:
        """The span's own, and what can only be said now."""
        return {**(super().attributes or {}), LINKS_DROPPED: self.dropped_links}


class _LinkingProcessor(BatchSpanProcessor):
    """The SDK's queue and exporting thread. Links are added to flush spans on their way out.

    Given to the SDK at the start, 128 links cost the event loop a millisecond a flush, and a full queue of them 120 MB.
    """

    def __init__(self, exporter: SpanExporter, max_links: int | None) -> None:
        super().__init__(exporter)
        self._max_links = max_links
        self._requests: dict[int, tuple[Sequence[str], int]] = {}

    def remember(self, span_id: int, traceparents: Sequence[str], link_count: int) -> None:
        """What to link ``span_id`` to when it ends, and how many requests there were."""
        self._requests[span_id] = traceparents, link_count

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        requests = self._requests.pop(context.span_id, None) if context is not None else None
        super().on_end(span if requests is None else _FlushRecord(span, *requests, self._max_links))


class _Export:
    """What is behind the spans: ended once, for at most ``CLOSE_TIMEOUT_S``."""

    def __init__(self, provider: TracerProvider, exporter: OTLPSpanExporter, notices: SdkNotices) -> None:
        self._provider = provider
        self._exporter = exporter
        self._notices = notices
        self._closed = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # The SDK's shutdown waits up to 30 s for its thread, and takes no other deadline.
        last_export = threading.Thread(target=self._provider.shutdown, name="otlp-last-export", daemon=True)
        last_export.start()
        last_export.join(CLOSE_TIMEOUT_S)
        if last_export.is_alive():
            _log.warning("tracing: the collector did not take the last spans in time; they are given up")
            self._notices.mute()
            self._exporter.shutdown()  # type: ignore[no-untyped-call] # ends its waiting between retries


class _OtlpTracer:
    """Makes flush spans. Each begins a trace of its own: its requests are linked to, not its parents."""

    enabled = True

    def __init__(
        self, tracer: SdkTracer, server: Mapping[str, AttributeValue], processor: _LinkingProcessor, export: _Export
    ) -> None:
        self._tracer = tracer
        self._server = server
        self._processor = processor
        self._export = export

    def flush(self, batch: FrozenBatch, *, oldest_age_s: float) -> FlushSpan:
        span = self._tracer.start_span(
            f"flush {batch.key.name}",
            context=Context(),
            kind=SpanKind.INTERNAL,
            attributes={
                DATA_SOURCE: batch.key.name,
                BATCH_ID: batch.id,
                BATCH_ITEMS: batch.item_count,
                BATCH_ROWS: batch.row_count,
                BATCH_BYTES: batch.size_bytes,
                BATCH_TRIGGER: batch.trigger.value,
                OLDEST_ROW_AGE_S: oldest_age_s,
            },
        )
        if span.is_recording():
            self._processor.remember(span.get_span_context().span_id, batch.links, batch.link_count)
        return _OtlpFlushSpan(self._tracer, self._server, span, batch)

    def close(self) -> None:
        self._export.close()


class _OtlpFlushSpan:
    def __init__(self, tracer: SdkTracer, server: Mapping[str, AttributeValue], span: Span, batch: FrozenBatch) -> None:
        self._tracer = tracer
        self._server = server
        self._span = span
        self._batch: FrozenBatch | None = batch

    def attempt(self, url: str, number: int) -> AttemptSpan:
        attributes: dict[str, AttributeValue] = {HTTP_REQUEST_METHOD: "POST", URL_FULL: url, **self._server}
        if number > 1:
            attributes[HTTP_REQUEST_RESEND_COUNT] = number - 1
        context = set_span_in_context(self._span, Context())
        return _OtlpAttemptSpan(
            self._tracer.start_span("POST", context=context, kind=SpanKind.CLIENT, attributes=attributes)
        )

    def end(self, *, verdict: str, attempts: int) -> None:
        # The batch holds this span: let go of it, or its bytes outlive it until the garbage collector comes.
        batch, self._batch = self._batch, None
        if not self._span.is_recording():
            return
        if batch is not None and batch.payload is not None:
            self._span.set_attribute(BATCH_COMPRESSED_BYTES, len(batch.payload.body))
        self._span.set_attributes({VERDICT: verdict, ATTEMPTS: attempts})
        if verdict != DELIVERED:
            self._span.set_status(Status(StatusCode.ERROR, verdict))
        self._span.end()


class _OtlpAttemptSpan:
    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent: str | None = _traceparent(span.get_span_context())

    def end(self, *, status: int | None, error_type: str | None) -> None:
        if not self._span.is_recording():
            return
        if status is not None:
            self._span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)
        error = error_type or (str(status) if status is not None and status >= 400 else None)
        if error is not None:
            self._span.set_attribute(ERROR_TYPE, error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _traceparent(context: SpanContext) -> str | None:
    """The W3C header for ``context``, version 00: of its flags only ``sampled`` is defined there."""
    if not context.is_valid:  # OTEL_SDK_DISABLED
        return None
    sampled = context.trace_flags & TraceFlags.SAMPLED
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{sampled:02x}"


def _parse_traceparent(text: str) -> SpanContext | None:
    """What a client says of its span, or None if that is not valid (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    ids = int(trace_id, 16), int(span_id, 16)
    if ids[0] == INVALID_TRACE_ID or ids[1] == INVALID_SPAN_ID:
        return None
    return SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
