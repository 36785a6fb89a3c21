"""A flush's trace, seen by a real OTLP receiver in a process of its own; and collectors that are dead, or hang."""

import gc
import http.client
import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from tinybird_proxy.batch import MAX_LINKS, DestinationKey, FrozenBatch, Payload, Trigger
from tinybird_proxy.errors import ConfigError
from tinybird_proxy.telemetry.otlp import CLOSE_TIMEOUT_S, NOTICE_INTERVAL_S, SdkNotices, make_tracer
from tinybird_proxy.telemetry.tracing import Tracer

URL = "https://api.tinybird.co/v0/events?name=hits&wait=true"
# How long one call of close() may take beyond its own deadline, on a busy machine.
SLACK_S = 4.0

PROCESS_WITH_SPANS = """
from array import array
from tinybird_proxy.batch import DestinationKey, FrozenBatch, Trigger
from tinybird_proxy.telemetry.otlp import make_tracer

tracer = make_tracer(instance="node-1", version="1.2.3", server_address="api.tinybird.co", server_port=443)
batch = FrozenBatch(
    id="b", key=DestinationKey("/v0/events", "hits", (), None), bodies=[], row_counts=array("I", [1]), row_count=1,
    size_bytes=8, oldest_at=0.0, youngest_at=0.0, frozen_at=0.0, trigger=Trigger.ROWS, tickets=[], replays=[], links=[],
    link_count=0, vias=(),
)
for _ in range(2000):
    tracer.flush(batch, oldest_age_s=0.0).end(verdict="delivered", attempts=1)
"""


class Receiver:
    """The receiver's process, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return json.load(connection.getresponse())
        finally:
            connection.close()

    def trace(self, batch_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The flush span of a batch, and its attempts in order."""
        spans = self.get("/spans")
        (flush,) = (span for span in spans if span["attributes"].get("tinybird_proxy.batch.id") == batch_id)
        attempts = [span for span in spans if span["parent_id"] == flush["span_id"]]
        return flush, sorted(attempts, key=lambda span: int(span["start_ns"]))


class HangingCollector:
    """Accepts a connection, reads the request, and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connection: socket.socket | None = None

    def wait_for_a_request(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(30)
        received = b""
        while (length := re.search(rb"content-length: (\d+).*?\r\n\r\n", received, re.IGNORECASE | re.DOTALL)) is None:
            received += self._connection.recv(65536)
        missing = length.end() + int(length[1]) - len(received)
        while missing > 0:
            missing -= len(self._connection.recv(missing))

    def is_still_awaited(self) -> bool:
        """Whether the exporter has neither hung up nor sent anything else: it waits for the answer."""
        assert self._connection is not None
        return not select.select([self._connection, self._listener], [], [], 0)[0]

    def hang_up(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def the_sdk_logs_as_before() -> Iterator[None]:
    logger = logging.getLogger("opentelemetry")
    handlers, propagate = logger.handlers[:], logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate


@pytest.fixture(autouse=True)
def threads_end_with_their_test() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 30
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0, deadline - time.monotonic()))
        assert not thread.is_alive(), thread.name


@pytest.fixture(scope="module")
def receiver_process() -> Iterator[Receiver]:
    command = [sys.executable, "-m", "tinybird_proxy.testing.otlp_receiver", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Receiver(int(process.stdout.readline()))
        finally:
            process.kill()


@pytest.fixture
def receiver(receiver_process: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """The receiver, and an environment that names it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver_process.endpoint)
    return receiver_process


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingCollector]:
    collector = HangingCollector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
    yield collector
    collector.hang_up()


@pytest.fixture
def dead_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A port that is taken, and refuses every connection because nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield


@pytest.fixture
def start_tracer() -> Iterator[Callable[[], Tracer]]:
    """Makes tracers, and closes them after the test."""
    tracers: list[Tracer] = []

    def start() -> Tracer:
        tracer = make_tracer(instance="node-1", version="1.2.3", server_address="api.tinybird.co", server_port=443)
        tracers.append(tracer)
        return tracer

    yield start
    for tracer in tracers:
        tracer.close()


def frozen_batch(
    batch_id: str, *, links: Sequence[str] = (), link_count: int | None = None, payload: Payload | None = None
) -> FrozenBatch:
    return FrozenBatch(
        id=batch_id,
        key=DestinationKey("/v0/events", "hits", (), "p.client-secret"),
        bodies=[b'{"n":1}\n{"n":2}', b'{"n":3}'],
        row_counts=array("I", [2, 1]),
        row_count=3,
        size_bytes=24,
        oldest_at=10.0,
        youngest_at=11.0,
        frozen_at=11.5,
        trigger=Trigger.INTERVAL,
        tickets=[],
        replays=[],
        links=list(links),
        link_count=len(links) if link_count is None else link_count,
        vias=(),
        payload=payload,
    )


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


