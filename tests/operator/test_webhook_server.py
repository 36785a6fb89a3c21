"""The webhook over TLS, as the API server and everybody else meet it."""

import asyncio
import json
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
from tests.operator.injection_pods import injected, pod
from tests.operator.webhooks import Running, made_of, resource, review, running

from tinybird_proxy_operator.webhook.server import MAX_BODIES_BYTES, MAX_BODY_BYTES


async def test_a_pod_that_asks_gets_its_sidecar(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        answer = await it.ask(review(pod()))
        assert made_of(pod(), answer) == injected(pod())
        assert "warnings" not in answer["response"]


async def test_who_makes_a_pod_without_one_is_told_why(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        answer = await it.ask(review(pod(hostNetwork=True)))
        assert made_of(pod(), answer) == pod()
        [warning] = answer["response"]["warnings"]
        assert warning.startswith("no tinybird-proxy sidecar: spec.hostNetwork: ")
        [warning] = (await it.ask(review(pod(asks="waiting"))))["response"]["warnings"]
        assert warning.startswith("no tinybird-proxy sidecar: TinybirdProxy waiting gives none")


async def test_a_fault_of_its_own_lets_the_pod_in_and_nothing_of_it_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        it.api.put(resource("broken", {"container": None, "hash": "1"}))
        given = pod(asks="broken", annotations={"secret-annotation": "secret-value"})
        answer = await it.ask(review(given))
        assert made_of(given, answer) == given
        assert answer["response"]["warnings"] == [
            "no tinybird-proxy sidecar: the webhook has made a mistake; see its log"
        ]
        [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "by a fault of the webhook's: AttributeError in _list, line " in error.getMessage()
        assert error.exc_info is None
        assert "secret" not in caplog.text


async def test_nothing_of_a_pod_or_a_token_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tinybird_proxy_operator")
    async with running(tmp_path) as it:
        await it.until_registered()
        await it.ask(review(pod(annotations={"secret": "secret-value"}), userInfo={"username": "secret-user"}))
        await it.send(b'{"kind": "secret-kind"}', Authorization="Bearer secret-token")
    assert "secret-" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/inject", 405), ("POST", "/", 404), ("POST", "/inject/x", 404), ("GET", "/healthz", 200)],
)
async def test_there_is_nothing_but_reviews_and_health(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        assert (await it.send(b"", path=path, method=method))[0] == status


async def opened(it: Running, header: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection over which the head of a review has come, and nothing more."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = await asyncio.open_connection("127.0.0.1", it.port, ssl=context)
    stream[1].write(f"POST /inject HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
    return stream


async def test_a_body_is_bounded_comes_with_its_length_and_as_it_is(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        large = pod(annotations={"large": "x" * (MAX_BODY_BYTES - 5000)})
        assert made_of(large, await it.ask(review(large))) == injected(large)
        assert (await it.send(b"x" * (MAX_BODY_BYTES + 1)))[0] == 413
        assert (await it.send(b"", **{"Content-Encoding": "gzip"}))[0] == 415
        stream = await opened(it, "Transfer-Encoding: chunked")
        assert (await stream[0].read()).startswith(b"HTTP/1.1 411 ")
        stream[1].close()
        assert (await it.send(b""))[0] == 400


async def test_bodies_that_do_not_come_take_no_room_for_long(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        streams = [
            await opened(it, f"Content-Length: {MAX_BODY_BYTES}") for _ in range(MAX_BODIES_BYTES // MAX_BODY_BYTES + 1)
        ]
        answers = [(await reader.read()).split(b"\r\n")[0] for reader, _ in streams]
        assert sorted(answers) == [b"HTTP/1.1 408 Request Timeout"] * 2 + [b"HTTP/1.1 503 Service Unavailable"]
        for _, writer in streams:
            writer.close()
        assert made_of(pod(), await it.ask(review(pod()))) == injected(pod())


async def test_every_review_is_counted_by_what_came_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        for given in (pod(), injected(pod()), pod(asks=None), pod(hostNetwork=True), pod(asks="missing")):
            await it.ask(review(given))
        await it.send(b"{}")
        _, text = await it.probe("/metrics")
        counted = [line for line in text.splitlines() if line.startswith("tinybird_proxy_webhook_reviews_total")]
        expected = {"injected": 1, "unchanged": 1, "not_asked": 1, "refused": 1, "no_resource": 1, "not_a_review": 1}
        for line in counted:
            result = line.partition('"')[2].partition('"')[0]
            assert float(line.rpartition(" ")[2]) == expected.get(result, 0), line
        assert "tinybird_proxy_webhook_review_seconds_count 6.0" in text


HOSTILE: tuple[Any, ...] = (
    None,
    True,
    5,
    -1.5e300,
    "x",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"name": 5},
    {"labels": []},
    {"uid": {}},
)


@pytest.mark.parametrize("place", ["", "request", "object", "metadata", "spec", "containers"])
async def test_hostile_json_is_answered_and_never_a_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        for value in HOSTILE:
            document = review(pod())
            asked = document["request"]
            holders = {"request": document, "object": asked, "metadata": asked["object"], "spec": asked["object"]}
            holders["containers"] = asked["object"]["spec"]
            if place:
                holders[place][place] = value
            status, answer = await it.send(json.dumps(document if place else value).encode())
            assert status in (200, 400)
            assert status == 400 or answer["response"]["allowed"] is True
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
