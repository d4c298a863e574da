"""Making one segment of several: the same rows and asked cells, in one file that lasts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fletching_server import parquet
from fletching_server.failpoints import Purpose
from fletching_server.gathering import Gathering
from fletching_server.image import Image, build_image
from fletching_server.pieces import merge_tables
from fletching_server.snapshot import Asked, DatasetState, Fact, StoredFile
from fletching_server.spans import Days, merged
from fletching_server.standing import asked_cells, standing
from fletching_server.store import Store


class Merging:
    """Writes merged segments; committing them is another's."""

    def __init__(self, store: Store, gathering: Gathering) -> None:
        self._store, self._gathering = store, gathering

    def merge(self, state: DatasetState, run: Sequence[StoredFile], kept_since: int | None) -> tuple[StoredFile, Image]:
        """Return a new segment with what *run* says, neighbours in the order of their ranks, and its rows.

        Where these only add to each other it tells what they said as of any generation from *kept_since* on.
        """
        dataset = state.dataset
        asked = asked_cells(run)
        tables = [standing(dataset, self._gathering.whole(dataset, file), file.rank, asked).table for file in run]
        image = build_image(dataset, merge_tables(dataset, tables))
        symbols = tuple(sorted({symbol for file in run for symbol in file.symbols}))
        tells = kept_since is not None and only_add(run, kept_since)
        cells = _with_ranks(run, kept_since or 0) if tells else _joined(run)
        told = {**self._told_by_first(run[0]), "source": state.source, "asked_cells": cells, "coverage": _facts(state, symbols)}
        segment = self._store.publish(
            dataset, image, "segment", sync=True, through=run[-1].place, tells=told, purpose=Purpose.MERGE
        )
        return replace(segment, rank=run[-1].rank, since=run[0].lowest, symbols=symbols, asked=cells), image

    def _told_by_first(self, first: StoredFile) -> dict[str, Any]:
        """Return where the run begins, and whether nothing before it counts: what its first file tells, as it were the run's."""
        told = parquet.footer_facts(self._store.path(first))
        return {"from": told.get("from") or first.place, "clears": bool(told.get("clears"))}


def _facts(state: DatasetState, symbols: Sequence[str]) -> list[list[Any]]:
    return [Fact(symbol, span, None).told() for symbol in symbols for span in state.coverage.get(symbol, ())]


def only_add(run: Sequence[StoredFile], kept_since: int) -> bool:
    """Return whether *run* are fills of which no two asked for the same cell: then each row is surely of one of them.

    Fills of before *kept_since* may have: nobody can ask any more which of them it was.
    """
    if not all(_accounts_for_rows(file) for file in run):
        return False
    cells: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
    for file in run:
        for symbol, days, rank in file.asked_cells():
            cells[symbol].append((days.first, days.last, rank > kept_since))
    return not any(_overlap(asked) for asked in cells.values())


def _accounts_for_rows(file: StoredFile) -> bool:
    """Return whether all rows of *file* lie in cells of which it tells by whom they were asked."""
    if file.since:
        return file.tells_ranks
    outside = file.rows and any(file.first_day < cells.first or file.last_day > cells.last for cells in file.asked)
    return len(file.asked) == 1 and not outside


def _overlap(cells: list[tuple[int, int, bool]]) -> bool:
    """Return whether two of *cells* (first, last, young) share a day, one of which is young."""
    reached = reached_by_young = -1
    for first, last, young in sorted(cells):
        if first <= (reached if young else reached_by_young):
            return True
        reached = max(reached, last)
        reached_by_young = max(reached_by_young, last) if young else reached_by_young
    return False


def _with_ranks(run: Sequence[StoredFile], kept_since: int) -> tuple[Asked, ...]:
    """Return what the fills of *run* asked, with their ranks; one rank will do for all that are older than what is kept."""
    old = min(kept_since, run[-1].rank)
    symbols: dict[tuple[int, int, int], set[str]] = defaultdict(set)
    for file in run:
        for cells in file.asked:
            rank = max(cells.rank or file.rank, old)
            symbols[cells.first, cells.last, rank].update(file.symbols if cells.symbols is None else cells.symbols)
    return tuple(Asked(first, last, tuple(sorted(names)), rank) for (first, last, rank), names in symbols.items())


def _joined(run: Sequence[StoredFile]) -> tuple[Asked, ...]:
    """Return the cells that any fill of *run* asked for, in few entries: no other file's rank lies between theirs."""
    days_of: dict[str, list[Days]] = defaultdict(list)
    for file in run:
        for symbol, days, _ in file.asked_cells():
            days_of[symbol].append(days)
    alike: dict[tuple[Days, ...], list[str]] = defaultdict(list)
    for symbol in sorted(days_of):
        alike[tuple(merged(days_of[symbol], _touch))].append(symbol)
    return tuple(_entries(alike.items()))


def _entries(alike: Iterable[tuple[tuple[Days, ...], list[str]]]) -> Iterable[Asked]:
    for runs, symbols in alike:
        for days in runs:
            yield Asked(days.first, days.last, tuple(symbols))


def _touch(last: int, first: int) -> bool:
    """Days, not sessions: the calendar may yet learn of a session in between, which nobody asked for."""
    return first == last + 1
