"""Rotation of the generated client token: each step, what people may have done to the Secret, and no token refused."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.config import token_hash
from tinybird_proxy.errors import TokenFileError
from tinybird_proxy.tokens import ClientTokens
from tinybird_proxy_operator.rotation import PODS_AGAIN_S, Content, Step, step

NAME: Final = "events-client"
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
DAY_S: Final = 86_400


def fresh(**changes: str) -> Content:
    """A Secret as it is made."""
    return replace(Content(token="t1", accepted=f"t1 name={NAME}\n"), **changes)


def begun(**changes: str) -> Content:
    """One whose rotation has begun."""
    coming = Content(
        token="t1",
        accepted=f"t1 name={NAME}\nt2 name={NAME}\n",
        next_token="t2",
        rotating_for="a",
        rotating_since="2026-01-01T00:00:00Z",
    )
    return replace(coming, **changes)


def overlapping(**changes: str) -> Content:
    """One whose apps find the new token."""
    done = Content(
        token="t2",
        accepted=f"t1 name={NAME} # replaced 2026-01-01T00:00:00Z\nt2 name={NAME}\n",
        rotated_for="a",
        overlap_ends_at="2026-01-02T00:00:00Z",
    )
    return replace(done, **changes)


def look(content: Content, *, asked: str = "a", at_s: float = 0.0, pods: Any = None, **more: Any) -> Step:
    given: dict[str, Any] = {"overlap_s": DAY_S, "fresh_token": "t2", "pods": pods or {}, **more}
    return step(NAME, content, asked=asked, now=EPOCH + timedelta(seconds=at_s), **given)


def after(taken: Step) -> Content:
    assert taken.content is not None
    return taken.content


def accepted(content: Content) -> list[str]:
    return content.accepted.splitlines()


# The steps.


@pytest.mark.parametrize(("asked", "rotated_for"), [("", ""), ("", "a"), ("a", "a")])
def test_nothing_is_done_unless_the_annotation_has_a_text_that_is_new(asked: str, rotated_for: str) -> None:
    assert look(fresh(rotated_for=rotated_for), asked=asked) == Step()


def test_a_rotation_begins_with_a_token_that_is_accepted_and_that_no_app_reads_yet() -> None:
    taken = look(fresh(), asked="a", pods={"p": token_hash(fresh().accepted)})
    assert taken.content == begun()
    assert (taken.told, taken.again_s) == (None, PODS_AGAIN_S)
    assert taken.sentence == (
        "A new client token comes, since 2026-01-01T00:00:00Z. 0 of 1 pods accept it; apps get it when all do."
        " Not yet: p. One that stays so says why in its log; a deleted one does not count."
    )


@pytest.mark.parametrize("late", [token_hash(fresh().accepted), token_hash("t2"), None])
def test_apps_get_the_new_token_only_when_every_pod_has_proved_that_it_accepts_it(late: str | None) -> None:
    current = token_hash(begun().accepted)
    waiting = look(begun(), at_s=3600, pods={"p-1": current, "p-2": late})
    assert (waiting.content, waiting.told, waiting.again_s) == (None, None, PODS_AGAIN_S)
    assert waiting.sentence is not None
    assert "since 2026-01-01T00:00:00Z. 1 of 2 pods accept it" in waiting.sentence
    assert "Not yet: p-2." in waiting.sentence
    taken = look(begun(), pods={"p-1": current, "p-2": current})
    assert taken.content == overlapping()
    assert taken.told == (
        f"Secret {NAME} has a new client token under the key token."
        " The one before it is accepted until 2026-01-02T00:00:00Z."
    )
    assert (taken.warning, taken.again_s) == (False, DAY_S)
    assert taken.sentence == "The client token was rotated: the one before it is accepted until 2026-01-02T00:00:00Z."


def test_without_a_pod_there_is_nobody_to_wait_for() -> None:
    assert after(look(begun(), pods={})) == overlapping()


def test_while_it_is_not_known_which_pods_there_are_apps_keep_what_they_have() -> None:
    given: dict[str, Any] = {"overlap_s": DAY_S, "fresh_token": "t3", "now": EPOCH, "asked": "a"}
    waiting = step(NAME, begun(), pods=None, **given)
    assert (waiting.content, waiting.again_s) == (None, PODS_AGAIN_S)
    assert waiting.sentence is not None
    assert "there is no pod yet that could be asked" in waiting.sentence
    assert step(NAME, fresh(), pods=None, **{**given, "fresh_token": "t2"}).content == begun()


def test_at_the_end_of_the_overlap_the_old_token_goes_and_not_before() -> None:
    assert look(overlapping(), at_s=DAY_S - 1) == Step(again_s=1.0, sentence=look(overlapping()).sentence)
    taken = look(overlapping(), at_s=DAY_S)
    assert taken == Step(
        content=Content(token="t2", accepted=f"t2 name={NAME}\n", rotated_for="a"),
        told=f"Secret {NAME}: a client token that was replaced is no longer accepted.",
    )


def test_many_pods_that_are_waited_for_are_not_all_named() -> None:
    sentence = look(begun(), pods={f"p-{n}": None for n in range(9)}).sentence
    assert sentence is not None
    assert "0 of 9 pods" in sentence
    assert "Not yet: p-0, p-1, p-2 and others." in sentence


def test_no_token_is_shown() -> None:
    for taken in (look(fresh(token="s3cret", accepted="s3cret")), look(begun()), look(overlapping(), at_s=DAY_S)):
        for shown in (repr(taken), repr(taken.content), str(taken.told), str(taken.sentence)):
            assert not [mark for mark in ("s3cret", "t1", "t2") if mark in shown]


# Decided, where it could have been otherwise.


def test_a_second_rotation_neither_waits_for_the_first_ones_overlap_nor_changes_it() -> None:
    again = after(look(overlapping(), asked="b", at_s=3600, fresh_token="t3"))
    assert accepted(again) == [*accepted(overlapping()), f"t3 name={NAME}"]
    both = look(again, asked="b", at_s=3600)
    assert accepted(after(both)) == [
        f"t1 name={NAME} # replaced 2026-01-01T00:00:00Z",
        f"t2 name={NAME} # replaced 2026-01-01T01:00:00Z",
        f"t3 name={NAME}",
    ]
    assert (after(both).overlap_ends_at, both.again_s) == ("2026-01-02T01:00:00Z", DAY_S - 3600)
    assert accepted(after(look(after(both), asked="b", at_s=DAY_S))) == accepted(after(both))[1:]


def test_the_first_ones_overlap_ends_also_while_the_second_waits_for_its_pods() -> None:
    again = after(look(overlapping(), asked="b", at_s=3600, fresh_token="t3"))
    ended = after(look(again, asked="b", at_s=DAY_S, pods={"p": None}))
    assert (ended.token, ended.next_token, accepted(ended)) == ("t2", "t3", [f"t2 name={NAME}", f"t3 name={NAME}"])
    # The pods have to show that list, not the one before it.
    assert look(ended, asked="b", at_s=DAY_S, pods={"p": token_hash(again.accepted)}).content is None


def test_a_text_that_comes_while_a_rotation_is_under_way_is_one_more_rotation_after_it() -> None:
    done = after(look(begun(), asked="b", pods={}))
    assert (done.token, done.rotated_for) == ("t2", "a")
    assert after(look(done, asked="b", fresh_token="t3")).next_token == "t3"


@pytest.mark.parametrize("asked", ["", "a"])
def test_a_rotation_that_has_begun_is_ended_also_if_its_annotation_goes(asked: str) -> None:
    done = after(look(begun(), asked=asked))
    assert (done.token, done.rotated_for) == ("t2", "a")
    assert look(done, asked=asked).content is None


def test_a_shorter_overlap_counts_for_a_rotation_under_way() -> None:
    assert after(look(overlapping(), at_s=3600, overlap_s=7200)).overlap_ends_at == "2026-01-01T02:00:00Z"
    assert accepted(after(look(overlapping(), at_s=3600, overlap_s=3600))) == [f"t2 name={NAME}"]


def test_a_longer_overlap_counts_for_a_rotation_under_way() -> None:
    assert after(look(overlapping(), at_s=DAY_S, overlap_s=2 * DAY_S)).overlap_ends_at == "2026-01-03T00:00:00Z"


def test_without_an_overlap_the_old_token_goes_in_the_step_that_shows_the_new_one() -> None:
    taken = look(begun(), overlap_s=0)
    assert accepted(after(taken)) == [f"t2 name={NAME}"]
    assert taken.told is not None
    assert taken.told.endswith(" The one before it is accepted no longer.")
    # But it waits for the pods all the same.
    assert look(begun(), overlap_s=0, pods={"p": None}).content is None


def test_an_immutable_secret_is_left_alone_and_that_is_said() -> None:
    for content, at_s in ((fresh(), 0), (begun(), 0), (overlapping(), DAY_S), (fresh(accepted=""), 0)):
        taken = look(content, at_s=at_s, immutable=True)
        assert (taken.content, taken.told, taken.again_s) == (None, None, None)
        assert taken.sentence is not None
        assert taken.sentence.startswith(f"Secret {NAME} is immutable: its client token cannot be rotated")
    assert look(fresh(), asked="", immutable=True) == Step()


# What people do to the Secret.


def test_lines_that_people_added_stay_as_they_are() -> None:
    own = "# partners\np1 name=partner allow=orders\np2"
    content = fresh(accepted=f"{own}\nt1 name={NAME}")
    done = after(look(after(look(content))))
    assert accepted(done)[:3] == own.splitlines()
    assert accepted(after(look(done, at_s=DAY_S))) == [*own.splitlines(), f"t2 name={NAME}"]


def test_the_new_token_may_do_what_the_one_before_it_may() -> None:
    content = fresh(accepted="t1 name=web allow=clicks # restricted\n")
    coming = after(look(content))
    assert accepted(coming) == ["t1 name=web allow=clicks # restricted", "t2 name=web allow=clicks"]
    done = after(look(coming))
    assert accepted(done)[0] == "t1 name=web allow=clicks # restricted # replaced 2026-01-01T00:00:00Z"
    assert accepted(after(look(done, at_s=DAY_S))) == ["t2 name=web allow=clicks"]


@pytest.mark.parametrize("wiped", ["", "\n", "# nothing\n"])
def test_a_list_without_any_token_gets_the_present_one_again(wiped: str) -> None:
    taken = look(fresh(accepted=wiped), asked="")
    assert accepted(after(taken)) == [f"t1 name={NAME}"]
    assert after(taken).token == "t1"
    assert look(after(taken), asked="") == Step()


@pytest.mark.parametrize("held", ["", "two words", "#comment", "tökén", "t9"])
def test_a_token_that_is_missing_or_not_accepted_is_replaced_as_in_a_rotation(held: str) -> None:
    taken = look(fresh(token=held), asked="")
    coming = after(taken)
    assert (coming.token, coming.next_token) == (held, "t2")
    assert accepted(coming) == [f"t1 name={NAME}", f"t2 name={NAME}"]  # what apps hold stays until they find another
    assert taken.told == f"Secret {NAME}: proxies do not accept what its key token holds. A new one comes."
    assert taken.warning
    assert look(coming, asked="", pods={"p": None}).content is None
    done = after(look(coming, asked="", at_s=3600))
    assert (done.token, done.rotated_for) == ("t2", "")
    assert accepted(done) == [f"t1 name={NAME} # replaced 2026-01-01T01:00:00Z", f"t2 name={NAME}"]


def test_a_token_that_was_taken_out_of_the_list_by_hand_is_not_put_back() -> None:
    coming = after(look(fresh(accepted="p1 name=partner\n"), asked=""))
    assert accepted(coming) == ["p1 name=partner", f"t2 name={NAME}"]
    done = after(look(coming, asked=""))
    assert (done.token, accepted(done)) == ("t2", ["p1 name=partner", f"t2 name={NAME}"])


def test_an_old_token_that_is_put_back_by_hand_is_accepted_for_good_and_the_other_one_for_an_overlap() -> None:
    back = look(overlapping(token="t1"), at_s=3600)
    assert accepted(after(back)) == [f"t1 name={NAME}", f"t2 name={NAME} # replaced 2026-01-01T01:00:00Z"]
    assert accepted(after(look(after(back), at_s=10 * DAY_S))) == [f"t1 name={NAME}"]


@pytest.mark.parametrize("coming", ["", "gone", "two words"])
def test_a_coming_token_that_somebody_spoiled_is_made_anew(coming: str) -> None:
    again = after(look(begun(next_token=coming), fresh_token="t3"))
    assert (again.token, again.next_token) == ("t1", "t3")
    done = after(look(again))
    assert (done.token, done.rotated_for) == ("t3", "a")
    # Whoever may have read it is not refused at once.
    assert accepted(done)[:2] == [f"{old} name={NAME} # replaced 2026-01-01T00:00:00Z" for old in ("t1", "t2")]


def test_a_coming_token_that_somebody_shows_to_apps_already_is_the_token() -> None:
    done = after(look(begun(token="t2"), pods={"p": None}))
    assert done == overlapping()


@pytest.mark.parametrize("mark", ["yesterday", "2026-13-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01"])
def test_a_mark_that_is_no_time_is_written_anew(mark: str) -> None:
    spoilt = overlapping(accepted=f"t1 name={NAME} # replaced {mark}\nt2 name={NAME}\n")
    found = after(look(spoilt, at_s=60))
    assert accepted(found)[0].endswith(" # replaced 2026-01-01T00:01:00Z")
    assert len(accepted(after(look(found, at_s=60 + DAY_S)))) == 1


def test_annotations_that_were_taken_away_by_hand_do_no_harm() -> None:
    done = after(look(begun(rotating_for="", rotating_since="")))
    assert (done.token, done.rotated_for) == ("t2", "a")
    assert look(overlapping(overlap_ends_at="")).content == overlapping()
    assert look(overlapping(), asked="").content is None
    # The one that says what was done is the only one that matters: without it, it is done again.
    assert after(look(overlapping(rotated_for=""), fresh_token="t3")).next_token == "t3"


_TEXTS = st.text(st.sampled_from("t12 #=\n\té") | st.characters(exclude_categories=["Cs"]), max_size=40)
_PIECES = st.sampled_from(
    [
        "t1",
        "t2",
        " ",
        "\n",
        "#",
        " # replaced ",
        "2026-01-01T00:00:00Z",
        f"name={NAME}",
        "name=",
        "allow=a",
        "\x0b",
        "9",
    ]
)
_ANY = _TEXTS | st.lists(_PIECES, max_size=12).map("".join)


@settings(deadline=None, max_examples=300)
@given(
    content=st.builds(
        Content,
        **dict.fromkeys(Content.__dataclass_fields__, _ANY),
    ),
    asked=st.sampled_from(["", "a"]),
    overlap_s=st.sampled_from([0, 60, DAY_S]),
)
def test_whatever_is_in_the_secret_it_comes_to_rest_with_a_token_that_is_accepted(
    content: Content, asked: str, overlap_s: int
) -> None:
    numbers, at_s, told = count(), 0.0, []
    for _ in range(20):
        taken = look(content, asked=asked, at_s=at_s, overlap_s=overlap_s, fresh_token=f"n{next(numbers)}")
        told.append(taken.told)
        content = taken.content or content
        if taken.content is None:
            if taken.again_s is None:
                break
            at_s += taken.again_s
    else:
        raise AssertionError("it does not come to rest")
    assert content.next_token == content.rotating_for == ""
    assert asked in ("", content.rotated_for)
    try:
        known = ClientTokens(content.accepted, key=b"k")
    except TokenFileError:
        return  # a line of somebody's that proxies do not take: they say so, and it is not ours to delete
    assert known.find(content.token.strip()) is not None


# No token that apps were shown is refused before its overlap's end, whatever comes when.

OVERLAP_S: Final = 100


@dataclass
class Pod:
    """It reads the Secret late. ``seen``: the version that it accepts, None: it has not been placed on a node yet."""

    seen: int | None
    answers: bool = True


@dataclass
class World:
    """The Secret with all its versions, pods that lag and fall silent, and two operators that are slow, die and race.

    What an operator has read, and what pods told it then, is in ``read``, until it writes.
    """

    chance: random.Random
    versions: list[Content] = field(default_factory=lambda: [fresh()])
    now_s: int = 0
    asked: str = ""
    pods: dict[str, Pod] = field(default_factory=lambda: {"p-0": Pod(0)})
    read: dict[int, tuple[int, dict[str, str | None]]] = field(default_factory=dict)
    replaced_at_s: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(2))
    lost_races: int = 0

    def happen(self) -> None:
        """One thing, by chance."""
        chance, which = self.chance, self.chance.randrange(2)
        pod = self.pods[chance.choice(list(self.pods))] if self.pods else Pod(None)
        match chance.choices(range(8), weights=[1, 2, 1, 1, 20, 4, 10, 10])[0]:
            case 0:
                self.asked = chance.choice("abc")
            case 1:
                self.now_s += chance.choice([1, OVERLAP_S // 2 - 1, OVERLAP_S // 2])
            case 2 if len(self.pods) < 4:
                self.pods[f"p-{next(self.numbers)}"] = Pod(None)
            case 3:
                self.pods.pop(chance.choice([*self.pods, "none"]), None)
            case 4:
                newest = len(self.versions) - 1
                pod.seen = newest if pod.seen is None else chance.randint(pod.seen, newest)
            case 5:
                pod.answers = chance.random() < 0.8
            case 6:
                self.read[which] = len(self.versions) - 1, self.reports()
            case 7 if which in self.read:
                self.write(*self.read.pop(which))
            case _:
                self.read.pop(which, None)

    def reports(self) -> dict[str, str | None]:
        """What the pods say that are on a node."""
        return {
            name: token_hash(self.versions[pod.seen].accepted) if pod.answers else None
            for name, pod in self.pods.items()
            if pod.seen is not None
        }

    def write(self, version: int, pods: dict[str, str | None]) -> None:
        """An operator acts on what it has read."""
        fresh_token, content = f"t{next(self.numbers)}", self.versions[version]
        given: dict[str, Any] = {"pods": pods, "overlap_s": OVERLAP_S, "fresh_token": fresh_token}
        taken = look(content, asked=self.asked, at_s=self.now_s, **given)
        if taken.content is None:
            return
        if version != len(self.versions) - 1:  # 409
            self.lost_races += 1
            return
        if taken.content.token != content.token:
            self.replaced_at_s[content.token] = self.now_s
        self.versions.append(taken.content)

    def check(self) -> None:
        """Every pod accepts what apps may hold."""
        shown = {self.versions[-1].token}
        shown |= {token for token, at_s in self.replaced_at_s.items() if self.now_s < at_s + OVERLAP_S}
        for name, pod in self.pods.items():
            if pod.seen is not None:
                known = ClientTokens(self.versions[pod.seen].accepted, key=b"k")
                assert not [token for token in shown if known.find(token) is None], name

    def come_to_rest(self) -> None:
        """Left alone, with pods that answer."""
        for _ in range(20):
            for pod in self.pods.values():
                pod.seen, pod.answers = len(self.versions) - 1, True
            self.write(len(self.versions) - 1, self.reports())
            self.now_s += OVERLAP_S


@pytest.mark.parametrize("seed", range(20))
def test_no_token_that_apps_were_shown_is_refused_before_its_overlap_ends(seed: int) -> None:
    world = World(random.Random(seed))
    for _ in range(1500):
        world.happen()
        world.check()
    world.come_to_rest()
    last = world.versions[-1]
    assert last == Content(token=last.token, accepted=f"{last.token} name={NAME}\n", rotated_for=world.asked)
    assert len(world.replaced_at_s) > 3
    assert world.lost_races > 0
