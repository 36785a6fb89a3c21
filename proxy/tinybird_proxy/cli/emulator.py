"""``tinybird-proxy emulator``: says where it listens, then serves until a signal."""

from pathlib import Path


async def run_emulator(
    *,
    host: str,
    port: int,
    token: str | None,
    data: Path | None,
    schemas: Path | None,
    wait_delay_s: float,
    rate_limit: int,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    raise NotImplementedError
