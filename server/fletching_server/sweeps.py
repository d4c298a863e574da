"""Who reads session after session: a sweep, whose next partitions are known and whose past ones nobody wants again. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

STEPS: Final = 2  # sessions that followed each other before a reader counts as a sweep
MOST_AHEAD: Final = 8
PAUSE_SECONDS: Final = 900.0
_MOST_RUNS: Final = 4096  # readers remembered


@dataclass
class _Run:
    session: int
    at: float
    steps: int = 0


class RunDetector:
    """How far each reader (principal, dataset, bucket) has come, session by session."""

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str, str], _Run] = OrderedDict()

    def note(self, principal: str, dataset: str, bucket: str, session: int, at: float) -> int:
        """Return how many steps of one session in a row have led to *session*; reading one again changes nothing.

        Steps follow each other within a quarter of an hour: whoever reads the newest session every morning is no sweep.
        """
        reader = (principal, dataset, bucket)
        run = self._runs.get(reader)
        if run is None:
            self._runs[reader] = _Run(session, at)
            if len(self._runs) > _MOST_RUNS:
                self._runs.popitem(last=False)
            return 0
        self._runs.move_to_end(reader)
        if at - run.at > PAUSE_SECONDS:
            run.steps = 0
        elif session == run.session + 1:
            run.steps += 1
        elif session != run.session:
            run.steps = 0
        run.session, run.at = session, at
        return run.steps


def ahead(steps: int) -> int:
    """Return how many sessions to read ahead of a reader who has come so many *steps*: more, the longer it goes on."""
    return 0 if steps < STEPS else min(2 + steps, MOST_AHEAD)
