"""Marks on what was made ready, and the reads that meet them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, read_info, weekdays

from fletching_schemas import Action, Dataset, ReadRequest
from fletching_server import Engine
from fletching_server.access import AccessEvent, Touched
from fletching_server.spans import Days
from fletching_server.testing import ManualClock
from fletching_server.tracking import MOST_MARKS, Mark, Tracking
from fletching_server.warming import Task
from fletching_server.worth import KAPPA

DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 13))
WISH = {"dataset": "bars_1d", "start": "2026-11-02", "end": "2026-11-06"}


@pytest.fixture
def engine(open_store: Opener, daily: Dataset) -> Engine:
    return open_store(TableSource(daily, bars(SYMBOLS, DAYS)))


def warm(engine: Engine, **wish: Any) -> None:
    engine.act(Action.WARM, {**WISH, **wish})


def figures(engine: Engine) -> dict[str, Any]:
    told = engine.act(Action.STATS, {})
    assert isinstance(told, dict)
    return told


def read(engine: Engine, symbol: str, first: int = 0, last: int = 4) -> int:
    return read_info(engine, symbols=symbol, start=DAYS[first], end=DAYS[last])[1].warmed


def test_a_read_of_what_was_warmed_says_so_once(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[:2])
    assert read(engine, SYMBOLS[0]) == 1
    assert read(engine, SYMBOLS[0]) == 0
    assert figures(engine)["warm_explicit_used"] == 1


def test_other_symbols_and_other_sessions_meet_no_mark(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[0])
    assert read(engine, SYMBOLS[1]) == 0
    assert read(engine, SYMBOLS[0], 5, 9) == 0
    assert figures(engine)["warm_explicit_used"] == 0


def test_what_was_there_already_is_no_merit(engine: Engine) -> None:
    read(engine, SYMBOLS[0])
    warm(engine, symbols=SYMBOLS[0])
    assert read(engine, SYMBOLS[0]) == 0
    assert figures(engine)["warm_marks"] == 0
    assert figures(engine).get("warm_explicit_acted", 0) == 0


def test_what_left_memory_before_it_was_read_was_not_used(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[0])
    engine.act(Action.EVICT, {})
    assert read(engine, SYMBOLS[0]) == 0
    assert figures(engine)["warm_explicit_used"] == 0


def test_what_was_fetched_to_disk_is_used_where_nothing_had_to_be_fetched(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[0], memory=False)
    assert read(engine, SYMBOLS[0]) == 1
    warm(engine, symbols=SYMBOLS[1], memory=False)
    assert read(engine, SYMBOLS[1], 0, 9) == 0  # it had to wait for the second week


def test_the_access_log_has_it_too(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[0])
    read(engine, SYMBOLS[0])
    (event,) = engine.access.events()
    assert [touched.warmed for touched in event.touched] == [True]


def mark(name: str, until: float = 1e12) -> Mark:
    return Mark(name, "habits", "bars", None, Days(0, 9), memory=False, until=until)


def test_who_comes_while_it_is_made_is_late(engine: Engine) -> None:
    clock = ManualClock(datetime(2026, 11, 20, tzinfo=UTC))
    tracking, under_way = Tracking(clock), mark("a")
    tracking.begin(under_way)
    plan, _ = engine._reads.explain(ReadRequest("bars_1d", (SYMBOLS[0],), DAYS[0], DAYS[4]))
    under_way.dataset, under_way.days = "bars_1d", plan.wanted
    tracking.marks["bars_1d"] = tracking.marks.pop("bars")
    assert list(tracking.met(plan, in_memory=True, waited=False)) == []
    clock.advance(seconds=2)
    tracking.done(under_way, 3.0, 3.0)
    told = tracking.facts()
    assert (told["warm_used"], told["warm_late"], told["warm_late_seconds"], told["warm_saved_seconds"]) == (1, 1, 2.0, 1.0)


def test_the_judge_prices_seconds_as_the_rule_does() -> None:
    assert Tracking(ManualClock(datetime(2026, 11, 20, tzinfo=UTC))).judge.kappa == KAPPA


def test_what_was_met_and_not_there_any_more_is_forgotten(engine: Engine) -> None:
    warm(engine, symbols=SYMBOLS[0])
    engine.act(Action.EVICT, {})
    read(engine, SYMBOLS[0])
    assert engine.tracking.judge._acted == {}


def test_the_two_steps_of_one_thing_count_once(engine: Engine) -> None:
    warming, until = engine.warmer._warming, engine.clock.now().timestamp() + 3600
    request = ReadRequest("bars_1d", (SYMBOLS[0],), DAYS[0], DAYS[4])
    for memory in (False, True):
        warming.do(Task("a", "habits", request, memory, until))
    assert read(engine, SYMBOLS[0]) == 1
    told = figures(engine)
    assert (told["warm_habits_acted"], told["warm_habits_used"], told["warm_precision"]) == (1, 1, 1)


def test_the_first_step_may_still_be_used_when_the_second_has_left() -> None:
    tracking = Tracking(ManualClock(datetime(2026, 11, 20, tzinfo=UTC)))
    marks = [mark("a", until=20.0), mark("a", until=10.0)]
    for each in marks:
        tracking.begin(each)
        tracking.done(each, 1.0, 1.0)
    tracking.expire(15.0)
    assert set(tracking.judge._acted) == {"a"}
    tracking.expire(25.0)
    assert tracking.judge._acted == {}


def test_marks_expire_and_are_bounded() -> None:
    tracking = Tracking(ManualClock(datetime(2026, 11, 20, tzinfo=UTC)))
    for number in range(MOST_MARKS + 10):
        tracking.begin(mark(str(number), until=float(number)))
    assert tracking.facts()["warm_marks"] == MOST_MARKS
    tracking.expire(MOST_MARKS + 5.0)
    assert tracking.facts()["warm_marks"] == 4
    tracking.expire(1e12)
    assert tracking.facts()["warm_marks"] == 0


def waited(last: int, dataset: str = "bars", group: str = "A") -> AccessEvent:
    return AccessEvent(0.0, "1", "ann", "research", dataset, group, (group,), 0, last, False, (), (), 1, 1, 1, 1.0)


def test_what_was_withheld_and_then_asked_for_is_missed_once() -> None:
    tracking = Tracking(ManualClock(datetime(2026, 11, 20, tzinfo=UTC)))
    for _ in range(3):  # the same decision, look after look
        tracking.withhold("a", ("bars", "A", 1), "habits", 1.0, 4.0)
    tracking.heard([waited(1), waited(1)])
    told = tracking.facts()
    assert (told["warm_withheld"], told["warm_missed"], told["warm_missed_seconds"]) == (1, 1, 4.0)
    assert told["warm_coverage"] == 0


def test_what_was_withheld_is_missed_by_a_read_that_wants_its_sessions_and_by_no_other() -> None:
    tracking = Tracking(ManualClock(datetime(2026, 11, 20, tzinfo=UTC)))
    tracking.withhold("a", ("bars", "A", 1), "habits", 1.0, 4.0)
    tracking.withhold("b", ("bars", "A", 2), "habits", 1.0, 4.0)  # displaces nothing
    tracking.withhold("c", ("bars", "A", 2), "habits", 1.0, 4.0)  # the read of b cannot tell its worth too
    tracking.withhold("d", ("table", "A", None), "habits", 1.0, 4.0)
    tracking.heard([waited(0)])
    assert tracking.facts()["warm_missed"] == 0
    tracking.heard([waited(1), waited(2), waited(7, "table")])
    told = tracking.facts()
    assert (told["warm_withheld"], told["warm_missed"]) == (3, 3)


def test_who_misses_what_was_displaced_was_polluted() -> None:
    tracking = Tracking(ManualClock(datetime(2026, 11, 20, tzinfo=UTC)))
    tracking.displaced(["bars/2026/0"], "habits")
    cold = AccessEvent(
        0.0,
        "1",
        "ann",
        "research",
        "bars",
        "A",
        ("A",),
        0,
        1,
        False,
        (),
        (Touched("2026", 0, 1, "cold"),),
        0,
        1,
        1,
        1.0,
    )
    tracking.heard([cold])
    assert tracking.facts()["warm_polluted"] == 1
