"""The committed pictures are what the code draws now, and small."""

import pytest
from tests.simulation.pictures import FOLDER, pictures

DRAWN = pictures()


@pytest.mark.parametrize("name", DRAWN)
def test_a_committed_picture_is_what_the_simulation_shows(name: str) -> None:
    same = (FOLDER / name).read_text() == DRAWN[name]
    assert same, f".github/{name} is old: python -m tests.simulation.pictures draws it anew. Look at it then."


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_small(name: str) -> None:
    assert len(DRAWN[name].encode()) < 40_000


def test_no_picture_is_left_over() -> None:
    assert {path.name for path in FOLDER.glob("autoscaling-*.svg")} == set(DRAWN)
