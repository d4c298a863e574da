"""Value density: what is held should save the most waiting per byte.

A use counts half after *H* more bytes were asked for (LRFU, Lee et al. 2001: H small is LRU, H large is LFU). Counts are kept
as logarithms, so nothing has to be aged: with ``x`` the bytes asked for so far, in half-lives,

    w     = log2(2^w + 2^x)                       at each use
    score = w + log2(refill_seconds / bytes)      the lowest leaves first

H is not a constant. Ghost caches run beside the store, one per half-life, one that is plain LRU, and two that let in only
some of what is new; the store holds what that ghost holds which saved the most seconds lately. Pure: time is bytes asked for.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import chain
from math import exp, log, log2
from typing import Final

from fletching_server.ghosts import Entry, Ghost
from fletching_server.policy import Item, cheaper_whole

HALF_LIVES: Final = (1.0, 2.0, 4.0, 16.0)  # in turnovers: as many bytes asked for as fit in memory
_CHOSEN_EVERY: Final = 1 / 8  # of a turnover: how often the ghosts are compared
_CREDIT_LIFE: Final = 2.0  # turnovers after which a second that was saved counts half
_MARGIN: Final = 1.02  # by so much another ghost must be better: changing sides costs misses
_FEW: Final = 32  # one in so many of what is new comes in, where thrashing is to be resisted
_MOST_NOTED: Final = 256  # uses that wait to be worked out; some milliseconds, once in so many different ones
_LONG_AGO: Final = 60.0  # half-lives after which nothing counts any more
_LIKELY: Final = 0.1  # from this chance on what is expected stays until it is asked for, or the day is over
_MOST_EXPECTED: Final = 0.7  # of memory that may be kept so
_SPARE: Final = 64  # ranks of what has left, in the heap
_MOST_KNOWN: Final = 131_072  # histories; a few hundred bytes each
_LEAST_SECONDS: Final = 1e-6
_SURE: Final = 0.999
_DAY: Final = 1.0  # turnovers, until a day has been seen
_LEARNED: Final = 0.3  # the share of the newest day in what a day is taken to be
_ARMS: Final = ("lru", *(f"half-life {life:g}" for life in HALF_LIVES), "lru, few", "half-life 16, few")
_PRICED_BY: Final = 1  # the half-life by which worth is told where the ranking itself has none

_Uses = list[float]  # when last, in bytes asked for; then the logarithm of decayed uses, per half-life


class DensityPolicy:
    """Decayed uses x refill seconds / bytes, within *max_bytes*; see the module."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max(1, max_bytes)
        self._lives = tuple(life * self.max_bytes for life in HALF_LIVES)
        room = self.max_bytes
        self._ghosts = (
            Ghost(room, compares=False),
            *(Ghost(room) for _ in HALF_LIVES),
            Ghost(room, compares=False, every=_FEW),
            Ghost(room, every=_FEW),
        )
        self._place = (0, *range(1, len(HALF_LIVES) + 1), 0, len(HALF_LIVES))  # of each ghost's number in the uses
        self._asked = 0  # bytes
        self._noted: dict[str, tuple[Item, int]] = {}  # uses not worked out yet, by lineage, the latest last
        self._uses: dict[str, _Uses] = {}
        self._most = _MOST_KNOWN
        self._items: dict[str, Item] = {}  # held, by key
        self._keys: dict[str, str] = {}  # held, by lineage
        self._heap: list[tuple[float, str]] = []  # of held keys by rank; a rank that has grown is put right when it surfaces
        self._strays: dict[str, None] = {}  # held keys whose lineage the ghost in charge does not hold, the worst first
        self._expected: dict[str, float] = {}  # held keys that somebody is expected to ask for today, and has not yet; the chance
        self._expected_bytes = 0
        self._foreseen: dict[str, float] = {}  # chances of today, of what was held when they were told, until it is asked for
        self._credit = [0.0] * len(self._ghosts)
        self._scale = 1.0  # of a second saved now
        self._compared = 0
        self._leader = 0
        self._day, self._day_began = _DAY, 0  # turnovers

    # What the tier tells

    def touch(self, item: Item) -> None:
        """Note one use of *item*, held or not; it is worked out when something is decided, so that no read waits for it."""
        before = self._noted.pop(item.lineage, None)
        self._noted[item.lineage] = (item, before[1] + 1 if before else 1)
        if len(self._noted) > _MOST_NOTED:
            self._settle()

    def _settle(self) -> None:
        """Work out the uses that were noted, in the order of the last one of each."""
        if not self._noted:
            return
        noted, self._noted = self._noted, {}
        for item, count in noted.values():
            self._foreseen.pop(item.lineage, None)
            self._asked += item.bytes * count
            uses = self._uses[item.lineage] = self._used(self._uses.get(item.lineage), count)
            self._run(item, uses, count)
            if (key := self._keys.get(item.lineage)) is not None and self._expect_no_more(key):
                self._rank(key)
            if self._asked - self._compared >= self.max_bytes * _CHOSEN_EVERY:
                self._compare()
        if len(self._uses) > self._most:
            self._forget_oldest()

    def admit(self, item: Item, chance: float | None = None) -> None:
        """Note that *item* is held from now on; with *chance* because somebody is expected to ask for it today."""
        self._settle()
        if chance is not None:
            self._expect(item, chance)
        if (old := self._keys.get(item.lineage)) is not None and old != item.key:
            self._stray(old)  # an older generation: nobody will ask for it
        self._expect_no_more(item.key)
        self._items[item.key] = item
        self._keys[item.lineage] = item.key
        if chance is not None and chance >= _LIKELY and self._expected_bytes + item.bytes <= self.max_bytes * _MOST_EXPECTED:
            self._expected_bytes += item.bytes
            self._expected[item.key] = chance
        self._rank(item.key)

    def leave(self, key: str) -> None:
        """Note that *key* is not held any more; its history stays."""
        self._expect_no_more(key)
        item = self._items.pop(key, None)
        self._strays.pop(key, None)
        if item is not None and self._keys.get(item.lineage) == key:
            del self._keys[item.lineage]

    def forget(self, lineage: str) -> None:
        """Note that *lineage* will never be asked for again."""
        self._settle()
        self._uses.pop(lineage, None)
        for ghost in self._ghosts:
            ghost.drop(lineage)
        if (key := self._keys.get(lineage)) is not None:
            self._stray(key)

    def _stray(self, key: str) -> None:
        """Let *key* leave before all that is ranked or expected."""
        self._expect_no_more(key)
        self._strays[key] = None

    # What the tier asks

    def victims(self, excess: int, leased: Container[str]) -> list[str]:
        """Return the keys that should leave so that *excess* bytes go, none of them *leased*; fewer where there are no more."""
        self._settle()
        chosen: list[str] = []
        surfaced: dict[str, float] = {}
        for key in chain(self._strays, self._lowest_first(surfaced), self._least_expected_first()):
            if excess <= 0:
                break
            if key not in leased:
                chosen.append(key)
                excess -= self._items[key].bytes
        for key, score in surfaced.items():
            heappush(self._heap, (score, key))
        return chosen

    def _lowest_first(self, surfaced: dict[str, float]) -> Iterator[str]:
        """Yield what the ghost in charge holds too, by its rank; what leaves the heap for this is *surfaced*."""
        while self._heap:
            score, key = heappop(self._heap)
            if key not in self._items or key in self._strays or key in self._expected:
                continue
            present = self._score(key)
            if present > score:
                heappush(self._heap, (present, key))
            elif key not in surfaced:
                surfaced[key] = present
                yield key

    def _least_expected_first(self) -> Iterator[str]:
        """Yield what is expected and was not asked for yet, the fewest seconds to be saved per byte first."""
        items = self._items
        yield from sorted(
            self._expected, key=lambda key: (self._expected[key] * items[key].refill_seconds / max(items[key].bytes, 1), key)
        )

    def _expect_no_more(self, key: str) -> bool:
        """Let *key* rank like any other; return whether it was expected."""
        if self._expected.pop(key, None) is None:
            return False
        self._expected_bytes -= self._items[key].bytes
        return True

    def _score(self, key: str) -> float:
        return self._ghosts[self._leader].held[self._items[key].lineage].score

    def _rank(self, key: str) -> None:
        """Let *key* leave by its rank, or as a stray."""
        if key in self._expected:
            self._strays.pop(key, None)
            return
        if self._items[key].lineage in self._ghosts[self._leader].held and self._keys.get(self._items[key].lineage) == key:
            self._strays.pop(key, None)
            heappush(self._heap, (self._score(key), key))
            if len(self._heap) > 2 * len(self._items) + _SPARE:
                self._heap = sorted(
                    (self._score(held), held) for held in self._items if held not in self._strays and held not in self._expected
                )
        else:
            self._strays[key] = None

    def beats(self, item: Item, victims: Sequence[str], chance: float | None = None) -> bool:
        """Return whether *item* is worth more than the sum of *victims*; an expected one is worth what its *chance* says.

        A use has been noted before, so what the ghost in charge let in is what should be held.
        """
        self._settle()
        if chance is None:
            return item.lineage in self._ghosts[self._leader].held or not victims
        return not victims or self.loss(victims) < chance * item.refill_seconds

    def wants_whole(self, item: Item, share: float) -> bool:
        """Return whether a file should be held whole: it is small, most of it is wanted, or it was wanted before."""
        if cheaper_whole(item, share):
            return True
        self._settle()
        uses = self._uses.get(item.lineage)
        return uses is not None and uses[-1] - self._asked / self._lives[-1] > 0.5  # more than the one use just noted

    def loss(self, victims: Sequence[str]) -> float:
        """Return the seconds that are expected to be lost within a day if *victims* leave."""
        self._settle()
        return sum(self._chance_today(self._items[key].lineage) * self._items[key].refill_seconds for key in victims)

    def foresee(self, chances: Mapping[str, float]) -> None:
        """Take, by lineage, how likely something is asked for today.

        Until it is asked for: from then on its uses speak for it again. Without a word, they do all the time.
        """
        self._settle()
        self._foreseen |= chances

    def _chance_today(self, lineage: str) -> float:
        if (foreseen := self._foreseen.get(lineage)) is not None:
            return foreseen
        uses = self._uses.get(lineage)
        if uses is None:
            return 0.0
        count = 2.0 ** max(uses[1 + _PRICED_BY] - self._asked / self._lives[_PRICED_BY], -60.0)
        return 1.0 - exp(-count * log(2) / HALF_LIVES[_PRICED_BY] * self._day)

    def day_ended(self) -> None:
        """Note that a day is over: how much is asked for in one tells how soon what is held is used."""
        self._settle()
        turnovers = (self._asked - self._day_began) / self.max_bytes
        self._day_began = self._asked
        self._foreseen.clear()
        for key in list(self._expected):
            self._expect_no_more(key)
            self._rank(key)
        if turnovers > 0:
            self._day += _LEARNED * (turnovers - self._day)

    def told(self, key: str) -> dict[str, float]:
        """Return the numbers behind the rank of *key*: decayed uses, refill seconds, bytes, and seconds saved per byte."""
        self._settle()
        item = self._items[key]
        uses = self._uses.get(item.lineage)
        count = 2.0 ** max(uses[1 + _PRICED_BY] - self._asked / self._lives[_PRICED_BY], -60.0) if uses else 0.0
        return {
            "uses": round(count, 4),
            "refill_seconds": item.refill_seconds,
            "bytes": item.bytes,
            "density": count * item.refill_seconds / max(item.bytes, 1),
        }

    def facts(self) -> dict[str, object]:
        """Return which ranking is in charge, and the seconds that each would have saved lately."""
        self._settle()
        saved = {name: round(credit / self._scale, 3) for name, credit in zip(_ARMS, self._credit, strict=True)}
        return {"ranking": _ARMS[self._leader], "saved_seconds": saved, "known": len(self._uses)}

    # Uses

    def _used(self, uses: _Uses | None, count: int) -> _Uses:
        """Return *uses* after *count* more of them, now."""
        asked, more = self._asked, log2(count)
        if uses is None:
            return [float(asked), *(asked / life + more for life in self._lives)]
        uses[0] = float(asked)
        for place, life in enumerate(self._lives, 1):
            uses[place] = _added(uses[place], asked / life + more)
        return uses

    def _expect(self, item: Item, chance: float) -> None:
        """Give *item* the history that *chance* stands for, and a place among the ghosts."""
        uses = self._uses.get(item.lineage) or [float(self._asked), *([float("-inf")] * len(self._lives))]
        for place, (life, turnovers) in enumerate(zip(self._lives, HALF_LIVES, strict=True), 1):
            uses[place] = max(uses[place], self._asked / life + self._pretended(chance, turnovers))
        self._uses[item.lineage] = uses
        self._run(item, uses)

    def _pretended(self, chance: float, life: float) -> float:
        """Return the logarithm of the uses that would make *chance* likely within one turnover: sooner than within the day.

        A use that is expected at some hour of the day is as good at its beginning as just before, which no decay says.
        """
        rate = -2 * log(1.0 - min(chance, _SURE))
        return log2(max(rate * life / log(2), 1e-9))

    # Ghosts

    def _run(self, item: Item, uses: _Uses, count: int = 0) -> None:
        """Have every ghost see so many uses (0: one that is expected), and keep the strays in step with the one in charge."""
        lineage, size = item.lineage, item.bytes
        seconds = max(_LEAST_SECONDS, item.refill_seconds)
        refill = log2(seconds)
        density = refill - log2(size or 1)
        leader = self._ghosts[self._leader]
        before = leader.held.get(lineage)
        for number, (ghost, place) in enumerate(zip(self._ghosts, self._place, strict=True)):
            weight = uses[place]
            entry = Entry(weight + density, weight + refill, size) if place else Entry(weight, weight, size)
            found = count if ghost.use(lineage, entry) else count - 1
            if found > 0:
                self._credit[number] += self._scale * seconds * found
        for gone in leader.gone:
            if (key := self._keys.get(gone)) is not None and key not in self._expected:
                self._strays[key] = None
        if (key := self._keys.get(lineage)) is not None and (present := leader.held.get(lineage)) is not None:
            fell = before is not None and present.score < before.score
            if fell or key in self._strays:
                self._rank(key)

    def _compare(self) -> None:
        """Put that ghost in charge which saved the most seconds lately."""
        self._scale *= 2.0 ** min((self._asked - self._compared) / self.max_bytes / _CREDIT_LIFE, _LONG_AGO)
        self._compared = self._asked
        best = max(range(len(self._credit)), key=self._credit.__getitem__)
        if best != self._leader and self._credit[best] > self._credit[self._leader] * _MARGIN:
            self._leader = best
            self._strays, self._heap = {}, []
            for key in sorted(self._items, key=self._last_use):
                self._rank(key)
        if self._scale > 1e100:
            self._credit = [credit / self._scale for credit in self._credit]
            self._scale = 1.0

    def _last_use(self, key: str) -> tuple[float, str]:
        uses = self._uses.get(self._items[key].lineage)
        return (uses[0] if uses else 0.0), key

    def _forget_oldest(self) -> None:
        """Keep the younger half of the histories, and those of what is held."""
        by_use = sorted(self._uses, key=lambda lineage: self._uses[lineage][0])
        for lineage in by_use[: len(by_use) // 2]:
            if lineage not in self._keys and not any(lineage in ghost.held for ghost in self._ghosts):
                del self._uses[lineage]
        self._most = max(_MOST_KNOWN, len(self._uses) * 3 // 2)  # what is held stays, however much: a look at it pays once


def _added(weight: float, at: float) -> float:
    """Return log2(2^weight + 2^at)."""
    above = at - weight
    if above > 60.0:
        return at
    return float(at + log2(1.0 + 2.0**-above) if above >= 0 else weight + log2(1.0 + 2.0**above))
