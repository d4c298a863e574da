"""What adjusting prices costs: the same read with and without, in turns, of a symbol, of a universe, and of a whole partition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import fletching
from benchmarks.figures import Row, compared, interleaved, scaled, seconds
from benchmarks.servers import fletching_server
from fletching_schemas import Action

MARKET: Final = {"symbols": 5000}
YEAR: Final = ("2024-01-01", "2024-12-31")
MOST_RATIO: Final = 1.5
LIMIT: Final = "a read that comes again: its prices lie in memory and take the place of the raw ones; the first two multiply them"


def run(effort: float = 1.0) -> list[Row]:
    """Return milliseconds of adjusted reads, and their ratio to the same reads without, over Flight and embedded."""
    with TemporaryDirectory(prefix="fb-") as name, ExitStack() as opened:
        folder = Path(name)
        server = opened.enter_context(fletching_server(folder, MARKET, memory="2GiB"))
        flight = opened.enter_context(fletching.connect(server.tcp, plane="flight"))
        config = folder / "sim.toml"
        config.write_text("symbols = 5000\n")
        embedded = opened.enter_context(fletching.open(folder / "embedded", [f"sim:{config}"], memory="2GiB"))
        rows = []
        for plane, cache in (("flight", flight), ("embedded", embedded)):
            cache.read("bars_1d", None, *YEAR)
            cache._transport.act(Action.COMPACT, {"dataset": "bars_1d"})  # noqa: SLF001  # compaction is no verb of the client
            rows += _rows(plane, cache, effort)
        return rows


def _rows(plane: str, cache: fletching.Cache, effort: float) -> list[Row]:
    symbols = sorted(cache.read("bars_1d", None, *YEAR, ["symbol"])["symbol"].unique())
    reads = {
        "1 symbol x 1 year": (symbols[0], 400),
        "200 symbols x 1 year": (symbols[::25], 60),
        "all symbols x 1 year": (None, 12),
    }
    return [_row(f"{what}, {plane}", cache, asked, scaled(rounds, effort)) for what, (asked, rounds) in reads.items()]


def _row(what: str, cache: fletching.Cache, symbols: object, rounds: int) -> Row:
    def read(adjust: str | None) -> float:
        return 1e3 * seconds(lambda: cache.read("bars_1d", symbols, *YEAR, adjust=adjust))  # type: ignore[arg-type]

    contenders: dict[str, Callable[[], float]] = {"adjusted": partial(read, "qfq"), "raw": partial(read, None)}
    ours, peer, ratio = compared(interleaved(contenders, rounds), "adjusted", "raw")
    return Row(what, "ms", ours, peer, ratio, f"<= {MOST_RATIO}", ratio.median <= MOST_RATIO, LIMIT)
