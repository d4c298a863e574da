from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import (
    SYMBOLS,
    Background,
    Opener,
    TableSource,
    bar,
    bars,
    expected,
    in_threads,
    read,
    read_info,
    weekdays,
)

from fletching_schemas import Action, Dataset, canonical
from fletching_schemas.errors import (
    BadSourceData,
    InternalError,
    ServerClosing,
    SourceTimeout,
    SourceUnavailable,
    StoreUnwritable,
)
from fletching_server import Engine
from fletching_server.desk import MOST_ABANDONED
from fletching_server.testing import ManualClock

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
TODAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)  # 12:00 in Shanghai: today's session is under way


def held_rows(engine: Engine) -> int:
    return sum(file.rows for file in engine.store.state("bars_1d").files)


def known(engine: Engine) -> dict[str, Any]:
    return dict(engine.store.state("bars_1d").coverage)


def joined(engine: Engine, symbol: str) -> int:
    """Return how many flights of *symbol* are on the board."""
    return len(engine._parts.upstream.fills._board.get(("bars_1d", symbol), ()))


# One flight per cell


def test_thirty_two_who_ask_at_once_cost_one_call_and_get_the_same(engine: Engine, source: TableSource) -> None:
    source.block()
    source.wait = 0  # type: ignore[attr-defined]
    calls = [Background(lambda: read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)) for _ in range(32)]
    source.wait_for_calls(1)
    source.unblock()
    answers = [call.result() for call in calls]
    assert len(source.requests) == 1
    assert all(answer.equals(expected(source.dataset, source.rows, SYMBOLS[:1], MON, FRI)) for answer in answers)


def test_threads_that_start_together_ask_for_every_cell_once(engine: Engine, source: TableSource) -> None:
    def ask(number: int) -> pa.Table:
        return read(engine, symbols=[SYMBOLS[number % 3], SYMBOLS[(number + 1) % 3]], start=MON, end=FRI)

    for number, answer in enumerate(in_threads(12, ask)):
        symbols = [SYMBOLS[number % 3], SYMBOLS[(number + 1) % 3]]
        assert answer.equals(expected(source.dataset, source.rows, symbols, MON, FRI))
    assert max(Counter(source.cells_asked()).values()) == 1


def test_what_landed_between_a_look_and_the_call_is_not_fetched_again(
    engine: Engine, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    fills = engine._parts.upstream.fills
    real = fills.close_gaps

    def late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(fills, "close_gaps", real)
        read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)  # somebody else's read, from its beginning to its end
        return real(*arguments, **options)

    monkeypatch.setattr(fills, "close_gaps", late)
    table, info = read_info(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 10))
    assert [(request.start, request.end) for request in source.requests] == [(MON, FRI), (date(2026, 11, 9), date(2026, 11, 10))]
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], MON, date(2026, 11, 10)))
    assert info.upstream_calls == 1


def test_who_asks_for_more_joins_what_is_under_way_and_fetches_the_rest(engine: Engine, source: TableSource) -> None:
    source.block()
    first = Background(lambda: read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI))
    source.wait_for_calls(1)
    second = Background(lambda: read_info(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 10)))
    source.wait_for_calls(2)
    source.unblock()
    (_, one), (table, other) = first.result(), second.result()
    assert [(request.start, request.end) for request in source.requests] == [(MON, FRI), (date(2026, 11, 9), date(2026, 11, 10))]
    assert (one.upstream_calls, one.joined_calls, other.upstream_calls, other.joined_calls) == (1, 0, 1, 1)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], MON, date(2026, 11, 10)))


def test_a_call_takes_as_many_symbols_as_the_source_allows(open_store: Opener, source: TableSource) -> None:
    source.dataset = canonical("bars_1d", calendar="XSHG", symbols_per_call=2)
    engine = open_store(source)
    table = read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    assert [request.symbols for request in source.requests]
    assert sorted(map(len, (r.symbols for r in source.requests))) == [
        1,
        2,
        2,
    ]
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS, MON, FRI))


def test_what_is_held_is_never_fetched_again(engine: Engine, source: TableSource, clock: ManualClock) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    clock.advance(days=100)
    for start, end in ((MON, FRI), (MON, MON), (date(2026, 11, 4), FRI)):
        _, info = read_info(engine, symbols=SYMBOLS[0], start=start, end=end, max_age=0)
        assert info.upstream_calls == 0
    assert len(source.requests) == 1


def test_only_what_is_missing_is_fetched(engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[0], start=date(2026, 11, 4), end=date(2026, 11, 5))
    table = read(engine, symbols=SYMBOLS[0], start=MON, end=date(2026, 11, 10))
    asked = {(request.start, request.end) for request in source.requests[1:]}
    assert asked == {(MON, date(2026, 11, 3)), (FRI, date(2026, 11, 10))}
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], MON, date(2026, 11, 10)))


