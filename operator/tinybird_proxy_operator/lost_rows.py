"""What ended processes lost, counted in ``status.lost`` and told in Events: each of them once.

A pod that is deleted is gone from the API as soon as its containers have ended, so its last event in the watch is the
only place where its last words can be read. ``LostRows`` hears every event and keeps the words until a reconcile has
written them into the status. What ended while no operator watched is known to nobody but the pod's log. Of a pod that
goes without a last state (a forced deletion, or its node is gone) it is told what it held at the last look; that is not
counted, for the rows may have arrived.

How each is counted once:

- The status itself remembers. ``recent`` lists the latest that were counted, and a write adds no more than ``recent``
  holds: whether a write whose answer was lost, or that failed, has been done is seen at the next look, which begins
  with a read. Only what that read or the answer confirms is no longer kept for counting.
- Within a process: which ends of a pod were seen is remembered as long as the pod is there. Pods that stay (a Job's,
  a restarted container's) are seen with each list and are no news.
- Across processes: an end that happened before this process first saw its pod may have been counted by the leader
  before. It was if it is in ``recent``, or not later than ``countedUntil``, the latest that fell out of there. Else it
  is counted now. In between, one that nobody counted and that ended before ten others were is left out: once too few
  rather than twice. An end that this process saw happen needs no such guess, whatever the nodes' clocks say.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy.health import count
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.last_words import Ended, ended, untold
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.spec import Proxy

RECENT_MAX: Final = 10
WAITING_MAX: Final = 1000
PODS_MAX: Final = 20_000
_ENDED: Final = ("Succeeded", "Failed")
_SUM_MAX: Final = 2**63 - 1
_log = logging.getLogger("tinybird_proxy_operator")
_Id = tuple[str, str, str]  # uid of the pod, container, time


@dataclass(slots=True)
class Waiting:
    """An end that is to be counted or told.

    ``found``: it was there when its pod was first seen, so that another process may have counted it. ``tried``: the
    status that was made last has it, and was perhaps written. ``counted``: a status that was read has it, from us.
    """

    ended: Ended
    found: bool
    tried: bool = False
    counted: bool = False


class LostRows:
    """Hears of pods, from the watch; asked by the reconcile of a key: ``judge``, write, ``tell``."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._pods: dict[str, set[_Id]] = {}  # by uid: the ends that were seen; the pod that was seen last comes last
        self._rows: dict[str, int] = {}  # of those, by uid: what they held when they answered last
        self._untold: dict[Key, dict[str, str]] = {}  # a sentence for each that is gone, by uid
        self._waiting: dict[Key, dict[_Id, Waiting]] = {}
        self._count = 0
        self.dropped = 0
        self.rows_told = 0  # of all resources, dead letters too

    def saw(self, pod: Mapping[str, Any], deleted: bool) -> None:
        """Something happened to a pod that carries a resource's name, as its own or as its sidecar's."""
        metadata = pod["metadata"]
        uid, namespace = metadata.get("uid") or "", metadata.get("namespace") or ""
        before = self._pods.pop(uid, None)
        seen = set(before or ())
        for each in ended(pod):
            found = (each.uid, each.container, each.at)
            if found not in seen:
                seen.add(found)
                if each.words.tells_of_a_loss:
                    self._keep(Key(namespace, each.proxy), found, Waiting(each, found=before is None))
        if not deleted:
            self._pods[uid] = seen
            if len(self._pods) > PODS_MAX:
                oldest = next(iter(self._pods))
                del self._pods[oldest]
                self._rows.pop(oldest, None)
        has_ended = (pod.get("status") or {}).get("phase") in _ENDED
        if (deleted or has_ended) and (rows := self._rows.pop(uid, 0)):
            for proxy in untold(pod):
                of_key = self._untold.setdefault(Key(namespace, proxy), {})
                if len(of_key) < WAITING_MAX:
                    of_key[uid] = _gone_in_words(metadata["name"], rows, deleted=deleted)

    def heard(self, pods: Sequence[PodFacts]) -> None:
        """What the pods of a resource said just now."""
        self._rows.update(
            {pod.uid: pod.report.rows for pod in pods if pod.report is not None and pod.uid in self._pods}
        )

    def judge(self, key: Key, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """``status.lost`` of the resource, as it was read just now, with what is to be counted; None: nothing was."""
        waiting = self._waiting.get(key, {})
        old = (body.get("status") or {}).get("lost") or {}
        verdict = add_up(old, list(waiting.values()), since=body["metadata"].get("creationTimestamp") or "")
        for each in verdict.counted_before:
            each.counted |= each.tried
            if not each.counted:  # else it is to be told yet
                self._done(key, each)
        for number, each in enumerate(verdict.not_counted):
            each.found, each.tried = False, number < len(verdict.new)
        return verdict.lost

    async def tell(self, key: Key, proxy: Proxy) -> bool:
        """Tell of those that the status counts now that it is written; whether there are more.

        Raises ``NamespaceTerminating``.
        """
        for each in list(self._waiting.get(key, {}).values()):
            if each.tried or each.counted:
                what = f"{each.ended.pod} {each.ended.at}"
                await self._events.tell(proxy, Reason.ROWS_LOST, in_words(each.ended), warning=True, about=what)
                self._done(key, each)
                self.rows_told += each.ended.words.rows + each.ended.words.dead_letter_rows
        gone = self._untold.get(key, {})
        for uid, text in list(gone.items()):
            await self._events.tell(proxy, Reason.ROWS_UNACCOUNTED, text, warning=True, about=uid)
            del gone[uid]
        if not gone:
            self._untold.pop(key, None)
        return key in self._waiting

    def gone(self, key: Key) -> None:
        """There is no such resource any more: the log is what is left to tell it."""
        for each in self._waiting.get(key, {}).values():
            _log.warning("%s is gone, and rows were lost: %s", key, in_words(each.ended))
        for text in self._untold.get(key, {}).values():
            _log.warning("%s is gone, and rows may be lost: %s", key, text)
        self.forget(key)

    def end(self) -> None:
        """This process ends: the log tells what is not told yet, for the next one does not find it."""
        for key, of_key in self._waiting.items():
            for each in of_key.values():
                _log.warning(
                    "%s: rows were lost, and this process ends before it has told: %s", key, in_words(each.ended)
                )
        for key, gone in self._untold.items():
            for text in gone.values():
                _log.warning("%s: rows may be lost, and this process ends before it has told: %s", key, text)

    def forget(self, key: Key) -> None:
        """The resource is another operator's."""
        self._count -= len(self._waiting.pop(key, {}))
        self._untold.pop(key, None)

    def _keep(self, key: Key, found: _Id, waiting: Waiting) -> None:
        of_key = self._waiting.setdefault(key, {})
        self._count += found not in of_key
        of_key.setdefault(found, waiting)
        if self._count > WAITING_MAX:
            oldest = next(iter(self._waiting))
            of_oldest = list(self._waiting[oldest].values())
            dropped = next((each for each in of_oldest if not each.tried), of_oldest[0])
            self._done(oldest, dropped)
            self.dropped += 1
            _log.error(
                "%s: no longer waits to be counted, as too many processes ended at once (%d so far): %s",
                oldest,
                self.dropped,
                in_words(dropped.ended),
            )

    def _done(self, key: Key, each: Waiting) -> None:
        of_key = self._waiting.get(key, {})
        self._count -= of_key.pop((each.ended.uid, each.ended.container, each.ended.at), None) is not None
        if not of_key:
            self._waiting.pop(key, None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``lost``: the status, with ``new`` in it, which are the first of those that were ``not_counted``."""

    lost: dict[str, Any] | None
    new: Sequence[Waiting]
    not_counted: Sequence[Waiting]
    counted_before: Sequence[Waiting]


def add_up(old: Mapping[str, Any], waiting: Sequence[Waiting], *, since: str) -> Verdict:
    """Count, the earliest first. ``since``: when the resource was made; an end that is found and earlier: a namesake's.

    What was seen to end is counted, whatever its node's clock says.
    """
    recent = [dict(each) for each in old.get("recent") or ()]
    until = old.get("countedUntil") or ""
    listed = {(each.get("pod"), each.get("at")) for each in recent}
    not_counted: list[Waiting] = []
    before: list[Waiting] = []
    for each in sorted(waiting, key=lambda each: each.ended.at):
        at = each.ended.at
        known = each.counted or (each.ended.pod, at) in listed
        if known or (each.found and (at < since or at <= until)):
            before.append(each)
        else:
            not_counted.append(each)
    if not not_counted:
        return Verdict(dict(old) or None, [], [], before)
    new = not_counted[:RECENT_MAX]
    recent += [_entry(each.ended) for each in new]
    left_out, recent = recent[:-RECENT_MAX], recent[-RECENT_MAX:]
    sums = {name: int(old.get(name) or 0) for name in ("rows", "inDoubtRows", "deadLetterRows")}
    for each in new:
        for name, number in _numbers(each.ended).items():
            sums[name] = min(_SUM_MAX, sums[name] + number)
    until = max([until, *(str(each.get("at")) for each in left_out)])
    return Verdict({**sums, **({"countedUntil": until} if until else {}), "recent": recent}, new, not_counted, before)


def _numbers(one: Ended) -> dict[str, int]:
    words = one.words
    return {"rows": words.rows, "inDoubtRows": words.in_doubt_rows, "deadLetterRows": words.dead_letter_rows}


def _entry(one: Ended) -> dict[str, Any]:
    return {"pod": one.pod, "at": one.at, **_numbers(one)}


def in_words(one: Ended) -> str:
    """What happened, what it cost, what to do, and at the end, where it may be cut off, the proxy's own words."""
    words = one.words
    rows, letters = count(words.rows, "row"), count(words.dead_letter_rows, "row")
    if words.still_delivering and words.rows:
        said = f"The proxy in {one.pod} was ended before it could deliver {rows}; any of them may have arrived."
        said += f" {_MORE_TIME_FOR_A_SIDECAR if one.sidecar else _MORE_TIME}"
    elif words.rows:
        said = f"The proxy in {one.pod} stopped with {rows} lost"
        said += f", {words.in_doubt_rows:,} of them may have arrived." if words.in_doubt_rows else "."
        said += " To wait longer for Tinybird: spec.drain.shutdownTimeoutSeconds."
    else:
        said = f"The proxy in {one.pod} stopped."
    if words.dead_letter_rows:
        said += f" {letters} of dead letters went with it: export them before a pod goes."
    return f"{said} It said: {words.why}" if words.why else said


def _gone_in_words(pod: str, rows: int, *, deleted: bool) -> str:
    return (
        f"{pod} {'is gone' if deleted else 'has ended'} and its proxy told nothing, as after a forced deletion or with"
        f" its node. At the last look it held {count(rows, 'row')}; whether they arrived is not known. Let pods end by"
        " themselves: kubectl delete without --force."
    )


_MORE_TIME: Final = (
    "Let pods have their grace period, which is spec.drain.shutdownTimeoutSeconds and 10 s: a shorter one comes from"
    " whoever deletes them."
)
_MORE_TIME_FOR_A_SIDECAR: Final = (
    "Raise the pod's terminationGracePeriodSeconds, or let the app end 5 s before that is over: the sidecar delivers"
    " in what the app leaves of it."
)
