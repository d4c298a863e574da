"""Calendars that learn from the store: published trade dates, and the days on which a reference index traded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, read, weekdays

from fletching_schemas import Dataset, canonical
from fletching_server import Engine
from fletching_server.calendars import day_number
from fletching_server.testing import ManualClock

JANUARY = datetime(2027, 1, 20, 12, 0, tzinfo=UTC)  # a Wednesday, 20:00 in Shanghai; the package ends with 2026
HOLIDAYS = [date(2027, 1, 1), date(2027, 1, 18)]
OPEN = [day for day in weekdays(date(2027, 1, 1), date(2027, 1, 20)) if day not in HOLIDAYS]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(JANUARY)


def trade_dates(days: list[date]) -> TableSource:
    dataset = canonical("calendar", range_pushdown=False, first_session=date(2026, 12, 1))
    rows: Any = {("XSHG", day): {"mic": "XSHG", "session": day, "status": "known", "source": "list"} for day in days}
    return TableSource(dataset, rows, name="list")


def index_of(days: list[date]) -> TableSource:
    dataset = canonical("bars_1d", calendar="XSHG", as_name="index_bars_1d", notation="index")
    return TableSource(dataset, bars(["000001.SH"], days), name="index")


def shares() -> TableSource:
    return TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS[:1], OPEN))


def states(engine: Engine, dataset: str = "bars_1d", symbol: str = SYMBOLS[0]) -> dict[date, str]:
    spans = engine.store.state(dataset).coverage[symbol]
    return {
        day: span.state
        for day in weekdays(date(2027, 1, 1), date(2027, 1, 20))
        for span in spans
        if span.first <= day_number(day) <= span.last
    }


def read_all(engine: Engine) -> list[date]:
    return list(read(engine, symbols=SYMBOLS[0], start="2027-01-01", end="2027-01-20")["trading_date"].to_pylist())


def test_without_evidence_the_new_year_can_be_read_and_nothing_of_it_is_final(open_store: Opener) -> None:
    engine = open_store(shares())
    assert read_all(engine) == OPEN
    assert set(states(engine).values()) == {"unconfirmed"}


def test_a_published_list_makes_the_new_year_known(open_store: Opener) -> None:
    source = shares()
    published = [*weekdays(date(2026, 12, 1), date(2026, 12, 31)), *OPEN, date(2027, 1, 21), date(2027, 1, 22)]
    engine = open_store(source, trade_dates(published))
    read(engine, "calendar", "XSHG", "2026-12-01", "2027-01-20")
    assert read_all(engine) == OPEN
    calendar = engine.calendars.get("XSHG")
    assert [calendar.standing(day) for day in (OPEN[0], HOLIDAYS[1], date(2027, 1, 25))] == ["open", "closed", "unknown"]
    assert calendar.known_until == date(2027, 1, 24)
    known = states(engine)
    assert {known[day] for day in OPEN[:-1]} == {"final"}
    again = open_store.again(engine, source, trade_dates(published))
    read_all(again)
    assert again.calendars.get("XSHG").known_until == date(2027, 1, 24)


def test_bars_of_the_reference_index_say_which_days_were_open(open_store: Opener) -> None:
    engine = open_store(shares(), index_of(OPEN))
    read(engine, "index_bars_1d", "000001.SH", "2027-01-01", "2027-01-20")
    assert read_all(engine) == OPEN
    calendar = engine.calendars.get("XSHG")
    assert [calendar.standing(day) for day in (OPEN[0], HOLIDAYS[1], OPEN[-1])] == ["open", "closed", "open"]
    assert calendar.known_until == date(2027, 1, 20)
    assert {states(engine)[day] for day in OPEN[:-1]} == {"final"}


def test_a_past_session_on_which_the_index_is_silent_is_disputed(open_store: Opener, clock: ManualClock) -> None:
    clock.set(datetime(2026, 11, 20, 12, 0, tzinfo=UTC))
    november = weekdays(date(2026, 11, 2), date(2026, 11, 20))
    odd = date(2026, 11, 11)
    rest = [day for day in november if day != odd]
    source = TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS[:1], rest))
    engine = open_store(source, index_of(rest))
    read(engine, "index_bars_1d", "000001.SH", november[0], november[-1])
    read(engine, symbols=SYMBOLS[0], start=november[0], end=november[-1])
    assert engine.calendars.get("XSHG").standing(odd) == "unknown"
    (silent,) = [s for s in engine.store.state("bars_1d").coverage[SYMBOLS[0]] if s.first <= day_number(odd) <= s.last]
    assert (silent.state, silent.reason) == ("unconfirmed", "no_trade")


def test_where_knowledge_has_run_out_the_evidence_is_fetched_by_itself(open_store: Opener) -> None:
    dates, index = trade_dates([*weekdays(date(2026, 12, 1), date(2026, 12, 31)), *OPEN]), index_of(OPEN)
    engine = open_store(shares(), dates, index)
    read_all(engine)
    engine.evidence.close()
    assert (len(dates.requests), len(index.requests)) == (1, 1)
    assert read_all(engine) == OPEN
    assert engine.calendars.get("XSHG").standing(HOLIDAYS[1]) == "closed"
    engine.evidence.close()
    assert (len(dates.requests), len(index.requests)) == (1, 1)  # once a day


def test_a_source_that_fails_costs_nothing_but_the_knowledge(open_store: Opener) -> None:
    dates = trade_dates([])
    dates.error = RuntimeError("no network")
    engine = open_store(shares(), dates)
    assert read_all(engine) == OPEN
    engine.evidence.close()
    assert engine.calendars.get("XSHG").known_until == date(2026, 12, 31)


def test_the_settings_name_another_index(open_store: Opener) -> None:
    other: Dataset = replace(canonical("bars_1d", calendar="XSHG", as_name="etf"), notation="equity")
    source = TableSource(other, bars(["510050.SH"], OPEN), name="etfs")
    engine = open_store(shares(), source, calendar={"XSHG": {"index": "510050.SH", "index_dataset": "etf"}})
    read(engine, "etf", "510050.SH", "2027-01-01", "2027-01-20")
    read_all(engine)
    assert engine.calendars.get("XSHG").standing(HOLIDAYS[1]) == "closed"
    assert engine.evidence.known_days() == {"XSHG": 0}
