"""Daily A-share bars through the real AKShare, which runs in a supervised child and never in this process.

    AkshareSource   the source: one child, one request at a time
    failure_error   what a failure in the child means
    bars            the library's Chinese frame as canonical rows

A frame is refused as a whole where anything in it does not fit; nothing is repaired and nothing rescaled.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import threading
import weakref
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fletching_schemas import Dataset, FetchRequest, canonical
from fletching_schemas.errors import (
    BadSourceData,
    InvalidRequest,
    SourceError,
    SourceTimeout,
    SourceUnavailable,
    UnknownDataset,
    UnknownSymbol,
)
from fletching_server.sources.akshare_worker import Worker, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# The library guesses the market from the first digit: what it would guess wrong, or is no A share, is not asked.
A_SHARE: Final = re.compile(r"6\d{5}\.SH|(00|30)\d{4}\.SZ", re.ASCII)
PRICES: Final = {"open": "开盘", "high": "最高", "low": "最低", "close": "收盘"}
TRADED: Final = {**PRICES, "volume": "成交量", "amount": "成交额"}
COLUMNS: Final = frozenset({"日期", "股票代码", *TRADED.values(), "振幅", "涨跌幅", "涨跌额", "换手率"})
SHARES_PER_LOT: Final = 100
PRICE_TOLERANCE: Final = 0.005
PASSING_SHARE: Final = 0.99  # decided per fill: single days of the early years are off

_DROPPED: Final = frozenset(
    {
        "BrokenPipeError",
        "ConnectionAbortedError",
        "ConnectionResetError",
        "IncompleteRead",
        "RemoteDisconnected",
        "SSLEOFError",
        "SSLZeroReturnError",
    }
)
_THROTTLED: Final = frozenset({403, 412, 429})


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    deadline_seconds: float = Field(default=30.0, gt=0, le=3600)


class AkshareSource:
    """Unadjusted daily bars of Shanghai and Shenzhen A shares, from eastmoney through ``akshare.stock_zh_a_hist``.

    One request is under way at a time. Past *deadline_seconds* the child is killed and the next fetch starts a new one.
    Raises ``SourceUnavailable`` where the library is not installed.
    """

    name = "akshare"
    concurrent_calls = 1  # more would only wait for the child, with their deadlines running

    def __init__(self, deadline_seconds: float = 30.0) -> None:
        if importlib.util.find_spec("akshare") is None:
            raise SourceUnavailable("akshare is not installed; pip install 'fletching[akshare]'")
        self._dataset = canonical(
            "bars_1d", calendar="XSHG", symbols_per_call=1, range_pushdown=True, first_session=date(1990, 12, 19)
        )
        self._deadline_seconds = deadline_seconds
        self._version = importlib.metadata.version("akshare")
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._end: weakref.finalize[..., AkshareSource] | None = None
        self._closed = False

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """Return the source that *values* describe (``deadline_seconds``), or raise ``InvalidRequest``."""
        try:
            return cls(**_Config.model_validate(dict(values)).model_dump())
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise InvalidRequest(f"akshare's configuration: {wrong}; it has deadline_seconds") from None

    def datasets(self) -> Sequence[Dataset]:
        """Return the one dataset of this source."""
        return (self._dataset,)

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return the bars of the asked symbols and sessions; no rows where eastmoney has none."""
        if request.dataset != self._dataset.name:
            raise UnknownDataset(f"akshare offers {self._dataset.name}, not {request.dataset!r}")
        symbols = sorted(set(request.symbols))
        for symbol in symbols:
            _check_symbol(symbol)
        tables = [self._bars(symbol, request.start, request.end) for symbol in symbols]
        return pa.concat_tables([self._dataset.schema.empty_table(), *tables])

    def close(self) -> None:
        """End the child; a fetch under way fails with ``SourceUnavailable``, and so do later ones."""
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()  # outside the lock, which a fetch holds until its answer comes
        with self._lock:
            self._drop()

    def _bars(self, symbol: str, start: date, end: date) -> pa.Table:
        asked = {"code": symbol[:6], "start": f"{start:%Y%m%d}", "end": f"{end:%Y%m%d}"}
        frame = self._ask(json.dumps(asked).encode() + b"\n")
        failure = failure_of(frame)
        if failure is not None:
            raise failure_error(failure, f"{symbol} {start}..{end}", self._version)
        return bars(frame, self._dataset.schema, symbol, start, end)

    def _ask(self, line: bytes) -> pa.Table:
        with self._lock:
            try:
                return self._ready().ask(line, self._deadline_seconds)
            except BaseException:
                self._drop()  # a child whose answer was not read to its end cannot be asked again
                raise

    def _ready(self) -> Worker:
        """Return the child, started where there is none; the caller holds the lock."""
        if self._worker is not None and self._worker.alive:
            return self._worker
        self._drop()
        worker = self._worker = Worker()
        self._end = weakref.finalize(self, worker.end)
        if self._closed:  # looked at after the child is known: close() sets it before it looks for a child
            raise SourceUnavailable("the akshare source is closed")
        failure = failure_of(worker.hello())
        if failure is not None:
            raise SourceUnavailable(f"akshare {self._version} cannot be imported: {failure['text']}")
        return worker

    def _drop(self) -> None:
        self._worker = None
        if self._end is not None:
            self._end()


