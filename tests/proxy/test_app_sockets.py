"""What a proxy listens on: one family, both, and what is left where there is no IPv6."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.proxy.running import (
    DEADLINE_S,
    ended_process,
    environment,
    needs_ipv6,
    request,
    running_process,
    running_world,
)

from tinybird_proxy.app.sockets import CreateServer, listen_on_both
from tinybird_proxy.config import from_env
from tinybird_proxy.errors import ConfigError

NOWHERE = "http://127.0.0.1:9"


async def _answers(address: str, port: int, target: str) -> bool:
    """Whether a GET of ``target`` is answered with 200."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(request(target, method="GET"))
        first = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return first.startswith(b"HTTP/1.1 200")


@contextmanager
def _listening(create_server: CreateServer = socket.create_server, **env: str) -> Iterator[socket.socket]:
    """The public socket of a proxy with this environment."""
    config = from_env({"PORT": "0", "ADMIN_PORT": "0", **env})
    admin, public = listen_on_both(config, create_server=create_server)
    with admin, public:
        yield public


def _without_ipv6(error: Exception) -> CreateServer:
    """``socket.create_server`` of a machine that answers with ``error`` whenever it is asked for IPv6."""

    def create_server(address: tuple[str, int], *, family: int, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise error
        return socket.create_server(address, family=family, **options)

    return create_server


# One family.


@needs_ipv6
async def test_it_listens_on_ipv6_too() -> None:
    async with running_world(HOST="::1", ADMIN_HOST="::1") as world:
        assert await _answers("::1", world.port, "/v1/liveness")
        assert await _answers("::1", world.proxy.admin_port, "/livez")


def test_0_0_0_0_is_ipv4_alone() -> None:
    with _listening(HOST="0.0.0.0") as listener:  # noqa: S104 - the documented default
        assert (listener.family, listener.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")  # noqa: S104


# Both.


@needs_ipv6
async def test_two_colons_are_every_address_of_both_families() -> None:
    async with running_world(HOST="::", ADMIN_HOST="::") as world:
        for address in ("127.0.0.1", "::1"):
            assert await _answers(address, world.port, "/v1/liveness")
            assert await _answers(address, world.proxy.admin_port, "/livez")


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "0::0", "0:0:0:0:0:0:0:0"])
def test_the_socket_says_itself_that_it_is_for_both_whatever_the_machines_default_is(host: str) -> None:
    with _listening(HOST=host) as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


@needs_ipv6
@pytest.mark.parametrize("address", ["0.0.0.0", "::"])  # noqa: S104 - somebody else's
def test_a_port_that_is_taken_in_either_family_is_told_in_a_sentence(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as taken:
        port = taken.getsockname()[1]
        ended = ended_process(environment(NOWHERE, HOST="::", PORT=str(port)))
    assert ended.returncode == 2
    assert f"\n  PORT: [::]:{port} is already in use; choose another one\n" in ended.stderr


# No IPv6.


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)),
        OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)),
        ValueError("dualstack_ipv6 not supported on this platform"),
    ],
)
async def test_without_ipv6_two_colons_are_every_address_of_ipv4(error: Exception) -> None:
    with _listening(_without_ipv6(error), HOST="::") as listener:
        host, port = listener.getsockname()
        assert host == "0.0.0.0"  # noqa: S104 - that is the point
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EADDRINUSE, r"\[::\]:0 is already in use"),
        (errno.EMFILE, r"\[::\]:0 cannot be used: Too many open files"),
    ],
)
def test_what_is_wrong_with_both_families_is_told_and_not_got_round(number: int, said: str) -> None:
    broken = _without_ipv6(OSError(number, os.strerror(number)))
    with pytest.raises(ConfigError, match=said), _listening(broken, HOST="::"):
        pass


def test_an_address_of_ipv6_is_not_replaced() -> None:
    missing = _without_ipv6(OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)))
    with pytest.raises(ConfigError, match="::1"), _listening(missing, HOST="::1"):
        pass


# What is told.


@pytest.mark.parametrize(
    ("env", "bound"),
    [
        ({"HOST": "localhost"}, ("127.0.0.1", "127.0.0.1")),
        pytest.param({"HOST": "::", "ADMIN_HOST": "::1"}, ("::", "::1"), marks=needs_ipv6),
    ],
)
async def test_the_log_says_which_addresses_were_bound(env: dict[str, str], bound: tuple[str, str]) -> None:
    async with running_process(environment(NOWHERE, **env)) as proxy:
        ready = await proxy.logged("ready")
        assert (ready["host"], ready["admin_host"]) == bound
        assert await proxy.stop() == 0
