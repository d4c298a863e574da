"""The hot tier: stored files held in memory as Arrow, within a hard budget, leased while they are read.

A key names immutable bytes (a stored file's id), so an entry is never stale: it is held or it is not. One record per
entry; the totals change in ``_insert`` and ``_remove`` only. Loading happens outside the lock: look up, join, re-check,
load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fletching_server.image import Image
from fletching_server.policy import Policy


@dataclass
class _Entry:
    image: Image
    cost: int
    leases: int = 0
    doomed: bool = False  # evicted or superseded while leased: it leaves with its last lease, and can be leased until then


class Lease:
    """The right to use an image's bytes: they stay counted, and in place, until ``release``."""

    def __init__(self, tier: HotTier, key: str, image: Image) -> None:
        self._tier, self._key = tier, key
        self.image = image
        self._open = True

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        if self._open:
            self._open = False
            self._tier._release(self._key)  # noqa: SLF001  # the two are one mechanism

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class HotTier:
    """Images by key, at most *max_bytes* of them, loads under way and leased ones included."""

    def __init__(self, max_bytes: int, policy: Policy) -> None:
        self.max_bytes = max_bytes
        self._policy = policy
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._loading: dict[str, Future[None]] = {}
        self._held = 0
        self._reserved = 0
        self._evictions = 0

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
            image = read()
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
        with self._lock:
            if key not in self._entries and (lease := self._insert(key, image)):
                self._policy.touch(key)
                self._let_go(key, lease)

    def evict(self, keys: set[str] | None = None) -> int:
        """Let *keys* (None: everything) leave memory, and return the bytes that left; leased ones leave with their lease."""
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
            return problems

    # What follows runs under the lock and does no I/O.

    def _lease(self, key: str) -> Lease | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.leases += 1
        return Lease(self, key, entry.image)

    def _insert(self, key: str, image: Image) -> Lease | None:
        if lease := self._lease(key):  # offered while it was being read: two records of one key would spoil the books
            return lease
        if not self._make_room(image.nbytes):
            return None
        self._entries[key] = _Entry(image, image.nbytes)
        self._policy.admit(key)
        self._held += image.nbytes
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

    def _let_go(self, key: str, lease: Lease) -> None:
        lease._open = False  # noqa: SLF001  # released here, under the lock that release() would take
        self._settle(key)

    def _settle(self, key: str) -> None:
        entry = self._entries[key]
        entry.leases -= 1
        if entry.doomed and not entry.leases:
            self._remove(key)

    def _release(self, key: str) -> None:
        with self._lock:
            self._settle(key)
