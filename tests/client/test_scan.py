"""What a scan asks for: which part of a query is pushed down, how it is told, and that it stops and lets go."""

# ruff: noqa: SIM300  # columns stand on the left, as in any query
from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from polars.io.plugins import register_io_source
from tests.conftest import ListingSource, Opener, bars, in_threads, weekdays

import fletching
from fletching import Cache
from fletching._embed import EmbeddedTransport
from fletching._pushdown import Pushed, pushed
from fletching._scan import ScanFrame
from fletching_schemas import ReadRequest, canonical
from fletching_server import Engine

SCHEMA = pl.Schema({
    "symbol": pl.String(), "day": pl.Date(), "ts": pl.Datetime("us", "UTC"), "x": pl.Float64(), "n": pl.Int64(),
    "small": pl.Int8(), "good": pl.Boolean(), "single": pl.Float32(), "naive": pl.Datetime("us"), "money": pl.Decimal(10, 2),
})  # fmt: skip
SYMBOL, DAY, TS, X, N, GOOD = (pl.col(name) for name in ("symbol", "day", "ts", "x", "n", "good"))
NOON = datetime(2026, 11, 3, 12, tzinfo=UTC)

# Pushing


@pytest.mark.parametrize(
    ("predicate", "where"),
    [
        (SYMBOL == "A", "symbol == 'A'"),
        (pl.lit("A") < SYMBOL, "symbol > 'A'"),
        (SYMBOL.is_in(["A", "B"]), "symbol in ['A', 'B']"),
        (SYMBOL.is_in({"A"}), "symbol in ['A']"),
        (SYMBOL.is_in(pl.Series(["A", None]).implode()), "symbol in ['A']"),
        (SYMBOL.eq_missing("A"), "symbol == 'A'"),
        (DAY >= date(2026, 11, 3), "day >= 2026-11-03"),
        (DAY.is_between(date(2026, 11, 3), date(2026, 11, 5), closed="left"), "day >= 2026-11-03 and day < 2026-11-05"),
        (TS < datetime(2026, 11, 3, 20, tzinfo=ZoneInfo("Asia/Shanghai")), "ts < 2026-11-03 12:00:00+00:00"),
        (TS == pl.lit(NOON).cast(pl.Datetime("ns", "UTC")), "ts == 2026-11-03 12:00:00+00:00"),
        (TS > date(2026, 11, 3), "ts > 2026-11-03 00:00:00+00:00"),
        (TS.is_in([NOON]), "ts in [2026-11-03 12:00:00+00:00]"),
        (X > 1, "x > 1.0"),
        (X < pl.lit(math.nan), "x < nan"),
        (X.is_in([math.inf, 1.0]), "x in [inf, 1.0]"),
        (N != 5, "n != 5"),
        (pl.col("small") <= 5, "small <= 5"),
        (GOOD, "good == True"),
        (~GOOD, "good == False"),
        (X.is_null() | N.is_not_null(), "x is null or n is not null"),
        ((X > 1) & ((N < 2) | (SYMBOL == "A")), "x > 1.0 and (n < 2 or symbol == 'A')"),
        (~((X > 1) | (SYMBOL == "A")), "x <= 1.0 and symbol != 'A'"),
        (pl.any_horizontal(X > 1, N < 2), "x > 1.0 or n < 2"),
        (SYMBOL.alias("other") == "A", "symbol == 'A'"),
        (X.is_null() & pl.lit(value=True), "x is null"),
    ],
    ids=str,
)
def test_conditions_that_a_server_understands_are_pushed_whole(predicate: pl.Expr, where: str) -> None:
    found = pushed(predicate, SCHEMA)
    parts = sorted(str(found.where).split(" and ")) if "(" not in where else [str(found.where)]
    assert parts in (sorted(where.split(" and ")), ["(n < 2 or symbol == 'A') and x > 1.0"], [where])
    assert (found.left, found.nothing) == ((), False)


