"""What the policy knows of stored files and other things that memory may hold, remembered while estimates stand. Pure."""

from __future__ import annotations

from typing import Final

from fletching_server.policy import Item
from fletching_server.refills import Refills

_MOST: Final = 65_536  # remembered, of a few hundred bytes each


class Items:
    """Items by key, with what a refill of each takes."""

    def __init__(self) -> None:
        self._refills = Refills()
        self._known: dict[str, Item] = {}

    def get(self, key: str) -> Item | None:
        """Return the item of *key* as it was made last, where it is remembered."""
        return self._known.get(key)

    def made(self, key: str, lineage: str, size: int) -> Item:
        """Return the item of *key*, and remember it."""
        if len(self._known) >= _MOST:
            self._known.clear()
        item = self._known[key] = Item(key, lineage, size, self._refills.seconds(_family(lineage), size))
        return item

    def forget(self, key: str) -> None:
        """Remember *key* no more."""
        self._known.pop(key, None)

    def measured(self, item: Item, size: int, seconds: float) -> None:
        """Learn from a load of *item*, which turned out to have *size* bytes."""
        if self._refills.note(_family(item.lineage), size, seconds):
            self._known.clear()  # they have the old estimate in them


def _family(lineage: str) -> str:
    """Return whose loads tell how long one of *lineage* takes: its dataset's; for all that is no partition, the journal's."""
    return lineage.partition("/")[0] if "/" in lineage else ""
