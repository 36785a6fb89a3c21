"""How the process ends."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Rows or letters that are still safe on disk are not lost."""

    NOTHING_LOST = 0
    ROWS_LOST = 1
    CONFIGURATION = 2
    LEDGER_DOES_NOT_BALANCE = 3
