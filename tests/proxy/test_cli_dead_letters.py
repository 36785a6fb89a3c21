"""``tinybird-proxy dead-letters`` and ``probe``, as processes, against a proxy that runs as one."""

import asyncio
import json
import os
import pty
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.proxy.running import (
    DEADLINE_S,
    TOKEN,
    Peer,
    ProxyProcess,
    answer_bytes,
    ask,
    asked,
    environment,
    post,
    running_process,
    running_tinybird,
    serving,
)

from tinybird_proxy.cli.admin_client import default_url
from tinybird_proxy.cli.dead_letters import _ADVICE, _for_a_terminal
from tinybird_proxy.emulator import Emulator
from tinybird_proxy.ledger import LetterReason

ADMIN = "MARKadminKRAM"
REJECTED = b'{"id":1,"note":"MARKrow rejected", "n":1.50}'
PARTIAL = (b'{"id":2,"note":"MARKrow partial"}', b'{"id":3,"u":"\\ud800"}')
LARGE = b'{"id":4,"note":"MARKrow large"}'
COMMAND = (sys.executable, "-m", "tinybird_proxy")


@dataclass
class Desk:
    """A running proxy, Tinybird behind it, and somebody who types commands."""

    proxy: ProxyProcess
    tinybird: Emulator

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.admin_port}"

    async def type(
        self, *arguments: str, env: Mapping[str, str] | None = None, status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """A ``dead-letters`` command that ends with ``status``."""
        return await typed("dead-letters", *arguments, env={**self.env, **(env or {})}, status=status)

    @property
    def env(self) -> dict[str, str]:
        return {"ADMIN_PORT": str(self.proxy.admin_port)}

    async def letters(self) -> list[dict[str, object]]:
        ended = await self.type("ls", "--json")
        return [json.loads(line) for line in ended.stdout.splitlines()]

    async def lose(self, name: str, *rows: bytes, count: int) -> None:
        """Send rows that become dead letters, until there are ``count`` rows of them."""
        assert (await post(self.proxy.port, f"name={name}", b"\n".join(rows))).status == 202
        await self.proxy.status_until(lambda status: status["dead_letters"]["rows"] == count)


async def typed(
    *arguments: str, env: Mapping[str, str], status: int = 0, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={"PATH": os.environ["PATH"], **env},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    ended = await asyncio.to_thread(run)
    assert ended.returncode == status, ended
    assert "Traceback" not in ended.stderr
    return ended


@asynccontextmanager
async def desk(**env: str | None) -> AsyncIterator[Desk]:
    """A proxy whose data sources hits and clicks have taken a row each."""
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        for name in ("hits", "clicks"):
            await post(proxy.port, f"name={name}", b'{"id":0}')
            await tinybird.wait_for_rows(name, 1)
        yield Desk(proxy, tinybird)


@asynccontextmanager
async def desk_with_letters(**env: str | None) -> AsyncIterator[Desk]:
    """The same with three dead letters, of 400, 422 and 413; Tinybird takes everything again."""
    async with desk(**env) as found:
        found.tinybird.set_faults(
            {"row_matches": "rejected"},
            {"row_matches": "partial", "status": 422},
            {"row_matches": "large", "status": 413},
        )
        await found.lose("hits", REJECTED, count=1)
        await found.lose("clicks", *PARTIAL, count=3)
        await found.lose("hits", LARGE, count=4)
        found.tinybird.set_faults()
        yield found


# Looking.


async def test_without_dead_letters_each_command_says_so(tmp_path: Path) -> None:
    async with desk() as found:
        assert (await found.type("ls")).stdout == "There are no dead letters.\n"
        assert (await found.type("ls", "--json")).stdout == ""
        assert (await found.type("ls", "--name", "hits")).stdout == "There is no such dead letter.\n"
        assert (await found.type("replay")).stdout == "There are no dead letters.\n"
        assert (await found.type("drop", "--id", "x")).stdout == "There is no such dead letter.\n"
        assert "no dead letter x (any more)" in (await found.type("show", "x", status=1)).stderr
        exported = await found.type("export", str(tmp_path / "none.ndjson"))
        assert exported.stderr.startswith(f"{tmp_path / 'none.ndjson'}: 0 rows of 0 dead letters, as of 2")
        assert (tmp_path / "none.ndjson").read_bytes() == b""


async def test_the_list_is_a_table_with_a_sum_or_json() -> None:
    async with desk_with_letters() as found:
        listed = (await found.type("ls")).stdout.splitlines()
        assert re.split(r"  +", listed[0])[:7] == [
            *("id", "data source", "rows", "bytes", "reason", "status", "given up at")
        ]
        cells = [re.split(r"  +", line) for line in listed[1:4]]
        assert [row[1:6] for row in cells] == [
            ["hits", "1", str(len(REJECTED) + 1), "rejected", "400"],
            ["clicks", "2", str(sum(map(len, PARTIAL)) + 2), "partial", "422"],
            ["hits", "1", str(len(LARGE) + 1), "too_large", "413"],
        ]
        starts = [line.index(row[4]) for line, row in zip(listed[1:4], cells, strict=True)]
        assert len(set(starts)) == 1, "columns are aligned"
        size = len(REJECTED) + len(LARGE) + sum(map(len, PARTIAL)) + 4
        assert listed[4:] == ["", f"3 dead letters, 4 rows, {size} bytes"]
        assert [letter["id"] for letter in await found.letters()] == [row[0] for row in cells]
        assert (await found.type("ls", "--limit", "1")).stdout.endswith(
            f"\n1 dead letter, 1 row, {len(REJECTED) + 1} bytes\n"
        )
        for option, count in (
            (("--name", "hits"), 2),
            (("--reason", "partial"), 1),
            (("--status", "413"), 1),
            (("--id", cells[0][0], "--id", cells[1][0]), 2),
            (("--batch", cells[1][0]), 1),
            (("--since", "1h"), 3),
            (("--until", "1h"), 0),
            (("--client-told", "true"), 0),
        ):
            assert (await found.type("ls", "--json", *option)).stdout.count("\n") == count, option


async def test_a_letter_is_shown_with_advice_and_its_rows() -> None:
    async with desk_with_letters() as found:
        rejected, partial, _ = await found.letters()
        shown = (await found.type("show", str(partial["id"]))).stdout
        facts, advice, rows = shown.split("\n\n")
        assert {line.split()[0]: line.split(maxsplit=1)[1] for line in facts.splitlines() if "message" not in line} == {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in partial.items()
            if name != "message"
        }
        assert "doubles that part" in advice
        assert rows == b"".join(row + b"\n" for row in PARTIAL).decode()
        assert "mend it" in (await found.type("show", str(rejected["id"]))).stdout


def test_there_is_advice_for_every_reason() -> None:
    assert set(_ADVICE) == set(LetterReason)
    assert all(sentence.endswith(".") for sentence in _ADVICE.values())


def test_a_terminal_is_shown_the_same_json_and_obeys_nothing() -> None:
    rows = '{"a":"\x9b31m\x7fü\u00c2","b":\r1}\n'.encode()
    whole = b"".join(_for_a_terminal([rows]))
    assert json.loads(whole) == json.loads(rows)
    assert not re.search(r"[\x7f-\x9f\r]", whole.decode())
    for cut in range(len(rows)):
        assert b"".join(_for_a_terminal([rows[:cut], rows[cut:]])) == whole


# The round trip.


async def test_letters_are_exported_replayed_and_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.ndjson"
    async with desk_with_letters(ADMIN_TOKEN=ADMIN) as found:
        env = {"ADMIN_TOKEN": ADMIN}
        exported = await found.type("export", "--name", "hits", env=env)
        assert exported.stdout.encode() == REJECTED + b"\n" + LARGE + b"\n"
        assert exported.stderr.startswith("2 rows of 2 dead letters, as of 2")
        exported = await found.type("export", str(file), env=env)
        assert exported.stdout == ""
        assert exported.stderr.startswith(f"{file}: 4 rows of 3 dead letters, as of 2")
        assert file.read_bytes() == b"".join(row + b"\n" for row in (REJECTED, *PARTIAL, LARGE))
        assert file.stat().st_mode & 0o077 == 0, "rows are nobody else's"
        again = await found.type("export", str(file), "--name", "hits", env=env, status=1)
        assert "there already" in again.stderr
        assert "--force" in again.stderr
        assert file.read_bytes().count(b"\n") == 4
        await found.type("export", str(file), "--name", "hits", "--force", env=env)
        assert file.read_bytes().count(b"\n") == 2
        assert os.listdir(tmp_path) == [file.name]

        replayed = (await found.type("replay", env=env)).stdout.splitlines()
        assert replayed[0] == "2 dead letters replayed: 2 rows on the way to Tinybird again."
        assert replayed[1].startswith("2 rows skipped: Tinybird took a part of these rows")
        assert "--reason partial or by id" in replayed[1]
        arrived = await found.tinybird.wait_for_rows("hits", 3)
        assert sorted(map(json.loads, arrived), key=lambda row: row["id"])[1:] == [
            json.loads(REJECTED),
            json.loads(LARGE),
        ]
        refused = await found.type("drop", env=env, status=1)
        assert "--all" in refused.stderr
        assert "--all" in (await found.type("drop", "--all", "--name", "x", env=env, status=1)).stderr
        dropped = await found.type("drop", "--reason", "partial", env=env)
        assert dropped.stdout == "1 dead letter with 2 rows deleted.\n"
        status = await found.proxy.status_until(lambda status: status["buffer"]["rows"] == 0)
        assert status["dead_letters"]["rows"] == 0
        assert status["ledger"]["letters_deleted"] == 2
        assert await found.proxy.stop() == 0
        assert b"MARK" not in found.proxy.output, "no token and no row in the log"


async def test_what_came_after_an_export_is_not_dropped_with_it() -> None:
    async with desk_with_letters() as found:
        exported = await found.type("export", "--name", "hits")
        as_of = exported.stderr.split()[-1]
        found.tinybird.set_faults({"status": 422})
        await found.lose("hits", b"{}", count=5)
        await found.type("drop", "--name", "hits", "--until", as_of)
        assert [(one["data_source"], one["rows"]) for one in await found.letters()] == [("clicks", 2), ("hits", 1)]


async def test_partial_letters_are_replayed_when_they_are_named_and_held_ones_are_not_dropped() -> None:
    async with desk_with_letters() as found:
        found.tinybird.set_faults({"hang": True})
        replayed = await found.type("replay", "--reason", "partial")
        assert replayed.stdout == "1 dead letter replayed: 2 rows on the way to Tinybird again.\n"
        dropped = (await found.type("drop", "--name", "clicks")).stdout.splitlines()
        assert dropped[0] == "Nothing was deleted."
        assert dropped[1].startswith("2 rows skipped: they stand in the buffer again")
        (letter,) = (await found.type("ls", "--name", "clicks")).stdout.splitlines()[1:2]
        assert "replaying" in letter
        exported = await found.type("export")
        assert exported.stderr.startswith("4 rows of 3 dead letters; 2 of them are being replayed, too, as of 2")
        found.tinybird.set_faults()
        await found.tinybird.wait_for_rows("clicks", 2)
        (quarantined,) = await found.tinybird.quarantined_rows("clicks")
        assert quarantined.row == PARTIAL[1]


async def test_a_replay_without_room_ends_with_1() -> None:
    async with desk(BUFFER_SIZE="4", BATCH_SIZE="4") as found:
        found.tinybird.set_faults({"status": 422})
        await found.lose("clicks", b"{}", b"{}", count=2)
        found.tinybird.set_faults({"hang": True})
        assert (await post(found.proxy.port, "name=hits", b"{}\n{}\n{}")).status == 202
        ended = await found.type("replay", "--reason", "partial", status=1)
        assert ended.stdout.splitlines()[0] == "Nothing was replayed."
        assert ended.stdout.splitlines()[1].startswith("2 rows skipped: the buffer has no room")
        found.tinybird.set_faults()


async def test_on_a_terminal_a_drop_asks_first() -> None:
    async with desk_with_letters() as found:
        for typed_text, status, left in ((b"n\n", 1, 3), (b"y\n", 0, 1)):
            ours, theirs = pty.openpty()
            try:
                os.write(ours, typed_text)
                ended = await typed(
                    "dead-letters", "drop", "--name", "hits", env=found.env, status=status, stdin=theirs
                )
            finally:
                os.close(ours)
                os.close(theirs)
            assert "Delete 2 dead letters with 2 rows for ever? [y/N]" in ended.stderr
            assert len(await found.letters()) == left
        ours, theirs = pty.openpty()
        try:
            ended = await typed("dead-letters", "drop", "--all", "--yes", env=found.env, stdin=theirs)
        finally:
            os.close(ours)
            os.close(theirs)
        assert (ended.stdout, ended.stderr) == ("1 dead letter with 2 rows deleted.\n", "")


async def test_what_comes_while_somebody_thinks_about_a_drop_stays() -> None:
    async with desk_with_letters() as found:
        ours, theirs = pty.openpty()
        dropping = await asyncio.create_subprocess_exec(
            *(*COMMAND, "dead-letters", "drop", "--all"),
            env={"PATH": os.environ["PATH"], **found.env},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert dropping.stderr is not None
            async with asyncio.timeout(DEADLINE_S):
                assert b"3 dead letters with 4 rows" in await dropping.stderr.readuntil(b"[y/N]")
            found.tinybird.set_faults({"status": 422})
            await found.lose("hits", b"{}", count=5)
            os.write(ours, b"y\n")
            async with asyncio.timeout(DEADLINE_S):
                assert (await dropping.communicate())[0] == b"3 dead letters with 4 rows deleted.\n"
        finally:
            if dropping.returncode is None:
                dropping.kill()
                await dropping.wait()
            os.close(ours)
            os.close(theirs)
        assert [letter["rows"] for letter in await found.letters()] == [1]


async def test_a_probe_tries_what_is_held_again() -> None:
    async with desk() as found:
        assert (await typed("probe", env=found.env)).stdout == "Nothing is held.\n"
        found.tinybird.set_faults({"status": 418})
        await post(found.proxy.port, "name=hits", b"{}")
        await found.proxy.status_until(lambda status: "held" in [one["state"] for one in status["destinations"]])
        found.tinybird.set_faults()
        ended = await typed("probe", "--admin-url", found.url, env={})
        assert ended.stdout == "1 destination is held and is tried again now.\n"
        await found.tinybird.wait_for_rows("hits", 2)


# What goes wrong.


async def test_a_wrong_token_or_none_is_told_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with desk(ADMIN_TOKEN=ADMIN) as found:
        missing = await found.type("ls", status=1)
        assert missing.stderr.startswith("Error: the proxy wants its ADMIN_TOKEN: set ADMIN_TOKEN")
        wrong = await found.type("ls", env={"ADMIN_TOKEN": "MARKwrongKRAM"}, status=1)
        assert wrong.stderr.startswith("Error: the proxy refuses the token of ADMIN_TOKEN")
        assert "MARK" not in wrong.stdout + wrong.stderr
        file.write_text(f"{ADMIN}\n")
        assert (await found.type("ls", env={"ADMIN_TOKEN_FILE": str(file)})).stdout == "There are no dead letters.\n"
        for env, said in (
            ({"ADMIN_TOKEN": "", "ADMIN_PORT": "1"}, "ADMIN_TOKEN is set but empty"),
            ({"ADMIN_TOKEN": "MARK KRAM"}, "ADMIN_TOKEN: (not shown): holds characters"),
            ({"ADMIN_TOKEN": ADMIN, "ADMIN_TOKEN_FILE": str(file)}, "set one of them"),
            ({"ADMIN_TOKEN_FILE": str(tmp_path / "none")}, "ADMIN_TOKEN_FILE: "),
        ):
            ended = await found.type("ls", env=env, status=1)
            assert said in ended.stderr
            assert "MARK" not in ended.stderr


async def test_a_proxy_that_is_not_there_is_told_apart_from_one_that_is_something_else() -> None:
    async with serving(asked_then(answer_bytes(200, b"<html>", ("Content-Type", "text/html")))) as port:
        pass
    nobody = await typed("dead-letters", "ls", env={"ADMIN_PORT": str(port)}, status=1)
    assert nobody.stderr.startswith(f"Error: nothing listens at http://127.0.0.1:{port}: is the proxy running")
    assert (await typed("dead-letters", "ls", "--admin-url", "http://no.invalid", env={}, status=1)).stderr.startswith(
        "Error: http://no.invalid cannot be reached: "
    )
    for reply in (
        answer_bytes(200, b"<html>", ("Content-Type", "text/html")),
        answer_bytes(404, b"{}", ("Content-Type", "application/json")),
        answer_bytes(302, b"", ("Location", "http://127.0.0.1:1/")),
    ):
        async with serving(asked_then(reply)) as port:
            ended = await typed("dead-letters", "ls", env={"ADMIN_PORT": str(port)}, status=1)
        assert "does not answer as the admin port of this version does" in ended.stderr
    async with serving(asked_then(b"SSH-2.0-OpenSSH\r\n")) as port:
        ended = await typed("dead-letters", "replay", env={"ADMIN_PORT": str(port)}, status=1)
        assert "broke off" in ended.stderr
    async with desk() as found:
        ended = await typed(
            "dead-letters", "ls", "--admin-url", f"http://127.0.0.1:{found.proxy.port}", env={}, status=1
        )
        assert "is it the public port" in ended.stderr


@pytest.mark.parametrize(
    "url", ["", "localhost:8001", "ftp://x", "http://", "http://x:99999", "http://x/admin", "http://[", "http://x/?a=1"]
)
async def test_a_url_that_is_none_is_named(url: str) -> None:
    ended = await typed("probe", "--admin-url", url, env={}, status=1)
    assert "is no admin URL; it must look like http://127.0.0.1:8001" in ended.stderr


async def test_a_filter_that_the_proxy_refuses_is_named_and_does_nothing() -> None:
    async with desk_with_letters() as found:
        for arguments in (("ls", "--since", "yesterday"), ("drop", "--name", ""), ("replay", "--status", "x")):
            ended = await found.type(*arguments, status=1)
            assert f"Error: {arguments[1][2:]}: {arguments[2]!r}, must be " in ended.stderr
        assert (await found.type("ls", "--reason", "bad", status=2)).stderr
        assert len(await found.letters()) == 3


async def test_a_draining_proxy_says_not_now() -> None:
    async with desk_with_letters() as found:
        await post_drain(found)
        ended = await found.type("replay", status=1)
        assert ended.stderr.startswith("Error: not now: the proxy is draining")
        assert len(await found.letters()) == 3


async def post_drain(found: Desk) -> None:
    headers = {"X-Tinybird-Proxy": "1"}
    assert (await ask(found.proxy.admin_port, "/drain", headers=headers, token=None)).status == 202


def asked_then(reply: bytes) -> Callable[[Peer], Awaitable[None]]:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(reply)

    return handle


_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nX-Dead-Letters: 2\r\nX-Dead-Letter-Rows: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"3\r\n{}\n\r\n", "broke off"),
        (b"3\r\n{}", "broke off"),
        (b"3\r\n{}\n\r\n0\r\n\r\n", "only 1 of 2 rows came"),
    ],
)
async def test_a_transfer_that_breaks_leaves_no_file(body: bytes, said: str, tmp_path: Path) -> None:
    old = tmp_path / "old.ndjson"
    old.write_text("old")
    async with serving(asked_then(_HEAD + body)) as port:
        env = {"ADMIN_PORT": str(port)}
        for arguments in ((str(tmp_path / "new.ndjson"),), (str(old), "--force"), ()):
            ended = await typed("dead-letters", "export", *arguments, env=env, status=1)
            assert said in ended.stderr
    assert os.listdir(tmp_path) == ["old.ndjson"]
    assert old.read_text() == "old"


