"""Which files make up which dataset, and what is known about which cells: SQLite on disk, an immutable picture in memory.

A reader takes ``state(dataset)``: one object that no later commit changes, so its file list and its coverage belong
together. A commit is one SQL transaction (WAL, ``synchronous=FULL``); then the picture is replaced. Commits that arrive
while one is under way share the next transaction, and so its sync.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import sqlalchemy as sa

from fletching_schemas.errors import StoreError
from fletching_server import disk, history, sums
from fletching_server import tables as t
from fletching_server.clock import Clock, SystemClock
from fletching_server.database import WAYS_OUT, check_version, connect, explained, failed_sync
from fletching_server.group_commit import GroupCommit
from fletching_server.history import Moment, Written
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.volume import volume_of

HISTORY_DAYS: Final = 7.0
_DAY_SECONDS: Final = 86_400.0


class Change(Protocol):
    """One step of a commit: what it does to the database, and to the picture in memory."""

    @property
    def dataset(self) -> str:
        """The dataset that changes."""
        ...

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Apply the change to the database inside the commit's transaction.

        Returns the files that neither the present nor the past refers to any more.
        """
        ...

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState | None:
        """Return the dataset's picture after the change (None: the dataset is gone)."""
        ...


class Watcher(Protocol):
    """Somebody who tells others that the picture is what it was, and must not while it changes."""

    def begin(self) -> None:
        """The picture is about to be replaced."""
        ...

    def end(self) -> None:
        """It has been."""
        ...


class Committed(NamedTuple):
    """What a commit did: its number, and the files that nothing refers to any more."""

    seq: int
    gone: Sequence[StoredFile]


@dataclass
class _Pending:
    change: Change
    seq: int = 0
    sent: bool = False
    gone: Sequence[StoredFile] = ()
    error: BaseException | None = None


