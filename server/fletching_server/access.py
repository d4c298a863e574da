"""What is known of a read when it has ended: who asked for what, and what it touched. Pure.

The read path takes down a ``Noted``, which refers to what is there anyway; what must be worked out is worked out later, by
``event_of``. Reads that come too fast are ``thinned``, parts of one answer ``joined``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import xxhash

from fletching_schemas import PartRequest, ReadInfo, ReadRequest
from fletching_schemas.replies import put_together
from fletching_server.image import Window
from fletching_server.snapshot import StoredFile

ALL: Final = "*"  # the group of a read of all symbols
SYMBOLS_TOLD: Final = 64  # with the event itself; those of larger groups are kept apart, once
USUAL_PROFILE: Final = "research"  # of a read that names none
EMBEDDED: Final = "embedded"  # who asks, where no server lies between


class Touched(NamedTuple):
    """One partition of a read, by its bytes in memory; or the journal's segments of one bucket, whose period is empty.

    *tier* is where it was when it was read: ``hot``, ``cold``, or ``source`` where it was fetched for this very read. *warmed*:
    it was there because somebody was expected to ask.
    """

    period: str
    bucket: int
    bytes: int
    tier: str
    warmed: bool = False


@dataclass(frozen=True, slots=True)
class AccessEvent:
    """One read, as the access log tells it.

    ``at`` is when it began, in seconds since 1970 (UTC). ``group`` is the symbol, ``*`` for all, or ``group_of`` several;
    ``symbols`` are those of a group of up to ``SYMBOLS_TOLD``. ``first`` and ``last`` are wanted sessions as day numbers:
    ``first`` is None where the request named no start, ``last`` where the range holds no session; ``open_end`` where it named
    no end and so follows the present. No ``columns`` are all. ``rows``, ``bytes`` and ``milliseconds`` are those of the
    answer; ``repeats`` counts further reads alike that came too fast to be told one by one.
    """

    at: float
    request_id: str
    principal: str
    profile: str
    dataset: str
    group: str
    symbols: tuple[str, ...]
    first: int | None
    last: int | None
    open_end: bool
    columns: tuple[str, ...]
    touched: tuple[Touched, ...]
    upstream_calls: int
    rows: int
    bytes: int
    milliseconds: float
    repeats: int = 0


class Noted(NamedTuple):
    """One read as the read path takes it down: what it has at hand, nothing worked out.

    ``request`` is the user's, ``asked`` what was read for it: a filter narrows it. ``tiers`` and ``warmed`` are by file, the
    latter empty where nothing was. Segments after the generation ``began`` were fetched for it (None: nothing was). ``again``:
    the very answer of another read went out once more. A ``lasting`` plan is the same object for the same request.
    """

    at: datetime
    principal: str
    request: ReadRequest
    asked: ReadRequest
    symbols: tuple[str, ...]
    window: Window
    files: tuple[StoredFile, ...]
    tiers: Sequence[str]
    info: ReadInfo
    lasting: bool = False
    began: int | None = None
    warmed: Sequence[bool] = ()
    part: PartRequest | None = None
    again: bool = False

    @property
    def weight(self) -> int:
        """What it takes in memory, in units of about a kilobyte."""
        return 1 + (len(self.symbols) >> 4) + (len(self.files) >> 4)


def group_of(symbols: Iterable[str] | None) -> str:
    """Return the name of a set of symbols: the symbol itself, ``*`` for all (None), or ``#`` and 16 hexadecimal digits."""
    if symbols is None:
        return ALL
    listed = sorted(symbols)
    return listed[0] if len(listed) == 1 else f"#{xxhash.xxh3_64_hexdigest(','.join(listed).encode())}"


def lineage_of(file: StoredFile) -> str:
    """Return what is asked for again whatever its generation: ``dataset/period/bucket``, without the period for a segment."""
    return f"{file.dataset}/{_period(file)}/{file.bucket}"


def _period(file: StoredFile) -> str:
    return "" if file.kind == "segment" else file.period


