"""A scan is the frame of the same read, whatever query is run on it: by both engines, over every plane, pushed down or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from tests.conftest import ListingSource, bars, weekdays

from fletching import Cache
from fletching_schemas import canonical
from fletching_server.testing import ManualClock

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Rig, Rigs

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DAYS: Final = weekdays(date(2026, 11, 2), date(2026, 11, 13))
NAMES: Final = ("000001.SZ", "000002.SZ", "600519.SH")
SHANGHAI, NEW_YORK = ZoneInfo("Asia/Shanghai"), ZoneInfo("America/New_York")
ENGINES: Final = ("in-memory", "streaming")
EXAMPLES: Final = 80

# What is read


def minute_bar(symbol: str, day: date, instant: datetime, price: float) -> dict[str, Any]:
    row = dict.fromkeys(("open", "high", "low", "close"), price)
    return {"symbol": symbol, "ts": instant, "trading_date": day, **row, "volume": int(price), "amount": None}


def intraday(offsets: Sequence[timedelta]) -> dict[tuple[str, date], Any]:
    """Return bars of two symbols that end so long after midnight, UTC, of each session; before it where that is negative."""
    rows: dict[tuple[str, date], Any] = {}
    for place, symbol in enumerate(NAMES[:2]):
        for day in DAYS:
            midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
            rows[symbol, day] = [
                minute_bar(symbol, day, midnight + offset, 10.0 + place + number) for number, offset in enumerate(offsets)
            ]
    return rows


def evenings() -> dict[tuple[str, date], Any]:
    """Return bars of sessions of Chicago that begin on the evening before, on Sunday for Monday."""
    return intraday([timedelta(hours=-1), timedelta(minutes=15), timedelta(hours=15), timedelta(hours=21)])


def sources() -> list[Any]:
    daily = canonical("bars_1d", calendar="XSHG")
    minutes = canonical("bars_30m", calendar="XSHG")
    night = canonical("bars_15m", calendar="CMES", as_name="night", notation="verbatim")
    coins = canonical("bars_60m", calendar=None, as_name="coins", notation="verbatim")
    return [
        ListingSource(daily, bars(NAMES, DAYS), "one"),
        ListingSource(minutes, intraday([timedelta(hours=2), timedelta(hours=3, minutes=30), timedelta(hours=7)]), "two"),
        ListingSource(night, evenings(), "three"),
        ListingSource(coins, intraday([timedelta(hours=1), timedelta(hours=12), timedelta(hours=24)]), "four"),
    ]


def mixed() -> pl.DataFrame:
    """Return rows with every type that a filter knows, and some that it does not; nulls and infinities among them."""
    count = 24
    turn: Callable[[Sequence[Any]], list[Any]] = lambda values: [values[number % len(values)] for number in range(count)]  # noqa: E731
    return pl.DataFrame({
        "symbol": [("A", "B ", " C", "", "000001")[number // 5] for number in range(count)],
        "day": [DAYS[number % 5] for number in range(count)],
        "x": turn([1.0, None, -0.0, 0.0, math.inf, -math.inf]),
        "n": pl.Series(turn([0, None, 2**62, -5, 3]), dtype=pl.Int64),
        "small": pl.Series(turn([0, 7, None, -128, 127]), dtype=pl.Int8),
        "word": turn(["a", "", None, "a long text, over twelve", "é", "A"]),
        "good": turn([True, False, None]),
        "single": pl.Series(turn([0.1, None, 3.5]), dtype=pl.Float32),
        "at": pl.Series(turn([datetime(2026, 11, 3, 1, 30, tzinfo=UTC), None]), dtype=pl.Datetime("us", "UTC")),
    })  # fmt: skip


def ticks(dated: Callable[[int], date] | None = None) -> pl.DataFrame:
    instants = [datetime(2026, 11, 3, tzinfo=UTC) + timedelta(hours=7 * number, microseconds=number) for number in range(20)]
    rows = {"symbol": ["A"] * 10 + ["B"] * 10, "ts": instants, "price": [float(number) for number in range(20)]}
    session = {"trading_date": [dated(number) for number in range(20)]} if dated else {}
    return pl.DataFrame({**rows, **session}).with_columns(pl.col("ts").cast(pl.Datetime("us", "UTC")))


DATASETS: Final = ("bars_1d", "bars_30m", "night", "coins", "mixed", "ticks", "odd")
RANGES: Final[list[dict[str, Any]]] = [
    {"start": "2026-11-02"},
    {"start": "2026-11-04", "end": "2026-11-11"},
    {"start": "2026-11-04", "end": "2026-11-08"},  # a Sunday, on whose evening Monday's session begins in Chicago
    {"start": "2026-11-03T10:00", "end": "2026-11-12"},
    {"start": "2026-11-04", "end": "2026-11-10T15:00"},
    {"start": "2026-11-03T02:00Z", "end": "2026-11-09T23:30Z"},
]


@dataclass(repr=False)
class Held:
    """A cache, and the frames that its reads return."""

    rig: Rig
    frames: dict[tuple[str, int], pl.DataFrame]

    @property
    def cache(self) -> Cache:
        return self.rig.cache


@pytest.fixture(scope="module", params=["embedded", "tcp"])
def held(request: pytest.FixtureRequest, module_rigs: Rigs) -> Held:
    rig = module_rigs(request.param, sources(), ManualClock(NOW), compact_idle_seconds=3600)
    rig.cache.write("mixed", mixed(), keys=["symbol", "day"], time="day")
    rig.cache.write("ticks", ticks(), keys=["symbol", "ts"], time="ts")
    odd = ticks(lambda number: DAYS[0] + timedelta(days=number // 4 if number < 10 else 3 * number))  # far from the instants
    rig.cache.write("odd", odd, keys=["symbol", "ts"], time="ts")
    frames = {(name, place): rig.cache.read(name, **span) for name in DATASETS for place, span in enumerate(RANGES)}
    assert all(frames[name, 0].height for name in DATASETS)
    return Held(rig, frames)


# Queries

NUMBERS: Final = [0, 1, -5, 3, 11, 127, 500, 2**62, 2**70, -0.0, 0.5, 1.0, 11.0, 2.5, math.nan, math.inf, -math.inf, None]
WORDS: Final = ["A", "B", "B ", " C", "", "a", "é", "000001", "000001.SZ", "600519.SH", "NOPE", "sz000001", "x" * 2000, "\x00"]
DATES: Final = [*DAYS[::2], date(2026, 11, 7), date(1900, 1, 1), date(1, 1, 1), date(9999, 12, 31), date(2030, 1, 1), NOW.date()]
INSTANTS: Final = [
    datetime(2026, 11, 3, 1, 30, tzinfo=UTC),
    datetime(2026, 11, 3, 11, 30, tzinfo=SHANGHAI),
    datetime(2026, 11, 5, 18, 59, 59, 999_999, tzinfo=NEW_YORK),
    datetime(2026, 11, 8, 23, tzinfo=UTC),  # a Sunday evening in Chicago
    datetime(2026, 11, 10, tzinfo=UTC),
    datetime(2026, 11, 10, 8, tzinfo=timezone(timedelta(hours=8))),
    datetime(1, 1, 2, tzinfo=UTC),
    datetime(9999, 12, 30, tzinfo=UTC),
]

picks = st.sampled_from
FORMS: Final = ("plain", "plain", "ms", "us", "ns", "Tokyo", "Int8", "Int32", "Float32", "Float64")
SIGNS: Final = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "eq_missing", "ne_missing")


def literal(value: Any, form: str) -> pl.Expr:
    """Return a value as people write it: plain, or as a literal of some type that Polars converts."""
    if isinstance(value, datetime) and value.tzinfo and 2000 < value.year < 3000:
        instant = pl.lit(value.astimezone(UTC))
        if form in {"ms", "us", "ns"}:
            return instant.cast(pl.Datetime(form, "UTC"))  # type: ignore[arg-type]  # one of the three
        return instant.dt.convert_time_zone("Asia/Tokyo") if form == "Tokyo" else pl.lit(value)
    small = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 100
    return pl.lit(value, dtype=getattr(pl, form)) if small and hasattr(pl, form) else pl.lit(value)


def values_for(kind: pl.DataType) -> Sequence[Any]:
    if kind.is_numeric():
        return NUMBERS
    if kind == pl.Boolean:
        return [True, False, None]
    if kind == pl.Datetime:
        return [*INSTANTS, *DATES[:3]]
    return WORDS if kind == pl.String else [*DATES, datetime(2026, 11, 4, 5)]  # noqa: DTZ001  # compared with midnights


def listed_for(kind: pl.DataType) -> Sequence[Any]:
    if kind.is_numeric():
        return [0, 3, -5, 7, 11, None] if kind.is_integer() else [0.0, 1.0, 11.0, math.nan, math.inf, None]
    if kind == pl.Datetime:
        return [*(value.astimezone(UTC) for value in INSTANTS[:5]), None]
    return [True, False, None] if kind == pl.Boolean else [*(WORDS if kind == pl.String else DATES), None]


def unpushed(column: str, other: str, kind: pl.DataType) -> list[pl.Expr]:
    """Return conditions that nobody pushes down, or that only look like those that are."""
    here = pl.col(column)
    found = [here > pl.col(other), here.eq_missing(pl.col(other)), here == here.max(), here.fill_null(strategy="forward") == here]
    if kind.is_numeric():
        found += [here * 2 > 1, here.cast(pl.Float64, strict=False) >= 1.5, here.is_nan() if kind.is_float() else here % 2 == 1]
    if kind == pl.String:
        found += [here.str.starts_with("0"), here.str.to_uppercase() == "A", here.str.len_bytes() > 3, here + "x" == "Ax"]
    if kind == pl.Date:
        later = here + timedelta(days=1) > DAYS[3]
        found += [here.dt.weekday() == 2, here.cast(pl.Datetime("us")) > datetime(2026, 11, 5), later]  # noqa: DTZ001  # naive too
    if kind == pl.Datetime:
        hour = here.dt.convert_time_zone("Asia/Shanghai").dt.hour()
        found += [here.dt.date() == DAYS[1], hour > 9, here.dt.offset_by("1d") > INSTANTS[0]]
    return found


@st.composite
def conditions(draw: st.DrawFn, frame: pl.DataFrame) -> pl.Expr:
    """Return a condition on one column, often on one that a request can be narrowed by, and often with a value of its own."""
    schema = frame.schema
    keys = [name for name in schema if name in {"symbol", "ts", "trading_date", "day"}]
    column = draw(picks([*schema, *keys * (len(schema) // 2)]))
    kind, here = schema[column], pl.col(column)

    def value() -> pl.Expr:
        own = [] if frame.is_empty() or draw(st.booleans()) else [frame[column][draw(st.integers(0, frame.height - 1))]]
        return literal(draw(picks(own or values_for(kind))), draw(picks(FORMS)))

    form = draw(picks([*["compared"] * 5, "turned", "in", "in series", "between", "null", "column", "unpushed"]))
    if form == "between" and kind != pl.Boolean:
        return here.is_between(value(), value(), closed=draw(picks(["both", "left", "right", "none"])))
    if form.startswith("in"):
        values = draw(st.lists(picks([*listed_for(kind), *frame[column].head(3), *frame[column].tail(2)]), max_size=4))
        if form == "in":
            return here.is_in([each for each in values if each is not None])
        return here.is_in(pl.Series(values, dtype=kind).implode(), nulls_equal=draw(st.booleans()))
    if form == "null":
        return here.is_null() if draw(st.booleans()) else here.is_not_null()
    if form == "column" and kind == pl.Boolean:
        return here
    if form == "unpushed":
        other = draw(picks([name for name, its in schema.items() if its == kind]))
        return draw(picks(unpushed(column, other, kind)))
    sign, given = draw(picks(SIGNS)), value()
    left, right = (given, here) if form == "turned" else (here, given)
    return getattr(left, sign)(right)  # type: ignore[no-any-return]  # one of the eight


@st.composite
def predicates(draw: st.DrawFn, frame: pl.DataFrame, depth: int = 3) -> pl.Expr:
    joins = [*["one"] * 4, "and", "and", "and", "or", "or", "xor", "not", "when", "any", "all"]
    join = draw(picks(joins)) if depth else "one"
    one = draw(conditions(frame) if join == "one" else predicates(frame, depth - 1))
    if join in {"one", "not"}:
        return one if join == "one" else ~one
    other = draw(predicates(frame, depth - 1))
    if join == "when":
        return pl.when(one).then(other).otherwise(False)
    many = {"any": pl.any_horizontal, "all": pl.all_horizontal}
    if join in many:
        return many[join](one, other)
    return one & other if join == "and" else one | other if join == "or" else one ^ other


@dataclass
class Query:
    """What is done with a frame, eager or lazy."""

    filters: list[pl.Expr]
    columns: list[str] | None
    rows: tuple[str, int] | None

    def on(self, frame: Any) -> Any:
        for one in self.filters:
            frame = frame.filter(one)
        if self.columns is not None:
            frame = frame.select(self.columns)
        return frame if self.rows is None else getattr(frame, self.rows[0])(self.rows[1])


@st.composite
def queries(draw: st.DrawFn, frame: pl.DataFrame) -> Query:
    filters = draw(st.lists(predicates(frame), min_size=0, max_size=2))
    columns = draw(st.none() | st.lists(picks(frame.columns), min_size=1, max_size=4, unique=True))
    rows = draw(st.none() | st.tuples(picks(["head", "tail"]), st.integers(0, 30)))
    return Query(filters, columns, rows)


def makes_sense(query: Query, frame: pl.DataFrame) -> bool:
    """Return whether Polars takes the query: neither the eager frame nor a lazy one refuses its types."""
    try:
        query.on(frame)
        for engine in ENGINES:
            query.on(frame.lazy()).collect(engine=engine)
    except pl.exceptions.PolarsError:
        return False
    return True


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", DATASETS)
def test_a_query_on_a_scan_is_the_query_on_the_frame(name: str, held: Held, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(RANGES) - 1), "range")
    frame = held.frames[name, place]
    query = data.draw(queries(frame), "query")
    assume(makes_sense(query, frame))
    scan = held.cache.scan(name, **RANGES[place])
    for engine in ENGINES:
        assert_frame_equal(query.on(scan).collect(engine=engine), query.on(frame), check_exact=True)


BOUNDS: Final = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")
TIMES: Final = {"day": timedelta(days=1), "trading_date": timedelta(days=1), "ts": timedelta(microseconds=1)}


@pytest.mark.parametrize("place", range(len(RANGES)))
@pytest.mark.parametrize("name", [name for name in DATASETS if name != "mixed"])
def test_every_bound_on_time_is_exact(name: str, place: int, held: Held) -> None:
    """Each bound, at each time that there is and one unit beside it: what is read less must be what is not wanted."""
    whole, scan = held.frames[name, 0], held.cache.scan(name, **RANGES[place])
    for column in set(TIMES).intersection(whole.columns):
        times = whole[column].unique().sort().gather_every(2).to_list()
        for time in [*times, *(time + TIMES[column] for time in times)]:
            conditions = [getattr(pl.col(column), sign)(time) for sign in BOUNDS]
            found = pl.collect_all([scan.filter(condition) for condition in conditions])
            for condition, rows in zip(conditions, found, strict=True):
                assert_frame_equal(rows, held.frames[name, place].filter(condition))


def test_a_query_that_has_enough_ends_its_call(rigs: Rigs, plane: str) -> None:
    rig = rigs(plane)
    number = pl.int_range(600_000, eager=True)
    instants = (pl.lit(INSTANTS[0]) + pl.duration(seconds=pl.col("size"))).cast(pl.Datetime("us", "UTC"))
    rig.cache.write(
        "big", pl.DataFrame({"symbol": "A", "size": number}).with_columns(instants.alias("ts")), keys=["symbol", "ts"]
    )
    scan = rig.cache.scan("big")
    assert scan.filter(pl.col("size") > 9).head(3).collect(engine="streaming")["size"].to_list() == [10, 11, 12]
    assert scan.head(2).collect()["size"].to_list() == [0, 1]
    assert any(is_idle(rig) for _ in range(2_000_000) if pl.Series([1]).len())  # dropped with a later call into Polars
    assert not any(rig.engine.store._pins.values())


def is_idle(rig: Rig) -> bool:
    return not rig.engine.hot.facts()["hot_leases"] and not (rig.service and rig.service.active_calls)
