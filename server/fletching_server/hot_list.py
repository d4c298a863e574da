"""What lay in memory, written down now and then, so that a server that starts again has it there before anybody asks.

After a start the files are read back in the background, those worth most first, until memory is full; while somebody's own
read loads something, this waits. What is gone or has changed its bytes since costs nothing: a list names partitions, and the
file is the present one. A list that is lost or cannot be read means a cold start and nothing else.
"""

from __future__ import annotations

import threading
from math import isfinite
from typing import Any, Final

import structlog

from fletching_server.cold import ColdTier
from fletching_server.hot import HotTier
from fletching_server.notes import Notes
from fletching_server.policy import Item
from fletching_server.snapshot import StoredFile
from fletching_server.store import DamagedFile, Store

log = structlog.get_logger(__name__)

SAVE_SECONDS: Final = 60.0  # so much is lost by a server that is killed
_YIELD_SECONDS: Final = 0.02


class HotList:
    """The list of one store, and its way back into memory: ``restored`` is set then, ``closing`` ends it early."""

    def __init__(self, store: Store, hot: HotTier, cold: ColdTier, notes: Notes) -> None:
        self._store, self._hot, self._cold, self._notes = store, hot, cold, notes
        self.closing, self.restored = threading.Event(), threading.Event()

    def work(self) -> float:
        """Restore what the list names, the first time; from then on write it down. Return when to do so again."""
        if not self.restored.is_set():
            self.restore()
        self.save()
        return SAVE_SECONDS

    def save(self) -> None:
        """Write down what is held, unless the last list has not been restored yet."""
        if self.restored.is_set():
            self._notes.save({"hot": [[lineage, told.get("uses", 1.0)] for lineage, told in self._hot.ranked()]})

    def restore(self) -> None:
        """Read back what the list names, those worth most first, as far as it is there and there is room."""
        listed = self._listed()
        rank = {lineage: place for place, lineage in enumerate(listed)}
        states = self._store.catalogue.states()
        files = sorted((file for state in states for file in state.files if file.lineage in rank), key=lambda f: rank[f.lineage])
        self._hot.recall((self._hot.item(file), listed[file.lineage]) for file in reversed(files))
        back = list[Item]()
        for file in files:
            self._give_way()
            item = self._hot.item(file)
            if self.closing.is_set() or not self._hot.has_room(item.bytes):
                break
            if self._bring_back(item, file):
                back.append(item)
        self._hot.recall((item, 1.0) for item in reversed(back))  # for a policy that goes by when something came
        if self.closing.is_set():  # the old list stands: what it names has not all been back
            return
        self.restored.set()
        if listed:
            log.info("memory restored", listed=len(listed), held=len(back), bytes=sum(item.bytes for item in back))

    def _listed(self) -> dict[str, float]:
        """Return the decayed uses of each lineage on the list, those worth most first."""
        found: Any = self._notes.load().get("hot", [])
        try:
            listed = {str(lineage): float(uses) for lineage, uses in found}
        except (TypeError, ValueError) as error:
            self._notes.distrust(repr(error))
            return {}
        return {lineage: uses for lineage, uses in listed.items() if isfinite(uses)}

    def _give_way(self) -> None:
        while self._hot.busy and not self.closing.wait(_YIELD_SECONDS):
            pass

    def _bring_back(self, item: Item, file: StoredFile) -> bool:
        """Return whether *file* lies in memory now; where it does not, it has gone, or the next read finds out what is wrong."""
        try:
            with self._store.pinned(file.dataset) as state:
                there = any(held.key == file.key for held in state.files)
                lease = self._hot.load(item, lambda: self._cold.whole(state.dataset, file)) if there else None
        except (DamagedFile, LookupError, OSError) as error:
            log.warning("a file of the hot list cannot be read", lineage=file.lineage, why=str(error))
            return False
        if lease is None:
            return False
        lease.release()
        return True
