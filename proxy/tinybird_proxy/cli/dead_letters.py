"""``tinybird-proxy dead-letters …`` and ``probe``: what a person does about a running proxy's dead letters."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import mkstemp
from typing import Any, BinaryIO, Final

import click

from tinybird_proxy.cli.admin_client import AdminClient, Query, Streamed, make_client
from tinybird_proxy.ledger import LetterReason

_PATH: Final = "/dead-letters"
_NDJSON: Final = "application/x-ndjson"
# Columns are as wide as the first so many letters need: there may be more than fit in memory.
_MEASURED: Final = 1000
_COLUMN_MAX_CHARS: Final = 44
_MESSAGE_MAX_CHARS: Final = 60
_COLUMNS: Final = ("id", "data source", "rows", "bytes", "reason", "status", "given up at", "notes", "message")
_ADVICE: Final = {
    LetterReason.REJECTED: "Tinybird refuses this row for what it holds: export it, mend it and send it anew, then drop"
    " the letter; or replay it once the data source takes such rows.",
    LetterReason.TOO_LARGE: "Tinybird refuses a request with nothing but this row for its size: export it, make it"
    " smaller and send it anew, then drop the letter.",
    LetterReason.UNDECIDED: "Bad rows are among these, and the search for them ran out of requests: replay the letter,"
    " and the search goes on.",
    LetterReason.PARTIAL: "Tinybird took a part of these rows and does not say which: compare with the data source; a"
    " replay (which has to name the letter, or its reason) doubles that part.",
    LetterReason.UNAUTHORIZED: "No token was ever accepted for these rows: give the client's token the right to append,"
    " or create the data source, then replay the letter.",
    LetterReason.EXPIRED: "These rows waited longer than MAX_AGE: see in /status why they were not delivered, then"
    " replay the letter if they still matter.",
}
_UNKNOWN_REASON: Final = "This version does not know the reason: see the README of the proxy's version."


def _common(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--admin-url",
        default=None,
        metavar="URL",
        help="The proxy's admin port. Default: what ADMIN_HOST and ADMIN_PORT mean, http://127.0.0.1:8001.",
    )(command)


# Each option is a parameter of the admin port's, which checks it: its name is the parameter's.
_FILTERS: Final = (
    click.option("--id", "ids", multiple=True, help="This letter; may be given several times."),
    click.option("--name", help="Letters of this data source."),
    click.option(
        "--reason", type=click.Choice([str(reason) for reason in LetterReason]), help="Letters with this reason."
    ),
    click.option("--status", help="Letters with this status of Tinybird's."),
    click.option("--batch", help="Letters of this batch."),
    click.option(
        "--since", metavar="TIME", help="Given up on at or after: 2026-01-31T12:00:00Z, Unix seconds, or 15m."
    ),
    click.option("--until", metavar="TIME", help="Given up on before: the same."),
    click.option(
        "--client-told", type=click.Choice(["true", "false"]), help="Whether the client heard of the refusal."
    ),
)
_limit = click.option("--limit", type=click.IntRange(min=1), help="Only the oldest so many letters.")


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_FILTERS):
        command = option(command)
    return _common(command)


@click.group()
def dead_letters() -> None:
    """Rows that Tinybird does not take, kept by a running proxy.

    The token is that of ADMIN_TOKEN or ADMIN_TOKEN_FILE, if the proxy has one.
    """


@dead_letters.command()
@_filtered
@_limit
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def ls(admin_url: str | None, as_json: bool, **chosen: Any) -> None:
    """List dead letters, the oldest first."""
    with make_client(admin_url, os.environ).streamed("GET", _PATH, _query(chosen), content_type=_NDJSON) as answer:
        if as_json:
            for piece in answer.pieces():
                _write_out(piece)
            return
        letters = _letters(answer)
        first = list(islice(letters, _MEASURED))
        if not first:
            click.echo("There is no such dead letter." if _query(chosen) else "There are no dead letters.")
            return
        widths = [max(map(len, column)) for column in zip(*([_COLUMNS, *map(_cells, first)]), strict=True)]
        click.echo(_aligned(_COLUMNS, widths))
        count = rows = size_bytes = 0
        for letter in _chained(first, letters):
            click.echo(_aligned(_cells(letter), widths))
            count, rows, size_bytes = count + 1, rows + letter["rows"], size_bytes + letter["bytes"]
        click.echo(f"\n{_count(count, 'dead letter')}, {_count(rows, 'row')}, {_size(size_bytes)}")


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@_common
def show(admin_url: str | None, letter_id: str) -> None:
    """Show one dead letter, what to do about it, and its rows."""
    client = make_client(admin_url, os.environ)
    with client.streamed("GET", _PATH, [("id", letter_id)], content_type=_NDJSON) as answer:
        letter = next(_letters(answer), None)
    if letter is None:
        raise click.ClickException(f"there is no dead letter {_plain(letter_id)} (any more): see `dead-letters ls`")
    width = max(map(len, letter))
    for name, value in letter.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:{width}}  {_plain(shown)}")
    click.echo(f"\n{_ADVICE.get(letter['reason'], _UNKNOWN_REASON)}")
    if letter["client_told"]:
        click.echo("The client heard of the refusal and may have sent the rows again, mended.")
    if letter["ambiguous"]:
        click.echo("Tinybird may have taken these rows all the same: a replay may double them.")
    if letter["replaying"]:
        click.echo("It is being replayed: its rows stand in the buffer again.")
    click.echo()
    with client.streamed("GET", _PATH, [("id", letter["id"]), ("format", "rows")], content_type=_NDJSON) as answer:
        for piece in _for_a_terminal(answer.pieces()) if sys.stdout.isatty() else answer.pieces():
            _write_out(piece)
        if answer.announced("X-Dead-Letters") == 0:
            raise click.ClickException("it has gone meanwhile, and its rows with it")


@dead_letters.command()
@_filtered
@_limit
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
def export(admin_url: str | None, file: Path | None, force: bool, **chosen: Any) -> None:
    """Write the rows of dead letters, one a line, to FILE or to the standard output. The letters stay.

    It ends with a moment: `drop` with the same filters and --until that moment drops no letter that came later.
    """
    client, query = make_client(admin_url, os.environ), [*_query(chosen), ("format", "rows")]
    if file is None or str(file) == "-":
        with client.streamed("GET", _PATH, query, content_type=_NDJSON) as answer:
            said = _copy(answer, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    else:
        if file.exists() and not file.is_file():
            raise click.ClickException(f"{file} is no ordinary file; without a name the rows go to the standard output")
        if file.exists() and not force:
            raise click.ClickException(f"{file} is there already; choose another name, or replace it with --force")
        said = _export_to_file(client, query, file)
    click.echo(said, err=True)


@dead_letters.command()
@_filtered
def replay(admin_url: str | None, **chosen: Any) -> None:
    """Send the rows of dead letters again. Exit status 1 if the buffer has no room for some of them."""
    done = make_client(admin_url, os.environ).ask("POST", f"{_PATH}/replay", _query(chosen))
    if done["replayed_letters"]:
        letters, rows = _count(done["replayed_letters"], "dead letter"), _count(done["replayed_rows"], "row")
        click.echo(f"{letters} replayed: {rows} on the way to Tinybird again.")
    else:
        click.echo("Nothing was replayed." if done["skipped"] else _nothing(chosen))
    _tell_skipped(done["skipped"])
    if any(skipped["reason"] == "no_room" for skipped in done["skipped"]):
        sys.exit(1)


@dead_letters.command()
@_filtered
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(admin_url: str | None, everything: bool, yes: bool, **chosen: Any) -> None:
    """Delete dead letters for ever. On a terminal it asks first."""
    query = _query(chosen)
    if not query and not everything:
        raise click.ClickException("this would delete every dead letter; choose some with a filter, or say --all")
    if query and everything:
        raise click.ClickException("--all cannot stand with a filter; say --all alone, or only the filter")
    client = make_client(admin_url, os.environ)
    if sys.stdin.isatty() and not yes:
        with client.streamed("GET", _PATH, query, content_type=_NDJSON) as answer:
            letters = _count(answer.announced("X-Dead-Letters"), "dead letter")
            rows = _count(answer.announced("X-Dead-Letter-Rows"), "row")
            if not chosen["until"]:
                query.append(("until", answer.as_of))  # what comes while somebody thinks was not asked about
        click.confirm(f"Delete {letters} with {rows} for ever?", abort=True, err=True)
    done = client.ask("DELETE", _PATH, query or [("all", "true")])
    if done["deleted_letters"]:
        click.echo(
            f"{_count(done['deleted_letters'], 'dead letter')} with {_count(done['deleted_rows'], 'row')} deleted."
        )
    else:
        click.echo("Nothing was deleted." if done["skipped"] else _nothing(chosen))
    _tell_skipped(done["skipped"])


@click.command()
@_common
def probe(admin_url: str | None) -> None:
    """Try every held destination of a running proxy again now."""
    click.echo(make_client(admin_url, os.environ).ask("POST", "/probe")["sentence"])


def _query(chosen: dict[str, Any]) -> list[tuple[str, str]]:
    """The admin port's parameters. An empty one is sent, too: the proxy refuses it."""
    ids = [("id", letter_id) for letter_id in chosen.get("ids", ())]
    return ids + [(name, str(value)) for name, value in chosen.items() if name != "ids" and value is not None]