async def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async with desk() as found:
        ended = await found.type("export", str(tmp_path / "no" / "x.ndjson"), status=1)
        assert f"Error: {tmp_path}/no/x.ndjson cannot be written: No such file or directory" in ended.stderr
        assert "no ordinary file" in (await found.type("export", "/dev/null", "--force", status=1)).stderr
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# Where it asks.


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "http://127.0.0.1:8001"),
        ({"ADMIN_PORT": "9001"}, "http://127.0.0.1:9001"),
        ({"ADMIN_HOST": "0.0.0.0"}, "http://127.0.0.1:8001"),  # noqa: S104 - the proxy's, not ours
        ({"ADMIN_HOST": "::", "ADMIN_PORT": "9001"}, "http://127.0.0.1:9001"),
        ({"ADMIN_HOST": "::1"}, "http://[::1]:8001"),
        ({"ADMIN_HOST": "10.1.2.3"}, "http://10.1.2.3:8001"),
    ],
)
def test_the_admin_port_is_where_the_proxys_variables_say(env: dict[str, str], url: str) -> None:
    assert default_url(env) == url


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ADMIN_PORT": "0"}, "--admin-url"),
        ({"ADMIN_PORT": "80a"}, "ADMIN_PORT: '80a': must be a whole number"),
        ({"ADMIN_HOST": ""}, "ADMIN_HOST is set but empty"),
    ],
)
async def test_variables_that_name_no_port_are_named(env: dict[str, str], said: str) -> None:
    assert said in (await typed("dead-letters", "ls", env=env, status=1)).stderr


