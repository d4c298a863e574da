"""ArcticDB over LMDB, in the process of its user, in an environment of its own.

The partition is one symbol of its library, as a frame was written. For reads by ticker it has one symbol per ticker, indexed by
session, ten years each, and the range goes down as ``date_range``. It answers Polars frames by its own ``output_format``, and, in
the works called "pandas", what it answers by default, which nothing converts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import arcticdb
import pandas as pd
import polars as pl
from arcticdb import OutputFormat

from benchmarks.stopwatch import Work, serve

NUMBERS = 2  # from this column on


def _filled(given: dict[str, Any]) -> Any:
    folder = Path(given["folder"])
    opened = arcticdb.Arctic(f"lmdb://{folder / 'arctic'}?map_size=8GB")
    library = opened.create_library("daily")
    years = [pl.read_ipc(path) for path in given["years"]]
    library.write("partition", _pandas(years[-1]))
    rows = pl.concat([year.filter(pl.col("symbol").is_in(given["asked"])) for year in years])
    for (symbol,), bars in rows.partition_by("symbol", as_dict=True, maintain_order=True).items():
        library.write(str(symbol), _pandas(bars.drop("symbol")).set_index("trading_date"))
    return opened, library


def _pandas(frame: pl.DataFrame) -> pd.DataFrame:
    return frame.with_columns(pl.col("trading_date").cast(pl.Datetime("ns"))).to_pandas()


def _works(library: Any, asked: list[str], year: int) -> dict[str, Work]:
    bounds = (datetime(year, 1, 1), datetime(year, 12, 31))  # noqa: DTZ001  # its sessions have no zone
    batch = [arcticdb.ReadRequest(symbol, date_range=bounds) for symbol in asked]

    def symbol(number: int) -> str:
        return asked[number % len(asked)]

    def ways(form: OutputFormat) -> dict[str, Work]:
        def one(number: int, **bounded: Any) -> Any:
            return library.read(symbol(number), output_format=form, **bounded).data

        def partition(_: int) -> Any:
            return library.read("partition", output_format=form).data

        return {
            "partition": Work(partition, rows=lambda found, _: pl.DataFrame(found)),
            "partition, summed": Work(lambda number: _summed(partition(number))),
            "symbol year": Work(lambda number: one(number, date_range=bounds), rows=_named(symbol)),
            "symbol decade": Work(one, rows=_named(symbol)),
            "symbols year": Work(
                lambda _: [item.data for item in library.read_batch(batch, output_format=form)],
                rows=lambda found, _: pl.concat([_with_name(rows, name) for name, rows in zip(asked, found, strict=True)]),
            ),
        }

    unconverted = {f"{name}, pandas": work for name, work in ways(OutputFormat.PANDAS).items()}
    return {**ways(OutputFormat.POLARS), **unconverted}


def _named(symbol: Callable[[int], str]) -> Callable[[Any, int], pl.DataFrame]:
    return lambda rows, number: _with_name(rows, symbol(number))


def _with_name(rows: Any, symbol: str) -> pl.DataFrame:
    frame = rows if isinstance(rows, pl.DataFrame) else pl.from_pandas(rows, include_index=True)
    return frame.select(pl.lit(symbol).alias("symbol"), pl.all())


def _summed(frame: Any) -> Any:
    return frame[frame.columns[NUMBERS:]].sum()


def _main(tell: str, given: dict[str, Any]) -> None:
    opened, library = _filled(given)
    facts = {"arcticdb": arcticdb.__version__, "polars": pl.__version__, "pandas": pd.__version__}
    serve(int(tell), facts, _works(library, given["asked"], given["year"]))
    del library, opened


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
