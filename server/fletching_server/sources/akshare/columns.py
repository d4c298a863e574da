"""The library's columns as canonical ones: types fixed here, once, with errors that name column, row and value. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from fletching_schemas.errors import BadSourceData, SourceChanged

PRICES: Final = ("open", "high", "low", "close")
SHARES_PER_LOT: Final = 100
PRICE_TOLERANCE: Final = 0.005
PASSING_SHARE: Final = 0.99  # decided per fill: single days of the early years are off

Convert = Callable[[pa.Array], pa.Array]


class Columns:
    """A frame of the library, about *what*, and conversions of its columns."""

    def __init__(self, frame: pa.Table, what: str) -> None:
        self._frame, self._what = frame, what

    def need(self, names: frozenset[str], *, exactly: bool = False) -> None:
        """Raise ``SourceChanged`` where columns are missing or, with *exactly*, where there are others."""
        found = set(self._frame.column_names)
        if not names <= found or (exactly and names != found):
            raise SourceChanged(f"{self._what}: akshare changed shape: columns {sorted(found)}, due {sorted(names)}")

    def get(self, name: str, convert: Convert) -> pa.Array:
        """Return the column *name* converted as a whole; where that fails, name the first row that does not fit."""
        values = self._frame[name].combine_chunks()
        try:
            return convert(values)
        except pa.ArrowException:
            for row in range(len(values)):
                refusal = _refusal(values.slice(row, 1), convert)
                if refusal:
                    raise BadSourceData(f"{self._what}: {name} in row {row} is {values[row].as_py()!r:.80}: {refusal}") from None
            raise


def _refusal(value: pa.Array, convert: Convert) -> str:
    try:
        convert(value)
    except pa.ArrowException as error:
        return str(error)
    return ""


def days(values: pa.Array) -> pa.Array:
    """Return dates, from dates or text such as ``2024-03-20``; none may be missing."""
    if values.null_count:
        raise pa.ArrowInvalid("not a date")
    return _as_days(values)


def maybe_days(values: pa.Array) -> pa.Array:
    """Return dates, some of which may be missing."""
    return pa.nulls(len(values), pa.date32()) if pa.types.is_null(values.type) else _as_days(values)


def _as_days(values: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        found = values.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
        if found.cast(pa.timestamp("us")) != values.cast(pa.timestamp("us")):
            raise pa.ArrowInvalid("a time of day where a date is due")
        return found
    return values.cast(pa.date32())


def numbers(values: pa.Array) -> pa.Array:
    """Return finite numbers, some of which may be missing."""
    found = values.cast(pa.float64())
    if not pc.all(pc.is_finite(found), min_count=0).as_py():
        raise pa.ArrowInvalid("not a finite number")
    return found


def ratios(values: pa.Array) -> pa.Array:
    """Return per cent as ratios."""
    return pc.divide(numbers(values), 100.0)


def counts(values: pa.Array) -> pa.Array:
    """Return whole numbers."""
    return values.cast(pa.int64())


def lots(values: pa.Array) -> pa.Array:
    """Return lots of 100 as shares."""
    return pc.multiply_checked(values.cast(pa.int64()), SHARES_PER_LOT)


def texts(values: pa.Array) -> pa.Array:
    """Return text."""
    return values.cast(pa.string()).cast(pa.string_view())


def beijing(values: pa.Array) -> pa.Array:
    """Return instants from text on the clock of Beijing, such as ``2024-03-20 09:31:00``."""
    if values.null_count:
        raise pa.ArrowInvalid("not an instant")
    stamps = values if pa.types.is_timestamp(values.type) else _stamps(values)
    return pc.assume_timezone(stamps.cast(pa.timestamp("us")), "Asia/Shanghai").cast(pa.timestamp("us", tz="UTC"))


def _stamps(values: pa.Array) -> pa.Array:
    text = values.cast(pa.string())
    padded = pc.if_else(pc.equal(pc.utf8_length(text), 16), pc.binary_join_element_wise(text, ":00", ""), text)
    return pc.strptime(padded, format="%Y-%m-%d %H:%M:%S", unit="us")


def rows_of(schema: pa.Schema, found: Mapping[str, pa.Array | pa.ChunkedArray], count: int) -> pa.Table:
    """Return *found* as a table of *schema*; columns that were not found are null."""
    arrays = [found.get(item.name, pa.nulls(count, item.type)) for item in schema]
    return pa.Table.from_arrays([array.cast(item.type) for array, item in zip(arrays, schema, strict=True)], schema=schema)


def constant(value: str, count: int) -> pa.Array:
    """Return *value*, *count* times."""
    return pa.array([value] * count, pa.string()).cast(pa.string_view())


# Checks


def check_days(found: list[date], what: str) -> None:
    """Raise ``BadSourceData`` where a day comes twice."""
    if len(set(found)) < len(found):
        row = next(row for row, day in enumerate(found) if day in found[:row])
        raise BadSourceData(f"{what}: row {row} is {found[row]} once more")


def check_traded(found: pa.Table, columns: Mapping[str, str], what: str) -> None:
    """Refuse a traded row with a number missing: the library turns whatever is no number into nothing."""
    traded = pc.fill_null(pc.greater(found["volume"], 0), fill_value=False)
    for name in PRICES:
        traded = pc.or_(traded, pc.is_valid(found[name]))
    for name, chinese in columns.items():
        row = pc.index(pc.and_(traded, pc.is_null(found[name])), value=True).as_py()
        if row >= 0:
            raise BadSourceData(f"{what}: {chinese} in row {row} is missing, but the other columns are not")


def check_unit(found: pa.Table, what: str, declared: int) -> str:
    """Return ``passed``, or refuse a fill whose prices do not follow from amount and volume: its unit is not as *declared*.

    *found* has volume in shares, made from what the source wrote by multiplying with *declared* (100 for lots, 1).
    ``not_applicable`` where nothing was traded.
    """
    found = found.filter(pc.and_(pc.greater(found["volume"], 0), pc.greater(found["amount"], 0)))
    if not found.num_rows:
        return "not_applicable"
    passing = _passing(found, found["volume"])
    if passing >= PASSING_SHARE:
        return "passed"
    other = SHARES_PER_LOT if declared == 1 else 1
    fits = _passing(found, pc.multiply(pc.divide(found["volume"].cast(pa.float64()), declared), other)) >= PASSING_SHARE
    units = {1: "shares", SHARES_PER_LOT: "lots"}
    verdict = f"looks like {units[other]}" if fits else "looks like neither lots nor shares"
    raise BadSourceData(
        f"{what}: 成交量 declared {units[declared]}, {verdict}: amount / volume lies between low and high in {passing:.0%} "
        f"of {found.num_rows} rows"
    )


def _passing(found: pa.Table, volume: pa.ChunkedArray) -> float:
    """Return the part of the rows where amount / volume lies between low and high."""
    price = pc.divide(found["amount"], volume.cast(pa.float64()))
    above = pc.greater_equal(price, pc.multiply(found["low"], 1 - PRICE_TOLERANCE))
    below = pc.less_equal(price, pc.multiply(found["high"], 1 + PRICE_TOLERANCE))
    inside = pc.sum(pc.and_(above, below), min_count=0).as_py()
    return float(inside / found.num_rows)
