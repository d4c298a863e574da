"""The hot tier: stored files held in memory as Arrow, within a hard budget, leased while they are read.

A key names immutable bytes (a stored file's id), so an entry is never stale: it is held or it is not. One record per
entry; the totals change in ``_enter``, ``_remove`` and ``_move`` only. Loading happens outside the lock: look up, join,
re-check, load. What a sweep passes through lies in a ring of its own: see ``rooms``.

The policy is asked under the lock and says what deserves room; it never hears of what is leased, of the ring, or of a sweep.

A tier that *shares* keeps images in sealed memory, so that other processes of this host may map them. Such a process holds a
lease for as long as it maps the image: what it maps counts, whatever was evicted meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

from fletching_server.clock import Clock, SystemClock
from fletching_server.evictions import Eviction, Evictions
from fletching_server.image import Image, shared, unindexed_image
from fletching_server.items import Items
from fletching_server.policy import Item, Policy
from fletching_server.rooms import Entry, Leased, Room, problems
from fletching_server.sealed import WORTH_BYTES, descriptors_to_spend
from fletching_server.snapshot import StoredFile

COUNTERS: Final[dict[str, str]] = {
    "hot_evictions": "Entries that left memory to make room for others.",
    "hot_refused": "Entries that were not let into memory: what they would have displaced is worth more, or is being read.",
    "hot_ring_hits": "Files that a read found in the ring, where a sweep had put or read ahead them.",
}


@dataclass(frozen=True)
class Leaving:
    """What leaves memory for something else: by lineage, the seconds that are expected to be lost, and whether it is enough."""

    lineages: tuple[str, ...] = ()
    seconds: float = 0.0
    enough: bool = True


_MOST_LENT: Final = 0.75  # of a room: what other processes map cannot be evicted, and the server needs room to work
_MOST_RECALLED: Final = 8  # uses of one lineage; that tells what is used daily from what was used once


class Lease:
    """The right to use an image's bytes: they stay counted, and in place, until ``release``.

    *warmed*: the image was put there because somebody was expected to ask, and this is who. Without a tier the image is not
    held: it goes with the lease.
    """

    def __init__(self, tier: HotTier | None, key: str, image: Image, *, lent: bool = False, warmed: bool = False) -> None:
        self._tier, self._key, self._lent = tier, key, lent
        self.image, self.warmed = image, warmed

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        if (tier := self._tier) is not None:
            self._tier = None
            tier._release(self._key, lent=self._lent)  # noqa: SLF001  # the two are one mechanism

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def nothing_to_settle() -> None:
    """Do nothing: no other process maps anything."""


class HotTier:
    """Images by key, at most *max_bytes* of them, loads under way and leased ones included; *ring_bytes* of that for sweeps."""

    def __init__(
        self, max_bytes: int, policy: Policy, *, ring_bytes: int = 0, shares: bool = False, clock: Clock | None = None
    ) -> None:
        self.max_bytes, self.shares = max_bytes, shares
        self._policy, self._clock = policy, clock or SystemClock()
        self.settle: Callable[[], None] = nothing_to_settle  # ends leases that other processes gave back just now
        self._most_descriptors = descriptors_to_spend() if shares else 0
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._leased = Leased(self._entries)
        self._loading: dict[str, Future[None]] = {}
        self._main, self._ring = Room(max_bytes - ring_bytes), Room(ring_bytes)
        self._items, self._evictions = Items(), Evictions()
        self._descriptors = 0
        self._counts = dict.fromkeys(COUNTERS, 0)

    # What may be held

    def item(self, file: StoredFile) -> Item:
        """Return *file* as the policy knows it."""
        return self._items.get(file.key) or self.other(file.key, file.memory_bytes, file.lineage)

    def other(self, key: str, size: int, lineage: str | None = None) -> Item:
        """Return something else to be held: its lineage is its *key*, unless it has one."""
        entry = self._entries.get(key)  # policy and books must mean the same bytes
        return self._items.made(key, lineage or key, size if entry is None else entry.cost)

    def wants_whole(self, item: Item, share: float) -> bool:
        """Return whether the policy would hold this file whole, and the budget could ever do so."""
        with self._lock:
            return item.bytes <= self._main.max_bytes and self._policy.wants_whole(item, share)

    @property
    def main_bytes(self) -> int:
        """What may be held for being asked for again."""
        return self._main.max_bytes

    @property
    def ring_bytes(self) -> int:
        """What the ring may hold."""
        return self._ring.max_bytes

    # Leasing and loading

    def lease(self, item: Item) -> Lease | None:
        """Return a lease on *item*, or None where it is not held; either counts as one use."""
        with self._lock:
            if item.bytes <= self._main.max_bytes:  # else it can never be held, and what is asked of it says nothing
                self._policy.touch(item)
            return self._found(item, ring=False)

    def again(self, key: str) -> Lease | None:
        """Return a lease on what was offered under *key* and is no file; None where it is not held, which is no use either."""
        entry = self._entries.get(key)
        return None if entry is None else self.lease(self._items.get(key) or self.other(key, entry.cost))

    def peek(self, item: Item) -> Lease | None:
        """Return a lease on *item*, or None where it is not held; the policy hears of neither: for sweeps, and for ourselves."""
        with self._lock:
            return self._found(item, ring=True)

    def load(self, item: Item, read: Callable[[], Image], *, ring: bool = False, chance: float | None = None) -> Lease | None:
        """Return a lease on *item*, reading it if needed; None where no room is made for its bytes, so that nothing was read.

        All who want it at the same time share one read, and its error. *ring*: for a sweep. *chance*: nobody has asked for it
        yet, but is expected to with this probability.
        """
        room = self._ring if ring else self._main
        with self._lock:
            if lease := self._found(item, ring=ring, chance=chance):
                return lease
            flight = self._loading.get(item.key)
            mine = flight is None
            if flight is None:
                if not self._make_room(room, item.bytes, item, chance):
                    return None
                flight = self._loading[item.key] = Future()
                room.reserved += item.bytes
        if mine:
            return self._fly(item, read, room, flight, chance)
        flight.result()
        with self._lock:  # None where it was evicted again in between: the caller reads from disk
            return self._found(item, ring=ring, chance=chance)

    def _fly(self, item: Item, read: Callable[[], Image], room: Room, flight: Future[None], chance: float | None) -> Lease:
        size, began = item.bytes, self._clock.monotonic()
        try:
            image = self._shared(read())
            seconds = self._clock.monotonic() - began
            with self._lock:
                self._items.measured(item, image.nbytes, seconds)
                room.reserved -= size
                size = 0
                lease = self._insert(item, image, room, chance)
            flight.set_result(None)
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                room.reserved -= size
                del self._loading[item.key]
            self._evictions.say()
        # Larger than was promised, and refused: passed on to who asked, as reading it again would take no less memory.
        return lease or Lease(None, item.key, replace(image, sealed=None))

    def offer(self, item: Item, image: Image, *, ring: bool = False) -> None:
        """Hold *image* where room is made for it: rows that were just fetched or written are wanted next."""
        room, size = self._ring if ring else self._main, image.nbytes
        item = item._replace(bytes=size)
        with self._lock:
            if item.key in self._entries or size > room.max_bytes:
                return
            if not ring:
                self._policy.touch(item)
            if not self._make_room(room, size, item):
                return
            room.reserved += size
        try:
            image = self._shared(image)
            with self._lock:
                room.reserved -= size
                size = 0
                if lease := self._insert(item, image, room):
                    self._let_go(item.key, lease)
        finally:
            with self._lock:
                room.reserved -= size
            self._evictions.say()

    def lend(self, key: str) -> Lease | None:
        """Return a lease on *key* for another process; None where it is not held in sealed memory, or too much is lent."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None or entry.image.sealed is None else self._lend(key)

    def lend_once(self, table: pa.Table) -> Lease | None:
        """Return a lease, for another process, on *table* in sealed memory that leaves with it; None where that cannot be.

        It displaces nothing but what a sweep has passed through.
        """
        image = self._shared(unindexed_image(table), least_bytes=0)
        if image.sealed is None:
            return None
        with self._lock:
            key = f"once {next(self._numbers)}"
            room = next((room for room in (self._ring, self._main) if self._takes_once(room, image.nbytes)), None)
            if room is None:
                image.sealed.close()
                return None
            self._enter(key, Entry(key, image, image.nbytes, room, known=False, doomed=True))
            return self._lend(key)

    def _shared(self, image: Image, least_bytes: int | None = None) -> Image:
        """Return *image* in sealed memory, where this tier shares, it is worth it, and descriptors are left."""
        least = WORTH_BYTES if least_bytes is None else least_bytes
        worth = self.shares and image.nbytes >= least and self._descriptors < self._most_descriptors
        return shared(image) if worth else image

    # Leaving

    def evict(self, keys: set[str] | None = None) -> int:
        """Let *keys* (None: everything) leave memory, and return the bytes that left; leased ones leave with their lease."""
        self.settle()
        with self._lock:
            before = self._main.held + self._ring.held
            for key in list(self._entries) if keys is None else keys & self._entries.keys():
                self._remove(key)
            return before - self._main.held - self._ring.held

    def drop(self, keys: set[str], lineages: Iterable[str] = ()) -> None:
        """Let *keys* leave for good: their files were superseded. *lineages* will never be asked for again either."""
        self.evict(keys)
        with self._lock:
            for name in (*keys, *lineages):
                self._policy.forget(name)
                self._items.forget(name)

    # Across restarts

    def ranked(self) -> list[tuple[str, dict[str, float]]]:
        """Return the lineages held because they are asked for, those worth most first, and what the policy tells of each."""
        with self._lock:
            keys = self._policy.victims(self._main.max_bytes, ())
            return [(self._entries[key].lineage, self._policy.told(key)) for key in reversed(keys)]

    def recall(self, used: Iterable[tuple[Item, float]]) -> None:
        """Have the policy know that items were used so many times before a restart; those worth least come first."""
        items = [(item, min(max(round(uses), 1), _MOST_RECALLED)) for item, uses in used]
        for turn in range(_MOST_RECALLED):  # all of them in turn: a policy whose time is bytes would forget the first
            for item, uses in items:
                if turn < uses:
                    with self._lock:
                        self._policy.touch(item)

    def would_leave(self, size: int) -> Leaving:
        """Return what would leave for *size* bytes more, and what that is expected to cost whoever asks for it later today."""
        with self._lock:
            excess = self._main.excess(size)
            if excess <= 0:
                return Leaving()
            victims = self._policy.victims(excess, self._leased)
            lineages = tuple(self._entries[key].lineage for key in victims)
            seconds = self._policy.loss(victims)
            return Leaving(lineages, seconds, sum(self._entries[key].cost for key in victims) >= excess)

    def day_ended(self) -> None:
        """Note that a session is over."""
        with self._lock:
            self._policy.day_ended()

    def has_room(self, size: int) -> bool:
        """Return whether *size* bytes fit without anything leaving."""
        with self._lock:
            return self._main.excess(size) <= 0

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return bool(self._loading)

    # Looking

    def ranking(self) -> dict[str, object]:
        """Return which ranking decides what leaves, and what each would have saved lately where there are several."""
        with self._lock:
            return self._policy.facts()

    def facts(self) -> dict[str, int]:
        """Return bytes held, reserved and leased, the budget, and how many entries, leases and evictions there are."""
        with self._lock:
            leased = [entry for entry in self._entries.values() if entry.leases]
            return {
                "hot_bytes": self._main.held + self._ring.held,
                "hot_reserved_bytes": self._main.reserved + self._ring.reserved,
                "hot_leased_bytes": sum(entry.cost for entry in leased),
                "hot_max_bytes": self.max_bytes,
                "hot_ring_bytes": self._ring.held,
                "hot_entries": len(self._entries),
                "hot_leases": sum(entry.leases for entry in leased),
                "hot_lent_bytes": self._main.lent + self._ring.lent,
                "hot_lent_leases": sum(entry.lent for entry in leased),
                "hot_descriptors": self._descriptors,
                **self._counts,
            }

    def evictions(self) -> pa.Table:
        """Return what left memory lately to make room, and why it rather than something else; the newest first."""
        return self._evictions.table()

    def holds(self, key: str) -> bool:
        """Return whether *key* is in memory, without counting as a use."""
        return key in self._entries

    def check(self) -> list[str]:
        """Return what is wrong with the books: nothing, unless there is a bug."""
        with self._lock:
            return list(problems(self._entries, self._main, self._ring, self._descriptors))

    # What follows runs under the lock and does no I/O.

    def _lease(self, key: str, entry: Entry) -> Lease:
        entry.leases += 1
        return Lease(self, key, entry.image)

    def _found(self, item: Item, *, ring: bool, chance: float | None = None) -> Lease | None:
        """Return a lease where *item* is held; for who is no sweep it moves out of the ring, if the policy permits."""
        entry = self._entries.get(item.key)
        if entry is None:
            return None
        if entry.room is self._ring:
            self._counts["hot_ring_hits"] += 1
            if not ring:
                self._move(item, entry, chance)
        entry.leases += 1
        if entry.warmed and chance is None:
            entry.warmed = False
            return Lease(self, item.key, entry.image, warmed=True)
        return Lease(self, item.key, entry.image)

    def _insert(self, item: Item, image: Image, room: Room, chance: float | None = None) -> Lease | None:
        entry = self._entries.get(item.key)
        if entry is not None or not self._make_room(room, image.nbytes, item, chance):
            if image.sealed is not None:
                image.sealed.close()
            # Offered while it was being read: two records of one key would spoil the books.
            return None if entry is None else self._lease(item.key, entry)
        entry = Entry(item.lineage, image, image.nbytes, room, known=room is self._main, warmed=chance is not None)
        self._enter(item.key, entry)
        if entry.known:
            self._admit(item, entry, chance)
        return self._lease(item.key, entry)

    def _enter(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry
        entry.room.keys[key] = None
        entry.room.held += entry.cost
        self._descriptors += entry.image.sealed is not None

    def _move(self, item: Item, entry: Entry, chance: float | None) -> None:
        """Move *entry* from the ring to the main room, where that is possible."""
        if entry.doomed or entry.lent or not self._make_room(self._main, entry.cost, item, chance):
            return
        for room, sign in ((self._ring, -1), (self._main, 1)):
            room.held += sign * entry.cost
        del self._ring.keys[item.key]
        self._main.keys[item.key] = None
        entry.room, entry.known = self._main, True
        self._admit(item, entry, chance)

    def _admit(self, item: Item, entry: Entry, chance: float | None) -> None:
        self._policy.admit(item._replace(bytes=entry.cost), chance)
        self._items.forget(item.key)  # it has the bytes that were promised in it

    def _make_room(self, room: Room, size: int, item: Item, chance: float | None = None) -> bool:
        """Evict until *size* bytes fit; False, with nothing evicted, where *item* is not worth it or too little can leave."""
        excess = room.excess(size)
        if excess <= 0:
            return True
        if size > room.max_bytes:
            return False
        victims = self._oldest(excess) if room is self._ring else self._policy.victims(excess, self._leased)
        freed = sum(self._entries[key].cost for key in victims)
        if freed < excess or (room is self._main and not self._policy.beats(item, victims, chance)):
            self._counts["hot_refused"] += room is self._main
            return False
        for key in victims:
            if room is self._main:
                self._explain(key, item)
            self._remove(key)
        return True

    def _oldest(self, excess: int) -> list[str]:
        found = list[str]()
        for key in self._ring.keys:
            if excess <= 0:
                break
            if not self._entries[key].leases:
                found.append(key)
                excess -= self._entries[key].cost
        return found

    def _takes_once(self, room: Room, size: int) -> bool:
        if room is self._main:
            return room.excess(size) <= 0 and room.lent + size <= room.max_bytes * _MOST_LENT
        fits = room.lent + size <= room.max_bytes * _MOST_LENT
        return fits and self._make_room(room, size, Item("", "", size, 0.0))

    def _explain(self, key: str, item: Item) -> None:
        left = self._entries[key]
        at = self._clock.now().timestamp()
        self._evictions.add(Eviction(at, left.lineage, key, left.cost, self._policy.told(key), item.lineage))
        self._counts["hot_evictions"] += 1

    def _remove(self, key: str) -> None:
        entry = self._entries[key]
        if entry.leases:
            entry.doomed = True
            return
        del self._entries[key]
        del entry.room.keys[key]
        entry.room.held -= entry.cost
        if entry.known:
            self._policy.leave(key)
        if entry.image.sealed is not None:
            self._descriptors -= 1
            entry.image.sealed.close()

    def _let_go(self, key: str, lease: Lease) -> None:
        lease._tier = None  # noqa: SLF001  # released here, under the lock that release() would take
        self._settle(key)

    def _settle(self, key: str) -> None:
        entry = self._entries[key]
        entry.leases -= 1
        if entry.doomed and not entry.leases:
            self._remove(key)

    def _release(self, key: str, *, lent: bool) -> None:
        with self._lock:
            entry = self._entries[key]
            entry.lent -= lent
            if lent and not entry.lent:
                entry.room.lent -= entry.cost
            self._settle(key)

    def _lend(self, key: str) -> Lease | None:
        entry = self._entries[key]
        room = entry.room
        if not entry.lent and room.lent + entry.cost > room.max_bytes * _MOST_LENT:
            return None
        if not entry.lent:
            room.lent += entry.cost
        entry.lent += 1
        entry.leases += 1
        return Lease(self, key, entry.image, lent=True)
