"""The server side of Fletching: the engine, its tiers, its sources, and the edges that serve it.

    cli, __main__           commands                       testing      contract suites and a clock for users' tests
    service                 a server's life                flight       the Flight edge: decode, call, encode
    engine, actions         the verbs                      assembly     puts the parts together
    reads, fills, writes    the three paths                compaction, repair, verify, inspection
    plan, plans             what a request resolves to     completion, holding     gaps closed, files held
    hot, books, cold        the tiers                      desk         the sources of one engine
    sweeping, hot_list      beside memory; after a start   policy       what deserves memory
    store, catalogue        the durable side               changes, tables, snapshot, parquet, disk
    calendars, coverage, admission, image, pieces, batches, spans, refills     pure parts
    settings, stats, clock, logs

``fletching.open`` uses ``open_engine``; everything else is for those who extend the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fletching_server.embedding import open_engine
    from fletching_server.engine import Engine
    from fletching_server.settings import Settings

__all__ = ["Engine", "Settings", "open_engine"]

_HOMES = {"Engine": "engine", "Settings": "settings", "open_engine": "embedding"}


def __getattr__(name: str) -> Any:
    """Return a public name from its module, on first use: a source's worker process needs no engine."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
