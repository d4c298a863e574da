"""``fletching trace``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from fletching_schemas.errors import InvalidRequest
from fletching_server.access_trace import trace_of


def trace(
    store: Annotated[Path, typer.Option("--store", help="The store whose access log is told; it may be open.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
) -> None:
    """Write the access log of a store as a trace, which `fletching replay` plays back."""
    found = trace_of(store)
    try:
        pq.write_table(found, out, compression="zstd")
    except (OSError, pa.ArrowException) as error:
        raise InvalidRequest(f"--out {out} cannot be written: {str(error).splitlines()[0]}") from error
    typer.echo(f"{found.num_rows:,} touched partitions of {len(set(found['request_id'].to_pylist())):,} reads: {out}")