async def test_a_proxy_for_outgoing_requests_never_sees_the_admin_token() -> None:
    heard: list[str] = []

    async def overhear(peer: Peer) -> None:
        heard.append((await asked(peer)).target)

    async with serving(overhear) as port, desk(ADMIN_TOKEN=ADMIN) as found:
        proxy = f"http://127.0.0.1:{port}"
        env = {"ADMIN_TOKEN": ADMIN, "HTTP_PROXY": proxy, "http_proxy": proxy, "ALL_PROXY": proxy}
        assert (await found.type("ls", env=env)).stdout == "There are no dead letters.\n"
    assert heard == []


_LIST_MODULES = """
import atexit, sys
atexit.register(lambda: print("modules", *sorted(sys.modules), file=sys.stderr))
from tinybird_proxy.cli import main
main()
"""


async def test_run_loads_none_of_it() -> None:
    env = environment("http://127.0.0.1:9", TINYBIRD_TOKEN=TOKEN)
    async with running_process(env, sys.executable, "-c", _LIST_MODULES, "run") as proxy:
        assert await proxy.stop() == 0
    loaded = proxy.output.decode().rpartition("modules ")[2].split()
    assert "tinybird_proxy.app.run" in loaded
    assert [name for name in loaded if name.startswith("tinybird_proxy.cli.")] == ["tinybird_proxy.cli.main"]


async def test_the_help_names_the_commands() -> None:
    assert "\n  dead-letters  " in (await typed("--help", env={})).stdout
    commands = (await typed("dead-letters", "--help", env={})).stdout
    for command in ("ls", "show", "export", "replay", "drop"):
        assert f"\n  {command} " in commands
    for command in ("ls", "show", "export", "replay", "drop"):
        assert "--token" not in (await typed("dead-letters", command, "--help", env={})).stdout
