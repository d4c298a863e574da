"""The call cache: what is asked once, how long it is good for, and what happens while the source cannot be asked."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tests.conftest import Background, LibrarySource, Opener, TableSource, in_threads

from fletching._akshare_frames import decode
from fletching_schemas import Action
from fletching_schemas.calls import CallInfo, CallRequest
from fletching_schemas.errors import (
    BadSourceData,
    Error,
    InvalidRequest,
    NotCached,
    SourceChanged,
    SourceThrottled,
    SourceTimeout,
    SourceUnavailable,
    UnknownFunction,
)
from fletching_server import Engine
from fletching_server.testing import ManualClock

ANSWERS = itertools.count()


def bars_of(symbol: str = "000001", start: Any = None, adjust: str = "") -> pd.DataFrame:
    """Return a frame that no two calls return alike."""
    return pd.DataFrame({"日期": [date(2024, 3, 20)], "代码": [symbol], "第": [next(ANSWERS)], "复权": [f"{start}{adjust}"]})


def big(kilobytes: int) -> pd.DataFrame:
    return pd.DataFrame({"x": np.random.default_rng(kilobytes).integers(0, 2**62, kilobytes * 128)})


def kind(value: Any) -> str:
    return type(value).__name__


@pytest.fixture
def library() -> LibrarySource:
    return LibrarySource(bars_of, big, kind)


@pytest.fixture
def engine(open_store: Opener, library: LibrarySource) -> Engine:
    return open_store(library)


def call(engine: Engine, function: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """Return what a call answers, decoded, through the action as every edge uses it."""
    return decode(asked(engine, function, *args, options=options, **kwargs))


def asked(engine: Engine, function: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> pa.Table:
    answer = engine.act(Action.CALL, CallRequest.asking(function, args, kwargs, **(options or {})).body())
    assert isinstance(answer, pa.Table)
    return answer


def told(engine: Engine, function: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> CallInfo:
    return CallInfo.from_metadata(asked(engine, function, *args, options=options, **kwargs).schema.metadata)


def files(engine: Engine) -> list[Path]:
    return sorted((engine.store.root / "calls" / "files").iterdir())


# One call for everybody


def test_the_second_call_asks_nobody(engine: Engine, library: LibrarySource) -> None:
    first, second = call(engine, "bars_of", "000001"), call(engine, "bars_of", "000001")
    pd.testing.assert_frame_equal(first, second)
    assert library.called == [("bars_of", {"symbol": "000001"})]
    stats = engine.act(Action.STATS, {})
    assert isinstance(stats, dict)
    assert (stats["calls"], stats["call_hits"], stats["upstream_calls"], stats["call_cache_answers"]) == (2, 1, 1, 1)


def test_arguments_by_position_and_by_name_in_any_order_are_one_call(engine: Engine, library: LibrarySource) -> None:
    answers = [
        call(engine, "bars_of", "600519", "2024", "qfq"),
        call(engine, "bars_of", adjust="qfq", start="2024", symbol="600519"),
        call(engine, "bars_of", "600519", adjust="qfq", start="2024"),
    ]
    assert len({int(answer["第"][0]) for answer in answers}) == 1
    assert len(library.called) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0, False), (None, "None"), ("1", 1), ([1, 2], [2, 1]), (date(2024, 1, 1), "2024-01-01"), ({}, [])],
)
def test_unlike_arguments_are_two_calls(engine: Engine, one: Any, other: Any) -> None:
    assert call(engine, "bars_of", start=one)["第"][0] != call(engine, "bars_of", start=other)["第"][0]


def test_a_default_left_out_stays_as_sent(engine: Engine, library: LibrarySource) -> None:
    call(engine, "bars_of")
    call(engine, "bars_of", "000001")
    assert [arguments for _, arguments in library.called] == [{}, {"symbol": "000001"}]


@pytest.mark.parametrize("value", [date(2024, 3, 20), datetime(2024, 3, 20, tzinfo=UTC), (1,), {"a": [1]}, {1: 2}, b"x"])
def test_arguments_reach_the_function_as_they_were_given(engine: Engine, value: Any) -> None:
    assert call(engine, "kind", value) == type(value).__name__


def test_thirty_two_equal_calls_are_one(engine: Engine, library: LibrarySource) -> None:
    library.block()
    outcomes = Background(lambda: in_threads(32, lambda _: call(engine, "bars_of", "000001")))
    library.wait_for_calls(1)
    library.unblock()
    answers = outcomes.result()
    assert {int(answer["第"][0]) for answer in answers} == {int(answers[0]["第"][0])}
    assert len(library.called) == 1


def test_a_call_by_position_joins_one_by_name(engine: Engine, library: LibrarySource) -> None:
    library.block()
    one = Background(lambda: call(engine, "bars_of", "000001"))
    library.wait_for_calls(1)
    other = Background(lambda: call(engine, "bars_of", symbol="000001", options={"max_age": 0}))
    library.unblock()
    assert one.result()["第"][0] == other.result()["第"][0]
    assert len(library.called) == 1


def test_an_error_is_shared_with_those_who_wait_and_not_kept(engine: Engine, library: LibrarySource) -> None:
    library.error = SourceChanged("columns are not those of version 1.0")
    library.block()
    outcomes = Background(lambda: in_threads(8, lambda _: call(engine, "bars_of")))
    library.wait_for_calls(1)
    library.unblock()
    errors = outcomes.result()
    assert [type(error) for error in errors] == [SourceChanged] * 8
    assert len({id(error) for error in errors}) == 8  # one object in many threads would grow one traceback
    library.error = None
    assert call(engine, "bars_of")["代码"][0] == "000001"


def test_other_calls_do_not_wait(engine: Engine, library: LibrarySource) -> None:
    call(engine, "kind", 1)
    library.block()
    waiting = Background(lambda: call(engine, "bars_of"))
    library.wait_for_calls(2)
    assert call(engine, "kind", 1) == "int"
    library.unblock()
    waiting.result()


def test_a_source_gets_as_many_calls_at_once_as_it_states(open_store: Opener, library: LibrarySource) -> None:
    library.concurrent_calls = 2
    engine = open_store(library, source_calls=4)
    library.block()
    answers = Background(lambda: in_threads(6, lambda number: call(engine, "kind", number)))
    library.wait_for_calls(2)
    assert len(library.called) == 2
    library.unblock()
    assert answers.result() == ["int"] * 6
    assert library.most_at_once == 2


def test_an_answer_that_came_between_looking_and_asking_is_taken(engine: Engine, library: LibrarySource) -> None:
    """A looks and finds nothing, B's call lands and leaves, A finds nothing to join."""
    calls = engine._parts.upstream.calls
    looked, go_on = threading.Event(), threading.Event()
    embark = calls._embark

    def slow(key: str) -> Any:
        if not looked.is_set():
            looked.set()
            assert go_on.wait(20)
        return embark(key)

    calls._embark = slow  # type: ignore[method-assign]  # the order of events is what is tested
    slow_one = Background(lambda: call(engine, "bars_of"))
    assert looked.wait(20)
    fast = call(engine, "bars_of")
    go_on.set()
    assert slow_one.result()["第"][0] == fast["第"][0]
    assert len(library.called) == 1


