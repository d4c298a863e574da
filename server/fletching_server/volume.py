"""The disk under one store: every system call that changes its files, each a failpoint before and an observation after.

A disk that fails to sync has perhaps dropped what it was given, and a second sync would not tell. From then on nothing more is
written there until the store is opened again; reads go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fletching_schemas.errors import StoreUnwritable
from fletching_server import failpoints


@dataclass(frozen=True, slots=True)
class Operation:
    """One change that was made to the files: what a recording is made of."""

    verb: Literal["create", "write", "sync", "rename", "unlink", "make_folder", "sync_folder"]
    path: Path
    offset: int = 0
    data: bytes = b""
    place: Path | None = None  # where a rename went


Observer = Callable[[Operation], None]


class Volume:
    """The files below *root*, the folder of one store (None: outside of all stores); *observer* is told of every change."""

    def __init__(self, root: Path | None = None, observer: Observer | None = None) -> None:
        self.observer = observer
        self._root, self._distrusted = root, ""
        self._placed: set[Path] = set()  # folders whose own names are on stable storage

    def check(self) -> None:
        """Raise ``StoreUnwritable`` where the disk has failed to sync since the store was opened."""
        if self._distrusted:
            raise StoreUnwritable(
                f"nothing is written any more: {self._distrusted}, so the disk may have dropped data; "
                "see to the disk, then open the store again. What is held can be read"
            )

    def distrust(self, why: str) -> None:
        """Refuse writes from now on; the first reason is kept."""
        self._distrusted = self._distrusted or why

    def create(self, path: Path, purpose: str, mode: int) -> int:
        """Return the descriptor of a new file with the permissions *mode*."""
        failpoints.hit(f"{purpose}.open")
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        self._tell("create", path)
        return descriptor

    def write(self, descriptor: int, path: Path, offset: int, data: Any, purpose: str) -> int:
        """Return how many bytes of *data* were written at the end of the file, which is at *offset*; it may be fewer."""
        failpoints.hit(f"{purpose}.write")
        count = os.write(descriptor, data)
        if self.observer:
            self.observer(Operation("write", path, offset, bytes(data[:count])))
        return count

    def sync(self, descriptor: int, path: Path, purpose: str) -> None:
        """Return once the file's bytes are on stable storage."""
        with self._synced(path):
            failpoints.hit(f"{purpose}.sync")
            os.fsync(descriptor)
        self._tell("sync", path)

    def sync_folder(self, path: Path, purpose: str) -> None:
        """Return once the names in a folder are on stable storage."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._synced(path):
                failpoints.hit(f"{purpose}.sync_folder")
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._tell("sync_folder", path)

    @contextmanager
    def _synced(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.distrust(f"syncing {path} failed ({error.strerror or error})")
            raise

    def rename(self, path: Path, place: Path, purpose: str) -> None:
        """Give a file another name."""
        failpoints.hit(f"{purpose}.rename")
        path.rename(place)
        self._tell("rename", path, place)

    def unlink(self, path: Path, removal: str) -> None:
        """Remove a file; one that is gone already is no error."""
        failpoints.hit(f"{removal}.unlink")
        try:
            path.unlink()
        except FileNotFoundError:
            return
        self._tell("unlink", path)
        failpoints.hit(f"{removal}.unlinked")

    def make_folder(self, path: Path) -> None:
        """Create *path* and its parents where they are missing; in a store their names are on stable storage then.

        One that is there already may have been made by a process that died before it synced it: what is synced inside could
        still lose its way to the root. So each is synced once.
        """
        there = path.is_dir()
        if there and (path in self._placed or self._root is None or not path.is_relative_to(self._root)):
            return
        self.make_folder(path.parent)
        if not there:
            failpoints.hit("folder.create")
            path.mkdir(exist_ok=True)
            self._tell("make_folder", path)
        self.sync_folder(path.parent, "folder")
        self._placed.add(path)

    def _tell(self, verb: Any, path: Path, place: Path | None = None) -> None:
        if self.observer:
            self.observer(Operation(verb, path, place=place))


_volumes: Final[dict[Path, Volume]] = {}  # by the root of the store


def volume_of(path: Path) -> Volume:
    """Return the disk of the store in which *path* lies; one of its own for a file outside of all stores."""
    for folder in (path, *path.parents):
        if (volume := _volumes.get(folder)) is not None:
            return volume
    return Volume()


def mount(root: Path) -> Volume:
    """Return a disk for the store at *root*, which is being opened: it is trusted again; its observer stays."""
    known = _volumes.get(root)
    volume = _volumes[root] = Volume(root, known.observer if known else None)
    return volume


@contextmanager
def observed(root: Path, observer: Observer) -> Iterator[None]:
    """Tell *observer* of every change to the files under *root*, until the end."""
    _volumes[root] = Volume(root, observer)
    try:
        yield
    finally:
        del _volumes[root]
