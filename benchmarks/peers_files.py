"""DuckDB and Polars in the process of their user, on the very Parquet file that the store holds."""

from __future__ import annotations

import json
import sys
from typing import Any

import duckdb
import polars as pl

from benchmarks.stopwatch import Work, serve

ONE = "SELECT * FROM read_parquet($path) WHERE symbol = $symbol"


def _main(tell: str, given: dict[str, Any]) -> None:
    path, asked = given["path"], given["asked"]
    connection = duckdb.connect()

    def symbol(number: int) -> str:
        return asked[number % len(asked)]

    works = {
        "duckdb symbol year": Work(
            lambda number: connection.sql(ONE, params={"path": path, "symbol": symbol(number)}).pl(),
        ),
        "polars symbol year": Work(lambda number: pl.scan_parquet(path).filter(pl.col("symbol") == symbol(number)).collect()),
        "polars partition": Work(lambda _: pl.read_parquet(path)),
    }
    serve(int(tell), {"duckdb": duckdb.__version__, "polars": pl.__version__}, works)


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