def test_a_source_without_range_push_down_is_paid_once_for_all_of_its_history(open_store: Opener, november: list[date]) -> None:
    dataset = canonical("bars_1d", calendar="XSHG", range_pushdown=False, first_session=date(2026, 11, 2))
    source = TableSource(dataset, bars(SYMBOLS, november))
    engine = open_store(source)
    assert read(engine, symbols=SYMBOLS[0], start=FRI, end=FRI).num_rows == 1
    assert read(engine, symbols=SYMBOLS[0]).equals(expected(dataset, source.rows, SYMBOLS[:1], november[0], november[-1]))
    assert [(request.start, request.end) for request in source.requests] == [(november[0], november[-1])]


# Nothing there


def test_nothing_there_is_remembered_with_its_reason(engine: Engine, source: TableSource) -> None:
    del source.rows[SYMBOLS[0], date(2026, 11, 4)]
    for _ in range(2):
        table, info = read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
        assert table.num_rows == 4
        assert [str(gap) for gap in info.gaps] == ["000001.SZ 2026-11-04..2026-11-04 no_trade"]
    assert len(source.requests) == 1


def test_a_symbol_without_any_row_is_asked_once(engine: Engine, source: TableSource, open_store: Opener) -> None:
    table = read(engine, symbols="000333.SZ", start=MON, end=FRI)
    assert table.num_rows == 0
    assert table.schema.equals(source.dataset.schema)
    again = open_store.again(engine, source)
    assert read(again, symbols="000333.SZ", start=MON, end=FRI).num_rows == 0
    assert len(source.requests) == 1
    assert again.store.state("bars_1d").files == ()


# Errors


def test_an_error_is_shared_by_all_who_wait_and_not_kept(engine: Engine, source: TableSource) -> None:
    source.error = RuntimeError("quota used up")
    source.block()
    calls = [Background(lambda: read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)) for _ in range(6)]
    source.wait_for_calls(1)
    source.unblock()
    for call in calls:
        with pytest.raises(SourceUnavailable, match=r"source table asked for bars_1d 000001\.SZ .*RuntimeError: quota used up"):
            call.result()
    asked = len(source.requests)
    assert asked <= 6  # those that came after it had landed ask for themselves
    assert known(engine) == {}
    source.error = None
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5
    assert len(source.requests) == asked + 1


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ConnectionError("reset"), SourceUnavailable),
        (TimeoutError("vendor is slow"), SourceUnavailable),
        (SourceUnavailable("our own"), SourceUnavailable),
        (BadSourceData("half a page"), BadSourceData),
        (KeyError("close"), SourceUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_every_trouble_of_a_source_is_one_of_our_errors(
    engine: Engine, source: TableSource, raised: Exception, kind: type[Exception]
) -> None:
    source.error = raised
    with pytest.raises(kind, match=str(raised.args[0])):
        read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)


def test_one_failing_symbol_fails_the_read_and_the_others_are_kept(engine: Engine, source: TableSource) -> None:
    def answer(request: Any) -> pa.Table:
        if request.symbols == (SYMBOLS[1],):
            raise RuntimeError("no such page")
        return source.table(request)

    source.answer = answer
    with pytest.raises(SourceUnavailable, match="no such page"):
        read(engine, symbols=SYMBOLS[:3], start=MON, end=FRI)
    assert read(engine, symbols=[SYMBOLS[0], SYMBOLS[2]], start=MON, end=FRI).num_rows == 10
    assert len(source.requests) == 3


