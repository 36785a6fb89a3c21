"""What a stopping process says: rows at risk while it drains, and in the end what was lost, why, and where from."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinybird_proxy import health
from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.ledger import DropReason, Ledger
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.telemetry.logs import fields, get_logger

LOG_INTERVAL_S = 2.0
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

    def at_risk(self, row_count: int) -> None:
        """Rows that are not delivered yet; the message must survive a SIGKILL, so it is written each time."""
        now = self._pipeline.surroundings.now()
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_S:
            if self._logged_at is None and (letters := self._pipeline.surroundings.letters.held_rows()):
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
        self._write(f"{self._at_risk_in_words(row_count)}\n")

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - self._pipeline.surroundings.now())

    def _at_risk_in_words(self, row_count: int) -> str:
        text = f"{health.count(row_count, 'row')} {'was' if row_count == 1 else 'were'} not delivered"
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
                self._termination_log.write_text(text)
            except OSError as error:
                _log.warning("the termination message cannot be written", extra=fields(problem=error.strerror))
                self._termination_log = None


def _slowest(destinations: Sequence[health.DestinationFacts]) -> health.DestinationFacts | None:
    """The destination that the end waits for: with the most rows among those in trouble, or else among all."""
    waiting = [facts for facts in destinations if facts.buffered_rows]
    return health.worst(waiting) or max(waiting, key=lambda facts: facts.buffered_rows, default=None)


def _summary(ledger: Ledger, lost: Counter[str], reasons: Mapping[str, str]) -> str:
    """The termination message."""
    in_doubt = ledger.dropped.get(DropReason.IN_DOUBT, 0)
    rows = f"{ledger.dropped_total} rows lost"
    if lost:
        rows += f", {in_doubt} of them may have arrived: {dict(lost)}"
        rows += "".join(f"; {name}: {reason}" for name, reason in reasons.items())
    letters = f"; {ledger.letters_lost_at_exit} rows of dead letters lost" if ledger.letters_lost_at_exit else ""
    return f"{rows}{letters}\n"
