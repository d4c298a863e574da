from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import NOW, weekdays

from fletching_schemas import Dataset, FetchRequest, Gap, PartRequest, ReadRequest, canonical
from fletching_schemas.errors import AnswerChanged, OutOfCalendar, UnknownColumn, UnknownSymbol
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number, from_day_number
from fletching_server.gaps import World, fetch_requests, uncovered, unknown
from fletching_server.image import Window
from fletching_server.plan import Plan, divided, estimated_bytes, resolve
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL, Days, Span, Spans
from fletching_server.telling import told_gaps

DAILY = canonical("bars_1d", calendar="XSHG")
MINUTES = canonical("bars_1m", calendar="XSHG")
SHANGHAI = build_calendar("XSHG", NOW.date())
CHICAGO = build_calendar("CMES", NOW.date())
ASHARES = ("000001.SZ", "600519.SH")


def asked(dataset: str, symbols: Any = None, start: Any = None, end: Any = None, **more: Any) -> ReadRequest:
    return ReadRequest(dataset, symbols, start, end, **more)


def world(**changes: Any) -> World:
    return World(**{"calendar": SHANGHAI, "now": NOW, "listed": None, "fillable": True, **changes})


def held(coverage: dict[str, Spans], dataset: Dataset = DAILY, source: str | None = "vendor", **more: Any) -> DatasetState:
    return DatasetState(dataset, source, coverage=coverage, **more)


def span(first: date, last: date, state: Any = FINAL, age: float = 0.0) -> Span:
    reason = "nothing_upstream" if state == EMPTY else ""
    return Span(day_number(first), day_number(last), state, reason, NOW.timestamp() - age)


def file_of(symbols: tuple[str, ...], first: date, last: date, name: str = "f") -> StoredFile:
    return StoredFile(name, "bars_1d", "segment", "", 0, name, "", 1, 1, 1, day_number(first), day_number(last), symbols, 1)


def plan_of(request: ReadRequest, state: DatasetState | None = None, **changes: Any) -> Plan:
    return resolve(request, state or held({}), world(**changes))


def gap_dates(plan: Plan, symbol: str = "000001.SZ") -> list[tuple[date, date]]:
    return [(from_day_number(run.first), from_day_number(run.last)) for run in plan.gaps.get(symbol, ())]


# Cells


def test_of_an_empty_store_everything_is_a_gap() -> None:
    plan = plan_of(asked("bars_1d", ASHARES, "2026-11-02", "2026-11-06"))
    assert plan.symbols == ASHARES
    assert gap_dates(plan) == gap_dates(plan, "600519.SH") == [(date(2026, 11, 2), date(2026, 11, 6))]


def test_a_gap_across_the_golden_week_is_one_range_cut_to_sessions() -> None:
    plan = plan_of(asked("bars_1d", "000001.SZ", "2026-09-26", "2026-10-11"))
    assert gap_dates(plan) == [(date(2026, 9, 28), date(2026, 10, 9))]


def test_facts_on_both_sides_of_a_holiday_leave_no_gap_between_them() -> None:
    state = held({"000001.SZ": (span(date(2026, 9, 28), date(2026, 9, 30)), span(date(2026, 10, 8), date(2026, 10, 9)))})
    assert plan_of(asked("bars_1d", "000001.SZ", "2026-09-28", "2026-10-09"), state).gaps == {}


def test_a_range_without_a_session_wants_nothing() -> None:
    plan = plan_of(asked("bars_1d", "000001.SZ", "2026-10-01", "2026-10-04"))
    assert plan.gaps == {}
    assert plan.wanted.last < plan.wanted.first


SESSIONS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
KNOWN = st.dictionaries(
    st.sampled_from(SESSIONS), st.sampled_from([(FINAL, 0.0), (EMPTY, 0.0), (PROVISIONAL, 10.0), (PROVISIONAL, 1000.0)])
)


