"""``fletching read``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fletching_schemas.errors import InvalidRequest
from fletching_server.cli.access import SourceOption, StoreOption, UrlOption, reach

PARTIAL: Final = 3  # exit status where some symbols could not be fetched
CALLS: Final = (  # of a progress bar over upstream calls
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("upstream calls"),
    TimeRemainingColumn(),
)

console = Console()


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"


def read(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset, such as bars_1d.")],
    symbols: Annotated[list[str] | None, typer.Argument(help="Symbols in any common notation; none: all.")] = None,
    start: Annotated[str | None, typer.Option(help="First session or instant, inclusive.")] = None,
    end: Annotated[str | None, typer.Option(help="Last session or instant, inclusive.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns, separated by commas; none: all.")] = None,
    on_miss: Annotated[str, typer.Option(help="fill, cached (never ask upstream) or error.")] = "fill",
    max_age: Annotated[float | None, typer.Option(help="Oldest acceptable age of unsettled rows, in seconds.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="trading (60 s), research (1 h) or backtesting (1 day), for the same.")
    ] = None,
    adjust: Annotated[str | None, typer.Option(help="Adjust prices: qfq or hfq.")] = None,
    adjust_ref: Annotated[str | None, typer.Option(help="The session whose prices qfq leaves; none: the last.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows to this .parquet, .csv or .arrow file.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Read rows, and say on stderr where they came from; a bar shows how far fetching is.

    Exit status 0: all of it; 3: some symbols could not be fetched, and are listed with when to ask again.

    Examples:
      fletching read bars_1d 000001.SZ --start 2024-01-01 --end 2024-12-31

      fletching read bars_1d --start 2024-03-20 --end 2024-03-20 --out day.parquet

      fletching read bars_1d 600519.SH --start 2015-01-01 --adjust qfq
    """
    wanted = columns.split(",") if columns else None
    errors = Console(stderr=True, soft_wrap=True)
    with reach(url, store, source) as cache, Progress(*CALLS, console=errors, transient=True) as bar:
        task = bar.add_task(f"reading {dataset}", total=None)

        def show(facts: Mapping[str, int]) -> None:
            bar.update(task, total=facts["due"], completed=facts["done"])

        options: dict[str, Any] = {"adjust": adjust, "adjust_ref": adjust_ref, "max_age": max_age, "profile": profile}
        frame, info = cache.read(
            dataset,
            symbols,
            start,
            end,
            wanted,
            on_miss=on_miss,
            info=True,
            progress=show if errors.is_terminal else False,
            **options,
        )
    if out is not None:
        _save(frame, out)
    else:
        _print(frame, output)
    errors.print(str(info), style="dim", highlight=False)
    for symbol, status in info.failed.items():
        again = f"; ask again after {status.retry_at:%Y-%m-%d %H:%M:%S} UTC" if status.retry_at else ""
        errors.print(f"[red]failed[/] {symbol}: {status.message}{again}", highlight=False)
    if info.failed:
        raise typer.Exit(PARTIAL)


def _print(frame: pl.DataFrame, output: Format) -> None:
    if output is Format.csv:
        typer.echo(frame.write_csv(), nl=False)
    elif output is Format.json:
        typer.echo(frame.write_ndjson(), nl=False)
    else:
        with pl.Config(tbl_rows=20, tbl_cols=max(4, console.width // 13), tbl_width_chars=console.width):
            typer.echo(str(frame))


def _save(frame: pl.DataFrame, out: Path) -> None:
    writers: dict[str, Callable[[Path], object]] = {
        ".parquet": frame.write_parquet,
        ".csv": frame.write_csv,
        ".arrow": frame.write_ipc,
    }
    if out.suffix not in writers:
        raise InvalidRequest(f"cannot write {out}; its name must end in {', '.join(writers)}")
    writers[out.suffix](out)
