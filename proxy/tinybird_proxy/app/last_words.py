"""What a stopping process says: rows at risk while it drains, and in the end what was lost, why, and where from.

The termination message is one line that begins with its numbers: the operator counts them. Kubernetes takes the last
4,096 bytes of the file, and of those the first 12 KiB divided by the number of the pod's containers.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinybird_proxy import health
from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.ledger import DropReason, Ledger
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.telemetry.logs import fields, get_logger

LOG_INTERVAL_S = 2.0
MESSAGE_MAX_BYTES = 4096
# The same numbers are written again after so long, for the time that is left.
_SAME_AGAIN_S = 1.0
# Room for how many data sources there are more.
_MORE_BYTES = 40
_log = get_logger("stop")


class LastWords:
    """Logs and, where Kubernetes gives one, writes the termination message."""

    def __init__(self, pipeline: Pipeline, termination_log: Path, *, deadline: float) -> None:
        """``deadline``: when the process ends whatever is left, in seconds of the pipeline's clock."""
        self._pipeline = pipeline
        self._deadline = deadline
        self._termination_log = termination_log if termination_log.exists() else None
        self._logged_at: float | None = None
        self._slowest = ""  # looked for when it is logged: there may be a thousand destinations
        self._written: tuple[int, int, str] | None = None
        self._written_at = 0.0

    def at_risk(self, row_count: int) -> None:
        """Rows that are not delivered yet; the message must survive a SIGKILL, so each new number is written."""
        now, letters = self._pipeline.surroundings.now(), self._pipeline.surroundings.letters.held_rows()
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_S:
            if self._logged_at is None and letters:
                _log.warning(
                    "stopping: dead letters are in memory only and will be lost; export them now",
                    extra=fields(rows=letters),
                )
            self._logged_at = now
            what = _slowest(self._pipeline.facts())
            self._slowest = "" if what is None else f"; {what.data_source}: {health.sentence(what)}"
            _log.log(
                logging.INFO if what is None or health.cause(what) is None else logging.WARNING,
                "stopping: delivering what is left",
                extra=fields(
                    rows_left=row_count,
                    seconds_left=round(self._seconds_left(), 1),
                    **({} if what is None else {"data_source": what.data_source, "because": health.sentence(what)}),
                ),
            )
        words = row_count, letters, self._slowest
        if words != self._written or now - self._written_at >= _SAME_AGAIN_S:
            self._written, self._written_at = words, now
            self._write(self._at_risk_in_words(row_count, letters))

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - self._pipeline.surroundings.now())

    def _at_risk_in_words(self, row_count: int, letters: int) -> str:
        text = f"{health.count(row_count, 'row')} {'was' if row_count == 1 else 'were'} not delivered"
        if letters:
            text += f" and {health.count(letters, 'row')} of dead letters not saved"
        if row_count == 0:
            return f"{text} when this was written"
        left = f"{health.duration(self._seconds_left())} before the end"
        return f"{text} when this was written, {left}{self._slowest}"

    def farewell(self) -> ExitStatus:
        """Say how it ended, after everything has stopped."""
        ledger = self._pipeline.ledger()
        buffered, letters = self._pipeline.buffered_rows(), self._pipeline.surroundings.letters.held_rows()
        imbalance = self._pipeline.check_ledger()
        terms = ledger.as_dict(buffered, letters)
        lost: Counter[str] = Counter()  # several clients may write to one data source
        reasons: dict[str, str] = {}
        if ledger.letters_lost_at_exit:
            _log.error(
                "stopped with dead letters lost: they were in memory only; export them before a stop",
                extra=fields(rows_lost=ledger.letters_lost_at_exit),
            )
        if ledger.dropped_total:
            for destination in self._pipeline.destinations():
                if destination.ledger.dropped_total:
                    lost[destination.key.name] += destination.ledger.dropped_total
                    reasons[destination.key.name] = destination.lost_because or "Tinybird had not answered in time"
            in_doubt = ledger.dropped.get(DropReason.IN_DOUBT, 0)
            _log.error(
                "stopped with rows lost",
                extra=fields(
                    rows_lost=ledger.dropped_total,
                    of_them_may_have_arrived=in_doubt,
                    data_sources=dict(lost),
                    because=reasons,
                ),
            )
        self._write(_summary(ledger, lost, reasons))
        level = logging.INFO if imbalance == 0 else logging.ERROR
        _log.log(level, "stopped", extra=fields(ledger=terms, balances=imbalance == 0))
        if imbalance:
            return ExitStatus.LEDGER_DOES_NOT_BALANCE
        return ExitStatus.ROWS_LOST if ledger.lost_at_exit else ExitStatus.NOTHING_LOST

    def _write(self, text: str) -> None:
        if self._termination_log is not None:
            try:
                _put(self._termination_log, _one_line(text))
            except OSError as error:
                _log.warning("the termination message cannot be written", extra=fields(problem=error.strerror))
                self._termination_log = None


def _put(path: Path, line: bytes) -> None:
    """Write over what is there, so that it is never empty: SIGKILL may come between any two steps.

    To truncate it first would also have ext4 wait for the disk as it is closed, 2 ms for each settled batch.
    """
    file = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(file, line, 0)
        os.ftruncate(file, len(line))
    finally:
        os.close(file)


def _one_line(text: str) -> bytes:
    """One line that Kubernetes takes as a whole."""
    line = " ".join(text.split()).encode()
    return line[: MESSAGE_MAX_BYTES - 1].decode(errors="ignore").encode() + b"\n"


def _slowest(destinations: Sequence[health.DestinationFacts]) -> health.DestinationFacts | None:
    """The destination that the end waits for: with the most rows among those in trouble, or else among all."""
    waiting = [facts for facts in destinations if facts.buffered_rows]
    return health.worst(waiting) or max(waiting, key=lambda facts: facts.buffered_rows, default=None)


def _summary(ledger: Ledger, lost: Counter[str], reasons: Mapping[str, str]) -> str:
    """The termination message: the numbers, and as many data sources as fit, those that lost the most first."""
    text = f"{health.count(ledger.dropped_total, 'row')} lost"
    if lost:
        text += f", {ledger.dropped.get(DropReason.IN_DOUBT, 0):,} of them may have arrived"
    if ledger.letters_lost_at_exit:
        text += f"; {health.count(ledger.letters_lost_at_exit, 'row')} of dead letters lost"
    left_bytes = MESSAGE_MAX_BYTES - _MORE_BYTES - len(text)
    for number, (name, row_count) in enumerate(lost.most_common()):
        part = f"; {name}: {health.count(row_count, 'row')}, {reasons[name]}"
        left_bytes -= len(part.encode())
        if left_bytes < 0 and number:  # a single one is cut
            return f"{text}; and {health.count(len(lost) - number, 'more data source')}"
        text += part
    return text
