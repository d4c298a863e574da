from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import bar, weekdays

from fletching_schemas import Dataset, ReadInfo, Tier, canonical
from fletching_server.calendars import day_number
from fletching_server.image import Window, build_image
from fletching_server.pieces import Run, Tally, merge_tables, pieces, slices
from fletching_server.spans import Days

DAILY = canonical("bars_1d", calendar="XSHG")
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
NAMES = ("000001.SZ", "000002.SZ", "600519.SH")
EVERYTHING = Window(0, 10**6)

Cells = set[tuple[str, date]]


def rows_of(cells: Cells, version: int) -> list[dict[str, Any]]:
    return [bar(symbol, day, version) for symbol, day in sorted(cells)]


COLUMNS = ["symbol", "trading_date", "open", "volume"]


def run_of(cells: Cells, version: int, tier: Tier = "hot", *, picked: bool = False) -> Run:
    """Return a run with all columns, as in memory, or with those that were *picked* from disk for a read."""
    table = pa.Table.from_pylist(rows_of(cells, version), schema=DAILY.schema)
    return Run(build_image(DAILY, table.select(COLUMNS) if picked else table), tier, version)


def strung(symbols: tuple[str, ...], window: Window, runs: list[Run]) -> list[dict[str, Any]]:
    tables = list(slices(pieces(DAILY, symbols, window, runs), Tally(ReadInfo("bars_1d"), COLUMNS, {})))
    return [row for table in tables for row in table.to_pylist()]


def count(info: ReadInfo, runs: list[Run], filled: dict[str, list[Days]]) -> None:
    tally = Tally(info, DAILY.schema.names, filled)
    for piece in pieces(DAILY, NAMES, EVERYTHING, runs):
        tally.note(piece)


def model(layers: list[Cells], symbols: tuple[str, ...], first: date, last: date) -> list[dict[str, Any]]:
    newest = {cell: version for version, cells in enumerate(layers) for cell in cells}
    rows = [
        bar(symbol, day, version)
        for (symbol, day), version in sorted(newest.items())
        if symbol in symbols and first <= day <= last
    ]
    return [{name: row[name] for name in ("symbol", "trading_date", "open", "volume")} for row in rows]


CELLS = st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(DAYS)), min_size=1, max_size=30)


@settings(max_examples=80)
@pytest.mark.parametrize("merged_rows", [1, 5, 65_536])
@given(
    st.lists(CELLS, min_size=1, max_size=4),
    st.sets(st.sampled_from(NAMES)),
    st.sampled_from(DAYS),
    st.sampled_from(DAYS),
    st.randoms(),
)
def test_every_wanted_key_comes_once_in_order_with_the_newest_row(
    merged_rows: int, layers: list[Cells], wanted: set[str], one: date, other: date, random: Any
) -> None:
    first, last = sorted((one, other))
    symbols = tuple(sorted(wanted))
    runs = [run_of(cells, version, picked=random.random() < 0.5) for version, cells in enumerate(layers)]
    random.shuffle(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fletching_server.pieces.MERGED_ROWS", merged_rows)
        assert strung(symbols, Window(day_number(first), day_number(last)), runs) == model(layers, symbols, first, last)


@given(CELLS)
def test_a_whole_run_leaves_as_one_piece_equal_to_symbol_by_symbol(cells: Cells) -> None:
    run = run_of(cells, 0)
    (whole,) = pieces(DAILY, NAMES, EVERYTHING, [run])
    assert (whole.symbol, whole.start, whole.stop) == (None, 0, run.image.table.num_rows)
    assert strung(NAMES, EVERYTHING, [run]) == [row for name in NAMES for row in strung((name,), EVERYTHING, [run])]


def test_runs_that_do_not_overlap_follow_each_other_without_a_copy() -> None:
    early, late = run_of({(NAMES[0], day) for day in DAYS[:5]}, 0), run_of({(NAMES[0], day) for day in DAYS[5:]}, 1)
    found = list(pieces(DAILY, NAMES[:1], EVERYTHING, [late, early]))
    assert [piece.run for piece in found] == [early, late]


def test_a_run_between_two_others_is_merged_with_neither_when_its_days_are_its_own() -> None:
    runs = [run_of({(NAMES[0], day) for day in DAYS[place : place + 3]}, place) for place in (0, 3, 6)]
    assert [piece.run for piece in pieces(DAILY, NAMES[:1], EVERYTHING, runs)] == runs


def test_symbols_that_overlap_share_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    merges: list[int] = []

    def counting(dataset: Dataset, tables: Sequence[pa.Table]) -> pa.Table:
        merges.append(len(tables))
        return merge_tables(dataset, tables)

    monkeypatch.setattr("fletching_server.pieces.merge_tables", counting)
    names = tuple(f"{number:06}.SZ" for number in range(200))
    cells = {(name, day) for name in names for day in DAYS[:3]}
    strung(names, EVERYTHING, [run_of(cells, version) for version in range(3)])
    assert merges == [3]  # one merge, of one table per run


def test_merged_rows_count_as_cold_where_any_of_them_were() -> None:
    info = ReadInfo("bars_1d")
    cells = {(NAMES[0], day) for day in DAYS[:4]}
    count(info, [run_of(cells, 0, "cold"), run_of(cells, 1)], {})
    assert (info.rows, info.tiers["cold"].rows, info.tiers["hot"].rows) == (4, 4, 0)


@given(CELLS, st.sampled_from(DAYS), st.sampled_from(DAYS))
def test_rows_of_cells_that_were_just_fetched_count_as_the_sources(cells: Cells, one: date, other: date) -> None:
    first, last = sorted((one, other))
    info = ReadInfo("bars_1d")
    filled = {NAMES[0]: [Days(day_number(first), day_number(last))]}
    count(info, [run_of(cells, 0)], filled)
    fresh = sum(symbol == NAMES[0] and first <= day <= last for symbol, day in cells)
    assert (info.rows, info.tiers["source"].rows, info.tiers["hot"].rows) == (len(cells), fresh, len(cells) - fresh)


@given(st.lists(CELLS, min_size=1, max_size=3))
def test_merged_tables_hold_each_key_once_and_the_last_table_wins(layers: list[Cells]) -> None:
    merged = merge_tables(
        DAILY, [pa.Table.from_pylist(rows_of(cells, version), schema=DAILY.schema) for version, cells in enumerate(layers)]
    )
    assert merged.schema.equals(DAILY.schema)
    assert merged.select(["symbol", "trading_date", "open", "volume"]).to_pylist() == model(layers, NAMES, DAYS[0], DAYS[-1])
