"""``fletching delete``, ``retention``, ``compact`` and ``vacuum``: what stays of a dataset, and in which shape."""

from __future__ import annotations

from typing import Annotated

import typer

from fletching_server.cli.access import StoreOption, UrlOption, reach

_DatasetArgument = Annotated[str, typer.Argument(help="Name of the dataset.")]


def delete(
    dataset: _DatasetArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Delete a user table with its past, or all that is held of a sourced dataset. It cannot be undone."""
    if not yes:
        typer.confirm(f"Delete {dataset} with all its rows and its past?", abort=True, err=True)
    with reach(url, store, None) as cache:
        typer.echo(f"{cache.delete(dataset)['deleted_rows']:,} rows of {dataset} are gone")


def retention(
    dataset: _DatasetArgument,
    days: Annotated[float | None, typer.Option(help="Days for which the past is kept; 0: not at all; none: the setting.")] = None,
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Say how long the past of a dataset is kept, so that reads as of an instant or a generation are answered.

    Example: fletching retention factors --days 30 --store store
    """
    with reach(url, store, None) as cache:
        typer.echo(f"the past of {dataset} is kept for {cache.retention(dataset, days)['history_days']:g} days")


def compact(dataset: _DatasetArgument, url: UrlOption = None, store: StoreOption = None) -> None:
    """Fold the journal of a dataset into its partitions now; a server does it by itself in quiet moments."""
    with reach(url, store, None) as cache:
        typer.echo(f"{cache.compact(dataset)['folded_segments']:,} segments of {dataset} are folded")


def vacuum(
    dataset: Annotated[str | None, typer.Argument(help="Name of the dataset; none: all.")] = None,
    days: Annotated[float | None, typer.Option(help="Forget what is older than this; none: than is kept.")] = None,
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Free the disk of the past that is kept no longer; what is held now stays. A server does it once an hour.

    Example: fletching vacuum --days 0 --store store
    """
    with reach(url, store, None) as cache:
        typer.echo(f"{cache.vacuum(dataset, days)['freed_bytes'] / 1e6:,.1f} MB are free")
