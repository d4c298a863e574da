"""What a fill teaches about its cells, as facts of coverage. Pure.

A session with rows is *final* when the calendar vouches for it, it had settled when it was fetched, and either a later
session had settled too or the same rows came twice; one without rows is *empty* on the same terms, and if the symbol is
known to exist. Until then both are *unconfirmed*, and before it has settled a session is *provisional*.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np

from fletching_schemas import Dataset, FetchRequest
from fletching_server.calendars import Calendar, Days, Flags, day_number
from fletching_server.image import Image, Numbers
from fletching_server.snapshot import Fact, Life
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL, UNCONFIRMED, Span, Spans, State

NOTHING_UPSTREAM: Final = "nothing_upstream"
NOTHING_YET: Final = "nothing_yet"
NO_TRADE: Final = "no_trade"
NOT_LISTED_YET: Final = "not_listed_yet"
DELISTED: Final = "delisted"

_REASONS: Final = ("", NOTHING_UPSTREAM, NOTHING_YET, NO_TRADE, NOT_LISTED_YET, DELISTED)
_STATES: Final[tuple[State, ...]] = (FINAL, EMPTY, UNCONFIRMED, PROVISIONAL)


@dataclass(frozen=True)
class Circumstances:
    """What was known when a source answered: the calendar, the instant of asking, and what was held of the symbols.

    ``lives`` are listing dates; ``existing`` the symbols that the source lists; ``confirmed`` those whose last settled
    session came back exactly as it was held.
    """

    calendar: Calendar
    at: datetime
    held: Mapping[str, Spans] = field(default_factory=dict)
    lives: Mapping[str, Life] = field(default_factory=dict)
    existing: Collection[str] = frozenset()
    confirmed: Collection[str] = frozenset()


def facts_of_fill(
    dataset: Dataset, image: Image, request: FetchRequest, seen: Circumstances, file: str | None
) -> tuple[Fact, ...]:
    """Return, for each asked symbol, what is now known about each asked session, resting on *file*.

    Where the dataset has no calendar nothing says on which days rows are due, so nothing is called empty.
    """
    sessions = seen.calendar.between(day_number(request.start), day_number(request.end))
    if not len(sessions):
        return ()
    settled = sessions <= seen.calendar.settled_through(seen.at)
    known = seen.calendar.knows(sessions)
    return tuple(
        Fact(symbol, span, file if span.reason == "" else None)
        for symbol in request.symbols
        for span in _spans(dataset, image, symbol, seen, sessions, settled, known)
    )


def _spans(
    dataset: Dataset, image: Image, symbol: str, seen: Circumstances, sessions: Days, settled: Flags, known: Flags
) -> Iterator[Span]:
    start, stop = image.runs.get(symbol, (0, 0))
    traded = image.sessions[start:stop]
    present = np.isin(sessions, traded) if dataset.calendar else np.ones(len(sessions), bool)
    reasons = _reasons(dataset, symbol, seen, sessions, present, settled, traded)
    latest = seen.calendar.settled_through(seen.at)  # one look at it is not enough, unless it came back as it was held
    sure = settled & known & ((sessions < latest) | (symbol in seen.confirmed))
    exists = bool(len(traded)) or symbol in seen.existing or any(not span.reason for span in seen.held.get(symbol, ()))
    sure &= present | exists
    states = np.where(~settled, 3, np.where(~sure, 2, np.where(present, 0, 1)))
    cuts = np.flatnonzero(np.diff(states * len(_REASONS) + reasons)) + 1
    for first, last in zip([0, *cuts], [*(cuts - 1), len(sessions) - 1], strict=True):
        state, reason = _STATES[states[first]], _REASONS[reasons[first]]
        yield Span(int(sessions[first]), int(sessions[last]), state, reason, seen.at.timestamp())


def _reasons(
    dataset: Dataset, symbol: str, seen: Circumstances, sessions: Days, present: Flags, settled: Flags, traded: Numbers
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return for each session why it has no rows, as a place in ``_REASONS``; 0 where it has some."""
    bars = [(span.first, span.last) for span in seen.held.get(symbol, ()) if not span.reason]
    bars += [(int(traded[0]), int(traded[-1]))] if len(traded) else []
    first, last = (min(low for low, _ in bars), max(high for _, high in bars)) if bars else (None, None)
    life = seen.lives.get(symbol, Life())
    reasons = np.ones(len(sessions), np.int64)
    if first is not None and last is not None:
        reasons[(sessions > first) & (sessions < last)] = 3
    begins = life.first if life.first is not None else (None if dataset.range_pushdown else first)
    if begins is not None:  # the source had to return whole history, or says itself when the symbol was listed
        reasons[sessions < begins] = 4
    if life.last is not None:
        reasons[sessions > life.last] = 5
    reasons[~settled] = 2
    reasons[present] = 0
    return reasons
