"""What memory is told when a session of an exchange begins: how likely each thing that it holds is asked for today."""

from __future__ import annotations

from itertools import islice
from typing import Final

from fletching_schemas.errors import Error
from fletching_server.agenda import Slot
from fletching_server.almanac import Calendars
from fletching_server.clock import Clock
from fletching_server.habits import Habits, Wanted
from fletching_server.hot import HotTier
from fletching_server.learning import Learning, Mic
from fletching_server.predictor import LEAST_CHANCE
from fletching_server.snapshot import StoredFile
from fletching_server.store import Store
from fletching_server.warming import Warming

_MOST_PLANS: Final = 1000  # a session; each takes up to some milliseconds


class Foresight:
    """Tells once for each exchange and session; yesterday's uses say little of partitions that grow old with a day."""

    def __init__(
        self, hot: HotTier, store: Store, warming: Warming, learning: Learning, calendars: Calendars, clock: Clock
    ) -> None:
        self._hot, self._store, self._warming = hot, store, warming
        self._learning, self._calendars, self._clock = learning, calendars, clock
        self._told: dict[Mic, int] = {}

    def tell(self, mic: Mic, habits: Habits, session: int) -> None:
        """Tell memory of *session*, the first time that this is called for it."""
        if self._told.get(mic) == session:
            return
        self._told[mic] = session
        datasets = {state.dataset.name for state in self._store.catalogue.states() if state.dataset.calendar == mic}
        chances = {lineage: LEAST_CHANCE for lineage in self._hot.lineages() if lineage.partition("/")[0] in datasets}
        files: dict[str, StoredFile] = {}
        expected = sorted(habits.expected(session, (Slot.ANY,)), key=lambda wanted: -wanted.chance)
        for wanted in islice(expected, _MOST_PLANS):
            for file in self._files(mic, habits, wanted):
                if (lineage := file.lineage) in chances:  # several may want it
                    chances[lineage] = 1.0 - (1.0 - chances[lineage]) * (1.0 - wanted.chance)
                    files[file.key] = file
        self._hot.foresee(chances)
        for file in sorted(files.values(), key=lambda file: -chances[file.lineage]):  # it shall not leave before it is asked for
            self._hot.expect(self._hot.item(file), chances[file.lineage])

    def _files(self, mic: Mic, habits: Habits, wanted: Wanted) -> tuple[StoredFile, ...]:
        """Return the files that a read of *wanted* touches; none where it cannot be said."""
        calendar = self._calendars.get(mic)
        request = habits.request(wanted, calendar, calendar.settled_through(self._clock.now()), self._learning.members)
        if request is None or self._store.catalogue.state(wanted.key.dataset) is None:
            return ()
        try:
            return self._warming.estimate(request).files
        except Error:  # a symbol that is known no more, a list that cannot be had
            return ()