BAD: dict[str, Any] = {
    "no table": lambda _table: {"symbol": []},
    "None": lambda _table: None,
    "a wrong type": lambda table: table.set_column(2, "open", pa.array(["dear"] * table.num_rows)),
    "a missing key": lambda table: table.drop_columns(["symbol"]),
    "a strange column": lambda table: table.append_column("x", pa.array([1] * table.num_rows)),
    "rows out of order": lambda table: (
        table.take(pa.array(range(table.num_rows))[::-1])
        if False
        else pa.Table.from_pylist(table.to_pylist()[::-1], schema=table.schema)
    ),
    "a row twice": lambda table: pa.concat_tables([table.slice(0, 1), table]),
    "another symbol": lambda table: pa.Table.from_pylist([bar(SYMBOLS[3], MON)], schema=table.schema),
    "another session": lambda table: pa.Table.from_pylist([bar(SYMBOLS[0], TODAY)], schema=table.schema),
    "not a number": lambda table: table.set_column(2, "open", pa.array([float("nan")] * table.num_rows)),
    "an impossible bar": lambda table: table.set_column(4, "low", pa.array([1e9] * table.num_rows)),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_of_a_bad_answer_nothing_is_stored_and_the_next_read_asks_again(engine: Engine, source: TableSource, change: Any) -> None:
    source.answer = lambda request: change(source.table(request))
    with pytest.raises(BadSourceData):
        read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert known(engine) == {}
    assert engine.store.state("bars_1d").files == ()
    assert engine.store.orphans() == []
    source.answer = None
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5


def test_a_disk_that_refuses_fails_the_read_and_keeps_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fletching_server.volume.os.write", refuse)
        with pytest.raises(StoreUnwritable, match="No space left"):
            read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert known(engine) == {}
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5


def test_a_bug_of_ours_ends_the_wait_with_an_error_that_shows_no_internals(
    engine: Engine, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fletching_server.arrivals.facts_of_fill", lambda *_: 1 / 0)
        with pytest.raises(InternalError, match=r"failed: ZeroDivisionError; see the server's log"):
            read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5
    assert len(source.requests) == 2


# Hanging


def test_a_call_that_hangs_is_given_up_at_its_deadline_and_asked_again_later(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, source_seconds=0.2)
    source.block()
    with pytest.raises(SourceTimeout, match=r"no answer in 0\.2 s; nothing was stored"):
        read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert engine.act(Action.STATS, {})["hanging_calls_table"] == 1
    source.unblock()
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5


def test_a_source_that_hangs_too_often_is_not_asked_any_more_until_its_calls_come_back(
    open_store: Opener, source: TableSource
) -> None:
    engine = open_store(source, source_seconds=0.02)
    source.block()
    for _ in range(MOST_ABANDONED):
        with pytest.raises(SourceTimeout):
            read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    with pytest.raises(SourceUnavailable, match="8 earlier calls still hang"):
        read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    waiting = [thread for thread in __import__("threading").enumerate() if thread.name == "fetch-table"]
    source.unblock()
    for thread in waiting:
        thread.join(10)
    assert engine.act(Action.STATS, {})["hanging_calls_table"] == 0
    assert read(open_store.again(engine, source), symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5


def test_who_asks_for_something_else_does_not_wait_for_a_call_that_hangs(
    open_store: Opener, source: TableSource, daily: Dataset
) -> None:
    other = TableSource(daily.with_name("other"), bars(SYMBOLS, weekdays(MON, FRI)), name="other")
    engine = open_store(source, other)
    source.hanging = lambda request: request.symbols == (SYMBOLS[0],)
    source.block()
    hanging = Background(lambda: read(engine, symbols=SYMBOLS[0], start=MON, end=FRI))
    source.wait_for_calls(1)
    assert read(engine, "other", SYMBOLS[0], MON, FRI).num_rows == 5
    assert read(engine, symbols=SYMBOLS[1], start=MON, end=FRI).num_rows == 5
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI, on_miss="cached").num_rows == 0
    assert hanging.running
    source.unblock()
    assert hanging.result().num_rows == 5


def test_a_source_that_hangs_altogether_leaves_other_sources_alone(
    open_store: Opener, source: TableSource, daily: Dataset
) -> None:
    other = TableSource(daily.with_name("other"), bars(SYMBOLS, weekdays(MON, FRI)), name="other")
    engine = open_store(source, other, source_calls=2)
    source.block()
    hanging = [Background(lambda name=name: read(engine, symbols=name, start=MON, end=FRI)) for name in SYMBOLS]  # type: ignore[misc]
    source.wait_for_calls(2)
    assert read(engine, "other", SYMBOLS[0], MON, FRI).num_rows == 5
    source.unblock()
    assert [call.result().num_rows for call in hanging] == [5] * 5


def test_closing_releases_all_who_wait(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, source_calls=1)
    source.block()
    calls = [Background(lambda name=name: read(engine, symbols=name, start=MON, end=FRI)) for name in SYMBOLS]  # type: ignore[misc]
    source.wait_for_calls(1)
    engine.close()
    for call in calls:
        with pytest.raises((SourceUnavailable, ServerClosing), match=r"closing|closed"):
            call.result()
    source.unblock()


# Freshness


def morning(open_store: Opener, source: TableSource, clock: ManualClock) -> Engine:
    """Return an engine at noon of a session that is under way, with its bars so far."""
    clock.set(NOON)
    engine = open_store(source)
    assert read(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY).num_rows == 11
    return engine


def test_cells_of_a_session_under_way_age_and_settled_ones_do_not(
    open_store: Opener, source: TableSource, clock: ManualClock
) -> None:
    engine = morning(open_store, source, clock)
    source.rows[SYMBOLS[0], TODAY] = bar(SYMBOLS[0], TODAY, version=1)
    clock.advance(seconds=300)
    table, info = read_info(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY)
    assert (info.upstream_calls, info.age_seconds) == (0, 300.0)
    clock.advance(seconds=1)
    table, info = read_info(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY)
    assert (info.upstream_calls, info.age_seconds) == (1, 0.0)
    assert (source.requests[-1].start, source.requests[-1].end) == (TODAY, TODAY)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], FRI, TODAY))


