"""Does a learned model predict better than the table of counts? Gradient-boosted trees over the same past, on the same desks.

Before each session both say for every key that was touched lately how likely somebody touches it today; the table as the
replay asks it, calibrated; the trees retrained every few sessions on what came before. The trees are also shown what the table
says. Both then warm by the same rule, and what counts is the waiting that this saves: a challenger is taken for
better where it saves more than two points more, on every seed.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import numpy as np

from benchmarks.contenders import ROOT
from benchmarks.desk import profiles
from benchmarks.desk.trace import simulate
from benchmarks.environments import peers_python
from benchmarks.figures import Row, Spread, scaled
from fletching_server.agenda import Agenda
from fletching_server.calendars import from_day_number
from fletching_server.calibration import Calibration
from fletching_server.predictor import Predictor, RelativeKey
from fletching_server.replaying import Costs, Trace
from fletching_server.replaying.hours import agenda_of
from fletching_server.replaying.trace import NO_SESSION, trace_of

PACKAGES: Final = ("lightgbm==4.7.0", "numpy>=2.0", "scikit-learn==1.9.1")
TO_BEAT: Final = 2.0  # points of waiting saved
_WARM_UP: Final = 20  # sessions, of which nothing is scored
_REMEMBERED: Final = 20  # sessions for which a key stays a candidate
_LIVES: Final = (2.0, 8.0, 32.0)  # half-lives of the counts, in sessions
_COSTS: Final = Costs()
_KAPPA: Final = 0.2  # what a background second costs in seconds of people who wait


_Place = tuple[str, str, int | None]  # dataset, bucket, and the session by its number


class _Touch(NamedTuple):
    principal: str
    key: RelativeKey
    at: float
    size: int


@dataclass
class Examples:
    """One row per candidate and session: what was known before, what the table said, what happened, and what it is worth."""

    session: list[int] = field(default_factory=list)
    known: list[list[float]] = field(default_factory=list)
    table: list[float] = field(default_factory=list)
    happened: list[bool] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    fills: list[float] = field(default_factory=list)
    wanted: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # seconds, per session, of all keys touched


@dataclass
class _Past:
    """What the trees are told of one key."""

    counts: list[float] = field(default_factory=lambda: [0.0] * len(_LIVES))  # decayed readers
    days: list[float] = field(default_factory=lambda: [0.0] * len(_LIVES))  # decayed sessions
    readers: dict[str, int] = field(default_factory=dict)
    touched: list[int] = field(default_factory=list)
    size: int = 0

    def faded(self) -> None:
        for sums in (self.counts, self.days):
            sums[:] = [each * 0.5 ** (1 / life) for each, life in zip(sums, _LIVES, strict=True)]

    def note(self, session: int, readers: set[str], size: int) -> None:
        self.counts = [each + len(readers) for each in self.counts]
        self.days = [each + 1 for each in self.days]
        self.readers |= dict.fromkeys(readers, session)
        self.touched = [*self.touched[-9:], session]
        self.size = size

    def told(self, session: int, key: RelativeKey, weekday: int, table: float) -> list[float]:
        fresh = sum(session - last <= _REMEMBERED for last in self.readers.values())
        weekly = any(session - last == 5 for last in self.touched)
        recency = float(session - self.touched[-1])
        offset = 0 if key.offset is None else key.offset
        return [*self.counts, *self.days, fresh, recency, weekly, offset, key.offset is None, weekday, self.size / 1e6, table]


def run(effort: float = 1.0, folder: Path | None = None) -> list[Row]:
    """Return what both predict and save on desk-A; the environment of the trees is kept in *folder*."""
    python = peers_python(folder, "challenger", PACKAGES)
    with TemporaryDirectory(prefix="fb-") as scratch:
        seeds = [_compared(python, Path(scratch), seed) for seed in range(1, scaled(9, effort) + 1)]
    brier, saved = (np.array([seed[place] for seed in seeds]) for place in (0, 1))
    gain = saved[:, 1] - saved[:, 0]
    rows = [Row("Brier score, table (peer: trees)", "0 is best", _spread(brier[:, 0]), _spread(brier[:, 1]))]
    rows += [Row("waiting saved, table (peer: trees)", "%", _spread(saved[:, 0]), _spread(saved[:, 1]))]
    kept = bool(gain.min() <= TO_BEAT)
    rows += [
        Row("the trees save more", "points", _spread(gain), target=f"<= {TO_BEAT:g} on some seed: the table stays", met=kept)
    ]
    return rows


def _spread(samples: np.ndarray) -> Spread:
    return Spread.of(samples.tolist())


def _compared(python: Path, folder: Path, seed: int) -> tuple[list[float], list[float]]:
    """Return the Brier scores, and the share of waiting saved, less the price of filling, of the table and of the trees."""
    examples = _examples(trace_of(simulate(profiles.load("desk-a"), seed), f"desk-a, seed {seed}"))
    trees = _trees(python, folder, examples)
    session, happened = np.array(examples.session), np.array(examples.happened, float)
    scored = session >= session.min() + _WARM_UP
    wanted = sum(seconds for number, seconds in examples.wanted.items() if number >= session.min() + _WARM_UP)
    saves, fills, came = (np.array(each)[scored] for each in (examples.saves, examples.fills, happened))
    brier, saved = [], []
    for chance in (np.array(examples.table)[scored], trees[scored]):
        brier.append(float(np.mean((chance - came) ** 2)))
        warmed = chance * saves > _KAPPA * fills
        saved.append(float(100 * ((saves * came)[warmed].sum() - _KAPPA * fills[warmed].sum()) / wanted))
    return brier, saved


def _trees(python: Path, folder: Path, examples: Examples) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the chances of the trees, trained in a child on what came before each of them."""
    for name in ("session", "known", "happened"):
        np.save(folder / f"{name}.npy", np.array(getattr(examples, name), np.float64))
    subprocess.run([str(python), "-m", "benchmarks.peers_trees", str(folder)], cwd=ROOT, check=True)
    return np.asarray(np.load(folder / "chance.npy", allow_pickle=False), np.float64)


