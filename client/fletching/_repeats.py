"""Small answers that are asked for again at once: a notebook cell that runs again, a dashboard, a sweep.

The server vouches for an answer for a second, unless something is committed: that shows on its *board*, a number in memory
that both map. So a repeated question costs no way to the server and back, and is never older than what the server would say.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fletching_schemas import ReadRequest
from fletching_schemas.local import LASTS_SECONDS

KEPT_BYTES: Final = 16 << 20
_NUMBER: Final = struct.Struct("=Q")


@dataclass(frozen=True)
class Repeat:
    """An answer as it came, an IPC stream; good while the board shows *number*, and until *until* on the monotonic clock."""

    stream: bytes
    number: int
    until: float


class Repeats:
    """The answers of the last second, within a bound; without a board there are none."""

    def __init__(self, board: int | None) -> None:
        """Map *board*, which is closed then."""
        self._board: mmap.mmap | None = None
        if board is not None:
            try:
                self._board = mmap.mmap(board, mmap.PAGESIZE, prot=mmap.PROT_READ)
            finally:
                os.close(board)
        self.renew_lock()
        self._kept: OrderedDict[ReadRequest, Repeat] = OrderedDict()
        self._bytes = 0

    def renew_lock(self) -> None:
        """Take a new lock: in a forked child the old one may be held by a thread that only the parent has."""
        self._lock = threading.Lock()

    def number(self) -> int:
        """Return what the board shows; an odd number vouches for nothing."""
        return _NUMBER.unpack_from(self._board)[0] if self._board is not None else 1

    def get(self, request: ReadRequest) -> Repeat | None:
        """Return the answer to *request* that is still good."""
        found = self._kept.get(request)
        if found is None or found.number != self.number() or time.monotonic() >= found.until:
            return None
        return found

    def keep(self, request: ReadRequest, stream: bytes, number: int, asked_at: float) -> None:
        """Keep *stream*, asked for at *asked_at* on the monotonic clock, when the board showed *number*."""
        if number % 2:
            return
        with self._lock:
            self._drop(request)
            self._kept[request] = Repeat(stream, number, asked_at + LASTS_SECONDS)
            self._bytes += len(stream)
            while self._kept and (self._bytes > KEPT_BYTES or next(iter(self._kept.values())).until <= asked_at):
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _drop(self, request: ReadRequest) -> None:
        if (old := self._kept.pop(request, None)) is not None:
            self._bytes -= len(old.stream)
