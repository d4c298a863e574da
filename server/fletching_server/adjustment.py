"""Prices adjusted for splits and dividends: cumulative factors as steps, joined backward as of each session. Pure.

    hfq = raw * mul(t) + add(t)                          prices of the listing go on for ever
    qfq = (hfq(t) - add(ref)) / mul(ref)                 prices of the session *ref* stay as they were

For A shares, whose factors only multiply, that is ``raw * F(t)`` and ``raw * F(t) / F(ref)``. Before the first factor mul is 1
and add 0. Volumes and amounts stay as they were traded, and nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from fletching_schemas import Dataset
from fletching_schemas.errors import BadSourceData

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]

_BEFORE: Final = -(10**9)
_UNIT: Final = b"currency/share"


@dataclass(frozen=True, eq=False)
class Steps:
    """The factors of one symbol: from each of *days* on (day numbers, sorted) *mul* and *add* hold; the first lies before all."""

    days: Ints
    mul: Floats
    add: Floats

    @cached_property
    def digest(self) -> bytes:
        """What tells these factors from others."""
        return xxhash.xxh3_128_digest(self.days.tobytes() + self.mul.tobytes() + self.add.tobytes())

    def relative_to(self, reference: int) -> Steps:
        """Return the steps that leave the prices of the session *reference* as they are."""
        place = int(self.days.searchsorted(reference, "right")) - 1
        return Steps(self.days, self.mul / self.mul[place], (self.add - self.add[place]) / self.mul[place])

    @cached_property
    def last_day(self) -> int:
        """The day from which on the last factors hold."""
        return int(self.days[-1])

    @cached_property
    def last_mul(self) -> float:
        """The last factor."""
        return float(self.mul[-1])

    @cached_property
    def shifts(self) -> bool:
        """Whether they add anything."""
        return bool(self.add.any())

    @cached_property
    def neutral(self) -> bool:
        """Whether they change nothing."""
        return bool((self.mul == 1).all()) and not self.shifts


def steps_of(symbol: str, days: Sequence[int], mul: Sequence[float], add: Sequence[float]) -> Steps:
    """Return factors as steps; ``BadSourceData`` where one is not positive and finite."""
    factors, shifts = np.array([1.0, *mul]), np.array([0.0, *add])
    if not (np.isfinite(factors).all() and (factors > 0).all() and np.isfinite(shifts).all()):
        raise BadSourceData(f"the factors of {symbol} must be positive and finite: {factors[1:][:20]}, added {shifts[1:][:20]}")
    return Steps(np.array([_BEFORE, *days], np.int64), factors, shifts)


def factor_steps(dataset: Dataset, table: pa.Table) -> dict[str, Steps]:
    """Return the steps of each symbol in a table of factors: of several revisions of a day the one known last.

    Factors of several sources for one symbol are not mixed: the source that comes first by name counts.
    """
    frame = pl.DataFrame(pl.from_arrow(table.select([dataset.symbol, "ex_date", "source", "known_at", "mul", "add"])))
    frame = frame.rename({dataset.symbol: "symbol"}).with_columns(pl.col("source").min().over("symbol").alias("first"))
    frame = frame.filter(pl.col("source") == pl.col("first")).sort("symbol", "ex_date", "known_at")
    frame = frame.unique(["symbol", "ex_date"], keep="last", maintain_order=True)
    found = {}
    for (symbol,), rows in frame.group_by("symbol", maintain_order=True):
        days = rows["ex_date"].to_physical().to_list()
        found[str(symbol)] = steps_of(str(symbol), days, rows["mul"].to_list(), rows["add"].to_list())
    return found


def version_of(symbols: Sequence[str], steps: Mapping[str, Steps | None]) -> str:
    """Return a digest of the factors of *symbols*: equal factors give equal versions, in every process."""
    hasher = xxhash.xxh3_128()
    for symbol in symbols:
        if (known := steps.get(symbol)) is not None:
            hasher.update(symbol.encode())
            hasher.update(known.digest)
    return hasher.hexdigest()[:16]


def price_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns that are prices: numbers whose unit is currency per share."""
    return tuple(item.name for item in schema if pa.types.is_float64(item.type) and (item.metadata or {}).get(b"unit") == _UNIT)


def adjusted_prices(
    dataset: Dataset, table: pa.Table, prices: Sequence[str], steps: Mapping[str, Steps | None]
) -> dict[str, pa.Array]:
    """Return those of *prices* that *steps* change, adjusted, of *table*, which is sorted by symbol and session."""
    factors = _per_row(dataset, table, steps) if prices else None
    if factors is None:
        return {}
    mul, add = factors
    found = {}
    for name in prices:
        values = _joined(table.column(name))
        if values.null_count < len(values):
            values = pc.multiply(values, mul)
            found[name] = values if add is None else pc.add(values, add)
    return found


def with_prices(table: pa.Table, prices: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """Return *table* with the columns *prices* in place of its own; the others are shared."""
    if not prices:
        return table
    schema = table.schema
    columns = [prices.get(name) for name in schema.names]
    return pa.Table.from_arrays([table.column(at) if new is None else new for at, new in enumerate(columns)], schema=schema)


def _per_row(dataset: Dataset, table: pa.Table, steps: Mapping[str, Steps | None]) -> tuple[pa.Array, pa.Array | None] | None:
    """Return what each row is multiplied by and what is added to it; None where nothing changes."""
    sessions = _days(table.column(dataset.session))
    mul = add = None
    for symbol, start, stop in _runs(table.column(dataset.symbol)):
        known = steps.get(symbol)
        if known is None or known.neutral:
            continue
        if mul is None:
            mul = np.ones(len(sessions))
        if known.last_day <= sessions[start] and not known.shifts:  # nothing happened in this range
            if known.last_mul != 1.0:
                mul[start:stop] = known.last_mul
            continue
        places = known.days.searchsorted(sessions[start:stop], "right") - 1
        mul[start:stop] = known.mul[places]
        if known.shifts:
            add = np.zeros(len(sessions)) if add is None else add
            add[start:stop] = known.add[places]
    return None if mul is None else (pa.array(mul), None if add is None else pa.array(add))


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _days(column: pa.ChunkedArray) -> Ints:
    kind = column.type
    if not pa.types.is_date32(kind):  # datasets without a calendar: an instant's day in UTC
        column = column.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
    return np.asarray(_joined(column).view(pa.int32()))


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Yield each symbol with its rows."""
    if not len(column):
        return
    first, last = column[0].as_py(), column[-1].as_py()
    if first == last:
        yield first, 0, len(column)
        return
    lengths = pl.Series(pl.from_arrow(column)).rle().struct.unnest()
    start = 0
    for length, symbol in lengths.iter_rows():
        yield symbol, start, start + length
        start += length
