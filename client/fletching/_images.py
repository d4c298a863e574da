"""Images that the server lent: its memory, mapped read-only into this process, for as long as anything here refers to it.

The last reference (a frame, a column, this cache) ends the mapping, and with it the descriptor that stands for the lease: the
server knows at once. A forked child inherits both and ends them on its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from functools import cached_property
from typing import Final

import polars as pl
import pyarrow as pa

SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
KEPT_BYTES: Final = 256 << 20  # mapped images that no frame may refer to any more: each keeps the server from evicting it
KEPT_IMAGES: Final = 128  # each costs two descriptors


class MappedImage:
    """One image: ``table`` and ``frame`` lie in the server's memory."""

    def __init__(self, image: int, ending: int) -> None:
        """Map the file *image*, which is closed then; *ending* is closed when the mapping ends. ``OSError`` if it is unsafe."""
        try:
            _check_immutable(image)
            mapped = mmap.mmap(image, 0, prot=mmap.PROT_READ)
        except BaseException:
            os.close(ending)
            raise
        finally:
            os.close(image)
        weakref.finalize(mapped, os.close, ending).atexit = False
        self.nbytes = len(mapped)
        self.table: pa.Table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The table as a Polars frame, without a copy."""
        return pl.DataFrame(pl.from_arrow(self.table, rechunk=False))


def _check_immutable(image: int) -> None:
    """Raise ``OSError`` where bytes could change under a frame: neither sealed nor, on systems without, the same user's."""
    try:
        sealed = fcntl.fcntl(image, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:  # not a memfd
        read_only = fcntl.fcntl(image, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        sealed = read_only and os.fstat(image).st_uid in {os.geteuid(), 0}
    if not sealed:
        raise PermissionError("the server handed over memory that somebody could still write to")


class Images:
    """The images that are kept mapped, those used last, within a bound."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self.renew_lock()
        self._kept: OrderedDict[int, MappedImage] = OrderedDict()  # by serial, the one used longest ago first
        self._bytes = 0

    def renew_lock(self) -> None:
        """Take a new lock: in a forked child the old one may be held by a thread that only the parent has."""
        self._lock = threading.Lock()

    def known(self) -> dict[int, MappedImage]:
        """Return what is mapped; whoever holds on to it may tell the server so."""
        with self._lock:
            return dict(self._kept)

    def keep(self, images: dict[int, MappedImage]) -> None:
        """Note that *images* were used just now, and let go of others where there is no room for all."""
        with self._lock:
            for serial, image in images.items():
                if serial not in self._kept:
                    self._kept[serial] = image
                    self._bytes += image.nbytes
                self._kept.move_to_end(serial)
            gone = []
            while self._kept and (self._bytes > self._most_bytes or len(self._kept) > KEPT_IMAGES):
                gone.append(self._kept.popitem(last=False)[1])
                self._bytes -= gone[-1].nbytes
        del gone  # outside the lock: unmapping takes a while

    def clear(self) -> None:
        """Let go of all; what frames refer to stays mapped."""
        with self._lock:
            gone, self._kept, self._bytes = self._kept, OrderedDict(), 0
        del gone