@pytest.mark.parametrize(
    ("arguments", "seconds"), [({"max_age": 30}, 30), ({"profile": "trading"}, 60), ({"profile": "research"}, 3600)], ids=str
)
def test_the_reader_says_how_old_rows_may_be(
    open_store: Opener, source: TableSource, clock: ManualClock, arguments: dict[str, Any], seconds: int
) -> None:
    engine = morning(open_store, source, clock)
    clock.advance(seconds=seconds)
    assert read_info(engine, symbols=SYMBOLS[0], start=TODAY, end=TODAY, **arguments)[1].upstream_calls == 0
    clock.advance(seconds=1)
    assert read_info(engine, symbols=SYMBOLS[0], start=TODAY, end=TODAY, **arguments)[1].upstream_calls == 1


def test_with_no_age_tolerated_each_read_asks_once(open_store: Opener, source: TableSource, clock: ManualClock) -> None:
    engine = morning(open_store, source, clock)
    for _ in range(3):
        clock.advance(seconds=1)
        table, info = read_info(engine, symbols=SYMBOLS[0], start=TODAY, end=TODAY, max_age=0)
        assert (table.num_rows, info.upstream_calls, info.tier) == (1, 1, "source")


def test_a_settled_session_is_asked_again_and_later_confirmed(
    open_store: Opener, source: TableSource, clock: ManualClock
) -> None:
    engine = morning(open_store, source, clock)
    clock.advance(hours=6)
    _, info = read_info(engine, symbols=SYMBOLS[0], start=TODAY, end=TODAY)
    assert (info.upstream_calls, info.age_seconds) == (1, None)
    for calls in (1, 0):  # once the next session has settled it is confirmed, and never asked for again
        clock.advance(days=30)
        assert read_info(engine, symbols=SYMBOLS[0], start=TODAY, end=TODAY)[1].upstream_calls == calls


def test_rows_that_the_source_takes_back_are_gone_after_the_next_fetch(
    open_store: Opener, source: TableSource, clock: ManualClock
) -> None:
    engine = morning(open_store, source, clock)
    del source.rows[SYMBOLS[0], TODAY]
    clock.advance(hours=6)
    table, info = read_info(engine, symbols=SYMBOLS[0], start=FRI, end=TODAY)
    assert info.upstream_calls == 1
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:1], FRI, TODAY))


def test_minutes_that_the_source_takes_back_are_gone_after_the_next_fetch(open_store: Opener, clock: ManualClock) -> None:
    dataset = canonical("bars_1m", calendar="XSHG")
    clock.set(NOON)
    opening = datetime(2026, 11, 20, 1, 31, tzinfo=UTC)
    minutes: list[dict[str, Any]] = [
        {"symbol": SYMBOLS[0], "ts": opening + timedelta(minutes=n), "trading_date": TODAY, "close": float(n)} for n in range(20)
    ]
    source = TableSource(dataset, {(SYMBOLS[0], TODAY): minutes})
    engine = open_store(source)
    assert read(engine, "bars_1m", SYMBOLS[0], TODAY, TODAY).num_rows == 20
    source.rows[SYMBOLS[0], TODAY] = [
        *minutes[:7],
        *minutes[8:19],
        {**minutes[19], "ts": minutes[19]["ts"] + timedelta(seconds=30)},
    ]
    clock.advance(seconds=301)
    want = expected(dataset, source.rows, SYMBOLS[:1], TODAY, TODAY)
    assert read(engine, "bars_1m", SYMBOLS[0], TODAY, TODAY).equals(want)
    engine.act(Action.COMPACT, {"dataset": "bars_1m"})
    assert read(engine, "bars_1m", SYMBOLS[0], TODAY, TODAY).equals(want)
    again = open_store.again(engine, source)
    assert read(again, "bars_1m", SYMBOLS[0], TODAY, TODAY).equals(want)


def test_invalidated_cells_are_fetched_again_and_replace_what_was_held(engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    source.rows[SYMBOLS[0], MON] = bar(SYMBOLS[0], MON, version=3)
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d", "symbols": [SYMBOLS[0]], "start": "2026-11-02", "end": "2026-11-03"})
    table = read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:2], MON, FRI))
    assert [(r.symbols, r.start, r.end) for r in source.requests[2:]] == [((SYMBOLS[0],), MON, date(2026, 11, 3))]


def test_the_clock_may_jump_back_and_nothing_final_is_asked_again(engine: Engine, clock: ManualClock) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    clock.set(datetime(2026, 11, 10, 4, 0, tzinfo=UTC))
    assert read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI)[1].upstream_calls == 0
