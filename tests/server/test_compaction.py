from __future__ import annotations

import threading
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import (
    SYMBOLS,
    Background,
    Opener,
    TableSource,
    bar,
    bars,
    expected,
    in_threads,
    read,
    read_info,
    weekdays,
    write,
)

from fletching_schemas import Action, Dataset, canonical
from fletching_server import Engine, tiers
from fletching_server.compactor import RETRY_SECONDS
from fletching_server.pieces import merge_tables
from fletching_server.testing import ManualClock

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
TODAY = date(2026, 11, 20)
MANY = tuple(f"{number:06}.SZ" for number in range(1, 30))


def compact(engine: Engine, dataset: str = "bars_1d") -> int:
    folded = engine.act(Action.COMPACT, {"dataset": dataset})
    return int(folded["folded_segments"])


def kinds(engine: Engine, dataset: str = "bars_1d") -> list[str]:
    return sorted(file.kind for file in engine.store.state(dataset).files)


@pytest.mark.parametrize("period", ["year", "month", "day"])
@pytest.mark.parametrize("buckets", [1, 4])
def test_folding_changes_nothing_that_is_read(open_store: Opener, period: Any, buckets: int) -> None:
    dataset = canonical("bars_1d", calendar="XSHG", period=period, buckets=buckets, symbols_per_call=10)
    days = weekdays(date(2026, 7, 27), date(2026, 8, 5))
    source = TableSource(dataset, bars(MANY, days))
    engine = open_store(source)
    for first, last in ((days[0], days[3]), (days[4], days[-1])):
        read(engine, symbols=MANY, start=first, end=last)
    want = expected(dataset, source.rows, MANY, days[0], days[-1])
    assert compact(engine) == 6
    partitions = engine.store.state("bars_1d").files
    assert {file.kind for file in partitions} == {"partition"}
    assert {file.period for file in partitions} == {day.isoformat()[: {"year": 4, "month": 7, "day": 10}[period]] for day in days}
    assert {file.bucket for file in partitions} == set(range(buckets))
    assert read(engine, symbols=MANY, start=days[0], end=days[-1]).equals(want)
    again = open_store.again(engine, source)
    table, info = read_info(again, symbols=MANY, start=days[0], end=days[-1])
    assert table.equals(want)
    assert info.upstream_calls == 0
    assert compact(again) == 0


def test_what_is_known_stays_known_empty_cells_included(open_store: Opener, source: TableSource) -> None:
    del source.rows[SYMBOLS[0], date(2026, 11, 4)]
    engine = open_store(source)
    read(engine, symbols=[*SYMBOLS, "000333.SZ"], start=MON, end=FRI)
    read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    compact(engine)
    again = open_store.again(engine, source)
    asked = len(source.requests)
    table, info = read_info(again, symbols=[*SYMBOLS, "000333.SZ"], start=MON, end=FRI)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS, MON, FRI))
    assert len(source.requests) == asked
    assert [gap.symbol for gap in info.gaps] == ["000001.SZ", "000333.SZ"]


def test_the_newest_row_of_a_key_is_kept(open_store: Opener, source: TableSource, clock: ManualClock) -> None:
    clock.set(datetime(2026, 11, 20, 4, 0, tzinfo=UTC))
    engine = open_store(source)
    for version in range(5):
        source.rows[SYMBOLS[0], TODAY] = bar(SYMBOLS[0], TODAY, version)
        read(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY)
        clock.advance(seconds=301)
        if version in {1, 4}:
            compact(engine)
            assert kinds(engine) == ["partition"]
    table = read(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY, on_miss="cached")
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], FRI, TODAY))


@pytest.mark.parametrize("folds", [(True, True), (True, False), (False, True)], ids=str)
def test_rows_that_were_taken_back_are_not_folded(open_store: Opener, source: TableSource, folds: tuple[bool, bool]) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    if folds[0]:
        compact(engine)
    for day in weekdays(MON, FRI):
        del source.rows[SYMBOLS[0], day]
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d", "symbols": [SYMBOLS[0]]})
    want = expected(source.dataset, source.rows, SYMBOLS[:2], MON, FRI)
    assert read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI).equals(want)
    if folds[1]:
        compact(engine)
    assert read(open_store.again(engine, source), symbols=SYMBOLS[:2], start=MON, end=FRI).equals(want)


def test_a_partition_of_which_nothing_is_left_is_gone(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    compact(engine)
    source.rows.clear()
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d"})
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 0
    assert compact(engine) == 1
    assert kinds(engine) == []
    assert list((engine.store.root / "data").rglob("*.parquet")) == []


def test_partitions_that_nothing_touches_are_not_written_again(open_store: Opener, daily: Dataset) -> None:
    days = [date(2025, 3, 3), date(2026, 3, 2), date(2026, 3, 3)]
    source = TableSource(daily, bars(SYMBOLS, days))
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[0], start=days[0], end=days[0])
    compact(engine)
    (old,) = engine.store.state("bars_1d").files
    read(engine, symbols=SYMBOLS[0], start=days[1], end=days[1])
    compact(engine)
    assert old in engine.store.state("bars_1d").files
    assert len(engine.store.state("bars_1d").files) == 2


def test_a_journal_larger_than_memory_is_folded_in_parts(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "FOLD_BYTES", 1)
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    compact(engine)  # the background, for which this journal is full after each commit, may have been faster
    assert engine.stats.snapshot()["folded_segments"] == 5
    assert kinds(engine) == ["partition"]
    assert read(engine, symbols=SYMBOLS, start=MON, end=TODAY).equals(expected(source.dataset, source.rows, SYMBOLS, MON, TODAY))