def _check_symbol(symbol: str) -> None:
    if not A_SHARE.fullmatch(symbol):
        raise UnknownSymbol(
            f"{symbol!r} is no A share that akshare.stock_zh_a_hist can be asked for; "
            "there are 6xxxxx.SH, 00xxxx.SZ and 30xxxx.SZ, but no B shares, funds or indices"
        )


def failure_error(failure: Mapping[str, Any], asked: str, version: str) -> SourceError:
    """Return the error that a *failure* reported by the child means."""
    classes, status = frozenset(failure["classes"]), failure["status"]
    who = f"{failure['host'] or 'akshare'}, asked for {asked},"
    wait = f"you are throttled or banned; wait, and do not ask again at once ({failure['text']})"
    if classes & _DROPPED:
        return SourceUnavailable(f"{who} dropped the connection: {wait}")
    if any("Timeout" in name for name in classes):
        return SourceTimeout(f"{who} did not answer in time ({failure['text']})")
    if status in _THROTTLED:
        return SourceUnavailable(f"{who} answered HTTP {status}: {wait}")
    if "JSONDecodeError" in classes:
        return SourceUnavailable(f"{who} answered a page where JSON is due: {wait}")
    if "OSError" in classes:  # the base of every requests error
        return SourceUnavailable(f"{who} could not be reached, or failed ({failure['text']})")
    return BadSourceData(f"{who}: akshare {version} changed shape ({failure['text']})")


