"""Whether the proxy may be sent traffic, and whether it refuses it: starting, running, draining."""

import asyncio
from collections.abc import Callable


class Availability:
    """Draining goes in two steps: unready at once, refusing after a delay, so that routers can look away first."""

    def __init__(self, *, drain_delay_s: float, now: Callable[[], float]) -> None:
        self._drain_delay_s = drain_delay_s
        self._now = now
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: list[Callable[[bool], None]] = []
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

    def on_refusing(self, listener: Callable[[bool], None]) -> None:
        """``listener`` hears True when requests begin to be refused, and False when a cancelled drain ends that."""
        self._listeners.append(listener)

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
        self._set_refusing(False)
        return True

    def refuse(self) -> None:
        """From now on requests get 503. Calling it again changes nothing."""
        self._set_refusing(True)

    def _set_refusing(self, refusing: bool) -> None:
        if refusing is self.refusing:
            return
        self.refusing = refusing
        for listener in self._listeners:
            listener(refusing)
