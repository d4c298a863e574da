"""Leases of other processes, each bound to a descriptor that the process holds: the lease ends when the last copy is closed.

The process closes it when it unmaps the image; where it dies the system does; a forked child, which maps the image too, has a
copy of its own. So what is mapped is known without a word being said.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Final

from fletching_server.leases import Lease

_ENDED: Final = select.EPOLLHUP | select.EPOLLERR


class Lifetimes:
    """The leases under way, and the thread that ends them. Close it, which ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._leases: dict[int, Lease] = {}
        self._epoll = select.epoll()
        self._wake, self._stop = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake, _ENDED)
        self._thread = threading.Thread(target=self._run, name="fletching-lifetimes", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """How many leases are bound to descriptors."""
        return len(self._leases)

    def bind(self, lease: Lease) -> int:
        """Return a descriptor, the caller's own, whose last copy ends *lease* when it is closed; ``OSError`` if none is left."""
        watched, handed = os.pipe2(os.O_CLOEXEC)
        with self._lock:
            try:
                self._epoll.register(watched, _ENDED)
            except BaseException:
                os.close(watched)
                os.close(handed)
                raise
            self._leases[watched] = lease
            self._lock.notify_all()
        return handed

    def wait_until(self, count: int, seconds: float) -> bool:
        """Return whether, within *seconds*, there were *count* leases."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self._leases) == count, seconds)

    def wait_until_none(self, seconds: float) -> bool:
        """Return whether all leases ended within *seconds*."""
        return self.wait_until(0, seconds)

    def settle(self) -> None:
        """End the leases whose descriptors are closed by now, before their thread comes to it."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor != self._wake:
                self._end(descriptor)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._wake:
                    return
                self._end(descriptor)

    def _end(self, descriptor: int, *, always: bool = False) -> None:
        with self._lock:
            # Another thread may have been told the same, ended it, and bound a new lease to a descriptor of that number.
            if (lease := self._leases.get(descriptor)) is None or not (always or _has_ended(descriptor)):
                return
            lease.release()
            del self._leases[descriptor]
            self._epoll.unregister(descriptor)
            os.close(descriptor)
            self._lock.notify_all()

    def close(self) -> None:
        """End all leases: who maps images keeps their bytes, which are its own from now on. A second call does nothing."""
        if self._stop < 0:
            return
        os.close(self._stop)
        self._stop = -1
        self._thread.join()  # which reads nothing else any more
        for descriptor in list(self._leases):
            self._end(descriptor, always=True)
        self._epoll.close()
        os.close(self._wake)


def _has_ended(descriptor: int) -> bool:
    """Return whether nobody can write to the pipe any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))
