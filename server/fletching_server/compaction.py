"""Keeping a journal short: segments become fewer and larger, and then part of partitions, in steps that no reader notices.

A step takes neighbours in the journal, writes new files, and exchanges all of it in one commit; no lock is held meanwhile
that a read or a write waits for. A crash before the commit leaves files nobody refers to; the segments are still there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from fletching_schemas.errors import ServerClosing
from fletching_server.almanac import Calendars
from fletching_server.changes import Swap
from fletching_server.clock import Clock
from fletching_server.folding import Folding
from fletching_server.gathering import Gathering
from fletching_server.hot import HotTier
from fletching_server.image import Image
from fletching_server.merging import Merging, only_add
from fletching_server.repair import Repairs
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import Adjacent
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store
from fletching_server.tiers import FEW, FOLD_BYTES, Rules, cheapest_run, prefix, segments_of, worth_folding

_Made = tuple[StoredFile, Image | None]


class Compaction:
    """The steps of one engine, one at a time."""

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        gathering: Gathering,
        repairs: Repairs,
        calendars: Calendars,
        clock: Clock,
        stats: Stats,
        rules: Rules | None = None,
    ) -> None:
        self._store, self._hot, self._repairs = store, hot, repairs
        self._calendars, self._clock, self._stats = calendars, clock, stats
        self._merging, self._folding = Merging(store, gathering), Folding(store, gathering)
        self.rules = rules or Rules()
        self._one_at_a_time = threading.Lock()
        self._began: dict[str, tuple[int, float]] = {}  # the lowest rank in each journal, and when that was committed
        self._stopping = threading.Event()

    def compact(self, dataset: str) -> int:
        """Return how many segments of *dataset* were folded into partitions: all there were when this was called."""
        with self._one_at_a_time:
            folded = 0
            left = len(segments_of(self._store.state(dataset)))
            while left > 0:
                try:
                    step = self._fold(dataset)
                except DamagedFile as damage:
                    self._repairs.mend(damage)
                    step = 1
                if not step:
                    break
                folded, left = folded + step, left - step
            return folded

    def step(self, dataset: str, *, quiet: bool) -> bool:
        """Do what is worth doing for *dataset* now, or the first step of it; False: nothing is."""
        with self._one_at_a_time:
            try:
                return self._step(dataset, quiet=quiet)
            except DamagedFile as damage:
                self._repairs.mend(damage)
                return True

    def _step(self, dataset: str, *, quiet: bool) -> bool:
        state = self._store.state(dataset)
        segments = segments_of(state)
        if not segments:
            return False
        if worth_folding(state, segments, self._age(dataset, segments[0]), self.rules, quiet=quiet):
            return self._fold(dataset) > 0
        run = cheapest_run(segments, max(2, min(self.rules.fan_out, FEW) if quiet else self.rules.fan_out))
        return bool(run) and self._merge(dataset, run)

    def _age(self, dataset: str, oldest: StoredFile) -> float:
        known = self._began.get(dataset)
        if known is None or known[0] != oldest.lowest:
            known = self._began[dataset] = (oldest.lowest, self._store.catalogue.committed_at(oldest.lowest))
        return self._clock.now().timestamp() - known[1]

    def stop(self) -> None:
        """Let the step under way end with its next file, and no other begin."""
        self._stopping.set()

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise ServerClosing("the cache is closed; compaction goes on when it is opened again")

    # Steps

    def _merge(self, dataset: str, run: Sequence[StoredFile]) -> bool:
        """Make one segment of *run*; False where these are not the journal's any more."""
        self._go_on()
        with self._store.pinned(dataset) as state:
            if not {file.id for file in run} <= {file.id for file in state.files}:
                return False
            made = self._merging.merge(state, run, self._store.catalogue.kept_since(dataset))
            change = Swap(dataset, (made[0],), tuple(run), self._adjacent(state), run[-1].rank, merged=True, shape=state.shape)
            if not self._exchange(change, [made]):
                return False
        self._stats.add(merged_segments=len(run), merged_bytes=made[0].bytes)
        return True

    def _fold(self, dataset: str) -> int:
        """Return how many segments were folded: the oldest that fit in memory together."""
        gathered = self._gather(dataset)
        with self._store.pinned(dataset) as state:
            segments, old = prefix(segments_of(state)), list[StoredFile]()
            if not segments:
                return gathered
            made = self._written(self._folding.fold(state, segments, old), self._is_hot(segments))
            files = tuple(file for file, _ in made)
            gone = {file.id for file in old}
            kept = [file for file in state.files if file.kind == "partition" and file.id not in gone]
            self._store.declare(state, (*kept, *files), segments[-1].place)
            change = Swap(dataset, files, (*segments, *old), self._adjacent(state), segments[-1].rank, shape=state.shape)
            if not self._exchange(change, made):
                return 0
        folded = len(segments) + max(gathered - 1, 0)
        self._stats.add(folded_segments=folded, folded_bytes=sum(file.bytes for file in files))
        return folded

    def _gather(self, dataset: str) -> int:
        """Merge what is about to be folded, where the past can do with that one file instead; return of how many it is."""
        with self._store.pinned(dataset) as state:
            segments, kept_since = prefix(segments_of(state)), self._store.catalogue.kept_since(dataset)
            tells = len(segments) >= FEW and kept_since is not None and only_add(segments, kept_since)
            return len(segments) if tells and self._merge(dataset, segments) else 0

    def _written(self, writing: Iterator[tuple[StoredFile, Image]], hot: bool) -> list[_Made]:
        """Return the files that *writing* yields, those that are wanted in memory with their rows; an error leaves none."""
        made: list[_Made] = []
        room = FOLD_BYTES if hot else 0
        try:
            self._go_on()
            for file, image in writing:
                room -= image.nbytes
                made.append((file, image if room >= 0 else None))
                self._go_on()
        except BaseException:
            self._discard(file for file, _ in made)
            raise
        return made

    def _exchange(self, change: Swap, made: Sequence[_Made]) -> bool:
        """Commit *change*, and keep in memory what was there; False where it was replaced, deleted or mended meanwhile."""
        try:
            self._store.commit(change)
        except LookupError:
            self._discard(change.added)
            return False
        hot = self._is_hot(change.removed)
        self._hot.drop({file.key for file in change.removed})
        for file, image in made:
            if hot and image is not None:
                self._hot.offer(self._hot.item(file), image)
        return True

    def _discard(self, files: Iterable[StoredFile]) -> None:
        for file in files:
            self._store.discard(file)

    def _is_hot(self, files: Iterable[StoredFile]) -> bool:
        return any(self._hot.holds(file.key) for file in files)

    def _adjacent(self, state: DatasetState) -> Adjacent:
        return self._calendars.get(state.dataset.calendar).adjacent
