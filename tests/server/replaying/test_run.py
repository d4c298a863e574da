"""A log replayed: everything is counted once, budgets hold, habits are served from memory, and the same log gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.replaying.conftest import MB, SESSIONS, Row, frame_of, made, row

from fletching_server.calendars import day_number
from fletching_server.replaying import Costs, Outcome, Plan, Trace, replay
from fletching_server.replaying.ahead import HABITS, TOGETHER
from fletching_server.replaying.hours import agenda_of
from fletching_server.replaying.memory import RING_SHARE
from fletching_server.replaying.run import HISTORY, _Run
from fletching_server.replaying.trace import PROFILES
from fletching_server.replaying.workers import Task, Workers
from fletching_server.worth import Rule

GB = 1000 * MB
PLAN = Plan(memory=10 * GB, disk=100 * GB, calendar="UTC")
COLD = replace(PLAN, warm=False)
LRU = replace(COLD, policy="lru")
SECONDS = Costs()

ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(SESSIONS[:12]),
        st.floats(0, 23.99),
        st.sampled_from([None, *SESSIONS[:12]]),
        st.sampled_from("abc"),
        principal=st.sampled_from(["ann", "bob"]),
        profile=st.sampled_from(PROFILES),
        dataset=st.sampled_from(["bars", "books"]),
        bytes=st.sampled_from([0, 1, MB, 40 * MB, 400 * MB, 2**50]),
        request_id=st.sampled_from(["", "one", "two"]),
    ),
    max_size=60,
)
PLANS = st.builds(
    Plan,
    memory=st.sampled_from([0, 1, 50 * MB, GB]),
    disk=st.sampled_from([0, 100 * MB, 10 * GB]),
    policy=st.sampled_from(["density", "lru"]),
    warm=st.booleans(),
    rule=st.sampled_from([Rule(), Rule(min_confidence=0.7), Rule(kappa=0.0)]),
    calendar=st.sampled_from([None, "XNYS"]),
    holdout=st.sampled_from([0.0, 0.5]),
)


def every_morning(days: list[date] = SESSIONS, buckets: str = "A", hour: float = 9.0, **more: Any) -> list[Row]:
    """Return reads of the session before, on each day but the first."""
    return [row(today, hour, yesterday, bucket, **more) for yesterday, today in pairwise(days) for bucket in buckets]


def made_up(seed: int, sessions: int = 15) -> list[Row]:
    """Return a small desk: habits, dashboards without time, a backtest, and what nobody could foresee."""
    random = Random(seed)
    rows = []
    for number in range(5, sessions):
        today, before = SESSIONS[number], SESSIONS[:number]
        for reader in range(6):
            hour = 8.5 + random.random()
            rows += [
                row(today, hour + place / 100, random.choice(before[-2:]), f"{(reader * 3 + place) % 11}", principal=f"r{reader}")
                for place in range(4)
            ]
        rows += [row(today, 9, None, "names", dataset="tables", bytes=5 * MB, profile="trading")]
        rows += [row(today, 12, random.choice(before), f"{random.randrange(99)}") for _ in range(5)]
        rows += [
            row(today, 14 + place / 50, day, "7", principal="tester", profile="backtesting", request_id=f"sweep {number}")
            for place, day in enumerate(before)
        ]
    return rows


# Counting


@settings(max_examples=60)
@given(ROWS, PLANS)
def test_every_request_is_counted_once_by_profile_and_tier(rows: list[Row], plan: Plan) -> None:
    outcome = replay(made(rows), plan)
    asked = Counter(each["profile"] for each in rows)
    for profile in PROFILES:
        served = outcome.profiles[profile]
        assert served.requests == served.hot + served.cold + served.upstream == asked[profile]
        assert served.hot_bytes <= served.bytes == sum(each["bytes"] for each in rows if each["profile"] == profile)
        assert outcome.settled[profile].requests <= served.requests
    whole = outcome.told()["overall"]
    assert whole["requests"] == whole["hot"] + whole["cold"] + whole["upstream"] == len(rows)
    assert whole["requests"] == sum(served["requests"] for served in outcome.told()["profiles"].values())
    assert outcome.misses == whole["cold"] + whole["upstream"]
    assert json.loads(json.dumps(outcome.told(), allow_nan=False)) == outcome.told()


@settings(max_examples=60)
@given(ROWS, PLANS)
def test_budgets_hold_after_every_request(rows: list[Row], plan: Plan) -> None:
    trace = made(rows)
    _, agenda = agenda_of(trace, plan.calendar)
    run = _Run(trace, plan, agenda, lambda _: None)
    memory, shelf = run._memory, run._shelf
    for number in range(len(trace)):
        run._request(number, 0)
        assert memory.used == sum(memory.held.values()) <= memory.max_bytes
        assert memory.ring_used == sum(memory.ring.values()) <= memory.ring_bytes
        assert memory.max_bytes + memory.ring_bytes == plan.memory
        assert shelf.used == sum(shelf.held.values()) <= plan.disk
        assert 0 <= run._ahead._on_the_way <= memory.ring_bytes


@given(ROWS.filter(len), st.sampled_from(["density", "lru"]))
def test_endless_memory_without_warming_waits_only_for_what_it_never_saw(rows: list[Row], policy: str) -> None:
    apart = [{**each, "ts": each["ts"].replace(minute=0), "bytes": MB} for each in rows]
    trace = made({(each["ts"], each["bucket"]): each for each in apart}.values())
    trace = replace(trace, ts=[ts + 10.0 * number for number, ts in enumerate(trace.ts)])  # a fetch takes less
    whole = replay(trace, replace(COLD, memory=10**15, disk=10**15, policy=policy, reads_ahead=False)).together()
    assert (whole.upstream, whole.cold) == (len(set(trace.keys)), 0)


def test_who_asks_while_it_is_on_its_way_waits_too() -> None:
    rows = [row(SESSIONS[3], 9 + second / 3600, SESSIONS[2]) for second in (0, 1, 60)]
    served = replay(made(rows), COLD).profiles["research"]
    assert (served.upstream, served.hot) == (2, 1)
    fetch = SECONDS.upstream.of(100 * MB)
    assert served.seconds == pytest.approx(fetch + (fetch - 1.0) + 3 * SECONDS.memory.of(100 * MB))
    assert served.without == pytest.approx(3 * fetch)


def test_what_left_memory_and_not_the_disk_is_cold() -> None:
    rows = [row(SESSIONS[3], 9 + place / 10, SESSIONS[2], bucket) for place, bucket in enumerate("abab")]
    outcome = replay(made(rows), replace(LRU, memory=150 * MB))
    assert outcome.told()["overall"] | {"upstream": 2, "cold": 2, "hot": 0} == outcome.told()["overall"]


def test_the_ceiling_is_what_was_read_before() -> None:
    rows = [row(SESSIONS[3], 9 + place / 10, SESSIONS[2], bucket) for place, bucket in enumerate("aabc")]
    rows += [row(SESSIONS[3], 15, SESSIONS[2], "a", profile="backtesting")]
    assert replay(made(rows), COLD).told()["ceiling_without_prefetch"] == 0.25


# The same again


def test_the_same_trace_gives_the_same_outcome() -> None:
    plan = replace(PLAN, memory=2 * GB, holdout=0.2)
    assert replay(made(made_up(1)), plan).told() == replay(made(made_up(1)), plan).told()
    assert replay(made(made_up(1)), plan).told() != replay(made(made_up(2)), plan).told()


def test_the_same_trace_gives_the_same_outcome_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    frame_of(made_up(1)).write_parquet(path)
    program = (
        "import json, sys, pathlib; from fletching_server.replaying import Plan, read_trace, replay; "
        "plan = Plan(2 * 10**9, 10**11, calendar='UTC', holdout=0.2); "
        "print(json.dumps(replay(read_trace(pathlib.Path(sys.argv[1])), plan).told()))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program, path],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert json.loads(told[0])["overall"]["requests"] == len(made_up(1))
    assert told[0] == told[1]


# Warming


def settled(outcome: Outcome) -> tuple[int, int, int]:
    served = outcome.together(settled=True)
    return served.hot, served.cold, served.upstream


def test_what_is_read_every_morning_is_in_memory_before() -> None:
    trace = made(every_morning(SESSIONS[:18], "AB"))
    warm, cold = replay(trace, PLAN), replay(trace, COLD)
    days = len(SESSIONS[:18]) - 1 - HISTORY
    assert settled(warm) == (2 * days, 0, 0)
    assert settled(cold) == (0, 0, 2 * days)
    told = warm.told()
    assert told["precision"] >= 0.9
    assert told["coverage"] > 0.4
    assert told["timeliness"] == 1
    assert 0 < told["background_seconds"] <= told["demand_seconds"] == cold.waited_seconds


def test_habits_roll_over_a_holiday() -> None:
    holiday = SESSIONS[15]
    days = [day for day in SESSIONS[:18] if day != holiday]
    assert settled(replay(made(every_morning(days)), PLAN))[1:] == (0, 0)


def test_a_table_without_time_is_kept_ready_like_any_other() -> None:
    rows = [row(day, 9 + number / 100, None, f"{number}", profile="trading") for day in SESSIONS[:15] for number in range(10)]
    others = [row(day, 15 + number / 100, SESSIONS[0], f"{day} {number}") for day in SESSIONS[:15] for number in range(30)]
    warm, cold = (replay(made(rows + others), replace(plan, memory=1500 * MB)).settled["trading"] for plan in (PLAN, LRU))
    assert (warm.hot, cold.hot) == (warm.requests, 0)


def test_a_fixed_confidence_does_less_than_the_rule() -> None:
    every_other = [row(day, 10, SESSIONS[n - 1], "B") for n, day in enumerate(SESSIONS) if n % 2]
    trace = made(every_morning() + every_other)
    by_rule, by_confidence = (replay(trace, replace(PLAN, rule=rule)) for rule in (Rule(), Rule(min_confidence=0.8)))
    assert by_rule.together().hot > by_confidence.together().hot > len(SESSIONS) / 2
    assert by_rule.background_seconds > by_confidence.background_seconds > 0


def test_what_is_read_on_weekends_is_made_ready_when_friday_has_settled() -> None:
    saturdays = [row(day + timedelta(days=1), 11, day, "W") for day in SESSIONS if day.weekday() == 4]
    outcome = replay(made(every_morning() + saturdays), PLAN)
    assert settled(outcome)[2] == 0


def test_what_is_withheld_is_not_made_ready_and_shows_what_warming_is_worth() -> None:
    outcome = replay(made(every_morning(SESSIONS, "ABCDEFGH")), replace(PLAN, holdout=0.3))
    judged = outcome.told()["judged"]
    assert judged["withheld"] > 10
    assert judged["missed"] > 0.8 * judged["withheld"] / 2
    assert judged["uplift_seconds"] > 1
    assert judged["off"] == []


class Spied:
    """Every piece of background work, with the instant at which it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: list[tuple[float, Task]] = []
        submit = Workers.submit

        def noted(workers: Workers, now: float, seconds: float, task: Task) -> Task:
            self.tasks.append((now, task))
            return submit(workers, now, seconds, task)

        monkeypatch.setattr(Workers, "submit", noted)


