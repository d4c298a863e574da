"""The warmer: what is read every morning is there before it is asked for; nobody waits for it, whatever goes wrong."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, read_info, weekdays

from fletching_schemas import Action, Dataset, ReadInfo
from fletching_server import Engine

SHANGHAI = ZoneInfo("Asia/Shanghai")
SESSIONS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
MORNING, EVENING = 8.75, 17.0  # before the open, after the rows have settled
NAMES = list(SYMBOLS[:3])


def at(engine: Engine, day: date, hour: float) -> None:
    """Move the clock to a time of day in Shanghai."""
    instant = datetime(day.year, day.month, day.day, tzinfo=SHANGHAI) + timedelta(hours=hour)
    step = instant - engine.clock.now()
    assert step >= timedelta(0)
    engine.clock.advance(seconds=step.total_seconds())  # type: ignore[attr-defined]


def morning_read(engine: Engine, day: date, **more: Any) -> ReadInfo:
    """Read the last sessions, as somebody does who comes to work."""
    at(engine, day, MORNING)
    _, info = read_info(engine, symbols=NAMES, start=day - timedelta(days=9), **more)
    engine.access.flush()
    return info


def look(engine: Engine, day: date, hour: float) -> None:
    at(engine, day, hour)
    engine.access.flush()
    engine.warmer.work()


@pytest.fixture
def engine(open_store: Opener, daily: Dataset) -> Engine:
    open_store.clock.set(datetime(2026, 11, 9, 0, 0, tzinfo=SHANGHAI))
    source = TableSource(daily, bars(SYMBOLS, SESSIONS))
    engine = open_store(source, warm_held_out=0)
    engine.warmer.on = True
    return engine


def live(engine: Engine, days: list[date]) -> None:
    """Let the days pass: a read each morning, and looks in between as the thread would take them."""
    for day in days:
        look(engine, day, 7.9)
        morning_read(engine, day)
        look(engine, day, 12)
        look(engine, day, EVENING)


WEEK = weekdays(date(2026, 11, 9), date(2026, 11, 13))
MONDAY = date(2026, 11, 16)


def test_the_sixth_morning_is_answered_from_memory(engine: Engine) -> None:
    live(engine, WEEK)
    look(engine, MONDAY, 7.9)
    info = morning_read(engine, MONDAY)
    assert (info.tier, info.upstream_calls, info.joined_calls) == ("hot", 0, 0)
    assert info.warmed > 0
    assert morning_read(engine, MONDAY).warmed == 0


def test_explain(engine: Engine) -> None:
    live(engine, WEEK[:4])
    look(engine, WEEK[4], 7.9)
    morning_read(engine, WEEK[4])
    at(engine, WEEK[4], EVENING)
    told = engine.act(Action.WARM, {"explain": True})
    print("\n".join(told["words"]))
    engine.warmer.work()
    print(engine.warmer.facts())
    at(engine, MONDAY, 7.9)
    told = engine.act(Action.WARM, {"explain": True})
    print("\n".join(told["words"]))
