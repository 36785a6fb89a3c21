"""Whose token is good: clients' entries, Tinybird's candidate, and files that are read again."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.errors import TokenFileError
from tinybird_proxy.tokens import (
    CANDIDATE_RETRY_S,
    ClientEntry,
    ClientTokens,
    OwnToken,
    Secret,
    WatchedFile,
    fingerprint,
    read_all,
    read_file,
    same,
    single_token,
)

KEY = b"a key of this process"
SECRET = "p.sEcReT"


def problem_with(text: str) -> str:
    with pytest.raises(TokenFileError) as caught:
        ClientTokens(text, key=KEY)
    assert "sEcReT" not in str(caught.value)
    return str(caught.value)


# Clients' entries.


@pytest.mark.parametrize(
    ("text", "token", "entry"),
    [
        pytest.param("abc", "abc", ClientEntry("line-1", None), id="a token alone"),
        pytest.param("  abc \r\n", "abc", ClientEntry("line-1", None), id="white space around it"),
        pytest.param("\n# a comment\n\nabc", "abc", ClientEntry("line-4", None), id="comments and blank lines"),
        pytest.param("abc name=web", "abc", ClientEntry("web", None), id="a name"),
        pytest.param("abc allow=clicks", "abc", ClientEntry("line-1", frozenset({"clicks"})), id="a data source"),
        pytest.param(
            "abc\tallow=a,b_2,c-d.e@f  name=x.y-z@1 # why",
            "abc",
            ClientEntry("x.y-z@1", frozenset({"a", "b_2", "c-d.e@f"})),
            id="all of it, in any order",
        ),
        pytest.param("a#bc # d", "a#bc", ClientEntry("line-1", None), id="a # inside a token belongs to it"),
        pytest.param("abc #name=x", "abc", ClientEntry("line-1", None), id="a # before an option is a comment"),
        pytest.param(
            "name=x", "name=x", ClientEntry("line-1", None), id="the first word is the token, whatever it says"
        ),
        pytest.param(
            "p.eyJ1IjoiMSJ9.x_-/+=~", "p.eyJ1IjoiMSJ9.x_-/+=~", ClientEntry("line-1", None), id="odd characters"
        ),
    ],
)
def test_an_entry_is_a_token_and_perhaps_a_name_and_data_sources(text: str, token: str, entry: ClientEntry) -> None:
    tokens = ClientTokens(text, key=KEY)
    assert len(tokens) == 1
    assert tokens.find(token) == entry


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "holds no token", id="nothing"),
        pytest.param("# p.sEcReT\n \n", "holds no token", id="comments only"),
        pytest.param(
            "p.sEcReT p.sEcReT2", "line 1: after the token only name=NAME and allow=ds1,ds2 may stand", id="two"
        ),
        pytest.param(
            "ok\np.sEcReT name=", "line 2: after the token only name=NAME and allow=ds1,ds2 may stand", id="no name"
        ),
        pytest.param(
            "p.sEcReT name=a/b", "line 1: after the token only name=NAME and allow=ds1,ds2 may stand", id="name"
        ),
        pytest.param(
            "p.sEcReT allow=", "line 1: after the token only name=NAME and allow=ds1,ds2 may stand", id="no source"
        ),
        pytest.param(
            "p.sEcReT allow=a,", "line 1: after the token only name=NAME and allow=ds1,ds2 may stand", id="a comma"
        ),
        pytest.param(
            "p.sEcReT allow=a, b", "line 1: after the token only name=NAME and allow=ds1,ds2 may stand", id="a space"
        ),
        pytest.param(
            "p.sEcReT Name=a", "line 1: after the token only name=NAME and allow=ds1,ds2 may stand", id="capitals"
        ),
        pytest.param(
            "p.sEcReT\u00e9",
            "line 1: the token holds characters that cannot stand in an Authorization header",
            id="a token beyond ASCII",
        ),
        pytest.param(
            "\ufeffp.sEcReT",
            "line 1: the token holds characters that cannot stand in an Authorization header",
            id="a byte order mark",
        ),
        pytest.param(
            "ok\n\n p.sEcReT\x00 ",
            "line 3: the token holds characters that cannot stand in an Authorization header",
            id="NUL",
        ),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_never_quoted(text: str, problem: str) -> None:
    assert problem_with(text) == problem


def test_every_entry_is_found_by_its_own_token_only() -> None:
    tokens = ClientTokens("abc name=web\nABC name=shop allow=orders\nabcd", key=KEY)
    assert len(tokens) == 3
    assert tokens.find("abc") == ClientEntry("web", None)
    assert tokens.find("ABC") == ClientEntry("shop", frozenset({"orders"}))
    assert tokens.find("abcd") == ClientEntry("line-3", None)
    for other in ("", "ab", "abc ", "abc\n", "é", "\udcff"):
        assert tokens.find(other) is None


def test_nothing_that_is_kept_or_shown_of_an_entry_is_its_token() -> None:
    tokens = ClientTokens(f"{SECRET} name=web", key=KEY)
    assert "sEcReT" not in repr(tokens)
    assert "sEcReT" not in repr(tokens.find(SECRET))
    assert "sEcReT" not in repr(vars(tokens))


def test_another_key_gives_other_digests() -> None:
    one, other = (ClientTokens("abc", key=key) for key in (b"1", b"2"))
    assert vars(one)["_entries"].keys() != vars(other)["_entries"].keys()


def test_a_list_is_known_by_the_hash_of_its_whole_text_whatever_the_key() -> None:
    text = "abc name=web # replaced yesterday\n\nabd\n"
    assert ClientTokens(text, key=KEY).hash == ClientTokens(f"\n {text}\n", key=b"2").hash == fingerprint(text)
    others = {ClientTokens(each, key=KEY).hash for each in (text, "abc name=web\nabd", "abd\nabc name=web", "abc\nabd")}
    assert len(others) == 4


_WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)


@settings(deadline=None, max_examples=100)
@given(st.sets(_WORDS.filter(lambda word: not word.startswith("#")), min_size=1, max_size=8), st.data())
def test_any_printable_tokens_can_be_listed(words: set[str], data: st.DataObject) -> None:
    tokens = sorted(words)
    lines = [data.draw(st.sampled_from((f"{t}", f" {t} # {t}", f"{t}\tallow=a,b name=n"))) for t in tokens]
    known = ClientTokens("\n".join(lines), key=KEY)
    assert len(known) == len(tokens)
    assert all(known.find(token) is not None for token in tokens)
    assert known.find("".join(tokens) + "x") is None


# Tinybird's token.


def test_the_only_token_is_chosen() -> None:
    own = OwnToken("old", 0.0)
    assert own.current is not None
    assert own.choose(0.0) is own.current
    assert (own.current.value, own.current.since, own.candidate) == ("old", 0.0, None)


def test_while_the_file_is_awaited_there_is_no_token_and_the_first_is_taken_at_once() -> None:
    own = OwnToken(None, 0.0)
    assert own.choose(0.0) is None
    assert own.offer("new", 5.0)
    assert own.current is not None
    assert (own.current.value, own.current.since, own.candidate) == ("new", 5.0, None)


def test_a_changed_token_is_a_candidate_and_is_tried_first() -> None:
    own = OwnToken("old", 0.0)
    assert own.offer("new", 10.0)
    chosen = own.choose(10.0)
    assert chosen is own.candidate
    assert chosen is not None
    assert (chosen.value, chosen.since) == ("new", 10.0)
    assert own.current is not None
    assert own.current.value == "old"


def test_an_accepted_candidate_is_the_token() -> None:
    own = OwnToken("old", 0.0)
    own.offer("new", 10.0)
    chosen = own.choose(10.0)
    assert chosen is not None
    own.accepted(chosen, 11.0)
    assert own.current is chosen
    assert (own.candidate, own.rejected_at, chosen.accepted_at) == (None, None, 11.0)


def test_a_rejected_candidate_rests_a_minute_and_the_old_token_stays() -> None:
    own = OwnToken("old", 0.0)
    own.offer("new", 10.0)
    candidate, old = own.candidate, own.current
    assert candidate is not None
    own.denied(candidate, 11.0)
    own.reject_candidate(candidate, 11.0)
    assert (own.rejected_at, candidate.denied_at) == (11.0, 11.0)
    assert own.choose(11.0) is old
    assert own.choose(11.0 + CANDIDATE_RETRY_S - 0.1) is old
    assert own.choose(11.0 + CANDIDATE_RETRY_S) is candidate


def test_a_candidate_is_rejected_only_by_what_was_said_to_itself() -> None:
    own = OwnToken("old", 0.0)
    own.offer("new", 10.0)
    superseded = own.candidate
    assert superseded is not None
    own.offer("newer", 20.0)
    own.reject_candidate(superseded, 21.0)
    own.accepted(superseded, 21.0)
    assert own.choose(21.0) is own.candidate
    assert own.candidate is not None
    assert own.candidate.value == "newer"
    assert own.current is not None
    assert own.current.value == "old"


@pytest.mark.parametrize(
    ("offers", "news", "candidate"),
    [
        pytest.param(["old"], [False], None, id="the same token is no news"),
        pytest.param(["new", "new"], [True, False], "new", id="nor is the same candidate"),
        pytest.param(["new", "newer"], [True, True], "newer", id="another candidate is"),
        pytest.param(["new", "old"], [True, True], None, id="so is the return of the old token"),
        pytest.param(["new", "old", "old"], [True, True, False], None, id="once"),
        pytest.param(["new", "old", "new"], [True, True, True], "new", id="and the candidate's return"),
    ],
)
def test_what_the_source_holds_is_news_when_it_changes(
    offers: list[str], news: list[bool], candidate: str | None
) -> None:
    own = OwnToken("old", 0.0)
    assert [own.offer(value, 1.0) for value in offers] == news
    assert (own.candidate.value if own.candidate else None) == candidate


def test_a_new_candidate_is_tried_although_the_one_before_it_was_rejected() -> None:
    own = OwnToken("old", 0.0)
    own.offer("new", 10.0)
    assert own.candidate is not None
    own.reject_candidate(own.candidate, 11.0)
    own.offer("new", 12.0)
    assert own.choose(12.0) is own.current  # nothing changed: it rests
    own.offer("newer", 13.0)
    assert own.choose(13.0) is own.candidate
    assert own.rejected_at is None


def test_what_tinybird_said_to_the_current_token_is_noted() -> None:
    own = OwnToken("old", 0.0)
    assert own.current is not None
    own.accepted(own.current, 1.0)
    own.denied(own.current, 2.0)
    assert (own.current.accepted_at, own.current.denied_at) == (1.0, 2.0)


# What people see.


def test_a_token_is_shown_as_the_beginning_of_its_hash() -> None:
    assert fingerprint("abc") == "ba7816bf"
    secret = Secret(SECRET, 0.0)
    assert secret.hash == fingerprint(SECRET)
    assert "sEcReT" not in repr(secret)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [("abc", "abc", True), ("abc", "abd", False), ("abc", "ab", False), ("é", "é", True), ("\udcff", "a", False)],
)
def test_tokens_are_compared_whatever_they_hold(left: str, right: str, equal: bool) -> None:
    assert same(left, right) is equal


# Files.


@pytest.mark.parametrize("text", ["abc", "abc\n", "  abc\r\n\n"])
def test_a_file_with_one_token_holds_that_token(text: str) -> None:
    assert single_token(text) == "abc"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("p.sEcReT two", "must hold one token and nothing else"),
        ("p.sEcReT\np.sEcReT", "must hold one token and nothing else"),
        ("p.sEcReT\u00e9", "must hold one token and nothing else"),
        ("\ufeffp.sEcReT", "must hold one token and nothing else"),
        ("p.sEcReT\x00", "must hold one token and nothing else"),
    ],
)
def test_a_file_with_anything_else_is_refused_without_quoting_it(text: str, problem: str) -> None:
    with pytest.raises(TokenFileError) as caught:
        single_token(text)
    assert str(caught.value) == problem


def test_a_file_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes("tökén\r\n".encode())
    assert read_file(str(path)) == "tökén\r\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "cannot be read: no such file or directory", id="missing"),
        pytest.param(b"\xff\xfe", "is not UTF-8 text", id="not UTF-8"),
        pytest.param(b"x" * (1024 * 1024 + 1), "is larger than 1 MiB", id="too large"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenFileError) as caught:
        read_file(str(path))
    assert str(caught.value) == problem


def test_a_folder_is_no_token_file(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match=r"^cannot be read: is a directory$"):
        read_file(str(tmp_path))


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"x" * 1024 * 1024)
    assert len(read_file(str(path))) == 1024 * 1024


def test_reading_several_files_tells_of_each(tmp_path: Path) -> None:
    good, missing = tmp_path / "good", tmp_path / "missing"
    good.write_text("abc")
    files = [WatchedFile("A", str(good), print), WatchedFile("B", str(missing), print)]
    assert read_all(files) == [(files[0], "abc", None), (files[1], None, "cannot be read: no such file or directory")]


def watched() -> tuple[WatchedFile, list[str]]:
    """A watched file with one token in it, and every token that was taken from it."""
    taken: list[str] = []
    return WatchedFile("TINYBIRD_TOKEN_FILE", "/token", lambda text: taken.append(single_token(text))), taken


def test_a_file_that_does_not_change_is_applied_once() -> None:
    file, taken = watched()
    assert file.update("abc", None)
    assert not file.update("abc", None)
    assert (taken, file.problem) == (["abc"], None)


@pytest.mark.parametrize(
    ("text", "problem", "shown"),
    [
        pytest.param(None, "cannot be read: permission denied", "cannot be read: permission denied", id="unreadable"),
        pytest.param("two words", None, "must hold one token and nothing else", id="unparsable"),
        pytest.param("", None, "is empty", id="empty"),
    ],
)
def test_a_file_that_turns_bad_keeps_its_last_good_value_and_says_so_once(
    text: str | None, problem: str | None, shown: str
) -> None:
    file, taken = watched()
    file.update("abc", None)
    assert file.update(text, problem)
    assert not file.update(text, problem)
    assert (taken, file.problem) == (["abc"], shown)


def test_a_file_that_turns_good_again_is_news_even_with_its_old_content() -> None:
    file, taken = watched()
    file.update("abc", None)
    file.update(None, "cannot be read: input/output error")
    assert file.update("abc", None)
    assert (taken, file.problem) == (["abc"], None)
    file.update("", None)
    assert file.update("def", None)
    assert (taken, file.problem) == (["abc", "def"], None)


def test_another_problem_is_news() -> None:
    file, _ = watched()
    file.update(None, "is larger than 1 MiB")
    assert file.update(None, "is not UTF-8 text")


def test_what_a_file_held_is_in_no_repr() -> None:
    file, _ = watched()
    file.update(SECRET, None)
    assert "sEcReT" not in repr(file)


@pytest.mark.parametrize("text", ["\ud800", "abc # \udcff", "\udce4bc"])
def test_a_list_that_is_no_text_has_a_hash_as_well(text: str) -> None:
    with suppress(TokenFileError):
        assert len(ClientTokens(text, key=KEY).hash) == 8
