"""What pods say, read off their metrics; and pods that say nothing, or too much."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
from tests.operator.metrics_apis import ROWS, Proxies, exposition, running_proxies
from tests.operator.test_metrics_api_authentication import Clock
from tests.proxy.running import needs_ipv6, running_world

from tinybird_proxy_operator.metrics_api import scrape
from tinybird_proxy_operator.metrics_api.inventory import OurPod
from tinybird_proxy_operator.metrics_api.scrape import Scraped, Scraper, read_metrics
from tinybird_proxy_operator.scaling.targets import METRICS

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("0", 0),
        ("1234.0", 1234),
        ("12.1", 13),
        ("1e+06", 1_000_000),
        ("5 1700000000000", 5),
        ("NaN", None),
        ("+Inf", None),
        ("-1", None),
        ("x", None),
        ("", None),
    ],
)
def test_a_value_is_a_whole_number_or_nothing(line: str, value: int | None) -> None:
    assert read_metrics(f"{ROWS} {line}\n".encode()).get(ROWS) == value


def test_only_our_gauges_are_read() -> None:
    text = exposition({METRICS[0]: 50, ROWS: 7})
    assert read_metrics(text.encode()) == {METRICS[0]: 50, ROWS: 7}
    assert read_metrics(b'tinybird_proxy_buffer_rows{x="y"} 3\ntinybird_proxy_buffer_rows_total 4\n\xff\xff 5') == {}


@pytest.fixture
async def proxies() -> AsyncIterator[Proxies]:
    async with running_proxies() as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


class Scraping:
    """A scraper, its clock, and what it counts."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.clock = Clock()
        self.counted: list[str] = []
        self.scraper = Scraper(session, port=port, now=self.clock, utc_now=lambda: AT, count=self.counted.append)

    async def ask(self, ip: str, uid: str = "1") -> Scraped | None:
        return await self.scraper.ask(OurPod(uid=uid, name="p", ip=ip, proxy="events", labels={}))


async def test_a_pod_is_asked_once_a_second_and_gets_no_token(proxies: Proxies, session: aiohttp.ClientSession) -> None:
    proxies.say("127.0.0.2", buffer_rows=7)
    scraping = Scraping(session, proxies.port)
    for _ in range(3):
        said = await scraping.ask("127.0.0.2")
        assert said is not None
        assert (said.values[ROWS], said.at) == (7, AT)
    assert proxies.asked == ["127.0.0.2"]
    assert "Authorization" not in proxies.headers[0]
    scraping.clock.now = 1.0
    proxies.say("127.0.0.2", buffer_rows=8)
    said = await scraping.ask("127.0.0.2")
    assert said is not None
    assert said.values[ROWS] == 8
    assert scraping.counted == ["ok", "ok"]


async def test_another_pod_at_the_same_address_is_another_pod(proxies: Proxies, session: aiohttp.ClientSession) -> None:
    proxies.say("127.0.0.2")
    scraping = Scraping(session, proxies.port)
    await scraping.ask("127.0.0.2", uid="1")
    await scraping.ask("127.0.0.2", uid="2")
    assert len(proxies.asked) == 2


async def test_a_pod_that_hangs_is_not_waited_for_and_holds_up_no_other(
    proxies: Proxies, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "ANSWER_TIMEOUT_S", 0.2)
    proxies.said["127.0.0.2"] = None
    proxies.say("127.0.0.3", buffer_rows=1)
    scraping = Scraping(session, proxies.port)
    silent, said = await asyncio.gather(scraping.ask("127.0.0.2", "a"), scraping.ask("127.0.0.3", "b"))
    assert silent is None
    assert said is not None
    await scraping.scraper.close()


async def test_a_pod_that_is_no_proxy_says_nothing(proxies: Proxies, session: aiohttp.ClientSession) -> None:
    proxies.said["127.0.0.2"] = "<html>"
    scraping = Scraping(session, proxies.port)
    assert await scraping.ask("127.0.0.2") is None
    assert await Scraping(session, 1).ask("127.0.0.2") is None
    assert scraping.counted == ["error"]


async def test_a_pod_that_says_too_much_says_nothing(
    proxies: Proxies, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "ANSWER_MAX_BYTES", 1000)
    proxies.said["127.0.0.2"] = exposition({ROWS: 1}) + "#" * 2000
    assert await Scraping(session, proxies.port).ask("127.0.0.2") is None


@pytest.mark.parametrize("ip", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_a_real_proxy_is_asked_at_an_address_of_either_family(session: aiohttp.ClientSession, ip: str) -> None:
    async with running_world(ADMIN_HOST="::") as world:
        said = await Scraping(session, world.proxy.admin_port).ask(ip)
    assert said is not None
    assert said.values[ROWS] == 0