class Catalogue:
    """The durable list of datasets, files and coverage of one store."""

    def __init__(
        self, path: Path, *, create: bool = True, clock: Clock | None = None, history_days: float = HISTORY_DAYS
    ) -> None:
        """Open the database at *path*; ``StoreError`` where there is none and *create* is False.

        Superseded files stay part of it for *history_days* by *clock*, so that the past can be read.
        """
        self._clock, self.history_days = clock or SystemClock(), history_days
        self._at = 0.0
        self._mark = disk.Mark(path.with_name("COMMITTED"))
        create = create and not self._mark.number
        self._volume = volume_of(path)
        self._engine = connect(path, create=create, now=self._clock.now().timestamp())
        self._writing: sa.Connection | None = None
        self._commits = GroupCommit(self._commit_batch)
        self._states: dict[str, DatasetState] = {}
        self._listeners: list[Callable[[str], None]] = []
        self.watchers: list[Watcher] = []
        self._showing = threading.Lock()
        self._seq = 0
        try:
            self.reload()
            self._check_mark(path)
        except BaseException:
            self.close()
            raise

    def reload(self) -> None:
        """Read the picture from the database anew: at the start, and after a repair."""
        try:
            with self._engine.connect() as connection:
                check_version(connection)
                self._at = connection.execute(sa.select(sa.func.max(t.commits.c.at))).scalar() or 0.0
                self._show(*t.load_states(connection))
        except sa.exc.DatabaseError as error:
            raise explained(error, "the catalogue cannot be read") from error

    def _check_mark(self, path: Path) -> None:
        """Refuse a catalogue that lacks commits: its log was cut, or an older copy lies in its place."""
        if self._seq < self._mark.number:
            raise StoreError(
                f"the catalogue {path} ends with commit {self._seq}, and commit {self._mark.number} was acknowledged; "
                f"nothing was changed: {WAYS_OUT}. To go on without those commits and their files, remove {self._mark.path}"
            )

    def _show(self, states: dict[str, DatasetState], seq: int) -> None:
        """Replace the picture, and let nobody believe meanwhile that it stays as it was."""
        with self._showing:
            watchers = list(self.watchers)
            for watcher in watchers:
                watcher.begin()
            self._states, self._seq = states, seq
            for watcher in watchers:
                watcher.end()

    def state(self, dataset: str) -> DatasetState | None:
        """Return the present picture of *dataset*, or None where the store has never heard of it."""
        return self._states.get(dataset)

    def states(self) -> list[DatasetState]:
        """Return the present picture of every dataset, by name."""
        return [state for _, state in sorted(self._states.items())]

    def on_commit(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with a dataset's name after each commit; it must be quick and must not commit."""
        self._listeners.append(listener)

    def commit(self, change: Change) -> Committed:
        """Make *change* durable and visible, and return what that did; shares a sync with others that wait."""
        self._volume.check()
        pending = _Pending(change)
        self._commits.run(pending)
        if pending.error:
            raise pending.error
        return Committed(pending.seq, pending.gone)

    def _commit_batch(self, batch: list[_Pending]) -> None:
        try:
            self._transact(batch)
        except Exception as error:  # noqa: BLE001  # one bad change must not fail the others of its batch
            if failed_sync(error):
                self._volume.distrust("syncing the catalogue failed")
            if len(batch) == 1 or batch[0].sent:
                self._tell(batch, error)
            else:
                for pending in batch:
                    self._commit_batch([pending])
                return

    def _tell(self, batch: list[_Pending], error: Exception) -> None:
        """Tell who waits, after what the database holds has been looked up: an error of COMMIT leaves open what became of it."""
        if batch[0].sent:
            try:
                self.reload()
            except (sa.exc.SQLAlchemyError, StoreError):
                self._volume.distrust("the catalogue could not be read after a commit had failed")
        for pending in batch:
            pending.error = explained(error)

    def _transact(self, batch: list[_Pending]) -> None:
        states, seq = dict(self._states), self._seq
        at = max(self._at, self._clock.now().timestamp())  # a clock that goes back must not mix up the past
        with self._transaction() as connection:
            for pending in batch:
                seq += 1
                pending.seq, change = seq, pending.change
                state = change.amend(states.get(change.dataset), seq)
                moment = Moment(seq, at, self.history_days, state.shape if state else 0)
                pending.gone = change.write(connection, moment)
                connection.execute(t.commits.insert(), {"seq": seq, "dataset": change.dataset, "at": at})
                states.pop(change.dataset, None)
                if state is not None:
                    states[change.dataset] = replace(state, generation=seq)
            for pending in batch:
                pending.sent = True  # from here on an error does not mean that nothing was committed: no second try
        self._at = at
        self._mark.put(seq)
        self._show(states, seq)
        for pending in batch:
            for listener in self._listeners:
                listener(pending.change.dataset)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Yield the connection of all commits, which take turns: making one costs as much as using it. A failure ends it."""
        if self._writing is None:
            self._writing = self._engine.connect()
        try:
            with self._writing.begin():
                yield self._writing
        except BaseException:
            failed, self._writing = self._writing, None
            with suppress(sa.exc.SQLAlchemyError):
                failed.close()
            raise

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """Yield a connection for looking."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.DatabaseError as error:
            raise explained(error, "the catalogue cannot be read") from error

    def past(self, dataset: str, generation: int) -> DatasetState:
        """Return what *dataset* was at *generation*; ``HistoryGone`` where nobody knows any more."""
        with self._reading() as connection:
            return history.past(connection, dataset, generation)

    def generation_at(self, dataset: str, instant: float) -> int | None:
        """Return the generation of *dataset* at *instant* (seconds since 1970); None before the first that is recorded."""
        with self._reading() as connection:
            return history.generation_at(connection, dataset, instant)

    def written(self, keys: Sequence[str]) -> dict[str, Written]:
        """Return what the writes did that clients called by one of *keys*, as far as there were such."""
        if not keys:
            return {}
        with self._reading() as connection:
            return history.written(connection, keys)

    def cutoff(self, dataset: str, history_days: float | None = None) -> float:
        """Return the instant (seconds since 1970) before which the past of *dataset* is kept no longer."""
        with self._reading() as connection:
            days = history.kept_days(connection, dataset, Moment(0, 0.0, self.history_days))
        return self._clock.now().timestamp() - _DAY_SECONDS * (days if history_days is None else history_days)

    def kept_since(self, dataset: str) -> int | None:
        """Return the first generation of *dataset* that can still be read as of; None where its past is not kept."""
        with self._reading() as connection:
            return history.kept_since(connection, dataset, Moment(0, 0.0, self.history_days))

    def committed_at(self, seq: int) -> float:
        """Return when commit *seq* was made (seconds since 1970); minus infinity where that is forgotten, so long ago it was."""
        with self._reading() as connection:
            found = connection.execute(sa.select(t.commits.c.at).where(t.commits.c.seq == seq)).scalar()
        return float("-inf") if found is None else float(found)

    def is_due(self, dataset: str) -> bool:
        """Return whether the past of *dataset* has grown older than it is kept."""
        with self._reading() as connection:
            return history.is_due(connection, dataset, self.cutoff(dataset))

    def bytes(self, dataset: str | None = None, *, retired: bool = False) -> int:
        """Return how many bytes the files of *dataset* (None: of all) take; with *retired* those only that the past needs."""
        query = sa.select(sa.func.sum(t.files.c.bytes))
        query = query if dataset is None else query.where(t.files.c.dataset == dataset)
        query = query.where(t.files.c.retired.is_not(None)) if retired else query
        with self._reading() as connection:
            return int(connection.execute(query).scalar() or 0)

    def paths(self) -> set[str]:
        """Return the paths of all files that the present or the past refers to."""
        with self._reading() as connection:
            return set(history.paths(connection))

    def rows(self, query: sa.Select[Any]) -> list[Mapping[str, Any]]:
        """Return what *query* finds now: for the records, which nothing in memory holds."""
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def integrity(self) -> list[str]:
        """Return what is wrong with the database: its pages, its indexes, and rows that are not those that were written."""
        try:
            with self._reading() as connection:
                return [f"catalogue: {problem}" for problem in sums.problems(connection)]
        except (sqlite3.DatabaseError, StoreError) as error:
            return [f"catalogue: {error}"]

    def close(self) -> None:
        """Close the database; the write-ahead log is folded into it."""
        if self._writing is not None:
            self._writing.close()
        self._engine.dispose()
        self._mark.close()
