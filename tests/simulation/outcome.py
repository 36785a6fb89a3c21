"""What a run shows: its series, one value a second, and the figures that tests and pictures are about. Pure."""

from dataclasses import dataclass, field
from typing import Final

FLAPPING_WINDOW_S: Final = 600


@dataclass(slots=True)
class Outcome:
    """Series by second. Rows: held at the start + offered = refused + delivered + at risk + buffered at the end."""

    offered: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    buffered: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    pods: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    draining: list[int] = field(default_factory=list)
    utilization_percent: list[int] = field(default_factory=list)  # of the fullest pod
    cpu_percent: list[int] = field(default_factory=list)  # mean
    drain_time_s: list[int] = field(default_factory=list)  # mean
    frozen: list[bool] = field(default_factory=list)
    held_at_start: int = 0
    requests: int = 0  # upstream, and those of them that were answered with 429
    throttled: int = 0
    rows_at_risk: int = 0  # in pods at the moment they were removed
    gave_up: int = 0  # drains that were given up at their deadline

    @property
    def duration_s(self) -> int:
        return len(self.offered)

    @property
    def refused_percent(self) -> float:
        return 100 * sum(self.refused) / max(1, sum(self.offered))

    @property
    def most_pods(self) -> int:
        return max(self.pods)

    @property
    def pod_hours(self) -> float:
        return sum(self.pods) / 3600

    @property
    def turns(self) -> list[int]:
        """When ``wanted`` went the other way than at its change before."""
        found, way = list[int](), 0
        for second, (before, after) in enumerate(zip(self.wanted, self.wanted[1:], strict=False), start=1):
            if after != before:
                now = 1 if after > before else -1
                if way and now != way:
                    found.append(second)
                way = now
        return found

    @property
    def flapping(self) -> int:
        """Most changes of direction within ten minutes."""
        turns = self.turns
        return max((sum(at <= turn < at + FLAPPING_WINDOW_S for turn in turns) for at in turns), default=0)

    def reaction_s(self, step_s: int, *, more: int = 1) -> int | None:
        """Seconds from ``step_s`` until ``more`` pods than then are ready; None if that never happens."""
        before = self.ready[step_s]
        for second in range(step_s, self.duration_s):
            if self.ready[second] >= before + more:
                return second - step_s
        return None

    def asked_s(self, step_s: int) -> int | None:
        """Seconds from ``step_s`` until the HPA asks for more."""
        before = self.wanted[step_s]
        for second in range(step_s, self.duration_s):
            if self.wanted[second] > before:
                return second - step_s
        return None

    def refusing_ends_s(self, step_s: int) -> int:
        """Seconds from ``step_s`` until the last refusal; 0 if there was none."""
        return max((second - step_s for second, rows in enumerate(self.refused) if rows), default=0)
