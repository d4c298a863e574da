"""``fletching replay``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from fletching_schemas.errors import InvalidRequest
from fletching_server.policy import LruPolicy
from fletching_server.replay import replay as run

_LOG_COLUMNS = ("dataset", "bucket", "session", "bytes")


class TraceFormat(StrEnum):
    """How a trace is written."""

    log = "log"
    keys = "keys"


def replay(
    trace: Annotated[Path, typer.Argument(help="The trace: Parquet, or text with one key per line (.gz too).")],
    memory: Annotated[str, typer.Option(help="Budget of the hot tier, such as 8GiB; for --format keys: objects.")] = "512MiB",
    trace_format: Annotated[
        TraceFormat, typer.Option("--format", help="log: Parquet with dataset, bucket, session, bytes; keys: one key per line.")
    ] = TraceFormat.log,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a trace through the memory policy (LRU) and tell its hit ratios, at full speed and without a server.

    Every object of a keys trace counts as one byte, so --memory is a number of objects there.
    """
    if not trace.is_file():
        raise InvalidRequest(f"there is no trace {trace}")
    requests = _keys(trace) if trace_format is TraceFormat.keys else _log(trace)
    outcome = run(requests, LruPolicy(), _bytes(memory))
    told = {**vars(outcome), "hit_ratio": round(outcome.hit_ratio, 6), "byte_hit_ratio": round(outcome.byte_hit_ratio, 6)}
    if as_json:
        typer.echo(json.dumps(told))
        return
    table = Table("figure", "value", title=f"{trace.name} under LRU, {memory}")
    for name, value in told.items():
        table.add_row(name, f"{value:,}")
    Console().print(table)


def _bytes(text: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise InvalidRequest(f"--memory {text!r} is not a size; write 8GiB, 500MB or a number") from error


def _keys(trace: Path) -> Iterator[tuple[str, int]]:
    """Yield (key, 1) per line; empty lines and lines of ``*`` are breaks, not requests."""
    opener = gzip.open if trace.suffix == ".gz" else open
    with opener(trace, "rt") as lines:
        for line in lines:
            key = line.strip()
            if key and key != "*":
                yield key, 1


def _log(trace: Path) -> Iterator[tuple[str, int]]:
    try:
        frame = pl.read_parquet(trace, columns=list(_LOG_COLUMNS))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidRequest(f"{trace} is not a Parquet trace with columns {', '.join(_LOG_COLUMNS)}: {error}") from error
    for dataset, bucket, session, size in frame.iter_rows():
        yield f"{dataset}/{bucket}/{session}", size
