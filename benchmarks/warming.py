"""What warming is worth on desks that do not exist: ``fletching replay`` over their traces, against the targets.

Memory is 1.5 times the bytes of a median day's different interactive partitions; the first ten sessions are history and not
counted. Every figure is one of a seed; "met" says that every seed meets the target, not that their median does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.contenders import ROOT
from benchmarks.desk import profiles, trace
from benchmarks.figures import Row, Spread

DISK: Final = "150GiB"
PATTERNED: Final = {  # profiles in which there is something to learn, and how many seeds
    "desk-a": 9,
    "desk-a-list": 3,
    "desk-a-xnys": 3,
    "us-summer": 2,
    "shanghai-small": 3,
}
OTHERS: Final = {"no-pattern": 3, "no-pattern-requests": 2, "regime-shift": 3, "regime-exchange": 2}
WAYS: Final[Mapping[str, tuple[str, str]]] = {  # policy and warming
    "ours": ("density", "on"),
    "lru": ("lru", "off"),
    "unwarmed": ("density", "off"),
    "p>=0.7": ("density", "p>=0.7"),
}
_UNDER_LRU: Final = -1.0  # points that no desk may cost
_COMPARED: Final = 1  # seeds for which the ways without a target are measured, too; each takes about as long as ours


@dataclass(frozen=True)
class Seed:
    """What each way made of one trace."""

    number: int
    memory: int
    told: Mapping[str, Mapping[str, Any]]

    def share(self, way: str, *tiers: str) -> float:
        """Return the share of interactive requests, after the history, that *tiers* answered, in per cent."""
        counts = self.told[way]["settled"]["interactive"]
        return float(100 * sum(counts[tier] for tier in tiers) / max(1, counts["requests"]))

    def milliseconds(self, way: str) -> float:
        return float(self.told[way]["settled"]["interactive"]["mean_ms"])

    def background(self) -> float:
        """Return the background seconds per second of filling that demand alone takes."""
        return float(self.told["ours"]["background_seconds"] / max(1e-9, self.told["ours"]["demand_seconds"]))


Measure = Callable[[Seed, str], float]
_MEASURES: Final[tuple[tuple[str, str, Measure], ...]] = (
    ("from memory", "% of interactive", lambda seed, way: seed.share(way, "hot")),
    ("without upstream", "% of interactive", lambda seed, way: seed.share(way, "hot", "cold")),
    ("mean wait", "ms", lambda seed, way: seed.milliseconds(way)),
)


def run(effort: float = 1.0) -> list[Row]:
    """Return the rows of all profiles; fewer seeds, but at least one of each, with less effort."""
    with TemporaryDirectory(prefix="fb-") as scratch:
        return list(_rows(Path(scratch), effort))


def _rows(folder: Path, effort: float) -> Iterator[Row]:
    for name, seeds in (PATTERNED | OTHERS).items():
        found = [_seed(folder, name, seed) for seed in range(1, max(1, round(seeds * effort)) + 1)]
        yield from _compared(name, found)
        if name in PATTERNED:
            yield from _predicted(name, found)
        yield _against_lru(name, found)


def _seed(folder: Path, name: str, seed: int) -> Seed:
    profile, path = profiles.load(name), folder / "trace.parquet"
    frame = trace.simulate(profile, seed)
    trace.write(frame, path, profile, seed)
    memory = trace.memory(frame)
    ways = WAYS if seed <= _COMPARED and name in PATTERNED else ("ours", "lru")
    found = Seed(seed, memory, {way: _replayed(path, memory, *WAYS[way]) for way in ways})
    shares = (f"{way} {found.share(way, 'hot'):.1f}" for way in ways)
    print(f"{name}, seed {seed}, {memory / 1e9:.1f} GB: % from memory: {', '.join(shares)}", flush=True)
    return found


def _replayed(path: Path, memory: int, policy: str, warm: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fletching_server", "replay", str(path), "--memory", f"{memory}B", "--disk", DISK]
    command += ["--policy", policy, "--warm", warm, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _compared(name: str, found: Sequence[Seed]) -> Iterator[Row]:
    """Yield what people see, beside LRU without warming; the other ways are told in ``parts``."""
    ceiling = Spread.of([100 * seed.told["lru"]["ceiling_without_prefetch"] for seed in found]).median
    targets = {"from memory": 90.0, "without upstream": 98.0} if name == "desk-a" else {}
    for what, unit, measure in _MEASURES:
        ours, lru = ([measure(seed, way) for seed in found] for way in ("ours", "lru"))
        target = targets.get(what)
        met = None if target is None else min(ours) >= target
        limit = f"without prefetching nothing exceeds {ceiling:.1f} %" if what == "from memory" else ""
        parts = {f"{way}, seed {seed.number}": round(measure(seed, way), 3) for seed in found for way in seed.told}
        yield _row(f"{name}: {what}", unit, ours, lru, "" if target is None else f">= {target:g}, every seed", met, limit, parts)


def _predicted(name: str, found: Sequence[Seed]) -> Iterator[Row]:
    """Yield how much of what was made ready was used, and what it cost in the background."""
    precision = [100 * float(seed.told["ours"]["precision"] or 0) for seed in found]
    background = [seed.background() for seed in found]
    targets = name == "desk-a"
    met = (min(precision) >= 50, max(background) <= 2) if targets else (None, None)
    told = {
        f"{figure}, seed {seed.number}": float(value)
        for seed in found
        for figure in ("brier", "brier_skill", "coverage", "timeliness", "pollution")
        if (value := seed.told["ours"].get(figure)) is not None
    }
    yield _row(f"{name}: made ready and used", "%", precision, None, ">= 50, every seed" if targets else "", met[0], "", told)
    aim = "<= 2, every seed" if targets else ""
    yield _row(f"{name}: background fill", "x demand fill", background, None, aim, met[1], "", {})


def _against_lru(name: str, found: Sequence[Seed]) -> Row:
    points = [seed.share("ours", "hot") - seed.share("lru", "hot") for seed in found]
    aim, met = f">= {_UNDER_LRU:g}, every seed", min(points) >= _UNDER_LRU
    parts = {f"memory, seed {seed.number}": float(seed.memory) for seed in found}
    return _row(f"{name}: from memory, above LRU", "points", points, None, aim, met, "", parts)


def _row(
    what: str, unit: str, ours: Sequence[float], lru: Sequence[float] | None, aim: str, met: bool | None, limit: str, parts: Any
) -> Row:
    peer = None if lru is None else Spread.of(lru)
    return Row(what, unit, Spread.of(ours), peer, None, aim, met, limit, parts, "LRU without warming" if lru else "")