def _nothing(chosen: dict[str, Any]) -> str:
    return "There is no such dead letter." if _query(chosen) else "There are no dead letters."


def _tell_skipped(skipped: list[dict[str, Any]]) -> None:
    for some in skipped:
        # The proxy names its parameters; ours have the same names.
        sentence = re.sub(
            r"\b([a-z_]+)=(\w+)", lambda match: f"--{match[1].replace('_', '-')} {match[2]}", some["sentence"]
        )
        click.echo(f"{_count(some['rows'], 'row')} skipped: {sentence}.")


# What comes.


def _letters(answer: Streamed) -> Iterator[dict[str, Any]]:
    rest = b""
    for piece in answer.pieces():
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, lines)


def _copy(answer: Streamed, to: BinaryIO) -> str:
    """Copy all rows and say how many. Raises ``ClickException`` if they are not all there."""
    count = 0
    for piece in answer.pieces():
        to.write(piece)
        count += piece.count(b"\n")
    wanted, letters = answer.announced("X-Dead-Letter-Rows"), answer.announced("X-Dead-Letters")
    if count != wanted:
        raise click.ClickException(f"only {count} of {_count(wanted, 'row')} came; try again")
    said = f"{_count(count, 'row')} of {_count(letters, 'dead letter')}"
    replaying = answer.announced("X-Dead-Letter-Rows-Replaying")
    return (f"{said}; {replaying} of them are being replayed, too" if replaying else said) + f", as of {answer.as_of}"


