"""How a command reaches a cache: a server by its address, or a store opened in this process.

The one place where the server's package imports the client's: the command line is a user of the client like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import fletching
from fletching import Cache, connect
from fletching_schemas.errors import InvalidRequest
from fletching_server.settings import load_settings

__all__ = ["Cache", "SourceOption", "StoreOption", "UrlOption", "connect", "reach"]

UrlOption = Annotated[
    str | None, typer.Option("--url", help="Address of the server.", show_default="$FLETCHING_URL or grpc://127.0.0.1:8815")
]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Open this store in this process instead of asking a server.")]
SourceOption = Annotated[list[str] | None, typer.Option("--source", help="With --store: NAME or NAME:CONFIG.toml, repeatable.")]


def reach(url: str | None, store: Path | None, sources: list[str] | None) -> Cache:
    """Return the cache that the options name."""
    if store is None:
        if sources:
            raise InvalidRequest("--source goes with --store; a server has its own sources")
        return connect(url)
    if url is not None:
        raise InvalidRequest("give --url or --store, not both")
    if not store.is_dir() and not sources:
        raise InvalidRequest(f"there is no store {store}; `fletching serve --store {store}` makes one")
    settings: dict[str, Any] = load_settings(store=store).model_dump(exclude={"store", "sources", "listen"})
    return fletching.open(store, sources or [], **settings)
