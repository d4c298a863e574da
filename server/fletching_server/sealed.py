"""Arrow tables in sealed memory: written once, then nobody can change or shrink them, and other processes may map them.

Each is one Arrow IPC file with one record batch in an anonymous memory file. Where the system has none, an unlinked file on a
tmpfs stands in: handed out read-only, and nobody but this user can have written it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import tempfile
from itertools import count
from pathlib import Path
from typing import Final

import pyarrow as pa
import structlog

log = structlog.get_logger(__name__)

SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
WORTH_BYTES: Final = 256 << 10  # a smaller answer travels faster than it is mapped, and each file costs a descriptor
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # unlinked from the start: no name that anybody could race for

_serials: Final = count(1)


class Sealed:
    """One table in memory that others may map: *table* lies in it, *fd* is read-only for whoever receives it.

    ``serial`` names these bytes in this process for ever. Close it once; the mapping lasts as long as a table refers to it.
    """

    def __init__(self, fd: int) -> None:
        self.fd, self.serial = fd, next(_serials)
        self.nbytes = -(-os.fstat(fd).st_size // mmap.PAGESIZE) * mmap.PAGESIZE
        with pa.memory_map(f"/proc/self/fd/{fd}") as mapped:
            self.table: pa.Table = pa.ipc.open_file(mapped).read_all()

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def seal(table: pa.Table) -> Sealed | None:
    """Return *table*, one chunk per column, copied into sealed memory; None where the system refuses, which is logged."""
    fd = -1
    try:
        fd = _sealed_file(table) if hasattr(os, "memfd_create") else _plain_file(table)
        return Sealed(fd)
    except (OSError, pa.ArrowException, MemoryError) as error:
        if fd >= 0:
            os.close(fd)
        log.warning("rows cannot be shared with other processes; they stay in private memory", error=str(error)[:200])
        return None


def _sealed_file(table: pa.Table) -> int:
    try:
        fd = os.memfd_create("fletching", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    except OSError as error:
        log.debug("no memfd here", error=str(error))
        return _plain_file(table)
    try:
        _write(fd, table)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _plain_file(table: pa.Table) -> int:
    folder = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    writable = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _write(writable, table)
        os.fchmod(writable, 0o400)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _write(fd: int, table: pa.Table) -> None:
    with pa.OSFile(f"/proc/self/fd/{fd}", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for batch in _one_batch(table):
            writer.write_batch(batch)


def _one_batch(table: pa.Table) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = table.combine_chunks().to_batches()
    if len(batches) > 1:  # a column of text beyond what one array can address: nobody could take a slice of all of it
        raise pa.ArrowInvalid(f"{table.num_rows:,} rows do not fit in one record batch")
    return batches


def descriptors_to_spend() -> int:
    """Return how many descriptors images may take: half of what this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def raise_descriptor_limit() -> None:
    """Let this process open as many files as its hard limit allows; the soft limit is there for ``select``, unused here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
