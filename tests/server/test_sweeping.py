from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import (
    SYMBOLS,
    WAIT_SECONDS,
    ListingSource,
    Opener,
    TableSource,
    bars,
    expected,
    in_threads,
    read,
    read_info,
    weekdays,
)

from fletching_schemas import Action, Dataset, ReadRequest, canonical
from fletching_schemas.errors import CorruptFile
from fletching_server import Engine
from fletching_server.snapshot import StoredFile
from fletching_server.sweeping import MOST_AHEAD, PASSING_BYTES, Passage, ReadAhead, Ready, Step, groups, in_time

MON, TODAY = date(2026, 11, 2), date(2026, 11, 20)


def file(first: int, last: int, size: int = 100, symbols: tuple[str, ...] = ("A",)) -> StoredFile:
    return StoredFile(f"{first}-{last}", "bars", "partition", str(first), 0, "", "", size, size, 1, first, last, symbols)


# Steps


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), min_size=1, max_size=12))
def test_files_that_speak_of_the_same_sessions_are_read_together_and_the_others_in_order(spans: list[tuple[int, int]]) -> None:
    files = [file(first, first + length) for first, length in spans]
    chunks = list(in_time(files))
    assert sorted(one.id for chunk in chunks for one in chunk) == sorted(one.id for one in files)
    ends = [(min(one.first_day for one in chunk), max(one.last_day for one in chunk)) for chunk in chunks]
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ends))
    covered = [set(range(first, last + 1)) for first, last in ends]
    days = {day for one in files for day in range(one.first_day, one.last_day + 1)}
    assert set().union(*covered) == days, "files with a hole between them are not put together"


def test_symbols_are_read_together_as_far_as_their_rows_fit() -> None:
    files = [file(0, 1, 400, ("A", "B", "C", "D")), file(2, 3, 400, ("A", "B", "C", "D"))]
    assert list(groups("ABCD", files, 400)) == ["AB", "CD"]
    assert list(groups("ABCD", files, 1)) == ["A", "B", "C", "D"]
    assert list(groups("ABCD", [], 1)) == ["ABCD"]


# Reading ahead


