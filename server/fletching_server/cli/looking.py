"""``fletching coverage``, ``stats`` and ``verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from fletching_schemas.errors import InvalidRequest
from fletching_server.cli.access import SourceOption, StoreOption, UrlOption, reach
from fletching_server.cli.drawing import COLOURS, strips
from fletching_server.engine import Engine
from fletching_server.settings import load_settings

console = Console()


def coverage(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    symbols: Annotated[list[str] | None, typer.Argument(help="Symbols; none: all of which anything is known.")] = None,
    start: Annotated[str | None, typer.Option(help="First session.")] = None,
    end: Annotated[str | None, typer.Option(help="Last session.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per run instead of drawing.")] = False,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Draw what is held of each symbol: final, provisional (will be asked again), empty (why) and missing.

    Examples:
      fletching coverage bars_1d 000001.SZ

      fletching coverage bars_1d 000001.SZ 600519.SH --start 2024-01-01 --json
    """
    with reach(url, store, source) as cache:
        frame = cache.coverage(dataset, symbols, start, end)
    if as_json:
        typer.echo(frame.write_ndjson(), nl=False)
        return
    for line in strips(frame.to_dicts(), console.width):
        console.print(line, soft_wrap=True)
    table = Table(title=f"coverage of {dataset}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("symbol", "first", "last", "sessions", "state", "fetched"):
        table.add_column(name, no_wrap=True, justify="right" if name == "sessions" else "left")
    for row in frame.iter_rows(named=True):
        facts = [str(row[name]) for name in ("symbol", "first", "last", "sessions")]
        state = f"[{COLOURS[row['state']]}]{row['state']}[/]" + (f": {row['reason']}" if row["reason"] else "")
        table.add_row(*facts, state, row["fetched_at"].strftime("%Y-%m-%d") if row["fetched_at"] else "")
    console.print(table)


def stats(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    evictions: Annotated[
        bool, typer.Option("--evictions", help="Show what left memory lately to make room, and why, instead.")
    ] = False,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Show datasets and counters: reads, rows per tier, upstream calls, memory, percentiles in milliseconds."""
    with reach(url, store, source) as cache:
        if evictions:
            _show_evictions(cache.evictions(), as_json=as_json)
            return
        counters, datasets = cache.stats(), cache.datasets()
    if as_json:
        typer.echo(json.dumps(counters))
        return
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=console.width, tbl_hide_dataframe_shape=True):
        typer.echo(str(datasets.select("name", "kind", "source", "symbols", "rows", "disk_bytes", "hot_bytes", "first", "last")))
    table = Table("counter", "value", title="since the start")
    for name, value in sorted(counters.items()):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")
    console.print(table)


def _show_evictions(left: pl.DataFrame, *, as_json: bool) -> None:
    if as_json:
        typer.echo(left.write_ndjson(), nl=False)
        return
    table = Table("at (UTC)", "left memory", "bytes", "uses", "refill s", "saved s/GB", "made room for")
    for row in left.iter_rows(named=True):
        density = "" if row["density"] is None else f"{row['density'] * 1e9:,.3f}"
        numbers = (f"{row['bytes']:,}", f"{row['uses']:,.2f}", f"{row['refill_seconds']:,.3f}", density)
        table.add_row(f"{row['at']:%Y-%m-%d %H:%M:%S}", row["lineage"], *numbers, row["made_room_for"])
    console.print(table if left.height else "nothing had to leave memory since the start")


def verify(store: Annotated[Path, typer.Argument(help="Folder of the store; no server may have it open.")]) -> None:
    """Check a store end to end: every file, checksum, order, key and fact of coverage. Changes nothing.

    Exit status 0: all is well; 1: problems were found, and are listed.
    """
    with opened(store) as engine, console.status(f"checking {store}"):
        problems = engine.verify()
        files = [file for state in engine.store.catalogue.states() for file in state.files]
        orphans, scrubbed = engine.store.orphans(), engine.scrubber.told()
    for problem in problems:
        console.print(f"[red]problem[/] {problem}", soft_wrap=True, highlight=False)
    if orphans:
        console.print(f"{len(orphans)} files of a process that died before it committed them; the next start removes them")
    size = sum(file.bytes for file in files) / 1e6
    console.print(scrubbed)
    console.print(f"{len(files)} files, {sum(file.rows for file in files):,} rows, {size:,.1f} MB: {len(problems)} problems")
    raise typer.Exit(1 if problems else 0)


def opened(store: Path) -> Engine:
    """Return an engine that only looks at *store*; ``InvalidRequest`` where it is none."""
    if not (store / "catalogue.sqlite").is_file():
        raise InvalidRequest(f"{store} is not a store: it has no catalogue.sqlite")
    return Engine(load_settings(store=store), recover=False)