@pytest.mark.parametrize(
    "predicate",
    [
        N.cast(pl.Float64) > 1.5, N > 1.5, N > 2**70, X > N, X + 1 > 2, SYMBOL.str.starts_with("A"),
        TS.dt.date() == date(2026, 11, 3),
        pl.col("single") > 0.1, pl.col("naive") > datetime(2026, 11, 3), pl.col("money") > 1, SYMBOL.is_in(["A"]).not_(),  # noqa: DTZ001
        SYMBOL.is_in(pl.Series(["A", None]).implode(), nulls_equal=True), X.ne_missing(1.0), (X > 1) ^ (N > 1), X.is_nan(),
        (X > 1) | (N > 1.5), X.is_between(1, N), SYMBOL == "x" * 5000, SYMBOL.is_in([str(number) for number in range(20_000)]),
        pl.when(GOOD).then(X > 1).otherwise(N > 1), pl.struct("x", "n").is_null(), TS.dt.year() == 2026,
    ],
    ids=lambda predicate: str(predicate)[:60],
)  # fmt: skip
def test_what_is_not_understood_is_left_to_polars(predicate: pl.Expr) -> None:
    found = pushed(predicate, SCHEMA)
    assert found.where is None
    assert len(found.left) >= 1
    both = pushed(predicate & (SYMBOL == "A"), SCHEMA)
    assert str(both.where) in {"symbol == 'A'", "None"}  # at worst too much is read, never too little


def test_a_part_that_is_half_understood_lets_more_pass_and_is_said_to_be_left() -> None:
    found = pushed(((X > 1) & (N > 1.5)) | (SYMBOL == "A"), SCHEMA)
    assert str(found.where) == "x > 1.0 or symbol == 'A'"
    assert len(found.left) == 1


@pytest.mark.parametrize("predicate", [pl.lit(value=False), (X > 1) & pl.lit(value=False), SYMBOL.is_in([])], ids=str)
def test_a_predicate_that_wants_nothing_says_so(predicate: pl.Expr) -> None:
    assert pushed(predicate, SCHEMA).nothing


def test_an_interface_of_polars_that_is_gone_costs_the_push_down_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching._pushdown.scans", lambda *_: 1 / 0)
    assert pushed(SYMBOL == "A", SCHEMA) == Pushed(left=('[(col("symbol")) == ("A")]',))


# Reading


