from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import NOW, SYMBOLS, bar, weekdays

from fletching_schemas import FetchRequest, canonical
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number
from fletching_server.coverage import (
    DELISTED,
    NO_TRADE,
    NOT_LISTED_YET,
    NOTHING_UPSTREAM,
    NOTHING_YET,
    Circumstances,
    facts_of_fill,
)
from fletching_server.image import Image, build_image
from fletching_server.snapshot import Fact, Life
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL, UNCONFIRMED, Span

DAILY = canonical("bars_1d", calendar="XSHG")
SHANGHAI = build_calendar("XSHG", NOW.date())
NOON = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)  # Friday noon in Shanghai: today is not settled
NOVEMBER = weekdays(date(2026, 11, 2), date(2026, 11, 20))


def image_of(symbol: str, days: list[date]) -> Image:
    return build_image(DAILY, pa.Table.from_pylist([bar(symbol, day) for day in days], schema=DAILY.schema))


def learned(symbol: str, present: list[date], at: datetime = NOON, **seen: Any) -> tuple[Fact, ...]:
    request = FetchRequest("bars_1d", (symbol,), NOVEMBER[0], NOVEMBER[-1])
    return facts_of_fill(DAILY, image_of(symbol, present), request, Circumstances(SHANGHAI, at, **seen), "file")


def on(facts: tuple[Fact, ...], day: date) -> Fact:
    (fact,) = [fact for fact in facts if fact.span.first <= day_number(day) <= fact.span.last]
    return fact


def states(facts: tuple[Fact, ...]) -> list[tuple[str, str]]:
    return [(fact.span.state, fact.span.reason) for fact in facts]


@given(st.sets(st.sampled_from(NOVEMBER), min_size=1))
def test_every_asked_session_gets_the_one_fact_that_its_row_and_the_clock_give_it(present: set[date]) -> None:
    facts = learned("000001.SZ", sorted(present))
    for day in NOVEMBER:
        fact = on(facts, day)
        if day == NOVEMBER[-1]:  # under way at noon
            expected = (PROVISIONAL, "" if day in present else NOTHING_YET)
        else:
            state = UNCONFIRMED if day == NOVEMBER[-2] else FINAL if day in present else EMPTY
            hole = NO_TRADE if min(present) < day < max(present) else NOTHING_UPSTREAM
            expected = (state, "" if day in present else hole)
        assert (fact.span.state, fact.span.reason) == expected
        assert fact.file == ("file" if day in present else None)
        assert fact.span.fetched_at == NOON.timestamp()


def test_the_last_settled_session_waits_for_a_second_look() -> None:
    facts = learned("000001.SZ", NOVEMBER, NOW)
    assert states(facts) == [(FINAL, ""), (UNCONFIRMED, "")]
    assert on(facts, NOVEMBER[-1]).span.first == day_number(NOVEMBER[-1])


def test_seen_twice_alike_it_is_final() -> None:
    assert states(learned("000001.SZ", NOVEMBER, NOW, confirmed={"000001.SZ"})) == [(FINAL, "")]
    assert states(learned("000001.SZ", NOVEMBER[:-1], NOW, confirmed={"000001.SZ"})) == [(FINAL, ""), (EMPTY, NOTHING_UPSTREAM)]


def test_once_a_later_session_has_settled_one_look_is_enough() -> None:
    assert states(learned("000001.SZ", NOVEMBER, NOW + timedelta(days=3))) == [(FINAL, "")]


def test_each_asked_symbol_gets_its_own_facts() -> None:
    request = FetchRequest("bars_1d", SYMBOLS[:3], NOVEMBER[0], NOVEMBER[0])
    seen = Circumstances(SHANGHAI, NOW, existing={SYMBOLS[0]})
    facts = facts_of_fill(DAILY, image_of(SYMBOLS[1], NOVEMBER[:1]), request, seen, "file")
    assert [(fact.symbol, fact.span.state) for fact in facts] == [
        (SYMBOLS[0], EMPTY),
        (SYMBOLS[1], FINAL),
        (SYMBOLS[2], UNCONFIRMED),
    ]


def test_of_a_symbol_that_nobody_has_heard_of_nothing_is_empty_for_good() -> None:
    day = day_number(NOVEMBER[0])
    assert states(learned("999999.SZ", [], NOW)) == [(UNCONFIRMED, NOTHING_UPSTREAM)]
    listed = learned("999999.SZ", [], NOW + timedelta(days=3), existing={"999999.SZ"})
    held = learned("999999.SZ", [], NOW + timedelta(days=3), held={"999999.SZ": (Span(day - 9, day - 9, FINAL, "", 0.0),)})
    assert states(listed) == states(held) == [(EMPTY, NOTHING_UPSTREAM)]


def test_outside_of_its_life_a_symbol_is_not_listed_yet_or_delisted() -> None:
    life = Life(day_number(NOVEMBER[3]), day_number(NOVEMBER[6]))
    facts = learned("000001.SZ", NOVEMBER[3:6], lives={"000001.SZ": life})
    assert on(facts, NOVEMBER[2]).span.reason == NOT_LISTED_YET
    assert on(facts, NOVEMBER[6]).span.reason == NOTHING_UPSTREAM
    assert on(facts, NOVEMBER[7]).span.reason == DELISTED


def test_where_a_source_returns_whole_history_its_first_row_is_the_listing() -> None:
    whole = replace(DAILY, range_pushdown=False)
    request = FetchRequest("bars_1d", ("000001.SZ",), NOVEMBER[0], NOVEMBER[-1])
    for dataset, reason in ((whole, NOT_LISTED_YET), (DAILY, NOTHING_UPSTREAM)):
        facts = facts_of_fill(dataset, image_of("000001.SZ", NOVEMBER[3:]), request, Circumstances(SHANGHAI, NOON), "file")
        assert on(facts, NOVEMBER[0]).span.reason == reason


def test_nothing_is_said_about_days_that_are_no_sessions() -> None:
    request = FetchRequest("bars_1d", SYMBOLS[:1], date(2026, 10, 1), date(2026, 10, 7))
    assert facts_of_fill(DAILY, image_of(SYMBOLS[0], []), request, Circumstances(SHANGHAI, NOW), None) == ()


def test_on_days_that_nobody_knows_neither_rows_nor_their_absence_are_final() -> None:
    request = FetchRequest("bars_1d", SYMBOLS[:1], date(2027, 1, 4), date(2027, 1, 8))
    seen = Circumstances(SHANGHAI, datetime(2027, 6, 1, tzinfo=UTC), existing=SYMBOLS)
    facts = facts_of_fill(DAILY, image_of(SYMBOLS[0], [date(2027, 1, 5)]), request, seen, "file")
    assert {fact.span.state for fact in facts} == {UNCONFIRMED}


def test_without_a_calendar_nothing_is_called_empty() -> None:
    factors = canonical("adj_factors", as_name="factors")
    request = FetchRequest("factors", ("000001.SZ",), date(2026, 11, 1), date(2026, 11, 20))
    nothing = build_image(factors, factors.schema.empty_table())
    facts = facts_of_fill(factors, nothing, request, Circumstances(build_calendar(None, NOW.date()), NOW), None)
    assert states(facts) == [(FINAL, ""), (UNCONFIRMED, ""), (PROVISIONAL, "")]
