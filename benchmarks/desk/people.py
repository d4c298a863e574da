"""People: researchers who go through their watch-lists in bursts, and readers of what reported yesterday."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.desk.profiles import Earnings, Regime, Researchers
from benchmarks.desk.requests import Requests
from benchmarks.desk.sessions import MINUTE, Numbers, Sessions
from benchmarks.desk.universe import Universe, popular

Generator = np.random.Generator
World = tuple[Sessions, Universe]


@dataclass(eq=False)
class _Person:
    name: str
    start: float  # minutes after the desk's usual start
    watched: Numbers


def research(asked: Requests, told: Researchers, regime: Regime | None, world: World, chance: Generator) -> None:
    """Add what researchers read, session by session."""
    sessions, universe = world
    usual, likely = sessions.at(told.start), popular(universe.profile.symbols, told.popularity)
    people = [_hired(number, told, likely, chance) for number in range(told.count)]
    shift = _shift_at(regime, sessions)
    for session in sessions.worked:
        if session == shift and regime:
            _change(people, regime, likely, chance)
        if sessions.starts_week(session):
            _drift(people, told, likely, chance)
        for person in people:
            if chance.random() < told.presence:
                minutes = person.start + chance.normal(0, told.daily_minutes)
                _work(asked, person, told, session, usual[session] + int(minutes * MINUTE), chance)


def _shift_at(regime: Regime | None, sessions: Sessions) -> int:
    if regime is None:
        return -1
    return sessions.first + (len(sessions.worked) // 2 if regime.at is None else regime.at)


def _hired(number: int, told: Researchers, likely: np.ndarray, chance: Generator) -> _Person:
    watched = chance.choice(len(likely), told.names, replace=False, p=likely)
    return _Person(f"researcher-{number:02}", chance.normal(0, told.personal_minutes), watched)


def _drift(people: list[_Person], told: Researchers, likely: np.ndarray, chance: Generator) -> None:
    """Exchange a few names of every list for others that are not on it."""
    for person in people:
        for place in np.flatnonzero(chance.random(told.names) < told.weekly_drift):
            others = np.setdiff1d(chance.choice(len(likely), told.names + 1, replace=False, p=likely), person.watched)
            person.watched[place] = others[chance.integers(len(others))]


def _change(people: list[_Person], regime: Regime, likely: np.ndarray, chance: Generator) -> None:
    """Give everybody somebody else's list, or one of names that were not popular before; and other hours."""
    if regime.watch_lists == "exchanged":
        lists = [people[place].watched for place in chance.permutation(len(people))]
    else:
        renamed = chance.permutation(len(likely))
        lists = [np.sort(renamed[person.watched]) for person in people]
    for person, watched in zip(people, lists, strict=True):
        person.watched = watched
        person.start += chance.uniform(*regime.hours_minutes)


def _work(asked: Requests, person: _Person, told: Researchers, session: int, start: int, chance: Generator) -> None:
    """Add one day of one person."""
    offsets = np.array([int(offset) for offset in told.offsets])
    wanted = np.array(list(told.offsets.values()))
    bursts = int(chance.integers(told.bursts[0], told.bursts[1] + 1))
    drawn = _drawn if told.bursts_are == "draws" else _listed
    burst, name, back = drawn(bursts, told, wanted, chance)
    begins = start + np.append(0, chance.uniform(*told.gap_minutes, bursts - 1).cumsum()) * MINUTE
    thinking = chance.uniform(*told.think_seconds, len(burst)).cumsum() * 1e6
    first = np.searchsorted(burst, np.arange(bursts)).clip(max=max(len(burst) - 1, 0))
    at = begins[burst] + thinking - thinking[first][burst]
    asked.add(person.name, told.profile, 0, person.watched[name], session + offsets[back], at)


def _listed(bursts: int, told: Researchers, wanted: np.ndarray, chance: Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Return burst, name and offset of each read: the whole list first, then some of its names again."""
    visited = chance.random((bursts, told.names)) < told.again
    visited[0] = True
    read = (chance.random((bursts, told.names, len(wanted))) < wanted) & visited[:, :, None]
    burst, name, back = np.nonzero(read)
    return burst, name, back


def _drawn(bursts: int, told: Researchers, wanted: np.ndarray, chance: Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Return burst, name and offset of each read: names drawn from the list, or what was read before once more."""
    draws = bursts * told.names
    again = (chance.random(draws) < told.again).tolist()
    names = chance.integers(told.names, size=draws).tolist()
    which = chance.random(draws).tolist()
    backs = [np.flatnonzero(each).tolist() for each in chance.random((draws, len(wanted))) < wanted]
    read: list[tuple[int, int, int]] = []
    for draw in range(draws):
        if again[draw] and read:
            read.append((draw // told.names, *read[int(which[draw] * len(read))][1:]))
        else:
            read += [(draw // told.names, names[draw], back) for back in backs[draw]]
    burst, name, back = np.array(read, np.int64).reshape(-1, 3).T
    return burst, name, back


def earnings(asked: Requests, told: Earnings, world: World, people: int, chance: Generator) -> None:
    """Add what is read about symbols that reported: yesterday, the quarter before, and peers of the sector."""
    sessions, universe = world
    begins, ends = (sessions.at(when) for when in told.hours)
    counts = [int(count) for count in told.symbols]
    for session in sessions.worked:
        count = int(chance.choice(counts, p=list(told.symbols.values())))
        for symbol in chance.choice(universe.profile.symbols, count, replace=False):
            for reader in chance.choice(people, min(told.readers, people), replace=False):
                at = int(chance.uniform(begins[session], ends[session]))
                _read_up(asked, told, f"researcher-{reader:02}", (int(symbol), session, at), universe, chance)


def _read_up(
    asked: Requests, told: Earnings, who: str, what: tuple[int, int, int], universe: Universe, chance: Generator
) -> None:
    symbol, session, at = what
    sector = np.flatnonzero(universe.sector(np.arange(universe.profile.symbols)) == symbol % universe.profile.sectors)
    nearest = sector[np.abs(sector - symbol).argsort(kind="stable")][1 : told.peers + 1]  # those of about its size
    peers = nearest[chance.random(len(nearest)) < told.peer_chance]
    symbols = np.concatenate([[symbol, symbol], peers])
    offsets = np.concatenate([[-1, -told.before], np.full(len(peers), -1)])
    later = chance.uniform(5e6, 60e6, len(symbols)).cumsum()
    asked.add(who, told.profile, 0, symbols, session + offsets, at + later)
