"""Which of the looks of ``schedule`` hold at an instant, for whoever looks again and again, or has just been started. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from fletching_server.agenda import Agenda, Slot
from fletching_server.schedule import Look, looks

LOOK_SECONDS: Final = 300.0  # at the latest after so long there is another look
_SOON_SECONDS: Final = 1.0


class Occasion(NamedTuple):
    """What is made ready now: what *session* wants in *slots*, in memory or on disk only, for reads until an instant."""

    session: int
    slots: tuple[Slot, ...]
    memory: bool
    until: float


def occasions(agenda: Agenda, at: float) -> list[Occasion]:
    """Return the last look at memory that is due and whose day is not over, and the last one at the disk."""
    due = [look for look in _around(agenda, at) if look.at <= at]
    found = []
    for memory in (True, False):
        chosen = [look for look in due if look.to_memory is memory]
        if chosen:
            look = max(chosen)
            until = agenda.starts(look.session)[-1]
            if until > at:
                found.append(Occasion(look.session, look.slots, memory, until))
    return found


def rest_seconds(agenda: Agenda, at: float) -> float:
    """Return after how long to look again: when the next look is due, or in a while."""
    due = min((look.at - at for look in _around(agenda, at) if look.at > at), default=LOOK_SECONDS)
    return min(max(due, _SOON_SECONDS), LOOK_SECONDS)


def _around(agenda: Agenda, at: float) -> list[Look]:
    present = agenda.present(at)
    return [look for session in range(max(0, present - 1), min(present + 2, len(agenda.days))) for look in looks(agenda, session)]
