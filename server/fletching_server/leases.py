"""The right to use an image's bytes while they are read."""

from __future__ import annotations

from threading import Lock
from types import TracebackType
from typing import Protocol, Self

from fletching_server.image import Image


class Lender(Protocol):
    """Who counts leases, under a lock."""

    lock: Lock

    def released(self, key: str, *, lent: bool) -> None:
        """Note, under the lock, that a lease on *key* has ended."""
        ...


class Lease:
    """The right to use an image's bytes: they stay counted, and in place, until ``release``.

    *warmed*: the image was put there because somebody was expected to ask, and this is who. *lent*: to another process. Without
    a *lender* the image is not held: it goes with the lease.
    """

    def __init__(self, lender: Lender | None, key: str, image: Image, *, lent: bool = False, warmed: bool = False) -> None:
        self._lender, self._key, self._lent = lender, key, lent
        self.image, self.warmed = image, warmed

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        if (lender := self._lender) is not None:
            self._lender = None
            with lender.lock:
                lender.released(self._key, lent=self._lent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