# Freshness


def test_an_answer_is_good_for_as_long_as_the_source_says(engine: Engine, library: LibrarySource, clock: ManualClock) -> None:
    library.fresh_seconds = 300
    first = told(engine, "bars_of")
    assert (first.age_seconds, first.stale, first.cached, first.version) == (0.0, False, False, "1.0")
    clock.advance(seconds=300)
    second = told(engine, "bars_of")
    assert (second.age_seconds, second.stale, second.cached, second.fetched_at) == (300.0, False, True, first.fetched_at)
    clock.advance(seconds=1)
    assert told(engine, "bars_of").cached is False
    assert len(library.called) == 2


@pytest.mark.parametrize("options", [{"max_age": 60}, {"profile": "trading"}])
def test_the_caller_may_ask_for_fresher_or_take_older(
    engine: Engine, library: LibrarySource, clock: ManualClock, options: dict[str, Any]
) -> None:
    call(engine, "bars_of")
    clock.advance(seconds=61)
    assert told(engine, "bars_of", options=options).cached is False
    clock.advance(seconds=100_000)
    assert told(engine, "bars_of", options={"max_age": 1e6}).cached is True
    assert len(library.called) == 2


def test_answers_survive_a_restart(engine: Engine, open_store: Opener, library: LibrarySource) -> None:
    first = call(engine, "bars_of", "000001")
    again = open_store.again(engine, library)
    pd.testing.assert_frame_equal(call(again, "bars_of", symbol="000001"), first)
    assert len(library.called) == 1


