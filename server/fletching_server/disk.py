"""The one place that changes files: everything durable passes through here.

A file appears under its name whole or not at all: written aside, synced where asked, renamed. What fails leaves at most a
``.tmp`` file, which the start of the next server sweeps away.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
import xxhash

from fletching_schemas.errors import StoreUnwritable

TEMPORARY: Final = ".tmp"
_REFUSALS: Final = {"BUSY", "CANTOPEN", "FULL", "IOERR", "LOCKED", "NOMEM", "PERM", "READONLY"}


def digest(data: bytes | pa.Buffer | memoryview) -> str:
    """Return the 128-bit xxh3 checksum of *data* as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def file_digest(path: Path) -> str:
    """Return the checksum of the file at *path*, as ``digest`` gives it for the bytes."""
    found, buffer = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:  # not mapped: a bad sector is an error here, and a SIGBUS there
        while size := file.readinto(buffer):
            found.update(buffer[:size])
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
    except OSError as error:
        raise StoreUnwritable(
            f"cannot {doing} {path}: {error.strerror or error}; check its permissions and the free room"
        ) from error


def refused(error: object) -> bool:
    """Return whether *error* is SQLite's for a disk that does not let it write; else its file is damaged, or we are wrong."""
    name: str = getattr(error, "sqlite_errorname", "")
    return name.removeprefix("SQLITE_").partition("_")[0] in _REFUSALS


def make_folder(path: Path) -> None:
    """Create *path* and its parents where they are missing; ``StoreUnwritable`` says why that fails."""
    with _explained(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)


def publish(path: Path, data: bytes | pa.Buffer, *, sync: bool) -> None:
    """Make *path* appear with *data*, whole or not at all; with *sync* it survives power loss once this returns."""
    make_folder(path.parent)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    with _explained(path, "write"):
        try:
            _write(aside, memoryview(data), sync=sync)
            aside.rename(path)
            if sync:
                _sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _write(path: Path, data: memoryview, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        while data:  # one write may be short
            data = data[os.write(descriptor, data) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove the file at *path*; one that is gone already is no error."""
    with _explained(path, "remove"):
        path.unlink(missing_ok=True)


def set_aside(path: Path, folder: Path) -> Path | None:
    """Move a damaged file into *folder* for somebody to look at, and return its new place (None: it is gone)."""
    make_folder(folder)
    place = folder / f"{path.parent.name}-{path.name}"
    try:
        path.rename(place)
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
