"""Rows that were given up on: where each of them is, who leaves when there is no room, whom a filter means."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.dead_letter import EVERY_LETTER, OVERHEAD_BYTES, DeadLetter, DeadLetters, LetterFilter
from tinybird_proxy.ledger import Ledger, LetterReason
from tinybird_proxy.testing.fake_upstream import FakeUpstream
from tinybird_proxy.testing.pipelines import Client, Setup, numbered

HITS = DestinationKey("/v0/events", "hits", (), None)
CLICKS = DestinationKey("/v0/events", "clicks", (), "p.sEcReT")
ROOM = 10 * OVERHEAD_BYTES
ids = (f"b{number}" for number in itertools.count(1))


def make_letter(
    rows: int = 1, size_bytes: int = 0, *, ledger: Ledger | None = None, key: DestinationKey = HITS, **changed: Any
) -> DeadLetter:
    """A letter that takes ``size_bytes`` besides the overhead of any."""
    given: dict[str, Any] = {
        **{"id": next(ids), "reason": LetterReason.REJECTED, "status": 400, "message": "", "batch_id": "b"},
        **{"first_at": 1.0, "last_at": 2.0, "payload": Payload(b"x" * size_bytes, None)},
        **changed,
    }
    own = Ledger() if ledger is None else ledger
    return DeadLetter(key=key, ledger=own, row_count=rows, raw_bytes=size_bytes + 1, **given)


@dataclass
class Store:
    """A store of letters with one ledger, and its clock."""

    letters: DeadLetters
    ledger: Ledger
    seconds: float = 0.0

    def add(self, rows: int = 1, size_bytes: int = 0, **changed: Any) -> DeadLetter:
        """Add a letter whose rows were accepted before."""
        letter = make_letter(rows, size_bytes, ledger=self.ledger, **changed)
        self.ledger.accepted += rows
        self.letters.add(letter)
        return letter

    def held(self) -> list[DeadLetter]:
        return [letter for letter in self.letters.select() if self.letters.holds(letter)]


def make_store(max_bytes: int = ROOM) -> Store:
    store = Store(DeadLetters(max_bytes, now=lambda: store.seconds), Ledger())
    return store


def balances(store: Store, *, buffered: int = 0) -> bool:
    """Whether both equations hold."""
    ledger, held = store.ledger, store.letters.held_rows()
    return ledger.letters_imbalance(held) == 0 and ledger.imbalance(buffered) == 0


# Held, deleted.


def test_a_letter_is_held_and_its_rows_have_left_the_buffer() -> None:
    store = make_store()
    assert (len(store.letters), store.letters.held_rows(), store.letters.held_bytes) == (0, 0, 0)
    letter = store.add(3, 100, message="why")
    assert store.letters.holds(letter)
    assert (len(store.letters), store.letters.held_rows(), store.ledger.dead_lettered) == (1, 3, 3)
    assert store.letters.held_bytes == letter.size_bytes == 100 + len("why") + OVERHEAD_BYTES
    assert store.letters.max_bytes == ROOM
    assert balances(store)


@pytest.mark.parametrize(
    "key",
    [
        DestinationKey("/v0/events", "hits", (("__tb_a", "x" * 30_000),), None),
        DestinationKey("/v0/events", "hits", (), "x" * 30_000),
    ],
    ids=["parameters", "token"],
)
def test_parameters_and_tokens_as_large_as_a_head_count_towards_the_room(key: DestinationKey) -> None:
    store = make_store(100 * OVERHEAD_BYTES)
    for number in range(50):
        store.add(key=key._replace(name=f"hits{number}"))
    assert len(store.held()) == 3
    assert store.ledger.letters_evicted == 47
    assert balances(store)


def test_held_rows_are_known_for_each_destination() -> None:
    store = make_store()
    store.add(3)
    theirs = store.add(4, key=CLICKS)
    assert (store.letters.held_rows(HITS), store.letters.held_rows(CLICKS), store.letters.held_rows()) == (3, 4, 7)
    assert store.letters.keys() == [HITS, CLICKS]
    store.letters.delete(theirs)
    assert (store.letters.held_rows(CLICKS), store.letters.keys()) == (0, [HITS])


def test_a_letter_is_deleted_once() -> None:
    store = make_store()
    letter = store.add(3)
    assert store.letters.delete(letter)
    assert not store.letters.delete(letter)
    assert not store.letters.holds(letter)
    assert (len(store.letters), store.letters.held_bytes, store.ledger.letters_deleted) == (0, 0, 3)
    assert balances(store)


def test_letters_may_be_deleted_while_they_are_looked_through() -> None:
    store = make_store()
    for _ in range(5):
        store.add(2)
    assert all(store.letters.delete(letter) for letter in store.letters.select())
    assert (len(store.letters), store.ledger.letters_deleted) == (0, 10)


# Replays.


def test_a_replay_that_ends_is_forgotten_with_its_last_row() -> None:
    store = make_store()
    letter = store.add(3)
    store.letters.begin_replay(letter)
    assert (letter.replaying, letter.replays, store.letters.holds(letter)) == (True, 1, False)
    assert (len(store.letters), store.letters.held_rows(), store.letters.held_bytes) == (1, 0, 0)
    assert balances(store, buffered=3)
    store.letters.replay_ended(letter, 2)
    assert letter.replaying
    assert len(store.letters) == 1
    store.letters.replay_ended(letter, 1)
    assert (letter.replaying, len(store.letters)) == (False, 0)


def test_a_replay_that_is_refused_whole_leaves_the_letter_where_it_was() -> None:
    store = make_store()
    first, second = store.add(3), store.add(1)
    store.letters.begin_replay(first)
    store.letters.replay_refused(first)
    assert store.held() == [first, second]
    assert (first.replaying, first.replays, store.letters.held_rows()) == (False, 1, 4)
    assert balances(store)
    store.letters.begin_replay(first)
    assert first.replays == 2


def test_a_letter_that_is_being_replayed_cannot_be_deleted() -> None:
    store = make_store()
    letter = store.add(3)
    store.letters.begin_replay(letter)
    assert not store.letters.delete(letter)
    assert letter.replaying
    assert store.ledger.letters_deleted == 0


# No room.


def test_the_oldest_letters_go_when_there_is_no_room() -> None:
    store = make_store(3 * OVERHEAD_BYTES)
    letters = [store.add(rows) for rows in (1, 2, 4)]
    assert store.held() == letters, "exactly full is not too full"
    large = store.add(8, 100)
    assert store.held() == [letters[2], large]
    assert (store.ledger.letters_evicted, store.letters.held_rows()) == (3, 12)
    assert balances(store)


def test_a_letter_that_is_being_replayed_takes_no_room_and_is_not_lost() -> None:
    store = make_store(2 * OVERHEAD_BYTES)
    replaying, oldest, next_one = store.add(), store.add(), None
    store.letters.begin_replay(replaying)
    next_one, newest = store.add(), store.add()
    assert store.held() == [next_one, newest]
    assert not store.letters.holds(oldest)
    assert replaying in list(store.letters.select())


def test_a_replay_that_comes_back_is_the_oldest_and_the_first_to_go() -> None:
    store = make_store(2 * OVERHEAD_BYTES)
    replaying = store.add(5)
    store.letters.begin_replay(replaying)
    others = [store.add(), store.add()]
    store.letters.replay_refused(replaying)
    assert store.held() == others
    assert store.ledger.letters_evicted == 5
    assert balances(store)


def test_a_letter_larger_than_all_of_the_room_is_lost_alone() -> None:
    store = make_store(3 * OVERHEAD_BYTES)
    kept = [store.add(1), store.add(2)]
    too_large = store.add(7, 3 * OVERHEAD_BYTES)
    assert store.held() == kept
    assert not store.letters.holds(too_large)
    assert (store.ledger.letters_evicted, store.letters.held_rows()) == (7, 3)
    assert balances(store)


def test_without_room_nothing_is_kept_and_all_is_counted() -> None:
    store = make_store(0)
    store.add(7)
    assert (len(store.letters), store.letters.held_bytes, store.ledger.letters_evicted) == (0, 0, 7)
    assert balances(store)


def test_what_is_evicted_is_an_error_in_the_log_now_and_then_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(OVERHEAD_BYTES)

    def told() -> list[int]:
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert all(record.message.startswith("dead letters were lost: ") for record in errors)
        return [vars(record)["fields"]["rows"] for record in errors]

    store.add(1)
    assert told() == []
    store.add(2)
    assert told() == [1]
    store.add(4)
    store.seconds = 9.9
    store.add(8)
    assert told() == [1]
    store.seconds = 10.0
    store.add(16)
    assert told() == [1, 2 + 4 + 8]
    store.add(32)
    store.letters.lose_all()
    assert told() == [1, 2 + 4 + 8, 16]
    store.letters.lose_all()
    assert told() == [1, 2 + 4 + 8, 16]
    assert sum(told()) == store.ledger.letters_evicted
    assert "sEcReT" not in caplog.text


def test_what_is_evicted_is_told_in_time_although_no_more_comes(caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(0)

    def told() -> list[int]:
        return [vars(record)["fields"]["rows"] for record in caplog.records if record.levelno == logging.ERROR]

    store.letters.tell()
    assert told() == []
    for rows in (1, 2, 4):
        store.add(rows)
    store.seconds = 9.9
    store.letters.tell()
    assert told() == [1]
    store.seconds = 10.0
    store.letters.tell()
    assert told() == [1, 2 + 4]
    store.seconds = 1000.0
    store.letters.tell()
    assert told() == [1, 2 + 4]


@pytest.mark.looptime(idle_timeout=1)
async def test_whoever_checks_the_ledger_now_and_then_brings_all_evictions_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tinybird = FakeUpstream()
    async with Setup(dead_letter_bytes=0).pipeline(tinybird).running() as pipeline:
        client = Client(pipeline)
        await client.confirm()
        tinybird.will(then=422)
        for _ in range(5):
            client.offer(numbered([1] * 100))
            await asyncio.sleep(1.5)
        await asyncio.sleep(10)
        assert pipeline.check_ledger() == 0
        lost = [record for record in caplog.records if record.message.startswith("dead letters were lost: ")]
        assert sum(vars(record)["fields"]["rows"] for record in lost) == pipeline.ledger().letters_evicted == 500
        assert len(lost) == 2


# The end.


def test_what_only_memory_held_is_lost_with_the_process_and_replays_are_the_buffers() -> None:
    store = make_store()
    replaying = store.add(4)
    store.add(3)
    store.letters.begin_replay(replaying)
    store.letters.lose_all()
    assert (len(store.letters), store.letters.held_rows(), store.letters.held_bytes) == (0, 0, 0)
    assert store.ledger.letters_lost_at_exit == 3
    assert balances(store, buffered=4)


# What a letter shows, and which letters a filter means.


def test_no_row_and_no_token_is_in_a_letters_repr() -> None:
    letter = make_letter(key=CLICKS, payload=Payload(b'{"a":"sEcReT"}', None))
    assert "sEcReT" not in repr(letter)
    assert "sEcReT" not in str(letter)


@pytest.mark.parametrize("reason", LetterReason)
def test_only_rows_that_tinybird_took_in_part_are_doubled_by_a_replay(reason: LetterReason) -> None:
    assert make_letter(reason=reason).doubles is (reason is LetterReason.PARTIAL)


LETTER = make_letter(
    id="b7.3",
    reason=LetterReason.REJECTED,
    status=400,
    batch_id="b7",
    first_at=50.0,
    last_at=100.0,
    client_told=True,
)


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        pytest.param(LetterFilter(), True, id="all"),
        pytest.param(EVERY_LETTER, True, id="every"),
        pytest.param(LetterFilter(ids=frozenset({"b7.3", "b1"})), True, id="its id"),
        pytest.param(LetterFilter(ids=frozenset({"b7"})), False, id="another id"),
        pytest.param(LetterFilter(ids=frozenset()), False, id="no id"),
        pytest.param(LetterFilter(data_source="hits"), True, id="its data source"),
        pytest.param(LetterFilter(data_source="hit"), False, id="another data source"),
        pytest.param(LetterFilter(reason=LetterReason.REJECTED), True, id="its reason"),
        pytest.param(LetterFilter(reason=LetterReason.EXPIRED), False, id="another reason"),
        pytest.param(LetterFilter(status=400), True, id="its status"),
        pytest.param(LetterFilter(status=413), False, id="another status"),
        pytest.param(LetterFilter(batch_id="b7"), True, id="its batch"),
        pytest.param(LetterFilter(batch_id="b7.3"), False, id="another batch"),
        pytest.param(LetterFilter(since=100.0), True, id="since then"),
        pytest.param(LetterFilter(since=100.1), False, id="since later"),
        pytest.param(LetterFilter(until=100.1), True, id="until later"),
        pytest.param(LetterFilter(until=100.0), False, id="until then, without it"),
        pytest.param(LetterFilter(since=0.0, until=60.0), False, id="when it was taken does not count"),
        pytest.param(LetterFilter(client_told=True), True, id="its client was told"),
        pytest.param(LetterFilter(client_told=False), False, id="nobody was told"),
        pytest.param(LetterFilter(data_source="hits", status=413), False, id="all of it must fit"),
        pytest.param(LetterFilter(data_source="hits", status=400, since=1.0), True, id="and all of it does"),
    ],
)
def test_a_filter_means_a_letter_if_all_of_it_fits(wanted: LetterFilter, meant: bool) -> None:
    assert wanted.matches(LETTER) is meant


@pytest.mark.parametrize(
    ("wanted", "changed"),
    [
        pytest.param(LetterFilter(status=400), {"status": None}, id="no answer decided"),
        pytest.param(LetterFilter(client_told=True), {"client_told": False}, id="nobody was told"),
    ],
)
def test_a_filter_tells_nothing_known_from_what_is_wanted(wanted: LetterFilter, changed: dict[str, Any]) -> None:
    assert not wanted.matches(make_letter(**changed))


def test_the_letters_that_are_meant_come_oldest_first() -> None:
    store = make_store()
    first, _, third = store.add(), store.add(key=CLICKS), store.add()
    assert list(store.letters.select(LetterFilter(data_source="hits"))) == [first, third]


# Whatever happens.


class Letters(RuleBasedStateMachine):
    """A store with two destinations. ``held``: what must be there, oldest first; ``away``: what is being replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.letters = DeadLetters(ROOM, now=lambda: self.seconds)
        self.ledgers = {HITS: Ledger(), CLICKS: Ledger()}
        self.every: list[DeadLetter] = []  # in the order in which they came
        self.held: set[str] = set()
        self.away: dict[str, int] = {}
        self.evicted = 0
        self.log = _Errors()
        logging.getLogger("tinybird_proxy.dead_letter").addHandler(self.log)

    def teardown(self) -> None:
        self.letters.lose_all()
        logging.getLogger("tinybird_proxy.dead_letter").removeHandler(self.log)
        self.held.clear()
        self.nothing_is_missing()
        assert self.log.rows == self.evicted
        assert len(self.letters) == 0

    def _in_order(self, ids: Callable[[str], bool]) -> list[DeadLetter]:
        return [letter for letter in self.every if ids(letter.id)]

    def _hold(self, newest: DeadLetter) -> None:
        """Expect ``newest`` to be held, and others gone."""
        self.held.add(newest.id)
        if newest.size_bytes > ROOM:
            victims = [newest]
        else:
            victims, held = [], self._in_order(self.held.__contains__)
            while sum(letter.size_bytes for letter in held) > ROOM:
                victims.append(held.pop(0))
        self.held -= {letter.id for letter in victims}
        self.evicted += sum(letter.row_count for letter in victims)

    @rule(
        rows=st.integers(1, 50),
        size_bytes=st.integers(0, 4 * OVERHEAD_BYTES) | st.integers(0, ROOM + 5),
        key=st.sampled_from((HITS, CLICKS)),
        message=st.text("x", max_size=9),
    )
    def rows_are_given_up_on(self, rows: int, size_bytes: int, key: DestinationKey, message: str) -> None:
        letter = make_letter(rows, size_bytes, ledger=self.ledgers[key], key=key, message=message)
        letter.ledger.accepted += rows
        self.every.append(letter)
        self._hold(letter)
        self.letters.add(letter)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_letter_is_replayed(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(self._in_order(self.held.__contains__)), label="letter")
        self.held.remove(letter.id)
        self.away[letter.id] = letter.row_count
        self.letters.begin_replay(letter)

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def replayed_rows_settle(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(self._in_order(self.away.__contains__)), label="letter")
        rows = data.draw(st.integers(1, self.away[letter.id]), label="rows")
        letter.ledger.delivered += rows
        self.away[letter.id] -= rows
        if self.away[letter.id] == 0:
            del self.away[letter.id]
        self.letters.replay_ended(letter, rows)

    @precondition(lambda self: self._refusable())
    @rule(data=st.data())
    def a_replay_is_refused_whole(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(self._refusable()), label="letter")
        letter.message = data.draw(st.text("y", max_size=2000), label="message")
        del self.away[letter.id]
        self._hold(letter)
        self.letters.replay_refused(letter)

    def _refusable(self) -> list[DeadLetter]:
        return [letter for letter in self._in_order(self.away.__contains__) if self.away[letter.id] == letter.row_count]

    @precondition(lambda self: self.every)
    @rule(data=st.data())
    def a_letter_is_deleted_if_it_is_held(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(self.every), label="letter")
        assert self.letters.delete(letter) is (letter.id in self.held)
        self.held.discard(letter.id)

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.seconds += seconds

    @invariant()
    def nothing_is_missing(self) -> None:
        total = Ledger()
        for key, ledger in self.ledgers.items():
            away = sum(self.away.get(letter.id, 0) for letter in self.every if letter.key == key)
            assert ledger.letters_imbalance(self.letters.held_rows(key)) == 0
            assert ledger.imbalance(away) == 0
            total.add(ledger)
        assert total.letters_imbalance(self.letters.held_rows()) == 0
        assert total.letters_evicted == self.evicted

    @invariant()
    def what_is_there_is_what_should_be(self) -> None:
        held = self._in_order(self.held.__contains__)
        assert [letter for letter in self.letters.select() if self.letters.holds(letter)] == held
        assert list(self.letters.select()) == self._in_order((self.held | self.away.keys()).__contains__)
        assert self.letters.held_rows() == sum(letter.row_count for letter in held)
        assert self.letters.held_bytes == sum(letter.size_bytes for letter in held) <= ROOM
        assert set(self.letters.keys()) == {letter.key for letter in held}

    @invariant()
    def the_first_loss_of_ten_seconds_is_told_at_once(self) -> None:
        assert self.log.rows <= self.evicted
        assert (self.log.rows > 0) is (self.evicted > 0)


class _Errors(logging.Handler):
    """Rows that the log said were lost."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.rows = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.rows += vars(record)["fields"]["rows"]


TestWhateverHappens = Letters.TestCase
TestWhateverHappens.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