def test_a_clock_that_was_set_back_makes_answers_of_unknown_age(engine: Engine, clock: ManualClock) -> None:
    clock.advance(seconds=86_400)
    call(engine, "bars_of")
    clock.set(clock.now() - timedelta(seconds=30))
    assert told(engine, "bars_of").age_seconds == 0.0
    clock.set(clock.now() - timedelta(days=1))
    assert told(engine, "bars_of").cached is False


def test_another_version_of_the_library_is_asked_anew(engine: Engine, open_store: Opener, library: LibrarySource) -> None:
    call(engine, "bars_of")
    library.release = "1.1"
    again = open_store.again(engine, library)
    info = told(again, "bars_of")
    assert (info.version, info.cached) == ("1.1", False)
    assert len(files(again)) == 1


@pytest.mark.parametrize(("on_miss", "held"), [("cached", True), ("cached", False), ("error", True), ("error", False)])
def test_nobody_is_asked_where_the_caller_forbids_it(
    engine: Engine, library: LibrarySource, clock: ManualClock, on_miss: str, held: bool
) -> None:
    if held:
        call(engine, "bars_of")
        assert told(engine, "bars_of", options={"on_miss": on_miss}).stale is False
        clock.advance(seconds=301)
    if on_miss == "cached" and held:
        info = told(engine, "bars_of", options={"on_miss": on_miss})
        assert (info.stale, info.cached, info.age_seconds) == (True, True, 301.0)
    else:
        with pytest.raises(NotCached, match=r"no answer of akshare\.bars_of\(\) is held"):
            call(engine, "bars_of", options={"on_miss": on_miss})
    assert len(library.called) == held


# While the source cannot be asked


@pytest.mark.parametrize("error", [SourceUnavailable("down"), SourceThrottled("banned"), SourceTimeout("slow"), OSError("gone")])
def test_an_old_answer_comes_with_its_age(engine: Engine, library: LibrarySource, clock: ManualClock, error: Exception) -> None:
    first = call(engine, "bars_of")
    clock.advance(seconds=7200)
    library.error = error
    info = told(engine, "bars_of")
    assert (info.stale, info.cached, info.age_seconds) == (True, True, 7200.0)
    pd.testing.assert_frame_equal(call(engine, "bars_of", options={"profile": "trading"}), first)
    with pytest.raises(type(error) if isinstance(error, Error) else SourceUnavailable):
        call(engine, "bars_of", options={"max_age": 60})
    library.error = None
    assert told(engine, "bars_of").stale is False


def test_an_old_answer_is_no_excuse_for_a_wrong_one(engine: Engine, library: LibrarySource, clock: ManualClock) -> None:
    call(engine, "bars_of")
    clock.advance(seconds=7200)
    library.error = SourceChanged("another shape")
    with pytest.raises(SourceChanged):
        call(engine, "bars_of")


def test_an_answer_of_another_version_comes_only_while_the_source_is_down(
    engine: Engine, open_store: Opener, library: LibrarySource
) -> None:
    call(engine, "bars_of")
    library.release, library.error = "1.1", SourceUnavailable("down")
    info = told(open_store.again(engine, library), "bars_of")
    assert (info.version, info.stale) == ("1.0", True)


def test_when_to_retry_is_told(engine: Engine, library: LibrarySource) -> None:
    later = datetime(2026, 11, 20, 13, tzinfo=UTC)
    library.error = SourceThrottled("banned", later)
    with pytest.raises(SourceThrottled) as caught:
        call(engine, "bars_of")
    assert caught.value.retry_at == later


def test_without_the_source_kept_answers_are_old_answers(engine: Engine, open_store: Opener) -> None:
    first = call(engine, "bars_of", symbol="000001")
    alone = open_store.again(engine)
    pd.testing.assert_frame_equal(call(alone, "bars_of", symbol="000001"), first)
    assert told(alone, "bars_of", symbol="000001").stale is True
    with pytest.raises(SourceUnavailable, match=r"no source 'akshare' .* add --source akshare"):
        call(alone, "bars_of", symbol="000002")
    with pytest.raises(SourceUnavailable, match="no source 'akshare'"):
        alone.act(Action.CALL, {"source": "akshare"})
    answer = alone.act(Action.CALL, {})
    assert isinstance(answer, pa.Table)
    assert answer.num_rows == 0


