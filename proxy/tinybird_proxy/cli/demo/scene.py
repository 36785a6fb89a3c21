"""When Tinybird fails: while an outage lasts the emulator answers 503, because the demo told it to. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Tinybird's own voice: nothing was taken in, come back in a second.
FAULTS: Final = {"faults": [{"status": 503, "retry_after": 1}]}
_BEGINS_AT_SHARE = 0.4
_LASTS_SHARE = 0.25
_LASTS_MAX_S = 3.0
_ENDLESS_FIRST_S = 15.0
_ENDLESS_LASTS_S = 5.0
_ENDLESS_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Outage:
    """Seconds from the start of the demo."""

    begins_s: float
    ends_s: float


def outages(seconds: float | None) -> Iterator[Outage]:
    """One outage in a demo of ``seconds``; one a minute, for ever, in one without an end."""
    if seconds is not None:
        begins_s = _BEGINS_AT_SHARE * seconds
        yield Outage(begins_s, begins_s + min(_LASTS_MAX_S, _LASTS_SHARE * seconds))
        return
    begins_s = _ENDLESS_FIRST_S
    while True:
        yield Outage(begins_s, begins_s + _ENDLESS_LASTS_S)
        begins_s += _ENDLESS_EVERY_S


def words(outage: Outage | None, at_s: float) -> str:
    """What is about to happen, or happening. ``outage`` is the present one, or the next; None: there is none left."""
    if outage is None:
        return "The emulator answers every request again."
    if at_s < outage.begins_s:
        return f"In {outage.begins_s - at_s:.0f} s the emulator will answer 503."
    return f"The emulator now answers 503, for another {max(0.0, outage.ends_s - at_s):.0f} s."
