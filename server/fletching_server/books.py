"""The books of the hot tier: which images lie in which room, who leases them, and what leaves for what.

One record per entry; the totals change in ``_enter``, ``remove`` and ``_move`` only. All of it runs under one lock and does no
I/O. The policy is asked what deserves room; it never hears of what is leased, of the ring, or of a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Final

from fletching_server.clock import Clock
from fletching_server.evictions import Eviction, Evictions
from fletching_server.image import Image
from fletching_server.items import Items
from fletching_server.leases import Lease
from fletching_server.policy import Item, Policy
from fletching_server.rooms import Entry, Leased, Room, problems

COUNTERS: Final[dict[str, str]] = {
    "hot_evictions": "Entries that left memory to make room for others.",
    "hot_refused": "Entries that were not let into memory: what they would have displaced is worth more, or is being read.",
    "hot_ring_hits": "Files that a read found in the ring, where a sweep had put or read ahead them.",
}


_MOST_LENT: Final = 0.75  # of a room: what other processes map cannot be evicted, and the server needs room to work


@dataclass(frozen=True)
class Leaving:
    """What leaves memory for something else: by lineage, the seconds that are expected to be lost, and whether it is enough."""

    lineages: tuple[str, ...] = ()
    seconds: float = 0.0
    enough: bool = True


class Books:
    """The entries of one tier in its two rooms. Whoever calls holds the ``lock``; looking something up by key needs none."""

    def __init__(self, main: Room, ring: Room, policy: Policy, clock: Clock) -> None:
        self.lock = Lock()
        self.main, self.ring, self.policy, self._clock = main, ring, policy, clock
        self.entries: dict[str, Entry] = {}
        self.items, self.evictions = Items(), Evictions()
        self.descriptors = 0
        self._leased = Leased(self.entries)
        self._numbers = count(1)
        self._counts = dict.fromkeys(COUNTERS, 0)

    # Finding and coming

    def found(self, item: Item, *, ring: bool, chance: float | None = None) -> Lease | None:
        """Return a lease where *item* is held; for who is no sweep it moves out of the ring, if the policy permits."""
        entry = self.entries.get(item.key)
        if entry is None:
            return None
        if entry.room is self.ring:
            self._counts["hot_ring_hits"] += 1
            if not ring:
                self._move(item, entry, chance)
        entry.leases += 1
        if entry.warmed and chance is None:
            entry.warmed = False
            return Lease(self, item.key, entry.image, warmed=True)
        return Lease(self, item.key, entry.image)

    def insert(self, item: Item, image: Image, room: Room, chance: float | None = None) -> Lease | None:
        """Return a lease on *image*, which is held from now on; None where no room is made for it."""
        entry = self.entries.get(item.key)
        if entry is not None or not self.make_room(room, image.nbytes, item, chance):
            if image.sealed is not None:
                image.sealed.close()
            # Offered while it was being read: two records of one key would spoil the books.
            return None if entry is None else self._lease(item.key, entry)
        entry = Entry(item.lineage, image, image.nbytes, room, known=room is self.main, warmed=chance is not None)
        self._enter(item.key, entry)
        if entry.known:
            self._admit(item, entry, chance)
        return self._lease(item.key, entry)

    def _lease(self, key: str, entry: Entry) -> Lease:
        entry.leases += 1
        return Lease(self, key, entry.image)

    def _enter(self, key: str, entry: Entry) -> None:
        self.entries[key] = entry
        entry.room.keys[key] = None
        entry.room.held += entry.cost
        self.descriptors += entry.image.sealed is not None

    def _move(self, item: Item, entry: Entry, chance: float | None) -> None:
        """Move *entry* from the ring to the main room, where that is possible."""
        if entry.doomed or entry.lent or not self.make_room(self.main, entry.cost, item, chance):
            return
        for room, sign in ((self.ring, -1), (self.main, 1)):
            room.held += sign * entry.cost
        del self.ring.keys[item.key]
        self.main.keys[item.key] = None
        entry.room, entry.known = self.main, True
        self._admit(item, entry, chance)

    def expect(self, item: Item, chance: float) -> None:
        """Have the policy know that *item* is expected, where it holds it: not what a sweep passed through, or what leaves."""
        entry = self.entries.get(item.key)
        if entry is not None and entry.known and not entry.doomed:
            self._admit(item, entry, chance)

    def _admit(self, item: Item, entry: Entry, chance: float | None) -> None:
        self.policy.admit(item._replace(bytes=entry.cost), chance)
        self.items.forget(item.key)  # it has the bytes that were promised in it

    # Leaving

    def make_room(self, room: Room, size: int, item: Item, chance: float | None = None) -> bool:
        """Evict until *size* bytes fit; False, with nothing evicted, where *item* is not worth it or too little can leave."""
        excess = room.excess(size)
        if excess <= 0:
            return True
        if size > room.max_bytes:
            return False
        victims = self._oldest(excess) if room is self.ring else self.policy.victims(excess, self._leased)
        freed = sum(self.entries[key].cost for key in victims)
        if freed < excess or (room is self.main and not self.policy.beats(item, victims, chance)):
            self._counts["hot_refused"] += room is self.main
            return False
        for key in victims:
            if room is self.main:
                self._explain(key, item)
            self.remove(key)
        return True

    def _oldest(self, excess: int) -> list[str]:
        found = list[str]()
        for key in self.ring.keys:
            if excess <= 0:
                break
            if not self.entries[key].leases:
                found.append(key)
                excess -= self.entries[key].cost
        return found

    def _explain(self, key: str, item: Item) -> None:
        left = self.entries[key]
        at = self._clock.now().timestamp()
        self.evictions.add(Eviction(at, left.lineage, key, left.cost, self.policy.told(key), item.lineage))
        self._counts["hot_evictions"] += 1

    def remove(self, key: str) -> None:
        """Let *key* leave: now, or with its last lease."""
        entry = self.entries[key]
        if entry.leases:
            entry.doomed = True
            return
        del self.entries[key]
        del entry.room.keys[key]
        entry.room.held -= entry.cost
        if entry.known:
            self.policy.leave(key)
        if entry.image.sealed is not None:
            self.descriptors -= 1
            entry.image.sealed.close()

    def released(self, key: str, *, lent: bool) -> None:
        """Note that a lease on *key* has ended."""
        entry = self.entries[key]
        entry.lent -= lent
        if lent and not entry.lent:
            entry.room.lent -= entry.cost
        self.settle(key)

    def settle(self, key: str) -> None:
        """Let *key* go with its last lease where it was evicted meanwhile."""
        entry = self.entries[key]
        entry.leases -= 1
        if entry.doomed and not entry.leases:
            self.remove(key)

    # Lending to other processes

    def lend(self, key: str) -> Lease | None:
        """Return a lease on *key* for another process; None where it is not held in sealed memory, or too much is lent."""
        entry = self.entries.get(key)
        if entry is None or entry.image.sealed is None:
            return None
        room = entry.room
        if not entry.lent and room.lent + entry.cost > room.max_bytes * _MOST_LENT:
            return None
        if not entry.lent:
            room.lent += entry.cost
        entry.lent += 1
        entry.leases += 1
        return Lease(self, key, entry.image, lent=True)

    def lend_once(self, image: Image) -> Lease | None:
        """Return a lease, for another process, on *image*, which leaves with it; None where no room takes it."""
        room = next((room for room in (self.ring, self.main) if self._takes_once(room, image.nbytes)), None)
        if room is None:
            return None
        key = f"once {next(self._numbers)}"
        self._enter(key, Entry(key, image, image.nbytes, room, known=False, doomed=True))
        return self.lend(key)

    def _takes_once(self, room: Room, size: int) -> bool:
        """Return whether *room* takes so many bytes for once; nothing leaves the main room for them."""
        if room is self.main:
            return room.excess(size) <= 0 and room.lent + size <= room.max_bytes * _MOST_LENT
        fits = room.lent + size <= room.max_bytes * _MOST_LENT
        return fits and self.make_room(room, size, Item("", "", size, 0.0))

    # Looking

    def ranked(self) -> list[tuple[str, dict[str, float]]]:
        """Return the lineages held because they are asked for, those worth most first, and what the policy tells of each."""
        keys = self.policy.victims(self.main.max_bytes, ())
        return [(self.entries[key].lineage, self.policy.told(key)) for key in reversed(keys)]

    def would_leave(self, size: int) -> Leaving:
        """Return what would leave for *size* bytes more, and what that is expected to cost whoever asks for it later today."""
        excess = self.main.excess(size)
        if excess <= 0:
            return Leaving()
        victims = self.policy.victims(excess, self._leased)
        lineages = tuple(self.entries[key].lineage for key in victims)
        seconds = self.policy.loss(victims)
        return Leaving(lineages, seconds, sum(self.entries[key].cost for key in victims) >= excess)

    @property
    def held(self) -> int:
        """The bytes of all entries."""
        return self.main.held + self.ring.held

    def facts(self) -> dict[str, int]:
        """Return bytes held, reserved and leased, the budget, and how many entries, leases and evictions there are."""
        leased = [entry for entry in self.entries.values() if entry.leases]
        return {
            "hot_bytes": self.held,
            "hot_reserved_bytes": self.main.reserved + self.ring.reserved,
            "hot_leased_bytes": sum(entry.cost for entry in leased),
            "hot_max_bytes": self.main.max_bytes + self.ring.max_bytes,
            "hot_ring_bytes": self.ring.held,
            "hot_entries": len(self.entries),
            "hot_leases": sum(entry.leases for entry in leased),
            "hot_lent_bytes": self.main.lent + self.ring.lent,
            "hot_lent_leases": sum(entry.lent for entry in leased),
            "hot_descriptors": self.descriptors,
            **self._counts,
        }

    def problems(self) -> list[str]:
        """Return what is wrong: nothing, unless there is a bug."""
        return list(problems(self.entries, self.main, self.ring, self.descriptors))
