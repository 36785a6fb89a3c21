"""The clients as long-lived processes that do one job after the other: see ``clients/drive.mjs`` and ``drive.py``."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
JOB_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Client:
    """A client library at the one version that is tested, and how to let it work."""

    name: str
    version: str
    runtime: str
    module: str

    @property
    def command(self) -> list[str]:
        """Start its driver with this."""
        if self.runtime == "node":
            return ["node", str(HERE / "clients/drive.mjs"), self.module]
        return [str(self._venv / "bin/python"), str(HERE / "clients/drive.py"), self.module]

    @property
    def missing(self) -> str | None:
        """Why it cannot be driven, with what to do about it; None if it can."""
        if self.runtime == "node" and shutil.which("node") is None:
            return "Node 20 or newer was not found: install it, then run make test"
        return None if self._installed.exists() else f"{self.name} is not installed: run make test, which needs Node 20"

    def installed_version(self) -> str:
        """The version that is there."""
        if self.runtime == "node":
            found: str = json.loads((self._node_module / "package.json").read_text())["version"]
            return found
        (metadata,) = self._venv.glob(f"lib/python*/site-packages/{self.module}-*.dist-info")
        return metadata.name.removesuffix(".dist-info").rpartition("-")[2]

    @property
    def _installed(self) -> Path:
        return (HERE / "node_modules" if self.runtime == "node" else self._venv) / ".installed-from"

    @property
    def _node_module(self) -> Path:
        return HERE / "node_modules" / self.name

    @property
    def _venv(self) -> Path:
        return HERE / ".venvs" / self.name


TS_SDK: Final = Client("@tinybirdco/sdk", "0.0.84", "node", "tinybirdco_sdk")
ZOD_BIRD: Final = Client("@chronark/zod-bird", "1.0.0", "node", "zod_bird")
PYTHON_SDK: Final = Client("tinybird-sdk", "0.4.0", "python", "tinybird_sdk")
OLD_PYTHON_SDK: Final = Client("tinybird-python-sdk", "0.3.7", "python", "tinybird_python_sdk")
CLIENTS: Final = (TS_SDK, ZOD_BIRD, PYTHON_SDK, OLD_PYTHON_SDK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a client is to do. None: what the client does by itself; without a say about it, it does that anyway."""

    base_url: str
    token: str
    datasource: str
    rows: list[Any]
    one_by_one: bool = False
    """Each row in a call of its own."""
    wait: bool | None = None
    max_retries: int | None = None
    query: str | None = None
    """Ask this instead of sending rows."""
    by: str | None = None
    """Another of the client's ways to send, by its name in the library."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What the client gave back to its caller."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """What the client threw at its caller."""

    type: str
    message: str
    status: int | None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client was answered, and what its caller got from it."""

    statuses: tuple[int, ...]
    """Of all answers in order, retries included; the same one several times in a row is one."""
    outcome: Returned | Raised


class Driver:
    """One client's process. Made by `running_driver`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._process: asyncio.subprocess.Process | None = None

    async def do(self, job: Job, *, on_status: Callable[[int], None] = lambda status: None) -> Heard:
        """Have the client do ``job``; ``on_status`` is called as each answer arrives. Raises TimeoutError."""
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        statuses: list[int] = []
        try:
            async with asyncio.timeout(JOB_TIMEOUT_S):
                process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
                await process.stdin.drain()
                while line := await process.stdout.readline():
                    match json.loads(line):
                        case {"status": status}:
                            if statuses[-1:] != [status]:
                                statuses.append(status)
                            on_status(status)
                        case {"returned": value}:
                            return Heard(tuple(statuses), Returned(value))
                        case {"raised": raised}:
                            return Heard(tuple(statuses), Raised(**raised))
        except BaseException:
            await self.stop()  # it may still be at it
            raise
        raise AssertionError(f"{self.client.name}: the driver ended in the middle of a job")

    async def stop(self) -> None:
        """End the process; it may have ended already."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self.client.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={"PATH": os.environ["PATH"]},  # no HTTP_PROXY, no TINYBIRD_…
            )
        return self._process


@asynccontextmanager
async def running_driver(client: Client) -> AsyncIterator[Driver]:
    """A driver whose process starts with its first job and ends with the block."""
    driver = Driver(client)
    try:
        yield driver
    finally:
        await driver.stop()