@given(KNOWN, st.dates(date(2026, 10, 31), date(2026, 11, 20)), st.dates(date(2026, 10, 31), date(2026, 11, 20)))
def test_gaps_are_exactly_the_sessions_that_no_fresh_fact_vouches_for(known: dict[date, Any], one: date, other: date) -> None:
    start, end = sorted((one, other))
    spans = tuple(span(day, day, state, age) for day, (state, age) in sorted(known.items()))
    plan = plan_of(asked("bars_1d", "000001.SZ", start, end), held({"000001.SZ": spans}))
    vouched = {day for day, (state, age) in known.items() if state != PROVISIONAL or age <= DAILY.fresh_seconds}
    found = [day for first, last in gap_dates(plan) for day in SESSIONS if first <= day <= last]
    assert found == [day for day in SESSIONS if start <= day <= end and day not in vouched]
    assert all(first in SESSIONS and last in SESSIONS for first, last in gap_dates(plan))


@pytest.mark.parametrize(
    ("arguments", "tolerated"),
    [({}, 300.0), ({"max_age": 10}, 10.0), ({"profile": "research"}, 3600.0), ({"max_age": 5, "profile": "research"}, 5.0)],
    ids=["dataset", "max_age", "profile", "both"],
)
def test_the_tolerated_age_is_the_requests_else_the_datasets(arguments: dict[str, Any], tolerated: float) -> None:
    today = date(2026, 11, 20)
    for age, gaps in ((tolerated, 0), (tolerated + 1, 1)):
        state = held({"000001.SZ": (span(today, today, PROVISIONAL, age),)})
        assert len(plan_of(asked("bars_1d", "000001.SZ", today, today, **arguments), state).gaps) == gaps


def test_of_what_is_old_only_the_cells_never_heard_of_are_unknown() -> None:
    today = date(2026, 11, 20)
    state = held({"000001.SZ": (span(today, today, PROVISIONAL, 9999.0),)})
    plan = plan_of(asked("bars_1d", ASHARES, date(2026, 11, 19), today), state)
    assert gap_dates(plan) == [(date(2026, 11, 19), today)]
    assert unknown(plan.gaps, state, SHANGHAI) == {
        "000001.SZ": [Days(day_number(date(2026, 11, 19)), day_number(date(2026, 11, 19)))],
        "600519.SH": plan.gaps["600519.SH"],
    }


def test_where_nobody_can_be_asked_an_open_end_means_what_there_is() -> None:
    state = held({"000001.SZ": (span(date(2026, 11, 2), date(2026, 11, 6)),)})
    assert plan_of(asked("bars_1d", "000001.SZ"), state, fillable=False).gaps == {}
    closed = plan_of(asked("bars_1d", "000001.SZ", "2026-10-30", "2026-11-09"), state, fillable=False)
    assert gap_dates(closed) == [(date(2026, 10, 30), date(2026, 10, 30)), (date(2026, 11, 9), date(2026, 11, 9))]


def test_where_nobody_can_be_asked_provisional_cells_do_not_age() -> None:
    state = held({"000001.SZ": (span(date(2026, 11, 2), date(2026, 11, 6), PROVISIONAL, 1e6),)})
    assert plan_of(asked("bars_1d", "000001.SZ", "2026-11-02", "2026-11-06"), state, fillable=False).gaps == {}


def test_a_user_table_has_no_gaps() -> None:
    assert plan_of(asked("bars_1d"), held({}, source=None)).gaps == {}


# Calls


def test_calls_go_newest_first_and_share_symbols_up_to_what_the_source_takes() -> None:
    dataset = canonical("bars_1d", calendar="XSHG", symbols_per_call=2)
    monday, tuesday = day_number(date(2026, 11, 2)), day_number(date(2026, 11, 3))
    gaps = {"A": [Days(monday, monday), Days(tuesday, tuesday)], "B": [Days(monday, monday)], "C": [Days(monday, monday)]}
    assert fetch_requests(dataset, gaps) == [
        FetchRequest("bars_1d", ("A",), date(2026, 11, 3), date(2026, 11, 3)),
        FetchRequest("bars_1d", ("A", "B"), date(2026, 11, 2), date(2026, 11, 2)),
        FetchRequest("bars_1d", ("C",), date(2026, 11, 2), date(2026, 11, 2)),
    ]


