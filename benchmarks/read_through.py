"""Filling from upstream: a year of daily bars of 500 symbols, from a simulated source that answers without delay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import fletching
from benchmarks.figures import Row, Spread, scaled, seconds
from benchmarks.servers import fletching_server
from fletching_server import arrivals, disk, parquet
from fletching_server.catalogue import Catalogue
from fletching_server.desk import Desk
from fletching_server.sources.sim import SimSource

SYMBOLS: Final = 500
YEAR: Final = ("2024-01-01", "2024-12-31")
COUNTERS: Final = ("upstream_calls", "filled_rows", "fetch_seconds", "store_seconds")

Filled = tuple[float, dict[str, float]]


def run(effort: float = 1.0) -> list[Row]:
    """Return symbols per second through the whole path over Flight, and where the time of one fill goes."""
    rounds = scaled(10, effort)
    with TemporaryDirectory(prefix="fb-") as name:
        return [*_over_flight(Path(name), rounds), *_stages(Path(name), rounds)]


def _market(turn: int) -> dict[str, Any]:
    return {"symbols": SYMBOLS, "seed": turn, "prefix": f"m{turn}_", "name": f"sim{turn}"}


def _over_flight(folder: Path, rounds: int) -> list[Row]:
    """Fill each market once while its rows must still be made up, forget it, then fill it again in both ways."""
    names = [f"m{turn}_bars_1d" for turn in range(rounds)]
    symbols = SimSource(symbols=SYMBOLS).symbols("bars_1d")
    with fletching_server(folder, *map(_market, range(rounds))) as server, fletching.connect(server.tcp) as cache:
        made_up = [_filled(cache, name, partial(_at_once, cache, name)) for name in names]
        at_once, one_by_one = [], []
        for name in names:
            at_once.append(_filled(cache, name, partial(_at_once, cache, name)))
            one_by_one.append(_filled(cache, name, partial(_one_by_one, cache, name, symbols)))
    return [
        _row("1 read of 500, source computes", made_up, "the simulated source: it computes decades of each symbol"),
        _row("1 read of 500, source prepared", at_once, "Python on two cores: ten fills in four threads share the GIL"),
        _row("500 reads of 1, source prepared", one_by_one, "a file and a synced commit per symbol, and folding beside"),
    ]


def _filled(cache: fletching.Cache, dataset: str, read: Callable[[], object]) -> Filled:
    """Return the seconds that *read* took and what the server counted meanwhile; afterwards nothing is held."""
    before = cache.stats()
    took = seconds(read)
    after = cache.stats()
    cache.delete(dataset)
    return took, {name: after[name] - before.get(name, 0) for name in COUNTERS}


def _at_once(cache: fletching.Cache, dataset: str) -> None:
    if cache.read(dataset, None, *YEAR)["symbol"].n_unique() < 0.9 * SYMBOLS:  # some are not listed any more
        raise RuntimeError(f"{dataset}: symbols are missing")


def _one_by_one(cache: fletching.Cache, dataset: str, symbols: Sequence[str]) -> None:
    for symbol in symbols:
        cache.read(dataset, symbol, *YEAR)


def _row(what: str, found: Sequence[Filled], limit: str) -> Row:
    parts = {name: Spread.of([told[name] for _, told in found]).median for name in COUNTERS}
    return Row(what, "symbols/s", Spread.of([SYMBOLS / took for took, _ in found]), limit=limit, parts=parts)


# Where the time goes: embedded and one call at a time, so that no stage waits for another one's lock


def _stages(folder: Path, rounds: int) -> list[Row]:
    rows = []
    for per_call in (50, 1):
        source = SimSource(symbols=50, symbols_per_call=per_call)
        with fletching.open(folder / f"stages-{per_call}", [source], source_calls=1, compact_idle_seconds=3600) as cache:
            found = [_timed(cache) for _ in range(rounds + 1)][1:]  # the first one makes the rows up
        for stage in found[0]:
            spread = Spread.of([1e3 * times[stage] * per_call / 50 for times in found])
            rows.append(Row(f"a call for {per_call}: {stage}", "ms", spread))
    return rows


def _timed(cache: fletching.Cache) -> dict[str, float]:
    """Return the seconds that each stage of filling 50 symbols took."""
    times: dict[str, float] = {}
    with ExitStack() as opened:
        for stage, owner, name in (
            ("fetch in the source", Desk, "fetch"),
            ("checks", arrivals, "admit_fetched"),
            ("Parquet", parquet, "encode"),
            ("file", disk, "publish"),
            ("commit", Catalogue, "commit"),
        ):
            opened.enter_context(_stopwatch(times, stage, owner, name))
        whole = seconds(lambda: cache.read("bars_1d", None, *YEAR))
    times["rest: plan, threads, rows out"] = whole - sum(times.values())
    cache.delete("bars_1d")
    return times


@contextmanager
def _stopwatch(times: dict[str, float], stage: str, owner: Any, name: str) -> Iterator[None]:
    inner = getattr(owner, name)
    times[stage] = 0.0

    def timed(*arguments: Any, **named: Any) -> Any:
        answer: list[Any] = []
        times[stage] += seconds(lambda: answer.append(inner(*arguments, **named)))
        return answer[0]

    with patch.object(owner, name, timed):
        yield
