"""Who may write, what a client hears, and what of a request goes on to Tinybird."""

import time
from typing import Any

import pytest
from tests.proxy.running import (
    TOKEN,
    Answer,
    ask,
    connected,
    environment,
    plain_tinybird,
    post,
    request,
    running_proxy,
    running_world,
    until,
)

from tinybird_proxy.emulator import Fault, TokenEntry

LATER = {"FLUSH_INTERVAL": "1h"}
CLIENTS = """
# our clients
alpha name=alpha
beta  name=beta allow=hits,clicks   # two data sources
gamma#1 allow=hits
"""
READABLE = "X-Ack, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


def _is_readable_by_browsers(answer: Answer) -> bool:
    return answer["Access-Control-Allow-Origin"] == "*" and answer["Access-Control-Expose-Headers"] == READABLE


# Tokens: ours towards Tinybird, and those of our clients.


@pytest.mark.parametrize(
    ("authorization", "query", "status"),
    [
        ("Bearer alpha", "", 202),
        ("bearer alpha", "", 202),
        ("BEARER   alpha  ", "", 202),
        (None, "&token=alpha", 202),
        (None, "&token=%61lpha", 202),
        ("Basic YWxwaGE6", "&token=alpha", 202),
        ("alpha", "&token=alpha", 202),
        ("Bearer ", "&token=alpha", 202),
        ("Bearer alpha", "&token=wrong", 202),
        ("Bearer gamma#1", "", 202),
        ("Bearer wrong", "&token=alpha", 403),
        ("Bearer Alpha", "", 403),
        ("Bearer alpha,beta", "", 403),
        ("Bearer #", "", 403),
        (None, "&token=wrong", 403),
        ("Basic YWxwaGE6", "", 401),
        ("alpha", "", 401),
        ("Bearer", "", 401),
        (None, "&token=", 401),
        (None, "", 401),
    ],
)
async def test_a_client_shows_its_token_in_the_header_or_the_query_and_the_header_wins(
    authorization: str | None, query: str, status: int
) -> None:
    async with running_world(AUTHORIZATION_TOKEN=CLIENTS) as world:
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = await post(world.port, f"name=hits{query}", token=None, headers=headers)
        assert answer.status == status
        if status == 202:
            await world.tinybird.wait_for_rows("hits", 1)
            return
        assert _is_readable_by_browsers(answer)
        if status == 401:
            assert answer["WWW-Authenticate"] == "Bearer"
            assert "Authorization: Bearer" in answer.error
        else:
            assert answer.error == "the proxy does not know this token"
        assert world.status()["requests"] == {
            **{"accepted": 0, "waiting": 0, "waits": {}},
            "refused": {f"http_{status}": 1},
        }


async def test_a_client_writes_only_to_the_data_sources_that_it_is_allowed() -> None:
    async with running_world(AUTHORIZATION_TOKEN=CLIENTS) as world:
        for token, name, status in (
            ("alpha", "anything", 202),
            ("beta", "hits", 202),
            ("beta", "clicks", 202),
            ("beta", "anything", 403),
            ("beta", "hits,clicks", 403),
            ("beta", "HITS", 403),
            ("gamma#1", "clicks", 403),
        ):
            answer = await post(world.port, f"name={name}", token=token)
            assert answer.status == status, (token, name)
            if status == 403:
                assert repr(name) in answer.error
        assert (await post(world.port, "", token="beta")).status == 400


async def test_who_may_not_write_is_told_so_before_anything_else() -> None:
    async with running_world(AUTHORIZATION_TOKEN=CLIENTS) as world:
        assert (await post(world.port, "", b"not json", token=None)).status == 401
        assert (await post(world.port, "ack=nowhere", b"not json", token="wrong")).status == 403
        answer = await post(world.port, body=b"x", token=None, headers={"Content-Encoding": "br"})
        assert answer.status == 401


