"""Whether the proxy may be sent traffic, and whether it refuses it: starting, running, draining."""

import asyncio
from collections.abc import Callable


class Availability:
    """Draining goes in two steps: unready at once, refusing after a delay, so that routers can look away first."""

    def __init__(self, *, drain_delay_s: float, now: Callable[[], float]) -> None:
        self._drain_delay_s = drain_delay_s
        self._now = now
        self._timer: asyncio.TimerHandle | None = None
        self.started = False
        self.stopping = False
        self.draining_since: float | None = None
        self.refusing = False

    @property
    def ready(self) -> bool:
        """Whether traffic should be sent here."""
        return self.started and self.draining_since is None

    @property
    def draining(self) -> bool:
        """Whether traffic should go elsewhere from now on."""
        return self.draining_since is not None

    @property
    def phase(self) -> str:
        """In one word: starting, running, draining, stopping."""
        if not self.started:
            return "starting"
        if self.stopping:
            return "stopping"
        return "running" if self.draining_since is None else "draining"

    def begin_drain(self) -> None:
        """Unready now, refusing after the delay. Calling it again changes nothing."""
        if self.draining_since is not None:
            return
        self.draining_since = self._now()
        if self._drain_delay_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self._drain_delay_s, self.refuse)
        else:
            self.refuse()

    def cancel_drain(self) -> bool:
        """Back to normal service; False if the process is stopping and there is no way back."""
        if self.stopping:
            return False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.draining_since = None
        self.refusing = False
        return True

    def refuse(self) -> None:
        """From now on requests get 503."""
        self.refusing = True
