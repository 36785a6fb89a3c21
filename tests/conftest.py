"""In CI a skipped test is a failure: what nobody ran proves nothing.

With the variable ``CI`` set, a session in which anything was skipped ends with an error and a list of what it was.
A test that cannot run there says so in its reason: ``pytest.skip("not in CI: needs two machines")``.
"""

import os
from typing import Any, Final

import pytest

NOT_IN_CI: Final = "not in CI: "


class SkipsFail:
    """Collect what was skipped without leave, and fail the session for it."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self._not_collected: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        before = len(self.skipped)
        self._note(report)
        self._not_collected += self.skipped[before:]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):  # an expected failure ran; pytest only reports it as skipped
            self._note(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """One of several processes has ended: what it could not even collect is known to it alone."""
        self.skipped += getattr(node, "workeroutput", {}).get("skipped", [])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output["skipped"] = self._not_collected
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped in CI, which fails the session", red=True)
            for line in dict.fromkeys(self.skipped):
                terminalreporter.line(line)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if not report.skipped:
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(NOT_IN_CI):
            self.skipped.append(f"{report.nodeid}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        config.pluginmanager.register(SkipsFail(), "skips-fail")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Packed bytes hold the time at which they were made, and all processes must give a test the same name."""
    return "gzipped" if isinstance(val, bytes) and val.startswith(b"\x1f\x8b") else None
