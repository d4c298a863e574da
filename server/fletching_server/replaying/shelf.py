"""The disk without bytes: partitions that were fetched, and which of them leave when there are too many."""

from __future__ import annotations

from typing import Final

from fletching_server.density import DensityPolicy
from fletching_server.policy import Item

_LOW: Final = 0.8  # down to this share of the budget they leave, as the server's quota does


class Shelf:
    """Keys and sizes within *max_bytes*; the lowest value density leaves first, priced by what upstream takes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held: dict[str, int] = {}
        self.used = 0
        self._policy = DensityPolicy(max_bytes)

    def use(self, item: Item) -> None:
        """Note one use of *item*."""
        self._policy.touch(item)

    def put(self, item: Item) -> None:
        """Keep *item*, unless it is larger than the whole shelf; where that is too much the worst leave."""
        if item.key in self.held or item.bytes > self.max_bytes:
            return
        self.held[item.key] = item.bytes
        self.used += item.bytes
        self._policy.admit(item)
        if self.used > self.max_bytes:
            for key in self._policy.victims(self.used - int(self.max_bytes * _LOW), {item.key}):
                self._policy.leave(key)
                self.used -= self.held.pop(key)
