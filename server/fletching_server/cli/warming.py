"""``fletching warm``: rows in memory before somebody reads them, and what the server's own warmer would do now, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from rich.console import Console
from rich.progress import Progress

from fletching_schemas.errors import InvalidRequest
from fletching_server.cli.access import Cache, SourceOption, StoreOption, UrlOption, reach
from fletching_server.cli.reading import CALLS, PARTIAL

console = Console(soft_wrap=True)


def warm(
    dataset: Annotated[
        str | None, typer.Argument(help="Name of the dataset; none, with --explain: what the warmer would do.")
    ] = None,
    symbols: Annotated[list[str] | None, typer.Argument(help="Symbols in any common notation; none: all.")] = None,
    start: Annotated[str | None, typer.Option(help="First session, inclusive.")] = None,
    end: Annotated[str | None, typer.Option(help="Last session, inclusive.")] = None,
    adjust: Annotated[str | None, typer.Option(help="Fetch the factors too, for reads with qfq or hfq.")] = None,
    disk_only: Annotated[bool, typer.Option("--disk-only", help="Fetch what is missing, and leave memory as it is.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell what would be done, and why; do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Have rows on disk and in memory before somebody reads them; a bar shows how far fetching is.

    People who wait go before these calls. A server also warms by itself what it has learned to expect: --explain without a
    dataset tells what it would do now, the chance and the counts behind it, what it saves and costs, and what it leaves.
    Exit status 0: all of it; 3: some symbols could not be fetched.

    Examples:
      fletching warm bars_1d 000001.SZ 600519.SH --start 2024-01-01

      fletching warm bars_1m 600519.SH --start 2024-03-01 --disk-only

      fletching warm --explain
    """
    if dataset is None and not explain:
        raise InvalidRequest("name the dataset that is to be warmed, or ask with --explain what the warmer would do")
    options: dict[str, Any] = {"adjust": adjust, "memory": not disk_only, "explain": explain}
    with reach(url, store, source) as cache:
        told = _warmed(cache, dataset, symbols, start, end, options)
    if as_json:
        typer.echo(json.dumps(told))
    elif dataset is None:
        _show_warmer(told)
    else:
        _show_wish(told)
    if told.get("failed_symbols"):
        raise typer.Exit(PARTIAL)


def _warmed(
    cache: Cache, dataset: str | None, symbols: list[str] | None, start: str | None, end: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    errors = Console(stderr=True)
    with Progress(*CALLS, console=errors, transient=True) as bar:
        task = bar.add_task(f"warming {dataset}", total=None, visible=not options["explain"])

        def show(facts: Mapping[str, int]) -> None:
            bar.update(task, total=facts["due"], completed=facts["done"])

        return cache.warm(dataset, symbols, start, end, progress=show if errors.is_terminal else False, **options)


def _show_wish(told: Mapping[str, Any]) -> None:
    missing = f"{told['dataset']}: {told['symbols']:,} symbols, {told['cells']:,} cells missing"
    if "calls" in told:
        size, disk = _size(told["bytes"]), _size(told["disk_bytes"])
        console.print(f"{missing}; would take about {told['calls']:,} upstream calls, {size} in memory, {disk} more on disk")
        return
    fetched = f"{told['upstream_calls']:,} upstream calls brought {told['rows']:,} rows"
    loaded = f"{told['loaded_files']:,} files, {_size(told['loaded_bytes'])}, came into memory, {told['held_files']:,} were there"
    console.print(f"{missing}; {fetched}; {loaded}; {told['seconds']:.2f} s", highlight=False)
    for symbol, message in told["failed"].items():
        console.print(f"[red]failed[/] {symbol}: {message}", highlight=False)


def _show_warmer(told: Mapping[str, Any]) -> None:
    for line in told["words"]:
        console.print(line, highlight=False, markup=False)


def _size(size: int) -> str:
    return ByteSize(size).human_readable()
