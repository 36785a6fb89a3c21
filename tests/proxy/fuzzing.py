"""How long the fuzz tests look, and where they begin.

``FUZZ_SECONDS`` is what all of them together may take (55 if it is not set), and each of them has a share of it. Every
round has a seed of its own; a failure prints it, and ``FUZZ_SEED`` set to that makes it the first round of another run.
In CI the rounds begin with the same seed each time, so that a change is judged by itself; by hand each run is another.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import hypothesis
import pytest

SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "55"))
# What pytest-timeout gives any test, on top: to start and stop processes, and to make a failing example small.
bounded = pytest.mark.timeout(SECONDS + 120.0)
# One round.
fuzzed = hypothesis.settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.large_base_example,
    ],
    print_blob=True,
)


def seeds(share: float) -> Iterator[int]:
    """A seed for each round, at least one, until ``share`` of all the seconds is over."""
    until_s = time.monotonic() + share * SECONDS
    seed = int(os.environ.get("FUZZ_SEED") or (1 if os.environ.get("CI") else secrets.randbelow(1_000_000_000)))
    yield seed
    while time.monotonic() < until_s:
        seed += 1
        yield seed


@contextmanager
def named(seed: int) -> Iterator[None]:
    """Say which round it was, if it fails."""
    try:
        yield
    except BaseException:
        print(f"\nfound by the round with FUZZ_SEED={seed}")
        raise


def rounds(test: Callable[[], None], *, share: float) -> None:
    """Run a test that hypothesis made, again and again, each time with other examples."""
    for seed in seeds(share):
        with named(seed):
            hypothesis.seed(seed)(test)()