@pytest.mark.parametrize("calendar", ["UTC", "XSHG", "XNYS"])
def test_nothing_is_made_ready_before_its_rows_can_be_had(monkeypatch: pytest.MonkeyPatch, calendar: str) -> None:
    spied = Spied(monkeypatch)
    rows = made_up(3) + every_morning(SESSIONS[:15], "LMN", hour=13.0)
    rows += [row(day, 10.0, day, "live", principal="trader") for day in SESSIONS[:15]]  # of today, before it has settled
    rows += [row(SESSIONS[9], 9 + place / 50, day, "plan", request_id="a") for place, day in enumerate(SESSIONS[:12])]
    trace = made(rows)
    replay(trace, replace(PLAN, calendar=calendar))
    _, agenda = agenda_of(trace, calendar)
    assert {task.arm for _, task in spied.tasks} >= {"habits", "runs"}
    for now, task in spied.tasks:
        day = task.key.rpartition("/")[2]
        assert day == "-" or agenda.settled[agenda.number(int(day))] <= now
        assert task.bytes >= 0


def no_pattern(seed: int, buckets: int) -> list[Row]:
    """Return reads of anything at any time."""
    random = Random(seed)
    return [
        row(day, random.uniform(8, 17), random.choice(SESSIONS[:number]), f"{random.randrange(buckets)}", bytes=40 * MB)
        for number, day in enumerate(SESSIONS[:25])
        for _ in range(60 if number else 0)
    ]


