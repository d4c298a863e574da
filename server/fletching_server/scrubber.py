"""The scrubber: every file's checksum is read again, slowly, so that damage is found before somebody needs the rows.

A file is due so many days after its last check, the one that waited longest first. New files count as checked at some time
in the past that follows from their id, so that checks spread evenly over the days. What is found damaged is mended where a
source can deliver it again; a user's file stays, and is reported until it is sound or gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

import structlog
import xxhash
from sqlalchemy.exc import SQLAlchemyError

from fletching_schemas.errors import CorruptFile, UnknownDataset
from fletching_server.clock import Clock
from fletching_server.notes import Notes
from fletching_server.repair import Repairs
from fletching_server.settings import Settings
from fletching_server.snapshot import StoredFile
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store

REST_SECONDS: Final = 60.0  # between looks for what is due, and before the first: a start belongs to readers
_SAVE_SECONDS: Final = 600.0
_DAY_SECONDS: Final = 86_400.0

log = structlog.get_logger(__name__)


class Interrupted(Exception):  # noqa: N818  # no error: somebody wants the scrubber to end
    """The check under way shall not go on."""


def next_due(files: Iterable[StoredFile], checked: Mapping[str, float], before: float) -> StoredFile | None:
    """Return the file that was checked longest ago, if that was *before* this instant; None where none is due."""
    oldest = min(files, key=lambda file: (checked[file.id], file.id), default=None)
    return oldest if oldest is not None and checked[oldest.id] <= before else None


def spread(file_id: str) -> float:
    """Return a number from 0 to 1 that only this file has."""
    return float(xxhash.xxh3_64_intdigest(file_id.encode()) / 2**64)


class Scrubber:
    """Checks the files of one store, each about once in ``scrub_days`` (0: never), at most ``scrub_mb_per_second``.

    ``pause`` lets so many seconds pass and returns whether to end: that is for whoever runs it to say.
    """

    def __init__(
        self,
        store: Store,
        repairs: Repairs,
        notes: Notes,
        clock: Clock,
        stats: Stats,
        settings: Settings,
    ) -> None:
        self._store, self._repairs, self._notes = store, repairs, notes
        self._clock, self._stats = clock, stats
        self._period, self._rate = settings.scrub_days * _DAY_SECONDS, settings.scrub_mb_per_second * 1e6
        self.pause: Callable[[float], bool] = lambda _seconds: False
        self._saved = clock.monotonic()
        self._checked: dict[str, float] = {}
        self._damaged: dict[str, str] = {}
        self._begun, self._ended = self._now(), 0.0  # the round under way, and the one before
        self._load()

    def work(self) -> float:
        """Check whatever is due, and return after how many seconds to look again."""
        with suppress(Interrupted):
            while self.step():
                pass
        self.save()
        return REST_SECONDS

    def step(self) -> bool:
        """Check the one file that is due most, or end the round; return whether there was anything to do."""
        if not self._period:
            return False
        files = self._files()
        file = next_due(files.values(), self._checked, self._now() - self._period)
        if file is not None:
            self._check(file)
        elif self._now() - self._begun >= self._period:
            self._end_round(len(files))
        else:
            return False
        return True

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _files(self) -> dict[str, StoredFile]:
        """Return the live files by id, and bring what is remembered in line with them."""
        files = {file.id: file for state in self._store.catalogue.states() for file in state.files}
        now, known = self._now(), self._checked
        # The clock may have been put back: nothing was checked in the future.
        self._checked = {id_: min(known[id_], now) if id_ in known else now - self._period * spread(id_) for id_ in files}
        self._damaged = {id_: why for id_, why in self._damaged.items() if id_ in files or id_ == "catalogue"}
        return files

    def _check(self, file: StoredFile) -> None:
        try:
            self._store.verify(file, self._paced)
        except DamagedFile as damage:
            if self._is_live(file):  # else it was folded, deleted or mended while it was read
                self._found(damage)
        else:
            self._damaged.pop(file.id, None)
        self._checked[file.id] = self._now()
        self._stats.add(scrubbed_files=1, scrubbed_bytes=file.bytes)

    def _paced(self, size: int) -> None:
        if self.pause(size / self._rate):
            raise Interrupted

    def _is_live(self, file: StoredFile) -> bool:
        state = self._store.catalogue.state(file.dataset)
        return state is not None and any(held.id == file.id for held in state.files)

    def _found(self, damage: DamagedFile) -> None:
        """Have it mended; a user's file is remembered, which the repair has logged as an error."""
        self._stats.add(damaged_files=1)
        try:
            self._repairs.mend(damage)
        except CorruptFile as error:
            self._damaged[damage.file.id] = error.message
        except UnknownDataset:  # deleted just now
            return

    def _end_round(self, files: int) -> None:
        """Look at the catalogue itself, and begin the next round."""
        try:
            problems = self._store.catalogue.integrity()
        except SQLAlchemyError as error:
            problems = [f"catalogue: {error}"]
        self._damaged.pop("catalogue", None)
        if problems:
            self._damaged["catalogue"] = f"{'; '.join(problems)}: restore the catalogue from a backup"
            log.error("the catalogue is damaged", problems=problems)
        self._begun = self._ended = self._now()
        log.info("every file was read again", files=files, damaged=len(self._damaged))

    # Telling

    def damaged(self) -> list[str]:
        """Return what is damaged and cannot be mended here, as sentences."""
        return sorted(self._damaged.values())

    def facts(self) -> dict[str, Any]:
        """Return how much is damaged now and cannot be mended here, and when the last round ended (0: none has)."""
        return {"damaged_now": len(self._damaged), "scrub_round_ended": self._ended}

    def told(self) -> str:
        """Return when every file had been read again the last time, as a sentence."""
        if not self._ended:
            return "the scrubber has not ended a round yet"
        return f"the scrubber's last round ended {datetime.fromtimestamp(self._ended, UTC):%Y-%m-%d %H:%M} UTC"

    # Across restarts

    def _load(self) -> None:
        found = self._notes.load()
        try:
            checked = {str(name): float(at) for name, at in found.get("checked", {}).items()}
            damaged = {str(name): str(why) for name, why in found.get("damaged", {}).items()}
            begun, ended = float(found.get("begun", self._begun)), float(found.get("ended", 0.0))
            datetime.fromtimestamp(ended, UTC)
        except (TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
            self._notes.distrust(repr(error))
            return
        self._checked = {name: at for name, at in checked.items() if isfinite(at)}
        self._damaged, self._ended = damaged, ended
        self._begun = min(begun, self._begun) if isfinite(begun) else self._begun

    def save(self, *, now: bool = False) -> None:
        """Write down what was checked when, if that was not done in the last minutes."""
        if now or self._clock.monotonic() - self._saved >= _SAVE_SECONDS:
            self._saved = self._clock.monotonic()
            facts = {"begun": self._begun, "ended": self._ended, "checked": self._checked, "damaged": self._damaged}
            self._notes.save(facts)
