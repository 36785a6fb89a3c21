"""Tokens and certificates from files: read at the start, read again when they change, as Kubernetes changes them."""

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.proxy.running import (
    TOKEN,
    World,
    ask,
    connected,
    environment,
    make_authority,
    make_certificate,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    until,
)

from tinybird_proxy.app import secrets as app_secrets
from tinybird_proxy.app.secrets import load_secrets
from tinybird_proxy.config import from_env
from tinybird_proxy.emulator import TokenEntry
from tinybird_proxy.errors import ConfigError
from tinybird_proxy.testing.otlp_receiver import OtlpReceiver

DRAIN = {"Authorization": "Bearer second-admin"}


class Volume:
    """A directory as Kubernetes mounts a Secret: files are links into ``..data``, a link that is swapped as a whole."""

    def __init__(self, directory: Path, **files: str) -> None:
        self._directory = directory
        self._version = 0
        self.write(**files)
        for name in files:
            (directory / name).symlink_to(Path("..data") / name)

    def write(self, **files: str) -> None:
        """Swap to a version that holds these files, and these only."""
        self._version += 1
        version = self._directory / f"..version-{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
        link = self._directory / "..data-new"
        link.symlink_to(version.name)
        link.rename(self._directory / "..data")

    def path(self, name: str) -> str:
        """Where a pod looks for it."""
        return str(self._directory / name)


@pytest.fixture(autouse=True)
def _files_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_secrets, "WATCH_INTERVAL_S", 0.02)


def _own(world: World) -> dict[str, Any]:
    tokens: dict[str, Any] = world.status()["tokens"]
    return tokens


def _problem(world: World, variable: str) -> str | None:
    (problem,) = [file["problem"] for file in world.status()["tokens"]["files"] if file["variable"] == variable]
    return problem if problem is None else str(problem)


# Tinybird's token.


async def test_a_changed_token_is_tried_and_taken_and_rows_of_both_go_to_one_destination(tmp_path: Path) -> None:
    volume = Volume(tmp_path, token=f"{TOKEN}\n")
    env: dict[str, Any] = {"TINYBIRD_TOKEN": None, "TINYBIRD_TOKEN_FILE": volume.path("token")}
    async with running_world({"tokens": (TokenEntry("second"),)}, **env) as world:
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        first = _own(world)["tinybird"]
        volume.write(token="second")
        await until(lambda: _own(world)["candidate"] is not None)
        candidate = _own(world)["candidate"]
        assert candidate["rejected"] is False
        assert _own(world)["tinybird"] == first, "not before Tinybird has accepted the other one"
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        assert _own(world)["candidate"] is None
        assert _own(world)["tinybird"]["hash"] == candidate["hash"] != first["hash"]
        assert len(world.status()["destinations"]) == 1
        used = [received.headers["Authorization"] for received in world.tinybird.requests]
        assert used == [f"Bearer {first['hash']}", f"Bearer {candidate['hash']}"]


async def test_a_changed_token_is_in_use_since_it_changed(tmp_path: Path) -> None:
    volume = Volume(tmp_path, token=TOKEN)
    env: dict[str, Any] = {"TINYBIRD_TOKEN": None, "TINYBIRD_TOKEN_FILE": volume.path("token")}
    async with running_world({"tokens": (TokenEntry("second"),)}, **env) as world:
        await asyncio.sleep(1.1)  # what is shown are whole seconds
        changed_at = datetime.now(UTC).replace(microsecond=0)
        volume.write(token="second")
        await until(lambda: _own(world)["candidate"] is not None)
        assert datetime.fromisoformat(_own(world)["candidate"]["since"]) >= changed_at
        assert datetime.fromisoformat(_own(world)["tinybird"]["since"]) < changed_at


async def test_a_changed_token_that_tinybird_refuses_costs_nothing_and_is_shown(tmp_path: Path) -> None:
    volume = Volume(tmp_path, token=TOKEN)
    env: dict[str, Any] = {"TINYBIRD_TOKEN": None, "TINYBIRD_TOKEN_FILE": volume.path("token")}
    async with running_world(**env) as world:
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        volume.write(token="mistyped")
        await until(lambda: _own(world)["candidate"] is not None)
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        assert _own(world)["candidate"]["rejected"] is True
        assert _own(world)["candidate"]["denied_at"] is not None
        assert [received.status for received in world.tinybird.requests] == [200, 403, 200]
        volume.write(token=TOKEN)
        await until(lambda: _own(world)["candidate"] is None)
        assert world.status()["ledger"]["delivered"] == 2