def test_a_call_that_hangs_is_given_up_at_its_deadline(open_store: Opener, library: LibrarySource) -> None:
    engine = open_store(library, source_seconds=0.2)
    library.block()
    with pytest.raises(SourceTimeout, match=r"akshare\.bars_of\(symbol='1'\): no answer in 0\.2 s"):
        call(engine, "bars_of", "1")
    library.unblock()


def test_closing_releases_those_who_wait(open_store: Opener, library: LibrarySource) -> None:
    engine = open_store(library)
    library.block()
    waiting = Background(lambda: call(engine, "bars_of"))
    library.wait_for_calls(1)
    engine.close()
    with pytest.raises(SourceUnavailable, match="the cache is closing"):
        waiting.result()
    library.unblock()


# Storage


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_answer_is_found_dropped_and_fetched_again(engine: Engine, library: LibrarySource, damage: str) -> None:
    call(engine, "bars_of")
    (path,) = files(engine)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage])
    (problem,) = engine.verify()
    assert "the answer of bars_of" in problem
    assert told(engine, "bars_of").cached is False
    assert engine.verify() == []
    assert len(files(engine)) == 1
    assert len(library.called) == 2


def test_what_was_used_longest_ago_leaves_first(open_store: Opener, library: LibrarySource) -> None:
    engine = open_store(library, call_cache="110KiB")  # numbers at random do not compress
    for size in (30, 31, 32):
        call(engine, "big", size)
    call(engine, "big", 30)
    call(engine, "big", 33)
    kept = {size: told(engine, "big", size, options={"on_miss": "cached"}).cached for size in (30, 32, 33)}
    assert kept == {30: True, 32: True, 33: True}
    with pytest.raises(NotCached):
        call(engine, "big", 31, options={"on_miss": "cached"})
    assert sum(path.stat().st_size for path in files(engine)) <= 110 * 1024


def test_the_order_of_use_survives_a_restart(open_store: Opener, library: LibrarySource) -> None:
    engine = open_store(library, call_cache="110KiB")
    for size in (30, 31, 32, 30):
        call(engine, "big", size)
    again = open_store.again(engine, library, call_cache="110KiB")
    call(again, "big", 33)
    assert told(again, "big", 30, options={"on_miss": "cached"}).cached
    with pytest.raises(NotCached):
        call(again, "big", 31, options={"on_miss": "cached"})


def test_an_answer_larger_than_the_cache_is_served_and_not_kept(open_store: Opener, library: LibrarySource) -> None:
    engine = open_store(library, call_cache="100KiB")
    call(engine, "bars_of")
    assert len(call(engine, "big", 200)) == 200 * 128
    assert told(engine, "bars_of").cached is True
    assert told(engine, "big", 200).cached is False


def test_an_answer_that_cannot_be_stored_is_served(engine: Engine, library: LibrarySource) -> None:
    call(engine, "kind", 1)
    folder = engine.store.root / "calls" / "files"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    assert call(engine, "bars_of")["代码"][0] == "000001"
    assert call(engine, "bars_of")["代码"][0] == "000001"
    assert len(library.called) == 3
    folder.unlink()
    call(engine, "kind", 1)


def test_nothing_is_made_before_the_first_answer(open_store: Opener, library: LibrarySource) -> None:
    engine = open_store(library)
    library.error = SourceUnavailable("down")
    with pytest.raises(SourceUnavailable):
        call(engine, "bars_of")
    assert engine.verify() == []
    assert not (engine.store.root / "calls").exists()


@pytest.mark.parametrize("damage", ["junk", "another version", "empty"])
def test_a_database_that_cannot_be_read_is_set_aside(
    engine: Engine, open_store: Opener, library: LibrarySource, damage: str
) -> None:
    call(engine, "bars_of")
    path = engine.store.root / "calls" / "calls.sqlite"
    engine.close()
    if damage == "another version":
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version=99")
        connection.close()
    else:
        path.write_bytes(b"junk" * 5000 if damage == "junk" else b"")
    again = open_store(library)
    assert told(again, "bars_of").cached is False
    assert told(again, "bars_of").cached is True
    assert again.verify() == []
    assert len(files(again)) == 1  # the file of the lost answer was swept


def test_a_file_without_a_row_is_swept_at_the_next_start(engine: Engine, open_store: Opener, library: LibrarySource) -> None:
    call(engine, "bars_of")
    (path,) = files(engine)
    engine.close()
    path.with_name("orphan.arrow").write_bytes(b"x")
    path.with_name("other.arrow.1234.tmp").write_bytes(b"x")
    again = open_store(library)
    call(again, "bars_of")
    assert files(again) == [path]


