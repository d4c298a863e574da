"""The disk quota: what leaves, in which order, what never does, and that no read is ever wrong or kept waiting for it."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.conftest import (
    NOW,
    SYMBOLS,
    WAIT_SECONDS,
    Opener,
    TableSource,
    bar,
    bars,
    expected,
    in_threads,
    read,
    read_info,
    weekdays,
    write,
)

from fletching_schemas import Action, Dataset, ReadRequest, canonical
from fletching_server import Engine, open_engine
from fletching_server.changes import Fill
from fletching_server.quota import Candidate, refill_seconds, victims
from fletching_server.snapshot import StoredFile
from fletching_server.spans import EMPTY, FINAL
from fletching_server.testing import ManualClock

DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 13))
FIRST, LAST = DAYS[0], DAYS[-1]


def partition(period: str, size: int, bucket: int = 0) -> StoredFile:
    return StoredFile(
        f"{period}-{bucket}", "bars", "partition", period, bucket, period, "", size, size, 1, 0, 1, ("A",)
    )  # fmt: skip


def candidate(period: str, size: int, weight: float = 0.0, refill: float = 1.0) -> Candidate:
    return Candidate(("bars", period, 0), (partition(period, size),), weight, refill)


# The choice


def test_what_is_worth_least_per_byte_leaves_first() -> None:
    rare, small, costly, common = (
        candidate("2021", 100, weight=1),
        candidate("2022", 10, weight=1),
        candidate("2023", 100, weight=1, refill=20),
        candidate("2024", 100, weight=4),
    )
    everything = [common, small, costly, rare]
    assert victims(everything, 1) == [rare]
    assert victims(everything, 101) == [rare, common]
    assert victims(everything, 10**9) == [rare, common, small, costly]
    assert victims(everything, 0) == []
    assert victims([], 5) == []


def test_among_equals_the_older_period_leaves_first() -> None:
    assert [each.key[1] for each in victims([candidate(str(year), 10) for year in (2023, 2021, 2022)], 20)] == ["2021", "2022"]


candidates = st.lists(
    st.builds(candidate, st.dates().map(str), st.integers(1, 1000), st.floats(-100, 3000), st.floats(0.001, 1e4)),
    unique_by=lambda each: each.key,
    max_size=30,
)


@given(candidates, st.integers(-5, 30_000), st.randoms())
def test_the_choice_is_enough_no_more_than_needed_and_the_same_in_any_order(
    offered: list[Candidate], excess: int, order: random.Random
) -> None:
    chosen = victims(offered, excess)
    shuffled = list(offered)
    order.shuffle(shuffled)
    assert victims(shuffled, excess) == chosen
    assert sum(each.bytes for each in chosen) >= min(excess, sum(each.bytes for each in offered))
    assert sum(each.bytes for each in chosen[:-1]) < max(excess, 1)
    left = [each for each in offered if each not in chosen]
    assert all(one.density <= other.density for one in chosen for other in left)


def test_refilling_takes_a_call_per_group_of_symbols(daily: Dataset) -> None:
    assert refill_seconds(daily, 5000, 0.5) == 2500
    assert refill_seconds(replace(daily, symbols_per_call=50), 5000, 0.5) == 50
    assert refill_seconds(replace(daily, symbols_per_call=50), 51, 0.5) == 1


# The store


@pytest.fixture
def by_day(november: list[date]) -> TableSource:
    """Return a source whose rows lie in a partition per day."""
    return TableSource(canonical("bars_1d", calendar="XSHG", period="day", symbols_per_call=10), bars(SYMBOLS, november))


def still(engine: Engine) -> Engine:
    """Return *engine* without the thread that evicts: the test does it."""
    engine._parts.housekeeping.evicting.close()
    return engine


def size_of(engine: Engine, dataset: str = "bars_1d") -> int:
    return sum(file.bytes for file in engine.store.state(dataset).files)


def on_disk(engine: Engine) -> int:
    return sum(path.stat().st_size for folder in ("journal", "data") for path in (engine.store.root / folder).rglob("*.parquet"))


def filled(open_store: Opener, source: TableSource, share: float, **more: Any) -> Engine:
    """Return an engine that holds DAYS, folded, and whose quota is *share* of what that takes."""
    engine = still(open_store(source))
    read(engine, symbols=SYMBOLS, start=FIRST, end=LAST)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    engine.act(Action.VACUUM, {"history_days": 0})
    disk = int(size_of(engine) * share)
    source.requests.clear()
    return still(open_store.again(engine, source, disk=disk, **more))


def periods(engine: Engine) -> list[str]:
    return sorted(file.period for file in engine.store.state("bars_1d").files)


def test_a_store_within_its_quota_is_left_alone(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 1.0)
    assert engine.quota.settle() == 0
    assert len(periods(engine)) == len(DAYS)
    assert engine.act(Action.STATS, {})["evicted_files"] == 0


def test_a_store_over_its_quota_is_taken_down_to_the_low_water(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.9, disk_low=0.5)
    before = size_of(engine)
    by_size = [file.period for file in sorted(engine.store.state("bars_1d").files, key=lambda file: file.bytes)]
    assert engine.quota.settle() == 0
    stats: Any = engine.act(Action.STATS, {})
    assert before * 0.3 < stats["disk_bytes"] <= before * 0.45
    assert stats["disk_max_bytes"] == engine.settings.disk
    assert stats["evicted_bytes"] == before - stats["disk_bytes"]
    assert stats["evicted_files"] == len(DAYS) - len(periods(engine))
    assert on_disk(engine) == stats["disk_bytes"]
    assert set(periods(engine)) == set(by_size[: len(periods(engine))])  # all as much used: the largest left


def test_what_left_is_fetched_again_once_and_what_stayed_is_not(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    engine.quota.settle()
    stayed = set(periods(engine))
    want = expected(by_day.dataset, by_day.rows, SYMBOLS, FIRST, LAST)
    assert read(engine, symbols=SYMBOLS, start=FIRST, end=LAST).equals(want)
    asked = by_day.cells_asked()
    assert len(asked) == len(set(asked))
    assert not {day.isoformat() for _, day in asked} & stayed
    by_day.requests.clear()
    assert read(engine, symbols=SYMBOLS, start=FIRST, end=LAST).equals(want)
    assert not by_day.requests


def test_what_is_read_often_stays(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    for _ in range(5):
        read(engine, symbols=SYMBOLS[0], start=FIRST, end=FIRST)
    engine.quota.settle()
    assert FIRST.isoformat() in periods(engine)


def test_each_eviction_is_explained(open_store: Opener, by_day: TableSource, logs: list[Any]) -> None:
    engine = filled(open_store, by_day, 0.5)
    engine.quota.settle()
    told = [entry for entry in logs if entry["event"] == "partition evicted from disk"]
    assert {entry["period"] for entry in told} == {day.isoformat() for day in DAYS} - set(periods(engine))
    assert [entry["density"] for entry in told] == sorted(entry["density"] for entry in told)
    assert all(entry.keys() >= {"dataset", "bucket", "bytes", "uses", "refill_seconds", "density"} for entry in told)


def test_an_evicted_partition_leaves_memory_too(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    read(engine, symbols=SYMBOLS, start=FIRST, end=LAST)
    held = engine.act(Action.STATS, {})["hot_entries"]
    engine.quota.settle()
    assert held == len(DAYS)
    assert engine.act(Action.STATS, {})["hot_entries"] == len(periods(engine))


def test_what_is_held_is_still_told_rightly(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    engine.quota.settle()
    held = set(periods(engine))
    table, info = read_info(engine, symbols=SYMBOLS, start=FIRST, end=LAST, on_miss="cached")
    want = expected(by_day.dataset, {key: row for key, row in by_day.rows.items() if str(key[1]) in held}, SYMBOLS, FIRST, LAST)
    assert table.equals(want)
    assert {gap.symbol for gap in info.gaps} == set(SYMBOLS)
    assert not [gap for gap in info.gaps if str(gap.first) in held or str(gap.last) in held]


def test_an_empty_cell_stays_known(open_store: Opener, by_day: TableSource) -> None:
    del by_day.rows[SYMBOLS[0], DAYS[3]]
    engine = filled(open_store, by_day, 0.1)
    engine.quota.settle()
    assert read(engine, symbols=SYMBOLS[0], start=DAYS[3], end=DAYS[3]).num_rows == 0
    assert not by_day.requests


def test_a_journal_is_folded_before_anything_leaves(open_store: Opener, by_day: TableSource) -> None:
    engine = still(open_store(by_day))
    for day in DAYS:
        read(engine, symbols=SYMBOLS, start=day, end=day)
    disk = size_of(engine) // 2
    engine = still(open_store.again(engine, by_day, disk=disk))
    assert engine.quota.settle() == 0
    assert 0 < size_of(engine) <= disk * 0.8
    assert {file.kind for file in engine.store.state("bars_1d").files} == {"partition"}


def test_user_tables_stay_and_it_is_told_once_that_they_are_too_large(
    open_store: Opener, by_day: TableSource, logs: list[Any]
) -> None:
    engine = filled(open_store, by_day, 0.5, disk_low=0.5)
    rows = [{"id": str(number), "day": FIRST, "value": float(number * 7919 % 2003)} for number in range(20_000)]
    write(engine, "mine", rows, keys=["id", "day"])
    assert engine.quota.settle() > 0
    assert engine.quota.settle() > 0
    told = [entry for entry in logs if entry["log_level"] == "warning"]
    assert len(told) == 1
    assert "is exceeded by user tables" in told[0]["event"]
    assert periods(engine) == []
    assert read(engine, "mine").num_rows == 20_000
    assert write(engine, "mine", rows[:10], keys=["id", "day"]).rows == 10  # no error for whoever writes
    health: Any = engine.act(Action.HEALTH, {})
    assert ["is exceeded by user tables" in warning for warning in health["warnings"]] == [True]
    assert engine.act(Action.STATS, {})["disk_stuck_bytes"] > 0
    engine.act(Action.DELETE, {"dataset": "mine"})
    assert engine.quota.settle() == 0
    assert engine.act(Action.HEALTH, {})["warnings"] == []
    assert engine.act(Action.STATS, {})["disk_stuck_bytes"] == 0


def test_the_quota_is_named_as_people_write_it(open_store: Opener, by_day: TableSource) -> None:
    assert "the disk quota of 50 GB is" in open_store(by_day).quota._told()


@pytest.mark.parametrize(
    "changed", [{"accumulates": True}, {"restatement": "keep"}, {"recent_sessions": 6}, {"recent_sessions": 1}], ids=str
)
def test_rows_that_would_not_come_again_stay(open_store: Opener, by_day: TableSource, changed: dict[str, Any]) -> None:
    engine = filled(open_store, by_day, 0.1)
    engine.close()
    by_day.dataset = replace(by_day.dataset, **changed)
    engine = still(open_store(by_day, disk=1))
    assert engine.quota.settle() > 0
    # NOW is Friday, the 20th: its session and the five before it are still to be had.
    left = [day.isoformat() for day in DAYS if changed != {"recent_sessions": 6} or day < date(2026, 11, 13)]
    assert periods(engine) == left


def test_rows_of_a_source_that_is_not_configured_here_stay(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    engine.close()
    engine = still(open_store(disk=1))
    assert engine.quota.settle() > 0
    assert len(periods(engine)) == len(DAYS)


def test_no_quota_is_none(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    engine = still(open_store.again(engine, by_day, disk=0))
    assert engine.quota.settle() == 0
    assert len(periods(engine)) == len(DAYS)


def test_the_past_of_fetched_rows_is_dropped_first(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 1.3, disk_low=1.0)
    read(engine, symbols=SYMBOLS, start=date(2026, 11, 16), end=date(2026, 11, 17))
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert engine.store.disk_bytes() > engine.settings.disk
    assert engine.store.history_bytes() > 0
    assert engine.quota.settle() == 0
    assert engine.store.history_bytes() == 0
    assert len(periods(engine)) == len(DAYS) + 2


def test_a_fold_that_fails_does_not_keep_partitions_from_leaving(
    open_store: Opener, by_day: TableSource, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    def full(_dataset: str) -> int:
        raise OSError(28, "No space left on device")

    engine = filled(open_store, by_day, 0.5)
    read(engine, symbols=SYMBOLS, start=date(2026, 11, 16), end=date(2026, 11, 17))
    monkeypatch.setattr(engine._parts.write_path.compaction, "compact", full)
    engine.quota.settle()
    assert "folding the journal failed" in {entry["event"] for entry in logs}
    assert len(periods(engine)) < len(DAYS)


# Under way


def test_a_reader_keeps_the_files_that_it_has_begun_to_read(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.01, memory="1KiB")  # nothing fits in memory: every batch comes from the file
    answer = engine.read(ReadRequest("bars_1d", SYMBOLS, FIRST, LAST))
    before = on_disk(engine)
    assert engine.quota.settle() == 0
    assert periods(engine) == []
    assert on_disk(engine) == before  # pinned
    assert answer.table().equals(expected(by_day.dataset, by_day.rows, SYMBOLS, FIRST, LAST))
    assert on_disk(engine) == 0


def test_a_partition_that_is_folded_while_it_is_chosen_stays(
    open_store: Opener, by_day: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = filled(open_store, by_day, 0.5)
    chosen = engine.quota._candidates()
    by_day.rows |= bars(["000333.SZ"], DAYS)
    read(engine, symbols="000333.SZ", start=FIRST, end=LAST)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    monkeypatch.setattr(engine.quota, "_candidates", lambda: chosen)
    engine.quota.settle()
    assert len(periods(engine)) == len(DAYS)
    assert engine.act(Action.STATS, {})["evicted_files"] == 0


def test_a_deleted_dataset_has_nothing_to_evict(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day, 0.5)
    chosen = engine.quota._candidates()
    engine.act(Action.DELETE, {"dataset": "bars_1d"})
    for victim in chosen:
        engine.quota._forget(victim)
    assert engine.act(Action.STATS, {})["evicted_files"] == 0


def test_a_read_larger_than_the_quota_ends(open_store: Opener, by_day: TableSource) -> None:
    """Eviction runs whenever something arrives; what arrived for the read must still be there when it looks again."""
    engine = still(open_store(by_day, disk=1))
    commit = engine.store.commit

    def commit_and_settle(change: Any, *given: Any, **more: Any) -> int:
        seq = commit(change, *given, **more)
        if isinstance(change, Fill):
            engine.quota.settle()
        return seq

    engine.store.commit = commit_and_settle  # type: ignore[method-assign]
    want = expected(by_day.dataset, by_day.rows, SYMBOLS, FIRST, LAST)
    for _ in range(2):
        assert read(engine, symbols=SYMBOLS, start=FIRST, end=LAST).equals(want)
        assert len(by_day.cells_asked()) <= len(SYMBOLS) * 12  # calendar days, each once
        by_day.requests.clear()
        engine.quota.settle()
        assert engine.store.disk_bytes() == 0


def test_the_thread_evicts_after_a_commit(open_store: Opener, by_day: TableSource) -> None:
    engine = open_store(by_day, disk=1)
    gone = threading.Event()
    engine.store.catalogue.on_commit(lambda _dataset: gone.set() if not engine.store.disk_bytes() else None)
    read(engine, symbols=SYMBOLS, start=FIRST, end=LAST)
    assert gone.wait(WAIT_SECONDS)


def test_many_readers_of_a_store_that_is_far_too_small_are_all_right(open_store: Opener, by_day: TableSource) -> None:
    engine = open_store(by_day, disk=20_000, compact_segments=3)
    done = threading.Event()

    def evicting() -> None:
        while not done.is_set():
            engine.quota.settle()

    def reading(number: int) -> None:
        order = random.Random(number)
        for _ in range(10):
            first, last = sorted(order.choices(DAYS, k=2))
            table = read(engine, symbols=SYMBOLS, start=first, end=last)
            assert table.equals(expected(by_day.dataset, by_day.rows, SYMBOLS, first, last))

    thread = threading.Thread(target=evicting)
    thread.start()
    try:
        assert in_threads(6, reading) == [None] * 6
    finally:
        done.set()
        thread.join(WAIT_SECONDS)
    assert engine.quota.settle() == 0
    assert engine.store.disk_bytes() <= 20_000


# Any history

NAMES = SYMBOLS[:3]
ranges = st.tuples(st.sampled_from(DAYS), st.sampled_from(DAYS)).map(lambda pair: (min(pair), max(pair)))
names = st.sets(st.sampled_from(NAMES), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


class QuotaMachine(RuleBasedStateMachine):
    """A store with a tiny quota: whatever happens, reads are right, tables stay, and nothing held is asked for."""

    @initialize(quota=st.sampled_from([1, 10_000, 25_000, 60_000]), low=st.sampled_from([0.3, 0.8, 1.0]), seed=st.integers(0, 99))
    def begin(self, quota: int, low: float, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fletching-"))
        self.clock = ManualClock(NOW)
        self.quota, self.low = quota, low
        absent = random.Random(seed)
        held = {key: row for key, row in bars(NAMES, DAYS).items() if absent.random() > 0.1}
        dataset = canonical("bars_1d", calendar="XSHG", period="day", buckets=2, symbols_per_call=2)
        self.source = TableSource(dataset, held)
        self.table: dict[tuple[str, date], int] = {}
        self.engine = self.opened()

    def opened(self) -> Engine:
        return still(
            open_engine(
                self.folder / "store", [self.source], clock=self.clock, memory="64MiB", query_memory="64MiB", threads=1,
                compact_segments=10_000, compact_idle_seconds=3600, disk=self.quota, disk_low=self.low,
            )
        )  # fmt: skip

    def held_cells(self) -> set[tuple[str, date]]:
        """Return the cells that coverage vouches for, however late it is."""
        coverage, epoch = self.engine.store.state("bars_1d").coverage, date(1970, 1, 1).toordinal()
        return {
            (symbol, day)
            for symbol, spans in coverage.items()
            for day in DAYS
            if any(span.state in {FINAL, EMPTY} and span.first <= day.toordinal() - epoch <= span.last for span in spans)
        }

    @rule(chosen=names, days=ranges)
    def reading(self, chosen: Sequence[str], days: tuple[date, date]) -> None:
        held = self.held_cells()
        self.source.requests.clear()
        table = read(self.engine, symbols=chosen, start=days[0], end=days[1])
        assert table.equals(expected(self.source.dataset, self.source.rows, chosen, *days))
        asked = [cell for cell in self.source.cells_asked() if cell[1] in DAYS]
        assert len(asked) == len(set(asked))
        assert not set(asked) & held

    @rule(chosen=names, days=ranges)
    def reading_what_is_held(self, chosen: Sequence[str], days: tuple[date, date]) -> None:
        table = read(self.engine, symbols=chosen, start=days[0], end=days[1], on_miss="cached")
        got = {(row["symbol"], row["trading_date"]): row["volume"] for row in table.to_pylist()}
        for cell in self.held_cells():  # of others there may be rows, which nobody vouches for
            if cell[0] in chosen and days[0] <= cell[1] <= days[1]:
                row: Any = self.source.rows.get(cell)
                assert got.get(cell) == (row and row["volume"])

    @rule(chosen=names, day=st.sampled_from(DAYS), version=st.integers(1, 9))
    def restating(self, chosen: Sequence[str], day: date, version: int) -> None:
        for name in chosen:
            self.source.rows[name, day] = bar(name, day, version)
            self.engine.act(
                Action.INVALIDATE, {"dataset": "bars_1d", "symbols": [name], "start": day.isoformat(), "end": day.isoformat()}
            )

    @rule(rows=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), min_size=1), day=st.sampled_from(DAYS))
    def writing(self, rows: dict[str, int], day: date) -> None:
        write(self.engine, "mine", [{"id": id_, "day": day, "value": value} for id_, value in rows.items()], keys=["id", "day"])
        self.table |= {(id_, day): value for id_, value in rows.items()}

    @rule()
    def folding(self) -> None:
        self.engine.act(Action.COMPACT, {"dataset": "bars_1d"})

    @rule()
    def settling(self) -> None:
        over = self.engine.quota.settle()
        used, tables = self.engine.store.disk_bytes(), self.engine.store.catalogue.bytes("mine")
        assert over == max(0, used - self.quota)
        assert used <= max(self.quota, tables)
        assert bool(self.engine.quota.warnings()) == bool(over)

    @rule(seconds=st.integers(1, 10**6))
    def waiting(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    @rule()
    def restarting(self) -> None:
        self.engine.close()
        self.engine = self.opened()

    @invariant()
    def tables_are_untouched(self) -> None:
        if self.table:
            got = {(row["id"], row["day"]): row["value"] for row in read(self.engine, "mine").to_pylist()}
            assert got == self.table

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            try:
                assert self.engine.verify() == []
            finally:
                self.engine.close()
                shutil.rmtree(self.folder)


def test_any_history_under_a_tiny_quota() -> None:
    run_state_machine_as_test(
        QuotaMachine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
        ),
    )
