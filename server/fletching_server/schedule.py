"""When to look ahead, and at what: what the rest of the day wants before each part of it, tomorrow after the close. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fletching_server.agenda import Agenda, Slot

LEAD_SECONDS: Final = 1800.0  # before the first people come in; loading a day's set from disk takes seconds, fetching it minutes
SHORT_LEAD_SECONDS: Final = 300.0
_PARTS: Final = (Slot.FIRST_HOUR, Slot.MIDDAY, Slot.LAST_HOUR, Slot.POST_CLOSE, Slot.EVENING, Slot.CLOSED)


@dataclass(frozen=True, order=True)
class Look:
    """At the instant *at*: make ready what *session* wants in *slots*, in memory or, further ahead, on disk only."""

    at: float
    session: int
    slots: tuple[Slot, ...]
    to_memory: bool
    begins: bool = False  # the session's first: predictions made now are those that are scored


def looks(agenda: Agenda, session: int) -> list[Look]:
    """Return the looks of the day of *session*, by time."""
    starts = agenda.starts(session)
    whole = (Slot.ANY,)
    found = [Look(starts[Slot.PRE_OPEN] - LEAD_SECONDS, session, whole, to_memory=True, begins=True)]
    found += [
        Look(starts[slot] - SHORT_LEAD_SECONDS, session, tuple(part for part in _PARTS if part >= slot), to_memory=True)
        for slot in _PARTS[1:3]
    ]
    settled = agenda.settled[session]
    found += [Look(settled, session, _PARTS[3:], to_memory=True), Look(settled, session + 1, whole, to_memory=False)]
    if starts[Slot.EVENING] > settled:
        found += [
            Look(starts[Slot.EVENING], session, _PARTS[4:], to_memory=True),
            Look(starts[Slot.EVENING], session + 1, whole, to_memory=False),
        ]
    return sorted(look for look in found if look.session < len(agenda.days))