def bars(frame: pa.Table, schema: pa.Schema, symbol: str, start: date, end: date) -> pa.Table:
    """Return the library's *frame* as rows of *schema*: sorted, shares for lots, ratios for per cent, only start..end.

    Raises ``BadSourceData`` that names column, row and value where something does not fit.
    """
    if not frame.num_rows:
        return schema.empty_table()
    if set(frame.column_names) != COLUMNS:
        raise BadSourceData(f"{symbol}: akshare changed shape: columns {frame.column_names}, due {sorted(COLUMNS)}")
    found = pa.table(dict(_columns(frame, symbol)))
    _check_days(found["trading_date"].to_pylist(), symbol)
    _check_traded(found, symbol)
    _check_unit(found, symbol)
    day = found["trading_date"]
    found = found.filter(pc.and_(pc.greater_equal(day, start), pc.less_equal(day, end))).sort_by("trading_date")
    columns = {name: found[name] for name in found.column_names}
    columns["symbol"] = pa.array([symbol] * found.num_rows, pa.string_view())
    arrays = [columns.get(each.name, pa.nulls(found.num_rows, each.type)) for each in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _columns(frame: pa.Table, symbol: str) -> Iterator[tuple[str, pa.Array]]:
    """Yield the canonical columns that the frame knows, its rows in the order they came."""

    def column(name: str, convert: Callable[[pa.Array], pa.Array]) -> pa.Array:
        return _converted(frame[name].combine_chunks(), convert, f"{symbol}: {name}")

    yield "trading_date", column("日期", _days)
    for name, chinese in PRICES.items():
        yield name, column(chinese, _numbers)
    before = pc.subtract(column("收盘", _numbers), column("涨跌额", _numbers))
    yield "pre_close", pc.round(before, 6)  # 10.45 - 0.07 is 10.379999999999999, and no price has millionths
    yield "volume", column("成交量", _shares)
    yield "amount", column("成交额", _numbers)
    yield "turnover_rate", pc.divide(column("换手率", _numbers), 100.0)


def _converted(values: pa.Array, convert: Callable[[pa.Array], pa.Array], what: str) -> pa.Array:
    """Return *values* converted as a whole; where that fails, name the first row that does not fit."""
    try:
        return convert(values)
    except pa.ArrowException:
        for row in range(len(values)):
            refusal = _refusal(values.slice(row, 1), convert)
            if refusal:
                raise BadSourceData(f"{what} in row {row} is {values[row].as_py()!r:.80}: {refusal}") from None
        raise


def _refusal(value: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> str:
    try:
        convert(value)
    except pa.ArrowException as error:
        return str(error)
    return ""


def _days(values: pa.Array) -> pa.Array:
    if values.null_count:
        raise pa.ArrowInvalid("not a date")
    return values.cast(pa.date32())


def _numbers(values: pa.Array) -> pa.Array:
    numbers = values.cast(pa.float64())
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise pa.ArrowInvalid("not a finite number")
    return numbers


def _shares(values: pa.Array) -> pa.Array:
    return pc.multiply_checked(values.cast(pa.int64()), SHARES_PER_LOT)


def _check_days(days: list[date], symbol: str) -> None:
    if len(set(days)) < len(days):
        row = next(row for row, day in enumerate(days) if day in days[:row])
        raise BadSourceData(f"{symbol}: 日期 in row {row} is {days[row]} once more")


def _check_traded(found: pa.Table, symbol: str) -> None:
    """Refuse a traded day with a number missing: the library turns whatever is no number into nothing."""
    signs = [pc.is_valid(found[name]) for name in PRICES]
    traded = pc.fill_null(pc.greater(found["volume"], 0), fill_value=False)
    for sign in signs:
        traded = pc.or_(traded, sign)
    for name, chinese in TRADED.items():
        row = pc.index(pc.and_(traded, pc.is_null(found[name])), value=True).as_py()
        if row >= 0:
            day = found["trading_date"][row].as_py()
            raise BadSourceData(f"{symbol}: {chinese} in row {row} ({day}) is missing, but the other columns are not")


def _check_unit(found: pa.Table, symbol: str) -> None:
    """Refuse a fill whose prices do not follow from amount and volume: the unit of the volume is not as declared."""
    found = found.filter(pc.and_(pc.greater(found["volume"], 0), pc.greater(found["amount"], 0)))
    passing = _passing(found, found["volume"])
    if passing >= PASSING_SHARE:
        return
    shares = _passing(found, pc.divide(found["volume"], SHARES_PER_LOT))
    verdict = "looks like shares" if shares >= PASSING_SHARE else "looks like neither lots nor shares"
    raise BadSourceData(
        f"{symbol}: 成交量 declared lots, {verdict}: amount / volume lies between low and high in {passing:.0%} "
        f"of {found.num_rows} rows"
    )


def _passing(found: pa.Table, volume: pa.ChunkedArray) -> float:
    """Return the part of the rows where amount / volume lies between low and high."""
    price = pc.divide(found["amount"], volume)
    above = pc.greater_equal(price, pc.multiply(found["low"], 1 - PRICE_TOLERANCE))
    below = pc.less_equal(price, pc.multiply(found["high"], 1 + PRICE_TOLERANCE))
    inside = pc.sum(pc.and_(above, below), min_count=0).as_py()
    return float(inside / found.num_rows) if found.num_rows else 1.0
