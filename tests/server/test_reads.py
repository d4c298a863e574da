from __future__ import annotations

import gc
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import (
    SYMBOLS,
    ListingSource,
    Opener,
    TableSource,
    bar,
    bars,
    expected,
    in_threads,
    read,
    read_info,
    weekdays,
)

from fletching_schemas import Action, Dataset, ReadRequest, canonical
from fletching_schemas.errors import (
    CorruptFile,
    InvalidRequest,
    NotCached,
    ServerClosing,
    SourceUnavailable,
    UnknownColumn,
    UnknownDataset,
    UnknownSymbol,
)
from fletching_server import Engine
from fletching_server.testing import ManualClock

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
TODAY = date(2026, 11, 20)


def compact(engine: Engine, dataset: str = "bars_1d") -> int:
    folded = engine.act(Action.COMPACT, {"dataset": dataset})
    return int(folded["folded_segments"])


# Tiers


def test_rows_come_from_the_source_then_from_memory_then_from_disk(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    want = expected(source.dataset, source.rows, SYMBOLS, MON, TODAY)
    for tier, calls in (("source", 5), ("hot", 0)):
        table, info = read_info(engine, symbols=SYMBOLS, start=MON, end=TODAY)
        assert table.equals(want)
        assert (info.tier, info.upstream_calls, info.rows) == (tier, calls, want.num_rows)
    engine.act(Action.EVICT, {})
    table, info = read_info(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    assert (info.tier, info.upstream_calls) == ("cold", 0)
    assert table.equals(want)
    again = open_store.again(engine, source)
    table, info = read_info(again, symbols=SYMBOLS, start=MON, end=TODAY)
    assert (info.tier, info.upstream_calls, info.partitions) == ("cold", 0, 5)
    assert table.equals(want)
    assert read_info(again, symbols=SYMBOLS, start=MON, end=TODAY)[1].tier == "hot"


def test_a_read_of_held_and_missing_cells_tells_how_many_came_from_where(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    _, info = read_info(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 11))
    assert {tier: use.rows for tier, use in info.tiers.items()} == {"hot": 5, "cold": 0, "source": 3}
    assert info.tier == "hot+source"


def test_info_adds_up(engine: Engine) -> None:
    table, info = read_info(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    assert info.rows == table.num_rows == 75
    assert info.bytes > 0
    assert abs(sum(use.bytes for use in info.tiers.values()) - info.bytes) <= 3
    assert sum(use.rows for use in info.tiers.values()) == info.rows
    assert (info.gaps, info.age_seconds, info.dataset, info.plane) == ([], None, "bars_1d", "embedded")
    stats = engine.act(Action.STATS, {})
    assert stats["reads"] == 1
    assert stats["rows"] == 75


# What is asked


@pytest.mark.parametrize("names", [["close"], ["volume", "symbol"], ["trading_date", "close", "symbol", "open"]], ids=",".join)
@pytest.mark.parametrize("evicted", [False, True], ids=["from memory", "from disk"])
def test_an_answer_has_the_asked_columns_in_their_order(
    open_store: Opener, source: TableSource, names: list[str], *, evicted: bool
) -> None:
    engine = open_store(source)
    want = read(engine, symbols=SYMBOLS[:3], start=MON, end=FRI).select(names)
    if evicted:
        engine = open_store.again(engine, source, memory="1KiB")
    table = read(engine, symbols=SYMBOLS[:3], start=MON, end=FRI, columns=names)
    assert table.column_names == names
    assert table.equals(want)


@pytest.mark.parametrize(
    ("symbols", "start", "end"),
    [("000333.SZ", MON, FRI), (SYMBOLS[0], "2026-11-07", "2026-11-08"), (SYMBOLS[0], "2026-11-23", "2026-11-27")],
    ids=["unknown upstream", "a weekend", "the future"],
)
def test_an_empty_answer_has_the_schema(engine: Engine, symbols: Any, start: Any, end: Any) -> None:
    table = read(engine, symbols=symbols, start=start, end=end, columns=["close", "symbol"])
    assert table.num_rows == 0
    assert table.schema == pa.schema([("close", pa.float64()), pa.field("symbol", pa.string_view(), nullable=False)])


def test_all_symbols_are_those_that_the_source_lists(open_store: Opener, source: TableSource) -> None:
    listing = ListingSource(source.dataset, source.rows)
    engine = open_store(listing)
    assert read(engine, start=MON, end=FRI).equals(expected(source.dataset, source.rows, SYMBOLS, MON, FRI))
    with pytest.raises(UnknownSymbol, match=r"no symbol 600518\.SH"):
        read(engine, symbols="600518", start=MON, end=FRI)


def test_all_symbols_of_a_source_that_cannot_list_them_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="cannot list its symbols: name them"):
        read(engine, start=MON, end=FRI)
    read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    assert read(engine, start=MON, end=FRI, on_miss="cached").num_rows == 10


def test_a_symbol_that_was_listed_since_is_found(open_store: Opener, source: TableSource) -> None:
    listing = ListingSource(source.dataset, source.rows)
    engine = open_store(listing)
    read(engine, start=MON, end=FRI)
    listing.rows |= bars(["000333.SZ"], weekdays(MON, FRI))
    assert read(engine, symbols="000333", start=MON, end=FRI).num_rows == 5


def test_what_is_not_there_is_told(engine: Engine) -> None:
    with pytest.raises(UnknownDataset, match="there are: bars_1d"):
        read(engine, "nope")
    with pytest.raises(UnknownColumn, match="no column colour"):
        read(engine, symbols=SYMBOLS[0], columns=["colour"])


def test_cached_reads_give_what_is_held_and_never_ask(engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 3))
    source.error = AssertionError("asked")
    table, info = read_info(engine, symbols=SYMBOLS[:2], start=MON, end=FRI, on_miss="cached")
    assert table.num_rows == 2
    assert [str(gap) for gap in info.gaps] == [
        "000001.SZ 2026-11-04..2026-11-06 not_cached",
        "000002.SZ 2026-11-02..2026-11-06 not_cached",
    ]
    assert len(source.requests) == 1


def test_reads_that_must_not_miss_say_what_is_missing(engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 3))
    with pytest.raises(NotCached, match=r"000001\.SZ 2026-11-04\.\.2026-11-06 and 1 more ranges are not held"):
        read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI, on_miss="error")
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 3), on_miss="error").num_rows == 2
    assert len(source.requests) == 1


