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
from typing import Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, ReadInfo, Tier
from fletching_server.image import Image, Window, build_image, unindexed_image
from fletching_server.snapshot import StoredFile
from fletching_server.spans import Days, subtract

MERGED_ROWS: Final = 65_536  # a merge costs milliseconds however few its rows, so symbols that need one share it


@dataclass(frozen=True)
class Run:
    """One sorted run: an image, the tier it came from, its rank where keys collide, and the file where it is one."""

    image: Image
    tier: Tier
    rank: int
    file: StoredFile | None = None


@dataclass(frozen=True)
class Place:
    """Where rows begin in an image, and the key under which the hot tier holds that image, where it does."""

    image: Image
    key: str | None
    start: int


@dataclass(frozen=True)
class Part:
    """Consecutive rows of an answer: their columns lie at one place, or layer by layer at several."""

    rows: int
    places: tuple[Place, ...]

    def table(self, layers: Layers) -> pa.Table:
        """Return the columns of all *layers*, one after the other, without copying."""
        first, *others = zip(self.places, layers, strict=True)
        table = first[0].image.columns(first[1]).slice(first[0].start, self.rows)
        for place, names in others:
            more = place.image.columns(names).slice(place.start, self.rows)
            for item, column in zip(more.schema, more.columns, strict=True):
                table = table.append_column(item, column)
        return table


def lying(table: pa.Table) -> Iterator[Part]:
    """Yield *table*, which no tier holds, as a part of an answer."""
    if table.num_rows:
        yield Part(table.num_rows, (Place(unindexed_image(table), None, 0),))


def gathered(parts: Sequence[Part], names: tuple[str, ...]) -> pa.RecordBatch:
    """Return *parts* of one layer, of which there are some, as one batch."""
    found = [part.places[0].image.batch(names).slice(part.places[0].start, part.rows) for part in parts]
    return found[0] if len(found) == 1 else pa.concat_batches(found)


# Which columns lie together: names per layer, each column in one layer.
Layers = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Piece:
    """Rows *start* to *stop* of one run: of one symbol, or of all its symbols (``symbol`` None)."""

    run: Run
    start: int
    stop: int
    symbol: str | None

    @property
    def part(self) -> Part:
        """The same rows as a part of an answer."""
        file = self.run.file
        return Part(self.stop - self.start, (Place(self.run.image, file.key if file else None, self.start),))

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
    replacing = _replacing(runs, symbols)
    hiding = any(run.file is not None and run.file.hidden for run in runs)
    overlapping: list[Piece] = []
    rows = 0
    for symbol in symbols:
        found = [piece for run in runs if (piece := _find(run, symbol, window))]
        if hiding or symbol in replacing:
            found = [part for piece in found for part in _standing(piece, symbol, replacing.get(symbol, ()))]
        for group in _groups(found):
            if overlapping and (len(group) == 1 or rows >= MERGED_ROWS):
                yield _merged(dataset, overlapping)
                overlapping, rows = [], 0
            if len(group) > 1:
                overlapping += group
                rows += sum(piece.stop - piece.start for piece in group)
            else:
                yield group[0]
    if overlapping:
        yield _merged(dataset, overlapping)


def _replacing(runs: Sequence[Run], symbols: Sequence[str]) -> dict[str, list[tuple[Days, int]]]:
    """Return, per symbol, the sessions that fills asked for, with their ranks; a single run replaces nothing."""
    asked: dict[str, list[tuple[Days, int]]] = defaultdict(list)
    for run in runs if len(runs) > 1 else ():
        if run.file is None or not run.file.asked:
            continue
        for symbol in symbols if len(symbols) < len(run.file.symbols) else run.file.symbols:
            if cells := run.file.asked_of(symbol):
                asked[symbol] += cells
    return asked


def _standing(piece: Piece, symbol: str, asked: Sequence[tuple[Days, int]]) -> Iterator[Piece]:
    """Yield what counts of *piece*: what its file hides does not, nor do cells that fills of a higher rank asked for."""
    days = piece.run.image.sessions[piece.start : piece.stop]
    first, last = int(days[0]), int(days[-1])
    hidden = piece.run.file.hidden_of(symbol) if piece.run.file else ()
    above = [*hidden, *(cells for cells, rank in asked if rank > piece.run.rank)]
    holes = [cells for cells in above if cells.first <= last and cells.last >= first]
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
    if run.file is not None and run.file.hidden:
        return None
    if window.first_instant is not None or window.last_instant is not None or not image.table.num_rows:
        return None
    inside = window.first_day <= image.first_day and image.last_day <= window.last_day
    if not inside or not (tuple(symbols) == image.symbols or set(symbols).issuperset(image.symbols)):
        return None
    return Piece(run, 0, image.table.num_rows, None)


