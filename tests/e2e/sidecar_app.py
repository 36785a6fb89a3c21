"""An app that sends rows to Tinybird, as far as it knows. Standard library only; pods mount it from a ConfigMap.

    python sidecar_app.py PREFIX [--count N] [--rate ROWS_PER_S] [--on-sigterm end|ignore] [--listen PORT]

It posts rows with the ids PREFIX-1, PREFIX-2, …, one by one, to ``$TINYBIRD_URL/v0/events?name=events`` with
``$TINYBIRD_TOKEN``. Each id whose answer was a 2xx is a line of its own on stdout as soon as it is known; a line that
begins with ``#`` is anything else. So the container's log is the list of what must arrive.

    --count       ends after so many rows: status 0 if each had a 2xx, else 1. Without it it goes on.
    --rate        rows a second, at most; 20 unless given
    --on-sigterm  end: after the row at hand, with status 0, which is what an app should do. ignore: it goes on until it
                  is killed, and says of each row before it goes, `# sending ID`: of the last nobody hears what came.
    --listen      answers every GET on this port with 200
"""

import argparse
import http.client
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix")
    parser.add_argument("--count", type=int)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--on-sigterm", choices=("end", "ignore"), default="end")
    parser.add_argument("--listen", type=int)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    stop = threading.Event()

    def on_sigterm(*_: object) -> None:
        say(f"# SIGTERM: {options.on_sigterm}")
        if options.on_sigterm == "end":
            stop.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    if options.listen is not None:
        server = ThreadingHTTPServer(("", options.listen), Answering)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    posted, refused = 0, 0
    client = Client(os.environ["TINYBIRD_URL"], os.environ.get("TINYBIRD_TOKEN", ""))
    while not stop.is_set() and posted != options.count:
        posted += 1
        row_id = f"{options.prefix}-{posted}"
        if options.on_sigterm == "ignore":
            say(f"# sending {row_id}")
        answer = client.post(row_id)
        accepted = answer.startswith("2")
        say(row_id if accepted else f"# {row_id}: {answer}")
        refused += not accepted
        if posted != options.count:
            stop.wait(1 / options.rate)
    say(f"# end: {posted - refused} of {posted} rows had a 2xx")
    return 1 if options.count is not None and refused else 0


def say(line: str) -> None:
    # Not print: a signal's handler that prints while something is printed is an error, and would end the app.
    os.write(1, f"{line}\n".encode())


class Client:
    """Keeps its connection; after an error it makes a new one for the next row."""

    def __init__(self, url: str, token: str) -> None:
        self._host = urlsplit(url).netloc
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection: http.client.HTTPConnection | None = None

    def post(self, row_id: str) -> str:
        """The status, or the name of the error."""
        body = json.dumps({"id": row_id})
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
            self._connection.request("POST", "/v0/events?name=events", body, self._headers)
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return type(error).__name__
        return str(response.status)


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Standard output is for ids."""


if __name__ == "__main__":
    raise SystemExit(main())
