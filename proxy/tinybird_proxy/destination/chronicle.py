"""What the log says of one destination: when trouble begins and ends, what went wrong with rows; not each time."""

import logging

from tinybird_proxy.batch import FrozenBatch
from tinybird_proxy.dead_letter import DeadLetter
from tinybird_proxy.telemetry.logs import Sparingly, fields, get_logger
from tinybird_proxy.verdict import Settled

LOG_INTERVAL_S = 10.0
_log = get_logger("destination")


class Chronicle:
    """Remembers what was said already. ``trouble_since`` is None while rows flow."""

    def __init__(self, data_source: str, strangers_log: Sparingly) -> None:
        self._data_source = data_source
        self._strangers_log = strangers_log
        self._held = False
        self._quarantine = Sparingly(LOG_INTERVAL_S)
        self._unverified_told = False
        self._giving_up = Sparingly(LOG_INTERVAL_S)
        self.trouble_since: float | None = None

    def trouble(self, reason: str, now: float, buffered_rows: int, *, held: bool, probed: bool = True) -> None:
        """An attempt failed. ``probed``: the next one comes by itself."""
        if self.trouble_since is None or (held and not self._held):
            # Nobody is known here who would have to hear of it at once, and a guesser brings many.
            times = self._strangers_log.count(now) if held and buffered_rows == 0 else 1
            if times:
                _log.warning(
                    _sentence(buffered_rows, held=held, probed=probed),
                    extra=fields(
                        data_source=self._data_source,
                        reason=reason,
                        rows=buffered_rows,
                        **({"destinations": times} if times > 1 else {}),
                    ),
                )
        self._held = held
        if self.trouble_since is None:
            self.trouble_since = now

    def flows_again(self, now: float) -> None:
        """Rows are delivered."""
        if self.trouble_since is not None:
            _log.info(
                "a destination delivers again",
                extra=fields(data_source=self._data_source, after_s=round(now - self.trouble_since, 1)),
            )
            self.trouble_since = None
            self._held = False

    def settled(self, outcome: Settled, batch: FrozenBatch, now: float) -> None:
        """Tinybird answered for a batch."""
        if outcome.unverified and not outcome.mismatch and not self._unverified_told:
            self._unverified_told = True  # each batch is counted; once says what the counter means
            _log.warning(
                "Tinybird took rows without saying that they are written: they are counted as unverified",
                extra=fields(data_source=self._data_source, rows=outcome.unverified, batch=batch.id),
            )
        if outcome.mismatch:
            _log.error(
                "Tinybird's counts do not add up to the rows sent; the difference is counted as unverified",
                extra=fields(
                    data_source=self._data_source,
                    rows=batch.row_count,
                    unverified=outcome.unverified,
                    batch=batch.id,
                ),
            )
        if quarantined := self._quarantine.count(now, outcome.quarantined):
            _log.warning(
                "Tinybird put rows into quarantine: they do not fit the data source's schema",
                extra=fields(data_source=self._data_source, rows=quarantined, batch=batch.id),
            )

    def gave_up(self, letter: DeadLetter, now: float, *, kept: bool) -> None:
        """Rows became a dead letter. ``kept`` False: there was no room for it, so it is lost."""
        if given_up := self._giving_up.count(now, letter.row_count):
            _log.log(
                logging.WARNING if kept else logging.ERROR,
                "rows were given up on and are kept as dead letters: see `tinybird-proxy dead-letters ls`"
                if kept
                else "rows were given up on and are lost: DEAD_LETTER_BYTES has no room for them as dead letters",
                extra=fields(
                    data_source=self._data_source,
                    rows=given_up,
                    reason=letter.reason,
                    status=letter.status,
                    batch=letter.batch_id,
                ),
            )


def _sentence(buffered_rows: int, *, held: bool, probed: bool) -> str:
    if not held:
        return "a destination is not delivering; its rows are kept and sent again"
    if buffered_rows == 0:
        return "Tinybird refuses a destination's first rows: none were taken, and its clients are told"
    if not probed:
        return "a destination is held: its rows are kept, and sending them again might double them: somebody has to act"
    return "a destination is held: its rows are kept and probed each minute"
