"""Explicit wishes: what a read would need is there before it asks, people go first, and what does not fit is refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from tests.conftest import SYMBOLS, WAIT_SECONDS, Background, Opener, TableSource, bars, read, read_info, weekdays, write

from fletching_schemas import Action, Dataset, canonical
from fletching_schemas.errors import InvalidRequest, SourceUnavailable, UnknownColumn, UnknownDataset
from fletching_server import Engine
from fletching_server.needs import guessed_bytes

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
WEEK = {"start": "2026-11-02", "end": "2026-11-06"}


def warm(engine: Engine, **wish: Any) -> dict[str, Any]:
    told = engine.act(Action.WARM, {"dataset": "bars_1d", **WEEK, **wish})
    assert isinstance(told, dict)
    return told


def test_what_was_warmed_is_read_from_memory_without_a_call(engine: Engine, source: TableSource) -> None:
    told = warm(engine, symbols=SYMBOLS[:2])
    assert told["cells"] == 10
    assert (told["upstream_calls"], told["rows"]) == (2, 10)
    assert told["loaded_files"] == 2
    assert told["failed_symbols"] == 0
    rows, info = read_info(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    assert rows.num_rows == 10
    assert (info.tier, info.upstream_calls) == ("hot", 0)
    assert len(source.requests) == 2


def test_a_second_wish_finds_everything_there(engine: Engine, source: TableSource) -> None:
    warm(engine, symbols=SYMBOLS[0])
    told = warm(engine, symbols=SYMBOLS[0])
    assert (told["cells"], told["upstream_calls"], told["loaded_files"], told["held_files"]) == (0, 0, 0, 1)
    assert len(source.requests) == 1


def test_warming_the_disk_leaves_memory_alone(engine: Engine) -> None:
    told = warm(engine, symbols=SYMBOLS[0], memory=False)
    assert (told["upstream_calls"], told["loaded_files"]) == (1, 0)
    assert engine.hot.facts()["hot_entries"] == 0
    assert read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI)[1].tier == "cold"


def test_warming_is_no_use_and_no_read(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[0])
    figures = engine.act(Action.STATS, {})
    assert isinstance(figures, dict)
    assert (figures["reads"], figures["partial_reads"], figures["upstream_calls"]) == (0, 0, 1)


def test_explaining_a_wish_does_nothing(engine: Engine, source: TableSource) -> None:
    told = warm(engine, symbols=SYMBOLS, explain=True)
    assert (told["symbols"], told["cells"], told["calls"]) == (5, 25, 5)
    assert 0 < told["disk_bytes"] < told["bytes"] == told["missing_bytes"]
    assert source.requests == []


def test_what_does_not_fit_in_memory_is_refused_with_both_sizes(open_store: Opener, daily: Dataset) -> None:
    spring = weekdays(date(2025, 2, 10), date(2025, 3, 28))
    engine = open_store(TableSource(daily, bars(SYMBOLS, spring)), memory="10KiB")
    with pytest.raises(InvalidRequest, match=r"takes about .*KiB in memory, which holds 9.2KiB: name fewer .*memory=False"):
        warm(engine, symbols=SYMBOLS, start="2025-02-10", end="2025-03-28")
    assert engine.desk.source("bars_1d").requests == []  # type: ignore[union-attr]
    told = warm(engine, symbols=SYMBOLS, start="2025-02-10", end="2025-03-28", memory=False)
    assert told["rows"] == 5 * len(spring)


def test_what_does_not_fit_on_the_disk_is_refused(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, disk="1KB")
    with pytest.raises(InvalidRequest, match=r"takes about .* on disk, where 800B are left to fetched rows.*raise `disk`"):
        warm(engine, symbols=SYMBOLS)


def test_user_tables_can_be_loaded(open_store: Opener) -> None:
    engine = open_store()
    rows = [{"symbol": name, "trading_date": MON, "score": 1.0} for name in "abc"]
    write(engine, "scores", rows, keys=["symbol", "trading_date"])
    engine.act(Action.EVICT, {})
    told = warm(engine, dataset="scores")
    assert (told["cells"], told["loaded_files"]) == (0, 1)
    assert read_info(engine, "scores")[1].tier == "hot"


def test_symbols_that_fail_are_told_and_the_others_are_there(engine: Engine, source: TableSource) -> None:
    def answer(request: Any) -> Any:
        if request.symbols[0] == SYMBOLS[0]:
            raise KeyError("nothing there")
        return source.table(request)

    source.answer = answer
    told = warm(engine, symbols=SYMBOLS[:2])
    assert told["failed_symbols"] == 1
    assert "KeyError" in told["failed"][SYMBOLS[0]]
    assert read_info(engine, symbols=SYMBOLS[1], start=MON, end=FRI)[1].tier == "hot"


def test_where_nothing_can_be_fetched_the_error_is_raised(engine: Engine, source: TableSource) -> None:
    source.error = RuntimeError("down")
    with pytest.raises(SourceUnavailable, match="RuntimeError: down"):
        warm(engine, symbols=SYMBOLS[0])


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({"dataset": "bars_9d"}, UnknownDataset, "bars_9d"),
        ({"symbols": SYMBOLS[0], "columns": ["nope"]}, UnknownColumn, "nope"),
        ({"memory": "yes"}, InvalidRequest, "memory='yes'; it is true or false"),
        ({"as_of": 3}, InvalidRequest, "unknown argument as_of; there are adjust, "),
        ({"symbols": SYMBOLS[0], "adjust": "qfq"}, InvalidRequest, "cannot be adjusted"),
    ],
)
def test_a_wrong_wish_is_refused(engine: Engine, wish: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        warm(engine, **wish)


def test_factors_are_warmed_with_prices_that_are_to_be_adjusted(open_store: Opener) -> None:
    engine = open_store("sim")
    told = warm(engine, symbols=["600000.SH"], adjust="qfq")
    assert told["upstream_calls"] == 2
    _, info = read_info(engine, symbols="600000.SH", start=MON, end=FRI, adjust="qfq")
    assert (info.tier, info.upstream_calls) == ("hot", 0)


# People first


def test_a_read_goes_before_the_calls_of_a_wish(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, source_calls=1)
    submitted = Submitted(engine)
    source.block()
    wish = Background(lambda: warm(engine, symbols=SYMBOLS[:4]))
    source.wait_for_calls(1)
    submitted.wait_for(4)
    reading = Background(lambda: read(engine, symbols=SYMBOLS[4], start=MON, end=FRI))
    submitted.wait_for(5)
    source.unblock()
    assert reading.result().num_rows == 5
    assert wish.result()["rows"] == 20
    assert source.requests[1].symbols == (SYMBOLS[4],)


def test_a_wish_never_has_the_last_turn_where_there_are_several(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, source_calls=3)
    submitted = Submitted(engine)
    source.hanging = lambda request: request.symbols[0] != SYMBOLS[4]
    source.block()
    wish = Background(lambda: warm(engine, symbols=SYMBOLS[:4]))
    source.wait_for_calls(2)
    submitted.wait_for(4)
    assert read(engine, symbols=SYMBOLS[4], start=MON, end=FRI).num_rows == 5  # while two calls of the wish hang
    assert len(source.requests) == 3
    source.unblock()
    assert wish.result()["rows"] == 20


def test_a_read_joins_the_call_that_a_wish_has_under_way(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    source.block()
    wish = Background(lambda: warm(engine, symbols=SYMBOLS[0]))
    source.wait_for_calls(1)
    reading = Background(lambda: read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI))
    source.unblock()
    rows, _ = reading.result()
    assert rows.num_rows == 5
    assert wish.result()["rows"] == 5
    assert len(source.requests) == 1


def test_a_read_asks_itself_where_the_call_of_a_wish_that_it_joined_failed(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    failing = threading.Event()

    def answer(request: Any) -> Any:
        if not failing.is_set():
            failing.set()
            raise RuntimeError("only the first")
        return source.table(request)

    source.answer = answer
    source.block()
    wish = Background(lambda: warm(engine, symbols=SYMBOLS[0]))
    source.wait_for_calls(1)
    joined, promote = threading.Event(), engine._parts.upstream.fills._promote

    def promoted(flight: Any) -> None:
        promote(flight)
        joined.set()

    engine._parts.upstream.fills._promote = promoted  # type: ignore[method-assign]
    reading = Background(lambda: read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI))
    assert joined.wait(WAIT_SECONDS)
    source.unblock()
    rows, info = reading.result()
    assert rows.num_rows == 5
    assert not info.failed
    with pytest.raises(SourceUnavailable):
        wish.result()


class Submitted:
    """The calls that were handed in, counted beside the condition on which their threads wait."""

    def __init__(self, engine: Engine) -> None:
        (turns,) = engine._parts.upstream.fills._turns.values()
        self._submit, self._changed, self._count = turns.submit, threading.Condition(), 0
        turns.submit = self._counted  # type: ignore[method-assign]

    def _counted(self, *args: Any, **more: Any) -> None:
        self._submit(*args, **more)
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, WAIT_SECONDS), f"{self._count} calls were handed in"


def test_minute_bars_are_counted_by_their_files(open_store: Opener) -> None:
    engine = open_store("sim")
    wish = {"dataset": "bars_1m", "symbols": ["600000.SH"], "start": "2026-11-03", "end": "2026-11-04", "explain": True}
    guess = warm(engine, **wish)["bytes"]
    read(engine, "bars_1m", "600000.SH", date(2026, 11, 2), date(2026, 11, 2))
    known = warm(engine, **wish)["bytes"]
    warm(engine, **{**wish, "explain": False})
    true = warm(engine, **wish)["bytes"]
    assert true / 3 < guess < true * 3
    assert true * 0.7 < known < true * 1.4


def test_needs_of_datasets_of_instants_are_larger(daily: Dataset) -> None:
    minutes = canonical("bars_1m", calendar="XSHG")
    assert guessed_bytes(minutes) > 100 * guessed_bytes(daily)
    assert guessed_bytes(replace(daily, description="x")) == guessed_bytes(daily)