async def test_a_new_token_ends_a_hold_at_once(tmp_path: Path) -> None:
    volume = Volume(tmp_path, token="expired")
    env: dict[str, Any] = {"TINYBIRD_TOKEN": None, "TINYBIRD_TOKEN_FILE": volume.path("token")}
    async with running_world(**env) as world:
        assert (await post(world.port)).status == 202
        assert world.status()["destinations"][0]["state"] == "held"
        volume.write(token=TOKEN)
        await world.tinybird.wait_for_rows("hits", 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("two words", "must hold one token and nothing else"),
        ("t\u00fcr", "must hold one token and nothing else"),
        (None, "cannot be read: no such file or directory"),
    ],
)
async def test_a_file_that_turns_bad_leaves_the_last_good_token_in_use_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, problem: str
) -> None:
    volume = Volume(tmp_path, token=TOKEN)
    env: dict[str, Any] = {"TINYBIRD_TOKEN": None, "TINYBIRD_TOKEN_FILE": volume.path("token")}
    async with running_world({"tokens": (TokenEntry("second"),)}, **env) as world:
        volume.write(**({} if text is None else {"token": text}))
        await until(lambda: _problem(world, "TINYBIRD_TOKEN_FILE") is not None)
        assert _problem(world, "TINYBIRD_TOKEN_FILE") == problem
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        assert _own(world)["candidate"] is None
        told = [record for record in caplog.records if "last good content stays in use" in record.getMessage()]
        assert [record.levelname for record in told] == ["ERROR"], "once, not each time"
        volume.write(token="second")
        await until(lambda: _problem(world, "TINYBIRD_TOKEN_FILE") is None)
        assert (await post(world.port, "name=hits&wait=true")).status == 200
        assert _own(world)["tinybird"]["hash"] == world.tinybird.requests[-1].headers["Authorization"].split()[1]


async def test_a_token_file_that_is_awaited_holds_the_rows_until_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "later" / "token"
    env: dict[str, Any] = {"TINYBIRD_TOKEN": None, "TINYBIRD_TOKEN_FILE": str(path), "TOKEN_FILE_WAIT": "true"}
    async with running_world(**env) as world:
        assert (await post(world.port)).status == 202
        (destination,) = world.status()["destinations"]
        assert (destination["state"], destination["buffered_rows"]) == ("held", 1)
        assert "TINYBIRD_TOKEN_FILE is not there yet" in destination["reason"]
        assert _own(world)["tinybird"] is None
        assert _problem(world, "TINYBIRD_TOKEN_FILE") == "cannot be read: no such file or directory"
        assert [*world.tinybird.requests] == []
        path.parent.mkdir()
        path.write_text(TOKEN)
        assert await world.tinybird.wait_for_rows("hits", 1) == [b'{"n":1}']
        assert _problem(world, "TINYBIRD_TOKEN_FILE") is None


@pytest.mark.parametrize("wait", ["true", "false"])
def test_an_empty_or_unreadable_token_file_stops_the_start_even_if_one_is_awaited(tmp_path: Path, wait: str) -> None:
    path = tmp_path / "token"
    path.touch()
    for found, said in ((path, "is empty"), (tmp_path, "is a directory")):
        env = environment(
            "http://127.0.0.1:9", TINYBIRD_TOKEN=None, TINYBIRD_TOKEN_FILE=str(found), TOKEN_FILE_WAIT=wait
        )
        with pytest.raises(ConfigError) as raised:
            load_secrets(from_env(env), utc_now=lambda: 0.0, hash_key=b"x", on_new_token=lambda: None)
        (problem,) = raised.value.problems
        assert problem.variable == "TINYBIRD_TOKEN_FILE"
        assert said in problem.message


