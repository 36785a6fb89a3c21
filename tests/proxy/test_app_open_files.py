"""How many connections fit into the limit on open files, and that the limit is raised before any is given up."""

import socket
import sys
from pathlib import Path

import pytest
from tests.proxy.running import environment, post, running_process, running_tinybird, until

from tinybird_proxy.app.open_files import RESERVED_FILES, room_for_connections


@pytest.mark.parametrize(
    ("wanted", "max_files", "allowed"),
    [
        (10_000, 10_000 + RESERVED_FILES, 10_000),
        (10_000, 1_000_000, 10_000),
        (10_000, 4096, 4096 - RESERVED_FILES),
        (10_000, 256, 128),
        (100, 256, 100),
        (10_000, 1, 1),
    ],
)
def test_the_rest_of_the_files_is_reserved_and_never_more_than_half(wanted: int, max_files: int, allowed: int) -> None:
    assert room_for_connections(wanted, max_files) == allowed


@pytest.mark.parametrize(("soft", "hard", "taken"), [(64, 4096, 2000), (64, 1024, 512)])
async def test_the_limit_is_raised_as_far_as_it_goes_and_the_rest_is_said(soft: int, hard: int, taken: int) -> None:
    limited = ("prlimit", f"--nofile={soft}:{hard}", sys.executable, "-m", "tinybird_proxy", "run")
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, MAX_CONNECTIONS="2000"), *limited) as proxy,
    ):
        assert (await post(proxy.port)).status == 202
        warned = [line for line in proxy.lines if "limit on open files" in line["message"]]
    if taken == 2000:
        assert warned == []
    else:
        (line,) = warned
        assert (line["max_connections"], line["max_open_files"]) == (2000, hard)
        assert line["connections_taken"] == taken


async def test_a_proxy_that_has_run_out_of_files_goes_on_once_there_are_some_again() -> None:
    limited = ("prlimit", "--nofile=24:24", sys.executable, "-m", "tinybird_proxy", "run")
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url), *limited) as proxy:
        crowd = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(60)]
        await until(lambda: len([*Path(f"/proc/{proxy.pid}/fd").iterdir()]) == 24)
        for one in crowd:
            one.close()
        await until(lambda: len([*Path(f"/proc/{proxy.pid}/fd").iterdir()]) < 20)
        assert (await post(proxy.port, body=b'{"n":1}')).status == 202
        assert await tinybird.wait_for_rows("hits", 1) == [b'{"n":1}']