# Bad input


def test_an_unknown_function_is_refused_with_the_nearest(engine: Engine, library: LibrarySource) -> None:
    with pytest.raises(UnknownFunction, match="akshare has no function bar_of; the nearest: bars_of"):
        call(engine, "bar_of")
    with pytest.raises(AttributeError, match="lists them"):
        call(engine, "zzzzzz")
    assert library.called == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"function": "os.system"}, "is not the name of a function"),
        ({"function": "x" * 300}, "is not the name of a function"),
        ({"function": 5}, "is not the name of a function"),
        ({"function": "bars_of", "nonsense": 1}, "unknown argument"),
        ({"function": "bars_of", "arguments": {"symbol": "1"}}, r"arguments is an object"),
        ({"function": "bars_of", "arguments": {"args": "abc"}}, "args is a list"),
        ({"function": "bars_of", "arguments": {"kwargs": [1]}}, "kwargs an object"),
        ({"function": "bars_of", "arguments": {"kwargs": {"symbol": float("nan")}}}, "cannot travel as JSON"),
        ({"function": "bars_of", "arguments": {"kwargs": {"symbol": object()}}}, "cannot travel as JSON"),
        ({"function": "bars_of", "arguments": {"kwargs": {"symbol": {"$date": "yesterday"}}}}, "cannot travel as JSON"),
        ({"function": "bars_of", "arguments": {"kwargs": {"symbol": {"$what": 1}}}}, "nobody here knows the tag"),
        ({"function": "bars_of", "arguments": {"kwargs": {"symbol": "x" * 70_000}}}, "at most 65,536"),
        ({"function": "bars_of", "arguments": {"args": [1, 2, 3, 4]}}, "4 arguments by position; it has symbol, start, adjust"),
        ({"function": "bars_of", "arguments": {"args": [1], "kwargs": {"symbol": 1}}}, "symbol by position and by name"),
        ({"function": "bars_of", "arguments": {"kwargs": {"symbo": 1}}}, "no parameter 'symbo'; it has symbol"),
        ({"function": "bars_of", "max_age": -1}, "max_age=-1"),
        ({"function": "bars_of", "max_age": True}, "max_age=True"),
        ({"function": "bars_of", "profile": "slow"}, "profile='slow'"),
        ({"function": "bars_of", "on_miss": "pray"}, "on_miss='pray'"),
        ({"function": "bars_of", "source": 5}, "source=5"),
    ],
)
def test_a_bad_call_is_refused_before_anybody_is_asked(
    engine: Engine, library: LibrarySource, body: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        engine.act(Action.CALL, body)
    assert library.called == []


def test_a_source_must_be_named_where_several_have_functions(open_store: Opener) -> None:
    engine = open_store(LibrarySource(kind, name="one"), LibrarySource(kind, name="two"))
    with pytest.raises(InvalidRequest, match="several sources have functions: one, two"):
        call(engine, "kind", 1)
    assert call(engine, "kind", 1, options={"source": "two"}) == "int"


def test_akshare_is_the_default_beside_others(open_store: Opener, source: TableSource) -> None:
    library = LibrarySource(kind)
    engine = open_store(LibrarySource(kind, name="other"), library, source)
    call(engine, "kind", 1)
    assert len(library.called) == 1


def test_a_source_that_does_not_list_its_functions_is_asked_by_name(open_store: Opener) -> None:
    class Silent:
        name = "silent"

        def __init__(self, library: LibrarySource) -> None:
            self.datasets, self.fetch = library.datasets, library.fetch
            self.version, self.call, self.freshness = library.version, library.call, library.freshness

    engine = open_store(Silent(LibrarySource(kind)))
    assert call(engine, "kind", value=1) == "int"
    with pytest.raises(InvalidRequest, match="pass all arguments by name"):
        call(engine, "kind", 1)


def test_what_is_no_table_is_refused(engine: Engine, library: LibrarySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "call", lambda *_: {"rows": 1})
    with pytest.raises(BadSourceData, match="returned a dict"):
        call(engine, "bars_of")


def test_the_functions_are_listed(engine: Engine) -> None:
    answer = engine.act(Action.CALL, {})
    assert isinstance(answer, pa.Table)
    assert answer.to_pydict() == {"source": ["akshare"] * 3, "function": ["bars_of", "big", "kind"]}
    assert answer.schema.metadata == {b"version": b"1.0"}
