"""``fletching doctor``."""

from __future__ import annotations

import platform
import shutil
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from fletching_schemas.errors import Error, InvalidRequest
from fletching_server.almanac import build_calendar
from fletching_server.cli.looking import opened
from fletching_server.rebuild import rebuild
from fletching_server.sources.registry import make_source

_PACKAGES: Final = ("fletching", "pyarrow", "polars", "duckdb", "exchange_calendars", "akshare", "grpcio")
_CALENDARS: Final = ("XSHG", "XHKG", "XNYS")
_SOON_DAYS: Final = 30
_DECEMBER: Final = 12
_REFUSED_SHOWN: Final = 5

console = Console()


def doctor(
    store: Annotated[Path | None, typer.Option(help="Also look at this store.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Also try this source: NAME or NAME:CONFIG.toml.")] = None,
    rebuild_catalogue: Annotated[
        bool, typer.Option("--rebuild-catalogue", help="Make the catalogue of --store anew from what its data files tell.")
    ] = False,
) -> None:
    """Check this machine: versions, calendars and how far they are known, the store's room, sources that can be made.

    With --rebuild-catalogue the present catalogue, and files that are not needed, are set aside, not deleted.
    Exit status 0: all is well; 1: something needs attention, and says what.
    """
    if rebuild_catalogue:
        _rebuild(store)
        return
    findings = [*_versions(), *calendars(datetime.now(UTC).date())]
    findings += _store(store) if store else []
    findings += [_source(spec) for spec in source or []]
    table = Table("what", "found", "verdict")
    for what, found, problem in findings:
        table.add_row(what, found, f"[red]{problem}[/]" if problem else "[green]ok[/]")
    console.print(table)
    raise typer.Exit(1 if any(problem for _, _, problem in findings) else 0)


def _rebuild(store: Path | None) -> None:
    if store is None:
        raise InvalidRequest("--rebuild-catalogue needs --store: which store's catalogue?")
    told = rebuild(store)
    table = Table("dataset", "files", "rows", title="rebuilt", title_justify="left")
    for name, files in told.datasets.items():
        table.add_row(name, f"{files:,}", f"{told.rows[name]:,}")
    console.print(table)
    console.print(f"set aside in {told.aside}: the old catalogue, and {len(told.left_over):,} files that no dataset needs")
    for problem in told.problems:
        console.print(f"[red]{problem}[/]")
    raise typer.Exit(1 if told.problems else 0)


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


def calendars(today: date) -> list[Finding]:
    """Return how far each calendar is known on *today*; from 1 December on, or within 30 days, that needs attention."""
    findings = []
    for mic in _CALENDARS:
        known = build_calendar(mic, today).known_until
        left = (known - today).days
        soon = left < _SOON_DAYS or (today.month == _DECEMBER and known.year == today.year)
        advice = "upgrade exchange_calendars when the exchange has published the next year, or use a source with trade dates"
        problem = f"only {left} days are known: {advice}, or name days as [calendar.{mic}] add" if soon else ""
        findings.append((f"calendar {mic}", f"known until {known}", problem))
    return findings


def _store(store: Path) -> list[Finding]:
    free = shutil.disk_usage(store if store.exists() else store.resolve().parent).free
    room: Finding = (f"room for {store}", f"{free / 1e9:.1f} GB free", "less than 1 GB" if free < 1e9 else "")
    try:
        with opened(store) as engine:
            count, refused = len(engine.names()), engine.quarantine.report()
            size, scrubber = f"{engine.store.disk_bytes() / 1e9:.1f} GB", engine.scrubber
    except Error as error:
        return [room, ("store", str(store), error.message)]
    told = [
        (f"refused answer of {each.get('at', '?')[:19]}", each["file"], each["why"][:300]) for each in refused[:_REFUSED_SHOWN]
    ]
    damaged: list[Finding] = [("scrubber", scrubber.told(), "; ".join(scrubber.damaged()))]
    return [room, ("store", f"{count} datasets, {size}", ""), *damaged, *told]


def _source(spec: str) -> Finding:
    try:
        made: Any = make_source(spec)
        names = ", ".join(dataset.name for dataset in made.datasets())
    except Error as error:
        return f"source {spec}", "cannot be used", error.message
    if callable(close := getattr(made, "close", None)):
        close()
    return f"source {spec}", names, ""
