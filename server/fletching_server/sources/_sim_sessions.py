"""The sessions and the hours of the exchanges that the simulated market knows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from threading import Lock
from typing import Any, Final

import numpy as np
from exchange_calendars.exchange_calendar_xhkg import XHKGExchangeCalendar
from exchange_calendars.exchange_calendar_xnys import XNYSExchangeCalendar
from exchange_calendars.exchange_calendar_xshg import XSHGExchangeCalendar
from numpy.typing import NDArray

from fletching_schemas.datasets import EPOCH
from fletching_schemas.errors import InvalidRequest

Ints = NDArray[np.signedinteger[Any]]

MINUTE: Final = 60_000_000
# The end of the made-up world where a calendar has no bound: a fixed day, because today must not change an answer.
_HORIZON: Final = date(2039, 12, 31)

CALENDARS: Final[dict[str, Any]] = {
    "XSHG": XSHGExchangeCalendar,
    "XHKG": XHKGExchangeCalendar,
    "XNYS": XNYSExchangeCalendar,
}
_CONSTRUCTION = Lock()


def day_number(day: date) -> int:
    """Return the days since 1970-01-01, as ``date32`` counts them."""
    return (day - EPOCH).days


@dataclass(frozen=True, eq=False)
class Sessions:
    """The sessions of an exchange: days since 1970-01-01, and their hours in microseconds UTC.

    A session without a lunch break has both its ends at the close.
    """

    days: Ints
    opens: Ints
    break_starts: Ints
    break_ends: Ints
    closes: Ints

    @property
    def minutes(self) -> Ints:
        """The minutes of trading in each session."""
        return (self.break_starts - self.opens + self.closes - self.break_ends) // MINUTE

    def minute_ends(self, ordinal: int) -> Ints:
        """Return the end of every minute of the session at *ordinal*, microseconds UTC."""
        morning = np.arange(self.opens[ordinal], self.break_starts[ordinal], MINUTE)
        afternoon = np.arange(self.break_ends[ordinal], self.closes[ordinal], MINUTE)
        return np.concatenate((morning, afternoon)) + MINUTE


@lru_cache(maxsize=8)
def sessions_between(mic: str, first: date, last: date | None) -> Sessions:
    """Return the sessions of *mic* from *first* to *last* (None: as far as the calendar package knows, at most 2039).

    Raises ``InvalidRequest`` where there are none.
    """
    schedule = _schedule(mic, first).loc[first.isoformat() : (last or _HORIZON).isoformat()]
    if schedule.empty:
        raise InvalidRequest(f"the simulated market has no sessions: {mic} from {first} to {last or _HORIZON}")
    opens, closes, starts, ends = (_micros(schedule[name]) for name in ("open", "close", "break_start", "break_end"))
    days = schedule.index.to_numpy().astype("datetime64[D]").astype(np.int64)
    starts, ends = (np.where(np.isnat(edge), closes, edge) for edge in (starts, ends))
    return Sessions(days, *(edge.astype(np.int64) for edge in (opens, starts, ends, closes)))


def _micros(instants: Any) -> NDArray[np.datetime64]:
    moments: NDArray[np.datetime64] = instants.dt.tz_convert(None).to_numpy().astype("datetime64[us]")
    return moments


def _schedule(mic: str, first: date) -> Any:
    kind = CALENDARS[mic]
    low, high = kind.bound_min(), kind.bound_max()
    start = max(first, low.date()) if low is not None else first
    end = min(high.date(), _HORIZON) if high is not None else _HORIZON
    start = min(start, end - timedelta(days=31))  # a calendar cannot be built without a session in it
    # The package trips over deprecations of new pandas versions. Filters are process-wide, hence the lock.
    with _CONSTRUCTION, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(start=start.isoformat(), end=end.isoformat()).schedule
