"""The whole process over real TLS: who gets an answer, and which; and certificates that change under requests."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tests.operator.metrics_apis import GROUP, ROWS, ClientCA, Running, client_context, proxy_with_pods, running

from tinybird_proxy_operator.names import KIND

PODS = f"{GROUP}/v1beta2/namespaces/shop/pods/%2A/{ROWS}"
SELECTOR = "?labelSelector=tinybird-proxy.io%2Fproxy%3Devents%2C%21tinybird-proxy.io%2Fdraining&metricLabelSelector="
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Running]:
    """It runs, is registered, and a proxy with two pods is there."""
    async with running(tmp_path) as started:
        await started.until_registered()
        started.reviews.allowed += [{"user": HPA}]
        proxy_with_pods(started.api, "events", ["127.0.0.2", "127.0.0.3"])
        started.proxies.say("127.0.0.2", buffer_rows=7)
        started.proxies.say("127.0.0.3", buffer_rows=1000)
        yield started


async def test_the_autoscaler_reads_the_rows_of_each_pod(it: Running) -> None:
    status, answer = await it.as_user(HPA, PODS + SELECTOR)
    assert (status, answer["kind"], answer["apiVersion"]) == (200, "MetricValueList", "custom.metrics.k8s.io/v1beta2")
    assert [(each["describedObject"]["name"], each["value"]) for each in answer["items"]] == [
        ("events-1-0", "7"),
        ("events-1-1", "1000"),
    ]
    status, answer = await it.as_user(HPA, PODS.replace("v1beta2", "v1beta1") + SELECTOR)
    assert [each["metricName"] for each in answer["items"]] == [ROWS, ROWS]


async def test_a_tinybird_proxy_has_the_rows_of_all_its_pods(it: Running) -> None:
    path = f"{GROUP}/v1beta2/namespaces/shop/tinybirdproxies.tinybird-proxy.io/events/{ROWS}"
    _, answer = await it.as_user(HPA, path)
    [item] = answer["items"]
    assert (item["describedObject"]["kind"], item["value"]) == (KIND, "1007")


async def test_one_pod_is_one_value_and_an_unknown_one_is_not_found(it: Running) -> None:
    _, answer = await it.as_user(HPA, f"{GROUP}/v1beta2/namespaces/shop/pods/events-1-1/{ROWS}")
    assert [each["value"] for each in answer["items"]] == ["1000"]
    status, answer = await it.as_user(HPA, f"{GROUP}/v1beta2/namespaces/shop/pods/other/{ROWS}")
    assert (status, answer["kind"], answer["code"]) == (404, "Status", 404)


async def test_a_silent_pod_is_left_out_and_silence_of_all_is_an_error(it: Running) -> None:
    it.proxies.said["127.0.0.2"] = ""
    _, answer = await it.as_user(HPA, PODS + SELECTOR)
    assert [each["describedObject"]["name"] for each in answer["items"]] == ["events-1-1"]
    it.proxies.said["127.0.0.3"] = "<html>"
    await asyncio.sleep(1.0)  # what was read is good for a second of the real clock
    status, answer = await it.as_user(HPA, PODS + SELECTOR)
    assert (status, answer["reason"]) == (503, "ServiceUnavailable")
    assert "none of its pods says it (events-1-0, events-1-1)" in answer["message"]


SPOOFED = {"X-Remote-User": "root", "X-Remote-Group": "system:masters"}


async def test_a_spoofed_user_over_plain_tls_is_nobody(it: Running) -> None:
    status, answer = await it.ask(PODS, headers=SPOOFED)
    assert (status, answer["kind"], answer["reason"]) == (401, "Status", "Unauthorized")


async def test_a_certificate_of_a_wrong_name_is_not_believed(it: Running) -> None:
    other = it.front_proxy.client(it.directory, "somebody-else")
    assert (await it.ask(PODS, certificate=other, headers=SPOOFED))[0] == 401


async def test_headers_beside_a_token_do_not_count(it: Running) -> None:
    it.reviews.users["t"] = {"username": "ann", "groups": []}
    status, answer = await it.ask(PODS + SELECTOR, headers={**SPOOFED, "Authorization": "Bearer t"})
    assert (status, answer["reason"]) == (403, "Forbidden")
    it.reviews.allowed.append({"user": "ann", "resource": "pods", "subresource": ROWS, "verb": "get"})
    it.reviews.users["u"] = {"username": "ann", "groups": ["since"]}
    assert (await it.ask(PODS + SELECTOR, headers={**SPOOFED, "Authorization": "Bearer u"}))[0] == 200
    assert (await it.ask(PODS + SELECTOR, headers={"Authorization": "Bearer wrong"}))[0] == 401


async def test_whoever_may_not_is_refused_and_learns_nothing_of_pods(it: Running) -> None:
    status, answer = await it.as_user("eve", PODS + SELECTOR)
    assert (status, answer["reason"]) == (403, "Forbidden")
    assert 'User "eve" cannot get resource "pods/tinybird_proxy_buffer_rows"' in answer["message"]
    assert it.proxies.asked == []


async def test_an_api_server_that_does_not_decide_is_no_permission(it: Running) -> None:
    it.api.fail(503, path="subjectaccessreviews")
    assert (await it.as_user("ann", PODS))[0] == 503


async def test_discovery_and_the_rest_is_json(it: Running) -> None:
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    certificate = it.aggregator()
    masters = {"X-Remote-User": "system:kube-aggregator", "X-Remote-Group": "system:masters"}
    for path, status, kind in (
        ("/apis", 200, "APIGroupList"),
        (GROUP, 200, "APIGroup"),
        (f"{GROUP}/v1beta1", 200, "APIResourceList"),
        (f"{GROUP}/v1beta2", 200, "APIResourceList"),
        ("/openapi/v2", 404, "Status"),
        ("/openapi/v3", 404, "Status"),
        ("/", 404, "Status"),
        (PODS + "?labelSelector=a%20b", 400, "Status"),
    ):
        headers = {**masters, "Accept": aggregated if path == "/apis" else "application/vnd.kubernetes.protobuf, */*"}
        answered, document = await it.ask(path, certificate=certificate, headers=headers)
        assert (answered, document["kind"]) == (status, kind), path
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        status, document = await it.ask(PODS, certificate=certificate, headers=masters, method=method)
        assert (status, document["reason"]) == (405, "MethodNotAllowed")


async def test_probes_are_for_everybody(it: Running) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert (await it.ask(path))[0] == 200
    assert it.reviews.asked == []


async def test_metrics_and_probes_are_on_a_port_of_their_own(it: Running) -> None:
    await it.as_user(HPA, PODS + SELECTOR)
    await it.ask(PODS)
    status, text = await it.probe("/metrics")
    assert status == 200
    assert 'tinybird_proxy_metrics_api_requests_total{code="200"}' in text
    assert 'tinybird_proxy_metrics_api_requests_total{code="401"} 1.0' in text
    assert 'tinybird_proxy_metrics_api_scrapes_total{result="ok"} 2.0' in text
    assert "tinybird_proxy_metrics_api_registered 1.0" in text
    assert "tinybird_proxy_metrics_api_certificate_expiry_seconds 3" in text
    assert (await it.probe("/healthz"))[0] == (await it.probe("/livez"))[0] == 200
    status, text = await it.probe("/readyz")
    assert status == 200
    assert '"registered": true' in text


async def test_a_certificate_of_another_ca_ends_in_the_handshake(it: Running) -> None:
    stranger = ClientCA().client(it.directory, "front-proxy-client")
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await it.ask(PODS, certificate=stranger, headers=SPOOFED)


async def test_certificates_change_without_a_refused_handshake(tmp_path: Path) -> None:
    """A client that knows what is registered, and nothing else, asks all the time while CAs follow each other."""
    short = {"CERTIFICATE_LIFETIME_SECONDS": "20", "CERTIFICATE_OVERLAP_SECONDS": "1"}
    async with running(tmp_path, env=short) as it:
        await it.until_registered()
        bundles, serving = set[str](), set[str]()
        async with asyncio.timeout(30):
            for number in range(10_000):
                if number == 20:
                    # As somebody does who wants other certificates.
                    it.api.remove("Secret", "operator-metrics-api-certificates", "tinybird-system")
                bundle = await asyncio.to_thread(it.server_ca)
                bundles.add(bundle)
                serving.add(await certificate_seen(it.port, bundle))
                assert (await it.ask("/healthz"))[0] == 200
                if len(bundles) == 3 and len(serving) == 2:
                    break
        # The first CA, both, and the second one.
        assert sorted(bundle.count("BEGIN CERTIFICATE") for bundle in bundles) == [1, 1, 2]


async def certificate_seen(port: int, bundle: str) -> str:
    context = await asyncio.to_thread(client_context, bundle)
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="metrics.tinybird-system.svc"
    )
    shown = str(writer.get_extra_info("peercert")["serialNumber"])
    writer.close()
    return shown
