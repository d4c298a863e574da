"""How often each lineage was asked for: uses that count half after so many bytes more were asked for. Pure: time is bytes.

A use counts half after *H* more bytes were asked for (LRFU, Lee et al. 2001: H small is LRU, H large is LFU). Counts are kept
as logarithms, so nothing has to be aged: with ``x`` the bytes asked for so far, in half-lives, each use makes of *w*

    log2(2^w + 2^x)
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, log2
from typing import Final

from fletching_server.policy import Item

HALF_LIVES: Final = (1.0, 2.0, 4.0, 16.0)  # in turnovers: as many bytes asked for as fit in memory
LEAST_SECONDS: Final = 1e-6  # that a refill is taken to last
_MOST_KNOWN: Final = 131_072  # histories; a few hundred bytes each
_SURE: Final = 0.999
_DAY: Final = 1.0  # turnovers, until a day has been seen
_LEARNED: Final = 0.3  # the share of the newest day in what a day is taken to be
_PRICED_BY: Final = 1  # the half-life by which worth is told where the ranking itself has none

Uses = list[float]  # when last, in bytes asked for; then the logarithm of decayed uses, per half-life


class Histories:
    """The decayed uses of all that was asked for; *max_bytes* of it make one turnover."""

    def __init__(self, max_bytes: int) -> None:
        self.uses: dict[str, Uses] = {}
        self.asked = 0  # bytes
        self._max_bytes, self._lives = max_bytes, tuple(life * max_bytes for life in HALF_LIVES)
        self._most = _MOST_KNOWN
        self._day, self._day_began = _DAY, 0  # turnovers

    # What is told

    def note(self, item: Item, count: int) -> Uses:
        """Return the uses of *item* after *count* more of them, now."""
        self.asked = asked = self.asked + item.bytes * count
        more, uses = log2(count), self.uses.get(item.lineage)
        if uses is None:
            uses = self.uses[item.lineage] = [float(asked), *(asked / life + more for life in self._lives)]
            return uses
        uses[0] = float(asked)
        for place, life in enumerate(self._lives, 1):
            uses[place] = _added(uses[place], asked / life + more)
        return uses

    def expect(self, item: Item, chance: float) -> Uses:
        """Return the uses of *item*, which from now on are at least what *chance* stands for."""
        uses = self.uses.get(item.lineage) or [float(self.asked), *([float("-inf")] * len(self._lives))]
        for place, (life, turnovers) in enumerate(zip(self._lives, HALF_LIVES, strict=True), 1):
            uses[place] = max(uses[place], self.asked / life + _pretended(chance, turnovers))
        self.uses[item.lineage] = uses
        return uses

    def day_ended(self) -> None:
        """Note that a day is over: how much is asked for in one tells how soon what is held is used."""
        turnovers = (self.asked - self._day_began) / self._max_bytes
        self._day_began = self.asked
        if turnovers > 0:
            self._day += _LEARNED * (turnovers - self._day)

    def forget(self, lineage: str) -> None:
        """Forget *lineage*."""
        self.uses.pop(lineage, None)

    def forget_oldest(self, kept: Callable[[str], bool]) -> None:
        """Keep the younger half, and those that are to be *kept*, where there are too many."""
        if len(self.uses) <= self._most:
            return
        by_use = sorted(self.uses, key=lambda lineage: self.uses[lineage][0])
        for lineage in by_use[: len(by_use) // 2]:
            if not kept(lineage):
                del self.uses[lineage]
        self._most = max(_MOST_KNOWN, len(self.uses) * 3 // 2)  # what is held stays, however much: a look at it pays once

    # What is asked

    def last(self, lineage: str) -> float:
        """Return when *lineage* was asked for last, in bytes asked for."""
        uses = self.uses.get(lineage)
        return uses[0] if uses else 0.0

    def count(self, lineage: str) -> float:
        """Return how many uses of *lineage* count by now."""
        uses = self.uses.get(lineage)
        return 2.0 ** max(uses[1 + _PRICED_BY] - self.asked / self._lives[_PRICED_BY], -60.0) if uses else 0.0

    def used_before(self, lineage: str) -> bool:
        """Return whether there is more to *lineage* than one use that was just noted."""
        uses = self.uses.get(lineage)
        return uses is not None and uses[-1] - self.asked / self._lives[-1] > 0.5

    def chance_today(self, lineage: str) -> float:
        """Return how likely it is that *lineage* is asked for within a day."""
        return 1.0 - exp(-self.count(lineage) * log(2) / HALF_LIVES[_PRICED_BY] * self._day)


def _pretended(chance: float, life: float) -> float:
    """Return the logarithm of the uses that would make *chance* likely within one turnover: sooner than within the day.

    A use that is expected at some hour of the day is as good at its beginning as just before, which no decay says.
    """
    rate = -2 * log(1.0 - min(chance, _SURE))
    return log2(max(rate * life / log(2), 1e-9))


def _added(weight: float, at: float) -> float:
    """Return log2(2^weight + 2^at)."""
    above = at - weight
    if above > 60.0:
        return at
    return float(at + log2(1.0 + 2.0**-above) if above >= 0 else weight + log2(1.0 + 2.0**above))
