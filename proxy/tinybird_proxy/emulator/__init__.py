"""A Tinybird look-alike to develop and test against: ``/v0/events`` with tokens, schemas, limits and faults."""

from tinybird_proxy.emulator.faults import BadFault, Fault
from tinybird_proxy.emulator.request_log import ReceivedRequest
from tinybird_proxy.emulator.running import Emulator, running_emulator, serve
from tinybird_proxy.emulator.schemas import RowError
from tinybird_proxy.emulator.server import create_app, create_runner
from tinybird_proxy.emulator.settings import EmulatorSettings
from tinybird_proxy.emulator.store import Datasource, QuarantinedRow, StoreError
from tinybird_proxy.emulator.tokens import TokenEntry

__all__ = [
    "BadFault",
    "Datasource",
    "Emulator",
    "EmulatorSettings",
    "Fault",
    "QuarantinedRow",
    "ReceivedRequest",
    "RowError",
    "StoreError",
    "TokenEntry",
    "create_app",
    "create_runner",
    "running_emulator",
    "serve",
]
