"""What the store's own data says about exchanges: published trade dates, and sessions on which a reference index traded.

Calendars are taught from it at the start, after every commit to such a dataset, and each day; where the package's knowledge
runs out soon, the list of trade dates and the index's last bars are fetched by themselves, once a day, in the background.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Final

import structlog

from fletching_schemas import Dataset, ReadRequest
from fletching_schemas.errors import Error
from fletching_server.almanac import FOLLOWS, Calendars, Learned
from fletching_server.calendars import day_number
from fletching_server.clock import Clock
from fletching_server.desk import Desk
from fletching_server.gathering import Gathering
from fletching_server.reads import Reads
from fletching_server.settings import CalendarSettings
from fletching_server.snapshot import DatasetState
from fletching_server.spans import PROVISIONAL, Days
from fletching_server.store import DamagedFile, Store

log = structlog.get_logger(__name__)

SOON: Final = timedelta(days=10)  # before knowledge runs out: the next year is published about ten days before it begins
_LOOK_BACK: Final = timedelta(days=40)
_INDICES: Final = {"XSHG": "000001.SH", "XHKG": "HSI.HK"}
_EVER: Final = Days(day_number(date(1900, 1, 1)), day_number(date(2200, 1, 1)))


class Evidence:
    """Teaches the calendars of one engine."""

    def __init__(
        self,
        store: Store,
        gathering: Gathering,
        reads: Reads,
        desk: Desk,
        calendars: Calendars,
        clock: Clock,
        said: Mapping[str, CalendarSettings],
    ) -> None:
        self._store, self._gathering, self._reads, self._desk = store, gathering, reads, desk
        self._calendars, self._clock, self._said = calendars, clock, said
        self._lock = threading.Lock()
        self._looked: date | None = None
        self._asked: date | None = None
        self._asking: threading.Thread | None = None
        store.catalogue.on_commit(self._committed)

    def _committed(self, dataset: str) -> None:
        state = self._store.catalogue.state(dataset)
        chosen = any(said.index_dataset == dataset for said in self._said.values())
        if state and (chosen or _is_list(state.dataset) or state.dataset.notation == "index"):
            self._looked = None  # whoever reads next looks again

    def look(self) -> None:
        """Teach the calendars what is held, if something may have changed since the last look; cheap otherwise."""
        today = self._clock.now().date()
        if self._looked == today:
            return
        with self._lock:
            self._looked = today
            for mic in self._exchanges():
                self._calendars.teach(mic, self._learned(mic))
        self._ask_where_needed(today)

    def _exchanges(self) -> set[str]:
        return {state.dataset.calendar for state in self._store.catalogue.states() if state.dataset.calendar}

    def _learned(self, mic: str) -> Learned:
        listed = {day for state in self._lists() for day in self._listed(state, FOLLOWS.get(mic, mic))}
        traded, silent = self._index_days(mic)
        return Learned(frozenset(listed), frozenset(traded), frozenset(silent))

    def _lists(self) -> list[DatasetState]:
        return [state for state in self._store.catalogue.states() if _is_list(state.dataset)]

    def _listed(self, state: DatasetState, mic: str) -> list[int]:
        """Return the published sessions of *mic*."""
        try:
            with self._store.pinned(state.dataset.name) as pinned:
                rows = self._gathering.rows(pinned, [mic], _EVER)
        except DamagedFile as damage:
            log.warning("the list of trade dates cannot be read", why=str(damage))
            return []
        sessions = rows[state.dataset.time].cast("int32").to_pylist()
        known = rows["status"].to_pylist()
        return [session for session, status in zip(sessions, known, strict=True) if status == "known"]

    def _index_days(self, mic: str) -> tuple[list[int], list[int]]:
        """Return the settled days on which the reference index of *mic* traded, and those on which it was silent."""
        traded: list[int] = []
        silent: list[int] = []
        calendar = self._calendars.get(mic)
        for state, symbol in self._indices(mic):
            for span in state.coverage.get(symbol, ()):
                if span.state != PROVISIONAL:
                    days = calendar.between(span.first, span.last).tolist()
                    (silent if span.reason else traded).extend(days)
        return traded, silent

    def _indices(self, mic: str) -> Iterator[tuple[DatasetState, str]]:
        said = self._said.get(mic)
        chosen = said.index_dataset if said else None
        symbol = (said.index if said else None) or _INDICES.get(FOLLOWS.get(mic, mic))
        for state in self._store.catalogue.states():
            fits = state.dataset.name == chosen if chosen else state.dataset.notation == "index"
            same = FOLLOWS.get(state.dataset.calendar or "", state.dataset.calendar) == FOLLOWS.get(mic, mic)
            if symbol and fits and same:
                yield state, symbol

    # Asking, where what is known runs out

    def _ask_where_needed(self, today: date) -> None:
        requests = list(self._needed(today))
        if not requests or self._asked == today:
            return
        self._asked = today
        self._asking = threading.Thread(target=self._ask, args=(requests,), name="evidence", daemon=True)
        self._asking.start()

    def _needed(self, today: date) -> Iterator[ReadRequest]:
        for mic in sorted({FOLLOWS.get(mic, mic) for mic in self._exchanges()}):
            known_until = self._calendars.get(mic).known_until
            wanted = [(state, mic) for state in self._lists()] if known_until <= today + SOON else []
            wanted += self._indices(mic) if known_until < today else []  # it only says what has been
            for state, symbol in wanted:
                if self._desk.source(state.dataset.name):
                    yield ReadRequest(state.dataset.name, (symbol,), today - _LOOK_BACK, today)

    def _ask(self, requests: list[ReadRequest]) -> None:
        for request in requests:
            try:
                self._reads.read(request, "embedded", "calendar").close()
            except Error as error:
                log.info("the calendar could not be extended today", request=request.dataset, why=error.message)
        self._looked = None

    def known_days(self) -> dict[str, int]:
        """Return, for each exchange in use, for how many days from today its calendar is known."""
        today = day_number(self._clock.now().date())
        return {mic: self._calendars.get(mic).known_until_number - today for mic in sorted(self._exchanges())}

    def close(self) -> None:
        """Wait for what is being asked."""
        if self._asking is not None:
            self._asking.join()


def _is_list(dataset: Dataset) -> bool:
    return (dataset.schema.metadata or {}).get(b"dataset") == b"calendar" and dataset.keys == ("mic", "session")
