"""Lets one Python client do what it is told: ``python drive.py <client>``, with jobs and answers as JSON lines.

Runs with the Python of the client's own environment. A job is answered with ``{"status": n}`` for every answer that
the client was given, as it arrives, and then with ``{"returned": …}`` or ``{"raised": {type, message, status}}``.
"""

import http.client
import importlib
import json
import sys
from typing import Any


def say(answer: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(answer), flush=True)


class WatchedResponse(http.client.HTTPResponse):
    """Tells the status of what urllib and urllib3 receive; the clients are left as they are."""

    def begin(self) -> None:
        """Read the head."""
        super().begin()
        say({"status": self.status})


def main() -> None:
    """Do one job after the other until there are no more."""
    http.client.HTTPConnection.response_class = WatchedResponse
    client = importlib.import_module(f"with_{sys.argv[1]}")
    for line in sys.stdin:
        try:
            say({"returned": client.run(**json.loads(line))})
        except Exception as error:  # noqa: BLE001 - what the client raises is what is asked for
            message, status = client.told_by(error)
            say({"raised": {"type": type(error).__name__, "message": message, "status": status}})


if __name__ == "__main__":
    main()
