"""Rows that a table holds, as runs: so that they are merged like any others, however large their partition is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fletching_schemas import Dataset
from fletching_server import disk
from fletching_server.cold import brought_up
from fletching_server.failpoints import Purpose
from fletching_server.importing.merging import HELD, Share
from fletching_server.importing.runs import NEWEST

_BATCH_ROWS = 1 << 18


def held_share(dataset: Dataset, path: Path, folder: Path) -> Share:
    """Return the rows of the partition at *path* as a share, in the columns that the table has now; its pages are checked."""
    place = folder / f"{path.stem}.rows.arrow"
    symbols: list[tuple[str, int]] = []
    names = [name for name in dataset.schema.names if name != dataset.symbol]
    schema = pl.DataFrame(pl.from_arrow(dataset.schema.empty_table().select(names))).to_arrow(compat_level=NEWEST).schema
    with (
        pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file,
        disk.creating(place, sync=False, purpose=Purpose.IMPORT) as made,
        pa.ipc.new_file(made, schema) as writer,
    ):
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            frame = pl.DataFrame(pl.from_arrow(brought_up(pa.table(batch), dataset.schema)))
            symbols += frame[dataset.symbol].rle().struct.unnest().select("value", "len").iter_rows()
            writer.write_table(frame.select(names).to_arrow(compat_level=NEWEST).cast(schema))
    return Share(place, HELD, _joined(symbols))


def _joined(symbols: list[tuple[str, int]]) -> pl.DataFrame:
    """Return where each symbol begins, those that a batch had cut joined."""
    runs = pl.DataFrame(symbols, schema={"symbol": pl.String, "rows": pl.Int64}, orient="row")
    counted = runs.group_by("symbol", maintain_order=True).agg(pl.col("rows").sum())
    return counted.select("symbol", (pl.col("rows").cum_sum() - pl.col("rows")).alias("start"), "rows")