def event_of(noted: Noted, request_id: str, principal: str, group: str, repeats: int = 0) -> AccessEvent:
    """Return *noted*, worked out, as the read of *principal*."""
    request, asked, window, info = noted.request, noted.asked, noted.window, noted.info
    told = group != ALL and len(noted.symbols) <= SYMBOLS_TOLD
    return AccessEvent(
        at=noted.at.timestamp(),
        request_id=request_id,
        principal=principal,
        profile=request.profile or USUAL_PROFILE,
        dataset=asked.dataset,
        group=group,
        symbols=noted.symbols if told else (),
        first=window.first_day if asked.start is not None else None,
        last=window.last_day if window.last_day >= window.first_day else None,
        open_end=asked.end is None,
        columns=request.columns or (),
        touched=_touched(noted),
        upstream_calls=0 if noted.again else info.upstream_calls,
        rows=info.rows,
        bytes=info.bytes,
        milliseconds=0.0 if noted.again else info.milliseconds,
        repeats=repeats,
    )


def _touched(noted: Noted) -> tuple[Touched, ...]:
    """Return each partition that was read, and the segments, put together by bucket and tier."""
    sizes: dict[tuple[str, int, str, bool], int] = {}
    warmed = noted.warmed or (False,) * len(noted.files)
    for file, tier, expected in zip(noted.files, noted.tiers, warmed, strict=True):
        fetched = noted.began is not None and file.kind == "segment" and file.seq > noted.began
        place = (_period(file), file.bucket, "source" if fetched else tier, expected)
        sizes[place] = sizes.get(place, 0) + file.memory_bytes
    return tuple(Touched(period, bucket, size, tier, warm) for (period, bucket, tier, warm), size in sizes.items())


# Too many at once


def thinned(batch: Iterable[Noted], singly: int, most: int) -> tuple[list[tuple[Noted, int]], int]:
    """Return what of *batch* is told, each with how many reads alike it stands for besides, and how many are left out.

    Of each principal the first *singly* are told one by one; after these a read like one before only counts. A principal's
    reads that differ are told up to *most*, and left out beyond.
    """
    told: list[tuple[Noted, int]] = []
    places: dict[Any, int] = {}
    counts: dict[str, int] = {}
    left_out = 0
    for noted in batch:
        count = counts.get(noted.principal, 0)
        mark = _mark(noted)
        place = places.get(mark) if count >= singly else None
        if place is not None:
            told[place] = (told[place][0], told[place][1] + 1)
        elif count >= most:
            left_out += 1
        else:
            counts[noted.principal] = count + 1
            places[mark] = len(told)
            told.append((noted, 0))
    return told, left_out


def _mark(noted: Noted) -> Any:
    """Return what reads alike have in common; of a plan that is kept the window itself, which is compared far sooner."""
    same = id(noted.window) if noted.lasting else noted.asked
    request = noted.request
    calls = noted.again or noted.info.upstream_calls == 0
    return noted.principal, same, request.columns, request.profile, tuple(noted.tiers), tuple(noted.warmed), calls


# Answers in parts


class Parts:
    """The parts of divided answers that have ended, until their siblings have."""

    def __init__(self) -> None:
        self._waiting: dict[Any, list[Noted]] = {}

    def taken(self, batch: Iterable[Noted]) -> list[Noted]:
        """Return the reads of *batch*, and each divided one whose last part is among them as one."""
        whole = []
        for noted in batch:
            if noted.part is None:
                whole.append(noted)
                continue
            key = (noted.principal, noted.part.read, noted.part.parts, noted.part.generation)
            siblings = self._waiting.setdefault(key, [])
            siblings.append(noted)
            if len(siblings) == noted.part.parts:
                whole.append(joined(self._waiting.pop(key)))
        return whole

    def left(self, before: datetime | None = None) -> list[Noted]:
        """Return what has waited in vain since *before* (None: whatever waits), as far as its parts have come."""
        late = [key for key, parts in self._waiting.items() if before is None or parts[0].at < before]
        return [joined(self._waiting.pop(key)) for key in late]


def joined(parts: Sequence[Noted]) -> Noted:
    """Return the one read that *parts* are of."""
    ordered = sorted(parts, key=lambda noted: noted.part.part if noted.part else 0)
    tiers: dict[str, tuple[StoredFile, str, bool]] = {}
    for noted in ordered:
        warmed = noted.warmed or (False,) * len(noted.files)
        for file, tier, expected in zip(noted.files, noted.tiers, warmed, strict=True):
            tiers.setdefault(file.key, (file, tier, expected))
    files, told, warm = zip(*tiers.values(), strict=True) if tiers else ((), (), ())
    return ordered[0]._replace(
        at=min(noted.at for noted in parts),
        symbols=tuple(symbol for noted in ordered for symbol in noted.symbols),
        files=files,
        tiers=told,
        warmed=warm,
        info=put_together([noted.info for noted in ordered]),
        part=None,
    )
