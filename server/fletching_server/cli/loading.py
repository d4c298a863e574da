"""``fletching import``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fletching_schemas.errors import InvalidRequest
from fletching_server.cli.access import StoreOption, UrlOption, reach

_ROWS_PER_WRITE = 500_000  # one durable write each: an interrupted import can be run again, upsert is idempotent
_READERS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".csv": lambda path: pl.scan_csv(path, try_parse_dates=True),
    ".parquet": pl.scan_parquet,
    ".arrow": pl.scan_ipc,
    ".feather": pl.scan_ipc,
}


def import_files(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders: .csv, .parquet, .arrow, .feather.")],
    dataset: Annotated[str, typer.Option(help="The user table to write to.")],
    keys: Annotated[str | None, typer.Option(help="Key columns, the symbol's first, comma-separated; for a new table.")] = None,
    time: Annotated[str | None, typer.Option(help="The time column, where the keys do not tell; for a new table.")] = None,
    partition: Annotated[str | None, typer.Option(help="year, month or day; for a new table.")] = None,
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Import files into a user table: durable piece by piece, rows of equal key are replaced, safe to run again.

    Example: fletching import quotes/ --dataset my_quotes --keys symbol,ts --store store
    """
    files = _files(paths)
    columns = TextColumn("{task.fields[rows]:,} rows")
    names = keys.split(",") if keys else None
    with reach(url, store, None) as cache, Progress(*_bar(), columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("importing", total=len(files), rows=0)
        rows = 0
        for file in files:
            for frame in _frames(file):
                rows += cache.write(dataset, frame, keys=names, time=time, partition=partition).rows
                progress.update(task, rows=rows)
            progress.advance(task)
    typer.echo(f"{rows:,} rows of {len(files)} files are in {dataset}")


def _bar() -> tuple[TextColumn, BarColumn, MofNCompleteColumn, TimeElapsedColumn]:
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(inner for inner in path.rglob("*") if inner.suffix in _READERS)
        elif path.suffix in _READERS and path.is_file():
            found.append(path)
        else:
            raise InvalidRequest(f"cannot import {path}; name folders or files that end in {', '.join(_READERS)}")
    if not found:
        raise InvalidRequest(f"there is nothing to import in {', '.join(map(str, paths))}")
    return found


def _frames(file: Path) -> Iterator[pl.DataFrame]:
    try:
        yield from _READERS[file.suffix](file).collect_batches(chunk_size=_ROWS_PER_WRITE, maintain_order=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidRequest(f"cannot read {file}: {str(error).splitlines()[0]}") from error
