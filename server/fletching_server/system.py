"""What a cache tells of itself as datasets that are read like any other: ``system.access_log``.

``cache.datasets`` does not list them: it tells what somebody offers or wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, time
from typing import Any, Final

import pyarrow as pa

from fletching_schemas import Dataset, ReadInfo, ReadRequest
from fletching_schemas.errors import InvalidRequest, UnknownDataset
from fletching_schemas.requests import is_system
from fletching_server.access_log import AccessLog
from fletching_server.access_table import EVENTS
from fletching_server.almanac import Calendars
from fletching_server.answering import Answer
from fletching_server.calendars import day_number
from fletching_server.clock import Clock
from fletching_server.filtering import check_filter, filter_columns, filtered
from fletching_server.gaps import World
from fletching_server.plan import Plan, resolve
from fletching_server.snapshot import DatasetState

_UNITS: Final = {
    "at": "when the read began, UTC",
    "request_id": "one per logged read",
    "principal": "who asked, or a pseudonym (access_hash)",
    "profile": "trading, research or backtesting",
    "group": "the symbol, * for all, # and a digest for several",
    "symbols": "of the group, where it has at most 64",
    "first": "first wanted session; null: the request named no start",
    "last": "last wanted session; null: the range has none",
    "open_end": "the request named no end",
    "columns": "asked for; none: all",
    "touched": "partitions: bytes in memory, tier hot, cold or source; period is empty for the journal",
    "upstream_calls": "calls to sources",
    "rows": "of the answer",
    "bytes": "of the answer, as Arrow",
    "milliseconds": "from the request to the end of the answer",
    "repeats": "further reads alike that came too fast to be told one by one",
}
ACCESS_LOG: Final = Dataset(
    "system.access_log",
    pa.schema([item.with_metadata({"unit": _UNITS[item.name]}) if item.name in _UNITS else item for item in EVENTS]),
    ("request_id", "at"),
    "at",
    period="day",
    description="One row per read that ended: who asked for what, and where it came from.",
)
_NO_SENSE: Final = ("symbols", "adjust", "adjust_ref", "as_of", "max_age", "profile")
_BATCH_ROWS: Final = 65_536


class SystemReads:
    """The ``system.*`` datasets of one engine."""

    def __init__(self, access: AccessLog, calendars: Calendars, clock: Clock) -> None:
        self._access, self._calendars, self._clock = access, calendars, clock

    def dataset(self, name: str) -> Dataset:
        """Return what the system dataset *name* promises; ``UnknownDataset`` names what there is."""
        if name != ACCESS_LOG.name:
            raise UnknownDataset(f"there is no dataset {name!r}; of the cache itself there is {ACCESS_LOG.name}")
        return ACCESS_LOG

    def read(self, request: ReadRequest, plane: str) -> Answer:
        """Return the answer to *request*, in the order of the log; it is no read of data, and not logged itself.

        Days and instants are in UTC. Raises ``UnknownDataset``, ``UnknownColumn``, and ``InvalidRequest`` for arguments that
        make no sense for a log.
        """
        plan = self.plan(request)
        info, held, started = ReadInfo(request.dataset, plane), ExitStack(), self._clock.monotonic()
        names = dict.fromkeys((*plan.columns, *filter_columns(request.where)))
        found = (_stored(batch, plan.dataset) for batch in self._access.batches(*_range(request), list(names)))
        rows = filtered(found, request.where, request.limit, plan.schema)

        def end() -> None:
            info.milliseconds = (self._clock.monotonic() - started) * 1e3

        held.callback(end)
        return Answer(plan.schema, _counted(rows, info), info, held, _BATCH_ROWS, plan)

    def plan(self, request: ReadRequest) -> Plan:
        """Return *request*, checked and resolved: its schema is the answer's."""
        dataset = self.dataset(request.dataset)
        given = [name for name in _NO_SENSE if getattr(request, name) is not None]
        if given:
            raise InvalidRequest(
                f"{dataset.name} cannot be read with {', '.join(given)}: it is a log, by time; "
                "give start, end and columns, and filter the frame, or use cache.scan"
            )
        if request.where is not None:
            check_filter(request.where, dataset)
        state = DatasetState(dataset, None)
        return resolve(request, state, World(self._calendars.get(None), self._clock.now(), None, fillable=False))

    def explain(self, request: ReadRequest) -> dict[str, Any]:
        """Return what a read would do: it reads files of the log, and asks nobody."""
        plan = self.plan(request)
        days = self._access.days(*_range(request))
        files = [file for day in days for file in self._access.files.files(day)]
        return {
            "dataset": request.dataset,
            "columns": plan.schema.names,
            "symbols": 0,
            "first": str(days[0]) if days else None,
            "last": str(days[-1]) if days else None,
            "files": [{"path": file.path.name, "kind": file.kind, "tier": "cold", "bytes": file.size} for file in files],
            "upstream_calls": [],
            "gaps": [],
            "filter": None if request.where is None else str(request.where),
            "limit": request.limit,
        }


def refuse_system(name: object) -> None:
    """Raise ``InvalidRequest`` where *name* is a system dataset's: they can be read, and nothing else."""
    if is_system(name):
        raise InvalidRequest(f"{name} is a record that the cache keeps of itself: it can be read and scanned, nothing else")


def _range(request: ReadRequest) -> tuple[int | None, int | None]:
    return _instant(request.start, time.min), _instant(request.end, time.max)


def _instant(moment: date | datetime | None, of_day: time) -> int | None:
    """Return *moment* in microseconds since 1970; a day begins or ends at *of_day*, and what has no zone is in UTC."""
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, of_day)
    instant = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    of_its_day = instant.astimezone(UTC)
    seconds = day_number(of_its_day.date()) * 86_400 + of_its_day.hour * 3600 + of_its_day.minute * 60 + of_its_day.second
    return seconds * 1_000_000 + of_its_day.microsecond


def _stored(batch: pa.RecordBatch, dataset: Dataset) -> pa.RecordBatch:
    """Return *batch* in the types in which rows are served."""
    fields = [dataset.schema.field(name) for name in batch.schema.names]
    arrays = [column.cast(item.type) for column, item in zip(batch.columns, fields, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata=dataset.schema.metadata))


def _counted(batches: Iterator[pa.RecordBatch], info: ReadInfo) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        info.rows += batch.num_rows
        info.bytes += batch.nbytes
        info.tiers["cold"].add(batch.num_rows, batch.nbytes)
        yield batch
