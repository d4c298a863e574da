"""What follows from reads for the hours ahead: relative keys, shapes that roll, occasions, and decisions. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from tests.conftest import weekdays

from fletching_schemas import ReadRequest
from fletching_server.access import AccessEvent, group_of
from fletching_server.agenda import Agenda, Moment, Slot, of_calendar
from fletching_server.allowance import Allowance, Limits
from fletching_server.almanac import build_calendar
from fletching_server.calendars import Calendar, day_number
from fletching_server.decisions import WITHHELD, Offer, decided, name_of
from fletching_server.habits import HABITS, RUNS, TOGETHER, Habits, Wanted
from fletching_server.needs import Needs
from fletching_server.occasions import LOOK_SECONDS, occasions, rest_seconds
from fletching_server.predictor import RelativeKey
from fletching_server.spans import Days
from fletching_server.warming import Estimate, Task
from fletching_server.worth import Rule

SHANGHAI = ZoneInfo("Asia/Shanghai")
MONDAYS_WEEK = weekdays(date(2026, 11, 9), date(2026, 11, 13))


@pytest.fixture(scope="module")
def calendar() -> Calendar:
    return build_calendar("XSHG", date(2026, 11, 20))


@pytest.fixture(scope="module")
def agenda(calendar: Calendar) -> Agenda:
    return of_calendar(calendar, date(2026, 9, 1), date(2026, 12, 31))


def at(day: date, hour: float) -> float:
    return (datetime(day.year, day.month, day.day, tzinfo=SHANGHAI) + timedelta(hours=hour)).timestamp()


def event(
    when: float, last: date, *, first: date | None = None, open_end: bool = False, symbols: tuple[str, ...] = ("A",)
) -> AccessEvent:
    return AccessEvent(
        at=when,
        request_id="1",
        principal="ann",
        profile="research",
        dataset="bars",
        group=group_of(symbols),
        symbols=symbols,
        first=None if first is None else day_number(first),
        last=day_number(last),
        open_end=open_end,
        columns=(),
        touched=(),
        upstream_calls=0,
        rows=1,
        bytes=1,
        milliseconds=1.0,
    )


def no_members(_group: str) -> tuple[str, ...]:
    return ()


def week_of_mornings(habits: Habits) -> None:
    """Read, each morning, the five sessions up to the one before."""
    for day in MONDAYS_WEEK:
        last = habits.agenda.number(day_number(day)) - 1
        sessions = [date.fromordinal(number + 719163) for number in habits.agenda.days[last - 4 : last + 1]]
        habits.note(event(at(day, 8.5), sessions[-1], first=sessions[0]))


def test_a_key_is_told_from_the_session_of_its_read(agenda: Agenda) -> None:
    habits = Habits(agenda)
    monday, friday = date(2026, 11, 16), date(2026, 11, 13)
    assert habits.key_of(event(at(monday, 8.5), friday)) == RelativeKey("bars", "A", -1)
    assert habits.key_of(event(at(monday, 20), monday)) == RelativeKey("bars", "A", 0)
    assert habits.key_of(event(at(monday, 20), date(2020, 1, 2))) is None  # before anything the agenda knows
    assert habits.key_of(replace(event(at(monday, 20), monday), last=None)) is None
    assert habits.key_of(event(at(monday, 20), monday), table=True) == RelativeKey("bars", "A", None)


def test_what_was_read_every_morning_is_expected_rolled_forward(agenda: Agenda, calendar: Calendar) -> None:
    habits = Habits(agenda)
    week_of_mornings(habits)
    monday = agenda.number(day_number(date(2026, 11, 16)))
    (wanted,) = habits.expected(monday, (Slot.ANY,))
    assert (wanted.key.offset, wanted.arm) == (-1, HABITS)
    assert wanted.chance > 0.7
    assert "ann: " in habits.because(wanted)
    friday = day_number(date(2026, 11, 13))
    request = habits.request(wanted, calendar, friday, no_members)
    assert request == ReadRequest("bars", ("A",), date(2026, 11, 9), date(2026, 11, 13))
    thursday = habits.request(wanted, calendar, friday - 1, no_members)  # Friday's rows cannot be had yet
    assert thursday == ReadRequest("bars", ("A",), date(2026, 11, 9), date(2026, 11, 12))
    assert habits.request(wanted, calendar, friday - 7, no_members) is None


def test_a_range_that_stays_says_nothing_about_the_next_session(agenda: Agenda) -> None:
    habits = Habits(agenda)
    for day in MONDAYS_WEEK:
        habits.note(event(at(day, 8.5), date(2026, 11, 6), first=date(2026, 11, 2)))
    monday = agenda.number(day_number(date(2026, 11, 16)))
    assert list(habits.expected(monday, (Slot.ANY,))) == []


def test_a_group_whose_members_nobody_knows_is_not_read(agenda: Agenda, calendar: Calendar) -> None:
    habits, many = Habits(agenda), tuple(f"S{number}" for number in range(100))
    for day in MONDAYS_WEEK:
        habits.note(replace(event(at(day, 8.5), day - timedelta(days=1), open_end=True, symbols=many), symbols=()))
    monday = agenda.number(day_number(date(2026, 11, 16)))
    (wanted,) = habits.expected(monday, (Slot.ANY,))
    settled = day_number(date(2026, 11, 13))
    assert habits.request(wanted, calendar, settled, no_members) is None
    known = habits.request(wanted, calendar, settled, lambda _: many)
    assert known is not None
    assert known.symbols == many


def test_predictions_are_held_against_what_came(agenda: Agenda) -> None:
    habits = Habits(agenda)
    week_of_mornings(habits)
    monday = agenda.number(day_number(date(2026, 11, 16)))
    habits.came(monday)
    habits.say(monday)
    habits.note(event(at(date(2026, 11, 16), 8.5), date(2026, 11, 13), first=date(2026, 11, 9)))
    ((chance, came),) = habits.came(monday + 1)
    assert came
    assert chance > 0.7
    habits.say(monday + 1)
    assert [came for _, came in habits.came(monday + 2)] == [False]


def test_a_log_out_of_order_at_midnight_scores_no_session_twice(agenda: Agenda) -> None:
    habits = Habits(agenda)
    week_of_mornings(habits)
    monday = agenda.number(day_number(date(2026, 11, 16)))
    habits.say(monday)
    habits.note(event(at(date(2026, 11, 16), 8.5), date(2026, 11, 13), first=date(2026, 11, 9)))
    scored = habits.came(monday + 1)
    habits.say(monday + 1)
    habits.came(monday)  # a read of Monday that ended after the first of Tuesday
    habits.say(monday)
    assert [came for _, came in scored] == [True]
    assert len(habits.came(monday + 2)) == 1  # Tuesday's, and not Monday's again


def test_what_was_seen_in_a_session_is_bounded_and_what_was_predicted_counts_beyond_it(agenda: Agenda) -> None:
    habits = Habits(agenda)
    week_of_mornings(habits)
    monday, friday = date(2026, 11, 16), date(2026, 11, 13)
    session = agenda.number(day_number(monday))
    habits.say(session)
    for number in range(60_000):
        habits.note(event(at(monday, 8.1), friday, symbols=(f"S{number}",)))
    habits.note(event(at(monday, 8.5), friday, first=date(2026, 11, 9)))
    assert len(habits._seen[session]) == 50_001
    assert [came for _, came in habits.came(session + 1)] == [True]


def test_a_run_is_told_as_it_goes_on_but_not_into_the_future(agenda: Agenda) -> None:
    habits = Habits(agenda)
    friday = date(2026, 11, 13)
    found = [habits.note(event(at(friday, 20) + number, day)) for number, day in enumerate(MONDAYS_WEEK[:4])]
    assert found[0] == found[1] == []
    ahead = [wanted for wanted in found[3] if wanted.arm == RUNS]
    assert [wanted.key.offset for wanted in ahead] == [0]  # Friday's, and no further
    assert habits.because(ahead[0]) == "read session by session"


def test_what_goes_together_is_told(agenda: Agenda) -> None:
    habits = Habits(agenda)
    told: list[Wanted] = []
    for day in MONDAYS_WEEK:
        told = [
            wanted for wanted in habits.note(event(at(day, 11), MONDAYS_WEEK[0] - timedelta(days=3))) if wanted.arm == TOGETHER
        ]
        habits.note(event(at(day, 11) + 60, MONDAYS_WEEK[0] - timedelta(days=3), symbols=("B",)))
        habits.came(agenda.present(at(day, 11)))
    assert all(wanted.arm == TOGETHER for wanted in told)


# Occasions


def test_before_people_come_in_the_day_is_loaded_and_after_the_close_the_next_is_fetched(agenda: Agenda) -> None:
    friday = date(2026, 11, 13)
    number = agenda.number(day_number(friday))
    early = occasions(agenda, at(friday, 6.6))
    assert (early[0].session, early[0].slots, early[0].memory) == (number, (Slot.ANY,), True)
    late = {occasion.memory: occasion for occasion in occasions(agenda, at(friday, 16.1))}
    assert (late[False].session, late[False].slots) == (number + 1, (Slot.ANY,))
    assert late[True].session == number
    saturday = occasions(agenda, at(date(2026, 11, 14), 12))
    assert [(occasion.session, occasion.memory) for occasion in saturday] == [(number + 1, False)]


@pytest.mark.parametrize("hour", [0.0, 6.49, 6.51, 9.0, 12.0, 15.99, 16.01, 23.9])
def test_the_next_look_is_never_far(agenda: Agenda, hour: float) -> None:
    rest = rest_seconds(agenda, at(date(2026, 11, 13), hour))
    assert 1.0 <= rest <= LOOK_SECONDS


def test_far_from_its_sessions_an_agenda_has_no_occasions(agenda: Agenda) -> None:
    assert occasions(agenda, agenda.midnights[0] - 1e8) == []
    assert occasions(agenda, agenda.midnights[-1] + 1e8) == []
    assert rest_seconds(agenda, agenda.midnights[-1] + 1e8) == LOOK_SECONDS


# Decisions


def offer(
    name: str = "a", chance: float = 0.9, *, calls: int = 1, seconds: float = 1.0, loses: float = 0.0, fits: bool = True
) -> Offer:
    wanted = Wanted(RelativeKey("bars", name, -1), Moment(7, Slot.ANY), (Slot.ANY,), chance, 1.0, HABITS)
    task = Task(name, HABITS, ReadRequest("bars"), memory=True, until=0.0, chance=chance)
    estimate = Estimate(Needs(1, 1, calls, 100, 100, 40), seconds, 100, 0.5, Days(0, 1), ())
    return Offer(wanted, task, estimate, "because", loses=loses, leaving=("x/1/0",) if loses else (), fits=fits)


def decide(
    *offers: Offer, rule: Rule | None = None, limits: Limits | None = None, off: bool = False, held: bool = False, rests: str = ""
) -> list[str]:
    chosen = rule or Rule(kappa=0.2)
    found = decided(
        offers,
        lambda _memory: chosen,
        Allowance(limits or Limits(1e9, 10**9, 10**9)),
        is_off=lambda _arm: off,
        is_withheld=lambda _offer: held,
        rests=lambda _offer: rests,
    )
    return [f"{each.offer.task.name}: {each.against}" for each in found]


def test_what_pays_is_done_the_most_seconds_first_and_the_rest_says_why() -> None:
    assert decide(offer("a", 0.3), offer("b", 0.9), offer("c", 0.1)) == ["b: ", "a: ", "c: it does not pay"]
    assert decide(offer(loses=5.0)) == ["a: it does not pay"]
    assert decide(offer(fits=False)) == ["a: it is larger than memory"]
    assert decide(offer(), off=True) == ["a: habits is switched off: it was worth nothing lately"]
    assert decide(offer(), held=True) == [f"a: {WITHHELD}"]
    assert decide(offer(), rests="it rests") == ["a: it rests"]
    assert decide(offer(calls=0, seconds=0.0), rests="it rests") == ["a: "]  # what lies on disk needs no upstream
    assert decide(offer(), limits=Limits(1.0, 9, 9**9)) == ["a: 1.5 s of work, and 1.0 s are left to this slot (warm_seconds)"]
    assert decide(offer("a", 0.6), rule=Rule(min_confidence=0.7)) == ["a: not likely enough"]


def test_what_people_wait_is_told_by_their_calls_at_a_time_and_what_it_takes_by_those_of_the_background() -> None:
    found = replace(offer(calls=8, seconds=4.0), width=4, behind=2)
    assert (found.candidate.saves, found.candidate.fill_seconds) == (1.0 + 0.5, 2.0 + 0.5)


def test_a_decision_tells_its_numbers() -> None:
    chosen = Rule(kappa=0.2)
    (decision,) = decided(
        [offer(loses=0.1)], lambda _: chosen, Allowance(Limits(9e9, 9, 9**9)), is_off=lambda _: False,
        is_withheld=lambda _: False, rests=lambda _: "",
    )  # fmt: skip
    told = decision.told()
    assert (told["chance"], told["saves_seconds"], told["gain_seconds"], told["price_seconds"]) == (0.9, 1.5, 1.35, 0.4)
    assert (told["break_even"], told["min_confidence"], told["victims"], told["done"]) == (0.2667, 0.7, ["x/1/0"], True)
    assert "load a: p 0.90 (because); 1 upstream calls" in decision.words()
    assert "1 files leave for it (x/1/0)" in decision.words()


def test_a_task_is_called_by_what_it_reads() -> None:
    wanted = offer().wanted
    assert name_of(wanted, date(2026, 11, 13)) == "bars/a@-1 to 2026-11-13"
    table = replace(wanted, key=RelativeKey("mine", "*", None))
    assert name_of(table, None) == "mine/*"
