"""What a fill teaches about its cells, as facts of coverage. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np

from fletching_schemas import Dataset, FetchRequest
from fletching_server.calendars import Calendar, day_number
from fletching_server.image import Image
from fletching_server.snapshot import Fact
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL, Span

NOTHING_UPSTREAM = "nothing_upstream"


def facts_of_fill(
    dataset: Dataset, image: Image, request: FetchRequest, calendar: Calendar, fetched_at: datetime, file: str | None
) -> tuple[Fact, ...]:
    """Return, for each asked symbol, what is now known about each asked session.

    A session that had settled when it was fetched is final, or empty for good; a later one is provisional and ages. Where
    the dataset has no calendar nothing says on which days rows are due, so nothing is called empty.
    """
    sessions = calendar.between(day_number(request.start), day_number(request.end))
    settled = calendar.settled_through(fetched_at)
    return tuple(
        Fact(symbol, span, file if span.reason == "" else None)
        for symbol in request.symbols
        for span in _spans(dataset, image, symbol, sessions, settled, fetched_at.timestamp())
    )


def _spans(dataset: Dataset, image: Image, symbol: str, sessions: np.ndarray, settled: int, fetched_at: float) -> Iterator[Span]:
    if not len(sessions):
        return
    start, stop = image.runs.get(symbol, (0, 0))
    present = np.isin(sessions, image.sessions[start:stop]) if dataset.calendar else np.ones(len(sessions), bool)
    kinds = present * 2 + (sessions <= settled)  # four kinds of session; a change of kind begins a new span
    cuts = np.flatnonzero(np.diff(kinds)) + 1
    for first, last in zip([0, *cuts], [*(cuts - 1), len(sessions) - 1], strict=True):
        state = (FINAL if present[first] else EMPTY) if sessions[first] <= settled else PROVISIONAL
        reason = "" if present[first] else NOTHING_UPSTREAM
        yield Span(int(sessions[first]), int(sessions[last]), state, reason, fetched_at)
