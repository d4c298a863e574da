"""The same histories, read by another client over the local plane: every frame that it keeps stays what it was."""

from __future__ import annotations

import gc
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from tests.stateful.test_cache import LONG, SESSIONS, CacheMachine, ranges, symbols

import fletching
from fletching_schemas.errors import SourceUnavailable
from fletching_server import Engine, handover, hot
from fletching_server.service import Service


class LocalMachine(CacheMachine):
    """The engine of ``CacheMachine``, read through shared memory; some answers are kept for as long as it likes."""

    shares = True

    @initialize()
    def begin_keeping(self) -> None:
        self.kept: list[tuple[pa.Table, list[dict[str, Any]]]] = []

    def opened(self) -> Engine:
        engine = super().opened()
        self.service = Service(engine, f"grpc+unix://{self.folder}/s")
        self.cache = fletching.connect(self.service.url, plane="local")
        return engine

    def shut(self) -> None:
        self.cache.close()
        assert self.service.close()
        self.engine.close()

    def empty_memory(self) -> None:
        self.kept = []  # what a frame maps stays in memory, and is right, whatever became of its file on disk
        self.cache.evict()

    def read(self, dataset: str = "bars_1d", **asked: Any) -> pa.Table:
        return self.cache.read(dataset, output="arrow", **asked)

    @rule(names=symbols, days=ranges)
    def keeping_a_frame(self, names: tuple[str, ...], days: tuple[Any, Any]) -> None:
        try:
            table = self.read(symbols=names, start=days[0], end=days[1])
        except SourceUnavailable:
            assert self.source.error is not None
            self.land()
        else:
            self.check_answer(table, names, *days)
            self.kept.append((table, table.to_pylist()))
        self.check_calls()

    @rule(place=st.integers(0, 5))
    def letting_go(self, place: int) -> None:
        del self.kept[place : place + 2]

    @rule()
    def the_process_forgets_its_mappings(self) -> None:
        self.cache.evict("bars_1d")

    @invariant()
    def what_is_kept_never_changes(self) -> None:
        for table, rows in getattr(self, "kept", ()):
            assert table.to_pylist() == rows

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "cache"):
            return
        edge, facts = self.service.local, self.engine.hot.facts()
        assert edge is not None
        assert self.engine.hot.check() == []
        assert facts["hot_bytes"] <= facts["hot_max_bytes"]
        assert facts["hot_reserved_bytes"] == 0
        edge.lifetimes.settle()
        assert self.engine.hot.facts()["hot_leases"] == edge.lifetimes.count
        assert not any(self.engine.store._pins.values())

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.kept = []
        self.cache.evict()  # which lets go of what this client keeps mapped
        gc.collect()
        assert self.service.local is not None
        assert self.service.local.lifetimes.wait_until_none(20)
        assert self.engine.hot.facts()["hot_leases"] == 0
        self.engine.hot.evict()
        assert self.engine.hot.facts()["hot_descriptors"] == 0
        super().teardown()


@pytest.fixture(autouse=True)
def few_rows_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the limits below which rows are sent: the histories have a few dozen."""
    monkeypatch.setattr(hot, "WORTH_BYTES", 0)
    monkeypatch.setattr(handover, "SENT_BYTES", -1)
    monkeypatch.setattr(handover, "FEW_SENT_BYTES", -1)


@pytest.mark.slow
def test_any_history_reads_the_same_through_shared_memory() -> None:
    assert len(SESSIONS) == 15
    run_state_machine_as_test(
        LocalMachine,
        settings=settings(
            max_examples=200 if LONG else 25,
            stateful_step_count=60 if LONG else 20,
            deadline=None,
            phases=(Phase.reuse, Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