def test_without_its_source_a_store_serves_what_it_holds(open_store: Opener, engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    alone = open_store.again(engine)
    want = expected(source.dataset, source.rows, SYMBOLS[:2], MON, FRI)
    assert read(alone, symbols=SYMBOLS[:2], start=MON, end=FRI).equals(want)
    assert read(alone).equals(want)
    with pytest.raises(SourceUnavailable, match=r"its source 'table' is not configured here"):
        read(alone, symbols=SYMBOLS[0], start=MON, end="2026-11-09")
    assert read(alone, symbols=SYMBOLS[0], start=MON, end="2026-11-09", on_miss="cached").num_rows == 5


def minutes_source() -> TableSource:
    dataset = canonical("bars_1m", calendar="XSHG")
    rows: dict[tuple[str, date], Any] = {}
    for symbol in SYMBOLS[:2]:
        for day in weekdays(MON, FRI):
            opening = datetime(day.year, day.month, day.day, 1, 31, tzinfo=UTC)
            rows[symbol, day] = [
                {"symbol": symbol, "ts": opening + timedelta(minutes=n), "trading_date": day, "close": float(n)}
                for n in range(60)
            ]
    return TableSource(dataset, rows)


@pytest.mark.parametrize("state", ["journal", "partitions", "from disk"])
@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("2026-11-03", "2026-11-03", 60),
        ("2026-11-03T09:40", "2026-11-03T09:49", 10),
        ("2026-11-03T10:00", "2026-11-04T09:35", 31 + 5),
        ("2026-11-03T01:40:00Z", "2026-11-03T01:40:00Z", 1),
        ("2026-11-03T12:00", "2026-11-03T13:00", 0),
        (None, "2026-11-02T09:31", 1),
    ],
)
def test_moments_cut_minutes_and_dates_take_whole_sessions(
    open_store: Opener, state: str, start: str | None, end: str, rows: int
) -> None:
    source = minutes_source()
    engine = open_store(source)
    read(engine, "bars_1m", SYMBOLS[:2], MON, FRI)
    if state != "journal":
        assert compact(engine, "bars_1m") == 2
    if state == "from disk":
        engine = open_store.again(engine, source, memory="1KiB")
    table = read(engine, "bars_1m", SYMBOLS[0], start or MON, end)
    every = expected(source.dataset, source.rows, SYMBOLS[:1], MON, FRI).to_pylist()
    moments = table.column("ts").to_pylist()
    assert len(moments) == rows
    assert table.to_pylist() == [row for row in every if row["ts"] in moments]


