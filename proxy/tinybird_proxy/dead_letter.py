"""Dead letters: rows that we gave up on, kept in memory for a person, bounded in bytes.

A letter is one or more rows of one batch with one verdict. It is **held** until somebody deletes it, or it is evicted
because newer ones need the room (counted, logged at ERROR), or its rows are **replayed**: then they stand in the buffer
again, and the letter stays, marked, until the last of them has settled.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.ledger import Ledger, LetterReason
from tinybird_proxy.telemetry.logs import Sparingly, fields, get_logger

# What a letter takes besides its rows, roughly: it keeps a flood of tiny letters within the limit too.
OVERHEAD_BYTES = 1000
# A moment is shown to the microsecond: what is later by so much is later there, too.
_LATER_S = 0.000_002
_LOG_INTERVAL_S = 10.0
_log = get_logger("dead_letter")


@dataclass(slots=True, kw_only=True, eq=False)
class DeadLetter:
    """Rows of one batch and what Tinybird said of them. Times are UTC seconds since 1970.

    ``raw_bytes``: of the rows, before compression and with a line feed after each item.

    ``first_at``: when the oldest of the rows was taken; ``last_at``: when they were given up on. ``status`` is None
    where no answer of Tinybird's decided. ``ambiguous``: Tinybird may have taken the rows all the same.
    ``client_told``: the client that sent them heard of the refusal, so it may have sent them again, mended.
    ``replay_rows_left``: rows that stand in the buffer again; 0 unless the letter is being replayed.
    """

    id: str
    key: DestinationKey
    ledger: Ledger = field(repr=False)
    payload: Payload = field(repr=False)
    row_count: int
    raw_bytes: int
    reason: LetterReason
    status: int | None
    message: str
    batch_id: str
    first_at: float
    last_at: float
    ambiguous: bool = False
    client_told: bool = False
    replay_rows_left: int = 0
    replays: int = 0

    @property
    def replaying(self) -> bool:
        """Whether its rows stand in the buffer again."""
        return self.replay_rows_left > 0

    @property
    def doubles(self) -> bool:
        """Whether sending it again doubles rows that Tinybird has."""
        return self.reason is LetterReason.PARTIAL

    @property
    def size_bytes(self) -> int:
        """Memory that the letter takes, roughly: with its key, which may be as large as a request's head."""
        key = self.key
        key_chars = len(key.name) + len(key.token or "") + sum(len(name) + len(value) for name, value in key.params)
        return len(self.payload.body) + len(self.message) + max(OVERHEAD_BYTES, key_chars)


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters are meant; None does not choose. Times are UTC seconds and compare with ``last_at``."""

    ids: frozenset[str] | None = None
    data_source: str | None = None
    reason: LetterReason | None = None
    status: int | None = None
    batch_id: str | None = None
    since: float | None = None
    until: float | None = None
    client_told: bool | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether ``letter`` is meant."""
        return (
            (self.ids is None or letter.id in self.ids)
            and self.data_source in (None, letter.key.name)
            and self.reason in (None, letter.reason)
            and self.status in (None, letter.status)
            and self.batch_id in (None, letter.batch_id)
            and (self.since is None or letter.last_at >= self.since)
            and (self.until is None or letter.last_at < self.until)
            and self.client_told in (None, letter.client_told)
        )


EVERY_LETTER = LetterFilter()


@dataclass(slots=True)
class Replay:
    """What became of the letters that were meant: rows in the buffer again, or why not."""

    replayed_letters: int = 0
    replayed_rows: int = 0
    replaying_rows: int = 0  # since before
    client_told_rows: int = 0
    partial_rows: int = 0
    no_room_rows: int = 0


