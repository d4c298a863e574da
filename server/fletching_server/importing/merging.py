"""The rows of one period, from all runs that have some: sorted, each key once, reduced, in groups that fit in memory.

Of rows with equal key the last one in the order of the inputs wins, and any of them wins over a row that the table holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from fletching_schemas import Dataset
from fletching_server.importing.conversion import PLACE
from fletching_server.importing.reductions import Reducer, Reductions
from fletching_server.importing.runs import Codes, narrow, ordering, slice_of

HELD: Final = -1  # the rank of rows that the table holds


@dataclass(frozen=True)
class Share:
    """Consecutive rows of one run: of symbols that follow each other, with their *rows*. The rank orders runs."""

    path: Path
    rank: int
    symbols: pl.DataFrame  # symbol, start, rows


@dataclass(frozen=True)
class Lost:
    """Rows of a group that another row of the same key took the place of; *rank* and *place* say where each came from."""

    rows: pl.DataFrame
    rank: Codes
    equal: Codes  # whether the row that won has the same values


@dataclass
class Group:
    """Sorted rows with unique keys, and what became of the others."""

    frame: pl.DataFrame
    read: int = 0  # rows of the inputs
    replaced: int = 0  # rows of the table
    reduced: int = 0
    lost: list[Lost] = field(default_factory=list)


def groups(dataset: Dataset, shares: Sequence[Share], most_rows: int, reductions: Reductions, seq: str | None) -> Iterator[Group]:
    """Yield the rows of one period in the order of the table, about *most_rows* at a time."""
    reducer = Reducer(dataset, reductions, seq)
    counts = _counts(shares)
    ends = np.cumsum(counts["rows"].to_numpy())
    names, start = counts["symbol"], 0
    while start < len(names):
        passed = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, passed + most_rows, "right")))
        part = [_within(share, names[start], names[stop - 1]) for share in shares]
        part = [share for share in part if share.symbols.height]
        if int(ends[stop - 1]) - passed > most_rows:
            cut = reductions.interval if reductions.resample else 1
            yield from (_merged(dataset, cutting, reducer) for cutting in _by_time(dataset, part, most_rows, cut))
        else:
            yield _merged(dataset, [_whole(share) for share in part], reducer)
        start = stop


def _counts(shares: Sequence[Share]) -> pl.DataFrame:
    every = pl.concat([share.symbols.select("symbol", "rows") for share in shares])
    return every.group_by("symbol").agg(pl.col("rows").sum()).sort("symbol")


def _within(share: Share, first: str, last: str) -> Share:
    names = share.symbols["symbol"]
    low, high = names.search_sorted(first, "left"), names.search_sorted(last, "right")
    return Share(share.path, share.rank, share.symbols.slice(low, high - low))


@dataclass(frozen=True)
class _Slice:
    """Rows of a run, and whose they are."""

    rank: int
    frame: pl.DataFrame
    symbols: pl.Series
    counts: Codes


def _whole(share: Share) -> _Slice:
    start, counts = int(share.symbols["start"][0]), share.symbols["rows"].to_numpy()
    return _Slice(share.rank, slice_of(share.path, start, int(counts.sum())), share.symbols["symbol"], counts)


def _by_time(dataset: Dataset, shares: Sequence[Share], most_rows: int, interval: int) -> Iterator[list[_Slice]]:
    """Yield the rows of one symbol that is too large for a group, cut at instants (multiples of *interval*)."""
    slices = [_whole(share) for share in shares]
    times = [piece.frame[dataset.time].to_physical().to_numpy() for piece in slices]
    total = sum(map(len, times))
    step = max(1, most_rows // (8 * len(slices)))  # a sample of the times: cuts need not be even
    sample = np.sort(np.concatenate([found[::step] for found in times]))
    wanted = -(-total // most_rows)
    cuts = np.unique(sample[np.arange(1, wanted) * len(sample) // wanted] // interval * interval)
    bounds = [np.concatenate([[0], np.searchsorted(found, cuts), [len(found)]]) for found in times]
    for place in range(len(cuts) + 1):
        parts = [
            _Slice(
                piece.rank,
                piece.frame[int(bound[place]) : int(bound[place + 1])],
                piece.symbols,
                np.diff(bound)[place : place + 1],
            )
            for piece, bound in zip(slices, bounds, strict=True)
        ]
        yield [part for part in parts if part.frame.height]


def _merged(dataset: Dataset, slices: Sequence[_Slice], reducer: Reducer) -> Group:
    held = [piece for piece in slices if piece.rank == HELD]
    new = [piece for piece in slices if piece.rank != HELD]
    group = Group(pl.DataFrame())
    if new:
        frame, lost = _latest(dataset, new, numbered=reducer.seq)
        group.read, group.lost = sum(piece.frame.height for piece in new), [lost] if lost else []
        left = reducer.reduced(frame)
        group.reduced = frame.height - left.height
        group.frame = left.drop(PLACE, strict=False).select(dataset.schema.names)
    if held:
        group.frame, group.replaced = _over(dataset, _joined(dataset, held)[0], group.frame)
    return group


def _joined(dataset: Dataset, slices: Sequence[_Slice]) -> tuple[pl.DataFrame, Codes, Codes]:
    """Return the rows of *slices* in order, with the symbol's column, and of each row its symbol's code and its rank."""
    names = pl.concat([piece.symbols for piece in slices]).unique().sort()
    per_slice = [piece.symbols.cast(pl.Enum(names)).to_physical().to_numpy() for piece in slices]
    codes = np.concatenate([np.repeat(found, piece.counts) for found, piece in zip(per_slice, slices, strict=True)])
    ranks = np.repeat(np.arange(len(slices), dtype=np.uint32), [piece.frame.height for piece in slices])
    codes = narrow(codes, len(names))
    frame = pl.concat([piece.frame for piece in slices], rechunk=True)
    inner = [name for name in dataset.sort_keys[1:] if name in frame.columns]
    order = ordering(codes, frame.select(inner))
    if order is not None:
        frame, codes, ranks = frame[order], codes[order], ranks[order]
    symbols = names.gather(codes).alias(dataset.symbol)
    return frame.insert_column(0, symbols), codes, ranks


def _latest(dataset: Dataset, slices: Sequence[_Slice], numbered: str | None) -> tuple[pl.DataFrame, Lost | None]:
    """Return the rows with unique keys, of equal ones the last; rows that are *numbered* have keys of their own."""
    slices = sorted(slices, key=lambda piece: piece.rank)
    frame, codes, ranks = _joined(dataset, slices)
    if numbered:
        return frame, None
    again = _same_as_next(codes, frame.select(dataset.sort_keys[1:]))
    if not again.any():
        return frame, None
    rows, following = np.flatnonzero(again), ~again
    winners = np.flatnonzero(following)[np.searchsorted(np.flatnonzero(following), rows)]
    values = frame.drop(PLACE)
    equal = np.ones(len(rows), dtype=bool)
    for column in values:
        equal &= column.gather(rows).eq_missing(column.gather(winners)).to_numpy()
    origin = np.array([piece.rank for piece in slices], np.int64)
    return frame.filter(pl.Series(following)), Lost(frame[rows], origin[ranks[rows]], equal)


def _same_as_next(codes: Codes, keys: pl.DataFrame) -> Codes:
    """Return which rows have the same key as the row after them."""
    same = pl.Series(codes[1:] == codes[:-1])
    for column in keys:
        same &= column.slice(1) == column.slice(0, max(len(column) - 1, 0))
    return np.append(same.to_numpy(), [False] * bool(len(codes)))


def _over(dataset: Dataset, held: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return *held* rows with *new* ones over them, and how many of them these replaced."""
    held = held.select(dataset.schema.names)
    if not new.height:
        return held, 0
    frame = pl.concat([held, new], rechunk=True)
    names = frame[dataset.symbol].unique().sort()
    codes = narrow(frame[dataset.symbol].cast(pl.Enum(names)).to_physical().to_numpy(), len(names))
    order = ordering(codes, frame.select(dataset.sort_keys[1:]))
    if order is not None:
        frame, codes = frame[order], codes[order]
    replaced = _same_as_next(codes, frame.select(dataset.sort_keys[1:]))  # each side has a key once: the held row comes first
    return frame.filter(pl.Series(~replaced)), int(replaced.sum())
