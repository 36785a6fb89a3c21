"""What the handlers of one emulator share."""

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from tinybird_proxy.emulator.faults import Fault, FaultList
from tinybird_proxy.emulator.limits import RequestLimiter
from tinybird_proxy.emulator.replies import Refused
from tinybird_proxy.emulator.request_log import ReceivedRequest, RequestLog
from tinybird_proxy.emulator.schemas import Schema
from tinybird_proxy.emulator.settings import EmulatorSettings, parse_schemas
from tinybird_proxy.emulator.sql import QueryRunner
from tinybird_proxy.emulator.store import QuarantinedRow, Store
from tinybird_proxy.emulator.tokens import TokenEntry, find_token, token_of

MAX_DATASOURCES = 10_000
_MAX_LARGE_BODIES = 32
_MAX_CHECKED_BODIES = 4


class EmulatorState:
    """Made with the application, complete once `store` and `queries` were opened at its start."""

    store: Store
    queries: QueryRunner
    checkers: ThreadPoolExecutor
    """Where bodies are inflated and checked."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        self.tokens: tuple[TokenEntry, ...] = settings.token_entries
        self.schemas: dict[str, Schema] = parse_schemas(settings.schemas)
        self.known_datasources: set[str] = set()
        self.limiter = RequestLimiter(settings.requests_per_s)
        self.faults = FaultList(random.Random(settings.seed))  # noqa: S311 — chance, not secrets
        self.faults_changed = asyncio.Event()
        """Set, and replaced by a new one, each time the faults change."""
        self.log = RequestLog()
        self.stored = asyncio.Event()
        """Set, and replaced by a new one, each time rows were stored."""
        self.large_bodies = asyncio.Semaphore(_MAX_LARGE_BODIES)
        """Taken from a large body's first byte until its rows are stored."""
        self.checked_bodies = asyncio.Semaphore(_MAX_CHECKED_BODIES)
        """Taken while a body is checked and stored, so that few are in memory inflated."""

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the faults; requests that hang are let go."""
        self.faults.replace(faults)
        self.faults_changed.set()
        self.faults_changed = asyncio.Event()

    async def keep(
        self,
        datasource: str,
        request_id: str,
        rows: Sequence[bytes],
        quarantined: Sequence[QuarantinedRow] = (),
    ) -> None:
        """Store rows, creating the data source if it is new; return once they are committed."""
        await self.store.ingest(datasource, request_id, rows, quarantined)
        self.known_datasources.add(datasource)
        self.stored.set()
        self.stored = asyncio.Event()

    def authenticate(self, request: web.Request) -> TokenEntry:
        """The entry of the request's token. Raises `Refused` with 401 or 403."""
        token = token_of(request.headers, request.query)
        if token is None:
            raise Refused(401, "no token: send Authorization: Bearer <token>, or ?token=<token>")
        entry = find_token(self.tokens, token)
        if entry is None:
            raise Refused(403, "invalid authentication token")
        return entry

    def require_admin(self, request: web.Request) -> None:
        """Raises `Refused` unless the request's token may do everything."""
        if not self.authenticate(request).is_admin:
            raise Refused(403, "this needs a token with the scope ADMIN")

    def require_datasource(self, name: str) -> None:
        """Raises `Refused` if rows for ``name`` have nowhere to go."""
        if name in self.known_datasources:
            return
        if not self.settings.create_datasources:
            raise Refused(404, f"Data Source {name!r} does not exist")
        if len(self.known_datasources) >= MAX_DATASOURCES:
            raise Refused(400, f"more than {MAX_DATASOURCES} data sources")


STATE = web.AppKey("STATE", EmulatorState)
RECEIVED = web.RequestKey("RECEIVED", ReceivedRequest)
