"""The log of a process, in the form that was asked for."""

import json
import logging
from collections.abc import Callable
from typing import Literal

import pytest

from tinybird_proxy_operator.logs import set_up_logging

Begin = Callable[[str, Literal["auto", "json", "console"]], logging.Logger]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Sets up a root logger that nobody has set up; pytest's own handlers come back afterwards."""

    def begin(level: str, form: Literal["auto", "json", "console"]) -> logging.Logger:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
        set_up_logging(level, form)
        logger = logging.getLogger("some.where")
        logger.manager._clear_cache()  # type: ignore[attr-defined]
        return logger

    return begin


def test_json_is_a_line_with_everything(log: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    logger = log("info", "json")
    logger.info("said %d", 7)
    logger.debug("not said")
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["levelname"], said["name"], said["message"]) == ("INFO", "some.where", "said 7")


def test_where_there_is_no_terminal_auto_means_json(log: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    log("debug", "auto").debug("said")
    assert json.loads(capsys.readouterr().err)["message"] == "said"


def test_console_is_for_people(log: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    log("info", "console").info("said")
    assert capsys.readouterr().err.endswith("INFO some.where said\n")
