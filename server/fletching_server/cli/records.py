"""``fletching calendar``, ``provenance`` and ``guard``: what is known of exchanges, of fills, and of upstream budgets."""

from __future__ import annotations

from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from fletching_server.cli.access import SourceOption, StoreOption, UrlOption, reach

console = Console()


def calendar(
    mic: Annotated[str, typer.Argument(help="The exchange, such as XSHG, XHKG or XNYS.")],
    start: Annotated[str | None, typer.Option(help="First day; none: all.")] = None,
    end: Annotated[str | None, typer.Option(help="Last day; none: as far ahead as anybody knows.")] = None,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Show the sessions of an exchange: hours in UTC, half days, and whether anybody vouches for them yet.

    Example:
      fletching calendar XHKG --start 2026-12-21 --end 2027-01-08
    """
    with reach(url, store, source) as cache:
        frame = cache.sessions(mic, start, end)
    table = Table("session", "open", "break", "close", "settled", "", title=f"sessions of {mic}, UTC", title_justify="left")
    for row in frame.iter_rows(named=True):
        pause = f"{row['break_start']:%H:%M}-{row['break_end']:%H:%M}" if row["break_start"] else ""
        marks = [mark for mark, holds in (("half day", row["half_day"]), (row["status"], row["status"] != "known")) if holds]
        hours = (f"{row['open']:%H:%M}", pause, f"{row['close']:%H:%M}", f"{row['settled']:%H:%M}")
        table.add_row(f"{row['session']:%a %Y-%m-%d}", *hours, f"[yellow]{', '.join(marks)}[/]" if marks else "")
    console.print(table)


def provenance(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    symbols: Annotated[list[str] | None, typer.Argument(help="Symbols; none: all.")] = None,
    start: Annotated[str | None, typer.Option(help="First session.")] = None,
    end: Annotated[str | None, typer.Option(help="Last session.")] = None,
    changes: Annotated[
        bool, typer.Option("--changes", help="Show settled rows that came back changed, instead of fills.")
    ] = False,
    url: UrlOption = None,
    store: StoreOption = None,
    source: SourceOption = None,
) -> None:
    """Show where rows came from: who delivered them, when, by which call, and how they were checked.

    Examples:
      fletching provenance bars_1d 000001.SZ

      fletching provenance bars_1d 000001.SZ --changes
    """
    with reach(url, store, source) as cache:
        frame = (cache.restatements if changes else cache.provenance)(dataset, symbols, start, end)
    with pl.Config(tbl_rows=40, tbl_cols=-1, tbl_width_chars=console.width, tbl_hide_dataframe_shape=True):
        typer.echo(str(frame.drop("fill_id", "digest", "arguments", strict=False)))


def guard(url: UrlOption = None, store: StoreOption = None, source: SourceOption = None) -> None:
    """Show upstream budgets: requests spent and left per family, whether its circuit is open, and when to ask again.

    Example:
      fletching guard --url grpc://127.0.0.1:8815
    """
    with reach(url, store, source) as cache:
        frame = cache.guard()
    table = Table("family", "budget", "spent", "left", "state", "retry at (UTC)", "calls", "failures", "avoided", "why")
    for row in frame.iter_rows(named=True):
        limit = f"{row['spent']:,} of {row['limit']:,}" if row["limit"] is not None else f"{row['spent']:,}"
        colour = {"closed": "green", "half_open": "yellow"}.get(row["state"], "red")
        retry = f"{row['retry_at']:%Y-%m-%d %H:%M}" if row["retry_at"] else ""
        left = "" if row["left"] is None else f"{row['left']:,}"
        counts = (str(row[name]) for name in ("calls", "failures", "avoided"))
        table.add_row(row["family"], row["budget"], limit, left, f"[{colour}]{row['state']}[/]", retry, *counts, row["why"] or "")
    console.print(table if frame.height else "no source here has upstream budgets")
