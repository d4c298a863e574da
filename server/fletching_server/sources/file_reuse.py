"""Ticker reuse: which rows of a ticker's file belong to the security that carries the ticker now.

A map file (LEAN's format) has lines ``YYYYMMDD,ticker[,...]``: the security carried the ticker up to and including that
date, and the first line is its listing. Rows outside belong to older securities. Each stretch of them is served under a
symbol of its own in Norgate's convention: ticker, hyphen, year and month of its last bar.
"""

from __future__ import annotations

import csv
import re
import threading
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from fletching_schemas.errors import BadSourceData, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from fletching_server.sources.file_layout import FoundFile

Days = tuple[date, date]
Owners = dict[str, tuple[Days, ...]]
ALWAYS: Final[Days] = (date.min, date.max)
_DAY: Final = timedelta(days=1)
_FORMER: Final = re.compile(r"-\d{6}(?=\.|$)")


@dataclass(frozen=True)
class Tenure:
    """When the present security carried a ticker, and the stretches in between: first and last day, inclusive."""

    own: tuple[Days, ...] = (ALWAYS,)

    @property
    def others(self) -> tuple[Days, ...]:
        """The stretches in which somebody else carried it, oldest first."""
        starts = [date.min, *(last + _DAY for _, last in self.own if last < date.max)]
        ends = [*(first - _DAY for first, _ in self.own if first > date.min), date.max]
        if self.own and self.own[0][0] == date.min:
            starts = starts[1:]
        if self.own and self.own[-1][1] == date.max:
            ends = ends[:-1]
        return tuple(zip(starts, ends, strict=True))

    def former(self, sessions: Collection[date]) -> dict[str, Days]:
        """Return the stretches that hold some of *sessions*, by the suffix ``-YYYYMM`` of their last session."""
        found: dict[str, Days] = {}
        for first, last in self.others:
            if held := [day for day in sessions if first <= day <= last]:
                found[f"-{max(held):%Y%m}"] = (first, last)
        return found


class TickerReuse:
    """The map files in a folder; what they say of a ticker's files is remembered until a file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[object, dict[str, Days]] = {}
        self._lock = threading.Lock()

    def tenure(self, ticker: str) -> Tenure:
        """Return when the present security carried *ticker*; always, where the folder has no file for it.

        Raises ``SourceUnavailable`` where the folder is missing: without it two securities would be served as one.
        """
        if not self._folder.is_dir():
            raise SourceUnavailable(f"the folder {self._folder}, which tells reused tickers apart, is not there")
        return read_tenure(self._folder / f"{ticker.lower()}.csv", ticker)

    def former(self, tenure: Tenure, files: Sequence[FoundFile], read: Callable[[FoundFile], set[date]]) -> dict[str, Days]:
        """Return the stretches of a ticker's *files* that belong to former securities, by their ``-YYYYMM``.

        *read* gives the sessions in a file whose name does not say them.
        """
        stamp = (tenure, *((file.origin, file.path.stat().st_mtime_ns, file.path.stat().st_size) for file in files))
        with self._lock:
            known = self._found.get(stamp)
        if known is None:
            known = tenure.former({day for file in files for day in ({file.day} if file.day else read(file))})
            with self._lock:
                self._found[stamp] = known
        return known


def without_former(symbol: str) -> str:
    """Return *symbol* without the ``-YYYYMM`` of a former security: ``WM.US`` for ``WM-200809.US``."""
    return _FORMER.sub("", symbol)


def read_tenure(path: Path, ticker: str) -> Tenure:
    """Return when the present security carried *ticker*; always, where there is no map file.

    Raises ``BadSourceData`` naming file, line and value where a line holds no date and ticker or the dates go back.
    """
    if not path.is_file():
        return Tenure()
    with path.open(encoding="utf8", newline="") as lines:
        rows = [_parsed(path, number, row) for number, row in enumerate(csv.reader(lines), 1) if row]
    own: list[Days] = []
    for index, (day, carried) in enumerate(rows):
        first = day if index == 0 else rows[index - 1][0] + _DAY
        if first > day + _DAY:
            raise BadSourceData(f"{path}: row {index + 1} goes back to {day}; dates must increase")
        if carried != ticker.lower() or first > day:
            continue
        if own and own[-1][1] + _DAY == first:
            first = own.pop()[0]
        own.append((first, day))
    return Tenure(tuple(own))


def _parsed(path: Path, number: int, row: list[str]) -> tuple[date, str]:
    try:
        return datetime.strptime(row[0].strip(), "%Y%m%d").date(), row[1].strip().lower()  # noqa: DTZ007  a date
    except (ValueError, IndexError) as error:
        raise BadSourceData(f"{path}: row {number} is {','.join(row)!r:.80}; it must be YYYYMMDD,ticker") from error