class Watched(EmbeddedTransport):
    """An embedded plane that records what it is asked to read."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.requests: list[ReadRequest] = []

    def read(self, request: ReadRequest) -> Any:
        self.requests.append(request)
        return super().read(request)


DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
NAMES = ("000001.SZ", "000002.SZ", "600519.SH")


@pytest.fixture
def plane(open_store: Opener) -> Watched:
    return Watched(open_store(ListingSource(canonical("bars_1d", calendar="XSHG"), bars(NAMES, DAYS)), memory="64MiB"))


@pytest.fixture
def cache(plane: Watched) -> Cache:
    return Cache(plane)


def test_only_what_the_query_needs_is_asked_for(cache: Cache, plane: Watched) -> None:
    scan = cache.scan("bars_1d", start="2026-11-01")
    assert plane.requests == []
    scan.filter(SYMBOL == "000001.SZ", pl.col("close") > 1).select("open").collect()
    scan.head(3).collect()
    scan.select(pl.len()).collect()
    first, second, third = plane.requests
    assert (set(first.columns or ()), first.limit) == ({"symbol", "open", "close"}, None)
    assert sorted(str(first.where).split(" and ")) == ["close > 1.0", "symbol == '000001.SZ'"]
    assert (second.columns, second.where, second.limit) == (None, None, 3)
    assert len(third.columns or ()) == 1
    scan.filter(pl.lit(value=False)).collect()
    assert len(plane.requests) == 3


def test_a_filter_too_long_to_be_sent_is_not_sent(cache: Cache, plane: Watched) -> None:
    long = [f"{number:0100}" for number in range(5000)]
    assert cache.scan("bars_1d", start="2026-11-01").filter(SYMBOL.is_in([*long, "000001.SZ"])).collect().height == len(DAYS)
    assert [request.where for request in plane.requests] == [None]


def test_a_scan_is_collected_often_and_by_many_threads(cache: Cache) -> None:
    lazy = cache.scan("bars_1d", start="2026-11-01").filter(pl.col("close") > 1)
    want = cache.read("bars_1d", start="2026-11-01").filter(pl.col("close") > 1)
    assert all(found.equals(want) for found in in_threads(4, lambda _: lazy.collect()))
    assert lazy.join(lazy, on=["symbol", "trading_date"]).collect().height == want.height


def test_the_columns_and_the_schema_of_a_scan_are_those_of_the_read(cache: Cache, plane: Watched) -> None:
    scan = cache.scan("bars_1d", "000001.SZ", "2026-11-02", "2026-11-03", ["close", "trading_date", "suspended"])
    schema = scan.collect_schema()
    assert plane.requests == []
    read = cache.read("bars_1d", "000001.SZ", "2026-11-02", "2026-11-03", ["close", "trading_date", "suspended"])
    assert schema == read.schema
    assert scan.collect().equals(read)
    assert scan.select("suspended").collect().equals(read.select("suspended"))
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        scan.select("open").collect()


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize(
    "counted",
    [
        lambda frame: frame.select(pl.len()),
        lambda frame: frame.with_row_index().select("index"),
        lambda frame: frame.select(pl.int_range(pl.len())),
        lambda frame: frame.head(7).with_row_index().select("index"),
        lambda frame: frame.filter(pl.col("close") > 20).with_row_index().select("index"),
        lambda frame: frame.with_columns(one=pl.lit(1)).select("one"),
    ],
    ids=["len", "index", "range", "index of a head", "index of a filter", "literal"],
)
def test_rows_are_counted_though_no_column_is_wanted(
    counted: Callable[[pl.LazyFrame], pl.LazyFrame], engine: Any, cache: Cache
) -> None:
    want = counted(cache.read("bars_1d", start="2026-11-01").lazy()).collect()
    assert want.height >= 1
    assert counted(cache.scan("bars_1d", start="2026-11-01")).collect(engine=engine).equals(want)


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_errors_of_the_cache_arrive_as_they_are(engine: Any, cache: Cache) -> None:
    with pytest.raises(fletching.UnknownSymbol, match="000099"):
        cache.scan("bars_1d", "000099.SZ").collect(engine=engine)
    with pytest.raises(fletching.NotCached):
        cache.scan("bars_1d", "000001.SZ", "2026-11-02", on_miss="error").collect(engine=engine)


def test_a_scan_of_a_closed_cache_says_so(cache: Cache) -> None:
    scan = cache.scan("bars_1d")
    cache.close()
    with pytest.raises(fletching.InvalidRequest, match="is closed; make another"):
        scan.collect()


def test_a_scan_does_not_travel(cache: Cache) -> None:
    scan = cache.scan("bars_1d").filter(SYMBOL == "A")
    for send in (pickle.dumps, lambda frame: frame.serialize()):
        with pytest.raises(fletching.InvalidRequest, match="cannot be serialized or pickled; collect it, or send the arguments"):
            send(scan)


# Stopping early


def wide(symbols: int, rows: int) -> pl.DataFrame:
    number = pl.int_range(symbols * rows, eager=True)
    return pl.DataFrame({"number": number}).select(
        ("S" + (pl.col("number") // rows).cast(pl.String).str.zfill(3)).alias("symbol"),
        (pl.lit(NOON) + pl.duration(seconds=pl.col("number") % rows)).cast(pl.Datetime("us", "UTC")).alias("ts"),
        (pl.col("number") / 7).alias("x"),
    )


@pytest.mark.parametrize(
    "enough",
    [
        lambda scan: scan.filter(X >= 0).head(5).collect(engine="streaming"),
        lambda scan: scan.head(5).collect(engine="streaming"),
        lambda scan: scan.head(5).collect(engine="in-memory"),
        lambda scan: next(iter(scan.filter(X >= 0).collect_batches())).head(5),
    ],
    ids=["filtered head", "head", "head in memory", "first batch"],
)
def test_a_query_that_has_enough_ends_the_answer(
    enough: Callable[[pl.LazyFrame], pl.DataFrame], cache: Cache, plane: Watched
) -> None:
    cache.write("wide", wide(100, 20_000), keys=["symbol", "ts"])
    assert enough(cache.scan("wide")).height == 5
    assert lets_go(plane._engine)


def lets_go(engine: Engine) -> bool:
    """Return whether all leases end: Polars drops what it has no more use for with one of the next calls into it."""
    return any(not engine.hot.facts()["hot_leases"] for _ in range(2_000_000) if pl.Series([1]).len())


# Explaining


@pytest.fixture
def told(cache: Cache) -> Callable[..., list[str]]:
    cache.read("bars_1d", start="2026-11-01")

    def lines(frame: pl.LazyFrame, **options: Any) -> list[str]:
        return [line.strip() for line in frame.explain(**options).partition("FLETCHING")[2].splitlines()]

    return lines


def test_explaining_names_what_is_pushed_and_what_is_not(cache: Cache, told: Callable[..., list[str]]) -> None:
    scan = cache.scan("bars_1d", start="2026-11-01")
    query = scan.filter(
        SYMBOL == "000001.SZ", pl.col("trading_date") > date(2026, 11, 10), pl.col("close") > 1, pl.col("open").round() > 2
    )
    assert told(query.select("close")) == [
        f"scan of bars_1d of {cache._transport.address}",
        "columns pushed: 4 of 15: symbol, trading_date, open, close",
        "limit pushed: none",
        told(query.select("close"))[3],
        "request narrowed to: symbols 000001.SZ; start 2026-11-11",
        "filtered by the cache: close > 1.0",
        "reads: 1 symbols, 2026-11-11 to 2026-11-20, files: 1 hot, upstream calls: 0",
        "left to Polars: (round(open) > 2.0)",
    ]
    pushed_parts = told(query)[3].removeprefix("predicate pushed: ").split(" and ")
    assert sorted(pushed_parts) == ["close > 1.0", "symbol == '000001.SZ'", "trading_date > 2026-11-10"]
    assert "limit pushed: the first 9 rows" in told(scan.head(9))
    assert "predicate pushed: no row is wanted, none is read" in told(scan.filter(pl.lit(value=False)))
    assert told(scan.filter(SYMBOL == "A"), optimized=False) == []
    assert told(scan.filter(SYMBOL == "A"), engine="streaming", format="tree")[3] == "predicate pushed: symbol == 'A'"


def test_explaining_tells_of_every_scan_and_of_no_other_source(cache: Cache) -> None:
    cache.write(
        "own", pl.DataFrame({"symbol": ["000001.SZ"], "trading_date": [DAYS[0]], "score": [1.0]}), keys=["symbol", "trading_date"]
    )
    other = register_io_source(lambda *_: iter([pl.DataFrame({"symbol": ["A"]})]), schema={"symbol": pl.String})
    joined = cache.scan("bars_1d", start="2026-11-01").join(cache.scan("own").filter(pl.col("score") > 0), on="symbol")
    text = joined.join(other, on="symbol").explain()
    assert text.count("FLETCHING scan of") == 2
    assert "predicate pushed: score > 0.0" in text


def test_what_cannot_be_read_is_told_without_reading(cache: Cache, plane: Watched) -> None:
    assert "cannot be read: bars_1d has no symbol 000099" in cache.scan("bars_1d", "000099.SZ").explain()
    assert plane.requests == []


def test_operations_keep_the_frame_that_explains(cache: Cache) -> None:
    scan = cache.scan("bars_1d")
    other = pl.LazyFrame({"symbol": ["A"]})
    kept = [
        *(scan.filter(open=1), scan.select("open"), scan.with_columns(y=1), scan.sort("open"), scan.head(), scan.tail()),
        *(scan.unique(), scan.join(other, on="symbol"), scan.rename({"open": "x"}), scan.drop("open"), scan.lazy(), scan.clone()),
        *(scan.group_by("symbol").len(), scan.group_by("symbol").agg(pl.col("open").sum()), scan.group_by("symbol").max()),
        scan.group_by_dynamic("trading_date", every="1w", group_by="symbol").agg(pl.col("open").sum()),
        scan.rolling("trading_date", period="2d", group_by="symbol").agg(pl.col("open").sum()),
    ]
    assert {type(frame) for frame in kept} == {ScanFrame}
    assert "FLETCHING scan of bars_1d" in scan.group_by("symbol").len().explain()
