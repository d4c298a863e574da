"""``fletching read``, ``coverage``, ``stats``, ``verify`` and ``doctor``."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from fletching_schemas.errors import Error, InvalidRequest
from fletching_server.almanac import build_calendar
from fletching_server.cli.access import SourceOption, StoreOption, UrlOption, reach
from fletching_server.engine import Engine
from fletching_server.settings import load_settings
from fletching_server.sources.registry import make_source

_PACKAGES: Final = ("fletching", "pyarrow", "polars", "duckdb", "exchange_calendars", "akshare", "grpcio")
_CALENDARS: Final = ("XSHG", "XHKG", "XNYS")
_SOON_DAYS: Final = 60
_COLOURS: Final = {"final": "green", "provisional": "yellow", "empty": "blue", "missing": "red"}

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
    out: Annotated[Path | None, typer.Option(help="Write the rows to this .parquet, .csv or .arrow file.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Read rows, and say on stderr where they came from.

    Examples:
      fletching read bars_1d 000001.SZ --start 2024-01-01 --end 2024-12-31

      fletching read bars_1d --start 2024-03-20 --end 2024-03-20 --out day.parquet
    """
    wanted = columns.split(",") if columns else None
    with reach(url, store, source) as cache, Console(stderr=True).status(f"reading {dataset}"):
        frame, info = cache.read(dataset, symbols, start, end, wanted, on_miss=on_miss, max_age=max_age, info=True)
    if out is not None:
        _save(frame, out)
    else:
        _print(frame, output)
    Console(stderr=True, soft_wrap=True).print(str(info), style="dim", highlight=False)


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


def coverage(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    symbols: Annotated[list[str] | None, typer.Argument(help="Symbols; none: all of which anything is known.")] = None,
    start: Annotated[str | None, typer.Option(help="First session.")] = None,
    end: Annotated[str | None, typer.Option(help="Last session.")] = None,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Show what is held of each symbol: final, provisional (will be asked again), empty (why) and missing."""
    with reach(url, store, source) as cache:
        frame = cache.coverage(dataset, symbols, start, end)
    table = Table(title=f"coverage of {dataset}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("symbol", "first", "last", "sessions", "state", "fetched"):
        table.add_column(name, no_wrap=True, justify="right" if name == "sessions" else "left")
    for row in frame.iter_rows(named=True):
        facts = [str(row[name]) for name in ("symbol", "first", "last", "sessions")]
        state = f"[{_COLOURS[row['state']]}]{row['state']}[/]" + (f": {row['reason']}" if row["reason"] else "")
        table.add_row(*facts, state, row["fetched_at"].strftime("%Y-%m-%d") if row["fetched_at"] else "")
    console.print(table)


def stats(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Show datasets and counters: reads, rows per tier, upstream calls, memory, percentiles in milliseconds."""
    with reach(url, store, source) as cache:
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


def verify(store: Annotated[Path, typer.Argument(help="Folder of the store; no server may have it open.")]) -> None:
    """Check a store end to end: every file, checksum, order, key and fact of coverage. Changes nothing.

    Exit status 0: all is well; 1: problems were found, and are listed.
    """
    with _opened(store) as engine, console.status(f"checking {store}"):
        problems = engine.verify()
        files = [file for state in engine.store.catalogue.states() for file in state.files]
        orphans = engine.store.orphans()
    for problem in problems:
        console.print(f"[red]problem[/] {problem}", soft_wrap=True, highlight=False)
    if orphans:
        console.print(f"{len(orphans)} files of a process that died before it committed them; the next start removes them")
    size = sum(file.bytes for file in files) / 1e6
    console.print(f"{len(files)} files, {sum(file.rows for file in files):,} rows, {size:,.1f} MB: {len(problems)} problems")
    raise typer.Exit(1 if problems else 0)


def _opened(store: Path) -> Engine:
    if not (store / "catalogue.sqlite").is_file():
        raise InvalidRequest(f"{store} is not a store: it has no catalogue.sqlite")
    return Engine(load_settings(store=store), recover=False)


def doctor(
    store: Annotated[Path | None, typer.Option(help="Also look at this store.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Also try this source: NAME or NAME:CONFIG.toml.")] = None,
) -> None:
    """Check this machine: versions, calendars and how far they are known, the store's room, sources that can be made.

    Exit status 0: all is well; 1: something needs attention, and says what.
    """
    findings = [*_versions(), *_calendars()]
    findings += _store(store) if store else []
    findings += [_source(spec) for spec in source or []]
    table = Table("what", "found", "verdict")
    for what, found, problem in findings:
        table.add_row(what, found, f"[red]{problem}[/]" if problem else "[green]ok[/]")
    console.print(table)
    raise typer.Exit(1 if any(problem for _, _, problem in findings) else 0)


Finding = tuple[str, str, str]


def _versions() -> list[Finding]:
    findings: list[Finding] = [("python", platform.python_version(), "")]
    for package in _PACKAGES:
        try:
            findings.append((package, version(package), ""))
        except PackageNotFoundError:
            problem = "" if package in {"akshare", "grpcio"} else f"missing: pip install {package}"
            findings.append((package, "not installed", problem))
    return findings


def _calendars() -> list[Finding]:
    today = datetime.now(UTC).date()
    findings = []
    for mic in _CALENDARS:
        known = build_calendar(mic, today).known_until
        left = (known - today).days
        problem = f"only {left} days are known: upgrade exchange_calendars" if left < _SOON_DAYS else ""
        findings.append((f"calendar {mic}", f"known until {known}", problem))
    return findings


def _store(store: Path) -> list[Finding]:
    free = shutil.disk_usage(store if store.exists() else store.resolve().parent).free
    room: Finding = (f"room for {store}", f"{free / 1e9:.1f} GB free", "less than 1 GB" if free < 1e9 else "")
    try:
        with _opened(store) as engine:
            count = len(engine.names())
    except Error as error:
        return [room, ("store", str(store), error.message)]
    return [room, ("store", f"{count} datasets", "")]


def _source(spec: str) -> Finding:
    try:
        made: Any = make_source(spec)
        names = ", ".join(dataset.name for dataset in made.datasets())
    except Error as error:
        return f"source {spec}", "cannot be used", error.message
    if callable(close := getattr(made, "close", None)):
        close()
    return f"source {spec}", names, ""