@pytest.mark.parametrize("authorization", [None, "Bearer any", "Basic x", "Bearer \u00fc"])
async def test_without_authorization_token_any_or_no_token_is_taken(authorization: str | None) -> None:
    async with running_world() as world:
        headers = {} if authorization is None else {"Authorization": authorization}
        for query in ("name=hits", "name=hits&token=any"):
            assert (await post(world.port, query, token=None, headers=headers)).status == 202
        await world.tinybird.wait_for_rows("hits", 2)
        assert {received.headers["Authorization"] for received in world.tinybird.requests} == {
            world.tinybird.requests[0].headers["Authorization"]
        }
        assert len(world.status()["destinations"]) == 1


# Tokens: each client's own.


async def test_each_clients_own_token_goes_to_tinybird_and_rows_of_two_tokens_never_in_one_request() -> None:
    async with plain_tinybird() as tinybird:
        env = environment(tinybird.url, TINYBIRD_TOKEN=None, COMPRESSION="none")
        async with running_proxy(env) as proxy:
            assert (await post(proxy.port, token="one")).status == 202
            assert (await post(proxy.port, "name=hits&token=two", token=None)).status == 202
            headers = {"Authorization": "Bearer three"}
            assert (await post(proxy.port, "name=hits&token=one", token=None, headers=headers)).status == 202
            await until(lambda: len(tinybird.asked) == 3)
    assert {head["Authorization"] for head, _ in tinybird.asked} == {"Bearer one", "Bearer two", "Bearer three"}
    assert {head.target for head, _ in tinybird.asked} == {"/v0/events?name=hits&wait=true"}


async def test_without_a_token_of_ours_a_client_must_bring_one() -> None:
    async with running_world(TINYBIRD_TOKEN=None) as world:
        answer = await post(world.port, token=None)
        assert (answer.status, answer["WWW-Authenticate"]) == (401, "Bearer")
        assert "Tinybird's token" in answer.error
        assert [*world.tinybird.requests] == []


@pytest.mark.parametrize("token", ["t\u00fcr", "a\tb", "\x7f", "%0d%0aX-Evil:1", "%f0%9f%90%a6"])
async def test_a_token_that_could_break_a_header_goes_nowhere(token: str) -> None:
    async with running_world(TINYBIRD_TOKEN=None) as world:
        raw = token.encode().decode("latin-1")
        for authorization, query in ((f"Bearer {raw}", ""), (None, f"&token={raw.replace(chr(9), '%09')}")):
            if authorization is not None and ("%" in token or "\x7f" in token):
                continue  # nothing special in a header, or not HTTP
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = await post(world.port, f"name=hits{query}", token=None, headers=headers)
            assert answer.status in (400, 403), (authorization, query)
        assert [*world.tinybird.requests] == []


@pytest.mark.parametrize(
    ("token", "name", "status"),
    [("unknown", "there", 403), ("narrow", "elsewhere", 403), (TOKEN, "elsewhere", 404)],
)
async def test_a_first_contact_that_tinybird_refuses_is_told_to_the_client_and_nothing_was_taken(
    token: str, name: str, status: int
) -> None:
    settings = {
        **{"create_datasources": False, "schemas": {"there": {"n": "Int64"}}},
        "tokens": (TokenEntry("narrow", ("DATASOURCES:APPEND:there",)),),
    }
    async with running_world(settings, TINYBIRD_TOKEN=None) as world:
        answer = await post(world.port, f"name={name}", token=token)
        assert answer.status == status
        assert (
            answer.error
            == {
                "unknown": "invalid authentication token",
                "narrow": "this token may not append to 'elsewhere'",
                TOKEN: "Data Source 'elsewhere' does not exist",
            }[token]
        )
        assert _is_readable_by_browsers(answer)
        assert "Retry-After" not in answer
        status_page = world.status()
        assert status_page["ledger"]["accepted"] == status_page["buffer"]["rows"] == 0
        assert (await post(world.port, "name=there", token="narrow")).status == 202, "others are not concerned"
        assert await world.tinybird.wait_for_rows("there", 1) == [b'{"n":1}']


async def test_with_our_own_token_a_mistyped_data_source_is_told_and_a_bad_token_holds() -> None:
    async with running_world({"create_datasources": False}, TINYBIRD_TOKEN=TOKEN) as world:
        assert (await post(world.port, "name=mistyped")).status == 404
        assert world.status()["ledger"]["accepted"] == 0
    async with running_world(TINYBIRD_TOKEN="no_longer_good") as world:
        assert (await post(world.port)).status == 202
        (destination,) = world.status()["destinations"]
        assert (destination["state"], destination["buffered_rows"]) == ("held", 1)


