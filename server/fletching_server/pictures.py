"""Which picture of a dataset a request means: the present one, or that of an instant or a generation of the past."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from fletching_schemas import ReadRequest
from fletching_schemas.errors import HistoryGone, InvalidRequest
from fletching_server.almanac import Calendars
from fletching_server.clock import Clock
from fletching_server.snapshot import DatasetState
from fletching_server.store import Store

_SLACK = timedelta(seconds=10)  # by so much a client's clock may be ahead


class Pictures:
    """The present and the past of one store, by request."""

    def __init__(self, store: Store, calendars: Calendars, clock: Clock) -> None:
        self._store, self._calendars, self._clock = store, calendars, clock

    def settled(self, request: ReadRequest) -> ReadRequest:
        """Return *request* with the generation that it means in place of an instant; of the past nothing can be fetched.

        Raises ``InvalidRequest`` for the future, ``HistoryGone`` for what is kept no longer, and ``UnknownDataset``.
        """
        if request.as_of is None:
            return request
        return replace(request, as_of=self._generation(request.dataset, request.as_of), on_miss="cached", max_age=None)

    def picture(self, request: ReadRequest) -> DatasetState:
        """Return the picture that *request* means, for looking only."""
        generation = self.settled(request).as_of
        if generation is None:
            return self._store.state(request.dataset)
        return self._store.past(request.dataset, _number(generation))

    def pinned(self, request: ReadRequest) -> AbstractContextManager[DatasetState]:
        """Return the same picture as a context in which its files stay on disk; *request* must be settled."""
        if request.as_of is None:
            return self._store.pinned(request.dataset)
        return self._store.pinned_past(request.dataset, _number(request.as_of))

    def _generation(self, dataset: str, moment: int | date | datetime) -> int:
        state = self._store.state(dataset)
        if isinstance(moment, int):
            if moment > state.generation:
                raise InvalidRequest(f"{dataset} has no generation {moment} yet; the present one is {state.generation}")
            return moment
        zone = self._calendars.get(state.dataset.calendar).zone
        instant = _instant(moment, zone)
        begins = instant if isinstance(moment, datetime) else _instant(datetime.combine(moment, time.min), zone)
        if begins > self._clock.now() + _SLACK:  # today has an end in the future, and means the present
            raise InvalidRequest(f"as_of={moment} lies in the future; leave it out to read the present state")
        found = self._store.catalogue.generation_at(dataset, instant.timestamp())
        if found is None:
            raise HistoryGone(f"{dataset} did not exist at {moment}, or its past is kept no longer; see history_days")
        return found


def _instant(moment: date | datetime, zone: tzinfo) -> datetime:
    """Return the instant that *moment* means: the end of a day, or a time of day where it has no zone, at the exchange."""
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time.max)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def _number(generation: object) -> int:
    if not isinstance(generation, int):
        raise TypeError("the request must be settled first")
    return generation
