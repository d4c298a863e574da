"""Small answers as they were sent: good for whoever asks the same within a second, while nothing is committed.

The same promise that clients get for their own repeats, see ``fletching_schemas.local``; here it spares those who ask for the
first time what somebody else has just asked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fletching_schemas import ReadInfo
from fletching_schemas.local import LASTS_SECONDS
from fletching_server.noting import Fields

SHARE: Final = 16  # of the hot tier's budget they take at most this part, beside it


@dataclass(frozen=True)
class Sent:
    """One answer as it leaves, and what is counted and logged for it."""

    frames: bytes
    info: ReadInfo
    noted: Fields | None
    number: int
    until: float


class Vouched:
    """The answers of the last second, by request as it came, within a bound. Safe to use from any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Sent] = OrderedDict()
        self._bytes = 0

    def get(self, request: bytes, number: int, now: float) -> Sent | None:
        """Return the answer to *request* that is good at *now* on the monotonic clock, where the board shows *number*."""
        found = self._kept.get(request)
        return found if found is not None and found.number == number and now < found.until else None

    def keep(
        self, request: bytes, frames: bytes, info: ReadInfo, number: int, asked_at: float, noted: Fields | None = None
    ) -> None:
        """Keep an answer that the store vouches for, asked for at *asked_at* when the board showed *number*, an even one."""
        sent = Sent(frames, info, noted, number, asked_at + LASTS_SECONDS)
        with self._lock:
            self._drop(request)
            self._kept[request] = sent
            self._bytes += len(frames)
            while self._kept and (self._bytes > self._most_bytes or self._oldest().until <= asked_at):
                self._drop(next(iter(self._kept)))

    def _oldest(self) -> Sent:
        return next(iter(self._kept.values()))

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _drop(self, request: bytes) -> None:
        if (old := self._kept.pop(request, None)) is not None:
            self._bytes -= len(old.frames)
