"""Into a store: the next generation of every partition that gets rows, written beside the present one, and one commit."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final, Protocol

from fletching_schemas import Action
from fletching_schemas.errors import CorruptFile, InvalidRequest, StoreError
from fletching_server.engine import Engine
from fletching_server.importing.change import Import, Provenance
from fletching_server.importing.held import held_share
from fletching_server.importing.job import Job
from fletching_server.importing.merge import Counts, Opener
from fletching_server.importing.merging import Share
from fletching_server.importing.partitions import PeriodWriter, writing
from fletching_server.importing.plan import ImportPlan
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.store import DamagedFile

_TRIES: Final = 5  # a commit that lost a race against another one is prepared again


class MergeAll(Protocol):
    """Merges all periods of an import: ``Running.merge``."""

    def __call__(self, opener: Opener, held: Callable[[str], Sequence[Share]]) -> Counts:
        """Hand the rows of every period to what *opener* opens, and return what became of them."""
        ...


class Publication:
    """The publishing of one import in the store of *engine*; *facts* are what was read, for the records."""

    def __init__(self, engine: Engine, plan: ImportPlan, job: Job, facts: Mapping[str, Any]) -> None:
        self._engine, self._plan, self._job, self._facts = engine, plan, job, facts
        self.files: list[StoredFile] = []

    def publish(self, merge: MergeAll) -> Counts:
        """Return once the merged rows are visible and on stable storage; ``CorruptFile`` where held ones cannot be read."""
        for _ in range(_TRIES):
            try:
                return self._published(merge)
            except LookupError:  # somebody wrote, folded or defined meanwhile
                self._discard()
            except DamagedFile as damage:
                self._discard()
                raise CorruptFile(f"import into {self._plan.dataset.name}: {damage}; restore this file from a backup") from damage
            except BaseException:
                self._discard()
                raise
        raise StoreError(f"{self._plan.dataset.name} is being changed all the time by others; run the import again")

    def _published(self, merge: MergeAll) -> Counts:
        name, store = self._plan.dataset.name, self._engine.store
        if store.catalogue.state(name) is None:
            counts = merge(self._opened, lambda _period: ())
            self._commit(None, (), counts)
            return counts
        self._engine.act(Action.COMPACT, {"dataset": name})
        with store.pinned(name) as state:
            if state.dataset != self._plan.dataset:
                raise InvalidRequest(f"{name} has become another table since this import was planned; run it again")
            replaced: list[StoredFile] = []
            counts = merge(self._opened, lambda period: self._held(state, period, replaced))
            self._commit(state, tuple(replaced), counts)
        self._engine.hot.drop({file.key for file in replaced})
        return counts

    def _held(self, state: DatasetState, period: str, replaced: list[StoredFile]) -> list[Share]:
        """Return what is held of *period*, and note that its files give way."""
        files = [file for file in state.files if file.kind == "partition" and file.period == period]
        replaced += files
        return [held_share(state.dataset, self._engine.store.path(file), self._job.held) for file in files]

    @contextmanager
    def _opened(self, period: str) -> Iterator[PeriodWriter]:
        with writing(self._engine.store, self._plan.dataset, period) as writer:
            yield writer
        self.files += writer.files

    def _commit(self, state: DatasetState | None, removed: tuple[StoredFile, ...], counts: Counts) -> None:
        dataset, engine = self._plan.dataset, self._engine
        gone = {file.id for file in removed}
        known = state or DatasetState(dataset, None)
        kept = [file for file in known.files if file.kind == "partition" and file.id not in gone]
        engine.store.declare(known, (*kept, *self.files), engine.store.declared_through(dataset.name))
        engine.store.commit(Import(dataset, state is None, tuple(self.files), removed, self._provenance(counts)))

    def _provenance(self, counts: Counts) -> Provenance:
        files = self.files
        told = {
            **self._facts,
            "kept": counts.kept,
            "duplicates": counts.equal,
            "different": counts.different,
            "reduced": counts.reduced,
            "replaced": counts.replaced,
        }
        return Provenance(
            uuid.uuid4().hex,
            self._engine.clock.now().timestamp(),
            told,
            counts.kept,
            min((file.first_day for file in files), default=0),
            max((file.last_day for file in files), default=-1),
            tuple(sorted({symbol for file in files for symbol in file.symbols})),
            self._job.folder.name,
            version("fletching"),
        )

    def _discard(self) -> None:
        for file in self.files:
            self._engine.store.discard(file)
        self.files = []
