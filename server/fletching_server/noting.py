"""Reads as the read path takes them down, of what is there anyway; what must be worked out is worked out later. Pure.

``event_of`` makes the event that is told. Reads that come too fast are ``thinned``, parts of one answer ``joined``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from fletching_schemas import PartRequest, ReadRequest
from fletching_server.access import SYMBOLS_TOLD, USUAL_PROFILE, AccessEvent, Touched, group_of, period_of
from fletching_server.plan import Plan
from fletching_server.snapshot import StoredFile

MOST_WAITING: Final = 65_536  # reads, about half a kilobyte each where their plans are kept; else kilobytes
_made: Final = tuple.__new__  # as Noted._make does, which takes thrice the time
_NOTHING: Final = ReadRequest("nothing")


class Noted(NamedTuple):
    """One read that has ended.

    ``asked`` is what somebody asked, and what was read for it, as a filter narrows it; None where both are what a kept plan was
    made for: with thousands of reads waiting, requests that are not reused at once cost more than all else. ``cold`` are the
    keys of files that did not lie in memory; ``warmed`` is by file, empty where none was. Segments after the generation
    ``began`` were fetched for it (None: nothing was).
    """

    at: datetime
    principal: str
    asked: tuple[ReadRequest, ReadRequest] | None
    plan: Plan
    cold: tuple[str, ...]
    upstream_calls: int
    rows: int
    bytes: int
    milliseconds: float
    began: int | None
    warmed: Sequence[bool]
    part: PartRequest | None


# The same as a plain tuple: what the read path makes of it, as a named one takes thrice the time.
Fields = tuple[Any, ...]


class Queue:
    """The reads that have ended and wait to be told, within a bound. In the read path, so there is no lock and little else.

    Reads whose plans are kept may be put into ``waiting`` as they are, up to ``MOST_WAITING``. Threads that note at the same
    time may make the bound a little wrong, and the count of those left out.
    """

    __slots__ = ("_left_out", "_weight", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Fields] = deque()
        self._weight = self._left_out = 0

    def note(self, fields: Fields) -> None:
        """Take down the read that *fields* are of, if there is room for it."""
        weight = self._weight + _weight(Noted._make(fields))
        if max(weight, len(self.waiting)) < MOST_WAITING:
            self._weight = weight
            self.waiting.append(fields)
        else:
            self._left_out += 1

    def taken(self) -> tuple[list[Noted], int]:
        """Return what waits, in order, and how many were left out since the last time."""
        left_out, self._left_out, self._weight = self._left_out, 0, 0
        return [_made(Noted, self.waiting.popleft()) for _ in range(len(self.waiting))], left_out


def _weight(noted: Noted) -> int:
    """Return what it takes in memory, in kilobytes, about; a plan that is kept lies somewhere else, too."""
    return 0 if noted.plan.lasting else 1 + (len(noted.plan.symbols) >> 4) + (len(noted.plan.files) >> 4)


def members_of(noted: Noted) -> tuple[str, ...] | None:
    """Return the symbols that were asked for; None: all."""
    return None if _requests(noted)[1].symbols is None else noted.plan.symbols


def _requests(noted: Noted) -> tuple[ReadRequest, ReadRequest]:
    """Return what somebody asked, and what was read for it."""
    kept = noted.plan.asked or _NOTHING
    return noted.asked or (kept, kept)


def event_of(noted: Noted, request_id: str, principal: str, repeats: int = 0) -> AccessEvent:
    """Return *noted*, worked out, as the read of *principal*."""
    plan = noted.plan
    demand, asked = _requests(noted)
    window, symbols = plan.window, members_of(noted)
    return AccessEvent(
        at=noted.at.timestamp(),
        request_id=request_id,
        principal=principal,
        profile=demand.profile or USUAL_PROFILE,
        dataset=plan.dataset.name,
        group=group_of(symbols),
        symbols=symbols if symbols is not None and len(symbols) <= SYMBOLS_TOLD else (),
        first=None if asked.start is None else window.first_day,
        last=window.last_day if window.last_day >= window.first_day else None,
        open_end=asked.end is None,
        columns=demand.columns or (),
        touched=_touched(noted),
        upstream_calls=noted.upstream_calls,
        rows=noted.rows,
        bytes=noted.bytes,
        milliseconds=noted.milliseconds,
        repeats=repeats,
    )


def _touched(noted: Noted) -> tuple[Touched, ...]:
    """Return each partition that was read, and the segments, put together by bucket and tier."""
    sizes: dict[tuple[str, int, str, bool], int] = {}
    cold = frozenset(noted.cold)
    for file, expected in _files(noted):
        fetched = noted.began is not None and file.kind == "segment" and file.seq > noted.began
        tier = "source" if fetched else "cold" if file.key in cold else "hot"
        place = (period_of(file), file.bucket, tier, expected)
        sizes[place] = sizes.get(place, 0) + file.memory_bytes
    return tuple(Touched(period, bucket, size, tier, warm) for (period, bucket, tier, warm), size in sizes.items())


def _files(noted: Noted) -> Iterable[tuple[StoredFile, bool]]:
    files = noted.plan.files
    return zip(files, noted.warmed or (False,) * len(files), strict=True)


# Too many at once


def thinned(batch: Iterable[Noted], singly: int, most: int) -> tuple[list[tuple[Noted, int]], int]:
    """Return what of *batch* is told, each with how many reads alike it stands for besides, and how many are left out.

    Of each principal the first *singly* are told one by one; after these a read like one before only counts. A principal's
    reads that differ are told up to *most*, and left out beyond.
    """
    told: list[Noted] = []
    repeats: list[int] = []  # of each of these
    places: dict[Any, int] = {}
    counts: dict[str, int] = {}
    left_out = 0
    for noted in batch:
        count = counts.get(noted.principal, 0)
        mark = _mark(noted)
        if count >= singly and (place := places.get(mark)) is not None:
            repeats[place] += 1
        elif count >= most:
            left_out += 1
        else:
            counts[noted.principal] = count + 1
            places[mark] = len(told)
            told.append(noted)
            repeats.append(0)
    return list(zip(told, repeats, strict=True)), left_out


def _mark(noted: Noted) -> Any:
    """Return what reads alike have in common: the kept plan itself, or what another one was made for."""
    if noted.asked is None and not noted.warmed:
        return noted.principal, id(noted.plan), noted.cold, noted.upstream_calls
    alike = (noted.asked, noted.plan.files, noted.cold, tuple(noted.warmed), noted.upstream_calls)
    return noted.principal, *alike


# Answers in parts


class Parts:
    """The parts of divided answers that have ended, until their siblings have."""

    def __init__(self) -> None:
        self._waiting: dict[Any, list[Noted]] = {}

    def taken(self, batch: Iterable[Noted]) -> list[Noted]:
        """Return the reads of *batch*, and each divided one whose last part is among them as one."""
        whole = []
        for noted in batch:
            if (part := noted.part) is None:
                whole.append(noted)
                continue
            key = (noted.principal, part.read, part.parts, part.generation)
            siblings = self._waiting.setdefault(key, [])
            siblings.append(noted)
            if len(siblings) == part.parts:
                whole.append(joined(self._waiting.pop(key)))
        return whole

    def left(self, before: datetime | None = None) -> list[Noted]:
        """Return what has waited in vain since *before* (None: whatever waits), as far as its parts have come."""
        late = [key for key, parts in self._waiting.items() if before is None or parts[0].at < before]
        return [joined(self._waiting.pop(key)) for key in late]


def joined(parts: Sequence[Noted]) -> Noted:
    """Return the one read that *parts* are of."""
    ordered = sorted(parts, key=lambda noted: noted.part.part if noted.part else 0)
    first, files = ordered[0], {file.key: (file, warm) for noted in ordered for file, warm in _files(noted)}
    symbols = tuple(symbol for noted in ordered for symbol in noted.plan.symbols)
    return first._replace(
        at=min(noted.at for noted in parts),
        plan=replace(first.plan, symbols=symbols, files=tuple(file for file, _ in files.values())),
        cold=tuple(key for noted in ordered for key in noted.cold),
        warmed=tuple(warm for _, warm in files.values()),
        upstream_calls=sum(noted.upstream_calls for noted in parts),
        rows=sum(noted.rows for noted in parts),
        bytes=sum(noted.bytes for noted in parts),
        milliseconds=max(noted.milliseconds for noted in parts),  # they run side by side
        part=None,
    )
