"""LEAN's factor files as cumulative factors: what a price is multiplied by, as steps that begin on a day.

A line ``YYYYMMDD,price factor,split factor,reference price`` holds for all days up to and including its date, back to
the line before; the factors are 1 at the end. A step begins on the day after the line before; the first ``mul`` is 1.
"""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow as pa

from fletching_schemas.errors import BadSourceData
from fletching_server.sources.file_values import FileColumn, divided

COLUMNS: Final = ("last_day", "price_factor", "split_factor", "reference_price")


def cumulative_steps(raw: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Return ``ex_date``, ``known_at`` (its midnight, UTC) and ``mul`` of each day on which the factor changes.

    ``ex_date`` is the first calendar day for which the factor holds, a session or not. Raises ``BadSourceData`` naming
    file, line, column and value where a field does not fit, dates do not increase or a factor is not positive.
    """
    last_day = FileColumn(raw["last_day"], origin)
    days = last_day.dates("%Y%m%d")
    last_day.refuse((days.diff().dt.total_days() <= 0), "does not come after the line before")
    factor = pl.repeat(1.0, raw.height, eager=True)
    for name in ("price_factor", "split_factor"):
        column = FileColumn(raw[name], origin)
        values = column.converted(pa.float64())
        column.refuse(values.is_null() | (values <= 0), "is not a positive factor")
        factor *= values
    if days.is_empty() or days.has_nulls():
        raise BadSourceData(f"{origin}: a factor file has lines {','.join(COLUMNS)}; a date is missing")
    first = days.dt.offset_by("1d").shift(1).fill_null(days[0])
    steps = pl.DataFrame({"ex_date": first, "mul": divided(factor, factor[0])})
    changes = steps.filter(pl.col("mul").ne_missing(pl.col("mul").shift(1)))
    return changes.with_columns(pl.col("ex_date").cast(pl.Datetime("us", "UTC")).alias("known_at"))