def _export_to_file(client: AdminClient, query: Query, file: Path) -> str:
    """Under another name until all of it is there."""
    try:
        descriptor, part = mkstemp(dir=file.parent, prefix=".dead-letters-", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                with client.streamed("GET", _PATH, query, content_type=_NDJSON) as answer:
                    said = _copy(answer, opened)
                opened.flush()
                os.fsync(descriptor)
            Path(part).replace(file)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror or error}") from error
    return f"{file}: {said}"


# How it looks.


def _chained(first: list[dict[str, Any]], rest: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from first
    yield from rest


def _cells(letter: dict[str, Any]) -> tuple[str, ...]:
    notes = [
        note
        for name, note in (("client_told", "told"), ("ambiguous", "ambiguous"), ("replaying", "replaying"))
        if letter[name]
    ]
    cells = (
        *(letter["id"], letter["data_source"], str(letter["rows"]), str(letter["bytes"]), letter["reason"]),
        *("" if letter["status"] is None else str(letter["status"]), letter["last_at"], ",".join(notes)),
    )
    return (
        *(_cut(cell, _COLUMN_MAX_CHARS) for cell in map(_plain, cells)),
        _cut(_plain(letter["message"]), _MESSAGE_MAX_CHARS),
    )


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _plain(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _for_a_terminal(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Rows as the same JSON, with nothing in them that a terminal would obey: DEL and the C1 controls escaped."""
    rest = b""
    for piece in pieces:
        rows = rest + piece
        rest = rows[-1:] if rows[-1:] == b"\xc2" else b""  # of two bytes; the other one comes with the next piece
        rows = re.sub(rb"\xc2([\x80-\x9f])", lambda match: b"\\u00%02x" % match[1][0], rows[: len(rows) - len(rest)])
        yield rows.replace(b"\x7f", b"\\u007f").replace(b"\r", b" ")


def _write_out(piece: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"