class DeadLetters:
    """The letters of all destinations, oldest first. ``held`` ones count towards ``max_bytes``, replayed ones do not.

    ``now`` is a clock in seconds, for the log's rhythm only.
    """

    def __init__(self, max_bytes: int, *, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._now = now
        self._letters: dict[str, DeadLetter] = {}
        self._strangers: dict[str, DeadLetter] = {}  # held ones whose token was never accepted
        self._held_rows: Counter[DestinationKey] = Counter()
        self._evictions = Sparingly(_LOG_INTERVAL_S)
        self._shown_as_of = float("-inf")
        self.held_bytes = 0

    @property
    def max_bytes(self) -> int:
        """Memory that held letters may take."""
        return self._max_bytes

    def __len__(self) -> int:
        return len(self._letters)

    def select(self, wanted: LetterFilter = EVERY_LETTER) -> Iterator[DeadLetter]:
        """Letters that ``wanted`` means, oldest first. They may be removed meanwhile."""
        return (letter for letter in list(self._letters.values()) if wanted.matches(letter))

    def as_of(self, now_utc_s: float) -> float:
        """The moment of a look at the letters: as ``until`` it means none that comes later, see ``given_up_at``."""
        self._shown_as_of = max(now_utc_s, self._shown_as_of)
        return self._shown_as_of

    def given_up_at(self, now_utc_s: float) -> float:
        """``last_at`` for a letter that comes now: behind every look so far, although somebody set the clock back."""
        return max(now_utc_s, self._shown_as_of + _LATER_S)

    def held_rows(self, key: DestinationKey | None = None) -> int:
        """Rows in held letters, of one destination or of all."""
        return sum(self._held_rows.values()) if key is None else self._held_rows[key]

    def keys(self) -> list[DestinationKey]:
        """Destinations with held letters."""
        return list(self._held_rows)

    def holds(self, letter: DeadLetter) -> bool:
        """Whether ``letter`` is still here, and not being replayed."""
        return letter.id in self._letters and not letter.replaying

    def add(self, letter: DeadLetter) -> None:
        """Keep a new letter; its rows leave the buffer at the same time. The oldest go if there is no room.

        One that is larger than all of the room is lost itself, and takes nobody else's.
        """
        letter.ledger.dead_lettered += letter.row_count
        self._letters[letter.id] = letter
        self._hold(letter)
        self._make_room(letter)

    def begin_replay(self, letter: DeadLetter) -> None:
        """The rows of a held letter enter the buffer again, at the same time."""
        letter.ledger.replayed += letter.row_count
        self._unhold(letter)
        letter.replay_rows_left = letter.row_count
        letter.replays += 1

    def replay_ended(self, letter: DeadLetter, row_count: int) -> None:
        """So many replayed rows of ``letter`` have left the buffer for good; with the last of them it is forgotten."""
        letter.replay_rows_left -= row_count
        if letter.replay_rows_left == 0:
            self._letters.pop(letter.id, None)

    def replay_refused(self, letter: DeadLetter) -> None:
        """A replay was refused whole: all of the rows leave the buffer, and the letter is held again as it was."""
        letter.ledger.dead_lettered += letter.row_count
        letter.replay_rows_left = 0
        self._hold(letter)
        self._make_room(letter)

    def delete(self, letter: DeadLetter) -> bool:
        """A person wants a letter gone; False if it is gone, or is being replayed."""
        if not self.holds(letter):
            return False
        del self._letters[letter.id]
        self._unhold(letter)
        letter.ledger.letters_deleted += letter.row_count
        return True

    def lose_all(self) -> None:
        """The process ends, and with it the memory: what is still held is lost. Replays were counted by the buffer."""
        for letter in self._letters.values():
            if not letter.replaying:
                self._unhold(letter)
                letter.ledger.letters_lost_at_exit += letter.row_count
        self._letters.clear()
        self._log_evictions(self._evictions.rest(self._now()))

    def tell(self) -> None:
        """Log evictions that were not told of yet, if it is time."""
        self._log_evictions(self._evictions.count(self._now(), 0))

    def _hold(self, letter: DeadLetter) -> None:
        self._held_rows[letter.key] += letter.row_count
        self.held_bytes += letter.size_bytes
        if letter.reason is LetterReason.UNAUTHORIZED:
            self._strangers[letter.id] = letter

    def _unhold(self, letter: DeadLetter) -> None:
        self._strangers.pop(letter.id, None)
        self.held_bytes -= letter.size_bytes
        self._held_rows[letter.key] -= letter.row_count
        if self._held_rows[letter.key] == 0:
            del self._held_rows[letter.key]

    def _make_room(self, newest: DeadLetter) -> None:
        """Held letters are lost until the rest fits."""
        if self.held_bytes <= self._max_bytes:
            return
        never_fits = newest.size_bytes > self._max_bytes
        evicted = 0
        for letter in [newest] if never_fits else self._oldest(self.held_bytes - self._max_bytes):
            del self._letters[letter.id]
            self._unhold(letter)
            letter.ledger.letters_evicted += letter.row_count
            evicted += letter.row_count
        self._log_evictions(self._evictions.count(self._now(), evicted))

    def _oldest(self, size_bytes: int) -> list[DeadLetter]:
        """The oldest held letters that take ``size_bytes`` together, or a little more; strangers' before all others.

        Whoever guesses tokens must not push out what others want to keep.
        """
        found: list[DeadLetter] = []
        known = (letter for letter in self._letters.values() if letter.id not in self._strangers)
        for letter in chain(self._strangers.values(), known):
            if size_bytes <= 0:
                break
            if not letter.replaying:
                found.append(letter)
                size_bytes -= letter.size_bytes
        return found

    def _log_evictions(self, row_count: int) -> None:
        if row_count:
            _log.error(
                "dead letters were lost: they take more room than DEAD_LETTER_BYTES; export or delete some in time",
                extra=fields(rows=row_count, max_bytes=self._max_bytes),
            )


def choose(
    letters: Iterable[DeadLetter], wanted: LetterFilter, outcome: Replay
) -> dict[DestinationKey, list[DeadLetter]]:
    """Those of ``letters`` that are to be replayed, by destination; the others are counted in ``outcome``.

    A letter whose client was told, or that would double rows, only if ``wanted`` names its kind or its id.
    """
    chosen: dict[DestinationKey, list[DeadLetter]] = {}
    for letter in letters:
        if letter.replaying:
            outcome.replaying_rows += letter.row_count
        elif letter.client_told and wanted.client_told is None and wanted.ids is None:
            outcome.client_told_rows += letter.row_count
        elif letter.doubles and wanted.reason is not LetterReason.PARTIAL and wanted.ids is None:
            outcome.partial_rows += letter.row_count
        else:
            chosen.setdefault(letter.key, []).append(letter)
    return chosen


def batches_of(letters: list[DeadLetter], *, max_rows: int, max_bytes: int) -> Iterator[list[DeadLetter]]:
    """Letters that leave together: within a batch's limits, but never a part of one."""
    batch: list[DeadLetter] = []
    rows = size_bytes = 0
    for letter in letters:
        if batch and (rows + letter.row_count > max_rows or size_bytes + letter.raw_bytes > max_bytes):
            yield batch
            batch, rows, size_bytes = [], 0, 0
        batch.append(letter)
        rows, size_bytes = rows + letter.row_count, size_bytes + letter.raw_bytes
    if batch:
        yield batch
