"""The hot tier: stored files held in memory as Arrow, within a hard budget, leased while they are read.

A key names immutable bytes (a stored file's id), so an entry is never stale: it is held or it is not. One record per
entry; the totals change in ``_insert`` and ``_remove`` only. Loading happens outside the lock: look up, join, re-check,
load.

A tier that *shares* keeps images in sealed memory, so that other processes of this host may map them. Such a process holds a
lease for as long as it maps the image: what it maps counts, whatever was evicted meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

from fletching_server.image import Image, shared, unindexed_image
from fletching_server.policy import Policy
from fletching_server.sealed import WORTH_BYTES, descriptors_to_spend

_MOST_LENT: Final = 0.75  # of the budget: what other processes map cannot be evicted, and the server needs room to work


@dataclass
class _Entry:
    image: Image
    cost: int
    leases: int = 0
    lent: int = 0  # so many of the leases are those of other processes
    doomed: bool = False  # evicted or superseded while leased: it leaves with its last lease, and can be leased until then


class Lease:
    """The right to use an image's bytes: they stay counted, and in place, until ``release``."""

    def __init__(self, tier: HotTier, key: str, image: Image, *, lent: bool = False) -> None:
        self._tier, self._key, self._lent = tier, key, lent
        self.image = image
        self._open = True

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        if self._open:
            self._open = False
            self._tier._release(self._key, lent=self._lent)  # noqa: SLF001  # the two are one mechanism

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def nothing_to_settle() -> None:
    """Do nothing: no other process maps anything."""


