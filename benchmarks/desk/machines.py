"""Machines: what runs by the clock, and sweeps that somebody has started."""

from __future__ import annotations

import numpy as np

from benchmarks.desk.profiles import Backtests, Dashboards, Factors, Pollution, Regime, Weekly
from benchmarks.desk.requests import Requests
from benchmarks.desk.sessions import MINUTE, Sessions
from benchmarks.desk.universe import NO_SESSION, Universe

Generator = np.random.Generator
World = tuple[Sessions, Universe]
_PAUSE = 100_000  # microseconds between requests of a screen that asks for each partition by itself


def dashboards(asked: Requests, told: Dashboards, regime: Regime | None, world: World) -> None:
    """Add the reloads of all screens: the last session that is over at that time."""
    sessions, universe = world
    middle = sessions.first + len(sessions.worked) // 2 if regime else len(sessions.days)
    for when in told.times:
        instants = sessions.at(when)
        for session in sessions.worked:
            moved = int(regime.dashboards_minutes * MINUTE) if regime and session >= middle else 0
            at = int(instants[session]) + moved
            latest = session if at > sessions.closes[session] else session - 1
            for screen in range(told.count):
                _reload(asked, told, f"dashboard-{screen}", universe, (latest, at + screen * 20 * _PAUSE))


def _reload(asked: Requests, told: Dashboards, who: str, universe: Universe, moment: tuple[int, int]) -> None:
    session, at = moment
    sets = [(1, universe.profile.sectors, session), (0, told.symbols, session)]
    tables = enumerate(universe.profile.tables, 2)
    sets += [(number, 1, session if table.versioned else NO_SESSION) for number, table in tables]
    for dataset, count, version in sets:
        buckets = np.arange(count)
        pauses = 0 if told.together else buckets * _PAUSE
        asked.add(who, told.profile, dataset, buckets, version, at + pauses, together=0 if told.together else None)
        at += _PAUSE * (1 if told.together else count)


def factors(asked: Requests, told: Factors, world: World) -> None:
    """Add the refreshes: every sector, *sessions* back to today."""
    sessions, universe = world
    for when in told.times:
        instants = sessions.at(when)
        for session in sessions.worked:
            back = np.arange(session - told.sessions, session + 1)
            _all_sectors(asked, told, "factors", universe, back, int(instants[session]))


def weekly(asked: Requests, told: Weekly, world: World) -> None:
    """Add the reports of each week's first session."""
    sessions, universe = world
    instants = sessions.at(told.time)
    for session in filter(sessions.starts_week, sessions.worked):
        for user in range(told.users):
            back = np.arange(session - told.sessions, session)
            _all_sectors(asked, told, f"reports-{user}", universe, back, int(instants[session]) + user * 3 * MINUTE)


def _all_sectors(asked: Requests, told: Factors | Weekly, who: str, universe: Universe, back: np.ndarray, at: int) -> None:
    sectors, each = np.meshgrid(np.arange(universe.profile.sectors), back, indexing="ij")
    pauses = 0 if told.together else np.arange(sectors.size) * told.pace_minutes * MINUTE
    asked.add(who, told.profile, 1, sectors.ravel(), each.ravel(), at + pauses, together=0 if told.together else None)


def backtests(asked: Requests, told: Backtests, world: World, chance: Generator) -> None:
    """Add the sweeps of users that run one today."""
    sessions, universe = world
    begins, ends = (sessions.at(when) for when in told.hours)
    for session in sessions.worked:
        for user in np.flatnonzero(chance.random(told.users) < told.chance):
            at = int(chance.uniform(begins[session], ends[session]))
            _sweep(asked, told, f"backtest-{user}", universe.profile.sectors, (session, at), chance)


def _sweep(asked: Requests, told: Backtests, who: str, sectors: int, moment: tuple[int, int], chance: Generator) -> None:
    session, at = moment
    length, wide, repeats = (int(chance.integers(low, high + 1)) for low, high in (told.sessions, told.sectors, told.repeats))
    chosen = np.sort(chance.choice(sectors, min(wide, sectors), replace=False))
    days, buckets = np.meshgrid(np.arange(session - length, session), chosen, indexing="ij")
    days, buckets = np.tile(days.ravel(), repeats), np.tile(buckets.ravel(), repeats)
    order = np.arange(len(days))
    steps = order // len(chosen) * len(chosen) if told.together else order
    together = order // len(chosen) if told.together else None
    asked.add(who, told.profile, 1, buckets, days, at + steps * told.pace_minutes * MINUTE, together=together)


def pollution(asked: Requests, told: Pollution, world: World, people: int, chance: Generator) -> None:
    """Add scans that nobody repeats."""
    sessions, universe = world
    begins, ends = (sessions.at(when) for when in told.hours)
    for session in sessions.worked:
        for _ in range(int(chance.poisson(told.daily))):
            count = int(chance.integers(told.partitions[0], told.partitions[1] + 1))
            at = chance.uniform(begins[session], ends[session]) + np.arange(count) * told.pace_minutes * MINUTE
            if chance.random() < 0.5:
                buckets, days = np.full(count, chance.integers(universe.profile.symbols)), np.arange(session - count, session)
            else:
                buckets = chance.choice(universe.profile.symbols, min(count, universe.profile.symbols), replace=False)
                days = np.full(len(buckets), int(chance.integers(max(0, session - 250), session)))
            asked.add(f"researcher-{chance.integers(people):02}", told.profile, 0, buckets, days, at[: len(buckets)])