# Yes: 202 and 200.


async def test_202_without_wait_as_soon_as_the_rows_are_in_memory() -> None:
    async with running_world(**LATER) as world:
        await post(world.port)
        for query in (
            "name=hits",
            "name=hits&wait=false",
            "name=hits&wait=0",
            "name=hits&wait=",
            "name=hits&ack=memory",
        ):
            answer = await post(world.port, query, b'{"n":1}\n{"n":2}')
            assert (answer.status, answer["X-Ack"]) == (202, "memory")
            assert answer.body == b'{"successful_rows":2,"quarantined_rows":0}'
            assert answer["Content-Type"] == "application/json"
            assert _is_readable_by_browsers(answer)
            assert not any(name in answer for name in (*RATE_HEADERS, "Retry-After"))
        assert world.status()["buffer"]["rows"] == 10


@pytest.mark.parametrize("wait", ["true", "True", "1", "yes"])
async def test_200_with_wait_once_tinybird_has_confirmed(wait: str) -> None:
    async with running_world({"wait_delay_s": 0.1}) as world:
        answer = await post(world.port, f"name=hits&wait={wait}", b'{"n":1}\n{"n":2}')
        assert (answer.status, answer["X-Ack"]) == (200, "delivered")
        assert answer.body == b'{"successful_rows":2,"quarantined_rows":0}'
        assert _is_readable_by_browsers(answer)
        assert not any(name in answer for name in (*RATE_HEADERS, "Retry-After"))
        assert await world.tinybird.rows("hits") == [b'{"n":1}', b'{"n":2}']


async def test_rows_in_quarantine_are_told_to_who_waits() -> None:
    async with running_world({"schemas": {"hits": {"n": "Int64"}}}) as world:
        answer = await post(world.port, "name=hits&wait=true", b'{"n":1}\n{"n":"two"}\n{"n":3}')
        assert answer.status == 200
        assert answer.json() == {"successful_rows": 2, "quarantined_rows": 1}


async def test_wait_is_not_honoured_where_the_proxy_is_told_so() -> None:
    async with running_world({"wait_delay_s": 30.0}, CLIENT_WAIT="ack", **LATER) as world:
        # The first one of all waits for its contact, and for no more.
        answers = [await post(world.port, "name=hits&wait=true") for _ in range(2)]
        assert [(answer.status, answer["X-Ack"]) for answer in answers] == [(202, "memory")] * 2


async def test_wait_ends_with_202_when_its_time_is_up() -> None:
    async with running_world(WAIT_TIMEOUT="300ms", **LATER) as world:
        await post(world.port)
        began_at = time.monotonic()
        answer = await post(world.port, "name=hits&wait=true")
        assert (answer.status, answer["X-Ack"]) == (202, "memory")
        assert time.monotonic() - began_at >= 0.3
        assert world.status()["buffer"]["rows"] == 1


async def test_more_than_max_waiters_hear_202_at_once() -> None:
    async with running_world(MAX_WAITERS="1", **LATER) as world:
        await post(world.port)
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b"{}"))
            await until(lambda: world.status()["requests"]["waiting"] == 1)
            assert (await post(world.port, "name=hits&wait=true")).status == 202


async def test_a_client_that_stops_waiting_takes_nothing_back() -> None:
    async with running_world(FLUSH_INTERVAL="300ms") as world:
        await post(world.port)
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b'{"left":1}'))
            await until(lambda: world.status()["requests"]["waiting"] == 1)
        assert (await world.tinybird.wait_for_rows("hits", 2))[1] == b'{"left":1}'
        await until(lambda: world.status()["requests"]["waiting"] == 0)


async def test_a_client_that_stops_waiting_leaves_its_place_to_others() -> None:
    async with running_world(**LATER) as world:
        await post(world.port)
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b"{}"))
            await until(lambda: world.status()["requests"]["waiting"] == 1)
        await until(lambda: world.status()["requests"]["waiting"] == 0)
        assert world.status()["buffer"]["rows"] == 1