def _examples(trace: Trace) -> Examples:
    """Return what both are asked, session by session; each is told what happened only afterwards."""
    _, agenda = agenda_of(trace)
    predictor, calibration, examples = Predictor(agenda), Calibration(), Examples()
    past: dict[RelativeKey, _Past] = defaultdict(_Past)
    stored: set[_Place] = set()  # what somebody has asked for before lies on disk
    for session, touches in _by_session(trace, agenda).items():
        sizes = {touch.key: touch.size for touch in touches}
        raw = {expected.key: expected.chance for expected in predictor.expected(session)}
        table = {key: calibration(chance) for key, chance in raw.items()}
        weekday = from_day_number(int(agenda.days[session])).weekday()
        _examine(examples, past, table, set(sizes), (session, weekday), stored)
        examples.wanted[session] = sum(_seconds(size, _place(key, session) in stored)[0] for key, size in sizes.items())
        stored |= {_place(key, session) for key in sizes}
        calibration.learn((chance, key in sizes) for key, chance in raw.items())
        for touch in touches:
            predictor.note(touch.principal, agenda.moment(touch.at), touch.key)
        _remember(past, touches, session)
    return examples


def _by_session(trace: Trace, agenda: Agenda) -> dict[int, list[_Touch]]:
    """Return what people and screens touched, by the session in which they did."""
    found: dict[int, list[_Touch]] = defaultdict(list)
    for row in np.flatnonzero(trace.interactive).tolist():
        at, day = trace.ts[row], trace.sessions[row]
        present = agenda.present(at)
        offset = None if day == NO_SESSION else agenda.number(day) - present
        key = RelativeKey(trace.datasets[row], trace.buckets[row], offset)
        found[present].append(_Touch(trace.principals[row], key, at, trace.bytes[row]))
    return found


def _examine(
    examples: Examples,
    past: dict[RelativeKey, _Past],
    table: dict[RelativeKey, float],
    touched: set[RelativeKey],
    when: tuple[int, int],
    stored: set[_Place],
) -> None:
    session, weekday = when
    for key, known in past.items():
        if session - known.touched[-1] > _REMEMBERED:
            continue
        chance = table.get(key, 0.0)
        saves, fill = _seconds(known.size, _place(key, session) in stored)
        examples.session.append(session)
        examples.known.append(known.told(session, key, weekday, chance))
        examples.table.append(chance)
        examples.happened.append(key in touched)
        examples.saves.append(saves)
        examples.fills.append(fill)


def _place(key: RelativeKey, session: int) -> _Place:
    return key.dataset, key.bucket, None if key.offset is None else session + key.offset


def _remember(past: dict[RelativeKey, _Past], touches: list[_Touch], session: int) -> None:
    for each in past.values():
        each.faded()
    readers: dict[RelativeKey, set[str]] = defaultdict(set)
    for touch in touches:
        readers[touch.key].add(touch.principal)
    for touch in {touch.key: touch for touch in touches}.values():
        past[touch.key].note(session, readers[touch.key], touch.size)


def _seconds(size: int, stored: bool) -> tuple[float, float]:
    """Return the seconds that memory saves over where it lies, and those of filling."""
    fill = (_COSTS.disk if stored else _COSTS.upstream).of(size)
    return fill - _COSTS.memory.of(size), fill