def test_the_old_files_leave_the_disk(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    compact(engine)
    (partition,) = engine.store.state("bars_1d").files
    assert engine.act(Action.VACUUM, {"dataset": "bars_1d", "history_days": 0})["freed_bytes"] > 0
    files = list(engine.store.root.rglob("*.parquet"))
    assert files == [engine.store.root / partition.path]


def test_readers_see_the_same_rows_while_folding_goes_on(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, memory="300KiB")
    want = expected(source.dataset, source.rows, SYMBOLS, MON, FRI)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    done = threading.Event()

    def fold() -> int:
        count = 0
        for day in weekdays(date(2026, 11, 9), TODAY):
            read(engine, symbols=SYMBOLS, start=day, end=day)
            count += compact(engine)
        done.set()
        return count

    def ask(_: int) -> bool:
        same = True
        while same and not done.is_set():
            same = read(engine, symbols=SYMBOLS, start=MON, end=FRI, on_miss="error").equals(want)
        return same

    folding = Background(fold)
    assert in_threads(3, ask) == [True] * 3
    assert folding.result() == 55


def test_a_table_that_is_deleted_while_it_is_folded_stays_deleted(open_store: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_store()
    write(engine, "mine", [{"id": "a", "day": MON, "x": 1}], keys=["id", "day"])
    real = merge_tables

    def meanwhile(*arguments: Any) -> pa.Table:
        engine.act(Action.DELETE, {"dataset": "mine"})
        return real(*arguments)

    monkeypatch.setattr("fletching_server.folding.merge_tables", meanwhile)
    assert compact(engine, "mine") == 0
    assert engine.names() == []
    assert open_store.again(engine).names() == []


def test_a_table_that_is_replaced_while_it_is_folded_has_the_new_rows_only(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_store()
    write(engine, "mine", [{"id": "a", "day": MON, "x": 1}], keys=["id", "day"])
    real = merge_tables

    def meanwhile(*arguments: Any) -> pa.Table:
        monkeypatch.setattr("fletching_server.folding.merge_tables", real)
        write(engine, "mine", [{"id": "b", "day": MON, "x": 2}], mode="replace")
        return real(*arguments)

    monkeypatch.setattr("fletching_server.folding.merge_tables", meanwhile)
    compact(engine, "mine")
    again = open_store.again(engine)
    assert read(again, "mine").to_pylist() == [{"id": "b", "day": MON, "x": 2}]


def test_a_damaged_segment_does_not_stop_the_others_from_being_folded(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, memory="1KiB")
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    victim = engine.store.state("bars_1d").files[2]
    (engine.store.root / victim.path).write_bytes(b"")
    compact(engine)
    assert kinds(engine) == ["partition"]
    assert read(engine, symbols=SYMBOLS, start=MON, end=FRI).equals(expected(source.dataset, source.rows, SYMBOLS, MON, FRI))
    assert len(source.requests) == 6


def test_what_was_in_memory_is_in_memory_after_it_was_folded(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    compact(engine)
    assert read_info(engine, symbols=SYMBOLS, start=MON, end=FRI)[1].tier == "hot"
    assert engine.hot.facts()["hot_entries"] == 1


def test_a_full_journal_is_folded_without_waiting_for_a_quiet_moment(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "FULL_BYTES", 1000)
    folded = threading.Event()
    engine = open_store(source)
    engine.store.catalogue.on_commit(lambda name: folded.set() if "partition" in kinds(engine, name) else None)
    read(engine, symbols=SYMBOLS[:3], start=MON, end=FRI)
    assert folded.wait(10)


def test_many_small_files_become_one_without_waiting_for_a_quiet_moment(open_store: Opener, source: TableSource) -> None:
    merged = threading.Event()
    engine = open_store(source, compact_segments=3)
    engine.store.catalogue.on_commit(
        lambda name: merged.set() if "partition" not in kinds(engine) and engine.store.state(name).files[-1].since else None
    )
    read(engine, symbols=SYMBOLS[:3], start=MON, end=FRI)
    assert merged.wait(10)
    assert kinds(engine) == ["segment"]


def test_a_journal_is_folded_in_a_quiet_moment(open_store: Opener, source: TableSource) -> None:
    folded = threading.Event()
    engine = open_store(source, compact_idle_seconds=0.02)
    engine.store.catalogue.on_commit(lambda name: folded.set() if "partition" in kinds(engine, name) else None)
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert folded.wait(10)


def test_a_fold_that_fails_is_tried_again_after_a_while(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    monkeypatch.setattr(tiers, "FULL_BYTES", 1)
    failed, folded = threading.Event(), threading.Event()
    engine = open_store(source)
    real = merge_tables

    def fail(*_: Any) -> Any:
        monkeypatch.setattr("fletching_server.folding.merge_tables", real)
        failed.set()
        raise MemoryError("too much")

    monkeypatch.setattr("fletching_server.folding.merge_tables", fail)
    engine.store.catalogue.on_commit(lambda name: folded.set() if "partition" in kinds(engine, name) else None)
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert failed.wait(10)
    read(engine, symbols=SYMBOLS[1], start=MON, end=FRI)
    assert kinds(engine) == ["segment", "segment"]
    clock.advance(seconds=RETRY_SECONDS)
    read(engine, symbols=SYMBOLS[2], start=MON, end=FRI)
    assert folded.wait(10)
    assert list(engine.store.orphans()) == []