@given(
    st.dictionaries(
        st.sampled_from("ABCDEFG"), st.sets(st.integers(0, 9), min_size=1).map(lambda d: [Days(x, x) for x in sorted(d)])
    ),
    st.integers(1, 4),
)
def test_calls_ask_every_gap_once_and_nothing_else(gaps: dict[str, list[Days]], size: int) -> None:
    calls = fetch_requests(canonical("bars_1d", calendar="XSHG", symbols_per_call=size), gaps)
    made = [(symbol, day_number(call.start), day_number(call.end)) for call in calls for symbol in call.symbols]
    assert sorted(made) == sorted((symbol, run.first, run.last) for symbol, runs in gaps.items() for run in runs)
    assert all(len(call.symbols) <= size for call in calls)
    assert [call.end for call in calls] == sorted((call.end for call in calls), reverse=True)


def test_of_a_run_only_the_sessions_without_a_call_under_way_are_left() -> None:
    run = Days(day_number(date(2026, 11, 2)), day_number(date(2026, 11, 13)))
    flying = [
        Days(day_number(date(2026, 11, 4)), day_number(date(2026, 11, 6))),
        Days(day_number(date(2026, 11, 5)), day_number(date(2026, 11, 5))),
    ]
    left = uncovered(run, flying, SHANGHAI)
    assert [(from_day_number(days.first), from_day_number(days.last)) for days in left] == [
        (date(2026, 11, 2), date(2026, 11, 3)),
        (date(2026, 11, 9), date(2026, 11, 13)),
    ]


# Time


def test_without_an_end_the_range_ends_today_and_without_a_start_it_begins_with_the_calendar() -> None:
    plan = plan_of(asked("bars_1d", "000001.SZ"))
    assert gap_dates(plan) == [(date(1990, 12, 19), date(2026, 11, 20))]
    assert plan.future is None


def test_a_source_says_how_far_back_it_goes() -> None:
    dataset = canonical("bars_1d", calendar="XSHG", first_session=date(2026, 11, 17))
    assert gap_dates(plan_of(asked("bars_1d", "000001.SZ"), held({}, dataset))) == [(date(2026, 11, 17), date(2026, 11, 20))]
    earlier = plan_of(asked("bars_1d", "000001.SZ", "2026-11-02", "2026-11-06"), held({}, dataset))
    assert earlier.gaps == {}


def test_sessions_to_come_are_told_as_future_and_never_asked() -> None:
    plan = plan_of(asked("bars_1d", "000001.SZ", "2026-11-19", "2026-11-26"))
    assert gap_dates(plan) == [(date(2026, 11, 19), date(2026, 11, 20))]
    assert plan.future == Days(day_number(date(2026, 11, 23)), day_number(date(2026, 11, 26)))
    gaps = told_gaps(plan, held({}), "not_cached")
    assert [str(gap) for gap in gaps] == [
        "000001.SZ 2026-11-19..2026-11-20 not_cached",
        "000001.SZ 2026-11-23..2026-11-26 future",
    ]


def test_a_weekend_ahead_is_not_the_future() -> None:
    assert plan_of(asked("bars_1d", "000001.SZ", "2026-11-19", "2026-11-22")).future is None


@pytest.mark.parametrize(
    ("start", "end", "which"), [("1990-12-18", None, "start=1990-12-18"), (None, "2027-11-22", "end=2027-11-22")]
)
def test_dates_outside_the_calendar_are_refused_with_its_bounds(start: str | None, end: str | None, which: str) -> None:
    with pytest.raises(OutOfCalendar, match=rf"{which}.*XSHG.*1990-12-19 to 2027-11-21"):
        plan_of(asked("bars_1d", "000001.SZ", start, end))


