"""The thread that keeps all journals short, and forgets from time to time what is older than the past is kept."""

from __future__ import annotations

import threading
from typing import Final

import structlog

from fletching_schemas.errors import UnknownDataset
from fletching_server.clock import Clock
from fletching_server.compaction import Compaction
from fletching_server.store import Store
from fletching_server.tiers import segments_of

LOOK_SECONDS: Final = 60.0  # so often it looks at the clock where nothing else happens
RETRY_SECONDS: Final = 60.0  # after a failure; twice that after the next, and so on
MOST_RETRY_SECONDS: Final = 3600.0

log = structlog.get_logger(__name__)


class Compactor:
    """One background thread. What is urgent it does after the commit that makes it so, all else in a quiet moment."""

    def __init__(self, store: Store, compaction: Compaction, clock: Clock, idle_seconds: float, vacuum_seconds: float) -> None:
        self._store, self._compaction, self._clock = store, compaction, clock
        self._idle_seconds, self._vacuum_seconds = idle_seconds, vacuum_seconds
        self._commits: set[str] = set()
        # Journals that an earlier process left are looked at in the first quiet moment.
        self._waiting = {state.dataset.name for state in store.catalogue.states() if segments_of(state)}
        self._troubles: dict[str, tuple[int, float]] = {}  # how often in a row it failed, and when it is tried again
        self._vacuum_at = clock.monotonic() + vacuum_seconds
        self._vacuumed = False
        self._woken = threading.Condition()
        self._closing = False
        store.catalogue.on_commit(self._committed)
        self._thread = threading.Thread(target=self._run, name="compactor", daemon=True)
        self._thread.start()

    def _committed(self, dataset: str) -> None:
        with self._woken:
            self._commits.add(dataset)
            self._woken.notify()

    def _run(self) -> None:
        while True:
            with self._woken:
                patience = self._idle_seconds if self._waiting else LOOK_SECONDS
                quiet = not self._woken.wait_for(lambda: self._closing or self._commits, patience)
                if self._closing:
                    return
                self._waiting |= self._commits
                self._commits.clear()
            for name in sorted(self._waiting):
                self._tidy(name, quiet=quiet)
            self._vacuum(quiet=quiet)

    def _tidy(self, dataset: str, *, quiet: bool) -> None:
        """Do all that is worth doing for *dataset*, unless it failed a short while ago."""
        failures, again_at = self._troubles.get(dataset, (0, 0.0))
        if failures and self._clock.monotonic() < again_at:
            return
        try:
            while not self._closing and self._compaction.step(dataset, quiet=quiet):
                pass
            if not segments_of(self._store.state(dataset)):
                self._waiting.discard(dataset)
        except UnknownDataset:
            self._waiting.discard(dataset)
        except Exception as error:  # noqa: BLE001  # the other datasets must not wait for this one
            self._failed(dataset, failures, error)
            return
        if self._troubles.pop(dataset, None):
            log.info("compaction works again", dataset=dataset)

    def _failed(self, dataset: str, failures: int, error: Exception) -> None:
        """Tell of the first failure in a row, and wait longer after each."""
        pause = min(RETRY_SECONDS * 2**failures, MOST_RETRY_SECONDS)
        self._troubles[dataset] = (failures + 1, self._clock.monotonic() + pause)
        if not failures and not self._closing:
            log.error("compaction failed; it is tried again after a while", dataset=dataset, error=str(error), exc_info=error)

    def _vacuum(self, *, quiet: bool) -> None:
        """Forget what is older than the past is kept: in the first quiet moment, and then as often as was said."""
        if self._clock.monotonic() < self._vacuum_at and (self._vacuumed or not quiet):
            return
        self._vacuumed, self._vacuum_at = True, self._clock.monotonic() + self._vacuum_seconds
        for state in self._store.catalogue.states():
            name = state.dataset.name
            try:
                if not self._closing and self._store.catalogue.is_due(name):
                    self._store.vacuum(name)
            except LookupError:
                pass  # deleted meanwhile
            except Exception:
                log.exception("forgetting the past failed; it is tried again the next time", dataset=name)

    def close(self) -> None:
        """Stop after the step under way."""
        with self._woken:
            self._closing = True
            self._compaction.stop()
            self._woken.notify()
        self._thread.join()
