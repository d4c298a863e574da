"""A number in memory that changes whenever what is stored does: other processes see that nothing has changed without asking.

It is odd while a change becomes visible, and for ever once the server closes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from typing import Final

_NUMBER: Final = struct.Struct("=Q")
_FUTURE_WRITE: Final = 0x0010  # F_SEAL_FUTURE_WRITE, Linux 5.1: this mapping may write, no other will ever
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _FUTURE_WRITE


class Board:
    """The number, and the descriptor by which others map it; ``OSError`` where the system cannot protect it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0
        self.fd = os.memfd_create("fletching-board", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, mmap.PAGESIZE)
            self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def number(self) -> int:
        """What it shows."""
        return self._value

    def begin(self) -> None:
        """Say that something changes from now on; whoever reads meanwhile remembers nothing."""
        self._step(0)

    def end(self) -> None:
        """Say that the change is visible to all."""
        self._step(1)

    def _step(self, odd: int) -> None:
        with self._lock:
            if self._value % 2 == odd:
                self._value += 1
                _NUMBER.pack_into(self._memory, 0, self._value)

    def close(self) -> None:
        """Leave it odd: nobody vouches for anything any more. A second call does nothing."""
        self.begin()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
