"""One request of a trace after the other, through memory, disk and upstream, with what is made ready in between."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fletching_server.agenda import Agenda
from fletching_server.clairvoyant import ceiling
from fletching_server.density import DensityPolicy
from fletching_server.policy import Item, LruPolicy, Policy
from fletching_server.predictor import RelativeKey
from fletching_server.replaying.ahead import Ahead
from fletching_server.replaying.costs import Costs
from fletching_server.replaying.hours import agenda_of
from fletching_server.replaying.memory import RING_SHARE, Memory
from fletching_server.replaying.outcome import INTERACTIVE, Outcome
from fletching_server.replaying.shelf import Shelf
from fletching_server.replaying.trace import NO_SESSION, Trace, item_of
from fletching_server.replaying.workers import Task
from fletching_server.sweeps import MOST_AHEAD, STEPS, RunDetector
from fletching_server.worth import Rule

HISTORY: Final = 10  # sessions, after which requests count as settled
_SWEEP: Final = 32  # partitions of a plan from which on it is a sweep
_TOLD_EVERY: Final = 4096  # requests

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """How to replay: budgets in bytes, which policy, whether to warm, by which rule; the share of decisions withheld."""

    memory: int
    disk: int
    policy: str = "density"
    warm: bool = True
    rule: Rule = field(default_factory=Rule)
    costs: Costs = field(default_factory=Costs)
    calendar: str | None = None
    holdout: float = 0.0
    reads_ahead: bool = True


def replay(trace: Trace, plan: Plan, progress: Progress = lambda _: None) -> Outcome:
    """Return what *plan* makes of *trace*, beside plain LRU and what nobody without foresight of the next day can exceed.

    With warming it is run once more without, to tell what demand alone takes.
    """
    _, agenda = agenda_of(trace, plan.calendar)
    outcome = _Run(trace, plan, agenda, progress).outcome()
    if plan.warm:
        alone = _Run(trace, replace(plan, warm=False, reads_ahead=False), agenda, progress).outcome()
        outcome.demand_seconds, outcome.demand_misses = alone.waited_seconds, alone.misses
    else:
        outcome.demand_seconds, outcome.demand_misses = outcome.waited_seconds, outcome.misses
    plain = replace(plan, policy="lru", warm=False, reads_ahead=False)
    lru = outcome if plan == plain else _Run(trace, plain, agenda, progress).outcome()
    outcome.lru = {"overall": lru.together().told(), "interactive": lru.together(*INTERACTIVE).told()}
    outcome.clairvoyant = _clairvoyant(trace, plan.memory)
    return outcome


def _clairvoyant(trace: Trace, max_bytes: int) -> float:
    """Return the share of requests that a memory of *max_bytes* can answer at most if it never looks ahead of the first."""
    if not len(trace):
        return 0.0
    _, keys = np.unique(trace.keys, return_inverse=True)
    return ceiling(keys.astype(np.int64), np.array(trace.bytes, np.int64), max_bytes) / len(trace)


class _Run:
    def __init__(self, trace: Trace, plan: Plan, agenda: Agenda, progress: Progress) -> None:
        self._trace, self._plan, self._agenda, self._progress = trace, plan, agenda, progress
        rings = plan.policy == "density"
        ring_bytes = int(plan.memory * RING_SHARE) if rings else 0
        policy: Policy = DensityPolicy(plan.memory - ring_bytes) if rings else LruPolicy()
        self._memory, self._shelf = Memory(plan.memory, policy, ring_bytes), Shelf(plan.disk)
        self._rings, self._reads_ahead = rings, rings and plan.reads_ahead
        self._ahead = Ahead(agenda, plan.costs, self._memory, self._shelf, plan.rule, warms=plan.warm, holdout=plan.holdout)
        self._runs = RunDetector()
        self._flights: dict[str, float] = {}  # when what somebody waits for arrives
        self._outcome = Outcome()
        self._seen: set[str] = set()
        self._repeats = self._interactive = 0

    def outcome(self) -> Outcome:
        """Return the outcome, having replayed all of it."""
        trace, first = self._trace, self._agenda.present(self._trace.ts[0]) if len(self._trace) else 0
        for row in range(len(trace)):
            self._request(row, first)
            if row % _TOLD_EVERY == 0:
                self._progress(_TOLD_EVERY)
        told = self._outcome
        told.judged = self._ahead.judge.figures()
        told.background_seconds = self._ahead.fill_seconds
        told.policy = self._memory.policy.facts()
        told.ceiling = self._repeats / max(1, self._interactive)
        return told

    def _request(self, row: int, first: int) -> None:
        trace = self._trace
        now, key, size, profile = trace.ts[row], trace.keys[row], trace.bytes[row], trace.profiles[row]
        for task in self._ahead.until(now):
            self._arrive(task)
        self._gone()
        relative, steps = self._placed(row, now)
        sweeps = self._rings and (steps >= STEPS or profile == "backtesting" or self._in_sweep(row))
        tier, waits = self._serve(now, key, size, sweeps=sweeps)
        costs = self._plan.costs
        seconds, without = waits + costs.memory.of(size), costs.upstream.of(size)
        self._outcome.profiles[profile].count(tier, size, seconds, without)
        if self._agenda.present(now) - first >= HISTORY:
            self._outcome.settled[profile].count(tier, size, seconds, without)
        self._count_repeat(key, profile)
        self._learn(row, now, relative, steps)

    def _placed(self, row: int, now: float) -> tuple[RelativeKey, int]:
        """Return the request's relative key, and how many steps of a run have led to it."""
        trace = self._trace
        dataset, bucket, day = trace.datasets[row], trace.buckets[row], trace.sessions[row]
        if day == NO_SESSION:
            return RelativeKey(dataset, bucket, None), 0
        number = self._agenda.number(day)
        steps = self._runs.note(trace.principals[row], dataset, bucket, number, now)
        return RelativeKey(dataset, bucket, number - self._agenda.present(now)), steps

    def _in_sweep(self, row: int) -> bool:
        plan = self._trace.plans.get(self._trace.requests[row])
        return plan is not None and len(plan) >= _SWEEP

    # Serving

    def _serve(self, now: float, key: str, size: int, *, sweeps: bool) -> tuple[str, float]:
        """Return which tier answers, and how long that takes beyond memory's own time."""
        costs, memory, ahead = self._plan.costs, self._memory, self._ahead
        item = item_of(key, size, costs.disk.of(size))
        if not sweeps:
            memory.policy.touch(item)
        self._shelf.use(item_of(key, size, costs.upstream.of(size)))
        if (arrives := self._flights.get(key, now)) > now:
            return self._waited("upstream", arrives - now)
        if memory.holds(key):
            if key in memory.ring:
                memory.passed(key) if sweeps else memory.promote(item)
            ahead.used(key)
            return "hot", 0.0
        if (task := ahead.under_way(key, now)) is not None:
            ahead.used(key, task.ends - now)
            return self._waited("upstream" if task.from_upstream else "cold", task.ends - now)
        return self._fetched(now, item, sweeps=sweeps)

    def _fetched(self, now: float, item: Item, *, sweeps: bool) -> tuple[str, float]:
        """Read *item* from disk, or have it fetched, while somebody waits; hold it where that is worth it."""
        tier, seconds = "cold", item.refill_seconds
        if item.key in self._shelf.held:
            self._ahead.used_from_disk(item.key)
        else:
            tier, seconds = "upstream", self._plan.costs.upstream.of(item.bytes)
            self._flights[item.key] = now + seconds
            self._shelf.put(item._replace(refill_seconds=seconds))
        self._hold(item, sweeps=sweeps)
        self._ahead.missed(item.key, seconds)
        return self._waited(tier, seconds)

    def _waited(self, tier: str, seconds: float) -> tuple[str, float]:
        self._outcome.misses += 1
        self._outcome.waited_seconds += seconds
        return tier, seconds

    def _hold(self, item: Item, *, sweeps: bool, chance: float | None = None) -> None:
        if sweeps:
            self._memory.pass_through(item.key, item.bytes)
        else:
            self._memory.offer(item, chance)

    def _arrive(self, task: Task) -> None:
        """Put what was made ready where it belongs."""
        costs = self._plan.costs
        if task.from_upstream:
            self._shelf.put(item_of(task.key, task.bytes, costs.upstream.of(task.bytes)))
        if task.to_memory:
            self._hold(item_of(task.key, task.bytes, costs.disk.of(task.bytes)), sweeps=task.ring, chance=task.chance)
            self._gone(displaced_by=task.arm)

    def _gone(self, displaced_by: str | None = None) -> None:
        """Tell the judge what has left memory."""
        for key in self._memory.evicted:
            self._ahead.gone(key, displaced_by)
        self._memory.evicted.clear()

    # Learning

    def _learn(self, row: int, now: float, relative: RelativeKey, steps: int) -> None:
        trace = self._trace
        dataset, bucket, size = trace.datasets[row], trace.buckets[row], trace.bytes[row]
        self._ahead.sized(dataset, bucket, size)
        if steps < STEPS:
            self._ahead.touched(now, trace.principals[row], trace.profiles[row], relative)
        elif self._reads_ahead and relative.offset is not None:
            self._ahead.run_on(now, dataset, bucket, relative.offset + self._agenda.present(now), steps)
        if self._reads_ahead and (plan := self._trace.plans.get(trace.requests[row])) is not None:
            self._read_plan_ahead(row, now, plan)

    def _read_plan_ahead(self, row: int, now: float, plan: list[int]) -> None:
        """Read ahead what the same request comes to next: it is known from its plan."""
        trace, place = self._trace, bisect_left(plan, row)
        for following in plan[place + 1 : place + 1 + MOST_AHEAD]:
            if trace.ts[following] > now and self._has_settled(trace.sessions[following], now):
                self._ahead.read_ahead(now, trace.keys[following], trace.bytes[following])

    def _has_settled(self, day: int, now: float) -> bool:
        return day == NO_SESSION or self._agenda.settled[self._agenda.number(day)] <= now

    def _count_repeat(self, key: str, profile: str) -> None:
        if profile != "backtesting":
            self._interactive += 1
            self._repeats += key in self._seen
            self._seen.add(key)
