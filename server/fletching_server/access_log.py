"""The access log: who read what, and where it came from. Taken down by reads at next to no cost, worked out in the background.

A read leaves a ``Noted`` in a queue. About once a second the queue is drained: events are made, principals named, reads that
came too fast are counted instead of told, files written, and listeners called. What a crash takes is what was in the queue.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from threading import RLock
from typing import Final

import pyarrow as pa
import structlog

from fletching_schemas.errors import StoreUnwritable
from fletching_server.access import ALL, AccessEvent
from fletching_server.access_files import AccessFiles
from fletching_server.access_table import EVENTS, GROUPS, microseconds, to_events, to_table
from fletching_server.background import Background
from fletching_server.clock import Clock
from fletching_server.noting import Fields, Noted, Parts, Queue, event_of, members_of, thinned
from fletching_server.principals import Principals
from fletching_server.settings import Settings
from fletching_server.stats import Stats

log = structlog.get_logger(__name__)

Listener = Callable[[Sequence[AccessEvent]], None]

SINGLY: Final = 100  # events of a principal per drain that are told one by one; see ``access.thinned``
MOST_EVENTS: Final = 1000  # of a principal per drain; it bounds what anybody can make us write
PART_SECONDS: Final = 60.0  # how long parts of an answer wait for the others
JUMP_SECONDS: Final = 60.0  # by so much the wall clock may leave the monotonic one before it is told
KEEP_EVENTS: Final = 500_000  # written, after which the log is brought within its bounds, even if the day is not over
MOST_MEMBERS: Final = 5_000_000  # symbols of groups that are written per day
_GROUPS_KEPT: Final = 512


class AccessLog:
    """The access log of one store, safe to use from any thread.

    ``listeners`` are called with each batch of events that was drained, in order; they should be quick, and an error of one is
    logged and disturbs nobody.
    """

    def __init__(self, root: Path, clock: Clock, stats: Stats, settings: Settings) -> None:
        self.queue = Queue() if settings.access_log else None  # where reads are noted; None: they are not
        self.listeners: list[Listener] = []
        self.files = AccessFiles(root / "access")
        self._clock, self._stats = clock, stats
        self._days, self._most_bytes = settings.access_days, int(settings.access_disk)
        self._seconds = settings.access_seconds
        self._principals = Principals(self.files.root / "key" if settings.access_hash else None)
        self._parts = Parts()
        self._run, self._numbers = os.urandom(4).hex(), itertools.count()
        self._members: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._told: set[str] = set()  # groups whose members were written on the day ``_told_on``
        self._told_on, self._told_members, self._kept_on = date.min, 0, date.min
        self._refused, self._written = False, 0
        self._offset = self._clock_offset()
        self._draining = RLock()  # held for I/O, but only by those who want the log itself
        self._work = Background("access-log", self._worked, self._seconds)

    def again(self, fields: Fields, principal: str) -> None:
        """Take down that the very answer of an earlier read, as it was noted, went out once more, to *principal*."""
        if self.queue is not None:
            noted = Noted._make(fields)
            self.queue.note(noted._replace(at=self._clock.now(), principal=principal, upstream_calls=0, milliseconds=0.0))

    # Draining: in the background

    def start(self) -> None:
        """Begin to write what is noted, and to keep the log within its bounds."""
        if self.queue is not None:
            self.files.sweep()
            self._work.start()

    def _worked(self) -> float:
        self._look_at_clock()
        self.flush()
        self._keep()
        return self._seconds

    def flush(self) -> None:
        """Return once all that was noted before is written, and the listeners know of it."""
        with self._draining:
            batch, missed = self.queue.taken() if self.queue else ([], 0)
            whole = self._parts.taken(batch)
            whole += self._parts.left(self._clock.now() - timedelta(seconds=PART_SECONDS))
            self._drain(whole, missed)

    def _drain(self, batch: Sequence[Noted], missed: int = 0) -> None:
        told, left_out = thinned(batch, SINGLY, MOST_EVENTS)
        events: list[AccessEvent] = []
        try:
            events = [self._event(noted, repeats) for noted, repeats in told]
            for day, of_day in groupby(events, lambda event: _day(event.at)):
                self._write(day, list(of_day))
            self._stats.add(logged_reads=len(events) + sum(event.repeats for event in events))
            self._note_recovery()
        except (StoreUnwritable, OSError, pa.ArrowException) as error:
            missed += len(told)
            self._note_refusal(error)
        self._stats.add(unlogged_reads=missed + left_out)
        if events:
            self._tell(events)

    def _event(self, noted: Noted, repeats: int) -> AccessEvent:
        request_id = f"{self._run}-{next(self._numbers)}"
        event = event_of(noted, request_id, self._principals.name(noted.principal), repeats)
        if event.group.startswith("#"):
            self._members[event.group] = members_of(noted) or ()
            self._members.move_to_end(event.group)
            if len(self._members) > _GROUPS_KEPT:
                self._members.popitem(last=False)
        return event

    def _write(self, day: date, events: Sequence[AccessEvent]) -> None:
        first = microseconds(min(event.at for event in events))
        groups = self._new_groups(day, events)
        if groups:
            rows = {"group": list(groups), "symbols": [list(symbols) for symbols in groups.values()]}
            self.files.write(day, "groups", pa.Table.from_pydict(rows, schema=GROUPS), first)
            self._told |= set(groups)
        self.files.write(day, "events", to_table(events), first)
        self._written += len(events)

    def _new_groups(self, day: date, events: Sequence[AccessEvent]) -> dict[str, tuple[str, ...]]:
        """Return the members of groups that *day* has not told yet."""
        if day != self._told_on:
            self._told, self._told_on, self._told_members = set(), day, 0
        found: dict[str, tuple[str, ...]] = {}
        for group in {event.group for event in events if event.group.startswith("#")} - self._told:
            members = self._members.get(group) or ()
            if members and self._told_members + len(members) <= MOST_MEMBERS:
                self._told_members += len(members)
                found[group] = members
        return found

    def _tell(self, events: Sequence[AccessEvent]) -> None:
        for listener in list(self.listeners):
            try:
                listener(events)
            except Exception:
                log.exception("a listener of the access log failed; it hears of later reads")

    def _note_refusal(self, error: Exception) -> None:
        if not self._refused:
            log.warning("the access log cannot be written; reads go on, and are not logged until it can", why=str(error))
        self._refused = True

    def _note_recovery(self) -> None:
        if self._refused:
            log.info("the access log can be written again")
        self._refused = False

    def _look_at_clock(self) -> None:
        offset = self._clock_offset()
        if abs(jump := offset - self._offset) > JUMP_SECONDS:
            log.warning("the clock has jumped; reads are logged under the time that it tells", seconds=round(jump))
        self._offset = offset

    def _clock_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _keep(self) -> None:
        """At the start, with each new day, and after many events: join what is over, let go of what is too old or too much."""
        today = self._clock.now().date()
        if today != self._kept_on or self._written >= KEEP_EVENTS:
            with self._draining:
                self.files.keep(today, self._days, self._most_bytes)
            self._kept_on, self._written = today, 0

    def close(self) -> None:
        """Write what is noted, and stop; a second call does nothing more."""
        self._work.close()
        if self.queue is not None:
            with self._draining:
                self.flush()
                self._drain(self._parts.left())

    # Reading

    def events(self, since: date | None = None) -> Iterator[AccessEvent]:
        """Yield what is logged from the day *since* on (UTC; None: all), nearly in order; days of the future are left out.

        What was noted before is written first. A file that cannot be read is skipped, and that is logged.
        """
        self.flush()
        today = self._clock.now().date()
        days = self.files.days()
        if ahead := [day for day in days if day > today + timedelta(days=1)]:
            log.warning("the access log has days of the future, left by a clock that was wrong: skipped", first=str(ahead[0]))
        for day in days:
            if (since is None or day >= since) and day not in ahead:
                for batch in self.files.read(day, "events"):
                    yield from to_events(batch)

    def batches(self, first: int | None, last: int | None, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows whose ``at`` is from *first* to *last*, in microseconds since 1970, those just noted among them."""
        self.flush()
        for day in self.days(first, last):
            yield from _within(self.files.read(day, "events", _with_at(columns)), first, last, columns or EVENTS.names)

    def days(self, first: int | None = None, last: int | None = None) -> list[date]:
        """Return the days that have events which began from *first* to *last*, in microseconds since 1970."""
        low, high = (None if instant is None else _day(instant / 1e6) for instant in (first, last))
        return [day for day in self.files.days() if (low is None or day >= low) and (high is None or day <= high)]

    def members(self, group: str) -> tuple[str, ...]:
        """Return the symbols of *group*; none for ``*``, and where the log does not know it any more."""
        if not group.startswith("#"):
            return () if group == ALL else (group,)
        if found := self._members.get(group):
            return found
        for day in reversed(self.files.days()):
            for batch in self.files.read(day, "groups"):
                if group in (names := batch.column("group").to_pylist()):
                    return tuple(batch.column("symbols")[names.index(group)].as_py())
        return ()


def _day(at: float) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)).date()


def _with_at(columns: Sequence[str] | None) -> Sequence[str] | None:
    return columns if columns is None or "at" in columns else [*columns, "at"]


def _within(
    batches: Iterator[pa.RecordBatch], first: int | None, last: int | None, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        at = batch.column("at").cast(pa.int64()).to_numpy(zero_copy_only=False)
        wanted = (at >= (first if first is not None else at)) & (at <= (last if last is not None else at))
        rows = batch if wanted.all() else batch.filter(pa.array(wanted))
        if rows.num_rows:
            yield rows.select(list(columns))
