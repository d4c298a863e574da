"""The record of what came from where: fills, restated rows and sessions, as tables for people and programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa

from fletching_schemas import ReadRequest
from fletching_schemas.datasets import TIMESTAMP
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.requests import parse_moment
from fletching_server import tables as t
from fletching_server.almanac import Calendars
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.plan import named_symbols
from fletching_server.store import Store

MOST_ROWS: Final = 100_000  # of one answer, the newest first

_PROVENANCE: Final = pa.schema(
    [
        ("fill_id", pa.string()),
        ("dataset", pa.string()),
        ("symbols", pa.list_(pa.string())),
        ("first", pa.date32()),
        ("last", pa.date32()),
        ("rows", pa.int64()),
        ("provider", pa.string()),
        ("function", pa.string()),
        ("arguments", pa.string()),
        ("version", pa.string()),
        ("unit_check", pa.string()),
        ("restated", pa.int64()),
        ("fetched_at", TIMESTAMP),
        ("digest", pa.string()),
    ]
)
_RESTATEMENTS: Final = pa.schema(
    [
        ("dataset", pa.string()),
        ("symbol", pa.string()),
        ("session", pa.date32()),
        ("key", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
        ("rule", pa.string()),
        ("fill_id", pa.string()),
        ("noticed_at", TIMESTAMP),
    ]
)
_SESSIONS: Final = pa.schema(
    [
        ("mic", pa.string()),
        ("session", pa.date32()),
        ("open", TIMESTAMP),
        ("break_start", TIMESTAMP),
        ("break_end", TIMESTAMP),
        ("close", TIMESTAMP),
        ("settled", TIMESTAMP),
        ("half_day", pa.bool_()),
        ("status", pa.string()),
    ]
)


class Records:
    """What one store remembers of its fills, and what its calendars say."""

    def __init__(self, store: Store, calendars: Calendars) -> None:
        self._store, self._calendars = store, calendars

    def provenance(self, request: ReadRequest) -> pa.Table:
        """Return a row per fill that touched the asked symbols and sessions, the newest first; instants in UTC."""
        p = t.provenance.c
        first, last = _range(request)
        where = [p.dataset == self._store.state(request.dataset).dataset.name, p.last_day >= first, p.first_day <= last]
        query = sa.select(t.provenance).where(*where).order_by(p.seq.desc()).limit(MOST_ROWS)
        wanted = self._symbols(request)
        rows = (_fill_row(row) for row in self._store.catalogue.rows(query))
        return pa.Table.from_pylist([row for row in rows if wanted is None or wanted & set(row["symbols"])], _PROVENANCE)

    def restatements(self, request: ReadRequest) -> pa.Table:
        """Return a row per settled row that came back changed, the newest first, with what differs before and after."""
        r = t.restatements.c
        first, last = _range(request)
        where = [r.dataset == self._store.state(request.dataset).dataset.name, r.session >= first, r.session <= last]
        query = sa.select(t.restatements).where(*where).order_by(r.id.desc()).limit(MOST_ROWS)
        wanted = self._symbols(request)
        rows = (_restated_row(row) for row in self._store.catalogue.rows(query))
        return pa.Table.from_pylist([row for row in rows if wanted is None or row["symbol"] in wanted], _RESTATEMENTS)

    def _symbols(self, request: ReadRequest) -> set[str] | None:
        named = named_symbols(request, self._store.state(request.dataset).dataset)
        return None if named is None else set(named)

    def sessions(self, body: Mapping[str, Any]) -> pa.Table:
        """Return a row per session of an exchange: its hours and when it has settled, in UTC, and who vouches for it.

        Body: ``mic``, ``start``, ``end`` (dates, inclusive). *status* is known, unknown (a weekday of which nobody has said
        anything yet) or disputed (called a session, but the reference index has no bar).
        """
        if set(body) - {"mic", "start", "end"} or not isinstance(body.get("mic"), str):
            raise InvalidRequest(
                f"sessions takes mic, such as XSHG, and start and end; it got {', '.join(map(str, body)) or 'nothing'}"
            )
        calendar = self._calendars.get(body["mic"])
        first, last = _days(parse_moment(body.get("start"), "start"), parse_moment(body.get("end"), "end"))
        return pa.Table.from_pylist(list(_session_rows(calendar, first, last)), _SESSIONS)


def _range(request: ReadRequest) -> tuple[int, int]:
    return _days(request.start, request.end)


def _days(start: Any, end: Any) -> tuple[int, int]:
    first, last = (moment.date() if isinstance(moment, datetime) else moment for moment in (start, end))
    return (-(10**6) if first is None else day_number(first)), (10**6 if last is None else day_number(last))


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _fill_row(row: Mapping[str, Any]) -> dict[str, Any]:
    days = {"first": from_day_number(row["first_day"]), "last": from_day_number(row["last_day"])}
    told = {"fill_id": row["id"], "symbols": json.loads(row["symbols"]), "fetched_at": _instant(row["fetched_at"])}
    return {**row, **days, **told}


def _restated_row(row: Mapping[str, Any]) -> dict[str, Any]:
    told = {"session": from_day_number(row["session"]), "fill_id": row["fill"], "noticed_at": _instant(row["noticed_at"])}
    return {**row, **told}


def _session_rows(calendar: Calendar, first: int, last: int) -> Iterator[dict[str, Any]]:
    hours, short = calendar.hours, set(calendar.half_days(first, last))
    low, high = (int(place) for place in (calendar.days.searchsorted(first), calendar.days.searchsorted(last, "right")))
    for place in range(low, high):
        number, pause = int(calendar.days[place]), hours.break_starts[place] < hours.break_ends[place]
        yield {
            "mic": calendar.mic,
            "session": from_day_number(number),
            "open": int(hours.opens[place]),
            "break_start": int(hours.break_starts[place]) if pause else None,
            "break_end": int(hours.break_ends[place]) if pause else None,
            "close": int(hours.closes[place]),
            "settled": int(calendar.settled[place]),
            "half_day": from_day_number(number) in short,
            "status": "known" if calendar.known[place] else "disputed" if number in calendar.disputed else "unknown",
        }
