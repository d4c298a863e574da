"""The hot tier: stored files held in memory as Arrow, within a hard budget, leased while they are read.

A key names immutable bytes (a stored file's id), so an entry is never stale: it is held or it is not. Who holds and leases
what stands in the ``books``, which are kept under the lock and do no I/O. Loading happens outside the lock: look up, join,
re-check, load. What a sweep passes through lies in a ring of its own: see ``rooms``.

A tier that *shares* keeps images in sealed memory, so that other processes of this host may map them. Such a process holds a
lease for as long as it maps the image: what it maps counts, whatever was evicted meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

import pyarrow as pa

from fletching_server.books import Books, Leaving
from fletching_server.clock import Clock, SystemClock
from fletching_server.image import Image, shared, unindexed_image
from fletching_server.leases import Lease
from fletching_server.policy import Item, Policy
from fletching_server.rooms import Room
from fletching_server.sealed import WORTH_BYTES, descriptors_to_spend
from fletching_server.snapshot import StoredFile

_MOST_RECALLED: Final = 8  # uses of one lineage; that tells what is used daily from what was used once


def nothing_to_settle() -> None:
    """Do nothing: no other process maps anything."""


class HotTier:
    """Images by key, at most *max_bytes* of them, loads under way and leased ones included; *ring_bytes* of that for sweeps."""

    def __init__(
        self, max_bytes: int, policy: Policy, *, ring_bytes: int = 0, shares: bool = False, clock: Clock | None = None
    ) -> None:
        self.max_bytes, self.shares = max_bytes, shares
        self._policy, self._clock = policy, clock or SystemClock()
        self._main, self._ring = Room(max_bytes - ring_bytes), Room(ring_bytes)
        self._books = Books(self._main, self._ring, policy, self._clock)
        self._lock = self._books.lock
        self.settle: Callable[[], None] = nothing_to_settle  # ends leases that other processes gave back just now
        self._most_descriptors = descriptors_to_spend() if shares else 0
        self._loading: dict[str, Future[None]] = {}

    # What may be held

    def item(self, file: StoredFile) -> Item:
        """Return *file* as the policy knows it."""
        return self._books.items.get(file.key) or self.other(file.key, file.memory_bytes, file.lineage)

    def other(self, key: str, size: int, lineage: str | None = None) -> Item:
        """Return something else to be held: its lineage is its *key*, unless it has one."""
        entry = self._books.entries.get(key)  # policy and books must mean the same bytes
        return self._books.items.made(key, lineage or key, size if entry is None else entry.cost)

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
            return self._books.found(item, ring=False)

    def again(self, key: str) -> Lease | None:
        """Return a lease on what was offered under *key* and is no file; None where it is not held, which is no use either."""
        entry = self._books.entries.get(key)
        return None if entry is None else self.lease(self._books.items.get(key) or self.other(key, entry.cost))

    def peek(self, item: Item) -> Lease | None:
        """Return a lease on *item*, or None where it is not held; the policy hears of neither: for sweeps, and for ourselves."""
        with self._lock:
            return self._books.found(item, ring=True)

    def load(self, item: Item, read: Callable[[], Image], *, ring: bool = False, chance: float | None = None) -> Lease | None:
        """Return a lease on *item*, reading it if needed; None where no room is made for its bytes, so that nothing was read.

        All who want it at the same time share one read, and its error. *ring*: for a sweep. *chance*: nobody has asked for it
        yet, but is expected to with this probability.
        """
        room = self._ring if ring else self._main
        with self._lock:
            if lease := self._books.found(item, ring=ring, chance=chance):
                return lease
            flight = self._loading.get(item.key)
            mine = flight is None
            if flight is None:
                if not self._books.make_room(room, item.bytes, item, chance):
                    return None
                flight = self._loading[item.key] = Future()
                room.reserved += item.bytes
        if mine:
            return self._fly(item, read, room, flight, chance)
        flight.result()
        with self._lock:  # None where it was evicted again in between: the caller reads from disk
            return self._books.found(item, ring=ring, chance=chance)

    def _fly(self, item: Item, read: Callable[[], Image], room: Room, flight: Future[None], chance: float | None) -> Lease:
        size, began = item.bytes, self._clock.monotonic()
        try:
            image = self._shared(read())
            seconds = self._clock.monotonic() - began
            with self._lock:
                self._books.items.measured(item, image.nbytes, seconds)
                room.reserved -= size
                size = 0
                lease = self._books.insert(item, image, room, chance)
            flight.set_result(None)
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                room.reserved -= size
                del self._loading[item.key]
            self._books.evictions.say()
        # Larger than was promised, and refused: passed on to who asked, as reading it again would take no less memory.
        return lease or Lease(None, item.key, replace(image, sealed=None))

    def offer(self, item: Item, image: Image, *, ring: bool = False) -> None:
        """Hold *image* where room is made for it: rows that were just fetched or written are wanted next."""
        room, size = self._ring if ring else self._main, image.nbytes
        item = item._replace(bytes=size)
        with self._lock:
            if item.key in self._books.entries or size > room.max_bytes:
                return
            if not ring:
                self._policy.touch(item)
            if not self._books.make_room(room, size, item):
                return
            room.reserved += size
        try:
            image = self._shared(image)
            with self._lock:
                room.reserved -= size
                size = 0
                if self._books.insert(item, image, room):
                    self._books.settle(item.key)  # the lease is let go, under the lock that releasing it would take
        finally:
            with self._lock:
                room.reserved -= size
            self._books.evictions.say()

    def lend(self, key: str) -> Lease | None:
        """Return a lease on *key* for another process; None where it is not held in sealed memory, or too much is lent."""
        with self._lock:
            return self._books.lend(key)

    def lend_once(self, table: pa.Table) -> Lease | None:
        """Return a lease, for another process, on *table* in sealed memory that leaves with it; None where that cannot be.

        It displaces nothing but what a sweep has passed through.
        """
        image = self._shared(unindexed_image(table), least_bytes=0)
        if image.sealed is None:
            return None
        with self._lock:
            lease = self._books.lend_once(image)
        if lease is None:
            image.sealed.close()
        return lease

    def _shared(self, image: Image, least_bytes: int | None = None) -> Image:
        """Return *image* in sealed memory, where this tier shares, it is worth it, and descriptors are left."""
        least = WORTH_BYTES if least_bytes is None else least_bytes
        worth = self.shares and image.nbytes >= least and self._books.descriptors < self._most_descriptors
        return shared(image) if worth else image

    # Leaving

    def evict(self, keys: set[str] | None = None) -> int:
        """Let *keys* (None: everything) leave memory, and return the bytes that left; leased ones leave with their lease."""
        self.settle()
        with self._lock:
            before = self._books.held
            for key in list(self._books.entries) if keys is None else keys & self._books.entries.keys():
                self._books.remove(key)
            return before - self._books.held

    def drop(self, keys: set[str], lineages: Iterable[str] = ()) -> None:
        """Let *keys* leave for good: their files were superseded. *lineages* will never be asked for again either."""
        self.evict(keys)
        with self._lock:
            for name in (*keys, *lineages):
                self._policy.forget(name)
                self._books.items.forget(name)

    # Across restarts

    def ranked(self) -> list[tuple[str, dict[str, float]]]:
        """Return the lineages held because they are asked for, those worth most first, and what the policy tells of each."""
        with self._lock:
            return self._books.ranked()

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
            return self._books.would_leave(size)

    def lineages(self) -> list[str]:
        """Return the lineages of all that is held."""
        with self._lock:
            return [entry.lineage for entry in self._books.entries.values()]

    def foresee(self, chances: Mapping[str, float]) -> None:
        """Have the policy know, by lineage, how likely something is asked for today."""
        with self._lock:
            self._policy.foresee(chances)

    def expect(self, item: Item, chance: float) -> None:
        """Note that *item*, where it is held, is asked for today with this probability: it had better stay until then."""
        with self._lock:
            self._books.expect(item, chance)

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
            return self._books.facts()

    def evictions(self) -> pa.Table:
        """Return what left memory lately to make room, and why it rather than something else; the newest first."""
        return self._books.evictions.table()

    def holds(self, key: str) -> bool:
        """Return whether *key* is in memory, without counting as a use."""
        return key in self._books.entries

    def check(self) -> list[str]:
        """Return what is wrong with the books: nothing, unless there is a bug."""
        with self._lock:
            return self._books.problems()
