"""What an emulator is started with."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinybird_proxy.emulator.schemas import Schema
from tinybird_proxy.emulator.tokens import TokenEntry

_DATASOURCE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")


def is_datasource_name(name: str) -> bool:
    """Whether ``name`` can be that of a data source: a letter or ``_``, then letters, digits and ``_``."""
    return _DATASOURCE_NAME.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmulatorSettings:
    """Validated when made: a ``ValueError`` names the setting, its value and what is allowed."""

    token: str = field(repr=False)
    """May do everything."""
    tokens: tuple[TokenEntry, ...] = ()
    """More tokens, each with its scopes."""
    host: str = "127.0.0.1"
    """The paths under ``/emulator`` need no token, so beyond localhost anybody may set faults."""
    port: int = 7181
    """0: any free port. 7181 is where Tinybird Local listens."""
    data_dir: Path | None = None
    """Holds ``emulator.db``; made if missing. None: a directory that is deleted at the end."""
    wait_delay_s: float = 1.0
    """How long ``wait=true`` takes, in seconds. At Tinybird it is some 4 s, at worst 25 s."""
    requests_per_s: int = 100
    """For each data source, as Tinybird's plans have it. 0: no limit and no rate headers."""
    max_body_bytes: int = 10_000_000
    """Of one request, as sent: Tinybird's 10 MB."""
    max_inflated_bytes: int = 256_000_000
    """Of one request, after its Content-Encoding was undone."""
    create_datasources: bool = True
    """Whether any name is created on first use; else 404 for those that do not exist."""
    schemas: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Column types by data source and column. Without a schema every JSON object fits."""
    schema_file: Path | None = None
    """More of ``schemas``, as a JSON object of the same form, read at the start."""
    text_errors: bool = False
    """Answer errors as text/plain, as Tinybird sometimes does, instead of JSON."""
    seed: int | None = None
    """Makes a fault's ``share`` repeatable."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port}, must be from 0 to 65535")
        for name in ("wait_delay_s", "requests_per_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}, must be 0 or more")
        for name in ("max_body_bytes", "max_inflated_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, must be 1 or more")
        TokenEntry(self.token)
        parse_schemas(self.schemas)

    @property
    def token_entries(self) -> tuple[TokenEntry, ...]:
        """All tokens, the ADMIN one first."""
        return (TokenEntry(self.token), *self.tokens)


def parse_schemas(document: object) -> dict[str, Schema]:
    """Schemas by data source. Raises ``ValueError`` naming the data source."""
    if not isinstance(document, Mapping):
        raise ValueError('schemas: must be an object such as {"hits": {"path": "String"}}')
    schemas = {}
    for datasource, columns in document.items():
        if not is_datasource_name(datasource):
            raise ValueError(f"schemas: {datasource!r} is not the name of a data source")
        if not isinstance(columns, Mapping) or not all(isinstance(spelled, str) for spelled in columns.values()):
            raise ValueError(f"schemas: {datasource}: must be an object of column names and types")
        try:
            schemas[datasource] = Schema(columns)
        except ValueError as exc:
            raise ValueError(f"schemas: {datasource}: {exc}") from exc
    return schemas


def read_schema_file(path: Path) -> dict[str, Schema]:
    """The schemas in the JSON file ``path``. Blocks; raises ``ValueError`` naming the file."""
    try:
        return parse_schemas(json.loads(path.read_bytes()))
    except (OSError, ValueError) as exc:
        raise ValueError(f"schema_file: {path}: {exc}") from exc