def _find(run: Run, symbol: str, window: Window) -> Piece | None:
    start, stop = run.image.find(symbol, window)
    return Piece(run, start, stop, symbol) if stop > start else None


def _groups(found: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces of one symbol in the order of time, those together that overlap."""
    if len(found) == 1:
        yield list(found)
        return
    group: list[Piece] = []
    latest = 0
    for first, place in sorted((piece.first_time, place) for place, piece in enumerate(found)):
        if group and first > latest:
            yield group
            group = []
        last = found[place].last_time
        latest = max(latest, last) if group else last
        group.append(found[place])
    if group:
        yield group


def _merged(dataset: Dataset, overlapping: Sequence[Piece]) -> Piece:
    """Return the rows of pieces that overlap, of symbols that follow each other, as one piece of a new run."""
    by_rank = sorted(overlapping, key=lambda piece: (piece.run.rank, id(piece.run), piece.start))
    # Rows that were picked from disk have the columns that are needed, those of an image in memory have all.
    names = min((piece.run.image.table.column_names for piece in by_rank), key=len)
    tables = [piece.run.image.columns(names).slice(piece.start, piece.stop - piece.start) for piece in _joined(by_rank)]
    image = build_image(dataset, merge_tables(dataset, tables))
    tier: Tier = "cold" if any(piece.run.tier == "cold" for piece in overlapping) else "hot"
    return Piece(Run(image, tier, 0), 0, image.table.num_rows, None)


def merge_tables(dataset: Dataset, tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of *tables* in key order, each key once: the last table that has it wins."""
    schema = tables[0].schema
    frame = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables])
    frame = frame.sort(dataset.sort_keys, maintain_order=True)  # equal keys stay in the order of the tables
    replaced = pl.all_horizontal(pl.col(key).eq_missing(pl.col(key).shift(-1)) for key in dataset.sort_keys)
    frame = frame.filter(~replaced)
    return frame.to_arrow(compat_level=pl.CompatLevel.newest()).cast(schema)


class Tally:
    """Tells a ``ReadInfo`` how many rows and bytes of *columns* came from which tier; *filled* cells came from the source."""

    def __init__(self, info: ReadInfo, columns: Sequence[str], filled: Mapping[str, Sequence[Days]]) -> None:
        self.columns = tuple(columns)
        self._info, self._filled = info, filled

    def note(self, piece: Piece) -> Piece:
        """Return *piece*, counted; bytes are its rows' share of the run's."""
        rows = piece.stop - piece.start
        row_bytes = piece.run.image.row_bytes(self.columns)
        fresh = _rows_within(piece, self._filled) if self._filled else 0
        self._info.rows += rows
        self._info.bytes += round(rows * row_bytes)
        self._info.tiers[piece.run.tier].add(rows - fresh, round((rows - fresh) * row_bytes))
        if fresh:
            self._info.tiers["source"].add(fresh, round(fresh * row_bytes))
        return piece


def _rows_within(piece: Piece, filled: Mapping[str, Sequence[Days]]) -> int:
    if piece.symbol is None:
        offsets = zip(piece.run.image.symbols, piece.run.image.offsets[:-1], piece.run.image.offsets[1:], strict=True)
        parts = [Piece(piece.run, int(start), int(stop), symbol) for symbol, start, stop in offsets]
        return sum(_rows_within(part, filled) for part in parts)
    days = piece.run.image.sessions[piece.start : piece.stop]
    return sum(int(days.searchsorted(run.last, "right") - days.searchsorted(run.first)) for run in filled.get(piece.symbol, ()))


def parts(found: Iterable[Piece], tally: Tally) -> Iterator[Part]:
    """Yield the counted rows of *found* as parts; pieces that continue each other in a run become one."""
    for piece in _joined(map(tally.note, found)):
        yield piece.part


def slices(found: Iterable[Piece], tally: Tally) -> Iterator[pa.Table]:
    """Yield the counted rows of *found* with the tally's columns, without copying."""
    for part in parts(found, tally):
        yield part.table((tally.columns,))


def _joined(found: Iterable[Piece]) -> Iterator[Piece]:
    """Yield *found*, those as one that continue each other in one run."""
    held: Piece | None = None
    for piece in found:
        if held is not None and piece.run is held.run and piece.start == held.stop:
            held = Piece(held.run, held.start, piece.stop, None)
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held
