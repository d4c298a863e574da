"""Which requests of recorded traces our policies answer from memory, against others and against a memory that knows the future.

Nothing is timed. Each trace is driven at 1, 5, 10 and 25 % of its working set: our policies by ``replay_keys``, each peer in a
child of its own that has a time limit, as some of them do not end. A score is (x - LRU) / (optimum - LRU): 0 is LRU, 1 is
the optimum, below 0 is worse than LRU. Where sizes differ, the optimum is the greedy one, which can be reached.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from benchmarks.contenders import ROOT
from benchmarks.environments import POLICIES, peers_python
from benchmarks.figures import Row, Spread
from benchmarks.key_traces import KeyTrace, traces
from fletching_server.clairvoyant import belady, ceiling, compulsory, greedy
from fletching_server.density import DensityPolicy
from fletching_server.policy import LruPolicy, Policy
from fletching_server.replaying import Costs, replay_keys

SHARES: Final = (0.01, 0.05, 0.10, 0.25)
ALLOWED: Final = 0.5  # points that we may be under LRU
OURS: Final[Mapping[str, Callable[[int], Policy]]] = {"density": DensityPolicy, "lru": lambda _: LruPolicy()}
COUNTING: Final = ("LRU", "S3FIFO", "ARC", "WTinyLFU", "GDSF", "LHD", "theine", "moka", "cachetools LRU")
WEIGHING: Final = ("LRU", "S3FIFO", "ARC", "WTinyLFU", "GDSF", "LHD", "moka", "cachetools LRU")  # theine counts only
_YARDSTICKS: Final = frozenset({"lru", "LRU", "cachetools LRU", "optimum", "endless"})
_DECIDED: Final = 1.0  # points between LRU and the optimum, below which there is nothing to win
_LONG: Final = 500_000  # requests: a trace beyond is cut where less than the whole effort is made
_PEER_SECONDS: Final = 120.0
_COSTS: Final = Costs()  # of a read from Parquet and from memory


@dataclass
class Found:
    """What was found of one trace at one size: hits and hit bytes of each policy, and of the optimum."""

    trace: KeyTrace
    share: float
    room: int
    hits: dict[str, int] = field(default_factory=dict)
    hit_bytes: dict[str, int] = field(default_factory=dict)
    beyond: float = math.nan  # hits that nobody can exceed, where sizes differ

    def points(self, policy: str) -> float:
        """Return the share of requests that *policy* answered, in per cent."""
        return 100 * self.hits[policy] / len(self.trace.keys)

    def byte_points(self, policy: str) -> float:
        return 100 * self.hit_bytes[policy] / float(self.trace.sizes.sum())

    def seconds(self, policy: str) -> float:
        """Return the seconds that *policy* saved against reading everything from Parquet."""
        hits, size = self.hits[policy], self.hit_bytes[policy]
        disk, memory = (hits * cost.seconds + size / cost.megabytes_per_second / 1e6 for cost in (_COSTS.disk, _COSTS.memory))
        return disk - memory

    def score(self, policy: str) -> float | None:
        """Return how far *policy* came from LRU to the optimum; None where there is no way to go."""
        to_win = self.points("optimum") - self.points("lru")
        return (self.points(policy) - self.points("lru")) / to_win if to_win > _DECIDED else None


def run(effort: float = 1.0, folder: Path | None = None) -> list[Row]:
    """Return a row for each policy, and one for each trace and size; the environment of the peers is kept in *folder*."""
    python = peers_python(folder, "policies", POLICIES)
    found = list(_measured(python, effort))
    return [*_summary(found), *map(_row, found)]


def _measured(python: Path, effort: float) -> Iterator[Found]:
    with TemporaryDirectory(prefix="fb-") as scratch:
        path = Path(scratch) / "trace"
        for whole in traces():
            trace = whole if effort >= 1 else whole.cut(max(_LONG, int(effort * len(whole.keys))))
            trace.pack(path)
            for share in SHARES:
                one = Found(trace, share, max(1, int(share * trace.working_set())))
                _drive_ours(one)
                _drive_peers(one, python, path)
                _check_lru(one)
                _look_ahead(one)
                yield one


def _drive_ours(one: Found) -> None:
    trace = one.trace
    names = [str(key) for key in range(int(trace.keys.max()) + 1)]
    refill = _COSTS.disk.of if trace.sized else lambda _: 1.0
    for name, policy in OURS.items():
        asked = ((names[key], size) for key, size in zip(trace.keys.tolist(), trace.sizes.tolist(), strict=True))
        outcome = replay_keys(asked, policy(one.room), one.room, refill)
        one.hits[name], one.hit_bytes[name] = outcome.hits, outcome.hit_bytes


def _drive_peers(one: Found, python: Path, path: Path) -> None:
    for name in WEIGHING if one.trace.sized else COUNTING:
        told = {"policy": name, "trace": str(path), "room": one.room, "sized": one.trace.sized}
        answer = _child(python, told)
        if isinstance(answer, str):
            print(f"{name} on {one.trace.name} at {one.share:.0%}: {answer}")
        else:
            one.hits[name], one.hit_bytes[name] = answer["hits"], answer["hit_bytes"]


def _check_lru(one: Found) -> None:
    """Raise where our LRU, the yardstick of all scores, is not what others call so."""
    for peer in ("LRU", "cachetools LRU"):
        if one.hits.get(peer, one.hits["lru"]) != one.hits["lru"]:
            raise RuntimeError(f"{one.trace.name} at {one.share:.0%}: {peer} has {one.hits[peer]} hits, ours {one.hits['lru']}")


def _child(python: Path, told: Mapping[str, object]) -> dict[str, int] | str:
    """Return what one peer found in a process of its own, or why it did not."""
    command = [str(python), "-m", "benchmarks.peers_policies", json.dumps(told)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PEER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end within {_PEER_SECONDS:g} seconds"
    if done.returncode:
        return f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}"
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _look_ahead(one: Found) -> None:
    keys, sizes = one.trace.keys, one.trace.sizes
    flags = {"endless": compulsory(keys), "optimum": greedy(keys, sizes, one.room) if one.trace.sized else belady(keys, one.room)}
    for name, hits in flags.items():
        one.hits[name], one.hit_bytes[name] = int(hits.sum()), int(sizes[hits].sum())
    if one.trace.sized:
        one.beyond = ceiling(keys, sizes, one.room)


def _summary(found: list[Found]) -> Iterator[Row]:
    """Yield a row per policy, on recorded traces and on desks: its scores, and the most points that it is under LRU."""
    names = dict.fromkeys(name for one in found for name in one.hits if name not in _YARDSTICKS)
    for where, made_up in (("recorded traces", False), ("desks", True)):
        for name in names:
            had = [one for one in found if name in one.hits and one.trace.made_up == made_up]
            if had:
                yield _scored(f"score of {name}, {where}", name, had)


def _scored(what: str, name: str, had: list[Found]) -> Row:
    scores = [score for one in had if (score := one.score(name)) is not None] or [0.0]
    above = [one.points(name) - one.points("lru") for one in had]
    parts = {"mean score": float(np.mean(scores)), "worst score": min(scores), "points above LRU at worst": min(above)}
    parts |= {"mean points above LRU": float(np.mean(above)), "runs": float(len(had))}
    target, met = ("", None) if name not in OURS or had[0].trace.made_up else (f">= LRU - {ALLOWED}", min(above) >= -ALLOWED)
    told = f"{what}: mean {parts['mean score']:+.2f}, points above LRU at worst {min(above):+.1f}"
    return Row(told, "of LRU to optimum", Spread.of(scores), target=target, met=met, parts=_rounded(parts))


def _row(one: Found) -> Row:
    ours, lru = (Spread.of([one.points(name)]) for name in ("density", "lru"))
    parts = {name: one.points(name) for name in one.hits}
    if one.trace.sized:
        parts |= {f"{name}, bytes": one.byte_points(name) for name in one.hits}
        parts |= {f"{name}, seconds saved": one.seconds(name) for name in one.hits}
        parts["nobody exceeds"] = 100 * one.beyond / len(one.trace.keys)
    what = f"{one.trace.name}, {len(one.trace.keys):,} requests, {one.share:.0%} of the working set"
    met = one.points("density") >= one.points("lru") - ALLOWED
    limit = f"the optimum has {one.points('optimum'):.1f} %, an endless memory {one.points('endless'):.1f} %"
    return Row(what, "% hits", ours, lru, None, f">= LRU - {ALLOWED}", met, limit, _rounded(parts), "LRU (ours)")


def _rounded(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in parts.items()}
