"""The two sockets that a proxy listens on, bound before anything else is built, with a sentence where that fails."""

import errno
import socket

from tinybird_proxy.config import Config
from tinybird_proxy.errors import ConfigError, Problem

# A full listen queue looks like an unreachable host to clients; the kernel caps this at somaxconn.
BACKLOG = 4096


def listen_on_both(config: Config) -> tuple[socket.socket, socket.socket]:
    """Bind the admin port and the public one; raise ``ConfigError`` with the problems of both."""
    sockets: list[socket.socket] = []
    problems: list[Problem] = []
    for variable, host, port in (
        ("ADMIN_PORT", config.admin_host, config.admin_port),
        ("PORT", config.host, config.port),
    ):
        try:
            sockets.append(_listen(variable, host, port))
        except ConfigError as error:
            problems += error.problems
    if problems:
        for opened in sockets:
            opened.close()
        raise ConfigError(problems)
    return sockets[0], sockets[1]


def _listen(variable: str, host: str, port: int) -> socket.socket:
    """Bind, with a sentence for a person if that fails. ``variable`` is the port's; the host's is named like it."""
    host_variable = variable.replace("PORT", "HOST")
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host's name"
        problem = Problem(host_variable, f"{host!r} is no address: {reason}; use one of this machine's, or 0.0.0.0")
        raise ConfigError([problem]) from error
    try:
        return socket.create_server(info[4][:2], family=info[0], backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            problem = Problem(host_variable, f"{host} is no address of this machine; use one that is, or 0.0.0.0")
            raise ConfigError([problem]) from error
        in_use = error.errno == errno.EADDRINUSE
        reason = "is already in use" if in_use else f"cannot be used: {error.strerror or error}"
        raise ConfigError([Problem(variable, f"{host}:{port} {reason}; choose another one")]) from error
