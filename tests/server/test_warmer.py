"""The warmer: what is read every morning is there before it is asked for; nobody waits for it, whatever goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, read_info, weekdays

from fletching_schemas import Action, Dataset, ReadInfo
from fletching_server import Engine
from fletching_server.access import AccessEvent, Touched
from fletching_server.allowance import Allowance, Limits
from fletching_server.decisions import Decision, Offer
from fletching_server.sources.sim import SimSource
from fletching_server.worth import KAPPA_NIGHT

SHANGHAI = ZoneInfo("Asia/Shanghai")
SESSIONS = weekdays(date(2026, 11, 2), date(2026, 11, 27))
WEEK = weekdays(date(2026, 11, 9), date(2026, 11, 13))
FRIDAY, MONDAY, TUESDAY = date(2026, 11, 13), date(2026, 11, 16), date(2026, 11, 17)
BEFORE, MORNING, NOON, EVENING = 7.9, 8.75, 12.0, 17.0  # the rows of a session have settled at 16:00
NAMES = list(SYMBOLS[:3])

Open = Callable[..., Engine]


def at(engine: Engine, day: date, hour: float) -> None:
    """Move the clock on to a time of day in Shanghai."""
    instant = datetime(day.year, day.month, day.day, tzinfo=SHANGHAI) + timedelta(hours=hour)
    step = instant - engine.clock.now()
    assert step >= timedelta(0)
    engine.clock.advance(seconds=step.total_seconds())  # type: ignore[attr-defined]


def morning_read(engine: Engine, day: date, symbols: Any = NAMES, **more: Any) -> ReadInfo:
    """Read the last sessions, as somebody does who comes to work."""
    at(engine, day, MORNING)
    _, info = read_info(engine, symbols=symbols, start=day - timedelta(days=9), **more)
    engine.access.flush()
    return info


def look(engine: Engine, day: date, hour: float) -> None:
    at(engine, day, hour)
    engine.access.flush()
    engine.warmer.work()


def live(engine: Engine, days: list[date], reads: Callable[[Engine, date], Any] = morning_read) -> None:
    """Let days pass: a read each morning, and looks in between as the thread would take them."""
    for day in days:
        look(engine, day, BEFORE)
        reads(engine, day)
        look(engine, day, NOON)
        look(engine, day, EVENING)


def figures(engine: Engine) -> dict[str, Any]:
    told = engine.act(Action.STATS, {})
    assert isinstance(told, dict)
    return told


def explained(engine: Engine) -> dict[str, Any]:
    told = engine.act(Action.WARM, {"explain": True})
    assert isinstance(told, dict)
    return told


@pytest.fixture
def market(daily: Dataset) -> TableSource:
    return TableSource(daily, bars(SYMBOLS, SESSIONS))


@pytest.fixture
def open_warm(open_store: Opener, market: TableSource) -> Open:
    """Open engines on Monday the 9th whose warmer is on, but looks only when the test says so."""
    open_store.clock.set(datetime(2026, 11, 9, tzinfo=SHANGHAI))

    def opened(*sources: Any, **settings: Any) -> Engine:
        engine = open_store(*(sources or (market,)), **{"warm_held_out": 0, **settings})
        engine.warmer.on = True
        return engine

    return opened


# What it does


def test_the_sixth_morning_is_answered_from_memory(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)
    calls = len(market.requests)
    info = morning_read(engine, MONDAY)
    assert (info.tier, info.upstream_calls, info.joined_calls) == ("hot", 0, 0)
    assert info.warmed == info.partitions > 0
    assert len(market.requests) == calls
    assert "warmed" in str(info)


def test_who_asks_again_finds_what_the_first_read_used(open_warm: Open) -> None:
    engine = open_warm()
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)
    assert morning_read(engine, MONDAY).warmed > 0
    assert morning_read(engine, MONDAY).warmed == 0
    first, again = list(engine.access.events())[-2:]
    assert [all(part.warmed for part in event.touched) for event in (first, again)] == [True, False]


def test_rows_are_fetched_after_the_close_and_loaded_before_people_come_in(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK[:4])
    look(engine, FRIDAY, BEFORE)
    morning_read(engine, FRIDAY)
    engine.act(Action.EVICT, {})
    calls = len(market.requests)
    look(engine, FRIDAY, 15.5)  # closed, but not settled
    assert len(market.requests) == calls
    look(engine, FRIDAY, 16.1)
    assert {request.end for request in market.requests[calls:]} == {FRIDAY}
    assert engine.hot.facts()["hot_entries"] == 0
    look(engine, MONDAY, 5.5)
    assert engine.hot.facts()["hot_entries"] == 0
    look(engine, MONDAY, 6.6)  # people come in from 07:00 on
    assert engine.hot.facts()["hot_entries"] > 0


def test_what_is_in_memory_and_expected_today_stays_there(open_warm: Open) -> None:
    engine = open_warm()
    live(engine, WEEK)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    read_info(engine, symbols=NAMES, start=FRIDAY - timedelta(days=9))
    before = set(engine.hot._books.entries)
    look(engine, MONDAY, BEFORE)
    assert before
    assert before <= set(engine.hot._policy._expected)  # type: ignore[attr-defined]


def test_what_is_warmed_too_early_to_be_whole_is_not_warmed(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK)
    assert all(request.end <= FRIDAY for request in market.requests)


def test_reads_of_a_fixed_day_are_not_repeated(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()

    def study(engine: Engine, day: date) -> None:
        at(engine, day, MORNING)
        read_info(engine, symbols=NAMES, start=date(2026, 11, 2), end=date(2026, 11, 6))

    live(engine, WEEK, study)
    assert figures(engine)["warm_tasks"] == 0
    assert all(request.start < date(2026, 11, 7) for request in market.requests)  # the second look at them is the reads' own


def test_a_large_group_is_known_by_the_access_log(open_warm: Open, daily: Dataset) -> None:
    names = [f"{number:06}.SZ" for number in range(1, 91)]
    market = TableSource(daily, bars(names, SESSIONS))
    engine = open_warm(market)
    live(engine, WEEK, lambda engine, day: morning_read(engine, day, names))
    look(engine, MONDAY, BEFORE)
    info = morning_read(engine, MONDAY, names)
    assert (info.tier, info.upstream_calls) == ("hot", 0)


def test_a_fixed_confidence_is_an_option(open_warm: Open, market: TableSource) -> None:
    engine = open_warm(min_confidence=0.99, source_calls=2)
    live(engine, WEEK)
    assert figures(engine)["warm_tasks"] == 0
    assert f"min_confidence 0.99 (break-even p* {2 * KAPPA_NIGHT:.2f}); not likely enough" in "\n".join(
        explained(engine)["words"]
    )
    assert len(market.requests) == 5 * len(NAMES)


def test_a_run_is_read_ahead_of(open_warm: Open) -> None:
    engine = open_warm()
    at(engine, date(2026, 11, 17), NOON)
    for day in weekdays(date(2026, 11, 3), date(2026, 11, 5)):
        read_info(engine, symbols=NAMES[0], start=day, end=day)
    engine.access.flush()
    engine.warmer.work()
    told = figures(engine)
    assert told["warm_runs_acted"] > 0
    _, info = read_info(engine, symbols=NAMES[0], start=date(2026, 11, 6), end=date(2026, 11, 6))
    assert info.upstream_calls == 0
    assert figures(engine)["warm_runs_used"] == 1


def test_what_is_asked_for_together_is_made_ready_together(open_warm: Open) -> None:
    engine = open_warm()

    def pair(engine: Engine, day: date) -> None:
        for hour in (NOON - 0.5, NOON - 0.49):
            at(engine, day, hour)
            read_info(
                engine,
                symbols=SYMBOLS[0 if hour == NOON - 0.5 else 1],
                start=day - timedelta(days=3),
                end=day - timedelta(days=3),
            )
            engine.access.flush()
        look(engine, day, NOON)

    for day in weekdays(date(2026, 11, 9), date(2026, 11, 20)):
        pair(engine, day)
    assert any(key.startswith("warm_together") for key in figures(engine))


# What it tells


def test_it_explains_itself_in_words_and_numbers(open_warm: Open) -> None:
    engine = open_warm(source_calls=2)  # one for what nobody waits for
    live(engine, WEEK[:4])
    look(engine, FRIDAY, BEFORE)
    morning_read(engine, FRIDAY)
    at(engine, FRIDAY, EVENING)
    told = explained(engine)
    first = told["decisions"][0]
    assert first["done"]
    assert (first["stage"], first["end"], first["upstream_calls"], first["symbols"]) == ("disk", "2026-11-13", 3, 3)
    assert first["chance"] > 0.7 == first["min_confidence"]
    assert first["break_even"] == pytest.approx(2 * KAPPA_NIGHT)
    assert first["gain_seconds"] > first["price_seconds"]
    assert "3.9 of 3.9 sessions" in first["because"]
    line = next(line for line in told["words"] if line.startswith("fetch bars_1d/"))
    assert "@-1 to 2026-11-13: p 0.8" in line
    assert "3 upstream calls" in line
    assert f"break-even p* {2 * KAPPA_NIGHT:.2f} (the classic rule: 0.7)" in line
    engine.warmer.work()
    assert not any(decision["done"] for decision in explained(engine)["decisions"])


def test_explaining_takes_nothing_from_the_next_look(open_warm: Open) -> None:
    engine = open_warm()
    at(engine, TUESDAY, NOON)
    for day in weekdays(date(2026, 11, 3), date(2026, 11, 5)):
        read_info(engine, symbols=NAMES[0], start=day, end=day)
    engine.access.flush()
    for _ in range(2):
        assert any(each["arm"] == "runs" and each["done"] for each in explained(engine)["decisions"])
    engine.warmer.work()
    assert figures(engine)["warm_runs_acted"] > 0


def test_explaining_does_nothing(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK[:4])
    calls = len(market.requests)
    at(engine, FRIDAY, EVENING)
    explained(engine)
    assert len(market.requests) == calls


def test_a_warmer_that_is_off_says_so(open_warm: Open) -> None:
    engine = open_warm()
    engine.warmer.on = False
    live(engine, WEEK)
    assert explained(engine)["words"][0] == "the warmer is off (setting warm), and learns nothing"
    assert figures(engine)["warm_tasks"] == 0


def test_it_judges_itself(open_warm: Open) -> None:
    engine = open_warm()
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)
    morning_read(engine, MONDAY)
    told = figures(engine)
    assert told["warm_habits_acted"] == 5  # fetched, then loaded: one thing each
    assert told["warm_precision"] == 1
    assert told["warm_timeliness"] == 1
    assert told["warm_polluted"] == 0
    assert told["warm_coverage"] == 5 / 6  # the first morning had to wait
    assert 0 <= told["warm_brier"] < 0.2
    assert told["warm_saved_seconds"] > 0
    assert told["warm_habits_off"] == 0


def test_a_share_of_the_decisions_is_held_out_and_what_that_cost_is_told(open_warm: Open) -> None:
    engine = open_warm(warm_held_out=0.5)
    days = weekdays(date(2026, 11, 9), date(2026, 11, 20))
    live(engine, days)
    told = figures(engine)
    assert 0 < told["warm_withheld"] < 10
    assert told["warm_missed"] > 0
    assert told["warm_missed_seconds"] > 0
    withheld = [each for each in explained(engine)["decisions"] if each["against"].startswith("held out")]
    assert all(each["gain_seconds"] > each["price_seconds"] for each in withheld)


def test_an_arm_that_is_switched_off_does_nothing_and_says_so(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK[:4])
    engine.tracking.judge.off.add("habits")
    calls = len(market.requests)
    at(engine, FRIDAY, EVENING)
    engine.warmer.work()
    assert len(market.requests) == calls
    told = explained(engine)["words"]
    assert "habits is switched off" in told
    assert any("habits is switched off: it was worth nothing lately" in line for line in told)
    assert figures(engine)["warm_habits_off"] == 1


def test_an_arm_that_is_switched_off_comes_back_when_people_wait_for_what_it_says(open_warm: Open, daily: Dataset) -> None:
    names = [f"{number:06}.SZ" for number in range(1, 4)]
    engine = open_warm(TableSource(daily, bars(names, SESSIONS)))
    engine.tracking.judge.off.add("habits")

    def reads(engine: Engine, day: date) -> None:
        for number, name in enumerate(names):
            at(engine, day, MORNING + number / 100)
            read_info(engine, symbols=name, start=day - timedelta(days=9))
        engine.access.flush()

    live(engine, weekdays(date(2026, 11, 9), date(2026, 11, 23)), reads)
    told = figures(engine)
    assert told["warm_withheld"] >= 8
    assert told["warm_missed"] >= 8
    assert told["warm_habits_off"] == 0


def test_what_was_expected_and_did_not_come_is_told(open_warm: Open) -> None:
    engine = open_warm()
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)
    look(engine, TUESDAY, NOON)  # nobody came on Monday
    told = figures(engine)
    assert told["warm_precision"] < 1
    now = engine.clock.now().timestamp()
    assert all(mark.until > now for marks in engine.tracking.marks.values() for mark in marks)


# Bounds


def test_upstream_calls_per_day_are_bounded(open_warm: Open, market: TableSource) -> None:
    engine = open_warm(warm_calls=2)
    live(engine, WEEK)
    assert len(market.requests) == 5 * len(NAMES)  # those of the reads: a task of three calls is more than is allowed
    assert any("3 upstream calls, and 2 are left to this session (warm_calls)" in line for line in explained(engine)["words"])


def test_an_allowance_begins_anew_with_its_slot_and_its_session() -> None:
    allowance = Allowance(Limits(10.0, 5, 100))
    allowance.at("monday", "morning")
    assert allowance.refusal(10.0, 5, 100) is None
    allowance.spend(8.0, 3, 90)
    assert "3.0 s of work, and 2.0 s are left to this slot" in str(allowance.refusal(3.0, 0, 0))
    assert "3 upstream calls, and 2 are left" in str(allowance.refusal(1.0, 3, 0))
    assert "11 bytes, and 10 are left" in str(allowance.refusal(1.0, 1, 11))
    allowance.at("monday", "noon")
    assert allowance.left() == Limits(10.0, 2, 10)
    allowance.at("tuesday", "noon")
    assert allowance.left() == Limits(10.0, 5, 100)


def test_the_background_takes_little_more_than_readers_demand() -> None:
    allowance = Allowance(Limits(1e9, 5, 100))
    assert allowance.refusal(1e6, 0, 0) is None  # nothing is known yet
    for demanded in (200.0, 0.0, 100.0):  # the second is a day on which nobody came
        allowance.learn(demanded)
    assert allowance.demand == pytest.approx(170.0)
    allowance.at("tuesday", "morning")
    allowance.spend(200.0, 0, 0)
    allowance.at("tuesday", "noon")
    assert "56.0 s of work, and 55.0 s are left to this session by what readers demand" in str(allowance.refusal(56.0, 0, 0))
    allowance.at("wednesday", "morning")
    assert allowance.refusal(255.0, 0, 0) is None


def test_readers_demand_what_they_waited_and_what_they_were_spared(open_warm: Open, open_store: Opener, daily: Dataset) -> None:
    class Slow(TableSource):
        def fetch(self, request: Any) -> Any:
            open_store.clock.advance(seconds=0.2)
            return super().fetch(request)

    engine = open_warm(Slow(daily, bars(SYMBOLS, SESSIONS)))
    live(engine, WEEK[:1])
    look(engine, WEEK[1], BEFORE)
    waited = engine.warmer._allowance.demand
    assert waited is not None
    assert waited >= 0.2
    live(engine, WEEK[2:])
    look(engine, MONDAY, BEFORE)
    engine.tracking.session_ended()
    assert morning_read(engine, MONDAY).upstream_calls == 0
    assert engine.tracking.session_ended() >= 0.2  # it was fetched in the background
    assert engine.tracking.session_ended() == 0


def test_the_day_is_that_of_the_exchange_that_is_read_most(open_warm: Open, market: TableSource) -> None:
    engine = open_warm(market, SimSource(calendar="XNYS", symbols=3, first=date(2026, 1, 2), prefix="us_", name="us"))

    def reads(engine: Engine, day: date) -> None:
        for symbols in (NAMES, SYMBOLS[3]):
            morning_read(engine, day, symbols)
        read_info(engine, "us_bars_1d", symbols="AAA.US", start=day - timedelta(days=9))
        engine.access.flush()

    live(engine, WEEK, reads)
    look(engine, MONDAY, 7.5)  # in UTC it is Sunday
    engine.tracking.displaced(["bars_1d/2025/0"], "habits")
    engine.warmer._allowance.spend(0.0, 7, 0)
    left = engine.warmer._allowance.left().calls
    for hour in (8.5, 12.9, 13.1):  # midnight in UTC, and in New York
        look(engine, MONDAY, hour)
    assert engine.warmer._allowance.left().calls <= left
    touched = (Touched("2025", 0, 1, "cold"),)
    engine.tracking.heard([AccessEvent(0.0, "1", "a", "research", "bars_1d", "x", (), 0, 1, False, (), touched, 0, 1, 1, 1.0)])
    assert figures(engine)["warm_polluted"] == 1
    look(engine, TUESDAY, 0.5)
    assert engine.warmer._allowance.left().calls > left


def test_a_working_set_larger_than_memory_is_not_thrashed(open_warm: Open, daily: Dataset) -> None:
    names = [f"{number:06}.SZ" for number in range(1, 13)]
    market = TableSource(daily, bars(names, SESSIONS))
    engine = open_warm(market, memory="6KiB")

    def reads(engine: Engine, day: date) -> None:
        for number, name in enumerate(names):
            at(engine, day, MORNING + number / 100)
            read_info(engine, symbols=name, start=day - timedelta(days=9))
        engine.access.flush()

    live(engine, WEEK, reads)
    for hour in (6.6, 6.9, BEFORE):
        look(engine, MONDAY, hour)
    loaded = figures(engine)["warm_bytes"]
    for hour in (8.0, 8.2, 8.4):
        look(engine, MONDAY, hour)
    assert figures(engine)["warm_bytes"] == loaded
    assert engine.hot.check() == []


# When things go wrong


def test_an_upstream_that_is_down_all_night_is_not_stormed(open_warm: Open, market: TableSource, logs: list[Any]) -> None:
    engine = open_warm()
    live(engine, WEEK[:4])
    look(engine, FRIDAY, BEFORE)
    morning_read(engine, FRIDAY)
    calls, market.error = len(market.requests), RuntimeError("the line is dead")
    for quarter in range(4 * 60):  # until Monday morning
        look(engine, FRIDAY, EVENING + quarter / 4)
    asked = len(market.requests) - calls
    assert 3 <= asked <= 3 * 70  # after an hour of doubling pauses, once an hour
    lines = [line for line in logs if line["event"].startswith("upstream fails: nothing is warmed")]
    assert len(lines) == 1
    assert "the line is dead" in lines[0]["why"]
    assert figures(engine)["warm_resting_upstreams"] == 1
    assert any("rests for" in line and "the line is dead" in line for line in explained(engine)["words"])
    market.error = None
    look(engine, MONDAY, BEFORE)
    assert morning_read(engine, MONDAY).rows > 0
    look(engine, MONDAY, EVENING)
    assert any(line["event"].startswith("upstream answers again") for line in logs)


def test_a_dead_upstream_does_not_keep_what_is_on_disk_from_memory(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK)
    engine.act(Action.EVICT, {})
    market.error = RuntimeError("down")
    look(engine, MONDAY, BEFORE)
    assert engine.hot.facts()["hot_entries"] > 0
    assert morning_read(engine, MONDAY).tier == "hot"


def test_after_a_restart_it_knows_what_it_knew(open_warm: Open, open_store: Opener, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK[:4])
    look(engine, FRIDAY, BEFORE)
    morning_read(engine, FRIDAY)
    at(engine, FRIDAY, EVENING)
    explained(engine)  # which learns what was heard
    before = known_to(engine)
    again = open_store.again(engine, market, warm_held_out=0)
    again.warmer.on = True
    look(again, FRIDAY, EVENING)
    assert known_to(again) == before
    look(again, MONDAY, BEFORE)
    info = morning_read(again, MONDAY)
    assert (info.tier, info.upstream_calls) == ("hot", 0)


def known_to(engine: Engine) -> list[tuple[Any, ...]]:
    """Return what is known of everybody, told from the present session."""
    habits = engine.warmer._learning.habits["XSHG"]
    present = habits.agenda.present(engine.clock.now().timestamp())
    rows = habits.predictor.rows(present)
    return sorted(
        (row["principal"], row["slot"], row["daytype"], row["bucket"], row["session_offset"], round(row["hits"], 9),
         round(row["exposures"], 9), present - row["updated"])
        for row in rows
    )  # fmt: skip


def test_a_cache_closes_while_its_warmer_waits_for_an_upstream_that_hangs(open_warm: Open, market: TableSource) -> None:
    engine = open_warm(source_seconds=3600)
    live(engine, WEEK[:4])
    look(engine, FRIDAY, BEFORE)
    morning_read(engine, FRIDAY)
    calls = len(market.requests)
    market.block()
    at(engine, FRIDAY, EVENING)
    engine.warmer.background.start()
    engine.warmer.background.wake()
    market.wait_for_calls(calls + 1)
    engine.close()  # or the test would hang
    market.unblock()


def test_nobody_waits_for_a_warmer_that_hangs(open_warm: Open, market: TableSource) -> None:
    engine = open_warm(source_seconds=3600, source_calls=2)
    live(engine, WEEK[:4])
    look(engine, FRIDAY, BEFORE)
    morning_read(engine, FRIDAY)
    calls = len(market.requests)
    market.hanging = lambda request: request.symbols[0] in NAMES
    market.block()
    at(engine, FRIDAY, EVENING)
    engine.warmer.background.start()
    engine.warmer.background.wake()
    market.wait_for_calls(calls + 1)
    _, info = read_info(engine, symbols=SYMBOLS[4], start=FRIDAY - timedelta(days=9))
    assert (info.upstream_calls, info.failed) == (1, {})
    explained(engine)
    market.unblock()


def test_an_error_of_ours_does_not_end_the_warmer(open_warm: Open, monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    engine = open_warm()
    live(engine, WEEK)
    engine.act(Action.EVICT, {})
    at(engine, MONDAY, BEFORE)
    with monkeypatch.context() as patch:
        patch.setattr(engine.warmer._warming, "do", lambda *_: 1 / 0)
        assert engine.warmer.background._worked() == 60.0
    assert any(line["event"] == "background work failed; it is tried again" for line in logs)
    engine.warmer.work()
    assert morning_read(engine, MONDAY).tier == "hot"


@pytest.mark.parametrize("days", [-400, -2, 3, 400])
def test_a_clock_that_jumps_is_told_and_harms_nobody(open_warm: Open, days: int, logs: list[Any]) -> None:
    engine = open_warm()
    live(engine, WEEK)
    clock: Any = engine.clock
    clock.set(clock.now() + timedelta(days=days))
    engine.warmer.work()
    assert any(line["event"].startswith("the clock has jumped; the warmer") for line in logs)
    explained(engine)
    clock.set(clock.now() - timedelta(days=days))
    engine.warmer.work()
    look(engine, MONDAY, BEFORE)
    info = morning_read(engine, MONDAY)
    assert (info.tier, info.upstream_calls) == ("hot", 0)


def test_a_holiday_is_no_session_and_the_offset_goes_across_it(open_warm: Open, market: TableSource) -> None:
    engine = open_warm(calendar={"XSHG": {"remove": [MONDAY]}})
    for symbol in SYMBOLS:
        del market.rows[symbol, MONDAY]
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)  # nobody comes
    look(engine, MONDAY, EVENING)
    assert not any(request.end == MONDAY for request in market.requests)
    look(engine, TUESDAY, BEFORE)
    info = morning_read(engine, TUESDAY)
    assert (info.tier, info.upstream_calls) == ("hot", 0)
    assert info.warmed > 0


def test_after_a_half_day_rows_are_fetched_earlier(open_warm: Open, open_store: Opener) -> None:
    new_york = ZoneInfo("America/New_York")
    days = [date(2026, 11, day) for day in (18, 19, 20, 23, 24, 25, 27)]  # the 26th is Thanksgiving, the 27th is short
    engine = open_warm(SimSource(calendar="XNYS", symbols=3, first=date(2026, 1, 2)))
    fetched: dict[date, list[bool]] = {}
    for day in days:
        start = datetime(day.year, day.month, day.day, tzinfo=new_york)
        for hour in (8.9, 18.0, 21.0):  # settled 4.5 hours after the close: at 20:30, or at 17:30
            open_store.clock.advance(seconds=(start + timedelta(hours=hour) - open_store.clock.now()).total_seconds())
            if hour < 9:
                read_info(engine, symbols="AAA.US", start=day - timedelta(days=9))
            engine.access.flush()
            engine.warmer.work()
            known: Any = engine.act(Action.COVERAGE, {"dataset": "bars_1d", "symbols": ["AAA.US"]})
            held = [run for run in known.to_pylist() if run["state"] != "missing"]
            fetched.setdefault(day, []).append(any(run["last"] == day for run in held))
    assert fetched[days[-2]] == [False, False, True]
    assert fetched[days[-1]] == [False, True, True]


def test_what_was_folded_after_it_was_loaded_is_loaded_again(open_warm: Open) -> None:
    engine = open_warm()
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)
    engine.act(Action.EVICT, {})
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert engine.hot.facts()["hot_entries"] == 0
    engine.warmer.work()
    info = morning_read(engine, MONDAY)
    assert (info.tier, info.upstream_calls) == ("hot", 0)


def test_commits_make_it_look_again_but_not_all_the_time_and_none_is_lost(
    open_warm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_warm()
    live(engine, WEEK)
    look(engine, MONDAY, BEFORE)
    warmer, found = engine.warmer, Counter[str]()
    looked, act = warmer._looked, warmer._act

    def counted() -> list[Decision]:
        found["looks"] += 1
        return looked()

    def committing(offers: list[Offer]) -> bool:
        warmer.committed("bars_1d")
        return act(offers)

    monkeypatch.setattr(warmer, "_looked", counted)
    for _ in range(40):  # ten seconds
        warmer.committed("bars_1d")
        warmer.work()
        engine.clock.advance(seconds=0.25)  # type: ignore[attr-defined]
    assert found["looks"] == 1
    monkeypatch.setattr(warmer, "_act", committing)
    for _ in range(2):
        engine.clock.advance(seconds=15)  # type: ignore[attr-defined]
        warmer.work()
    assert found["looks"] == 3


def test_a_deleted_dataset_is_expected_no_more(open_warm: Open, market: TableSource) -> None:
    engine = open_warm()
    live(engine, WEEK)
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d"})
    market.rows.clear()
    look(engine, MONDAY, BEFORE)
    assert engine.verify() == []
