"""The demo's child processes: started from this very Python, listened to, and ended by their own handle.

Each is in a session of its own, so that Ctrl-C reaches the demo alone and the children are stopped in order.
"""

import asyncio
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from tinybird_proxy.config import OPTIONS

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 8.0
_LINES_KEPT = 200
_LINE_BYTES_MAX = 1024 * 1024
# What belongs to another proxy, or would lead the traffic of a demo away from this machine.
_NOT_PASSED_ON = {"http_proxy", "https_proxy", "all_proxy"}
_T = TypeVar("_T")


class ChildFailed(Exception):
    """A process did not do what it was started for; the message ends with its last words."""


class Child:
    """A running process of ours, and the lines that it wrote to stdout and stderr. Made by `running_child`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._process = process

    @property
    def exit_status(self) -> int | None:
        """None while it runs; the negative signal number if one ended it."""
        return self._process.returncode

    async def hear(self, find: Callable[[str], _T | None]) -> _T:
        """The first thing that ``find`` finds in a line from now on. Raises `ChildFailed`."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                async for line in self._read():
                    if (found := find(line)) is not None:
                        return found
                await self._process.wait()
        except TimeoutError as error:
            raise ChildFailed(f"The {self.name} was not ready within {START_TIMEOUT_S:g} s. {self.said}") from error
        raise ChildFailed(f"The {self.name} ended with status {self.exit_status} before it was ready. {self.said}")

    async def follow(self, heed: Callable[[str], object]) -> None:
        """Give ``heed`` every further line; return the end of the process."""
        async for line in self._read():
            heed(line)
        await self._process.wait()

    @property
    def said(self) -> str:
        """Its last lines, for an error message."""
        last = [f"\n  {line}" for line in list(self.lines)[-10:]]
        return "It said:" + "".join(last) if last else "It said nothing."

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it does not come in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        return self.exit_status is not None

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM); nothing happens if it has ended."""
        if self.exit_status is None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    async def end(self) -> None:
        """Stop it, gently and then not."""
        self.terminate()
        if not await self.wait(STOP_TIMEOUT_S):
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _read(self) -> AsyncIterator[str]:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            yield line


@asynccontextmanager
async def running_child(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """Run ``tinybird-proxy`` with ``arguments`` until the block ends, however it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tinybird_proxy",
        *arguments,
        env={**plain_environment(os.environ), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        limit=_LINE_BYTES_MAX,
        start_new_session=True,
    )
    child = Child(name, process)
    try:
        yield child
    finally:
        await asyncio.shield(child.end())


def plain_environment(env: Mapping[str, str]) -> dict[str, str]:
    """``env`` without anything that configures a proxy, an exporter, or another route to 127.0.0.1."""
    ours = {name for option in OPTIONS for name in (option.variable, *option.aliases)}
    return {
        name: value
        for name, value in env.items()
        if name not in ours and not name.startswith("OTEL_") and name.lower() not in _NOT_PASSED_ON
    }
