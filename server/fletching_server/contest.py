"""Which way of ranking saves the most: ghost caches side by side, one of them in charge. Pure: time is bytes asked for.

One ghost per half-life, one that is plain LRU, and two that let in only some of what is new.
"""

from __future__ import annotations

from math import log2
from typing import Final

from fletching_server.ghosts import Entry, Ghost
from fletching_server.histories import HALF_LIVES, LEAST_SECONDS, Uses
from fletching_server.policy import Item

_CHOSEN_EVERY: Final = 1 / 8  # of a turnover: how often the ghosts are compared
_CREDIT_LIFE: Final = 2.0  # turnovers after which a second that was saved counts half
_MARGIN: Final = 1.02  # by so much another ghost must be better: changing sides costs misses
_FEW: Final = 32  # one in so many of what is new comes in, where thrashing is to be resisted
_LONG_AGO: Final = 60.0  # half-lives after which nothing counts any more
_ARMS: Final = ("lru", *(f"half-life {life:g}" for life in HALF_LIVES), "lru, few", "half-life 16, few")


class Contest:
    """Ghosts of *max_bytes* each; the ``leader`` says what should be held."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._ghosts = (
            Ghost(max_bytes, compares=False),
            *(Ghost(max_bytes) for _ in HALF_LIVES),
            Ghost(max_bytes, compares=False, every=_FEW),
            Ghost(max_bytes, every=_FEW),
        )
        self.places = (0, *range(1, len(HALF_LIVES) + 1), 0, len(HALF_LIVES))  # of each ghost's number in the uses
        self._credit = [0.0] * len(self._ghosts)
        self._scale = 1.0  # of a second saved now
        self._compared = 0
        self.put_in_charge(0)

    def put_in_charge(self, number: int) -> None:
        """Have this ghost lead."""
        self.number, self.leader = number, self._ghosts[number]

    def use(self, item: Item, uses: Uses, count: int = 0) -> None:
        """Have every ghost see so many uses of *item* (0: one that is expected), which make its *uses* what they are."""
        lineage, size = item.lineage, item.bytes
        seconds = max(LEAST_SECONDS, item.refill_seconds)
        refill = log2(seconds)
        density = refill - log2(size or 1)
        for number, (ghost, place) in enumerate(zip(self._ghosts, self.places, strict=True)):
            weight = uses[place]
            entry = Entry(weight + density, weight + refill, size) if place else Entry(weight, weight, size)
            found = count if ghost.use(lineage, entry) else count - 1
            if found > 0:
                self._credit[number] += self._scale * seconds * found

    def drop(self, lineage: str) -> None:
        """Have every ghost forget *lineage*."""
        for ghost in self._ghosts:
            ghost.drop(lineage)

    def holds(self, lineage: str) -> bool:
        """Return whether any ghost holds *lineage*."""
        return any(lineage in ghost.held for ghost in self._ghosts)

    def decide(self, asked: int) -> bool:
        """Return whether another ghost leads from now on, *asked* bytes from the beginning: one that saved more lately."""
        if asked - self._compared < self._max_bytes * _CHOSEN_EVERY:
            return False
        self._scale *= 2.0 ** min((asked - self._compared) / self._max_bytes / _CREDIT_LIFE, _LONG_AGO)
        self._compared = asked
        best = max(range(len(self._credit)), key=self._credit.__getitem__)
        better = best != self.number and self._credit[best] > self._credit[self.number] * _MARGIN
        if better:
            self.put_in_charge(best)
        if self._scale > 1e100:
            self._credit = [credit / self._scale for credit in self._credit]
            self._scale = 1.0
        return better

    def facts(self) -> dict[str, object]:
        """Return which ranking is in charge, and the seconds that each would have saved lately."""
        saved = {name: round(credit / self._scale, 3) for name, credit in zip(_ARMS, self._credit, strict=True)}
        return {"ranking": _ARMS[self.number], "saved_seconds": saved}