async def test_a_client_that_stopped_waiting_was_not_told_that_its_rows_were_rejected() -> None:
    async with running_world(FLUSH_INTERVAL="500ms") as world:
        await post(world.port)
        world.tinybird.set_faults(Fault(row_matches="left"))
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b'{"left":1}'))
            await until(lambda: world.status()["requests"]["waiting"] == 1)
        await until(lambda: world.status()["dead_letters"]["rows"] == 1)
        (letter,) = world.proxy.pipeline.surroundings.letters.select()
        assert not letter.client_told, "a replay would leave it out"


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\t\n", b"[]", b" [ ] "])
@pytest.mark.parametrize("wait", ["", "&wait=true"])
async def test_no_rows_are_zero_rows(body: bytes, wait: str) -> None:
    async with running_world() as world:
        answer = await post(world.port, f"name=hits{wait}", body)
        assert 200 <= answer.status < 300
        assert answer.json() == {"successful_rows": 0, "quarantined_rows": 0}
        assert [*world.tinybird.requests] == []


async def test_the_value_that_vercel_wants_back_is_sent_back() -> None:
    async with running_world() as world:
        for query, body in (("name=hits", b"{}"), ("name=hits&wait=true", b"{}"), ("name=hits", b"")):
            answer = await post(world.port, f"{query}&x-vercel-verify=a1-B2_c3.d~", body)
            assert answer["x-vercel-verify"] == "a1-B2_c3.d~"
        for evil in ("a%0d%0aX-Evil:%201", "%00", "a%20b", "%c3%bc", ""):
            answer = await post(world.port, f"name=hits&x-vercel-verify={evil}")
            assert answer.status == 202
            assert "x-vercel-verify" not in answer
            assert "X-Evil" not in answer


# No.


