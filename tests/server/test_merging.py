"""Segments that become fewer: which files stay, what they tell of the past, and that nobody notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date

import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, Background, Opener, TableSource, bar, expected, in_threads, read, weekdays, write

from fletching_schemas import Action, FetchRequest
from fletching_schemas.errors import ServerClosing
from fletching_server import Engine
from fletching_server.calendars import day_number
from fletching_server.changes import Fill
from fletching_server.image import build_image
from fletching_server.merging import only_add
from fletching_server.snapshot import Asked, Fact, StoredFile
from fletching_server.spans import UNCONFIRMED, Days, Span
from fletching_server.testing import ManualClock
from fletching_server.tiers import segments_of

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
TODAY = date(2026, 11, 20)


def journal(engine: Engine, dataset: str = "bars_1d") -> list[StoredFile]:
    return segments_of(engine.store.state(dataset))


def merge(engine: Engine, dataset: str = "bars_1d") -> StoredFile:
    assert engine._parts.write_path.compaction._merge(dataset, journal(engine, dataset))
    (merged,) = journal(engine, dataset)
    return merged


def on_disk(engine: Engine) -> int:
    return len(list(engine.store.root.rglob("*.parquet")))


def fill(engine: Engine, source: TableSource, symbol: str, days: list[date]) -> None:
    """Commit what the source has of one symbol, as a fill does, without planning one."""
    store, dataset = engine.store, source.dataset
    table = pa.Table.from_pylist([bar(symbol, day) for day in days], schema=dataset.schema)
    asked = FetchRequest(dataset.name, (symbol,), days[0], days[-1])
    segment = store.publish(dataset, build_image(dataset, table), "segment", sync=False, asked=asked)
    first, last = day_number(days[0]), day_number(days[-1])
    fact = Fact(symbol, Span(first, last, UNCONFIRMED, "", 0.0), segment.id)
    adjacent = engine.calendars.get(dataset.calendar).adjacent
    store.commit(Fill(dataset.name, segment.id, segment, (fact,), adjacent, "table", 0.0, Days(first, last), (symbol,)))


# What files stay


def test_fills_that_only_add_leave_one_file_that_tells_each_generation(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    told = []
    for count, symbol in enumerate(SYMBOLS, 1):
        read(engine, symbols=symbol, start=MON, end=FRI)
        told.append((engine.store.state("bars_1d").generation, SYMBOLS[:count]))
    merged = merge(engine)
    assert on_disk(engine) == 1
    assert (merged.since, merged.rank, merged.symbols) == (told[0][0], told[-1][0], SYMBOLS)
    wanted = [expected(source.dataset, source.rows, symbols, MON, FRI) for _, symbols in told]
    assert [read(engine, as_of=generation) for generation, _ in told] == wanted
    again = open_store.again(engine, source)
    assert [read(again, as_of=generation) for generation, _ in told] == wanted
    again.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert [read(again, as_of=generation) for generation, _ in told] == wanted


def test_what_a_user_wrote_stays_for_as_long_as_its_past_is_kept(open_store: Opener, clock: ManualClock) -> None:
    engine = open_store()
    for x in range(5):
        write(engine, "mine", [{"id": "a", "day": MON, "x": x}], keys=["id", "day"] if not x else None)
    merge(engine, "mine")
    assert on_disk(engine) == 6
    assert [read(engine, "mine", as_of=generation)["x"].to_pylist() for generation in range(1, 6)] == [[x] for x in range(5)]
    engine.act(Action.COMPACT, {"dataset": "mine"})  # the merged file leaves: the past is made of what it was merged from
    assert on_disk(engine) == 6
    assert [read(engine, "mine", as_of=generation)["x"].to_pylist() for generation in range(1, 6)] == [[x] for x in range(5)]
    clock.advance(days=8)
    write(engine, "mine", [{"id": "a", "day": MON, "x": 9}])
    engine.act(Action.COMPACT, {"dataset": "mine"})
    clock.advance(days=8)
    engine.act(Action.VACUUM, {"dataset": "mine"})
    assert on_disk(engine) == 1


def test_without_a_past_nothing_but_the_merged_file_stays(open_store: Opener) -> None:
    engine = open_store(history_days=0)
    for x in range(5):
        write(engine, "mine", [{"id": "a", "day": MON, "x": x}], keys=["id", "day"] if not x else None)
    merge(engine, "mine")
    assert on_disk(engine) == 1
    assert read(engine, "mine")["x"].to_pylist() == [4]


def test_the_cells_of_fills_that_nobody_tells_apart_are_few_entries(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, history_days=0)
    for symbol in SYMBOLS:
        read(engine, symbols=symbol, start=MON, end=FRI)
    for day in weekdays(date(2026, 11, 9), date(2026, 11, 13)):
        read(engine, symbols=SYMBOLS[0], start=day, end=day)
    week, next_week = (Days(day_number(day), day_number(day) + 4) for day in (MON, date(2026, 11, 9)))
    assert merge(engine).asked == (Asked(*week, SYMBOLS[:1]), Asked(*next_week, SYMBOLS[:1]), Asked(*week, SYMBOLS[1:]))


@pytest.mark.slow
def test_ten_thousand_small_fills_are_a_handful_of_files(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, compact_segments=16)
    names = [f"{number:06}.SZ" for number in range(1, 10_001)]
    days = weekdays(MON, date(2026, 11, 3))
    most = 0
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), 100):
            list(pool.map(lambda name: fill(engine, source, name, days), names[start : start + 100]))
            while engine._parts.write_path.compaction.step("bars_1d", quiet=False):
                pass
            most = max(most, on_disk(engine))
    assert most <= 16 * 4
    while engine._parts.write_path.compaction.step("bars_1d", quiet=True):
        pass
    assert on_disk(engine) <= 4
    source.rows = {(name, day): bar(name, day) for name in names for day in days}
    assert read(engine, on_miss="cached").equals(expected(source.dataset, source.rows, names, MON, TODAY))
    assert engine.verify() == []


# What tells ranks


def asking(rank: int, first: int, last: int, *symbols: str, rows: tuple[int, int] | None = None) -> StoredFile:
    days = rows or (first, last)
    file = StoredFile(str(rank), "d", "segment", "", 0, "", "", 1, 1, 1, *days, symbols, asked=(Asked(first, last),))
    return replace(file, rank=rank)


def test_fills_of_cells_that_are_apart_only_add() -> None:
    assert only_add([asking(1, 10, 20, "a"), asking(2, 10, 20, "b"), asking(3, 21, 30, "a", "b")], 0)


def test_fills_of_the_same_cell_do_not_only_add_unless_that_is_long_ago() -> None:
    run = [asking(1, 10, 20, "a"), asking(2, 20, 30, "a"), asking(3, 40, 50, "a")]
    assert not only_add(run, 0)
    assert not only_add(run, 1)
    assert only_add(run, 2)


def test_rows_that_nobody_asked_for_are_of_no_known_fill() -> None:
    assert not only_add([asking(1, 10, 20, "a", rows=(5, 20)), asking(2, 30, 30, "a")], 0)
    assert not only_add([replace(asking(1, 10, 20, "a"), asked=()), asking(2, 30, 30, "a")], 0)
    assert not only_add([replace(asking(2, 10, 20, "a"), since=1), asking(3, 30, 30, "a")], 0)


# Beside others


def test_readers_see_the_same_rows_while_merging_goes_on(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, memory="300KiB")
    want = expected(source.dataset, source.rows, SYMBOLS, MON, FRI)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    then = engine.store.state("bars_1d").generation
    done = threading.Event()

    def tidy() -> None:
        try:
            for day in weekdays(date(2026, 11, 9), TODAY):
                read(engine, symbols=SYMBOLS, start=day, end=day)
                merge(engine)
            engine.act(Action.COMPACT, {"dataset": "bars_1d"})
        finally:
            done.set()

    def ask(number: int) -> bool:
        same, past = True, {"as_of": then} if number % 2 else {"on_miss": "error"}
        while same and not done.is_set():
            same = read(engine, symbols=SYMBOLS, start=MON, end=FRI, **past).equals(want)
        return same

    tidying = Background(tidy)
    assert in_threads(4, ask) == [True] * 4
    tidying.result()


def test_what_was_in_memory_is_in_memory_after_it_was_merged(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    merged = merge(engine)
    assert engine.hot.holds(merged.key)
    assert engine.hot.facts()["hot_entries"] == 1


def test_a_merge_of_what_has_changed_meanwhile_leaves_nothing_behind(open_store: Opener) -> None:
    engine = open_store()
    for x in range(3):
        write(engine, "mine", [{"id": "a", "day": MON, "x": x}], keys=["id", "day"] if not x else None)
    run = journal(engine, "mine")
    write(engine, "mine", [{"id": "b", "day": MON, "x": 1, "y": 2.0}], evolve=True)
    write(engine, "mine", [{"id": "a", "day": MON, "x": 7, "y": 2.0}], mode="replace")
    assert not engine._parts.write_path.compaction._merge("mine", run)
    assert engine.store.orphans() == []


def test_a_step_ends_with_its_next_file_when_the_cache_is_closed(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    engine._parts.write_path.compaction.stop()
    with pytest.raises(ServerClosing, match="compaction goes on when it is opened again"):
        engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert engine.store.orphans() == []
    again = open_store.again(engine, source)
    assert again.act(Action.COMPACT, {"dataset": "bars_1d"}) == {"folded_segments": 5}
