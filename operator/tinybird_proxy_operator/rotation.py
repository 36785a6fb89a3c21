"""Rotation of the generated client token: what is to become of its Secret next. Pure.

The Secret holds all that is known of a rotation, so whoever reads it goes on with it, also after a stop at any point:

    token       for apps to read
    next        only while a rotation begins: the token that comes after it, which no app reads yet
    accepted    what the proxies accept, an entry a line; one that `token` held before says so:
                    9sQ…  name=events-client  # replaced 2026-01-01T00:00:00Z
                    k3B…  name=events-client

1. A rotation begins: `next` is stored, and `accepted` gets its line.
2. Every pod reports the hash of just this `accepted`, or none is wanted: `token` becomes `next`, and the line of the
   one before it is marked as replaced. While it is not known which pods there are, it waits.
3. The overlap has passed since then: that line goes.

Each line has an overlap of its own, so a second rotation neither waits for the first nor shortens it. The line of what
`token` holds is never marked and never goes. Lines that people add, under another name than the Secret's, stay.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.names import GROUP

# On a TinybirdProxy: any text. A text that is new is a rotation.
ROTATE_ANNOTATION: Final = f"{GROUP}/rotate-client-token"
# On the generated Secret.
ROTATED_FOR_ANNOTATION: Final = f"{GROUP}/rotated-for"
ROTATING_FOR_ANNOTATION: Final = f"{GROUP}/rotating-for"
ROTATING_SINCE_ANNOTATION: Final = f"{GROUP}/rotating-since"
OVERLAP_ENDS_AT_ANNOTATION: Final = f"{GROUP}/overlap-ends-at"

PODS_AGAIN_S: Final = 2.0
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_MARK: Final = re.compile(r"\s*#\s*replaced\s+(\S+)\s*$")
_NAMED_MAX: Final = 3
_IMMUTABLE: Final = (
    "Secret {secret} is immutable: its client token cannot be rotated, nor one that was replaced be taken away."
    " Delete it for a new one, and let all pods start anew (replicas: 0 and back): they do not see that."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What of the Secret counts here; an empty text: it is not there. ``overlap_ends_at`` is for people alone."""

    token: str = field(default="", repr=False)
    accepted: str = field(default="", repr=False)
    next_token: str = field(default="", repr=False)
    rotated_for: str = ""
    rotating_for: str = ""
    rotating_since: str = ""
    overlap_ends_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """``content``: what the Secret must hold now, None: what it does hold. ``again_s``: when to look, None: no need.

    ``told``: a sentence for an Event, ``sentence``: one for the status. ``immutable``: for that nothing can be done.
    """

    content: Content | None = field(default=None, repr=False)
    again_s: float | None = None
    told: str | None = None
    warning: bool = False
    sentence: str | None = None
    immutable: bool = False


def step(
    secret: str,
    content: Content,
    *,
    asked: str,
    overlap_s: int,
    pods: Mapping[str, str | None] | None,
    now: datetime,
    fresh_token: str,
    immutable: bool = False,
) -> Step:
    """What comes next for the Secret of that name.

    ``asked``: the resource's annotation, empty if it has none. ``pods``: the hash that each of them reports of what it
    accepts, None where it does not; all that may have read the Secret before. Without ``pods`` it is not known which
    there are, as with a Deployment that is new. ``fresh_token`` is used if one is needed.
    """
    before = _lines(content.accepted)
    lines, token, coming = before, _usable(content.token), _usable(content.next_token)
    if not _tokens(lines) and token:
        lines = [_line(token, lines, secret, like="")]  # pods keep the last list that they could read: this one
    if coming not in _tokens(lines):
        coming = ""  # somebody took it away: it begins again
    usable, due = token in _tokens(lines), bool(asked) and asked != content.rotated_for
    new, former, told = content, "", None
    if coming and (coming == token or (pods is not None and not _missing(content.accepted, pods))):
        former, token, coming = token, coming, ""
        done_for = content.rotating_for if content.rotating_since else asked
        new = replace(new, token=token, rotated_for=done_for)
        told = f"Secret {secret} has a new client token under the key token."
    elif not coming and (due or not usable):
        coming = fresh_token
        lines = [*lines, _line(coming, lines, secret, like=token)]
        new = replace(new, rotating_for=asked or content.rotated_for, rotating_since=now.strftime(_TIME))
        told = None if usable else f"Secret {secret}: proxies do not accept what its key token holds. A new one comes."
    if not coming:
        new = replace(new, rotating_for="", rotating_since="")
    # While a new one comes, apps have nothing better than what they hold.
    replaced = None if coming else {former, f"name={secret}"}
    kept, ends = _kept(lines, present={token, coming}, replaced=replaced, now=now, overlap_s=overlap_s)
    new = replace(
        new,
        next_token=coming,
        accepted=content.accepted if kept == before else "\n".join(kept) + "\n",
        overlap_ends_at=max(ends).strftime(_TIME) if ends else "",
    )
    if immutable and _data(new) != _data(content):
        return Step(sentence=_IMMUTABLE.format(secret=secret), immutable=True)
    if told is not None and former not in ("", token):
        told += f" The one before it is accepted {f'until {new.overlap_ends_at}' if ends else 'no longer'}."
    elif told is None and len(kept) < len(lines):
        told = f"Secret {secret}: a client token that was replaced is no longer accepted."
    return Step(
        content=None if new == content else new,
        again_s=min(
            [*([PODS_AGAIN_S] if coming else []), *((end - now).total_seconds() for end in ends)], default=None
        ),
        told=told,
        warning=not usable,
        sentence=_sentence(new, pods, now=now),
    )


