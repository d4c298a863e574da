"""Filtered and limited reads: what is fetched and read for them, what they answer and tell, and when they let go."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.conftest import NOW, SYMBOLS, ListingSource, Opener, TableSource, bar, bars, read, read_info, write

from fletching_schemas import Action, Dataset, ReadRequest, canonical
from fletching_schemas.errors import InvalidRequest, NotCached, SourceUnavailable, UnknownColumn, UnknownDataset, UnknownSymbol
from fletching_schemas.filters import Compare, Filter
from fletching_schemas.requests import parse_moment
from fletching_server import Engine
from fletching_server.almanac import build_calendar
from fletching_server.calendars import Calendar
from fletching_server.narrowing import narrow

FIRST, LAST = date(2026, 11, 2), date(2026, 11, 20)


def day(text: str) -> dict[str, str]:
    return {"$date": text}


def instant(text: str) -> dict[str, Any]:
    return {"$datetime": [text, "utc", 0]}


@pytest.fixture
def listing(daily: Dataset, november: list[date]) -> ListingSource:
    return ListingSource(daily, bars(SYMBOLS, november))


@pytest.fixture
def market(open_store: Opener, listing: ListingSource) -> Engine:
    return open_store(listing)


def asked(source: TableSource) -> list[str]:
    return [str(request) for request in source.requests]


# What is fetched


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        (["==", "symbol", "000002.SZ"], ["bars_1d 000002.SZ 2026-11-02..2026-11-20"]),
        (["in", "symbol", ["000002.SZ", "000003.SZ", "000001"]], ["bars_1d 000002.SZ 2026-11-02..2026-11-20"]),
        (["and", ["==", "symbol", "000002.SZ"], [">", "trading_date", day("2026-11-17")],
          ["<", "trading_date", day("2026-11-20")]],
         ["bars_1d 000002.SZ 2026-11-18..2026-11-19"]),
        (["and", ["==", "symbol", "000002.SZ"], ["or", ["==", "trading_date", day("2026-11-05")],
          ["in", "trading_date", [day("2026-11-09"), day("2026-11-03")]]]], ["bars_1d 000002.SZ 2026-11-03..2026-11-09"]),
        (["or", ["and", ["==", "symbol", "000001.SZ"], ["==", "trading_date", day("2026-11-03")]],
          ["and", ["==", "symbol", "000002.SZ"], ["==", "trading_date", day("2026-11-04")]]],
         ["bars_1d 000001.SZ 2026-11-03..2026-11-04", "bars_1d 000002.SZ 2026-11-03..2026-11-04"]),
        (["in", "symbol", ["NOPE", "sz000001", "000001"]], []),
        (["in", "symbol", []], []),
        (["and", ["==", "symbol", "000001.SZ"], ["==", "symbol", "000002.SZ"]], []),
        (["<", "trading_date", day("1901-01-01")], []),
        ([">", "trading_date", day("9999-12-31")], []),
        (["and", [">", "trading_date", day("2026-11-05")], ["<", "trading_date", day("2026-11-05")]], []),
        ([">", "trading_date", day("2026-11-20")], []),
    ],
)  # fmt: skip
def test_only_the_cells_that_a_filter_reaches_are_fetched(
    where: list[Any], calls: list[str], market: Engine, listing: ListingSource
) -> None:
    filtered = read(market, "bars_1d", None, FIRST, LAST, where=where)
    assert sorted(asked(listing)) == calls
    everything = read(market, "bars_1d", None, FIRST, LAST).to_pylist()
    assert filtered.to_pylist() == [row for row in everything if holds(where, row)]


def holds(where: list[Any], row: dict[str, Any]) -> bool:
    """Return whether a row is wanted, worked out in plain Python."""
    word, *rest = where
    if word in {"and", "or"}:
        return (all if word == "and" else any)(holds(part, row) for part in rest)
    told = rest[1] if isinstance(rest[1], list) else [rest[1]]
    values = [date.fromisoformat(value["$date"]) if isinstance(value, dict) else value for value in told]
    signs = {"==": operator.eq, "<": operator.lt, ">": operator.gt}
    return row[rest[0]] in values if word == "in" else bool(signs[word](row[rest[0]], values[0]))


def test_a_filter_within_named_symbols_and_a_range_narrows_both(market: Engine, listing: ListingSource) -> None:
    where = ["and", ["in", "symbol", ["000001.SZ", "600519.SH"]], [">=", "trading_date", day("2026-11-01")]]
    table = read(market, "bars_1d", ["sz000001", "000002"], "2026-11-04", "2026-11-06", where=where)
    assert asked(listing) == ["bars_1d 000001.SZ 2026-11-04..2026-11-06"]
    assert table["symbol"].to_pylist() == ["000001.SZ"] * 3


def test_a_source_that_cannot_list_is_asked_for_the_symbols_of_a_filter(engine: Engine, source: TableSource) -> None:
    with pytest.raises(InvalidRequest, match="cannot list its symbols"):
        read(engine, "bars_1d", None, FIRST, LAST)
    assert read(engine, "bars_1d", None, FIRST, FIRST, where=["==", "symbol", "000001.SZ"]).num_rows == 1
    assert asked(source) == ["bars_1d 000001.SZ 2026-11-02..2026-11-02"]


def test_a_listing_that_fails_is_an_error_unless_all_is_held(market: Engine, listing: ListingSource) -> None:
    read(market, "bars_1d", "000001.SZ", FIRST, LAST)

    def broken(dataset: str) -> list[str]:
        raise ConnectionError(dataset)

    listing.symbols = broken  # type: ignore[method-assign]
    market.desk._listings.clear()
    assert read(market, "bars_1d", None, FIRST, LAST, where=["==", "symbol", "000001.SZ"]).num_rows == 15
    with pytest.raises(SourceUnavailable):
        read(market, "bars_1d", None, FIRST, LAST, where=["==", "symbol", "000002.SZ"])


def test_a_listing_that_costs_is_not_asked_for_symbols_that_are_held(market: Engine, listing: ListingSource) -> None:
    read(market, "bars_1d", "000001.SZ", FIRST, LAST)
    listing.costly_listing = True  # type: ignore[attr-defined]  # what a source may say about itself
    market.desk._listings.clear()
    assert read(market, "bars_1d", None, FIRST, LAST, where=["==", "symbol", "000001.SZ"]).num_rows == 15
    assert market.desk.known_listing("bars_1d") is None
    assert read(market, "bars_1d", None, FIRST, LAST, where=["in", "symbol", ["000001.SZ", "000099.SZ"]]).num_rows == 15
    assert market.desk.known_listing("bars_1d") == frozenset(SYMBOLS)  # one that nobody has heard of: the list knows


def test_without_filling_a_filter_finds_what_is_held(market: Engine, listing: ListingSource) -> None:
    read(market, "bars_1d", "000001.SZ", FIRST, FIRST)
    where = ["in", "symbol", ["000001.SZ", "000002.SZ", "000099.SZ"]]
    assert read(market, "bars_1d", None, FIRST, LAST, where=where, on_miss="cached").num_rows == 1
    assert read(market, "bars_1d", None, FIRST, FIRST, where=["==", "symbol", "000001.SZ"], on_miss="error").num_rows == 1
    with pytest.raises(NotCached, match="000002"):
        read(market, "bars_1d", None, FIRST, FIRST, where=where, on_miss="error")
    assert len(listing.requests) == 1


def test_what_is_named_must_be_there_although_a_filter_need_not(market: Engine) -> None:
    with pytest.raises(UnknownSymbol, match="000099"):
        read(market, "bars_1d", ["000099.SZ"], FIRST, LAST, where=[">", "close", 1.0])


# What is answered


def test_rows_are_counted_as_they_are_answered_and_tiers_as_they_are_looked_at(market: Engine) -> None:
    everything = read(market, "bars_1d", None, FIRST, LAST)
    middle = pc.quantile(everything["close"], 0.5)[0].as_py()
    wanted = [row for row in everything.to_pylist() if row["close"] > middle]
    table, info = read_info(market, "bars_1d", None, FIRST, LAST, where=[">", "close", middle])
    assert table.to_pylist() == wanted
    assert (info.rows, info.tiers["hot"].rows, info.tier) == (len(wanted), everything.num_rows, "hot")
    assert 0 < info.bytes < info.tiers["hot"].bytes
    assert info.milliseconds >= 0


@pytest.mark.parametrize("where", [None, [">", "close", 0.0]])
@pytest.mark.parametrize("limit", [0, 1, 7, 75, 10_000])
def test_a_limit_gives_the_first_rows_and_lets_go(limit: int, where: Any, market: Engine) -> None:
    everything = read(market, "bars_1d", None, FIRST, LAST)
    answer = market.read(ReadRequest("bars_1d", None, FIRST, LAST, info=True, where=where, limit=limit))
    assert pa.Table.from_batches(list(answer), answer.schema).equals(everything.slice(0, limit))
    assert answer.info.rows == min(limit, everything.num_rows)
    assert market.hot.facts()["hot_leases"] == 0
    assert read(market, "bars_1d", "000002.SZ", FIRST, LAST, limit=3).num_rows == 3


def test_a_limit_stops_the_reading(open_store: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching_server.holding.GROUP_BYTES", 256 << 10)
    engine = open_store(memory="64KiB")  # nothing of the table fits: it is read in groups of symbols
    rows = [{"symbol": f"S{number:03}", "day": FIRST, "text": "x" * 4000} for number in range(1000)]
    write(engine, "wide", rows, keys=["symbol", "day"])
    engine.act(Action.EVICT, {})
    table, info = read_info(engine, "wide", where=["!=", "symbol", "S000"], limit=2)
    assert table["symbol"].to_pylist() == ["S001", "S002"]
    assert (info.rows, info.tier) == (2, "cold")
    assert info.tiers["cold"].rows < 700  # batches are of 2 MB; the rest has not been read


def test_columns_that_only_the_filter_needs_are_not_in_the_answer(market: Engine) -> None:
    table = read(
        market, "bars_1d", None, FIRST, LAST, columns=["open"], where=["and", [">", "close", 0.0], ["is_null", "amount"]]
    )
    assert table.column_names == ["open"]
    assert table.num_rows == 75


def test_an_answer_that_its_range_gives_by_itself_is_not_filtered_again(market: Engine) -> None:
    read(market, "bars_1d", None, FIRST, LAST)
    where = ["and", ["==", "symbol", "000001.SZ"], [">=", "trading_date", day("2026-11-05")]]
    asked = [
        ReadRequest("bars_1d", None, FIRST, LAST, where=where),  # type: ignore[arg-type]  # as it travels
        ReadRequest("bars_1d", ("000001.SZ",), date(2026, 11, 5), LAST),
    ]
    batches = [list(market.read(request)) for request in asked]
    addresses = [[batch["close"].buffers()[1].address for batch in each] for each in batches]
    assert addresses[0] == addresses[1]
    assert batches[0] == batches[1]


def test_whole_numbers_that_a_column_cannot_have_are_none_of_its_values(open_store: Opener) -> None:
    engine = open_store()
    rows = pa.table({"symbol": ["A", "B"], "day": [FIRST] * 2, "small": pa.array([1, None], pa.int8())})
    write(engine, "own", rows, keys=["symbol", "day"])
    assert read(engine, "own", where=["in", "small", [1, 300, 2**63]]).num_rows == 1
    assert read(engine, "own", where=["<", "small", 300]).num_rows == 1
    assert read(engine, "own", where=["in", "small", []]).num_rows == 0


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        (["==", "nope", 1], UnknownColumn, "bars_1d has no column nope; it has symbol, trading_date"),
        (["or", ["is_null", "nope"], ["is_null", "open"]], UnknownColumn, "no column nope"),
        (["==", "close", "x"], InvalidRequest, "bars_1d.close is double and cannot be compared with 'x'"),
        (["==", "close", True], InvalidRequest, "cannot be compared with True"),
        (["==", "volume", 1.5], InvalidRequest, "bars_1d.volume is int64 and cannot be compared with 1.5"),
        (["==", "symbol", 1], InvalidRequest, "symbol is string_view and cannot"),
        (["==", "trading_date", "2026-11-02"], InvalidRequest, "cannot be compared with '2026-11-02'"),
        (["==", "trading_date", instant("2026-11-02T00:00:00")], InvalidRequest, "cannot be compared with"),
        (["<", "suspended", True], InvalidRequest, "compare it by == or !=, not by <"),
        (["in", "volume", [1, "x"]], InvalidRequest, "cannot be compared with 'x'"),
    ],
)  # fmt: skip
def test_a_filter_that_does_not_suit_the_dataset_is_refused(
    where: list[Any], error: type[Exception], told: str, market: Engine, listing: ListingSource
) -> None:
    request = ReadRequest("bars_1d", where=where)  # type: ignore[arg-type]  # as it travels
    for ask in (market.read, market.describe):
        with pytest.raises(error, match=told):
            ask(request)
    assert listing.requests == []


def test_an_answer_of_nothing_is_refused_as_any_other_would_be(market: Engine) -> None:
    nothing = ["in", "symbol", []]
    assert read(market, "bars_1d", None, where=nothing, columns=["close"]).column_names == ["close"]
    with pytest.raises(UnknownColumn):
        read(market, "bars_1d", None, where=nothing, columns=["nope"])
    with pytest.raises(UnknownDataset):
        read(market, "bars_9d", None, where=nothing)
    write(market, "own", [{"symbol": "A", "day": FIRST, "close": 1.0}], keys=["symbol", "day"])
    with pytest.raises(InvalidRequest, match="cannot be adjusted"):
        read(market, "own", None, where=nothing, adjust="hfq")


# Looking


def test_describing_tells_the_schema_and_not_the_rows(market: Engine) -> None:
    write(market, "own", [{"symbol": "A", "day": FIRST, "score": 1.0}], keys=["symbol", "day"])
    market.act(Action.COMPACT, {"dataset": "own"})
    assert market.describe(ReadRequest("own"))[1] == 1
    choices: list[dict[str, Any]] = [{"limit": 1}, {"where": ["is_null", "score"]}]
    for more in choices:
        schema, rows = market.describe(ReadRequest("own", **more))
        assert (schema.names, rows) == (["symbol", "day", "score"], -1)


def test_explaining_tells_what_was_narrowed_and_what_is_left(market: Engine) -> None:
    body = {"dataset": "bars_1d", "start": FIRST, "limit": 9}
    where = ["and", ["in", "symbol", ["000001.SZ", "x"]], ["<", "trading_date", day("2026-11-05")], [">", "close", 1.0]]
    told: Any = market.act(Action.EXPLAIN, {**body, "where": where})
    assert told["narrowed"] == {"symbols": ["000001.SZ"], "start": None, "end": "2026-11-04"}
    assert (told["filter"], told["limit"], told["nothing"], told["symbols"]) == ("close > 1.0", 9, False, 1)
    nothing: Any = market.act(Action.EXPLAIN, {**body, "where": ["==", "symbol", "x"]})
    assert (nothing["nothing"], nothing["symbols"], nothing["upstream_calls"]) == (True, 0, [])
    assert "narrowed" not in market.act(Action.EXPLAIN, {"dataset": "bars_1d", "start": FIRST})


# Narrowing by itself


def narrowed(dataset: Dataset, calendar: Calendar, where: Any, *, is_table: bool = False, **more: Any) -> tuple[Any, Any, str]:
    found = narrow(ReadRequest(dataset.name, where=where, **more), dataset, calendar, NOW, is_table=is_table)
    return found.request.start, found.request.end, "nothing" if found.nothing else str(found.rest)


MORNING, EVENING = "2026-11-05T15:00:00", "2026-11-05T23:00:00"


@pytest.mark.parametrize(
    ("where", "more", "start", "end", "rest"),
    [
        ([">=", "ts", instant(MORNING)], {}, MORNING + "Z", None, "None"),
        ([">", "ts", instant(MORNING)], {}, "2026-11-05T15:00:00.000001Z", None, "None"),
        (["<", "ts", instant(MORNING)], {}, None, "2026-11-05T14:59:59.999999Z", "None"),
        (["==", "ts", instant(MORNING)], {}, MORNING + "Z", MORNING + "Z", "None"),
        (["!=", "ts", instant(MORNING)], {}, None, None, "ts != 2026-11-05 15:00:00+00:00"),
        # Both a session and an instant: the later start and the earlier end narrow, the other is looked at row by row.
        (["and", [">=", "ts", instant(MORNING)], [">=", "trading_date", day("2026-11-06")]], {},
         "2026-11-06", None, "ts >= 2026-11-05 15:00:00+00:00"),
        (["and", ["<=", "ts", instant(EVENING)], ["<=", "trading_date", day("2026-11-06")]], {},
         None, EVENING + "Z", "trading_date <= 2026-11-06"),
        # What the request asks for itself is never given up.
        ([">=", "ts", instant(MORNING)], {"start": "2026-11-10"}, "2026-11-10", None,
         "ts >= 2026-11-05 15:00:00+00:00"),
        ([">=", "trading_date", day("2026-11-09")], {"start": "2026-11-06T20:00"}, "2026-11-06T20:00", None,
         "trading_date >= 2026-11-09"),
        (["<=", "ts", instant(EVENING)], {"end": "2026-11-06"}, None, "2026-11-06", "ts <= 2026-11-05 23:00:00+00:00"),
        # An evening belongs to the next session, here Monday's: a start after the day of the end is not reversed.
        (["and", [">=", "trading_date", day("2026-11-09")], ["<=", "ts", instant("2026-11-07T03:00:00")]], {},
         "2026-11-09", None, "ts <= 2026-11-07 03:00:00+00:00"),
    ],
)  # fmt: skip
def test_a_range_of_an_overnight_exchange_is_narrowed_with_care(
    where: Any, more: dict[str, Any], start: str | None, end: str | None, rest: str
) -> None:
    dataset = canonical("bars_1m", calendar="CMES", notation="verbatim")
    found = narrowed(dataset, build_calendar("CMES", NOW.date()), where, **more)
    assert found == (parse_moment(start, "start"), parse_moment(end, "end"), rest)


def test_a_day_without_exchange_may_begin_where_the_last_bar_of_the_day_before_ends() -> None:
    dataset = canonical("bars_1m", notation="verbatim")
    where: Sequence[Any] = ["and", [">=", "ts", instant("2026-11-05T00:00:00")], ["<", "ts", instant("2026-11-06T00:00:00")]]
    every_day = build_calendar(None, NOW.date())
    start, end, rest = narrowed(dataset, every_day, where)
    assert (start, end) == (date(2026, 11, 4), date(2026, 11, 6))
    assert rest == "ts >= 2026-11-05 00:00:00+00:00 and ts < 2026-11-06 00:00:00+00:00"
    assert narrowed(dataset, every_day, where, is_table=True)[:2] == (None, None)  # sessions of a table are what people wrote


def test_adjusted_prices_are_filtered_as_adjusted_and_keep_their_reference(open_store: Opener) -> None:
    engine = open_store("sim")
    span: dict[str, Any] = {"start": "2025-01-01", "end": "2026-06-30"}
    symbols = sorted(set(read(engine, "bars_1d", None, "2026-06-29", "2026-06-30")["symbol"].to_pylist()))[:40]
    for adjust in ("qfq", "hfq"):
        whole = read(engine, "bars_1d", symbols, **span, adjust=adjust)
        middle = pc.quantile(whole["close"], 0.5)[0].as_py()
        wanted = [row for row in whole.to_pylist() if row["close"] > middle and row["trading_date"] <= date(2025, 9, 1)]
        where = ["and", [">", "close", middle], ["<=", "trading_date", day("2025-09-01")]]
        rows = read(engine, "bars_1d", symbols, **span, adjust=adjust, where=where)
        assert rows.to_pylist() == wanted
        assert rows.num_rows > 100


def test_the_filters_of_a_request_are_values() -> None:
    one: Filter = Compare("ts", ">", datetime(2026, 11, 5, tzinfo=UTC))
    assert ReadRequest("x", where=one) == ReadRequest("x", where=[">", "ts", instant("2026-11-05T00:00:00")])  # type: ignore[arg-type]
    assert hash(ReadRequest("x", where=one)) == hash(ReadRequest("x", where=one))
    assert bar("000001.SZ", FIRST)["symbol"] == "000001.SZ"
