"""Files that the process may have open: a connection is one, and so is everything else that it needs."""

import resource
from typing import Final

from tinybird_proxy.telemetry.logs import fields, get_logger

# Connections to Tinybird, the admin port's, clients that are told that there is no room, the process's own.
RESERVED_FILES: Final = 512
_log = get_logger("app")


def room_for_connections(wanted: int, max_files: int) -> int:
    """How many connections of clients fit where ``max_files`` may be open; at least one, at most ``wanted``."""
    return max(1, min(wanted, max(max_files - RESERVED_FILES, max_files // 2)))


def allowed_connections(wanted: int) -> int:
    """Raise the process's limit as far as ``wanted`` connections need it, and say how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = room_for_connections(wanted, soft)
    if allowed < wanted:
        _log.warning(
            "MAX_CONNECTIONS is more than the limit on open files allows: fewer are taken; "
            "raise the limit (ulimit -n, LimitNOFILE) or lower MAX_CONNECTIONS",
            extra=fields(
                max_connections=wanted, max_open_files=soft, reserved_files=soft - allowed, connections_taken=allowed
            ),
        )
    return allowed
