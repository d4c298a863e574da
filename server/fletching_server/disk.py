"""The one place that changes files: everything durable passes through here.

A file appears under its name whole or not at all: written aside, synced where asked, renamed. What fails leaves at most a
``.tmp`` file, which the start of the next server sweeps away.
"""

from __future__ import annotations

import fcntl
import io
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import structlog
import xxhash

from fletching_schemas.errors import StoreUnwritable
from fletching_server import failpoints
from fletching_server.failpoints import Purpose, Removal
from fletching_server.volume import Volume, volume_of

TEMPORARY: Final = ".tmp"
log = structlog.get_logger(__name__)

_MODE: Final = 0o644
BUFFER_BYTES: Final = 256 << 10  # a Parquet writer hands over many small pieces
_REFUSALS: Final = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED),
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY),
}


def digest(data: bytes | pa.Buffer | memoryview) -> str:
    """Return the 128-bit xxh3 checksum of *data* as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def file_digest(path: Path, paced: Callable[[int], None] | None = None) -> str:
    """Return the checksum of the file at *path*, as ``digest`` gives it for the bytes; *paced* hears of each chunk's size."""
    found, buffer = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:  # not mapped: a bad sector is an error here, and a SIGBUS there
        while size := file.readinto(buffer):
            found.update(buffer[:size])
            if paced:
                paced(size)
    return str(found.hexdigest())


def tail(path: Path, size: int, length: int) -> bytes:
    """Return the last *length* bytes of the file at *path*, which must have *size* bytes; ``OSError`` where it has not."""
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size:
            raise OSError(f"it has not {size} bytes")
        return os.pread(file.fileno(), length, size - length)