def test_problems_of_files_are_listed_together_and_quote_no_content(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("very secret words\n")
    variables = ("TINYBIRD_TOKEN_FILE", "AUTHORIZATION_TOKEN_FILE", "ADMIN_TOKEN_FILE")
    config = from_env({variable: str(secret) for variable in variables})
    with pytest.raises(ConfigError) as raised:
        load_secrets(config, utc_now=lambda: 0.0, hash_key=b"x", on_new_token=lambda: None)
    assert [problem.variable for problem in raised.value.problems] == list(variables)
    assert "secret words" not in str(raised.value)


# Our clients' tokens, and the admin's.


async def test_changed_client_tokens_are_in_force_for_the_next_request(tmp_path: Path) -> None:
    volume = Volume(tmp_path, clients="first\nboth allow=hits\n")
    async with running_world(AUTHORIZATION_TOKEN_FILE=volume.path("clients")) as world, connected(world.port) as peer:

        async def status(token: str, name: str = "hits") -> int:
            await peer.send(request(f"/v0/events?name={name}", b"{}", token=token))
            return (await peer.answer()).status

        assert [await status("first"), await status("both"), await status("second")] == [202, 202, 403]
        assert await status("both", "clicks") == 403
        volume.write(clients="second\nboth allow=clicks\n# first\n")
        async with asyncio.timeout(10):
            while await status("second") != 202:
                pass
        assert [await status("first"), await status("both"), await status("both", "clicks")] == [403, 403, 202]
        assert _own(world)["clients"]["entries"] == 2


@pytest.mark.parametrize("text", ["", "# nobody\n", "first allow=", "first and=more", None])
async def test_client_tokens_that_turn_bad_never_open_the_door(tmp_path: Path, text: str | None) -> None:
    volume = Volume(tmp_path, clients="first\n")
    async with running_world(AUTHORIZATION_TOKEN_FILE=volume.path("clients")) as world:
        volume.write(**({} if text is None else {"clients": text}))
        await until(lambda: _problem(world, "AUTHORIZATION_TOKEN_FILE") is not None)
        assert (await post(world.port, token="first")).status == 202
        assert (await post(world.port, token="other")).status == 403
        assert (await post(world.port, token=None)).status == 401


async def test_the_admin_token_is_read_again_too(tmp_path: Path) -> None:
    volume = Volume(tmp_path, admin="first-admin\n")
    async with running_world(ADMIN_TOKEN_FILE=volume.path("admin")) as world:
        assert (await ask(world.proxy.admin_port, "/drain", headers=DRAIN)).status == 403
        volume.write(admin="second-admin\n")

        async def is_taken() -> bool:
            return (await ask(world.proxy.admin_port, "/drain", method="DELETE", headers=DRAIN)).status == 200

        await until(is_taken)
        headers = {"Authorization": "Bearer first-admin", "X-Tinybird-Proxy": "1"}
        assert (await ask(world.proxy.admin_port, "/drain", headers=headers)).status == 403
        volume.write(admin="")
        await until(lambda: _problem(world, "ADMIN_TOKEN_FILE") == "is empty")
        assert (
            await ask(world.proxy.admin_port, "/drain", headers={"X-Tinybird-Proxy": "1"}, token=None)
        ).status == 401
        assert await is_taken()


# The collector's headers.


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(0) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


async def test_the_collectors_headers_come_from_a_file_that_may_be_missing_malformed_and_changed(
    collector: OtlpReceiver, tmp_path: Path
) -> None:
    volume = Volume(tmp_path, headers="")
    volume.write()
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_HEADERS_FILE": volume.path("headers"),
        "OTEL_BSP_SCHEDULE_DELAY": "10",
        "NO_PROXY": "127.0.0.1",
        "LOG_LEVEL": "debug",
    }
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **tracing)) as proxy:

        async def key_of_the_next_span() -> str | None:
            """The header on what is exported of a row that is delivered now."""
            before = len(collector.received.requests())
            assert (await post(proxy.port, "name=hits&wait=true")).status == 200
            await until(lambda: len(collector.received.requests()) > before)
            return collector.received.requests()[-1].get("x-api-key")

        async def problem() -> str | None:
            status = json.loads((await ask(proxy.admin_port, "/status", method="GET", token=None)).body)
            (file,) = status["tokens"]["files"]
            return None if file["problem"] is None else str(file["problem"])

        async def becomes(expected: str | None) -> None:
            async def is_so() -> bool:
                return await problem() == expected

            await until(is_so)

        assert await key_of_the_next_span() is None
        assert await problem() == "cannot be read: no such file or directory"
        volume.write(headers="MARK-of-nothing")
        await becomes("header 1 is not key=value, as in OTEL_EXPORTER_OTLP_HEADERS")
        assert await key_of_the_next_span() is None
        volume.write(headers="x-api-key=MARK%201\n")
        await becomes(None)
        assert await key_of_the_next_span() == "MARK 1"
        volume.write(headers="x-api-key=MARK-2")

        async def is_changed() -> bool:
            return await key_of_the_next_span() == "MARK-2"

        await until(is_changed)
        volume.write(headers="x-api-key=MARK-3;")
        await becomes("header 1 holds characters that cannot stand in a header, or only percent-encoded")
        assert await key_of_the_next_span() == "MARK-2"
        volume.write()
        await becomes("cannot be read: no such file or directory")
        assert await key_of_the_next_span() == "MARK-2"
        status = await ask(proxy.admin_port, "/status", method="GET", token=None)
        assert await proxy.stop() == 0
        assert b"MARK" not in proxy.output + status.body
        assert b"a file cannot be used yet; it is read again each second" in proxy.output
        assert b"a file that changed cannot be used; its last good content stays in use" in proxy.output