def link(number: int) -> dict[str, str]:
    return {"trace_id": f"{number:032x}", "span_id": f"{number:016x}"}


def flush_once(tracer: Tracer, batch: FrozenBatch) -> None:
    """One flush with one attempt, both of them fine."""
    span = tracer.flush(batch, oldest_age_s=1.0)
    span.attempt(URL, 1).end(status=200, error_type=None)
    span.end(verdict="delivered", attempts=1)


def test_a_flush_with_two_attempts_is_one_span_with_two_client_spans_below_it(
    receiver: Receiver, start_tracer: Callable[[], Tracer]
) -> None:
    tracer = start_tracer()
    batch = frozen_batch("two-attempts", links=[traceparent(7), traceparent(8)])

    span = tracer.flush(batch, oldest_age_s=1.5)
    batch.payload = Payload(b"x" * 20, "gzip")
    first = span.attempt(URL, 1)
    first.end(status=503, error_type=None)
    second = span.attempt(URL, 2)
    second.end(status=200, error_type=None)
    span.end(verdict="delivered", attempts=2)
    tracer.close()

    flush, attempts = receiver.trace("two-attempts")
    assert (flush["name"], flush["kind"], flush["parent_id"]) == ("flush hits", "INTERNAL", "")
    assert flush["status"] == {"code": "UNSET", "message": ""}
    assert flush["attributes"] == {
        "tinybird_proxy.data_source": "hits",
        "tinybird_proxy.batch.id": "two-attempts",
        "tinybird_proxy.batch.items": 2,
        "tinybird_proxy.batch.rows": 3,
        "tinybird_proxy.batch.bytes": 24,
        "tinybird_proxy.batch.compressed_bytes": 20,
        "tinybird_proxy.batch.trigger": "interval",
        "tinybird_proxy.oldest_row_age_seconds": 1.5,
        "tinybird_proxy.links_dropped": 0,
        "tinybird_proxy.attempts": 2,
        "tinybird_proxy.verdict": "delivered",
    }
    assert flush["links"] == [link(7), link(8)]

    request = {
        "http.request.method": "POST",
        "url.full": URL,
        "server.address": "api.tinybird.co",
        "server.port": 443,
    }
    assert [(attempt["name"], attempt["kind"]) for attempt in attempts] == [("POST", "CLIENT"), ("POST", "CLIENT")]
    assert attempts[0]["attributes"] == {**request, "http.response.status_code": 503, "error.type": "503"}
    assert attempts[1]["attributes"] == {
        **request,
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
    }
    assert [attempt["status"]["code"] for attempt in attempts] == ["ERROR", "UNSET"]
    # What travels to Tinybird names the very spans that were exported.
    assert [first.traceparent, second.traceparent] == [
        f"00-{flush['trace_id']}-{attempt['span_id']}-01" for attempt in attempts
    ]
    assert flush["start_ns"] <= attempts[0]["start_ns"] <= attempts[0]["end_ns"] <= attempts[1]["end_ns"]
    assert attempts[1]["end_ns"] <= flush["end_ns"]


def test_an_attempt_without_a_reply_says_what_went_wrong(
    receiver: Receiver, start_tracer: Callable[[], Tracer]
) -> None:
    tracer = start_tracer()
    span = tracer.flush(frozen_batch("no-reply"), oldest_age_s=0.0)
    span.attempt(URL, 1).end(status=None, error_type="timeout")
    span.end(verdict="in_doubt", attempts=1)
    tracer.close()

    flush, (attempt,) = receiver.trace("no-reply")
    assert attempt["attributes"]["error.type"] == "timeout"
    assert "http.response.status_code" not in attempt["attributes"]
    assert attempt["status"]["code"] == "ERROR"
    assert flush["status"] == {"code": "ERROR", "message": "in_doubt"}
    # Nothing was compressed as far as the span knows, so it does not say how far.
    assert "tinybird_proxy.batch.compressed_bytes" not in flush["attributes"]


def test_links_are_capped_and_the_rest_is_counted(receiver: Receiver, start_tracer: Callable[[], Tracer]) -> None:
    tracer = start_tracer()
    links = [traceparent(number) for number in range(1, MAX_LINKS + 1)]
    flush_once(tracer, frozen_batch("many-links", links=links, link_count=300))
    tracer.close()

    flush, _ = receiver.trace("many-links")
    assert flush["links"] == [link(number) for number in range(1, 129)]
    assert flush["attributes"]["tinybird_proxy.links_dropped"] == flush["dropped_links"] == 172


