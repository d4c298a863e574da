"""A plain pyarrow Flight client of a plain server: what it takes to a Polars frame, as most write it and as the careful do."""

from __future__ import annotations

import json
import sys
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.flight as fl

from benchmarks.stopwatch import Work, serve
from benchmarks.throughput import as_frame, plain_frame


def _main(tell: str, given: dict[str, Any]) -> None:
    usual, ours = given["usual"].encode(), given["ours"].encode()
    with fl.FlightClient(given["url"]) as client:
        works = {
            "partition": Work(lambda _: plain_frame(client, usual)),
            "partition, our batches": Work(lambda _: plain_frame(client, ours)),
            "partition, our batches, aligned": Work(lambda _: as_frame(client, ours)),
        }
        serve(int(tell), {"pyarrow": pa.__version__, "polars": pl.__version__}, works)


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
