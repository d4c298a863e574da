"""What a disk may hold after the power failed: states made from a recording, as the least that a file system promises.

Bytes that were not synced may be missing, cut, zero or garbage. A name that was given or taken without a sync of its folder may
be as before or after, each by itself. SQLite's write-ahead log may hold any part of the transaction that was being committed,
and its database any of the pages that a checkpoint was writing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.recording import Database, Recording, Transaction

from fletching_server.volume import Operation

BLOCKS: Final = (512, 4096)
PAGE: Final = 4096


@dataclass
class _File:
    """The bytes of one file, of which the first *synced* are safe."""

    data: bytes = b""
    synced: int = 0

    def after_the_failure(self, chance: random.Random) -> bytes:
        """Return what may be left of it."""
        if self.synced == len(self.data):
            return self.data
        how = chance.choice(["whole", "gone", "cut", "torn", "blocks", "zeros"])
        block = chance.choice(BLOCKS)
        lost = len(self.data) - self.synced
        if how == "whole":
            return self.data
        if how == "zeros":
            return self.data[: self.synced] + bytes(lost)
        if how == "blocks":
            return _with_lost_blocks(self.data, self.synced, block, chance)
        length = {"gone": 0, "cut": chance.randrange(lost), "torn": chance.randrange(lost) // block * block}[how]
        return self.data[: self.synced + length]


def _with_lost_blocks(data: bytes, start: int, block: int, chance: random.Random) -> bytes:
    found = bytearray(data)
    for place in range(start // block * block, len(data), block):
        if chance.random() < 0.4:
            end = min(place + block, len(data))
            first = max(place, start)
            found[first:end] = bytes(end - first) if chance.random() < 0.6 else chance.randbytes(end - first)
    return bytes(found)


@dataclass(frozen=True)
class _Naming:
    """A name given to a file (None: to a folder) or taken away, in a folder that was not synced since."""

    folder: Path
    gives: Path | None
    takes: Path | None
    file: _File | None


@dataclass
class Disk:
    """The files of one store while a recording is played; ``after_the_failure`` shows them as the power fails."""

    root: Path
    names: dict[Path, _File | None] = field(default_factory=dict)  # as they will be if nothing happens
    database: Database = (b"", None)
    _safe: dict[Path, _File | None] = field(default_factory=dict)  # names that no failure takes back
    _open: list[_Naming] = field(default_factory=list)
    _forgotten: bytes | None = None  # a write-ahead log that was removed, which no sync has made sure of

    def play(self, step: Operation | Transaction) -> None:
        """Do what was recorded."""
        if isinstance(step, Transaction):
            self._forgotten = step.before[1] if step.after[1] is None else None
            self.database = step.after
        elif step.verb == "write":
            self._file(step.path).data += step.data
        elif step.verb == "sync":
            self._file(step.path).synced = len(self._file(step.path).data)
        elif step.verb == "sync_folder":
            self._make_safe(step.path)
        else:
            self._name(step)

    def _file(self, path: Path) -> _File:
        file = self.names[path]
        assert file is not None, f"{path} is a folder"
        return file

    def _name(self, step: Operation) -> None:
        file = _File() if step.verb == "create" else None if step.verb == "make_folder" else self.names[step.path]
        gives = step.place if step.verb == "rename" else None if step.verb == "unlink" else step.path
        takes = step.path if step.verb in {"rename", "unlink"} else None
        naming = _Naming((gives or step.path).parent, gives, takes, file)
        self._open.append(naming)
        _apply(self.names, naming)

    def _make_safe(self, folder: Path) -> None:
        for naming in self._open:
            if naming.folder == folder:
                _apply(self._safe, naming)
        self._open = [naming for naming in self._open if naming.folder != folder]

    def after_the_failure(self, chance: random.Random, during: Transaction | None = None) -> dict[Path, bytes]:
        """Return the files that may be found, by path; *during* is the transaction that was being committed."""
        names = dict(self._safe)
        for naming in self._surviving(chance):
            _apply(names, naming)
        folders = {self.root} | {path for path, file in names.items() if file is None}
        found = {
            path: file.after_the_failure(chance)
            for path, file in names.items()
            if file is not None and self._reachable(path, folders)
        }
        return found | self._catalogue(chance, during)

    def _reachable(self, path: Path, folders: set[Path]) -> bool:
        inside = path.relative_to(self.root).parents
        return all(self.root / parent in folders for parent in inside)

    def _surviving(self, chance: random.Random) -> list[_Naming]:
        """Return which names were kept: all, none, as far as each folder came, or any."""
        how = chance.choice(["all", "none", "so far", "any"])
        if how in {"all", "none"}:
            return self._open if how == "all" else []
        if how == "any":
            return [naming for naming in self._open if chance.random() < 0.5]
        reached = {folder: chance.random() for folder in {naming.folder for naming in self._open}}
        return [naming for at, naming in enumerate(self._open) if at <= reached[naming.folder] * len(self._open)]

    def _catalogue(self, chance: random.Random, during: Transaction | None) -> dict[Path, bytes]:
        database, log = _interrupted(during, chance) if during else self.database
        if during is None and log is None and self._forgotten is not None and chance.random() < 0.5:
            log = self._forgotten
        path = self.root / "catalogue.sqlite"
        found = {path: database} if database else {}
        return found | ({path.with_name(path.name + "-wal"): log} if log is not None else {})


def _apply(names: dict[Path, _File | None], naming: _Naming) -> None:
    if naming.takes is not None:
        names.pop(naming.takes, None)
    if naming.gives is not None:
        names[naming.gives] = naming.file


def _interrupted(transaction: Transaction, chance: random.Random) -> Database:
    """Return the catalogue's files in the middle of a commit: first the log is written and synced, then the database."""
    (old, old_log), (new, new_log) = transaction.before, transaction.after
    checkpoint = old != new
    if not checkpoint or (new_log is not None and new_log != old_log and chance.random() < 0.5):
        return old, _half_written(old_log or b"", new_log or b"", chance)
    return _mixed(old, new, chance), new_log if new_log is not None else old_log


