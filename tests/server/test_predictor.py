"""What is expected is what the log says: one query rebuilds it, and habits follow sessions and not dates."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import weekdays

from fletching_server.agenda import Agenda, DayType, Moment, Slot, of_days
from fletching_server.calendars import day_number, from_day_number
from fletching_server.predictor import (
    HALF_LIFE,
    MOST_HABITS,
    MOST_NEW,
    MOST_PRINCIPALS,
    NEWCOMERS,
    REBUILD,
    Predictor,
    RelativeKey,
)

HOLIDAY = date(2026, 10, 8)  # a Thursday
DAYS = [day for day in weekdays(date(2026, 9, 7), date(2026, 12, 31)) if day != HOLIDAY]
AGENDA: Agenda = of_days([day_number(day) for day in DAYS], ZoneInfo("UTC"), time(9, 30), time(16), timedelta(minutes=15))
BARS, BOOKS, NAMES = RelativeKey("bars", "AAPL", -1), RelativeKey("books", "AAPL", 0), RelativeKey("names", "*", None)
LONGEST = 26  # sessions: after more a habit of one use is forgotten

Touch = tuple[int, Slot, str, RelativeKey]
TOUCHES = st.lists(
    st.tuples(
        st.integers(0, LONGEST - 1),
        st.sampled_from([Slot.PRE_OPEN, Slot.MIDDAY, Slot.CLOSED]),
        st.sampled_from(["ann", "bob", "cho"]),
        st.sampled_from([BARS, BOOKS, NAMES]),
    ),
    min_size=1,
    max_size=80,
)


def learned(touches: Iterable[Touch]) -> Predictor:
    predictor = Predictor(AGENDA)
    for session, slot, principal, key in touches:
        predictor.note(principal, Moment(session, slot), key)
    return predictor


def every_session(principal: str, sessions: Iterable[int], key: RelativeKey = BARS) -> list[Touch]:
    return [(session, Slot.PRE_OPEN, principal, key) for session in sessions]


def chances(predictor: Predictor, session: int, *slots: Slot) -> dict[RelativeKey, float]:
    return {each.key: each.chance for each in predictor.expected(session, slots or (Slot.ANY,))}


def rebuilt(touches: list[Touch], now: int) -> list[dict[str, Any]]:
    """Return what ``REBUILD`` makes of the log of *touches*."""
    rows = [(principal, int(part), key, session) for session, slot, principal, key in touches for part in (slot, Slot.ANY)]
    known = set[tuple[str, RelativeKey]]()
    for session, _, principal, key in touches:
        if (principal, key) not in known:
            known.add((principal, key))
            rows.append((NEWCOMERS, int(Slot.ANY), key, session))
    spread = [(*row, kind) for row in rows for kind in AGENDA.day_types(row[3])]
    log = pa.table(
        {
            "principal": [row[0] for row in spread],
            "slot": [row[1] for row in spread],
            "daytype": [row[4] for row in spread],
            "dataset": [row[2].dataset for row in spread],
            "bucket": [row[2].bucket for row in spread],
            "session_offset": pa.array([row[2].offset for row in spread], pa.int64()),
            "session": [row[3] for row in spread],
        }
    )
    with duckdb.connect() as database:
        database.register("touches", log)
        found = database.execute(REBUILD, {"now": now})
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def by_name(rows: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[float, int]]:
    names = ("principal", "slot", "daytype", "dataset", "bucket", "session_offset")
    return {tuple(row[name] for name in names): (row["hits"], row["updated"]) for row in rows}


@given(TOUCHES.map(lambda touches: sorted(touches, key=lambda touch: touch[0])), st.integers(0, 5))
def test_one_query_over_the_log_gives_the_state_that_was_kept_all_along(touches: list[Touch], later: int) -> None:
    predictor, now = learned(touches), touches[-1][0] + later
    table = rebuilt(touches, now)
    kept, batch = by_name(predictor.rows(now)), by_name(table)
    assert kept.keys() == batch.keys()
    assert [kept[name][1] for name in kept] == [batch[name][1] for name in kept]
    assert [kept[name][0] for name in kept] == pytest.approx([batch[name][0] for name in kept], abs=1e-9)
    restored = Predictor(AGENDA)
    restored.restore(table, now, predictor.first_seen())
    for slots in ((Slot.ANY,), (Slot.PRE_OPEN,), (Slot.PRE_OPEN, Slot.MIDDAY)):
        for session in (now, now + 1, now + 3):
            assert chances(restored, session, *slots) == pytest.approx(chances(predictor, session, *slots), abs=1e-9)


@given(TOUCHES, st.integers(LONGEST, LONGEST + 5))
def test_exposures_are_the_decayed_sessions_of_a_kind_since_somebody_was_first_seen(touches: list[Touch], now: int) -> None:
    predictor = learned(touches)
    for principal in ("ann", "bob", "cho"):
        if seen := [touch[0] for touch in touches if touch[2] == principal]:
            assert predictor.first_seen()[principal] == min(seen)
    for row in predictor.rows(now):
        first, kind = predictor.first_seen()[row["principal"]], row["daytype"]
        sessions = [session for session in range(first, now) if kind in AGENDA.day_types(session)]
        assert row["exposures"] == pytest.approx(sum(0.5 ** ((now - session) / HALF_LIFE) for session in sessions))


@given(TOUCHES, st.integers(0, LONGEST + 5))
def test_chances_are_chances_whatever_order_the_log_is_in(touches: list[Touch], session: int) -> None:
    predictor = learned(touches)
    assert all(0 < chance <= 1 for chance in chances(predictor, session).values())
    assert all(0 <= each.chance <= 1 and str(each) for each in predictor.because(BARS, session))


def test_what_was_done_every_morning_is_expected_and_what_was_done_once_is_not() -> None:
    predictor = learned([*every_session("ann", range(15)), *every_session("ann", [2], BOOKS)])
    found = chances(predictor, 15, Slot.PRE_OPEN)
    assert found[BARS] > 0.9
    assert found[BOOKS] < 0.15
    assert chances(predictor, 15, Slot.MIDDAY) == {}


def test_a_hit_weighs_half_after_its_half_life() -> None:
    (row,) = (
        row
        for row in learned(every_session("ann", [3])).rows(3 + int(HALF_LIFE))
        if (row["slot"], row["daytype"], row["principal"]) == (Slot.PRE_OPEN, DayType.ALL, "ann")
    )
    assert row["hits"] == pytest.approx(0.5)


def test_what_is_done_on_mondays_is_expected_on_mondays() -> None:
    mondays = [session for session in range(40) if DAYS[session].weekday() == 0]
    predictor = learned(sorted([*every_session("ann", mondays), *every_session("ann", range(40), BOOKS)], key=lambda one: one[0]))
    monday, tuesday = (next(n for n in range(40, 50) if DAYS[n].weekday() == day) for day in (0, 1))
    assert chances(predictor, monday)[BARS] > 0.4
    assert chances(predictor, tuesday).get(BARS, 0.0) < 0.2
    assert chances(predictor, tuesday)[BOOKS] > 0.9


def test_a_kind_of_day_that_was_never_seen_backs_off_to_all_days() -> None:
    after_gap = DAYS.index(HOLIDAY + timedelta(days=1))
    assert int(DayType.AFTER_GAP) in AGENDA.day_types(after_gap)
    assert chances(learned(every_session("ann", range(after_gap))), after_gap)[BARS] > 0.8


def test_several_people_are_combined_as_if_they_decided_alone() -> None:
    odd, third = range(1, 20, 2), range(0, 20, 3)
    predictor = learned(sorted([*every_session("ann", odd), *every_session("bob", third)], key=lambda one: one[0]))
    ann, bob = predictor.because(BARS, 20, (Slot.PRE_OPEN,))
    assert {ann.principal, bob.principal} == {"ann", "bob"}
    assert chances(predictor, 20, Slot.PRE_OPEN)[BARS] == pytest.approx(1 - (1 - ann.chance) * (1 - bob.chance))


def test_the_weight_is_that_of_those_who_are_expected() -> None:
    predictor = Predictor(AGENDA)
    for session in range(10):
        predictor.note("ann", Moment(session, Slot.PRE_OPEN), BARS, weight=5.0)
        predictor.note("bob", Moment(session, Slot.PRE_OPEN), BARS, weight=1.0)
    (expected,) = predictor.expected(10, (Slot.PRE_OPEN,))
    assert expected.weight == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("today", "before"),
    [
        (date(2026, 10, 12), date(2026, 10, 9)),  # a Monday
        (date(2026, 10, 9), date(2026, 10, 7)),  # after a holiday
    ],
)
def test_habits_roll_over_weekends_and_holidays(today: date, before: date) -> None:
    session = DAYS.index(today)
    (expected,) = learned(every_session("ann", range(session))).expected(session)
    assert expected.chance > 0.8
    assert expected.key.offset is not None
    assert from_day_number(AGENDA.days[session + expected.key.offset]) == before


def test_what_always_finds_new_readers_is_expected_though_nobody_came_twice() -> None:
    predictor = learned([(session, Slot.PRE_OPEN, f"reader {session}", BARS) for session in range(15)])
    assert chances(predictor, 15)[BARS] > 0.5
    assert NEWCOMERS in {each.principal for each in predictor.because(BARS, 15)}


def test_what_was_done_today_says_nothing_of_today() -> None:
    before = learned(every_session("ann", range(12)))
    after = learned(every_session("ann", range(13)))
    assert chances(after, 12)[BARS] == pytest.approx(chances(before, 12)[BARS])
    assert chances(learned(every_session("ann", [3])), 3) == {}


def test_a_clock_that_jumps_back_counts_nothing_twice() -> None:
    touches = every_session("ann", [*range(10), *range(10)])
    assert by_name(learned(touches).rows(10)) == by_name(learned(touches[:10]).rows(10))
    told_late = learned(every_session("ann", [5, 6, 7, 2]))
    assert told_late.first_seen()["ann"] == 2


def test_a_second_touch_in_the_same_part_of_a_session_is_none() -> None:
    predictor = Predictor(AGENDA)
    moments = [Moment(1, Slot.PRE_OPEN), Moment(1, Slot.PRE_OPEN), Moment(1, Slot.MIDDAY), Moment(2, Slot.PRE_OPEN)]
    assert [predictor.note("ann", moment, BARS) for moment in moments] == [True, False, True, True]
    assert predictor.knows("ann", BARS)
    assert not predictor.knows("bob", BARS)


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    predictor = learned([*every_session("ann", range(3)), *every_session("bob", [60], BOOKS)])
    assert len(predictor) == 1
    assert {row["principal"] for row in predictor.rows(60)} == {"bob", NEWCOMERS}


def keys(count: int, session: int) -> Iterable[RelativeKey]:
    return (RelativeKey("bars", f"#{session}-{number}", -1) for number in range(count))


def test_who_asks_for_ever_different_things_crowds_out_nobody() -> None:
    predictor = Predictor(AGENDA)
    for session in range(20):
        predictor.note("ann", Moment(session, Slot.PRE_OPEN), BARS)
        for key in keys(10_000, session):
            predictor.note("flood", Moment(session, Slot.MIDDAY), key)
    assert MOST_NEW < len(predictor) <= MOST_HABITS
    assert len(list(predictor.rows(20))) < 10 * MOST_HABITS
    assert chances(predictor, 20, Slot.PRE_OPEN)[BARS] > 0.9
    assert predictor.knows("flood", RelativeKey("bars", f"#19-{MOST_NEW - 1}", -1))
    assert not predictor.knows("flood", RelativeKey("bars", f"#19-{MOST_NEW}", -1))


def test_when_many_flood_together_the_surest_habits_stay() -> None:
    predictor = Predictor(AGENDA)
    for session in range(3):
        predictor.note("ann", Moment(session, Slot.PRE_OPEN), BARS)
    for number in range(60_000):
        predictor.note(f"flood {number // 2}", Moment(3, Slot.MIDDAY), RelativeKey("bars", f"#{number}", -1))
    habits = {(row["principal"], row["bucket"]) for row in predictor.rows(4)}
    assert MOST_HABITS * 0.7 < len(habits) <= MOST_HABITS
    assert ("ann", "AAPL") in habits
    assert chances(predictor, 4, Slot.PRE_OPEN)[BARS] > 0.5
    assert ("flood 29999", "#59999") in habits


def test_principals_without_habits_are_forgotten_when_they_are_many() -> None:
    predictor = Predictor(AGENDA)
    for number in range(MOST_PRINCIPALS + 10):
        predictor.note(f"once {number}", Moment(0, Slot.MIDDAY), BARS)
    predictor.note("ann", Moment(60, Slot.MIDDAY), BARS)
    assert set(predictor.first_seen()) == {"ann", NEWCOMERS}
