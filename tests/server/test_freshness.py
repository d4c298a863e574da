"""The life of a cell from before the opening to a year later, and what is served while upstream is down or slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from tests.conftest import SYMBOLS, WAIT_SECONDS, Opener, TableSource, bar, bars, read, read_info, weekdays

from fletching_schemas import Action, FetchRequest, canonical
from fletching_schemas.errors import BadSourceData, SourceThrottled, SourceTimeout, SourceUnavailable
from fletching_server import Engine
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number, from_day_number
from fletching_server.sources import Lifetime
from fletching_server.testing import ManualClock

A, B = SYMBOLS[:2]
TODAY = date(2026, 11, 20)
SHANGHAI = build_calendar("XSHG", TODAY)
HISTORY = [from_day_number(int(day)) for day in SHANGHAI.between(day_number(date(2025, 1, 2)), day_number(date(2027, 3, 31)))]


def at(hour: int, minute: int = 0, day: date = TODAY) -> datetime:
    """Return an instant on the clock of Shanghai."""
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC) - timedelta(hours=8)


def source_of(**rules: Any) -> TableSource:
    return TableSource(canonical("bars_1d", calendar="XSHG", **rules), bars(SYMBOLS, HISTORY))


def state_of(engine: Engine, day: date = TODAY, symbol: str = A) -> str:
    (row,) = engine.act(Action.COVERAGE, {"dataset": "bars_1d", "symbols": [symbol], "start": day, "end": day}).to_pylist()  # type: ignore[union-attr]
    return str(row["state"])


def calls(engine: Engine, start: date = TODAY, end: date = TODAY, **more: Any) -> int:
    return read_info(engine, symbols=A, start=start, end=end, **more)[1].upstream_calls


def settle(engine: Engine) -> None:
    """Wait for what runs in the background."""
    fills = engine._parts.upstream.fills
    with fills._lock:
        flights = {id(flight): flight for row in fills._board.values() for flight in row}
    for flight in flights.values():
        flight.landed.result(WAIT_SECONDS)


# The life of a cell


def test_the_life_of_a_cell(open_store: Opener, clock: ManualClock) -> None:
    clock.set(at(9, 0))
    engine = open_store(source_of())
    told = [gap.reason for gap in read_info(engine, symbols=A, start=TODAY, end=TODAY)[1].gaps]
    assert (told, calls(engine)) == (["future"], 0)  # it has not opened: nobody is asked
    clock.set(at(9, 31))
    assert (calls(engine), state_of(engine)) == (1, "provisional")
    clock.set(at(15, 30))
    assert (calls(engine), state_of(engine)) == (1, "provisional")  # closed, not settled
    clock.set(at(16, 0))
    assert (calls(engine), state_of(engine)) == (1, "provisional")  # settled, and waiting for its second look
    clock.set(at(15, 59, date(2026, 11, 23)))
    assert calls(engine) == 0
    clock.set(at(16, 0, date(2026, 11, 23)))
    assert (calls(engine), state_of(engine)) == (1, "final")
    clock.set(at(16, 0, date(2027, 3, 1)))
    assert calls(engine) == 0


def test_the_second_look_rides_along_with_the_next_session(open_store: Opener, clock: ManualClock) -> None:
    source = source_of()
    engine = open_store(source)
    read(engine, symbols=A, start=date(2026, 11, 16), end=TODAY)
    clock.set(at(18, 0, date(2026, 11, 23)))
    read(engine, symbols=A, start=date(2026, 11, 16), end=date(2026, 11, 23))
    assert [(r.start, r.end) for r in source.requests[1:]] == [(TODAY, date(2026, 11, 23))]


def test_asked_for_fresher_rows_a_settled_session_is_confirmed_at_once(open_store: Opener, clock: ManualClock) -> None:
    engine = open_store(source_of())
    assert calls(engine) == 1
    clock.advance(seconds=61)
    assert (calls(engine, max_age=60), state_of(engine)) == (1, "final")
    clock.advance(seconds=61)
    assert calls(engine, max_age=0) == 0


def test_a_session_that_came_back_changed_is_not_final(open_store: Opener, clock: ManualClock) -> None:
    source = source_of()
    engine = open_store(source)
    calls(engine)
    source.rows[A, TODAY] = bar(A, TODAY, version=1)
    clock.advance(seconds=61)
    assert (calls(engine, max_age=60), state_of(engine)) == (1, "provisional")
    clock.advance(seconds=61)
    assert (calls(engine, max_age=60), state_of(engine)) == (1, "final")


def test_across_the_end_of_what_the_calendar_knows(open_store: Opener, clock: ManualClock) -> None:
    clock.set(at(20, 0, date(2027, 1, 6)))
    engine = open_store(source_of())
    first, last = date(2026, 12, 28), date(2027, 1, 6)
    assert (calls(engine, first, last), state_of(engine, date(2026, 12, 30)), state_of(engine, last)) == (
        1,
        "final",
        "provisional",
    )
    assert calls(engine, first, last) == 0
    for day in (7, 8):  # what nobody vouches for is looked at once a session, in one range
        clock.set(at(20, 0, date(2027, 1, day)))
        assert calls(engine, first, last) == 1
        assert calls(engine, first, last) == 0


def test_after_a_year_final_rows_are_verified_in_the_background(open_store: Opener, clock: ManualClock) -> None:
    source = source_of()
    engine = open_store(source)
    old = date(2026, 3, 2)
    assert (calls(engine, old, old), state_of(engine, old)) == (1, "final")
    clock.advance(days=366)
    source.rows[A, old] = bar(A, old, version=7)
    before = read(engine, symbols=A, start=old, end=old)
    settle(engine)
    assert len(source.requests) == 2
    assert read(engine, symbols=A, start=old, end=old).to_pylist() != before.to_pylist()
    (change,) = engine.act(Action.RESTATEMENTS, {"dataset": "bars_1d"}).to_pylist()  # type: ignore[union-attr]
    assert (change["symbol"], change["session"], change["rule"]) == (A, old, "replace")
    settle(engine)
    assert len(source.requests) == 2


# Stale while revalidating, stale while upstream is down


@pytest.fixture
def noon(open_store: Opener, clock: ManualClock) -> Iterator[tuple[Engine, TableSource]]:
    clock.set(at(12, 0))
    source = source_of(stale_seconds=600.0)
    engine = open_store(source)
    read(engine, symbols=A, start=TODAY, end=TODAY)
    source.rows[A, TODAY] = bar(A, TODAY, version=1)
    yield engine, source
    settle(engine)


def test_a_slightly_old_answer_comes_at_once_while_it_is_refreshed(noon: tuple[Engine, TableSource], clock: ManualClock) -> None:
    engine, source = noon
    clock.advance(seconds=301)
    source.block()
    table, info = read_info(engine, symbols=A, start=TODAY, end=TODAY)  # it does not wait for the source
    assert (table["volume"][0].as_py() % 100, info.stale, info.age_seconds, info.upstream_calls) == (0, True, 301.0, 0)
    assert read_info(engine, symbols=A, start=TODAY, end=TODAY)[1].stale
    source.unblock()
    settle(engine)
    table, info = read_info(engine, symbols=A, start=TODAY, end=TODAY)
    assert (table["volume"][0].as_py() % 100, info.stale, info.age_seconds) == (1, False, 0.0)
    assert len(source.requests) == 2


def test_beyond_that_the_reader_waits(noon: tuple[Engine, TableSource], clock: ManualClock) -> None:
    engine, _ = noon
    clock.advance(seconds=901)
    table, info = read_info(engine, symbols=A, start=TODAY, end=TODAY)
    assert (table["volume"][0].as_py() % 100, info.stale, info.upstream_calls) == (1, False, 1)


def test_a_reader_with_demands_waits_too(noon: tuple[Engine, TableSource], clock: ManualClock) -> None:
    engine, _ = noon
    clock.advance(seconds=301)
    assert read_info(engine, symbols=A, start=TODAY, end=TODAY, max_age=300)[1].upstream_calls == 1


def test_a_refresh_that_fails_is_not_tried_at_every_read(noon: tuple[Engine, TableSource], clock: ManualClock) -> None:
    engine, source = noon
    clock.advance(seconds=301)
    source.error = RuntimeError("down")
    for _ in range(5):
        assert read(engine, symbols=A, start=TODAY, end=TODAY).num_rows == 1
        settle(engine)
    assert len(source.requests) == 2


@pytest.mark.parametrize("error", [SourceUnavailable("down"), SourceTimeout("hung"), SourceThrottled("429", at(13))], ids=repr)
def test_while_upstream_is_down_older_rows_come_with_their_age(open_store: Opener, clock: ManualClock, error: Exception) -> None:
    clock.set(at(12, 0))
    source = source_of()
    engine = open_store(source)
    first = read(engine, symbols=A, start=date(2026, 11, 16), end=TODAY)
    source.error = error
    clock.advance(minutes=30)
    table, info = read_info(engine, symbols=A, start=date(2026, 11, 16), end=TODAY)
    assert table.equals(first)
    assert (info.stale, info.age_seconds, info.symbols[A].state, info.symbols[A].reason) == (True, 1800.0, "ok", "stale")
    assert str(error) in info.symbols[A].message
    assert read(engine, symbols=A, start=date(2026, 11, 16), end=TODAY).equals(first)
    assert engine.stats.snapshot()["stale_reads"] == 2
    with pytest.raises(type(error)):
        read(engine, symbols=A, start=date(2026, 11, 16), end=TODAY, max_age=600)
    with pytest.raises(type(error)):  # nothing older is there for what was never held
        read(engine, symbols=A, start=date(2026, 11, 9), end=TODAY)


def test_a_wrong_answer_is_no_excuse_for_an_old_one(open_store: Opener, clock: ManualClock) -> None:
    clock.set(at(12, 0))
    source = source_of()
    engine = open_store(source)
    calls(engine)
    clock.advance(minutes=30)
    source.answer = lambda _request: "nonsense"
    with pytest.raises(ValueError, match="return a pyarrow"):
        calls(engine)


# What is asked


def test_gaps_before_inside_and_after_what_is_held_are_one_range_each(open_store: Opener) -> None:
    source = source_of()
    engine = open_store(source, source_calls=1)
    for first, last in ((date(2026, 9, 14), date(2026, 9, 18)), (date(2026, 10, 19), date(2026, 10, 23))):
        read(engine, symbols=A, start=first, end=last)
    read(engine, symbols=A, start=date(2026, 9, 7), end=date(2026, 10, 30))
    assert [(r.start, r.end) for r in source.requests[2:]] == [
        (date(2026, 10, 26), date(2026, 10, 30)),
        (date(2026, 9, 21), date(2026, 10, 16)),  # across Golden Week
        (date(2026, 9, 7), date(2026, 9, 11)),
    ]


class Living(TableSource):
    """A source that knows when its symbols were listed and delisted."""

    def lifetimes(self, dataset: str) -> dict[str, Lifetime]:
        assert dataset == "bars_1d"
        return {A: Lifetime(date(2026, 11, 10), None), B: Lifetime(None, date(2026, 11, 12))}


def test_outside_of_its_life_a_symbol_is_not_asked_for(open_store: Opener) -> None:
    dataset = canonical("bars_1d", calendar="XSHG")
    engine = open_store(source := Living(dataset, bars([A, B], weekdays(date(2026, 11, 10), date(2026, 11, 12)))))
    _, info = read_info(engine, symbols=[A, B], start=date(2026, 11, 2), end=date(2026, 11, 17))
    assert {(r.symbols, r.start, r.end) for r in source.requests} == {
        ((A,), date(2026, 11, 10), date(2026, 11, 17)),
        ((B,), date(2026, 11, 2), date(2026, 11, 12)),
    }
    assert [str(gap) for gap in info.gaps] == [
        "000001.SZ 2026-11-02..2026-11-09 not_listed_yet",
        "000001.SZ 2026-11-13..2026-11-17 nothing_upstream",
        "000002.SZ 2026-11-02..2026-11-09 nothing_upstream",
        "000002.SZ 2026-11-13..2026-11-17 delisted",
    ]
    _, early = read_info(engine, symbols=A, start=date(2026, 10, 12), end=date(2026, 10, 16))
    assert (early.symbols[A].state, early.symbols[A].reason, early.upstream_calls) == ("empty", "not_listed_yet", 0)


def test_what_the_source_no_longer_has_is_out_of_reach(open_store: Opener) -> None:
    dataset = canonical("bars_1d", calendar="XSHG", recent_sessions=5, range_pushdown=False)
    source = TableSource(dataset, bars([A], HISTORY))
    engine = open_store(source)
    _, info = read_info(engine, symbols=A, start=date(2026, 11, 9), end=TODAY)
    assert [(r.start, r.end) for r in source.requests] == [(date(2026, 11, 16), TODAY)]
    assert [str(gap) for gap in info.gaps] == ["000001.SZ 2026-11-09..2026-11-13 out_of_reach"]


def test_a_list_of_the_newest_takes_nothing_back(open_store: Opener, clock: ManualClock) -> None:
    dataset = replace(canonical("bars_1d", calendar="XSHG"), accumulates=True, recent_sessions=3, range_pushdown=False)
    source = TableSource(dataset, bars([A], [TODAY]))
    engine = open_store(source)
    assert read(engine, symbols=A, start=date(2026, 11, 16), end=TODAY).num_rows == 1
    source.rows.clear()
    source.rows |= bars([A], [date(2026, 11, 23)])
    clock.set(at(20, 0, date(2026, 11, 23)))
    assert read(engine, symbols=A, start=date(2026, 11, 16), end=date(2026, 11, 23)).num_rows == 2


def test_many_symbols_that_miss_the_latest_session_are_one_sweep(open_store: Opener, clock: ManualClock) -> None:
    source = source_of(sweep_symbols=4)
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[:3], start=TODAY, end=TODAY)
    assert [len(r.symbols) for r in source.requests] == [1, 1, 1]  # too few
    read(engine, symbols=SYMBOLS, start=date(2026, 11, 19), end=date(2026, 11, 19))
    assert {len(r.symbols) for r in source.requests[3:]} == {1}  # not the latest session
    source.requests.clear()
    clock.set(at(20, 0, date(2026, 11, 23)))
    read(engine, symbols=SYMBOLS, start=date(2026, 11, 23), end=date(2026, 11, 23))
    assert [r.symbols for r in source.requests] == [SYMBOLS]
    clock.set(at(9, 0, date(2026, 11, 25)))  # the quotes of the 24th are about to be reset
    source.requests.clear()
    read(engine, symbols=SYMBOLS, start=date(2026, 11, 24), end=date(2026, 11, 24))
    assert [len(r.symbols) for r in source.requests] == [1] * 5


def test_a_market_that_is_swept_every_day_costs_one_call_a_day(open_store: Opener, clock: ManualClock) -> None:
    source = source_of(sweep_symbols=4)
    for (symbol, day), row in source.rows.items():
        before = source.rows.get((symbol, HISTORY[HISTORY.index(day) - 1]))
        row["pre_close"] = before["close"] if before else None  # type: ignore[call-overload]
    split = source.rows[SYMBOLS[1], date(2026, 11, 24)]
    split["pre_close"] = 1.0  # type: ignore[call-overload]
    engine = open_store(source)
    for day in weekdays(date(2026, 11, 23), date(2026, 11, 26)):
        clock.set(at(20, 0, day))
        source.requests.clear()
        table = read(engine, symbols=SYMBOLS, start=date(2026, 11, 23), end=day)
        assert table.num_rows == len(SYMBOLS) * (day.day - 22)
        assert source.requests[0] == FetchRequest("bars_1d", SYMBOLS, day, day)
        settle(engine)
        others = [(r.symbols, r.start) for r in source.requests[1:]]  # the one that its successor did not confirm
        assert others == ([((SYMBOLS[1],), date(2026, 11, 23))] if day.day == 24 else [])
    assert {state_of(engine, day, symbol) for day in weekdays(date(2026, 11, 23), date(2026, 11, 25)) for symbol in SYMBOLS} == {
        "final"
    }


# Clocks that jump


def test_a_clock_that_ran_ahead_freezes_nothing(open_store: Opener, clock: ManualClock) -> None:
    clock.set(at(12, 0))
    source = source_of()
    engine = open_store(source)
    clock.set(at(12, 0, date(2027, 6, 1)))
    calls(engine)
    clock.set(at(12, 0))
    source.rows[A, TODAY] = bar(A, TODAY, version=3)
    assert calls(engine) == 1
    assert read(engine, symbols=A, start=TODAY, end=TODAY)["volume"][0].as_py() % 100 == 3


def test_a_clock_that_was_put_back_asks_for_nothing_final(open_store: Opener, clock: ManualClock) -> None:
    engine = open_store(source_of())
    old = (date(2026, 11, 2), date(2026, 11, 6))
    calls(engine, *old)
    clock.set(at(12, 0, date(2026, 11, 10)))
    assert calls(engine, *old) == 0


def test_progress_counts_calls_due_done_and_failed(open_store: Opener) -> None:
    source = source_of()
    source.hanging = lambda request: request.symbols != (A,)
    source.block()
    engine = open_store(source, source_calls=8)
    reading = threading.Thread(
        target=lambda: read_info(engine, symbols=SYMBOLS, start=TODAY, end=TODAY, progress_id="mine"), daemon=True
    )
    reading.start()
    source.wait_for_calls(5)
    seen = set()
    while (facts := tuple(engine.act(Action.PROGRESS, {"id": "mine"}).values())) != (5, 1, 0):
        seen.add(facts)
        assert reading.is_alive(), seen
    source.unblock()
    reading.join(WAIT_SECONDS)
    assert engine.act(Action.PROGRESS, {"id": "mine"}) == {"due": 0, "done": 0, "failed": 0}


def test_one_bad_symbol_of_a_call_is_found_by_halving(open_store: Opener) -> None:
    names = [f"{number:06}.SZ" for number in range(1, 51)]
    source = TableSource(canonical("bars_1d", calendar="XSHG", symbols_per_call=50), bars(names, [TODAY]))

    def answer(request: FetchRequest) -> Any:
        if "000017.SZ" in request.symbols:
            raise BadSourceData("000017.SZ has a broken file")
        return source.table(request)

    source.answer = answer
    engine = open_store(source)
    table, info = read_info(engine, symbols=names, start=TODAY, end=TODAY)
    assert (table.num_rows, list(info.failed)) == (49, ["000017.SZ"])
    assert len(source.requests) <= 13
