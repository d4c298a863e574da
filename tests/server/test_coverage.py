from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import NOW, SYMBOLS, bar, weekdays

from fletching_schemas import FetchRequest, canonical
from fletching_server.calendars import build_calendar, day_number
from fletching_server.coverage import NOTHING_UPSTREAM, facts_of_fill
from fletching_server.image import Image, build_image
from fletching_server.snapshot import Fact
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL

DAILY = canonical("bars_1d", calendar="XSHG")
SHANGHAI = build_calendar("XSHG", NOW.date())
NOON = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)  # Friday noon in Shanghai: today is not settled
NOVEMBER = weekdays(date(2026, 11, 2), date(2026, 11, 20))


def image_of(symbol: str, days: list[date]) -> Image:
    return build_image(DAILY, pa.Table.from_pylist([bar(symbol, day) for day in days], schema=DAILY.schema))


def learned(symbol: str, present: list[date], at: datetime = NOON) -> tuple[Fact, ...]:
    request = FetchRequest("bars_1d", (symbol,), NOVEMBER[0], NOVEMBER[-1])
    return facts_of_fill(DAILY, image_of(symbol, present), request, SHANGHAI, at, "file")


@given(st.sets(st.sampled_from(NOVEMBER)))
def test_every_asked_session_gets_the_one_fact_that_its_row_and_the_clock_give_it(present: set[date]) -> None:
    facts = learned("000001.SZ", sorted(present))
    for day in NOVEMBER:
        (fact,) = [fact for fact in facts if fact.span.first <= day_number(day) <= fact.span.last]
        settled = day < NOVEMBER[-1]
        assert fact.span.state == ((FINAL if day in present else EMPTY) if settled else PROVISIONAL)
        assert fact.span.reason == ("" if day in present else NOTHING_UPSTREAM)
        assert fact.file == ("file" if day in present else None)
        assert fact.span.fetched_at == NOON.timestamp()


def test_after_today_has_settled_all_of_it_is_one_final_run() -> None:
    (fact,) = learned("000001.SZ", NOVEMBER, NOW)
    assert fact.span[:4] == (day_number(NOVEMBER[0]), day_number(NOVEMBER[-1]), FINAL, "")


def test_each_asked_symbol_gets_its_own_facts() -> None:
    request = FetchRequest("bars_1d", SYMBOLS[:3], NOVEMBER[0], NOVEMBER[0])
    facts = facts_of_fill(DAILY, image_of(SYMBOLS[1], NOVEMBER[:1]), request, SHANGHAI, NOW, "file")
    assert [(fact.symbol, fact.span.state) for fact in facts] == [(SYMBOLS[0], EMPTY), (SYMBOLS[1], FINAL), (SYMBOLS[2], EMPTY)]


def test_nothing_is_said_about_days_that_are_no_sessions() -> None:
    request = FetchRequest("bars_1d", SYMBOLS[:1], date(2026, 10, 1), date(2026, 10, 7))
    assert facts_of_fill(DAILY, image_of(SYMBOLS[0], []), request, SHANGHAI, NOW, None) == ()


def test_unknown_days_are_provisional_whatever_the_clock_says() -> None:
    request = FetchRequest("bars_1d", SYMBOLS[:1], date(2027, 1, 4), date(2027, 1, 8))
    late = datetime(2027, 6, 1, tzinfo=UTC)
    assert {fact.span.state for fact in facts_of_fill(DAILY, image_of(SYMBOLS[0], []), request, SHANGHAI, late, None)} == {
        PROVISIONAL
    }


def test_without_a_calendar_nothing_is_called_empty() -> None:
    factors = canonical("adj_factors", as_name="factors")
    request = FetchRequest("factors", ("000001.SZ",), date(2026, 11, 1), date(2026, 11, 20))
    nothing = build_image(factors, factors.schema.empty_table())
    facts = facts_of_fill(factors, nothing, request, build_calendar(None, NOW.date()), NOW, None)
    assert [(fact.span.state, fact.span.reason) for fact in facts] == [(FINAL, ""), (PROVISIONAL, "")]
