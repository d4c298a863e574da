"""The access log of a store, through one query, is the state that its warmer kept all along."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, weekdays, write

from fletching_schemas import Dataset, ReadRequest
from fletching_server import Engine
from fletching_server.access import AccessEvent
from fletching_server.habits import Habits
from fletching_server.predictor import NEWCOMERS, REBUILD
from fletching_server.touches import TOUCHES, touches

SHANGHAI = ZoneInfo("Asia/Shanghai")
DAYS = weekdays(date(2026, 11, 9), date(2026, 11, 25))
NAMES = ("principal", "slot", "daytype", "dataset", "bucket", "session_offset")

Rows = dict[tuple[Any, ...], tuple[float, int]]


def by_name(rows: Iterable[dict[str, Any]]) -> Rows:
    return {tuple(row[name] for name in NAMES): (row["hits"], row["updated"]) for row in rows}


def rebuilt(log: pa.Table, now: int) -> Rows:
    with duckdb.connect() as database:
        database.register("touches", log)
        found = database.execute(REBUILD, {"now": now})
        names = [column[0] for column in found.description or ()]
        return by_name(dict(zip(names, row, strict=True)) for row in found.fetchall())


def check(events: Iterable[AccessEvent], habits: Habits, now: int, *, table: bool) -> Rows:
    """Hold what one query makes of *events* against *habits*."""
    log = touches(events, habits.agenda, lambda _: table)
    assert log.schema == TOUCHES
    kept, batch = by_name(habits.predictor.rows(now)), rebuilt(log, now)
    assert kept.keys() == batch.keys()
    assert [kept[name][1] for name in kept] == [batch[name][1] for name in kept]
    assert [kept[name][0] for name in kept] == pytest.approx([batch[name][0] for name in kept], abs=1e-9)
    return kept


@pytest.fixture
def lived(open_store: Opener, daily: Dataset) -> Engine:
    """A store from which several people have read for three weeks, at several hours, while its warmer learned."""
    open_store.clock.set(datetime(2026, 11, 9, tzinfo=SHANGHAI))
    engine = open_store(TableSource(daily, bars(SYMBOLS, weekdays(date(2026, 10, 12), DAYS[-1]))))
    engine.warmer.on = True
    write(engine, "mine", pa.table({"symbol": ["A"], "day": [DAYS[0]], "value": [1.0]}), keys=("symbol", "day"))
    for number, day in enumerate(DAYS):
        for hour in (8.5, 8.6, 11.0, 20.0):
            instant = datetime(day.year, day.month, day.day, tzinfo=SHANGHAI) + timedelta(hours=hour)
            engine.clock.set(instant)  # type: ignore[attr-defined]
            principal = "ann" if hour < 9 else f"reader {number // 4}"
            asked = ReadRequest("bars_1d", (SYMBOLS[number % 2],), date(2026, 10, 12), day - timedelta(days=1 + number % 3))
            for request in (asked, ReadRequest("mine")):
                engine.read(request, "flight", principal).close()
            engine.access.flush()
            engine.warmer._learning.take(threading.Event())
    return engine


def test_one_query_over_a_store_s_log_gives_what_its_warmer_has_learned(lived: Engine) -> None:
    events, learned = list(lived.access.events()), lived.warmer._learning.habits
    assert len(events) == 8 * len(DAYS)
    for mic, habits in learned.items():
        of_exchange = [event for event in events if (event.dataset == "mine") == (mic is None)]
        now = habits.agenda.present(lived.clock.now().timestamp()) + 1
        kept = check(of_exchange, habits, now, table=mic is None)
        assert {NEWCOMERS, "ann", "reader 0"} <= {name[0] for name in kept}
    assert set(learned) == {"XSHG", None}


def test_a_log_out_of_order_gives_the_same(lived: Engine) -> None:
    events = [event for event in lived.access.events() if event.dataset != "mine"]
    agenda = lived.warmer._learning.habits["XSHG"].agenda
    moved = [replace(event, at=event.at - 86_400 * (number % 5 == 0)) for number, event in enumerate(events)]
    habits = Habits(agenda)
    for event in moved:
        habits.note(event)
    check(moved, habits, agenda.present(lived.clock.now().timestamp()), table=False)


def test_a_log_without_reads_has_no_touches(lived: Engine) -> None:
    assert touches([], lived.warmer._learning.habits["XSHG"].agenda, lambda _: False).schema == TOUCHES