class Reader:
    """Holds steps, and notes which, where, and which of them ended; it can be made to wait."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.ended: list[int] = []
        self.here: list[int] = []  # read by who asked
        self.go = threading.Event()
        self.go.set()
        self.changed = threading.Condition()

    def hold(self, step: Step) -> Ready:
        assert self.go.wait(WAIT_SECONDS)
        number = step.files[0].first_day
        held = ExitStack()
        held.callback(self.ended.append, number)
        with self.changed:
            self.read.append(number)
            if threading.current_thread() is threading.main_thread():
                self.here.append(number)
            self.changed.notify_all()
        return Ready(step, [], held)

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.read) >= count, WAIT_SECONDS), self.read


@pytest.fixture
def ahead() -> Iterator[Callable[[int], ReadAhead]]:
    with ExitStack() as opened:

        def make(max_bytes: int) -> ReadAhead:
            made = ReadAhead(max_bytes)
            opened.callback(made.close)
            return made

        yield make


def some(count: int) -> Callable[[float], Iterator[Step]]:
    return lambda _bytes: (Step("A", (file(number, number),)) for number in range(count))


def test_the_next_steps_are_read_while_the_first_is_streamed(ahead: Callable[[int], ReadAhead]) -> None:
    reader = Reader()
    passage = Passage(some(20), reader.hold, ahead(1 << 20))
    passing = iter(passage)
    next(passing)
    reader.wait(1 + MOST_AHEAD)
    assert len(reader.read) == 1 + MOST_AHEAD
    assert reader.ended == []
    assert [ready.step.files[0].first_day for ready in passing] == list(range(1, 20))
    passage.close()
    assert reader.ended == list(range(20))


def test_so_much_is_read_ahead_as_there_is_room_for_and_without_any_it_goes_on(ahead: Callable[[int], ReadAhead]) -> None:
    for room, most in ((250, 2), (99, 0)):
        reader, threads = Reader(), ahead(room)
        passage = Passage(some(6), reader.hold, threads)
        passing = iter(passage)
        next(passing)
        reader.wait(1 + most)
        assert len(reader.read) == 1 + most
        assert len(list(passing)) == 5
        passage.close()
        assert threads._left == room


def test_who_asks_never_waits_behind_what_others_read_ahead(ahead: Callable[[int], ReadAhead]) -> None:
    threads, other, mine = ahead(1 << 20), Reader(), Reader()
    stuck = Passage(some(20), other.hold, threads)
    next(iter(stuck))
    other.wait(1 + MOST_AHEAD)
    other.go.clear()
    one = iter(Passage(some(20), other.hold, threads))
    blocked = threading.Thread(target=next, args=(one,))  # its own read waits, and both threads read ahead for it
    blocked.start()
    assert len(list(Passage(some(5), mine.hold, threads))) == 5
    other.go.set()
    blocked.join(WAIT_SECONDS)
    stuck.close()


def test_what_was_read_ahead_ends_with_who_stops(ahead: Callable[[int], ReadAhead]) -> None:
    reader, threads = Reader(), ahead(1000)
    passage = Passage(some(20), reader.hold, threads)
    next(iter(passage))
    reader.wait(1 + MOST_AHEAD)
    passage.close()
    threads.close()
    assert sorted(reader.ended) == sorted(reader.read)
    assert threads._left == 1000


def test_what_fails_ahead_fails_when_its_turn_comes(ahead: Callable[[int], ReadAhead]) -> None:
    def hold(step: Step) -> Ready:
        if step.files[0].first_day == 3:
            raise OSError("the disk is gone")
        return Ready(step, [], ExitStack())

    passing = iter(Passage(some(9), hold, ahead(1 << 20)))
    assert [next(passing).step.files[0].first_day for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(passing)


def test_steps_are_large_where_few_sweep_and_never_too_small(ahead: Callable[[int], ReadAhead]) -> None:
    threads = ahead(0)
    threads._least_bytes = 50 << 20
    sizes = list[float]()

    def cut(size: float) -> Iterator[Step]:
        sizes.append(size)
        return iter(())

    passages = [Passage(cut, Reader().hold, threads) for _ in range(4)]
    assert sizes == [PASSING_BYTES, PASSING_BYTES / 2, 50 << 20, 50 << 20]
    for passage in passages:
        passage.close()
        passage.close()
    Passage(cut, Reader().hold, threads).close()
    assert sizes[-1] == PASSING_BYTES


# Whole reads


@pytest.fixture
def many_days() -> list[date]:
    return [day for day in weekdays(date(2026, 7, 1), date(2026, 8, 31)) if day.month in {7, 8}]


@pytest.fixture
def by_day(many_days: list[date]) -> TableSource:
    return ListingSource(canonical("bars_1d", calendar="XSHG", period="day"), bars(SYMBOLS, many_days))


def stored(open_store: Opener, source: TableSource, **settings: Any) -> Engine:
    """Return an engine that has everything on disk and nothing in memory."""
    engine = open_store(source, **settings)
    read(engine)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    engine.act(Action.EVICT, {})
    return engine


def uses(engine: Engine) -> str:
    """Return all that the policy knows of uses; to ask for the ranking has it work out what was noted."""
    engine.hot.ranking()
    return repr(engine.hot._policy._histories.uses)  # type: ignore[attr-defined]  # of the default policy


def test_a_backtest_passes_through_the_ring_and_is_no_use(open_store: Opener, by_day: TableSource, many_days: list[date]) -> None:
    engine = stored(open_store, by_day)
    before = uses(engine)
    for _ in range(2):
        table, info = read_info(engine, start=many_days[0], end=many_days[2], profile="backtesting")
        assert table.equals(expected(by_day.dataset, by_day.rows, SYMBOLS, many_days[0], many_days[2]))
    assert info.tiers["hot"].rows == len(table)
    facts = engine.hot.facts()
    assert facts["hot_ring_bytes"] == facts["hot_bytes"] > 0
    assert facts["hot_ring_hits"] == 3
    assert uses(engine) == before
    read(engine, start=many_days[0], end=many_days[0])
    assert engine.hot.facts()["hot_ring_bytes"] < facts["hot_ring_bytes"]
    assert engine.hot.facts()["hot_bytes"] == facts["hot_bytes"]


def test_a_step_of_a_run_from_session_to_session_is_a_sweep(
    open_store: Opener, by_day: TableSource, many_days: list[date]
) -> None:
    engine = stored(open_store, by_day)
    seen: list[str] = []

    def run_length(request: ReadRequest, plan: Any, principal: str) -> int:
        seen.append(principal)
        assert plan.wanted.last
        assert request.dataset == "bars_1d"
        return len(seen)

    engine._parts.read_path.holding.run_length = run_length
    rings = []
    for day in many_days[:3]:
        list(engine.read(ReadRequest("bars_1d", None, day, day), principal="r7"))
        rings.append(engine.hot.facts()["hot_ring_bytes"] > 0)
    assert rings == [False, True, True]
    assert set(seen) == {"r7"}


@pytest.mark.parametrize("symbols", [None, SYMBOLS[2]], ids=["all", "one"])
@pytest.mark.parametrize("memory", ["24KiB", "256KiB"])
def test_a_read_larger_than_memory_leaves_what_is_held_alone(
    open_store: Opener, by_day: TableSource, many_days: list[date], memory: str, symbols: str | None
) -> None:
    engine = stored(open_store, by_day, memory=memory)
    read(engine, start=many_days[-1], end=many_days[-1])
    kept, facts = uses(engine), engine.hot.facts()
    assert facts["hot_bytes"] > 0
    table, info = read_info(engine, symbols=symbols, start=many_days[0], end=many_days[-1])
    wanted = SYMBOLS if symbols is None else (symbols,)
    assert table.equals(expected(by_day.dataset, by_day.rows, wanted, many_days[0], many_days[-1]))
    if memory == "24KiB":
        assert uses(engine) == kept
        assert info.tiers["hot"].rows == len(wanted)
    after = engine.hot.facts()
    assert after["hot_evictions"] == facts["hot_evictions"]
    assert after["hot_leases"] == after["hot_reserved_bytes"] == 0


def test_a_sweep_merges_the_journal_in(open_store: Opener, by_day: TableSource, many_days: list[date]) -> None:
    engine = stored(open_store, by_day, memory="24KiB")
    middle = many_days[10:20]
    by_day.rows |= bars(SYMBOLS[:2], middle, version=3)
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d", "symbols": SYMBOLS[:2], "start": middle[0], "end": middle[-1]})
    read(engine, symbols=SYMBOLS[:2], start=middle[0], end=middle[-1])
    for symbols in (SYMBOLS, SYMBOLS[:1]):
        table = read(engine, symbols=symbols, start=many_days[0], end=many_days[-1], profile="backtesting")
        assert table.equals(expected(by_day.dataset, by_day.rows, symbols, many_days[0], many_days[-1]))


def test_a_sweep_that_is_left_early_gives_everything_back(open_store: Opener, by_day: TableSource, many_days: list[date]) -> None:
    engine = stored(open_store, by_day)
    answer = engine.read(ReadRequest("bars_1d", SYMBOLS[:1], many_days[0], many_days[-1], profile="backtesting"))
    assert engine.hot.facts()["hot_leases"] > 0
    answer.close()
    engine._reads.close()  # what was under way has ended
    assert engine.hot.facts()["hot_leases"] == 0
    assert engine.hot.facts()["hot_reserved_bytes"] == 0


def test_a_file_found_damaged_by_a_sweep_is_mended(open_store: Opener, by_day: TableSource, many_days: list[date]) -> None:
    engine = stored(open_store, by_day)
    files = sorted(engine.store.state("bars_1d").files, key=lambda file: file.first_day)
    (engine.store.root / files[30].path).write_bytes(b"")
    asked = ReadRequest("bars_1d", SYMBOLS[:1], many_days[0], many_days[-1], profile="backtesting")
    with pytest.raises(CorruptFile, match="read again"):
        list(engine.read(asked))
    table = pa.Table.from_batches(list(engine.read(asked)))
    assert table.equals(expected(by_day.dataset, by_day.rows, SYMBOLS[:1], many_days[0], many_days[-1]))


def test_many_sweeps_at_once_all_get_their_rows(open_store: Opener, by_day: TableSource, many_days: list[date]) -> None:
    engine = stored(open_store, by_day, memory="256KiB")

    def ask(number: int) -> bool:
        symbols = SYMBOLS[number % 3 : number % 3 + 1 + number % 2]
        want = expected(by_day.dataset, by_day.rows, symbols, many_days[0], many_days[-1])
        profile = "backtesting" if number % 2 else None
        return bool(read(engine, symbols=symbols, start=many_days[0], end=many_days[-1], profile=profile).equals(want))

    assert in_threads(6, ask) == [True] * 6
    assert engine.hot.check() == []
    assert engine.hot.facts()["hot_leases"] == 0


def test_the_dataset_of_these_tests_has_a_file_per_day(open_store: Opener, by_day: TableSource, many_days: list[date]) -> None:
    engine = stored(open_store, by_day)
    assert len(engine.store.state("bars_1d").files) == len(many_days) > 4 * MOST_AHEAD
    assert isinstance(by_day.dataset, Dataset)
