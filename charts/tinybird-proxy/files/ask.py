"""Run by `helm test`: asks the Service whether a proxy answers, and posts a row if one is given.

Arguments: the Service's URL, and a data source and a row for it. The token is the first in FILE, if that is there.
"""

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

FILE = Path("/etc/tinybird-proxy/test/token")
TRIES = 30


def ask(url, row=None, headers=()):
    """Status and text of the answer; until there is one, once a second."""
    tries = 0
    while True:
        tries += 1
        try:
            with urllib.request.urlopen(urllib.request.Request(url, row, dict(headers)), timeout=40) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()
        except OSError as error:
            if tries == TRIES:
                sys.exit(f"{url} gave no answer in {TRIES} tries: {error}. Is a pod ready? May this one connect to it?")
            time.sleep(1)


def token():
    """The first token of a list of clients' tokens; a file with one token is such a list."""
    words = [line.split() for line in FILE.read_text().splitlines()] if FILE.exists() else []
    return next((line[0] for line in words if line and not line[0].startswith("#")), None)


service, *event = sys.argv[1:]
ask(f"{service}/")
print(f"A proxy answers at {service}.")
if event:
    datasource, row = event
    headers = {"Authorization": f"Bearer {shown}"} if (shown := token()) else {}
    status, text = ask(f"{service}/v0/events?name={quote(datasource)}&wait=true", row.encode(), headers)
    if status not in (200, 202):
        sys.exit(f"A row for {datasource} was refused ({status}): {text.strip()}")
    print(f"A row for {datasource} was {'written' if status == 200 else 'taken'} ({status}): {text.strip()}")
