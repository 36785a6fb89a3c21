"""`tinybird_proxy.emulator.tokens`: who may do what."""

import pytest

from tinybird_proxy.emulator.tokens import TokenEntry, find_token, token_hash, token_of


@pytest.mark.parametrize(
    ("sentence", "scopes", "datasource", "may_append"),
    [
        ("ADMIN may append to anything", ("ADMIN",), "hits", True),
        ("a scope names the one data source", ("DATASOURCES:APPEND:hits",), "hits", True),
        ("and no other", ("DATASOURCES:APPEND:hits",), "hits2", False),
        ("the singular spelling means the same", ("DATASOURCE:APPEND:hits",), "hits", True),
        ("a star is every data source", ("DATASOURCES:APPEND:*",), "hits", True),
        ("without scopes nothing is allowed", (), "hits", False),
    ],
)
def test_scopes_decide_where_a_token_may_append(
    sentence: str, scopes: tuple[str, ...], datasource: str, may_append: bool
) -> None:
    assert TokenEntry("t", scopes).may_append_to(datasource) is may_append, sentence


def test_only_the_scope_admin_makes_a_token_admin() -> None:
    assert TokenEntry("t").is_admin
    assert not TokenEntry("t", ("DATASOURCES:APPEND:*",)).is_admin


@pytest.mark.parametrize("scope", ["admin", "DATASOURCES:READ:hits", "DATASOURCES:APPEND:", "DATASOURCES:APPEND:a b"])
def test_an_unknown_scope_is_refused_with_those_that_exist(scope: str) -> None:
    with pytest.raises(ValueError, match="must be ADMIN, DATASOURCES:APPEND"):
        TokenEntry("t", (scope,))


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        TokenEntry("")


def test_a_token_never_shows_in_a_repr() -> None:
    assert "secret" not in repr(TokenEntry("secret"))


@pytest.mark.parametrize(
    ("sentence", "headers", "query", "token"),
    [
        ("the header is read", {"Authorization": "Bearer a"}, {}, "a"),
        ("the scheme may be written in any case", {"Authorization": "bearer a"}, {}, "a"),
        ("the query is read", {}, {"token": "b"}, "b"),
        ("the header wins", {"Authorization": "Bearer a"}, {"token": "b"}, "a"),
        ("other schemes are ignored", {"Authorization": "Basic a"}, {"token": "b"}, "b"),
        ("an empty Bearer is none", {"Authorization": "Bearer "}, {}, None),
        ("none is none", {}, {}, None),
    ],
)
def test_where_the_token_of_a_request_is_found(
    sentence: str, headers: dict[str, str], query: dict[str, str], token: str | None
) -> None:
    assert token_of(headers, query) == token, sentence


def test_a_token_is_found_among_the_entries() -> None:
    entries = [TokenEntry("a"), TokenEntry("b", ())]
    assert find_token(entries, "b") is entries[1]
    assert find_token(entries, "c") is None


def test_the_hash_of_a_token_has_eight_digits() -> None:
    assert token_hash("T") == "e632b709"