# Order and merging


def test_rows_of_several_partitions_segments_and_gaps_come_in_order(open_store: Opener, daily: Dataset) -> None:
    days = weekdays(date(2025, 12, 22), date(2025, 12, 31)) + weekdays(date(2026, 1, 5), date(2026, 1, 16))
    source = TableSource(daily, bars(SYMBOLS, days))
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=days[0], end=days[4])
    read(engine, symbols=SYMBOLS[1:3], start=days[8], end=days[10])
    assert compact(engine) == 7
    read(engine, symbols=SYMBOLS[2:], start=days[5], end=days[9])
    table, info = read_info(engine, symbols=SYMBOLS, start=days[0], end=days[-1])
    assert table.equals(expected(daily, source.rows, SYMBOLS, days[0], days[-1]))
    assert {file.period for file in engine.store.state("bars_1d").files if file.kind == "partition"} == {"2025", "2026"}
    assert info.upstream_calls > 0


def test_a_later_fill_wins_over_partitions_and_older_segments(
    open_store: Opener, source: TableSource, clock: ManualClock
) -> None:
    clock.set(datetime(2026, 11, 20, 4, 0, tzinfo=UTC))
    engine = open_store(source)
    for version in range(4):
        source.rows[SYMBOLS[0], TODAY] = bar(SYMBOLS[0], TODAY, version)
        table = read(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY)
        assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], FRI, TODAY))
        if version == 1:
            compact(engine)
        clock.advance(seconds=301)


# Memory


@pytest.mark.parametrize("memory", ["1KiB", "64KiB", "1MiB"])
@pytest.mark.parametrize("folded", [False, True], ids=["journal", "partitions"])
def test_a_tiny_budget_still_answers_rightly(open_store: Opener, daily: Dataset, memory: str, *, folded: bool) -> None:
    days = weekdays(date(2025, 1, 1), TODAY)
    days = [day for day in days if expected_session(day)]
    source = TableSource(daily, bars(SYMBOLS, days))
    engine = open_store(source, memory=memory)
    for _ in range(2):
        table = read(engine, symbols=SYMBOLS, start=days[0], end=TODAY)
        assert table.equals(expected(daily, source.rows, SYMBOLS, days[0], TODAY))
        facts = engine.hot.facts()
        assert facts["hot_bytes"] <= facts["hot_max_bytes"]
        if folded:
            compact(engine)
    one = read(engine, symbols=SYMBOLS[3], start="2026-03-02", end="2026-03-31", columns=["close"])
    assert one.equals(expected(daily, source.rows, SYMBOLS[3:4], date(2026, 3, 2), date(2026, 3, 31)).select(["close"]))


def expected_session(day: date) -> bool:
    """Return whether a weekday is far from any holiday of Shanghai."""
    return day.month in {3, 7, 8, 11, 12}


