"""What one way of ranking would hold: keys and sizes, no bytes. Several of them, side by side, tell which way pays. Pure.

Scores are logarithms that hardly ever fall, so a heap whose entries are brought up to date when they surface is exact, and a
use of what is held mostly costs no heap operation.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final, NamedTuple

_MUCH: Final = 60.0  # 2^60 times as much, or as little, is all the same
_SPARE: Final = 64  # entries of what has left, in the heap


class Entry(NamedTuple):
    """One thing held: what it ranks by, the logarithm of what its uses are worth in seconds, and its bytes."""

    score: float
    worth: float
    bytes: int


class Ghost:
    """A cache of *max_bytes* without the bytes: the lowest score leaves first.

    Where it *compares*, an insert must be worth more than the sum of those that would leave for it. Of what does not fit
    without somebody leaving, one in *every* comes in: so a set that is asked for in turns, and is larger than the
    cache, keeps a part of itself instead of chasing its own tail.
    """

    def __init__(self, max_bytes: int, *, compares: bool = True, every: int = 1) -> None:
        self.max_bytes, self.compares, self.every = max_bytes, compares, every
        self.held: dict[str, Entry] = {}
        self.used = 0
        self.gone: list[str] = []  # by the last insert
        self._heap: list[tuple[float, str]] = []
        self._asked = 0

    def use(self, key: str, entry: Entry) -> bool:
        """Note a use of *key*, which stands as *entry* from now on; return whether it was held."""
        before = self.held.get(key)
        if before is not None:
            self.used += entry.bytes - before.bytes
            self.held[key] = entry
            if entry.score < before.score:  # it is larger now, or cheaper to have again: its old entry would surface too late
                self._push(key, entry)
            self.gone = self._trimmed(key) if self.used > self.max_bytes else []
            return True
        self.gone = []
        if self.used + entry.bytes <= self.max_bytes:
            self._insert(key, entry)
            return False
        self._asked += 1
        if self._asked % self.every == 0 and entry.bytes <= self.max_bytes:
            self.gone = self._victims(entry)
            if self.gone:
                self._insert(key, entry)
        return False

    def _insert(self, key: str, entry: Entry) -> None:
        self.held[key] = entry
        self.used += entry.bytes
        self._push(key, entry)

    def _push(self, key: str, entry: Entry) -> None:
        heappush(self._heap, (entry.score, key))
        if len(self._heap) > 2 * len(self.held) + _SPARE:
            self._heap = sorted((held.score, name) for name, held in self.held.items())

    def drop(self, key: str) -> None:
        """Forget *key*."""
        if (entry := self.held.pop(key, None)) is not None:
            self.used -= entry.bytes

    def _victims(self, entry: Entry) -> list[str]:
        """Remove, and return, those that leave for *entry*; none where they are worth more than it."""
        taken: list[tuple[str, Entry]] = []
        lost = 0.0
        while self.used + entry.bytes > self.max_bytes:
            key, victim = self._lowest()
            taken.append((key, victim))
            lost += 2.0 ** min(victim.worth - entry.worth, _MUCH)
            if self.compares and lost > 1.0:
                for key, victim in taken:
                    self._insert(key, victim)
                return []
        return [key for key, _ in taken]

    def _lowest(self) -> tuple[str, Entry]:
        """Remove what ranks lowest, and return it."""
        while True:
            score, key = heappop(self._heap)
            entry = self.held.get(key)
            if entry is None:  # it left, by another of its entries
                continue
            if entry.score > score:
                heappush(self._heap, (entry.score, key))
                continue
            del self.held[key]
            self.used -= entry.bytes
            return key, entry

    def _trimmed(self, grown: str) -> list[str]:
        """Remove, and return, what no longer fits because *grown* has grown; that itself where it never fits again."""
        gone = []
        if self.held[grown].bytes > self.max_bytes:
            self.drop(grown)
            gone.append(grown)
        while self.used > self.max_bytes:
            key, _ = self._lowest()
            gone.append(key)
        return gone
