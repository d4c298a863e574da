"""The background thread: what it begins by itself, what it leaves alone after a failure, and what it forgets."""

from __future__ import annotations

import threading
from datetime import date
from typing import Any

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, read, write

from fletching_server import Engine, tiers
from fletching_server.testing import ManualClock
from fletching_server.tiers import segments_of

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
KEYS = ["id", "day"]


def on_commit(engine: Engine, dataset: str, holds: Any) -> threading.Event:
    """Return what is set by the first commit after which *holds* says so of the dataset."""
    found = threading.Event()
    engine.store.catalogue.on_commit(lambda name: found.set() if name == dataset and holds() else None)
    return found


def is_folded(engine: Engine, dataset: str) -> bool:
    state = engine.store.catalogue.state(dataset)
    return state is not None and bool(state.files) and not segments_of(state)


def test_a_journal_that_an_earlier_process_left_is_folded(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    assert segments_of(engine.store.state("bars_1d"))
    again = open_store.again(engine, source, compact_idle_seconds=0.2)
    folded = on_commit(again, "bars_1d", lambda: is_folded(again, "bars_1d"))
    assert folded.wait(10) or is_folded(again, "bars_1d")


def test_what_is_dear_is_folded_once_it_is_old(
    open_store: Opener, source: TableSource, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "WORTH", 1e-9)
    engine = open_store(source, compact_settle_seconds=3600.0)
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    folded = on_commit(engine, "bars_1d", lambda: is_folded(engine, "bars_1d"))
    read(engine, symbols=SYMBOLS[1], start=MON, end=FRI)
    assert not is_folded(engine, "bars_1d")
    clock.advance(seconds=3600)
    write(engine, "other", [{"id": "a", "day": MON, "x": 1}], keys=KEYS)  # any commit wakes it
    assert folded.wait(10)


def test_one_dataset_that_fails_does_not_keep_the_others_waiting(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_store(source)
    step = engine._parts.write_path.compaction.step
    tried = threading.Semaphore(0)

    def failing(dataset: str, *, quiet: bool) -> bool:
        if dataset == "bars_1d":
            tried.release()
            raise OSError("no room")
        return step(dataset, quiet=quiet)

    monkeypatch.setattr(engine._parts.write_path.compaction, "step", failing)
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    assert tried.acquire(timeout=10)
    monkeypatch.setattr(tiers, "FULL_BYTES", 1)
    folded = on_commit(engine, "mine", lambda: is_folded(engine, "mine"))
    write(engine, "mine", [{"id": "a", "day": MON, "x": 1}], keys=KEYS)
    assert folded.wait(10)
    assert not tried.acquire(blocking=False)  # it waits for its time, however often the thread is woken


def test_what_is_older_than_it_is_kept_leaves_by_itself(open_store: Opener, clock: ManualClock) -> None:
    engine = open_store(vacuum_seconds=3600)
    for x in range(2):
        write(engine, "mine", [{"id": "a", "day": MON, "x": x}], keys=KEYS if not x else None)
        engine._parts.write_path.compaction.compact("mine")
        clock.advance(days=8)
    assert engine.store.history_bytes() > 0
    gone = on_commit(engine, "mine", lambda: engine.store.history_bytes() == 0)
    write(engine, "other", [{"id": "a", "day": MON, "x": 1}], keys=KEYS)
    assert gone.wait(10)
