"""How far each reader has come from session to session, as the read path asks it: whoever goes on is a sweep."""

from __future__ import annotations

import threading

from fletching_schemas import ReadRequest
from fletching_server.clock import Clock
from fletching_server.plan import Plan
from fletching_server.sweeps import RunDetector


class Runs:
    """The runs of one engine, safe from any thread; a read of more than one session is no step of any."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._detector = clock, RunDetector()
        self._lock = threading.Lock()

    def __call__(self, request: ReadRequest, plan: Plan, principal: str) -> int:
        """Return how many sessions in a row *principal* has read of these symbols, this one included."""
        wanted = plan.wanted
        if wanted.first != wanted.last or not plan.symbols:
            return 0
        symbols = plan.symbols  # told by their ends and their number: hashing a market takes longer than reading a session of it
        group = f"{symbols[0]} {symbols[-1]} {len(symbols)}"
        session = plan.calendar.ordinal(wanted.last)
        with self._lock:
            return self._detector.note(principal, request.dataset, group, session, self._clock.monotonic())
