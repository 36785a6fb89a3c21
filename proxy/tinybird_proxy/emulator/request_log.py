"""What the emulator was asked, kept for whoever wants to know: the last 10,000 requests."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

MAX_REQUESTS = 10_000


@dataclass(slots=True)
class ReceivedRequest:
    """One request; its later fields are filled in as they become known."""

    request_id: str
    received_at: float
    """Seconds since 1970, when the head had arrived."""
    received_loop_s: float
    """The same moment by the event loop's clock, in seconds; only differences mean something."""
    method: str
    path: str
    query: dict[str, str]
    """The first value of each parameter; the token is replaced by the start of its SHA-256."""
    headers: dict[str, str]
    """In their own spelling; the token is replaced likewise."""
    datasource: str | None = None
    body_bytes: int | None = None
    """As sent; None if the body was not read."""
    body_sha256: str | None = None
    """Of the body as sent."""
    raw_bytes: int | None = None
    """After the Content-Encoding was undone."""
    raw_sha256: str | None = None
    row_count: int | None = None
    """None if the rows were not looked at, or could not be told apart."""
    fault: dict[str, Any] | None = None
    """The fault that was applied."""
    status: int | None = None
    """What was answered; None: not yet, or nothing ever."""
    answered_loop_s: float | None = None
    """When the answer was ready, or it was clear that there would be none, by the event loop's clock."""


class RequestLog:
    """The requests in order of arrival, and a way to wait for more of them."""

    def __init__(self) -> None:
        self.requests: deque[ReceivedRequest] = deque(maxlen=MAX_REQUESTS)
        self.finished_count = 0
        """Requests that were answered, or that it is clear will never be, since the start."""
        self.progress = asyncio.Event()
        """Set, and replaced by a new one, each time a request arrives, meets a fault, or is finished."""

    def add(self, received: ReceivedRequest) -> None:
        """Note the arrival of a request."""
        self.requests.append(received)
        self.note_progress()

    def finish(self, received: ReceivedRequest, now: float) -> None:
        """Note the end of a request, at ``now`` by the event loop's clock."""
        received.answered_loop_s = now
        self.finished_count += 1
        self.note_progress()

    def note_progress(self) -> None:
        """Wake those who wait for something to happen."""
        self.progress.set()
        self.progress = asyncio.Event()