def test_a_lower_cap_of_the_sdk_holds(
    receiver: Receiver, start_tracer: Callable[[], Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "2")
    tracer = start_tracer()
    flush_once(tracer, frozen_batch("few-links", links=[traceparent(number) for number in range(1, 6)]))
    tracer.close()

    flush, _ = receiver.trace("few-links")
    assert flush["links"] == [link(1), link(2)]
    assert flush["attributes"]["tinybird_proxy.links_dropped"] == flush["dropped_links"] == 3


@pytest.mark.parametrize(
    ("malformed", "why"),
    [
        ("", "empty"),
        ("nonsense", "no-fields"),
        (traceparent(0), "zero-ids"),
        (f"00-{1:032x}-{0:016x}-01", "zero-span-id"),
        (f"00-{0:032x}-{1:016x}-01", "zero-trace-id"),
        (f"00-{'A' * 32}-{1:016x}-01", "upper-case"),
        (f"ff-{1:032x}-{1:016x}-01", "version-ff"),
        (f"00-{1:032x}-{1:016x}-01-more", "more-in-version-00"),
        (f"00-{1:031x}-{1:016x}-01", "short-trace-id"),
        (f"00-{1:032x}-{1:016x}-1", "short-flags"),
        (f"{traceparent(1)}\n", "line-break"),
        ("00-" + "\N{ARABIC-INDIC DIGIT ONE}" * 32 + f"-{1:016x}-01", "other-digits"),
    ],
)
def test_a_malformed_traceparent_is_ignored(
    receiver: Receiver, start_tracer: Callable[[], Tracer], malformed: str, why: str
) -> None:
    tracer = start_tracer()
    flush_once(tracer, frozen_batch(f"malformed-{why}", links=[malformed, traceparent(9)]))
    tracer.close()

    flush, _ = receiver.trace(f"malformed-{why}")
    assert flush["links"] == [link(9)]
    assert flush["attributes"]["tinybird_proxy.links_dropped"] == 1


def test_a_traceparent_of_a_later_version_is_a_link(receiver: Receiver, start_tracer: Callable[[], Tracer]) -> None:
    tracer = start_tracer()
    flush_once(tracer, frozen_batch("later-version", links=[f"01-{3:032x}-{3:016x}-01-more"]))
    tracer.close()

    flush, _ = receiver.trace("later-version")
    assert flush["links"] == [link(3)]


def test_an_unsampled_flush_says_so_to_tinybird_and_is_not_exported(
    receiver: Receiver, start_tracer: Callable[[], Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracer = start_tracer()
    before = receiver.get("/spans")

    span = tracer.flush(frozen_batch("unsampled", links=[traceparent(1)]), oldest_age_s=0.0)
    first, second = span.attempt(URL, 1), span.attempt(URL, 2)
    first.end(status=503, error_type=None)
    second.end(status=200, error_type=None)
    span.end(verdict="delivered", attempts=2)
    tracer.close()

    headers = [first.traceparent or "", second.traceparent or ""]
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", header) for header in headers)
    assert headers[0].split("-")[1] == headers[1].split("-")[1]
    assert headers[0] != headers[1]
    assert receiver.get("/spans") == before


def test_ending_twice_changes_nothing(
    receiver: Receiver, start_tracer: Callable[[], Tracer], caplog: pytest.LogCaptureFixture
) -> None:
    tracer = start_tracer()
    span = tracer.flush(frozen_batch("ended-twice"), oldest_age_s=0.0)
    attempt = span.attempt(URL, 1)
    for status in (200, 500):
        attempt.end(status=status, error_type=None)
    for verdict in ("delivered", "dropped"):
        span.end(verdict=verdict, attempts=1)
    tracer.close()
    tracer.close()

    flush, attempts = receiver.trace("ended-twice")
    assert flush["attributes"]["tinybird_proxy.verdict"] == "delivered"
    assert [attempt["attributes"]["http.response.status_code"] for attempt in attempts] == [200]
    assert caplog.records == []


def test_spans_leave_while_the_process_goes_on(
    receiver: Receiver, start_tracer: Callable[[], Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    tracer = start_tracer()
    before = len(receiver.get("/spans"))
    flush_once(tracer, frozen_batch("going-on"))

    receiver.get(f"/spans?count={before + 2}")
    _, attempts = receiver.trace("going-on")
    assert len(attempts) == 1


def test_the_process_says_who_it_is(receiver: Receiver, start_tracer: Callable[[], Tracer]) -> None:
    tracer = start_tracer()
    flush_once(tracer, frozen_batch("who-we-are"))
    tracer.close()

    flush, _ = receiver.trace("who-we-are")
    assert flush["resource"].items() >= {
        ("service.name", "tinybird-proxy"),
        ("service.version", "1.2.3"),
        ("service.instance.id", "node-1"),
    }


def test_the_standard_variables_say_who_we_are_and_how_to_export(
    receiver: Receiver, start_tracer: Callable[[], Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "events")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-7,deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=collector-secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    tracer = start_tracer()
    flush_once(tracer, frozen_batch("standard"))
    tracer.close()

    flush, _ = receiver.trace("standard")
    assert flush["resource"].items() >= {
        ("service.name", "events"),
        ("service.instance.id", "pod-7"),
        ("deployment.environment.name", "test"),
    }
    headers = receiver.get("/requests")[-1]
    assert (headers["x-api-key"], headers["content-encoding"]) == ("collector-secret", "gzip")


def test_headers_are_asked_for_before_each_request_and_win_over_the_variable(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=of-the-variable,x-tenant=shop")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    current: dict[str, str] = {}
    tracer = make_tracer(
        instance="node-1",
        version="1.2.3",
        server_address="api.tinybird.co",
        server_port=443,
        headers=lambda: current,
    )
    began_after = len(receiver.get("/requests"))

    def seen(count: int) -> list[tuple[str, str]]:
        deadline = time.monotonic() + 30
        while len(found := receiver.get("/requests")[began_after:]) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return [(headers["x-api-key"], headers["x-tenant"]) for headers in found]

    try:
        for number, each in enumerate(({}, {"x-api-key": "first"}, {"x-api-key": "second"}), 1):
            current.update(each)
            tracer.flush(frozen_batch(f"with-headers-{number}"), oldest_age_s=0.0).end(verdict="delivered", attempts=1)
            assert len(seen(number)) == number
    finally:
        tracer.close()
    assert seen(3) == [("of-the-variable", "shop"), ("first", "shop"), ("second", "shop")]


def test_a_user_name_in_the_endpoint_is_still_sent_where_there_are_other_headers(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://me:word@127.0.0.1:{receiver.port}")
    headers: dict[str, str] = {}
    for given, expected in (
        ({"x-api-key": "key"}, "Basic bWU6d29yZA=="),
        ({"authorization": "Bearer k"}, "Bearer k"),
    ):
        headers.update(given)
        tracer = make_tracer(
            instance="node-1",
            version="1.2.3",
            server_address="api.tinybird.co",
            server_port=443,
            headers=lambda: headers,
        )
        flush_once(tracer, frozen_batch("with-a-user"))
        tracer.close()
        assert receiver.get("/requests")[-1]["authorization"] == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "0"), ("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_SPAN_LINK_COUNT_LIMIT", "many")],
)
def test_what_the_sdk_refuses_is_a_wrong_configuration(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=r"^OTEL_\*: tracing cannot start: .*must be"):
        make_tracer(instance="node-1", version="1.2.3", server_address="api.tinybird.co", server_port=443)


def test_a_dead_collector_costs_a_few_warnings_and_a_bounded_close(
    dead_collector: None,
    start_tracer: Callable[[], Tracer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The second header is malformed, and the SDK would quote it.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-secret,;collector-secret")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    caplog.set_level(logging.DEBUG)
    tracer = start_tracer()
    for number in range(20):
        flush_once(tracer, frozen_batch(f"dead-{number}"))

    began_at = time.monotonic()
    tracer.close()
    assert time.monotonic() - began_at < CLOSE_TIMEOUT_S + SLACK_S

    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {(record.name, record.levelname, record.exc_info) for record in said} == {
        ("tinybird_proxy.tracing", "WARNING", None)
    }
    exporting = [record.getMessage() for record in said if "export" in record.getMessage()]
    assert len(exporting) == 1
    assert "ConnectionError" in exporting[0]
    assert "secret" not in caplog.text


def test_a_collector_that_hangs_blocks_only_the_exporting_thread(
    hanging: HangingCollector, start_tracer: Callable[[], Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    held_before = spans_in_memory()
    tracer = start_tracer()
    for number in range(4):
        flush_once(tracer, frozen_batch(f"first-{number}"))
    hanging.wait_for_a_request()

    for number in range(500):
        flush_once(tracer, frozen_batch(f"later-{number}", links=[traceparent(1)] * MAX_LINKS))

    # All of these calls returned while the exporter was, and still is, waiting for its first answer.
    assert hanging.is_still_awaited()
    assert spans_in_memory() - held_before <= 16 + 4

    began_at = time.monotonic()
    tracer.close()
    assert time.monotonic() - began_at < CLOSE_TIMEOUT_S + SLACK_S
    assert hanging.is_still_awaited()


def spans_in_memory() -> int:
    gc.collect()
    return sum(issubclass(type(thing), ReadableSpan) for thing in gc.get_objects())


def test_a_settled_batch_is_not_kept_alive_by_its_span(receiver: Receiver, start_tracer: Callable[[], Tracer]) -> None:
    tracer = start_tracer()
    gc.collect()
    gc.disable()  # reference counts alone must free it: a batch is megabytes
    try:
        batch = frozen_batch("freed", payload=Payload(b"x", None))
        batch.span = tracer.flush(batch, oldest_age_s=0.0)
        batch.span.attempt(URL, 1).end(status=200, error_type=None)
        batch.span.end(verdict="delivered", attempts=1)
        del batch
        assert not [thing for thing in gc.get_objects() if type(thing) is FrozenBatch and thing.id == "freed"]
    finally:
        gc.enable()


@pytest.mark.parametrize("last_words", ["tracer.close()", "pass"])
def test_a_collector_that_hangs_does_not_keep_the_process_alive(hanging: HangingCollector, last_words: str) -> None:
    code = PROCESS_WITH_SPANS + last_words
    # The exporter would wait for 300 s, and the SDK for 30.
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_module_imports_neither_the_emulator_nor_rich() -> None:
    code = (
        "import sys, tinybird_proxy.telemetry.otlp\n"
        "assert not [name for name in sys.modules if name.startswith(('tinybird_proxy.emulator', 'rich'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestSdkNotices:
    """What becomes of a line that the SDK logs."""

    def test_each_logger_speaks_once_a_minute_and_says_how_often_it_was_silent(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        times = iter([100.0, 101.0, 100.0 + NOTICE_INTERVAL_S - 0.1, 100.0 + NOTICE_INTERVAL_S, 170.0])
        notices = SdkNotices(lambda: next(times))
        for _ in range(4):
            notices.handle(record("opentelemetry.exporter", logging.ERROR, "it failed"))
        notices.handle(record("opentelemetry.sdk", logging.WARNING, "something else"))

        said = [(line.levelname, line.getMessage(), line.__dict__["fields"]["unsaid"]) for line in caplog.records]
        assert said == [
            ("WARNING", "tracing: it failed", 0),
            ("WARNING", "tracing: it failed", 2),
            ("WARNING", "tracing: something else", 0),
        ]

    @pytest.mark.parametrize(
        ("message", "arguments", "said"),
        [
            (
                "Failed to export %s batch code: %s, reason: %s",
                ("spans", 404, "Not Found"),
                "Failed to export spans batch code: 404, reason: Not Found",
            ),
            (
                "Error %s, again in %.2fs.",
                (ConnectionError("secret"), 0.9312),
                "Error ConnectionError, again in 0.93s.",
            ),
            ("Header format invalid: %s", ("authorization secret",), "Header format invalid: …"),
            ("One of %(this)s", ({"this": "secret"},), "One of …"),
            ("%s and %s", ("secret",), "… and …"),
            ("100%% of %d", (7,), "100% of 7"),
            ("100% of it", (), "100% of it"),
        ],
    )
    def test_only_numbers_http_reasons_and_types_of_exceptions_are_shown(
        self, caplog: pytest.LogCaptureFixture, message: str, arguments: tuple[object, ...], said: str
    ) -> None:
        SdkNotices(lambda: 0.0).handle(record("opentelemetry", logging.ERROR, message, arguments))
        (line,) = caplog.records
        assert line.getMessage() == f"tracing: {said}"

    def test_a_traceback_is_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        try:
            raise ValueError("collector-secret")
        except ValueError:
            notice = record("opentelemetry", logging.ERROR, "Exception while exporting %s.", ("Span",))
            notice.exc_info = sys.exc_info()
        SdkNotices(lambda: 0.0).handle(notice)
        (line,) = caplog.records
        assert line.exc_info is None
        assert line.getMessage() == "tracing: Exception while exporting Span. (ValueError)"

    def test_a_muted_one_is_silent(self, caplog: pytest.LogCaptureFixture) -> None:
        notices = SdkNotices(lambda: 0.0)
        notices.mute()
        notices.handle(record("opentelemetry", logging.ERROR, "it failed"))
        assert caplog.records == []


def record(name: str, level: int, message: str, arguments: tuple[object, ...] = ()) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, arguments, None)
