"""The comparison that the defaults were chosen with."""

from dataclasses import replace

from tests.simulation.compare import COLUMNS, choices, rows
from tests.simulation.scenarios import SPIKE


def test_each_choice_has_its_row() -> None:
    named = choices(replace(SPIKE, duration_s=400))
    some = {name: named[name] for name in ("depth 50 %", "recommended")}
    table = list(rows(some, seeds=(1,)))
    assert [line.count("|") for line in table] == [COLUMNS.count("|")] * 4
    assert [line.split(" | ")[2] for line in table[2:]] == ["never", "23, at most 23 s"]
