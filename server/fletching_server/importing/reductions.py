"""Rows that an import leaves out because it was asked to: of each symbol and session, in the order of time. Pure.

Rows come in groups, in order; a symbol's session may go on in the next group, so what came last is remembered.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_schemas.errors import InvalidRequest

_DURATION: Final = re.compile(r"(\d+)(ms|s|m|h)")
_MICROS: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_DAY: Final = 86_400_000_000
_BOOK: Final = (
    ("bid", "bid_px", "bid_price", "best_bid"),
    ("ask", "ask_px", "ask_price", "best_ask"),
    ("bid_size", "bid_sz", "bid_qty", "bid_volume"),
    ("ask_size", "ask_sz", "ask_qty", "ask_volume"),
)

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Reductions:
    """What to leave out, in this order.

    ``nbbo``: rows that do not change the best bid and ask or their sizes. ``resample``: all but the last row of each interval
    (``1s``). ``every``: all but the first of so many rows.
    """

    nbbo: bool = False
    resample: str | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise InvalidRequest(f"--every takes a number from 1 on, not {self.every}")
        if self.resample is not None:
            self.interval  # noqa: B018  # raises where it is none

    @property
    def interval(self) -> int:
        """The interval of ``resample`` in microseconds; it divides a day."""
        found = _DURATION.fullmatch(self.resample or "")
        interval = int(found[1]) * _MICROS[found[2]] if found else 0
        if not interval or _DAY % interval:
            raise InvalidRequest(
                f"--resample takes an interval that divides a day, such as 1s, 500ms or 5m; not {self.resample!r}"
            )
        return interval

    def __bool__(self) -> bool:
        return self.nbbo or self.resample is not None or self.every is not None

    def facts(self) -> dict[str, Any]:
        """Return what was asked for, for the records."""
        return {name: value for name, value in asdict(self).items() if value}

    def book(self, dataset: Dataset) -> tuple[str, ...]:
        """Return the columns that ``nbbo`` compares; ``InvalidRequest`` where *dataset* has no bid and ask."""
        found = tuple(name for names in _BOOK for name in names if name in dataset.schema.names)
        if len([name for name in found if name in _BOOK[0] + _BOOK[1]]) < 2:
            raise InvalidRequest(f"--nbbo needs a bid and an ask; {dataset.name} has {', '.join(dataset.schema.names)}")
        return found

    def check(self, dataset: Dataset) -> None:
        """Raise ``InvalidRequest`` where *dataset* lacks what they look at."""
        if self.nbbo:
            self.book(dataset)
        if self.resample and not pa.types.is_timestamp(dataset.schema.field(dataset.time).type):
            raise InvalidRequest(f"--resample needs instants; the time of {dataset.name} is a date")


@dataclass
class Reducer:
    """Applies *reductions* to the rows of one partition, and numbers those that are left (*seq*), group after group.

    A group holds whole instants, and with ``resample`` whole intervals.
    """

    dataset: Dataset
    reductions: Reductions
    seq: str | None = None
    _last: pl.DataFrame | None = field(default=None, repr=False)  # the row before the group
    _left: int = 0  # how many rows of its symbol and session ``nbbo`` and ``resample`` have left so far

    def reduced(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return what is left of *frame*, which is sorted and follows what this was given before."""
        if not (self.reductions or self.seq) or not frame.height:
            return frame
        session = np.cumsum(_changes(frame, self._last, self._named(frame)))  # 0: the one of the row before
        keep = self._kept(frame, session)
        self._last = frame.tail(1)
        left = session[keep]
        places = np.arange(len(left)) - np.searchsorted(left, left) + np.where(left == 0, self._left, 0)
        self._left = int((left == session[-1]).sum()) + (self._left if session[-1] == 0 else 0)
        chosen = places % (self.reductions.every or 1) == 0
        frame = frame.filter(pl.Series(keep)).filter(pl.Series(chosen))
        return frame.with_columns(pl.Series(self.seq, places[chosen])) if self.seq else frame

    def _named(self, frame: pl.DataFrame) -> list[pl.Expr]:
        session = pl.col(self.dataset.session)
        return [pl.col(self.dataset.symbol), session if frame[self.dataset.session].dtype == pl.Date else session.dt.date()]

    def _kept(self, frame: pl.DataFrame, session: np.ndarray[Any, Any]) -> Mask:
        asked, keep = self.reductions, np.ones(frame.height, dtype=bool)
        if asked.nbbo:
            names = [pl.col(name) for name in asked.book(self.dataset)]
            keep = _changes(frame, self._last, [*self._named(frame), *names])
        if asked.resample:
            interval = frame[self.dataset.time].to_physical().to_numpy() // asked.interval
            rows = np.flatnonzero(keep)
            changes = (np.diff(session[rows]) != 0) | (np.diff(interval[rows]) != 0)
            is_last = np.append(changes, np.ones(min(len(rows), 1), dtype=bool))
            keep[rows[~is_last]] = False
        return keep


def _changes(frame: pl.DataFrame, last: pl.DataFrame | None, columns: list[pl.Expr]) -> Mask:
    """Return which rows differ in *columns* from the row before them, the first one from *last*; it does where there is none."""
    rows = frame.select(columns)
    before = pl.concat([rows.head(1) if last is None else last.select(columns), rows.head(-1)])
    changed = np.zeros(len(rows), dtype=bool)
    for now, old in zip(rows, before, strict=True):
        changed |= now.ne_missing(old).to_numpy()
    if last is None:
        changed[0] = True
    return changed
