"""Value density: what is held should save the most waiting per byte.

    score = log2(decayed uses) + log2(refill_seconds / bytes)      the lowest leaves first

How fast uses decay is not a constant: ghost caches run beside the store, and it holds what that ghost holds which saved the most
seconds lately (``contest``). What is expected today stays until it is asked for. Pure: time is bytes asked for.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import chain
from typing import Final

from fletching_server.contest import Contest
from fletching_server.histories import Histories, Uses
from fletching_server.policy import Item, cheaper_whole

_MOST_NOTED: Final = 256  # uses that wait to be worked out; some milliseconds, once in so many different ones
_LIKELY: Final = 0.1  # from this chance on what is expected stays until it is asked for, or the day is over
_MOST_EXPECTED: Final = 0.7  # of memory that may be kept so
_SPARE: Final = 64  # ranks of what has left, in the heap


class DensityPolicy:
    """Decayed uses x refill seconds / bytes, within *max_bytes*; see the module."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max(1, max_bytes)
        self._histories, self._contest = Histories(self.max_bytes), Contest(self.max_bytes)
        self._noted: dict[str, tuple[Item, int]] = {}  # uses not worked out yet, by lineage, the latest last
        self._items: dict[str, Item] = {}  # held, by key
        self._keys: dict[str, str] = {}  # held, by lineage
        self._heap: list[tuple[float, str]] = []  # of held keys by rank; a rank that has grown is put right when it surfaces
        self._strays: dict[str, None] = {}  # held keys whose lineage the ghost in charge does not hold, the worst first
        self._expected: dict[str, float] = {}  # held keys that somebody is expected to ask for today, and has not yet; the chance
        self._expected_bytes = 0
        self._foreseen: dict[str, float] = {}  # chances of today by lineage, until it is asked for

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
            self._use(item, self._histories.note(item, count), count)
            if (key := self._keys.get(item.lineage)) is not None and self._expect_no_more(key):
                self._rank(key)
            if self._contest.decide(self._histories.asked):
                self._rank_anew()
        self._histories.forget_oldest(lambda lineage: lineage in self._keys or self._contest.holds(lineage))

    def _use(self, item: Item, uses: Uses, count: int = 0) -> None:
        """Have every ghost see so many uses (0: one that is expected), and keep the strays in step with the one in charge."""
        leader, lineage = self._contest.leader, item.lineage
        before = leader.held.get(lineage)
        self._contest.use(item, uses, count)
        for gone in leader.gone:
            if (key := self._keys.get(gone)) is not None and key not in self._expected:
                self._strays[key] = None
        if (key := self._keys.get(lineage)) is not None and (present := leader.held.get(lineage)) is not None:
            fell = before is not None and present.score < before.score
            if fell or key in self._strays:
                self._rank(key)

    def admit(self, item: Item, chance: float | None = None) -> None:
        """Note that *item* is held from now on; with *chance* because somebody is expected to ask for it today."""
        self._settle()
        if chance is not None:
            self._use(item, self._histories.expect(item, chance))
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
        self._histories.forget(lineage)
        self._contest.drop(lineage)
        if (key := self._keys.get(lineage)) is not None:
            self._stray(key)

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

    def beats(self, item: Item, victims: Sequence[str], chance: float | None = None) -> bool:
        """Return whether *item* is worth more than the sum of *victims*; an expected one is worth what its *chance* says.

        A use has been noted before, so what the ghost in charge let in is what should be held.
        """
        self._settle()
        if chance is None:
            return item.lineage in self._contest.leader.held or not victims
        return not victims or self.loss(victims) < chance * item.refill_seconds

    def wants_whole(self, item: Item, share: float) -> bool:
        """Return whether a file should be held whole: it is small, most of it is wanted, or it was wanted before."""
        if cheaper_whole(item, share):
            return True
        self._settle()
        return self._histories.used_before(item.lineage)

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
        foreseen = self._foreseen.get(lineage)
        return self._histories.chance_today(lineage) if foreseen is None else foreseen

    def day_ended(self) -> None:
        """Note that a day is over: how much is asked for in one tells how soon what is held is used."""
        self._settle()
        self._histories.day_ended()
        self._foreseen.clear()
        for key in list(self._expected):
            self._expect_no_more(key)
            self._rank(key)

    def told(self, key: str) -> dict[str, float]:
        """Return the numbers behind the rank of *key*: decayed uses, refill seconds, bytes, and seconds saved per byte."""
        self._settle()
        item = self._items[key]
        count = self._histories.count(item.lineage)
        return {
            "uses": round(count, 4),
            "refill_seconds": item.refill_seconds,
            "bytes": item.bytes,
            "density": count * item.refill_seconds / max(item.bytes, 1),
        }

    def facts(self) -> dict[str, object]:
        """Return which ranking is in charge, and the seconds that each would have saved lately."""
        self._settle()
        return {**self._contest.facts(), "known": len(self._histories.uses)}

    # What leaves by its rank, and what before or after all that does

    def _expect_no_more(self, key: str) -> bool:
        """Let *key* rank like any other; return whether it was expected."""
        if self._expected.pop(key, None) is None:
            return False
        self._expected_bytes -= self._items[key].bytes
        return True

    def _score(self, key: str) -> float:
        return self._contest.leader.held[self._items[key].lineage].score

    def _rank(self, key: str) -> None:
        """Let *key* leave by its rank, or as a stray."""
        if key in self._expected:
            self._strays.pop(key, None)
            return
        if self._items[key].lineage in self._contest.leader.held and self._keys.get(self._items[key].lineage) == key:
            self._strays.pop(key, None)
            heappush(self._heap, (self._score(key), key))
            if len(self._heap) > 2 * len(self._items) + _SPARE:
                self._heap = sorted(
                    (self._score(held), held) for held in self._items if held not in self._strays and held not in self._expected
                )
        else:
            self._strays[key] = None

    def _rank_anew(self) -> None:
        """Rank all that is held as another ghost does."""
        self._strays, self._heap = {}, []
        for key in sorted(self._items, key=lambda key: (self._histories.last(self._items[key].lineage), key)):
            self._rank(key)

    def _stray(self, key: str) -> None:
        """Let *key* leave before all that is ranked or expected."""
        self._expect_no_more(key)
        self._strays[key] = None
