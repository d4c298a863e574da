"""Stringing rows together: from sorted runs in memory to one stream in (symbol, time) order. Pure.

A *run* is an image with its rank. Where one run holds all wanted rows they leave as they lie. Where several hold rows of a
symbol that do not overlap in time they follow each other; where they overlap they are merged by key, and the highest rank
wins, because a later commit replaces an earlier one. A fill replaces all that older runs say of the cells it asked for,
whether it has rows of them or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, ReadInfo, Tier
from fletching_server.image import Image, Window, build_image
from fletching_server.snapshot import StoredFile
from fletching_server.spans import Days, subtract


@dataclass(frozen=True)
class Run:
    """One sorted run: an image, the tier it came from, its rank where keys collide, and the file where it is one."""

    image: Image
    tier: Tier
    rank: int
    file: StoredFile | None = None


@dataclass(frozen=True)
class Piece:
    """Rows *start* to *stop* of one run: of one symbol, or of all its symbols (``symbol`` None)."""

    run: Run
    start: int
    stop: int
    symbol: str | None

    @property
    def first_time(self) -> int:
        """The time of the first row."""
        return int(self.run.image.times[self.start])

    @property
    def last_time(self) -> int:
        """The time of the last row."""
        return int(self.run.image.times[self.stop - 1])


def pieces(dataset: Dataset, symbols: Sequence[str], window: Window, runs: Sequence[Run]) -> Iterator[Piece]:
    """Yield the wanted rows of all *symbols* (sorted), in order, each key once."""
    if len(runs) == 1 and (whole := _whole(runs[0], symbols, window)):
        yield whole
        return
    replacing = _replacing(runs)
    for symbol in symbols:
        found = [piece for run in runs if (piece := _find(run, symbol, window))]
        if symbol in replacing:
            found = [part for piece in found for part in _standing(piece, replacing[symbol])]
        if len(found) > 1:
            yield from _in_order(dataset, symbol, sorted(found, key=lambda piece: piece.first_time))
        else:
            yield from found


def _replacing(runs: Sequence[Run]) -> dict[str, list[tuple[Days, int]]]:
    """Return, per symbol, the sessions that fills asked for, with their ranks; a single run replaces nothing."""
    asked: dict[str, list[tuple[Days, int]]] = defaultdict(list)
    for run in runs if len(runs) > 1 else ():
        if run.file and run.file.asked:
            for symbol in run.file.symbols:
                asked[symbol].append((run.file.asked, run.rank))
    return asked


def _standing(piece: Piece, asked: Sequence[tuple[Days, int]]) -> Iterator[Piece]:
    """Yield what is left of *piece* where fills of a higher rank asked for its cells."""
    days = piece.run.image.sessions[piece.start : piece.stop]
    first, last = int(days[0]), int(days[-1])
    holes = [cells for cells, rank in asked if rank > piece.run.rank and cells.first <= last and cells.last >= first]
    if not holes:
        yield piece
        return
    for part in subtract(Days(first, last), sorted(holes)):
        start, stop = int(days.searchsorted(part.first)), int(days.searchsorted(part.last, "right"))
        if stop > start:
            yield Piece(piece.run, piece.start + start, piece.start + stop, piece.symbol)


def _whole(run: Run, symbols: Sequence[str], window: Window) -> Piece | None:
    """Return the run as one piece where all of it is wanted: the case worth a short cut, a whole partition."""
    image = run.image
    if window.first_instant is not None or window.last_instant is not None or not image.table.num_rows:
        return None
    inside = window.first_day <= image.first_day and image.last_day <= window.last_day
    if not inside or not (tuple(symbols) == image.symbols or set(symbols).issuperset(image.symbols)):
        return None
    return Piece(run, 0, image.table.num_rows, None)


def _find(run: Run, symbol: str, window: Window) -> Piece | None:
    start, stop = run.image.find(symbol, window)
    return Piece(run, start, stop, symbol) if stop > start else None


def _in_order(dataset: Dataset, symbol: str, found: Sequence[Piece]) -> Iterator[Piece]:
    """Yield *found*, sorted by first time, merging those that overlap."""
    group = [found[0]]
    for piece in found[1:]:
        if piece.first_time > max(member.last_time for member in group):
            yield _merged(dataset, symbol, group)
            group = []
        group.append(piece)
    yield _merged(dataset, symbol, group)


def _merged(dataset: Dataset, symbol: str, group: Sequence[Piece]) -> Piece:
    if len(group) == 1:
        return group[0]
    by_rank = sorted(group, key=lambda piece: piece.run.rank)
    tables = [piece.run.image.table.slice(piece.start, piece.stop - piece.start) for piece in by_rank]
    image = build_image(dataset, merge_tables(dataset, tables))
    tier: Tier = "cold" if any(piece.run.tier == "cold" for piece in group) else "hot"
    return Piece(Run(image, tier, 0), 0, image.table.num_rows, symbol)


def merge_tables(dataset: Dataset, tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of *tables* in key order, each key once: the last table that has it wins."""
    schema = tables[0].schema
    frame = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables])
    frame = frame.unique(subset=list(dataset.keys), keep="last", maintain_order=True).sort(dataset.sort_keys)
    return frame.to_arrow(compat_level=pl.CompatLevel.newest()).cast(schema)


def counted(found: Iterable[Piece], info: ReadInfo, filled: Mapping[str, Sequence[Days]]) -> Iterator[Piece]:
    """Yield *found* unchanged, telling *info* how many rows came from which tier; *filled* cells came from the source."""
    for piece in found:
        rows = piece.stop - piece.start
        fresh = _rows_within(piece, filled)
        info.rows += rows
        info.tiers["source"].rows += fresh
        info.tiers[piece.run.tier].rows += rows - fresh
        yield piece


def _rows_within(piece: Piece, filled: Mapping[str, Sequence[Days]]) -> int:
    if not filled:
        return 0
    if piece.symbol is None:
        offsets = zip(piece.run.image.symbols, piece.run.image.offsets[:-1], piece.run.image.offsets[1:], strict=True)
        parts = [Piece(piece.run, int(start), int(stop), symbol) for symbol, start, stop in offsets]
        return sum(_rows_within(part, filled) for part in parts)
    days = piece.run.image.sessions[piece.start : piece.stop]
    return sum(int(days.searchsorted(run.last, "right") - days.searchsorted(run.first)) for run in filled.get(piece.symbol, ()))


def weighed(found: Iterable[Piece], columns: Sequence[str], info: ReadInfo) -> Iterator[Piece]:
    """Yield *found*, already ``counted``, unchanged, telling *info* how many bytes *columns* of it take."""
    for piece in found:
        info.bytes += round(piece.run.image.row_bytes(columns) * (piece.stop - piece.start))
        for use in info.tiers.values():
            use.bytes = info.bytes * use.rows // max(info.rows, 1)
        yield piece


def slices(found: Iterable[Piece], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of *found* with *columns*; pieces that continue each other in one run become one slice."""
    held: Piece | None = None
    for piece in found:
        if held is not None and piece.run is held.run and piece.start == held.stop:
            held = Piece(held.run, held.start, piece.stop, None)
            continue
        if held is not None:
            yield _slice(held, columns)
        held = piece
    if held is not None:
        yield _slice(held, columns)


def _slice(piece: Piece, columns: Sequence[str]) -> pa.Table:
    return piece.run.image.columns(columns).slice(piece.start, piece.stop - piece.start)