def micros(*moment: int) -> int:
    return (datetime(*moment, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)  # type: ignore[misc,arg-type]


def test_a_naive_moment_is_exchange_time() -> None:
    plan = plan_of(asked("bars_1m", "000001.SZ", "2026-11-19T09:30", "2026-11-19T15:00"), held({}, MINUTES))
    day = day_number(date(2026, 11, 19))
    assert plan.window == Window(day, day, micros(2026, 11, 19, 1, 30), micros(2026, 11, 19, 7, 0))


def test_a_moment_with_a_zone_is_that_instant_on_the_exchanges_date() -> None:
    plan = plan_of(asked("bars_1m", "000001.SZ", "2026-11-18T20:00:00-05:00", "2026-11-19T02:00:00Z"), held({}, MINUTES))
    day = day_number(date(2026, 11, 19))
    assert plan.window == Window(day, day, micros(2026, 11, 19, 1, 0), micros(2026, 11, 19, 2, 0))


def test_of_a_daily_table_a_moment_wants_its_whole_session() -> None:
    window = plan_of(asked("bars_1d", "000001.SZ", "2026-11-19T10:00", "2026-11-19T10:00")).window
    assert window == Window(day_number(date(2026, 11, 19)), day_number(date(2026, 11, 19)))


def test_a_date_wants_all_of_its_session() -> None:
    window = plan_of(asked("bars_1m", "000001.SZ", "2026-11-19", "2026-11-19"), held({}, MINUTES)).window
    assert (window.first_instant, window.last_instant) == (None, None)


def test_the_evening_of_an_overnight_exchange_belongs_to_the_next_session() -> None:
    dataset = canonical("bars_1m", calendar="CMES", notation="verbatim")
    window = plan_of(asked("bars_1m", "ES", "2026-11-18", "2026-11-18T20:00"), held({}, dataset), calendar=CHICAGO).window
    assert from_day_number(window.last_day) == date(2026, 11, 19)
    assert window.last_instant == micros(2026, 11, 19, 2, 0)


# Symbols


def test_any_notation_is_one_symbol() -> None:
    assert plan_of(asked("bars_1d", ["sz000001", "000001", "000001.XSHE", "SZSE.000001"])).symbols == ("000001.SZ",)


def test_all_symbols_are_those_listed_else_those_held() -> None:
    state = held({"000001.SZ": ()}, files=(file_of(("600519.SH",), date(2026, 11, 2), date(2026, 11, 2)),))
    assert plan_of(asked("bars_1d"), state).symbols == ("000001.SZ", "600519.SH")
    assert plan_of(asked("bars_1d"), state, listed={"300750.SZ", "000002.SZ"}).symbols == ("000002.SZ", "300750.SZ")


def test_an_unknown_symbol_is_refused_with_the_nearest_that_there_are() -> None:
    with pytest.raises(UnknownSymbol, match=r"no symbol 600518\.SH; it has 3, for instance 600519\.SH"):
        plan_of(asked("bars_1d", "600518"), listed={"600519.SH", "000001.SZ", "300750.SZ"})


def test_a_symbol_that_is_held_is_known_though_the_source_lists_it_no_more() -> None:
    state = held({"600519.SH": (span(date(2026, 11, 2), date(2026, 11, 2)),)})
    assert plan_of(asked("bars_1d", "600519.SH"), state, listed={"000001.SZ"}).symbols == ("600519.SH",)


def test_a_source_that_lists_nothing_may_be_asked_for_any_symbol() -> None:
    assert plan_of(asked("bars_1d", "600518")).symbols == ("600518.SH",)


def test_without_a_source_only_held_symbols_are_known() -> None:
    with pytest.raises(UnknownSymbol, match="it has 0"):
        plan_of(asked("bars_1d", "600518"), fillable=False)


# Columns and files


def test_the_schema_has_the_asked_columns_in_their_order() -> None:
    assert plan_of(asked("bars_1d", "000001.SZ", columns=["close", "symbol"])).schema.names == ["close", "symbol"]
    with pytest.raises(UnknownColumn, match="no column colour; it has symbol, trading_date"):
        plan_of(asked("bars_1d", "000001.SZ", columns=["colour"]))


def test_only_files_that_may_hold_a_wanted_row_are_read() -> None:
    files = (
        file_of(("000001.SZ",), date(2026, 11, 2), date(2026, 11, 6), "hit"),
        file_of(("000001.SZ",), date(2026, 11, 9), date(2026, 11, 13), "other days"),
        file_of(("600519.SH",), date(2026, 11, 2), date(2026, 11, 6), "other symbol"),
    )
    state = held({}, files=files)
    assert [file.id for file in plan_of(asked("bars_1d", "000001.SZ", "2026-11-02", "2026-11-06"), state).files] == ["hit"]
    everything = plan_of(asked("bars_1d", None, "2026-11-02", "2026-11-06"), state)
    assert [file.id for file in everything.files] == ["hit", "other symbol"]


def test_gaps_are_told_with_their_reasons_in_order() -> None:
    state = held({"000001.SZ": (span(date(2026, 11, 2), date(2026, 11, 4), EMPTY), span(date(2026, 11, 5), date(2026, 11, 6)))})
    plan = plan_of(asked("bars_1d", "000001.SZ", "2026-11-03", "2026-11-10"), state)
    assert told_gaps(plan, state, "not_cached") == [
        Gap("000001.SZ", date(2026, 11, 3), date(2026, 11, 4), "nothing_upstream"),
        Gap("000001.SZ", date(2026, 11, 9), date(2026, 11, 10), "not_cached"),
    ]


# Parts


MARKET = tuple(f"{number:06}.SZ" for number in range(1, 31))


def wide_state(first: date, last: date, generation: int = 5) -> DatasetState:
    coverage: dict[str, Spans] = {symbol: (span(first, last),) for symbol in MARKET}
    halves = (MARKET[:15], MARKET[15:])
    files = tuple(file_of(symbols, first, last, f"f{number}") for number, symbols in enumerate(halves))
    return held(coverage, files=files, generation=generation)


@given(st.integers(1, 40), st.sets(st.sampled_from(MARKET), min_size=1))
def test_parts_in_order_are_the_whole_plan(count: int, symbols: set[str]) -> None:
    request = asked("bars_1d", sorted(symbols), "2026-11-02", "2026-11-20")
    plan = plan_of(request, wide_state(date(2026, 11, 2), date(2026, 11, 20)))
    parts = [divided(plan, 5, PartRequest(request, part, count, 5)) for part in range(count)]
    assert tuple(symbol for part in parts for symbol in part.symbols) == plan.symbols
    assert max(len(part.symbols) for part in parts) - min(len(part.symbols) for part in parts) <= 1
    for part in parts:
        assert {file.id for file in part.files} == {file.id for file in plan.files if set(file.symbols) & set(part.symbols)}
        assert (part.schema, part.window, part.gaps) == (plan.schema, plan.window, {})


def test_a_part_of_another_generation_or_with_something_to_fetch_is_refused() -> None:
    request = asked("bars_1d", MARKET[:2], "2026-11-02", "2026-11-20")
    part = PartRequest(request, 0, 2, 5)
    plan = plan_of(request, wide_state(date(2026, 11, 2), date(2026, 11, 20)))
    with pytest.raises(AnswerChanged, match=r"bars_1d changed.*2 parts"):
        divided(plan, 6, part)
    lacking = plan_of(request, wide_state(date(2026, 11, 2), date(2026, 11, 19)))
    assert lacking.gaps
    with pytest.raises(AnswerChanged):
        divided(lacking, 5, part)


def test_of_what_is_held_alone_parts_keep_their_gaps() -> None:
    request = asked("bars_1d", MARKET[:2], "2026-11-02", "2026-11-20", on_miss="cached")
    plan = plan_of(request, wide_state(date(2026, 11, 2), date(2026, 11, 19)))
    parts = [divided(plan, 5, PartRequest(request, part, 2, 5)) for part in range(2)]
    assert [list(part.gaps) for part in parts] == [[MARKET[0]], [MARKET[1]]]
    assert {**parts[0].gaps, **parts[1].gaps} == plan.gaps


def test_the_size_of_an_answer_is_estimated_from_what_is_wanted_of_each_file() -> None:
    state = wide_state(date(2026, 11, 2), date(2026, 11, 21))
    large = [replace(file, memory_bytes=1_000_000) for file in state.files]
    state = replace(state, files=tuple(large))

    def size(symbols: Any = MARKET, start: str = "2026-11-02", columns: Any = None) -> float:
        return estimated_bytes(plan_of(asked("bars_1d", symbols, start, "2026-11-20", columns=columns), state))

    assert size() == pytest.approx(2_000_000 * 19 / 20)
    assert size(MARKET[:3]) == pytest.approx(size() / 10)
    assert size(start="2026-11-11") == pytest.approx(2_000_000 * 10 / 20)
    assert size(columns=["symbol", "close"]) < size() / 4