def _half_written(old: bytes, new: bytes, chance: random.Random) -> bytes:
    """Return *new* as far as it was written over *old*: up to some block, or some blocks of it, or with garbage in them."""
    block = chance.choice(BLOCKS)
    changed = [at for at in range(0, len(new), block) if new[at : at + block] != old[at : at + block]]
    if not changed:
        return new
    how = chance.choice(["so far", "any", "garbage"])
    reached = chance.randrange(len(changed) + 1)
    kept = set(changed[:reached]) if how != "any" else {at for at in changed if chance.random() < 0.6}
    end = max([len(old), *(at + block for at in kept)])
    found = bytearray((old + bytes(max(end - len(old), 0)))[:end])
    for at in kept:
        found[at : at + block] = new[at : at + block]
    if how == "garbage" and reached < len(changed):
        at = changed[reached]
        first = at + _first_difference(old[at : at + block], new[at : at + block])  # SQLite counts on bytes before being safe
        found[first : at + block] = chance.randbytes(at + block - first)
    return bytes(found[: max(len(new), len(old))])


def _first_difference(old: bytes, new: bytes) -> int:
    return next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new)))


def _mixed(old: bytes, new: bytes, chance: random.Random) -> bytes:
    share = chance.random()
    pages = [(new if chance.random() < share else old)[at : at + PAGE] for at in range(0, max(len(old), len(new)), PAGE)]
    while pages and not pages[-1]:
        pages.pop()
    return b"".join(page.ljust(PAGE, b"\0") for page in pages)


State = tuple[int, dict[Path, bytes]]


def states(recording: Recording, chance: random.Random, per_step: int) -> Iterator[State]:
    """Yield *per_step* different states after each step and in the middle of each transaction, with the number of steps made."""
    disk = Disk(recording.root)
    for point, step in enumerate([*recording.steps, None]):
        seen: set[int] = set()
        for _ in range(per_step):
            during = step if isinstance(step, Transaction) and chance.random() < 0.8 else None
            found = disk.after_the_failure(chance, during)
            mark = hash(frozenset(found.items()))
            if mark not in seen:
                seen.add(mark)
                yield point, found
        if step is not None:
            disk.play(step)


def lay_out(found: dict[Path, bytes], recorded: Path, root: Path) -> None:
    """Write a state of the store *recorded* as the store *root*."""
    root.mkdir()
    for path, data in found.items():
        place = root / path.relative_to(recorded)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