def _data(content: Content) -> tuple[str, str, str]:
    return content.token, content.accepted, content.next_token


def _sentence(content: Content, pods: Mapping[str, str | None] | None, *, now: datetime) -> str | None:
    if content.next_token:
        text = f"A new client token comes, since {content.rotating_since or now.strftime(_TIME)}."
        if pods is None:
            return f"{text} Apps get it when every pod accepts it; there is no pod yet that could be asked."
        missing = _missing(content.accepted, pods)
        some = ", ".join(missing[:_NAMED_MAX]) + (" and others" if len(missing) > _NAMED_MAX else "")
        if not missing:
            return text
        counted = f"{len(pods) - len(missing)} of {len(pods)} pods accept it; apps get it when all do."
        return f"{text} {counted} Not yet: {some}. One that stays so says why in its log; a deleted one does not count."
    if content.overlap_ends_at:
        return f"The client token was rotated: the one before it is accepted until {content.overlap_ends_at}."
    return None


def _missing(accepted: str, pods: Mapping[str, str | None]) -> list[str]:
    expected = token_hash(accepted)
    return sorted(name for name, reported in pods.items() if reported != expected)


# Lines.


def _lines(text: str) -> list[str]:
    return text.splitlines()


def _words(line: str) -> list[str]:
    """The words before a comment, as the proxy reads them."""
    words = line.split()
    end = next((index for index, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:end]


def _tokens(lines: Sequence[str]) -> set[str]:
    return {words[0] for words in map(_words, lines) if words}


def _usable(text: str) -> str:
    """The token, or nothing if no line could hold it."""
    token = text.strip()
    whole = len(token.split()) == 1 and token.isascii() and token.isprintable() and not token.startswith("#")
    return token if whole else ""


def _line(token: str, lines: Sequence[str], secret: str, *, like: str) -> str:
    """An entry with the name and the data sources of the one ``like``, else of the last one that is the operator's."""
    split = [words for words in map(_words, lines) if words]
    ours = [words for words in split if f"name={secret}" in words[1:]]
    model = next((words for words in split if words[0] == like), ours[-1] if ours else ["", f"name={secret}"])
    return " ".join([token, *model[1:]])


def _kept(
    lines: Sequence[str], *, present: set[str], replaced: set[str] | None, now: datetime, overlap_s: int
) -> tuple[list[str], list[datetime]]:
    """The lines that stay, and when those that are marked go.

    ``replaced``: a line with one of these words is marked, if none of ``present`` is its token; None: no line is.
    """
    kept, ends = [], []
    for line in lines:
        words, mark = _words(line), _MARK.search(line)
        if not words:
            kept.append(line)
            continue
        if words[0] in present:
            kept.append(line[: mark.start()] if mark else line)
            continue
        ends_at = _end(mark[1], overlap_s) if mark else None
        if ends_at is None and replaced and not replaced.isdisjoint(words):
            at = now.strftime(_TIME)
            line, ends_at = f"{line.rstrip()} # replaced {at}", _end(at, overlap_s)
        if ends_at is not None and ends_at <= now:
            continue
        kept.append(line)
        if ends_at is not None:
            ends.append(ends_at)
    return kept, ends


def _end(replaced_at: str, overlap_s: int) -> datetime | None:
    try:
        return datetime.strptime(replaced_at, _TIME).replace(tzinfo=UTC) + timedelta(seconds=overlap_s)
    except (ValueError, OverflowError):
        return None  # somebody wrote it: the line is marked anew