@pytest.mark.parametrize(
    ("query", "body", "said"),
    [
        ("", b"{}", "'name' is missing"),
        ("name=", b"{}", "'name' is missing"),
        ("token=x", b"{}", "'name' is missing"),
        ("name=a%00b", b"{}", "not the name of a data source"),
        ("name=a%0ab", b"{}", "not the name of a data source"),
        ("name=" + "a" * 513, b"{}", "not the name of a data source"),
        ("name=%ff", b"{}", "not valid UTF-8"),
        ("name=hits&" + "&".join("abcd"[n % 4] for n in range(300)), b"{}", "more than 200 parameters"),
        ("name=hits&ack=disk", b"{}", "no disk buffer"),
        ("name=hits&ack=nowhere", b"{}", "'ack' must be memory or disk"),
        ("name=hits", b'{"n":1}\n{"n":\n', "row 2"),
        ("name=hits", b'{"n":1}\n2\n', "row 2: is a number, not a JSON object"),
        ("name=hits", b'{"n":1}{"n":2}', "row 1"),
        ("name=hits&format=json", b'{"n":1}\n{"n":2}', "format=json"),
        ("name=hits", b'[{"n":1},2]', "row 2: is a number"),
        ("name=hits", b'{"n":"\xff"}', "not valid UTF-8"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong_and_nothing_of_it_is_taken(
    query: str, body: bytes, said: str
) -> None:
    async with running_world() as world:
        for wait in ("", "&wait=true"):
            answer = await post(world.port, query + wait, body)
            assert answer.status == 400
            assert said in answer.error
            assert _is_readable_by_browsers(answer)
        assert world.status()["ledger"]["accepted"] == 0
        assert world.status()["requests"]["refused"] == {"http_400": 2}


async def test_a_request_larger_than_the_whole_buffer_is_told_never_to_come_again_like_this() -> None:
    async with running_world(BUFFER_SIZE="10", BATCH_SIZE="10") as world:
        await post(world.port)
        answer = await post(world.port, body=b"{}\n" * 11)
        assert answer.status == 413
        assert "can never fit" in answer.error
        assert not any(name in answer for name in (*RATE_HEADERS, "Retry-After"))


async def test_503_when_full_and_delivering_carries_retry_after_and_no_rate_headers() -> None:
    async with running_world(BUFFER_SIZE="10", BATCH_SIZE="10", **LATER) as world:
        assert (await post(world.port)).status == 202
        world.tinybird.set_faults(Fault(hang=True))
        answers = [await post(world.port, body=b"{}\n{}") for _ in range(7)]
        assert [answer.status for answer in answers] == [202] * 5 + [503] * 2
        for answer in answers[5:]:
            assert 1 <= int(answer["Retry-After"]) <= 60
            assert not any(name in answer for name in RATE_HEADERS)
            assert _is_readable_by_browsers(answer)
            assert "full" in answer.error
        assert world.status()["requests"]["refused"] == {"buffer_full": 2}


async def test_429_when_full_and_not_delivering_carries_retry_after_and_all_rate_headers() -> None:
    async with running_world(BUFFER_SIZE="10", BATCH_SIZE="10", **LATER) as world:
        world.tinybird.set_faults(Fault(status=503, retry_after=600))
        answers = [await post(world.port, body=b"{}\n{}") for _ in range(7)]
        assert [answer.status for answer in answers] == [202] * 5 + [429] * 2
        for answer in answers[5:]:
            assert answer["Retry-After"] == answer["X-RateLimit-Reset"]
            assert 1 <= int(answer["Retry-After"]) <= 60
            assert int(answer["X-RateLimit-Limit"]) > 0
            assert answer["X-RateLimit-Remaining"] == "0"
            assert _is_readable_by_browsers(answer)
            assert "not being delivered" in answer.error


async def test_429_for_tokens_that_tinybird_has_not_confirmed_carries_them_too() -> None:
    env: dict[str, Any] = {"BUFFER_SIZE": "40", "BATCH_SIZE": "40", "TINYBIRD_TOKEN": None}
    async with running_world({"tokens": (TokenEntry("one"),)}, **env, **LATER) as world:
        world.tinybird.set_faults(Fault(status=503, retry_after=600))
        assert (await post(world.port, body=b"{}\n{}", token="one")).status == 202
        answer = await post(world.port, body=b"{}", token="one")
        assert answer.status == 429
        assert all(answer[name].isdigit() for name in (*RATE_HEADERS, "Retry-After"))
        assert "not confirmed" in answer.error


async def test_503_beyond_max_destinations_carries_retry_after() -> None:
    async with running_world(MAX_DESTINATIONS="1", **LATER) as world:
        await post(world.port, "name=one")
        await post(world.port, "name=one")
        answer = await post(world.port, "name=two")
        assert (answer.status, answer["Retry-After"].isdigit()) == (503, True)
        assert not any(name in answer for name in RATE_HEADERS)


async def test_503_while_draining_closes_the_connection_and_every_token_is_judged_first() -> None:
    async with running_world(AUTHORIZATION_TOKEN=CLIENTS) as world:
        world.proxy.availability.begin_drain()
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits", b"{}", token="alpha"))
            answer = await peer.answer()
            assert (answer.status, answer["Connection"], answer["Retry-After"]) == (503, "close", "1")
            assert _is_readable_by_browsers(answer)
            assert await peer.rest() == b""
        assert (await post(world.port, token="wrong")).status == 403
        assert (await ask(world.port, "/v1/liveness", method="GET")).status == 200
        world.proxy.availability.cancel_drain()
        assert (await post(world.port, token="alpha")).status == 202


async def test_a_draining_proxy_takes_rows_during_the_delay_and_sends_those_who_keep_their_connection_elsewhere() -> (
    None
):
    async with running_world(DRAIN_DELAY="1h", SHUTDOWN_TIMEOUT="1h") as world:
        assert (await post(world.port)).status == 202  # its destination is confirmed, so the lane may answer
        async with connected(world.port) as peer:
            for _ in range(2):
                await peer.send(request("/v0/events?name=hits", b"{}"))
                assert "Connection" not in await peer.answer()
            world.proxy.availability.begin_drain()
            await peer.send(request("/v0/events?name=hits", b"{}"))
            answer = await peer.answer()
            assert (answer.status, answer["Connection"]) == (202, "close")
            assert await peer.rest() == b""
        async with connected(world.port) as peer:  # whoever does not find another one
            await peer.send(request("/v0/events?name=hits", b"{}"))
            assert (await peer.answer())["Connection"] == "close"
        world.proxy.availability.cancel_drain()
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits", b"{}"))
            assert "Connection" not in await peer.answer()
        await world.tinybird.wait_for_rows("hits", 6)


async def test_a_body_that_was_being_sent_when_the_drain_began_is_refused_too() -> None:
    async with running_world() as world, connected(world.port) as peer:
        await peer.send(request("/v0/events?name=hits", headers={"Content-Length": "100000"}) + b"{")
        await until(lambda: world.proxy.reporter.receiver.reserved_bytes > 0)
        world.proxy.availability.begin_drain()
        await peer.send(b"}" + b" " * 99_998)
        assert (await peer.answer()).status == 503
        assert world.status()["ledger"]["accepted"] == 0


async def test_a_request_that_passed_this_very_proxy_is_a_loop() -> None:
    async with running_world() as world:
        for vias in ("proxy-1", "other, proxy-1", "proxy-1,other"):
            answer = await post(world.port, headers={"X-Batch-Via": vias})
            assert answer.status == 508
            assert "TINYBIRD_URL leads back to it" in answer.error
        assert (await post(world.port, headers={"X-Batch-Via": "another"})).status == 202
        assert world.status()["requests"]["refused"] == {"loop": 3}
        await world.tinybird.wait_for_rows("hits", 1)
        assert world.tinybird.requests[0].headers["X-Batch-Via"] == "another, proxy-1"


# What goes on to Tinybird.


def _nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


NASTY_ROWS = {
    "integers beyond 2^53 and 2^64": b'{"n":9007199254740993,"m":123456789012345678901234567890}',
    "numbers that no float holds": b'{"n":1e400,"m":0.1000000000000000055511151231257827,"z":-0.0,"o":1.50}',
    "the same key twice": b'{"a":1,"a":2,"":3,"":4}',
    "escapes that need not be": b'{"\\u0061":"\\/ \\u00e9 \\ud83d\\udc26 \\" \\\\ \\b\\f\\n\\r\\t"}',
    "a lone surrogate": b'{"a":"\\ud800"}',
    "unicode": '{"ключ":"日本語 🐦 \u2028\u2029 é e\u0301 \ufeff"}'.encode(),
    "white space": b' \t{ "a" :\t[ 1 , 2 ] } ',
    "a delete character": b'{"a":"\x7f"}',
    "512 levels": _nested(512),
    "a megabyte": b'{"a":"%s"}' % (b"x" * 1_000_000),
    "nothing": b"{}",
}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_rows_arrive_byte_for_byte(compression: str) -> None:
    async with running_world(COMPRESSION=compression) as world:
        for row in NASTY_ROWS.values():
            answer = await post(world.port, body=row)
            assert (answer.status, answer.json()["successful_rows"]) == (202, 1), row[:80]
        assert (await post(world.port, body=b"\r\n\n".join(NASTY_ROWS.values()))).status == 202
        rows = await world.tinybird.wait_for_rows("hits", 2 * len(NASTY_ROWS) - 2)
        # Tinybird has no use for a lone surrogate, but that is for it to say.
        set_aside = [quarantined.row for quarantined in await world.tinybird.quarantined_rows("hits")]
        assert sorted(rows + set_aside) == sorted([*NASTY_ROWS.values()] * 2)
        assert {received.status for received in world.tinybird.requests} <= {200, None}  # None: not answered yet


async def test_of_a_pretty_printed_document_only_the_line_breaks_change() -> None:
    document = b'[\n  {\n    "a": 9007199254740993,\r\n    "b": "\\n"\n  },\n  {"c" : 1e400}\n]\n'
    async with running_world() as world:
        for query in ("name=hits", "name=hits&format=json"):
            assert (await post(world.port, query, document)).json()["successful_rows"] == 2
        first, second = b'{     "a": 9007199254740993,      "b": "\\n"   }', b'{"c" : 1e400}'
        rows = await world.tinybird.wait_for_rows("hits", 4)
        assert [row.translate(None, b" ") for row in rows] == [
            first.translate(None, b" "),
            second.translate(None, b" "),
        ] * 2
        assert rows[1] == second


async def test_parameters_of_tinybirds_own_are_kept_apart_and_passed_on_and_others_are_not() -> None:
    async with plain_tinybird() as tinybird, running_proxy(environment(tinybird.url, COMPRESSION="none")) as proxy:
        for query in (
            "name=hits&from=ts-sdk&mode=append&format=ndjson&cli_version=1",
            "__tb__min_deployment=7&name=hits",
            "name=hits&__tb__min_deployment=8",
            "name=hits&__tb__deployment=staging&__tb__min_deployment=7",
            "name=hits&__tb__min_deployment=7&__tb__deployment=staging",
            "name=hits&__tb_min_deployment=7",
            "name=hits&__tb__semver=%20%26+%3D%23%C3%BC",
        ):
            assert (await post(proxy.port, query)).status == 202
        await until(lambda: sum(body.count(b"{") for _, body in tinybird.asked) == 7)
        assert len(proxy.pipeline.destinations()) == 6
    assert sorted({head.target for head, _ in tinybird.asked}) == [
        "/v0/events?name=hits&__tb__deployment=staging&__tb__min_deployment=7&wait=true",
        "/v0/events?name=hits&__tb__min_deployment=7&wait=true",
        "/v0/events?name=hits&__tb__min_deployment=8&wait=true",
        "/v0/events?name=hits&__tb__semver=%20%26%20%3D%23%C3%BC&wait=true",
        "/v0/events?name=hits&__tb_min_deployment=7&wait=true",
        "/v0/events?name=hits&wait=true",
    ]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("hits", "hits"),
        ("t_0123abcd", "t_0123abcd"),
        ("a%20b", "a%20b"),
        ("a+b", "a%20b"),
        ("a%2Bb", "a%2Bb"),
        ("a%26wait=false%23", "a%26wait%3Dfalse%23"),
        ("%2e%2e%2Fv0%2Fsql", "..%2Fv0%2Fsql"),
        ("%F0%9F%90%A6", "%F0%9F%90%A6"),
        ("100%25", "100%25"),
    ],
)
async def test_a_name_is_quoted_so_that_it_stays_a_name(asked: str, sent: str) -> None:
    async with plain_tinybird() as tinybird, running_proxy(environment(tinybird.url)) as proxy:
        assert (await post(proxy.port, f"name={asked}&wait=true")).status == 200
    assert [head.target for head, _ in tinybird.asked] == [f"/v0/events?name={sent}&wait=true"]


async def test_no_token_ever_stands_in_the_query_that_tinybird_gets() -> None:
    async with (
        plain_tinybird() as tinybird,
        running_proxy(environment(tinybird.url, TINYBIRD_TOKEN=None, UPSTREAM_WAIT="false")) as proxy,
    ):
        assert (await post(proxy.port, "token=in-query&name=hits", token=None)).status == 202
        assert (await post(proxy.port, "token=in-query&name=hits", token="in-header")).status == 202
        await until(lambda: len(tinybird.asked) == 2)
    assert [head["Authorization"] for head, _ in tinybird.asked] == ["Bearer in-query", "Bearer in-header"]
    # The first contact of a client's own token waits for the verdict all the same.
    assert {head.target.partition("&")[0] for head, _ in tinybird.asked} == {"/v0/events?name=hits"}
    assert not any("token" in head.target for head, _ in tinybird.asked)


async def test_the_headers_that_tinybird_gets_are_these() -> None:
    async with plain_tinybird() as tinybird, running_proxy(environment(tinybird.url)) as proxy:
        headers = {"Cookie": "secret=1", "X-Forwarded-For": "10.0.0.1", "Content-Type": "text/plain"}
        assert (await post(proxy.port, "name=hits&wait=true", headers=headers)).status == 200
    ((head, _),) = tinybird.asked
    sent = dict(head.headers)
    assert sent.pop("Host") == tinybird.url.removeprefix("http://")
    assert sent.pop("User-Agent").startswith("tinybird-proxy/")
    assert sent.pop("X-Batch-Id").startswith("proxy-1-")
    assert int(sent.pop("Content-Length")) > 0
    assert sent == {
        **{"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip", "Content-Type": "application/x-ndjson"},
        **{"Accept-Encoding": "identity", "X-Batch-Via": "proxy-1"},
    }