@contextmanager
def _explained(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except StoreUnwritable:
        raise
    except OSError as error:
        raise StoreUnwritable(
            f"cannot {doing} {path}: {error.strerror or error}; check its permissions and the free room"
        ) from error


def refused(error: object) -> bool:
    """Return whether *error* is SQLite's for a disk that does not let it write; else its file is damaged, or we are wrong."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _REFUSALS  # the other bits say more of the same


def make_folder(path: Path) -> None:
    """Create *path* and its parents where they are missing; ``StoreUnwritable`` says why that fails."""
    with _explained(path, "create the folder"):
        volume_of(path).make_folder(path)


def publish(path: Path, data: bytes | pa.Buffer, *, sync: bool, purpose: Purpose = Purpose.WRITE, mode: int = _MODE) -> str:
    """Return the checksum of *data*, once *path* has appeared with it, whole or not at all.

    With *sync* it survives power loss once this returns. *mode* are its permissions.
    """
    with creating(path, sync=sync, purpose=purpose, mode=mode) as file:
        file.write(data)
    return file.digest


@contextmanager
def creating(path: Path, *, sync: bool, purpose: Purpose, mode: int = _MODE) -> Iterator[NewFile]:
    """Yield a binary file to write; *path* appears with what was written when the block ends, and not at all if it fails.

    With *sync* it survives power loss from then on; where just the folder cannot be synced it is there, but may not stay.
    ``size`` and ``digest`` of the file are told after the block.
    """
    volume = volume_of(path)
    volume.check()
    make_folder(path.parent)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        with _explained(path, "write"):
            pieces = _Pieces(volume, aside, purpose, mode)
        try:
            file = NewFile(pieces, BUFFER_BYTES)
            yield file
            with _explained(path, "write"):
                file.finish(sync=sync)
        finally:
            pieces.end()
        with _explained(path, "write"):
            volume.rename(aside, path, purpose)
            if sync:
                volume.sync_folder(path.parent, purpose)
    except BaseException:
        with suppress(OSError):  # what remains is swept at the next start
            aside.unlink(missing_ok=True)
        raise


class NewFile(io.BufferedWriter):
    """A file on its way: ``creating`` yields it, and it counts and digests what passes."""

    raw: _Pieces

    @property
    def size(self) -> int:
        """How many bytes were written; all of them once the block has ended."""
        return self.raw.size

    @property
    def digest(self) -> str:
        """The checksum of what was written, as ``digest`` gives it for the bytes."""
        return str(self.raw.digest.hexdigest())

    def finish(self, *, sync: bool) -> None:
        """Bring what is buffered to the file, and with *sync* the file to stable storage."""
        if not self.closed:  # some writers close what they are given
            self.flush()
        self.raw.finish(sync=sync)


class _Pieces(io.RawIOBase):
    """The pieces of one new file, in the order in which they are written. Closing it does nothing: ``end`` does."""

    def __init__(self, volume: Volume, path: Path, purpose: Purpose, mode: int) -> None:
        self.size, self.digest = 0, xxhash.xxh3_128()
        self._volume, self._path, self._purpose = volume, path, purpose
        self._failure: BaseException | None = None
        self._descriptor = volume.create(path, purpose, mode)

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def write(self, data: Any) -> int:
        """Return how many bytes of *data* were taken: all of them once the file has ended, as nobody will read them."""
        if self._descriptor < 0:
            return len(data)
        try:
            with _explained(self._path, "write"):
                count = self._volume.write(self._descriptor, self._path, self.size, data, self._purpose)
        except BaseException as error:
            self._failure = error
            raise
        self.digest.update(data[:count])
        self.size += count
        return count

    def finish(self, *, sync: bool) -> None:
        """Return once the bytes are the file's; raises again what a writer may have swallowed."""
        if self._failure is not None:
            raise self._failure
        if sync:
            self._volume.sync(self._descriptor, self._path, self._purpose)

    def end(self) -> None:
        """Close the file; what a buffer still holds then goes nowhere."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def remove(path: Path, purpose: Removal = Removal.RETIRE) -> None:
    """Remove the file at *path*; one that is gone already is no error."""
    with _explained(path, "remove"):
        volume_of(path).unlink(path, purpose)


def let_go(path: Path, purpose: Removal) -> None:
    """Remove a file that nothing refers to; where that fails it is logged, as the next start sweeps what is left."""
    try:
        remove(path, purpose)
    except StoreUnwritable as error:
        log.warning("a file that nothing refers to stays until the next start", path=str(path), why=str(error))


def set_aside(path: Path, folder: Path) -> Path | None:
    """Move a damaged file into *folder* for somebody to look at, and return its new place (None: it is gone)."""
    make_folder(folder)
    place = folder / f"{path.parent.name}-{path.name}"
    with _explained(path, "set aside"):
        try:
            volume_of(path).rename(path, place, "set_aside")
        except FileNotFoundError:
            return None
    return place


class Mark:
    """A number that only grows, in a file of its own: how far something durable had come.

    It is written after what it counts is on stable storage, and not synced: a process that dies loses nothing of it, and
    power that fails leaves an earlier one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _explained(path, "open"):
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        said, _, check = os.pread(self._descriptor, 100, 0).decode(errors="replace").strip().partition(" ")
        self.number = int(said) if said.isascii() and said.isdecimal() and check == digest(said.encode()) else 0

    def put(self, number: int) -> None:
        """Record *number*; where the disk refuses, an earlier one stays, which is true as well."""
        said, self.number = f"{number:020}", number
        with suppress(OSError):
            os.pwrite(self._descriptor, f"{said} {digest(said.encode())}\n".encode(), 0)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Lock:
    """The right to be the only process on something; released when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock file at *path*, or raise ``BlockingIOError`` with who holds it."""
        make_folder(path.parent)
        self._path, self._descriptor = path, -1
        while self._descriptor < 0:
            self._descriptor = self._taken()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}\n".encode(), 0)

    def _taken(self) -> int:
        """Return the locked file; -1 where it was removed between opening and locking it."""
        with _explained(self._path, "open the lock file"):
            failpoints.hit("lock.open")
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise BlockingIOError(holder) from error
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
        return -1

    def release(self, *, remove: bool = False) -> None:
        """Give it back, and *remove* the file; a second call does nothing."""
        if self._descriptor >= 0:
            if remove:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
