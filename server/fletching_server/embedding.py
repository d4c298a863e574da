"""The engine for ``fletching.open``: sources as objects or as names, settings as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fletching_server.clock import Clock
from fletching_server.engine import Engine
from fletching_server.logs import configure_where_nobody_has
from fletching_server.settings import load_settings
from fletching_server.sources import Source
from fletching_server.sources.registry import make_source


def open_engine(
    store: str | Path, sources: Sequence[Source | str] = (), clock: Clock | None = None, *, shares: bool = False, **settings: Any
) -> Engine:
    """Return an engine over the folder *store* in this process; *settings* are those of ``Settings``, *shares* of ``Engine``."""
    configure_where_nobody_has()
    made = [make_source(source) if isinstance(source, str) else source for source in sources]
    return Engine(load_settings(store=Path(store), **settings), made, clock, shares=shares)
