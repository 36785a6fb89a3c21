"""The two sockets that a proxy listens on, bound before anything else is built, with a sentence where that fails."""

import errno
import socket
from collections.abc import Callable
from typing import Final

from tinybird_proxy.config import Config
from tinybird_proxy.errors import ConfigError, Problem

# A full listen queue looks like an unreachable host to clients; the kernel caps this at somaxconn.
BACKLOG = 4096
_EVERY_ADDRESS: Final = "::"
_EVERY_IPV4_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - in the place of ``::``, which somebody asked for
# Of ``::``, where the kernel has no IPv6, or has it and lets nobody use it.
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

# ``socket.create_server``, or what stands in for it.
CreateServer = Callable[..., socket.socket]


def listen_on_both(
    config: Config, *, create_server: CreateServer = socket.create_server
) -> tuple[socket.socket, socket.socket]:
    """Bind the admin port and the public one; raise ``ConfigError`` with the problems of both.

    The host ``::`` is every address of both families, and every one of IPv4 where there is no IPv6.
    """
    sockets: list[socket.socket] = []
    problems: list[Problem] = []
    for variable, host, port in (
        ("ADMIN_PORT", config.admin_host, config.admin_port),
        ("PORT", config.host, config.port),
    ):
        try:
            sockets.append(_listen(variable, host, port, create_server))
        except ConfigError as error:
            problems += error.problems
    if problems:
        for opened in sockets:
            opened.close()
        raise ConfigError(problems)
    return sockets[0], sockets[1]


def _listen(variable: str, host: str, port: int, create_server: CreateServer) -> socket.socket:
    """Bind, with a sentence for a person if that fails. ``variable`` is the port's; the host's is named like it."""
    host_variable = variable.replace("PORT", "HOST")
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host's name"
        problem = Problem(host_variable, f"{host!r} is no address: {reason}; use one of this machine's, or ::")
        raise ConfigError([problem]) from error
    try:
        if info[4][0] == _EVERY_ADDRESS:
            return _listen_everywhere(port, create_server)
        return create_server(info[4][:2], family=info[0], backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            problem = Problem(host_variable, f"{host} is no address of this machine; use one that is, or ::")
            raise ConfigError([problem]) from error
        in_use = error.errno == errno.EADDRINUSE
        reason = "is already in use" if in_use else f"cannot be used: {error.strerror or error}"
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigError([Problem(variable, f"{where} {reason}; choose another one")]) from error


def _listen_everywhere(port: int, create_server: CreateServer) -> socket.socket:
    try:
        # One socket, for port 0 too. It says so itself, whatever net.ipv6.bindv6only is.
        return create_server((_EVERY_ADDRESS, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    except ValueError:  # how ``socket.create_server`` says that there is no IPv6
        pass
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    return create_server((_EVERY_IPV4_ADDRESS, port), family=socket.AF_INET, backlog=BACKLOG)
