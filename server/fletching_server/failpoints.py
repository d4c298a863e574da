"""Named places where a test lets the disk fail or the process die, as both do in the field: before each step, on demand.

``FLETCHING_FAILPOINT=write.sync:eio`` (``name:kind``, or ``name:kind:n`` for the n-th time; several with commas) arms them in
another process, ``armed`` in this one. A name stands for the moment before its step, so an error takes the step's place and
a panic leaves what the steps before have done. Where nothing is armed a place costs one look at an empty dictionary.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Any, Final

ENVIRONMENT: Final = "FLETCHING_FAILPOINT"


class Purpose(StrEnum):
    """What a file is published for."""

    WRITE = "write"  # a user's rows
    FOLD = "fold"  # a partition's next generation
    MERGE = "merge"  # segments joined into a larger one
    IMPORT = "import"  # a bulk import's file
    MANIFEST = "manifest"  # which partitions make up a dataset
    CHECKPOINT = "checkpoint"  # how far a job has come
    FILL = "fill"  # fetched rows: they may be lost
    QUARANTINE = "quarantine"  # a refused answer
    ANSWER = "answer"  # a kept answer of a function
    NOTES = "notes"  # what may be lost: uses, when files were checked
    ACCESS = "access"  # who read what: the last seconds may be lost


class Removal(StrEnum):
    """Why a file is removed."""

    RETIRE = "retire"  # a later generation took its place, and its last reader has gone
    DISCARD = "discard"  # no commit will mention it
    SWEEP = "sweep"  # a process died between writing and committing it
    FORGET = "forget"  # a kept answer makes room
    EVICT = "evict"  # the disk quota
    VACUUM = "vacuum"  # its retention has ended


class Kind(StrEnum):
    """What happens at an armed place."""

    PANIC = "panic"  # the process dies on the spot, by SIGKILL
    EIO = "eio"
    ENOSPC = "enospc"


UNSYNCED: Final = frozenset({Purpose.FILL, Purpose.QUARANTINE, Purpose.ANSWER, Purpose.NOTES, Purpose.ACCESS})
CATALOGUE: Final = "catalogue."
NAMES: Final = (
    *(f"{purpose}.{step}" for purpose in Purpose for step in ("open", "write", "rename")),
    *(f"{purpose}.{step}" for purpose in Purpose if purpose not in UNSYNCED for step in ("sync", "sync_folder")),
    *(f"{removal}.{step}" for removal in Removal for step in ("unlink", "unlinked")),
    *("folder.create", "folder.sync_folder", "lock.open", "set_aside.rename"),
    *(f"{CATALOGUE}{step}" for step in ("open", "statement", "commit", "sync", "committed")),
)

_EVERY: Final = "*"
_KNOWN: Final = frozenset(NAMES)
_ACTIONS: Final[dict[str, list[Callable[[str], None]]]] = {}


def hit(name: str) -> None:
    """Return at once, unless a test waits for *name*."""
    if _ACTIONS:
        _reached(name)


def _reached(name: str) -> None:
    if name not in _KNOWN:
        raise LookupError(f"there is no failpoint {name}; list it in failpoints.NAMES, so that the tests try it")
    for action in (*_ACTIONS.get(_EVERY, ()), *_ACTIONS.get(name, ())):
        action(name)


@contextmanager
def doing(name: str, action: Callable[[str], None]) -> Iterator[None]:
    """Call *action* each time *name* is reached (``*``: any), until the end."""
    _ACTIONS.setdefault(name, []).append(action)
    try:
        yield
    finally:
        _ACTIONS[name].remove(action)
        if not _ACTIONS[name]:
            del _ACTIONS[name]


@contextmanager
def armed(name: str, kind: str, nth: int = 1) -> Iterator[None]:
    """Fail as *kind* says the *nth* time that *name* is reached, until the end; other times pass."""
    if name not in _KNOWN:
        raise LookupError(f"there is no failpoint {name}; there are {', '.join(NAMES)}")
    failure, times = _failure(name, Kind(kind)), Counter[str]()

    def fire(name: str) -> None:
        times[name] += 1
        if times[name] == nth:
            failure()

    with doing(name, fire):
        yield


@contextmanager
def traced() -> Iterator[Counter[str]]:
    """Yield how often each place was reached, counted until the end."""
    reached = Counter[str]()
    with doing(_EVERY, lambda name: reached.update([name])):
        yield reached


def _failure(name: str, kind: Kind) -> Callable[[], None]:
    """Return what dies, or raises what the system's own failure raises there."""

    def fail() -> None:
        if kind is Kind.PANIC:
            os.kill(os.getpid(), signal.SIGKILL)
        raise _database_error(name, kind) if name.startswith(CATALOGUE) else _system_error(kind)

    return fail


def _system_error(kind: Kind) -> OSError:
    number = errno.EIO if kind is Kind.EIO else errno.ENOSPC
    return OSError(number, os.strerror(number))


def _database_error(name: str, kind: Kind) -> sqlite3.OperationalError:
    if kind is Kind.ENOSPC:
        text, code = "database or disk is full", sqlite3.SQLITE_FULL
    else:
        text, code = "disk I/O error", sqlite3.SQLITE_IOERR_FSYNC if name.endswith(".sync") else sqlite3.SQLITE_IOERR
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class CatalogueConnection(sqlite3.Connection):
    """A connection to SQLite whose statements and commits are failpoints."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        hit("catalogue.open")
        super().__init__(*arguments, **options)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return a cursor, for one statement."""
        hit("catalogue.statement")
        return super().cursor(*arguments, **options)

    def commit(self) -> None:
        """Commit; where the last place fails, it has been committed all the same."""
        changes = self.in_transaction
        if changes:
            hit("catalogue.commit")
            hit("catalogue.sync")
        super().commit()
        if changes:
            hit("catalogue.committed")


def arm_by(text: str) -> None:
    """Arm what *text* lists, as in the environment, for the rest of the process."""
    for item in filter(None, text.split(",")):
        name, kind, *nth = item.strip().split(":")
        _for_good.enter_context(armed(name, kind, int(nth[0]) if nth else 1))


_for_good: Final = ExitStack()
arm_by(os.environ.get(ENVIRONMENT, ""))
