"""What deserves memory: a pure decision, without I/O, clock or lock, that can be replayed from a log.

The hot tier asks, under its lock. A *key* names immutable bytes, a *lineage* what is asked for again whatever its generation:
a partition has one, whose files come and go; anything else is its own. Uses are remembered by lineage, so a new generation, or
one that returns, has the history of those before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

SMALL_BYTES: Final = 4 << 20  # reading 4 MB costs about what finding one symbol in the file costs
WHOLE_SHARE: Final = 0.25  # of a file's symbols: from here on reading everything is the cheaper plan
GHOSTS: Final = 65_536  # lineages that left and whose uses are still remembered


class Item(NamedTuple):
    """What memory holds, or could."""

    key: str
    lineage: str
    bytes: int
    refill_seconds: float  # what it would take to have it in memory again


class Policy(Protocol):
    """Ranks what is held, and says what deserves to be."""

    def touch(self, item: Item) -> None:
        """Note one use of *item*, held or not."""
        ...

    def admit(self, item: Item, chance: float | None = None) -> None:
        """Note that *item* is held from now on; with *chance* because it will be used today with this probability."""
        ...

    def leave(self, key: str) -> None:
        """Note that *key* is not held any more; its uses are remembered."""
        ...

    def forget(self, lineage: str) -> None:
        """Note that *lineage* will never be asked for again."""
        ...

    def victims(self, excess: int, leased: Container[str]) -> list[str]:
        """Return the keys that should leave so that *excess* bytes go, none of them *leased*; fewer where there are no more."""
        ...

    def beats(self, item: Item, victims: Sequence[str], chance: float | None = None) -> bool:
        """Return whether *item* is worth more than all of *victims* together."""
        ...

    def wants_whole(self, item: Item, share: float) -> bool:
        """Return whether to hold the whole of *item* for a read that wants *share* of its symbols."""
        ...

    def told(self, key: str) -> dict[str, float]:
        """Return the numbers behind the rank of *key*, which is held: uses, refill_seconds, bytes, and what else counts."""
        ...

    def foresee(self, chances: Mapping[str, float]) -> None:
        """Take, by lineage, how likely something is asked for today."""
        ...

    def loss(self, victims: Sequence[str]) -> float:
        """Return the seconds that are expected to be lost within a day if *victims* leave."""
        ...

    def day_ended(self) -> None:
        """Note that a day is over: how much is asked for in one tells how soon what is held is used."""
        ...

    def facts(self) -> dict[str, object]:
        """Return what the policy knows of itself: which ranking is in charge, and how the others would do."""
        ...


def cheaper_whole(item: Item, share: float) -> bool:
    """Return whether reading the whole of *item* costs no more than picking *share* of its symbols out of it."""
    return item.bytes <= SMALL_BYTES or share >= WHOLE_SHARE


class LruPolicy:
    """Least recently used leaves first, whatever comes in its place; a large file is held whole from its second use on."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Item] = OrderedDict()  # by last use, the oldest first
        self._uses: OrderedDict[str, int] = OrderedDict()  # of held lineages and of ghosts

    def touch(self, item: Item) -> None:
        """Note one use of *item*, held or not."""
        key, lineage, uses, held = item.key, item.lineage, self._uses, self._held
        uses[lineage] = uses.get(lineage, 0) + 1
        uses.move_to_end(lineage)
        if len(uses) > GHOSTS + len(held):
            uses.popitem(last=False)
        if key in held:
            held.move_to_end(key)

    def admit(self, item: Item, chance: float | None = None) -> None:
        """Note that *item* is held from now on, as if it were used now; the *chance* that it will be does not matter."""
        del chance
        self._held[item.key] = item

    def leave(self, key: str) -> None:
        """Note that *key* is not held any more; its uses are remembered."""
        self._held.pop(key, None)

    def forget(self, lineage: str) -> None:
        """Note that *lineage* will never be asked for again."""
        self._uses.pop(lineage, None)

    def victims(self, excess: int, leased: Container[str]) -> list[str]:
        """Return the keys that were used longest ago, as many as it takes."""
        found = list[str]()
        for key, item in self._held.items():
            if excess <= 0:
                break
            if key not in leased:
                found.append(key)
                excess -= item.bytes
        return found

    def beats(self, item: Item, victims: Sequence[str], chance: float | None = None) -> bool:
        """Return True: what is used now is worth more than what was used before."""
        del item, victims, chance
        return True

    def wants_whole(self, item: Item, share: float) -> bool:
        """Return whether a file should be held whole: it is small, most of it is wanted, or it was wanted before."""
        return cheaper_whole(item, share) or self._uses.get(item.lineage, 0) > 1

    def told(self, key: str) -> dict[str, float]:
        """Return uses since the start, bytes, and the seconds that a refill takes."""
        item = self._held.get(key)
        if item is None:
            return {}
        return {"uses": self._uses.get(item.lineage, 0), "refill_seconds": item.refill_seconds, "bytes": item.bytes}

    def foresee(self, chances: Mapping[str, float]) -> None:
        """Do nothing: order is all that counts."""

    def loss(self, victims: Sequence[str]) -> float:
        """Return the refill seconds of those *victims* that were used more than once: order alone tells no chances."""
        found = (self._held[key] for key in victims)
        return sum(item.refill_seconds for item in found if self._uses.get(item.lineage, 0) > 1)

    def day_ended(self) -> None:
        """Do nothing: days change no order."""

    def facts(self) -> dict[str, object]:
        """Return the name of the ranking."""
        return {"ranking": "lru"}
