"""The log of a process: on stderr, for people on a terminal, else as JSON."""

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def set_up_logging(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Log from ``level`` on. Called once, by a command."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonFormatter(_FORMAT) if as_json else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