@pytest.mark.parametrize(("buckets", "share"), [(60, 2.0), (300, 1.5)])
def test_where_there_is_no_pattern_background_work_is_bounded_and_hits_are_those_of_lru(buckets: int, share: float) -> None:
    traces = [made(no_pattern(seed, buckets)) for seed in range(3)]
    room = 1500 * MB
    warm = [replay(trace, replace(PLAN, memory=room)) for trace in traces]
    lru = [replay(trace, replace(LRU, memory=int(room * (1 - RING_SHARE)))) for trace in traces]
    assert all(outcome.background_seconds <= share * outcome.demand_seconds for outcome in warm)
    assert sum(outcome.together().hot for outcome in warm) >= sum(outcome.together().hot for outcome in lru) - 0.01 * 3 * 1440


def test_no_session_takes_more_background_seconds_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching_server.replaying.ahead._LEAST_BUDGET", 20.0)
    monkeypatch.setattr("fletching_server.replaying.ahead._BUDGET_SHARE", 0.0)
    spied = Spied(monkeypatch)
    trace = made(every_morning(SESSIONS, "ABCDEFGHIJ"))
    replay(trace, PLAN)
    by_session = Counter[int]()
    for now, task in spied.tasks:
        if task.arm in {HABITS, TOGETHER}:
            by_session[int((now - 6.5 * 3600) // 86_400)] += 1  # sessions begin when the first look is taken
    one = SECONDS.upstream.of(100 * MB)
    assert max(by_session.values()) == int(20.0 / one)


# Sweeps


def sweep(principal: str, bucket: str, request: str, minutes: float = 0.1) -> list[Row]:
    return [
        row(SESSIONS[30], 10 + place * minutes / 60, day, bucket, principal=principal, request_id=request)
        for place, day in enumerate(SESSIONS[:30])
    ]


@pytest.mark.parametrize("request_id", ["", "a plan"])
def test_who_reads_session_after_session_is_read_ahead_of(request_id: str) -> None:
    trace = made(sweep("ann", "A", request_id))
    ahead, behind = (replay(trace, replace(COLD, reads_ahead=reads_ahead)).together() for reads_ahead in (True, False))
    assert behind.hot == 0
    assert ahead.hot > 0.6 * len(trace)
    assert ahead.seconds < behind.seconds / 2


def test_a_sweep_leaves_what_is_used_every_day_in_memory() -> None:
    daily = [row(day, hour, None, f"{n}") for day in SESSIONS[25:31] for hour in (9.0, 16.0) for n in range(8)]
    trace = made(daily + sweep("bob", "A", "a"))
    last = [replay(trace, replace(plan, memory=GB)) for plan in (COLD, LRU)]
    hot = [outcome.together().hot - outcome.together().requests for outcome in last]
    assert hot[0] > hot[1]
    assert last[0].told()["overall"]["upstream"] <= 30 + 8


# Bad input


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(SESSIONS[3], 9, SESSIONS[2])],
        [row(SESSIONS[3], 9, None, profile="unheard of")],
        [row(day, 9, None) for day in SESSIONS],
        [row(SESSIONS[3], 9, SESSIONS[n % 3], f"{n}", request_id="r") for n in range(200)],  # all at once
        [row(SESSIONS[3], 9, SESSIONS[20])] * 3,  # of the future
        [row(SESSIONS[3], 9 + n, SESSIONS[2], bytes=2**50) for n in range(5)],
        [row(SESSIONS[n], 9, SESSIONS[2], bytes=10**n) for n in range(15)],  # one key that grows
        [row(SESSIONS[20 - n], 9, SESSIONS[2]) for n in range(15)],  # the latest first
        [row(date(1950, 1, 3), 9, date(1950, 1, 2)), row(date(2199, 1, 3), 9, date(2199, 1, 2))],
        [row(SESSIONS[3], 9, date(2199, 1, 2)), row(SESSIONS[4], 9, date(1901, 1, 2))],
    ],
)
@pytest.mark.parametrize("plan", [PLAN, LRU, replace(PLAN, policy="lru"), replace(PLAN, memory=0, disk=0, calendar=None)])
def test_strange_traces_have_a_sane_outcome(rows: list[Row], plan: Plan) -> None:
    told = replay(made(rows), plan).told()
    assert told["overall"]["requests"] == len(rows)
    assert told["overall"]["seconds_saved"] >= -0.01 - sum(SECONDS.memory.of(each["bytes"]) for each in rows)
    json.dumps(told, allow_nan=False)


def test_progress_is_told() -> None:
    told: list[int] = []
    trace: Trace = made(row(SESSIONS[3], 9, SESSIONS[2]) for _ in range(5000))
    replay(trace, COLD, told.append)
    assert len(told) > 0
    assert day_number(SESSIONS[2]) in trace.days
