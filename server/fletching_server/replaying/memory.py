"""The hot tier without bytes: what the policy holds, and the ring that sweeps go through."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from fletching_server.policy import Item, Policy

RING_SHARE: Final = 1 / 12  # of the budget


class Memory:
    """Keys and sizes within *max_bytes*, of which the ring has its share where there is one."""

    def __init__(self, max_bytes: int, policy: Policy, ring_bytes: int) -> None:
        self.policy, self.ring_bytes = policy, ring_bytes
        self.max_bytes = max_bytes - ring_bytes
        self.held: dict[str, int] = {}
        self.ring: OrderedDict[str, int] = OrderedDict()
        self.used = self.ring_used = 0
        self.evicted: list[str] = []  # since somebody looked

    def holds(self, key: str) -> bool:
        """Return whether *key* is in memory."""
        return key in self.held or key in self.ring

    def offer(self, item: Item, chance: float | None = None) -> bool:
        """Hold *item* where the policy finds it worth what has to leave; return whether it is held."""
        if item.key in self.held:
            self._resize(item)
            if item.key in self.held:
                self.policy.admit(item, chance)
            return item.key in self.held
        if item.bytes > self.max_bytes:
            return False
        excess = self.used + item.bytes - self.max_bytes
        victims = self.policy.victims(excess, ()) if excess > 0 else []
        if not self.policy.beats(item, victims, chance):
            return False
        for key in victims:
            self._evict(key)
        self.held[item.key] = item.bytes
        self.used += item.bytes
        self.policy.admit(item, chance)
        return True

    def _resize(self, item: Item) -> None:
        self.used += item.bytes - self.held[item.key]
        self.held[item.key] = item.bytes
        if item.bytes > self.max_bytes:
            self._evict(item.key)
        elif self.used > self.max_bytes:
            for key in self.policy.victims(self.used - self.max_bytes, {item.key}):
                self._evict(key)

    def _evict(self, key: str) -> None:
        self.policy.leave(key)
        self.used -= self.held.pop(key)
        self.evicted.append(key)

    def pass_through(self, key: str, size: int) -> None:
        """Put *key* into the ring, where the oldest leaves for it."""
        if self.holds(key) or size > self.ring_bytes:
            return
        while self.ring_used + size > self.ring_bytes:
            gone, bytes_ = self.ring.popitem(last=False)
            self.ring_used -= bytes_
            self.evicted.append(gone)
        self.ring[key] = size
        self.ring_used += size

    def passed(self, key: str) -> None:
        """Note that a sweep has read *key*, which lies in the ring: it leaves first."""
        self.ring.move_to_end(key, last=False)

    def promote(self, item: Item) -> None:
        """Let *item*, which lies in the ring and was wanted by somebody who is no sweep, be held like any other."""
        size = self.ring.pop(item.key)
        self.ring_used -= size
        if not self.offer(item):
            self.pass_through(item.key, size)