def test_a_file_of_headers_that_cannot_be_used_stops_no_start(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("secret words")
    config = from_env({"OTEL_EXPORTER_OTLP_HEADERS_FILE": str(tmp_path / "headers")})
    secrets = load_secrets(config, utc_now=lambda: 0.0, hash_key=b"x", on_new_token=lambda: None)
    assert [file.problem for file in secrets.files] == ["header 1 is not key=value, as in OTEL_EXPORTER_OTLP_HEADERS"]
    assert secrets.collector_headers == {}


def test_headers_are_not_shown_by_what_holds_them(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("x-api-key=s3cret")
    config = from_env({"OTEL_EXPORTER_OTLP_HEADERS_FILE": str(tmp_path / "headers")})
    secrets = load_secrets(config, utc_now=lambda: 0.0, hash_key=b"x", on_new_token=lambda: None)
    assert secrets.collector_headers == {"x-api-key": "s3cret"}
    assert "s3cret" not in repr(secrets)


# The certificate of the public port.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("authority"))


async def _shown(port: int, trusting: ssl.SSLContext) -> str:
    """The common name of the certificate that the port shows, by one whole request."""
    async with connected(port, tls=trusting) as peer:
        await peer.send(request("/v1/liveness", method="GET"))
        assert (await peer.answer()).status == 200
        certificate = peer.writer.get_extra_info("peercert")
        return str(dict(pair[0] for pair in certificate["subject"])["commonName"])


async def test_a_changed_certificate_is_shown_to_the_next_connection(authority: Path, tmp_path: Path) -> None:
    (cert_1, key_1), (cert_2, key_2) = (make_certificate(authority, "localhost", label=f"{n}-") for n in (1, 2))
    volume = Volume(tmp_path, cert=cert_1.read_text(), key=key_1.read_text())
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    env = {"TLS_CERT_FILE": volume.path("cert"), "TLS_KEY_FILE": volume.path("key")}
    async with running_world(**env) as world, connected(world.port, tls=trusting) as old:
        assert await _shown(world.port, trusting) == "1-localhost"
        volume.write(cert=cert_2.read_text(), key=key_2.read_text())

        async def is_shown() -> bool:
            return await _shown(world.port, trusting) == "2-localhost"

        await until(is_shown)
        await old.send(request("/v1/liveness", method="GET"))
        assert (await old.answer()).status == 200, "a connection that is open goes on"


@pytest.mark.parametrize("wrong", ["certificate first", "key first", "no certificate", "no key", "nothing"])
async def test_a_certificate_that_turns_bad_leaves_the_last_good_one_in_use(
    authority: Path, tmp_path: Path, wrong: str
) -> None:
    (cert_1, key_1), (cert_2, key_2) = (make_certificate(authority, "localhost", label=f"{n}-") for n in (1, 2))
    good = {"cert": cert_1.read_text(), "key": key_1.read_text()}
    bad: dict[str, str] = {
        "certificate first": {"cert": cert_2.read_text()},
        "key first": {"key": key_2.read_text()},
        "no certificate": {"cert": "half of it"},
        "no key": {"key": ""},
        "nothing": {"cert": "", "key": ""},
    }[wrong]
    volume = Volume(tmp_path, **good)
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    env = {"TLS_CERT_FILE": volume.path("cert"), "TLS_KEY_FILE": volume.path("key")}
    async with running_world(**env) as world:
        volume.write(**{**good, **bad})
        await until(lambda: any(file["problem"] for file in world.status()["tokens"]["files"]))
        assert await _shown(world.port, trusting) == "1-localhost"
        volume.write(**good)
        await until(lambda: not any(file["problem"] for file in world.status()["tokens"]["files"]))
        assert await _shown(world.port, trusting) == "1-localhost"
        volume.write(cert=cert_2.read_text(), key=key_2.read_text())

        async def is_shown() -> bool:
            return await _shown(world.port, trusting) == "2-localhost"

        await until(is_shown)
        assert not any(file["problem"] for file in world.status()["tokens"]["files"])
