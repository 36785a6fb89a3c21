"""Tokens: Tinybird's, our clients' and the admin's, from variables or files that are read again when they change.

No token is ever shown: people see ``sha256[:8]``. A file that turns bad keeps its last good value, loudly.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tinybird_proxy.config import token_hash
from tinybird_proxy.errors import TokenFileError

CANDIDATE_RETRY_S: Final = 60.0
_FILE_MAX_BYTES: Final = 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,128}")


def fingerprint(token: str) -> str:
    """What people see of a token."""
    return token_hash(token)


@dataclass(slots=True)
class Secret:
    """A token and what Tinybird said to it. Times are UNIX seconds."""

    value: str = field(repr=False)
    since: float
    accepted_at: float | None = None
    denied_at: float | None = None

    @property
    def hash(self) -> str:
        """``sha256[:8]``."""
        return fingerprint(self.value)


class OwnToken:
    """The token for Tinybird. A changed one is a candidate until Tinybird has accepted it.

    ``current`` is None only while a token file is awaited.
    """

    def __init__(self, value: str | None, now: float) -> None:
        self.current = Secret(value, now) if value is not None else None
        self.candidate: Secret | None = None
        self.rejected_at: float | None = None

    def offer(self, value: str, now: float) -> bool:
        """The source holds ``value`` now; returns whether that is news."""
        if self.current is None:
            self.current = Secret(value, now)
            return True
        if value == self.current.value:
            changed = self.candidate is not None
            self.candidate = None
        elif self.candidate is not None and value == self.candidate.value:
            changed = False
        else:
            self.candidate = Secret(value, now)
            changed = True
        if changed:
            self.rejected_at = None
        return changed

    def choose(self, now: float) -> Secret | None:
        """The token for the next attempt: the candidate, unless it was rejected less than a minute ago."""
        waits = self.rejected_at is not None and now - self.rejected_at < CANDIDATE_RETRY_S
        return self.candidate if self.candidate is not None and not waits else self.current

    def accepted(self, secret: Secret, now: float) -> None:
        """Tinybird answered ``secret`` with 2xx: a candidate becomes current."""
        secret.accepted_at = now
        if secret is self.candidate:
            self.current, self.candidate, self.rejected_at = secret, None, None

    def denied(self, secret: Secret, now: float) -> None:
        """Tinybird answered ``secret`` with 401 or 403."""
        secret.denied_at = now

    def reject_candidate(self, secret: Secret, now: float) -> None:
        """The current token was accepted where ``secret`` was not."""
        if secret is self.candidate:
            self.rejected_at = now


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """One client token: who it is for, and which data sources it may write to (None: all)."""

    name: str
    allow: frozenset[str] | None


class ClientTokens:
    """What clients must show. Looked up by a keyed hash, so that a comparison tells nothing about a token."""

    def __init__(self, text: str, *, key: bytes) -> None:
        """Parse one entry a line: ``TOKEN [name=NAME] [allow=ds1,ds2]``. Raises ``TokenFileError``."""
        self.hash: Final = fingerprint(text)  # of the whole list: proves to others which one is in use
        self._key = key
        self._entries: dict[bytes, ClientEntry] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = _words(line)
            if words:
                token, entry = _entry(words, number)
                self._entries[self._digest(token)] = entry
        if not self._entries:
            raise TokenFileError("holds no token")

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, token: str) -> ClientEntry | None:
        """The entry of ``token``, or None if it is not one of ours."""
        return self._entries.get(self._digest(token))

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), key=self._key, digest_size=16).digest()


def _words(line: str) -> list[str]:
    """The words before a comment; a ``#`` inside a word belongs to it."""
    found = []
    for word in line.split():
        if word.startswith("#"):
            break
        found.append(word)
    return found


def _entry(words: list[str], number: int) -> tuple[str, ClientEntry]:
    token, name, allow = words[0], f"line-{number}", None
    for word in words[1:]:
        option, _, value = word.partition("=")
        if option == "name" and _NAME.fullmatch(value):
            name = value
        elif option == "allow" and value and all(_NAME.fullmatch(part) for part in value.split(",")):
            allow = frozenset(value.split(","))
        else:
            raise TokenFileError(f"line {number}: after the token only name=NAME and allow=ds1,ds2 may stand")
    if not token.isascii() or not token.isprintable():
        raise TokenFileError(f"line {number}: the token holds characters that cannot stand in an Authorization header")
    return token, ClientEntry(name, allow)


def single_token(text: str) -> str:
    """The one token that a file holds. Raises ``TokenFileError``."""
    token = text.strip()
    if not token:
        raise TokenFileError("is empty")
    if len(token.split()) != 1 or not token.isascii() or not token.isprintable():
        raise TokenFileError("must hold one token and nothing else")
    return token


def read_file(path: str) -> str:
    """The text of a token file. Raises ``TokenFileError`` with a sentence; blocks, so call it in a thread."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise TokenFileError(f"cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    if len(data) > _FILE_MAX_BYTES:
        raise TokenFileError("is larger than 1 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TokenFileError("is not UTF-8 text") from error


@dataclass(slots=True)
class WatchedFile:
    """A file that is read again when it changes; ``problem`` says why the last good value is still in use."""

    variable: str
    path: str
    apply: Callable[[str], None]
    last_text: str | None = field(default=None, repr=False)
    problem: str | None = None

    def update(self, text: str | None, problem: str | None) -> bool:
        """Take what was read (or why it could not be); returns whether anything is new."""
        before = self.problem
        self.problem = problem
        if text is not None and text != self.last_text:
            try:
                self.apply(text)
            except TokenFileError as error:
                self.problem = str(error)
            else:
                self.last_text = text
                return True
        return self.problem != before


def read_all(files: Iterable[WatchedFile]) -> list[tuple[WatchedFile, str | None, str | None]]:
    """Read every file, for a thread: each with its text, or the reason why there is none."""
    found: list[tuple[WatchedFile, str | None, str | None]] = []
    for file in files:
        try:
            found.append((file, read_file(file.path), None))
        except TokenFileError as error:
            found.append((file, None, str(error)))
    return found


def same(left: str, right: str) -> bool:
    """Compare two tokens in constant time."""
    return hmac.compare_digest(left.encode("utf-8", "surrogateescape"), right.encode("utf-8", "surrogateescape"))