class HotTier:
    """Images by key, at most *max_bytes* of them, loads under way and leased ones included."""

    def __init__(self, max_bytes: int, policy: Policy, *, shares: bool = False) -> None:
        self.max_bytes, self.shares = max_bytes, shares
        self._policy = policy
        self.settle: Callable[[], None] = nothing_to_settle  # ends leases that other processes gave back just now
        self._most_descriptors = descriptors_to_spend() if shares else 0
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._loading: dict[str, Future[None]] = {}
        self._held = self._reserved = self._lent = 0
        self._descriptors = self._evictions = 0

    def lease(self, key: str) -> Lease | None:
        """Return a lease on *key*, or None where it is not held; either counts as one use."""
        with self._lock:
            self._policy.touch(key)
            return self._lease(key)

    def wants_whole(self, key: str, size: int, share: float) -> bool:
        """Return whether the policy would hold this file whole, and the budget could ever do so."""
        with self._lock:
            return size <= self.max_bytes and self._policy.wants_whole(key, size, share)

    def load(self, key: str, size: int, read: Callable[[], Image]) -> Lease | None:
        """Return a lease on *key*, reading it if needed; None where no room can be made for *size* bytes.

        All who want a key at the same time share one read, and its error.
        """
        with self._lock:
            if (lease := self._lease(key)) or not (self._loading.get(key) or self._make_room(size)):
                return lease
            flight = self._loading.get(key)
            mine = flight is None
            if flight is None:
                flight = self._loading[key] = Future()
                self._reserved += size
        if not mine:
            flight.result()
            return self.lease(key)  # None where it was evicted again in between: the caller reads from disk
        return self._fly(key, size, read, flight)

    def _fly(self, key: str, size: int, read: Callable[[], Image], flight: Future[None]) -> Lease | None:
        lease: Lease | None = None
        try:
            image = self._shared(read())
            with self._lock:
                self._reserved -= size
                size = 0
                lease = self._insert(key, image)
            flight.set_result(None)
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                self._reserved -= size
                del self._loading[key]
        return lease

    def offer(self, key: str, image: Image) -> None:
        """Hold *image* where room can be made for it: rows that were just fetched or written are wanted next."""
        if key in self._entries or image.nbytes > self.max_bytes:
            return
        image = self._shared(image)
        with self._lock:
            if lease := self._insert(key, image):
                self._policy.touch(key)
                self._let_go(key, lease)

    def lend(self, key: str) -> Lease | None:
        """Return a lease on *key* for another process; None where it is not held in sealed memory, or too much is lent."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None or entry.image.sealed is None else self._lend(key)

    def lend_once(self, table: pa.Table) -> Lease | None:
        """Return a lease, for another process, on *table* in sealed memory that leaves with it; None where that cannot be."""
        image = self._shared(unindexed_image(table), least_bytes=0)
        if image.sealed is None:
            return None
        with self._lock:
            key = f"once {next(self._numbers)}"
            lease = self._insert(key, image)
            if lease is None:
                return None
            self._entries[key].doomed = True
            lent = self._lend(key)
            self._let_go(key, lease)
            return lent

    def _shared(self, image: Image, least_bytes: int | None = None) -> Image:
        """Return *image* in sealed memory, where this tier shares, it is worth it, and descriptors are left."""
        least = WORTH_BYTES if least_bytes is None else least_bytes
        worth = self.shares and image.nbytes >= least and self._descriptors < self._most_descriptors
        return shared(image) if worth else image

    def evict(self, keys: set[str] | None = None) -> int:
        """Let *keys* (None: everything) leave memory, and return the bytes that left; leased ones leave with their lease."""
        self.settle()
        with self._lock:
            before = self._held
            for key in list(self._entries) if keys is None else keys & self._entries.keys():
                self._remove(key)
            return before - self._held

    def drop(self, keys: set[str]) -> None:
        """Forget *keys* for good: their files were superseded."""
        self.evict(keys)
        with self._lock:
            for key in keys:
                self._policy.forget(key)

    def facts(self) -> dict[str, int]:
        """Return bytes held, reserved and leased, the budget, and how many entries, leases and evictions there are."""
        with self._lock:
            leased = [entry for entry in self._entries.values() if entry.leases]
            return {
                "hot_bytes": self._held,
                "hot_reserved_bytes": self._reserved,
                "hot_leased_bytes": sum(entry.cost for entry in leased),
                "hot_max_bytes": self.max_bytes,
                "hot_entries": len(self._entries),
                "hot_leases": sum(entry.leases for entry in leased),
                "hot_lent_bytes": self._lent,
                "hot_lent_leases": sum(entry.lent for entry in leased),
                "hot_descriptors": self._descriptors,
                "hot_evictions": self._evictions,
            }

    def holds(self, key: str) -> bool:
        """Return whether *key* is in memory, without counting as a use."""
        return key in self._entries

    def check(self) -> list[str]:
        """Return what is wrong with the books: nothing, unless there is a bug."""
        with self._lock:
            owned = sum(entry.image.nbytes for entry in self._entries.values())
            problems = [] if owned == self._held else [f"hot tier counts {self._held} bytes and holds {owned}"]
            if self._held + self._reserved > self.max_bytes:
                problems.append(f"hot tier holds {self._held} + {self._reserved} of {self.max_bytes} bytes")
            lent = sum(entry.cost for entry in self._entries.values() if entry.lent)
            if lent != self._lent:
                problems.append(f"hot tier counts {self._lent} lent bytes and lends {lent}")
            descriptors = sum(entry.image.sealed is not None for entry in self._entries.values())
            if descriptors != self._descriptors:
                problems.append(f"hot tier counts {self._descriptors} descriptors and holds {descriptors}")
            return problems

    # What follows runs under the lock and does no I/O.

    def _lease(self, key: str) -> Lease | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.leases += 1
        return Lease(self, key, entry.image)

    def _insert(self, key: str, image: Image) -> Lease | None:
        lease = self._lease(key)  # offered while it was being read: two records of one key would spoil the books
        if lease is not None or not self._make_room(image.nbytes):
            if image.sealed is not None:
                image.sealed.close()
            return lease
        self._entries[key] = _Entry(image, image.nbytes)
        self._policy.admit(key)
        self._held += image.nbytes
        self._descriptors += image.sealed is not None
        return self._lease(key)

    def _make_room(self, size: int) -> bool:
        """Evict until *size* bytes fit; False, with nothing evicted, where leases and loads leave too little."""
        excess = self._held + self._reserved + size - self.max_bytes
        if excess <= 0:
            return True
        if sum(entry.cost for entry in self._entries.values() if not entry.leases) < excess:
            return False
        victims = []
        for key in self._policy.coldest_first():
            if excess <= 0:
                break
            if not self._entries[key].leases:
                victims.append(key)
                excess -= self._entries[key].cost
        for key in victims:
            self._remove(key)
        self._evictions += len(victims)
        return True

    def _remove(self, key: str) -> None:
        entry = self._entries[key]
        if entry.leases:
            entry.doomed = True
            return
        del self._entries[key]
        self._policy.leave(key)
        self._held -= entry.cost
        if entry.image.sealed is not None:
            self._descriptors -= 1
            entry.image.sealed.close()

    def _let_go(self, key: str, lease: Lease) -> None:
        lease._open = False  # noqa: SLF001  # released here, under the lock that release() would take
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
                self._lent -= entry.cost
            self._settle(key)

    def _lend(self, key: str) -> Lease | None:
        entry = self._entries[key]
        if not entry.lent and self._lent + entry.cost > self.max_bytes * _MOST_LENT:
            return None
        if not entry.lent:
            self._lent += entry.cost
        entry.lent += 1
        entry.leases += 1
        return Lease(self, key, entry.image, lent=True)
