"""When to look ahead, and how far: what is left of a session and all of the next, what begins within the hour. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fletching_server.agenda import Agenda, Slot

LEAD_SECONDS: Final = 3600.0  # before a slot begins its rows are brought into memory; until then they wait on disk
LOOK_SECONDS: Final = 300.0  # at the latest after so long there is another look
_SOON_SECONDS: Final = 1.0


class Stretch(NamedTuple):
    """Slots of one session for which something is made ready, and until when a read is the one that was expected."""

    session: int
    slots: tuple[Slot, ...]
    until: float


def far(agenda: Agenda, at: float) -> Iterator[Stretch]:
    """Yield what is left of the present session's day, and the whole of the next: for these rows are fetched to disk."""
    yield from _left(agenda, at, float("inf"))
    following = agenda.present(at) + 1
    if following < len(agenda.days):
        yield Stretch(following, (Slot.ANY,), agenda.starts(following)[-1])


def near(agenda: Agenda, at: float) -> Iterator[Stretch]:
    """Yield the slots that are, or begin within the hour: for these rows are brought into memory."""
    yield from _left(agenda, at, at + LEAD_SECONDS)
    following = agenda.present(at) + 1
    if following < len(agenda.days):
        starts = agenda.starts(following)
        slots = tuple(slot for slot in _real(starts) if starts[slot] <= at + LEAD_SECONDS)
        if slots:
            yield Stretch(following, slots, starts[-1])


def _left(agenda: Agenda, at: float, before: float) -> Iterator[Stretch]:
    """Yield the slots of the present session that are not over and begin *before* an instant."""
    session = agenda.present(at)
    if at < agenda.midnights[0]:
        return
    starts = agenda.starts(session)
    slots = tuple(slot for slot in _real(starts) if _end(agenda, session, slot) > at and starts[slot] <= before)
    if slots:
        yield Stretch(session, slots, max(starts[-1], *(_end(agenda, session, slot) for slot in slots)))


def _real(starts: tuple[float, ...]) -> list[Slot]:
    """Return the slots that last: around midnight some are cut to nothing."""
    ends = (*starts[1:], float("inf"))
    return [Slot(place) for place, (start, end) in enumerate(zip(starts, ends, strict=True)) if end > start]


def _end(agenda: Agenda, session: int, slot: Slot) -> float:
    starts = agenda.starts(session)
    if slot + 1 < len(starts):
        return starts[slot + 1]
    return agenda.midnights[session + 1] if session + 1 < len(agenda.days) else float("inf")


def rest_seconds(agenda: Agenda, at: float) -> float:
    """Return after how long to look again: when rows can be had, an hour before a slot, when it begins, or in a while."""
    present = agenda.present(at)
    instants = []
    for session in range(present, min(present + 2, len(agenda.days))):
        starts = agenda.starts(session)
        instants += [agenda.settled[session], *starts, *(start - LEAD_SECONDS for start in starts)]
    due = min((instant - at for instant in instants if instant > at), default=LOOK_SECONDS)
    return min(max(due, _SOON_SECONDS), LOOK_SECONDS)
