"""What to do about a damaged file: fetched rows are forgotten and fetched again, a user's rows are never given up."""

from __future__ import annotations

import structlog

from fletching_schemas.errors import CorruptFile
from fletching_server.almanac import Calendars
from fletching_server.changes import Forget
from fletching_server.hot import HotTier
from fletching_server.store import DamagedFile, Store

log = structlog.get_logger(__name__)


class Repairs:
    """Mends what reading and starting find damaged."""

    def __init__(self, store: Store, hot: HotTier, calendars: Calendars) -> None:
        self._store, self._hot, self._calendars = store, hot, calendars

    def mend(self, damage: DamagedFile) -> None:
        """Set the file aside and forget the cells that rest on it; ``CorruptFile`` where nobody could deliver them again."""
        file = damage.file
        state = self._store.state(file.dataset)
        if state.is_table:
            log.error("user data is damaged", dataset=file.dataset, file=file.path, why=str(damage))
            raise CorruptFile(
                f"{damage}; it holds user data that no source can deliver again: restore this file from a backup, "
                f"or delete the table {file.dataset}. Run `fletching verify` for the whole list"
            )
        if file.id not in {held.id for held in state.files}:
            return  # somebody else was faster
        calendar = self._calendars.get(state.dataset.calendar)
        self._store.commit(Forget(file.dataset, file.symbols, file.reach, calendar.adjacent, (file,)))
        place = self._store.set_aside(file)
        self._hot.drop({file.key})
        log.warning("damaged file set aside", dataset=file.dataset, why=str(damage), place=str(place))

    def at_start(self) -> int:
        """Check the journal as a crash may have left it, and return how many segments were dropped."""
        dropped = 0
        for state in self._store.catalogue.states():
            for file in state.files:
                if file.kind == "segment" and not self._sound(file):
                    dropped += 1
        return dropped

    def _sound(self, file: object) -> bool:
        try:
            self._store.path(file)  # type: ignore[arg-type]
        except DamagedFile as damage:
            try:
                self.mend(damage)
            except CorruptFile:
                return True  # kept, and told to whoever reads it: the other data can be served
            return False
        return True
