"""Rows such as a web site would send, each with an id of its own. Pure."""

import json
import random
from datetime import datetime

DATA_SOURCE = "page_hits"
_PATHS = ("/", "/pricing", "/docs", "/docs/quickstart", "/blog/why-batches", "/changelog", "/login", "/cart", "/search")
_REFERRERS = (
    "",
    "https://www.google.com/",
    "https://news.ycombinator.com/",
    "https://duckduckgo.com/",
    "https://t.co/x",
)
_COUNTRIES = ("US", "DE", "ES", "FR", "GB", "IN", "BR", "JP", "NL", "PL")
_BROWSERS = (
    ("Firefox", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("Chrome", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0.0.0 Safari/537.36"),
    ("Safari", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148"),
)


def page_hit(number: int, when: datetime, chance: random.Random) -> bytes:
    """One row, its id ``number``: some 350 bytes of JSON."""
    browser, user_agent = chance.choice(_BROWSERS)
    row = {
        "id": number,
        "timestamp": when.isoformat(timespec="milliseconds"),
        "session_id": f"{chance.getrandbits(128):032x}",
        "path": chance.choice(_PATHS),
        "referrer": chance.choice(_REFERRERS),
        "country": chance.choice(_COUNTRIES),
        "browser": browser,
        "user_agent": user_agent,
        "load_ms": int(chance.lognormvariate(5.5, 0.6)),
    }
    return json.dumps(row, separators=(",", ":")).encode()