def test_rows_that_arrive_with_an_answer_under_way_do_not_change_it(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    answer = engine.read(ReadRequest("bars_1d", SYMBOLS, MON, TODAY))
    compact(engine)
    engine.act(Action.DELETE, {"dataset": "bars_1d"})
    table = pa.Table.from_batches(list(answer), schema=answer.schema)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS, MON, TODAY))
    assert list((engine.store.root / "data").rglob("*.parquet")) == []


def test_an_answer_that_is_closed_early_gives_its_bytes_back(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    never_begun = engine.read(ReadRequest("bars_1d", SYMBOLS, MON, TODAY))
    assert engine.hot.facts()["hot_leases"] > 0
    never_begun.close()
    never_begun.close()
    assert engine.hot.facts()["hot_leases"] == 0
    begun = engine.read(ReadRequest("bars_1d", SYMBOLS, MON, TODAY))
    batches = iter(begun)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    del batches, begun
    gc.collect()
    assert engine.hot.facts()["hot_leases"] == 0
    assert engine.store._pins["bars_1d"] == {}


def test_an_answer_that_was_read_to_its_end_has_given_everything_back(engine: Engine) -> None:
    answer = engine.read(ReadRequest("bars_1d", SYMBOLS, MON, TODAY))
    list(answer)
    assert engine.hot.facts()["hot_leases"] == 0
    assert engine.store._pins["bars_1d"] == {}


def test_many_readers_of_everything_at_once_all_get_it(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, memory="200KiB")

    def ask(number: int) -> bool:
        symbols = SYMBOLS[number % 3 :]
        want = expected(source.dataset, source.rows, symbols, MON, TODAY)
        return all(read(engine, symbols=symbols, start=MON, end=TODAY).equals(want) for _ in range(4))

    assert in_threads(8, ask) == [True] * 8
    assert engine.hot.check() == []


def test_a_closed_engine_says_so(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    engine.close()
    engine.close()
    with pytest.raises(ServerClosing, match="closed"):
        read(engine, symbols=SYMBOLS[0])


# Damage


def spoil(engine: Engine, count: int) -> None:
    """Truncate the first files of the store, as a bad disk might between two runs."""
    for file in engine.store.state("bars_1d").files[:count]:
        path = engine.store.root / file.path
        path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("count", [1, 3, 5])
def test_damaged_partitions_are_fetched_again_within_the_read_that_finds_them(
    open_store: Opener, november: list[date], count: int
) -> None:
    dataset = canonical("bars_1d", calendar="XSHG", period="day")
    source = TableSource(dataset, bars(SYMBOLS, november))
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    compact(engine)
    engine.close()
    spoil(engine, count)
    again = open_store(source)
    table, info = read_info(again, symbols=SYMBOLS, start=MON, end=date(2026, 11, 10))
    assert table.equals(expected(dataset, source.rows, SYMBOLS, MON, date(2026, 11, 10)))
    assert len(list((again.store.root / "set-aside").iterdir())) == count
    assert info.upstream_calls == 5 + 5 * count


def test_a_file_that_breaks_while_the_server_runs_is_found_out_by_its_pages(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, memory="1KiB")
    read(engine, symbols=SYMBOLS[0], start=MON, end=TODAY)
    (file,) = engine.store.state("bars_1d").files
    path = engine.store.root / file.path
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0x10
    path.write_bytes(raw)
    table, info = read_info(engine, symbols=SYMBOLS[0], start=MON, end=TODAY)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], MON, TODAY))
    assert info.upstream_calls == 1


def test_damage_that_shows_only_when_rows_have_left_ends_the_answer_with_an_error(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletching_server.holding.GROUP_BYTES", 1)  # a symbol at a time
    engine = open_store(source, memory="1KiB")
    read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    compact(engine)
    answer = engine.read(ReadRequest("bars_1d", SYMBOLS, MON, TODAY))
    (file,) = engine.store.state("bars_1d").files
    path = engine.store.root / file.path
    path.write_bytes(b"")
    batches = iter(answer)
    with pytest.raises(CorruptFile, match="read again"):
        list(batches)
    table = read(engine, symbols=SYMBOLS, start=MON, end=TODAY)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS, MON, TODAY))
