"""What a server would make ready along a trace: it looks at the moments that matter, predicts, decides, and is judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from heapq import heapify, heappop
from typing import Final

from fletching_server.agenda import Agenda
from fletching_server.calibration import Calibration, Calibrations, Standing
from fletching_server.coaccess import CoAccess
from fletching_server.judging import Judge, is_withheld
from fletching_server.predictor import LEAST_CHANCE, Predictor, RelativeKey
from fletching_server.replaying.costs import Costs
from fletching_server.replaying.memory import Memory
from fletching_server.replaying.shelf import Shelf
from fletching_server.replaying.trace import NO_SESSION, item_of, key_of
from fletching_server.replaying.workers import Task, Workers
from fletching_server.schedule import Look, looks
from fletching_server.sweeps import ahead
from fletching_server.worth import KAPPA_NIGHT, WEIGHTS, Candidate, Rule

HABITS, RUNS, TOGETHER = "habits", "runs", "together"  # the arms
ANY_BUCKET: Final = "*"
_PARTNERS: Final = 8  # looked at after each touch
_BUDGET_SHARE: Final = 1.5  # of the seconds that demand takes in a session: at most so many go into background work
_LEAST_BUDGET: Final = 120.0
_RING_FILL: Final = 0.75  # of the ring may be what was read ahead and waits: what arrived for others needs room too
_LEARNED: Final = 0.3  # the share of the newest session in what a session is taken to demand

Prediction = tuple[RelativeKey, float, Standing, float]  # what, raw chance, of what standing, calibrated chance


class Ahead:
    """Everything that is done before somebody asks."""

    def __init__(
        self, agenda: Agenda, costs: Costs, memory: Memory, shelf: Shelf, rule: Rule, *, warms: bool, holdout: float
    ) -> None:
        self._agenda, self._costs, self._memory, self._shelf, self._rule = agenda, costs, memory, shelf, rule
        self._warms, self._holdout = warms, holdout
        self.judge = Judge(rule.kappa)
        self._predictor, self._calibration = Predictor(agenda), Calibrations()
        self._together, self._across = CoAccess(), CoAccess()
        self.readers, self.warmers = Workers(4), Workers(4)
        self._looks: list[Look] = []
        self._begun: set[int] = set()
        self._sizes: dict[tuple[str, str], int] = {}
        self._predictions: list[Prediction] = []
        self._pairs_mean = Calibration()
        self._pairs: list[tuple[RelativeKey, float]] = []  # what was expected together with something else, and how much
        self._touched: set[RelativeKey] = set()
        self._days: dict[RelativeKey, int] = defaultdict(int)  # sessions on which each was touched
        self._demand = self._today = self._spent = 0.0
        self.fill_seconds = 0.0
        self._in_ring: dict[str, int] = {}  # read ahead, and not asked for yet
        self._on_the_way = 0
        self._on_disk_only: set[str] = set()  # made ready there, and not asked for yet

    # What happens

    def until(self, now: float) -> Iterator[Task]:
        """Yield the background work that has ended by *now*; look ahead where it is time to."""
        self._schedule(now)
        while self._looks and self._looks[0].at <= now:
            look = heappop(self._looks)
            yield from self._ended(look.at)
            self._look(look)
        yield from self._ended(now)

    def _ended(self, now: float) -> Iterator[Task]:
        for workers in (self.readers, self.warmers):
            yield from workers.ended(now)

    def _schedule(self, now: float) -> None:
        session = self._agenda.present(now)
        for number in (session, session + 1):
            if number < len(self._agenda.days) and number not in self._begun:
                self._begun.add(number)
                self._looks += [look for look in looks(self._agenda, number) if look.at >= now - 3600.0]
                heapify(self._looks)

    def touched(self, now: float, principal: str, profile: str, key: RelativeKey) -> None:
        """Learn from one demand read that is no sweep, and act on what is asked for together with it."""
        if not self._warms:
            return
        moment = self._agenda.moment(now)
        newly = not self._predictor.knows(principal, key)
        self._predictor.note(principal, moment, key, WEIGHTS[profile])
        if key not in self._touched:
            self._touched.add(key)
            self._days[key] += 1
        if self._together.note(principal, now, key):
            for partner, chance in self._together.following(key)[:_PARTNERS]:
                self._consider_partner(now, moment.session, partner, chance, WEIGHTS[profile])
        if newly and key.offset is not None:
            self._other_sessions(now, moment.session, principal, key, WEIGHTS[profile])

    def _other_sessions(self, now: float, session: int, principal: str, key: RelativeKey, weight: float) -> None:
        """Expect of somebody who is new to a bucket the sessions of it that others who were new to theirs asked for next."""
        shape = RelativeKey(key.dataset, ANY_BUCKET, key.offset)
        if self._across.note(f"{principal}/{key.bucket}", now, shape):
            for partner, chance in self._across.following(shape)[:_PARTNERS]:
                self._consider_partner(now, session, RelativeKey(key.dataset, key.bucket, partner.offset), chance, weight)

    def _consider_partner(self, now: float, session: int, key: RelativeKey, raw: float, weight: float) -> None:
        chance = self._pairs_mean(raw)
        if key not in self._touched:
            self._pairs.append((key, raw))
        found = self._candidate(now, session, key, chance, weight)
        if found is not None and self._rule.pays(found[0]) and self._rule.pays(priced := self._priced(found[0], None)):
            self._act(now, session, priced, found[1], arm=TOGETHER)

    def used(self, key: str, late_seconds: float = 0.0) -> None:
        """Note that somebody asked for *key*, which is in memory, or will be in so many seconds."""
        self._today += self.judge.used(key, late_seconds)
        self._on_the_way -= self._in_ring.pop(key, 0)

    def used_from_disk(self, key: str) -> None:
        """Note that somebody asked for *key*, which lies on disk."""
        if key in self._on_disk_only:
            self._on_disk_only.discard(key)
            self.used(key)

    def missed(self, key: str, seconds: float) -> None:
        """Note that somebody waited so many seconds for *key*."""
        self._today += seconds
        self.judge.missed(key)

    def gone(self, key: str, displaced_by: str | None) -> None:
        """Note that *key* has left memory."""
        self.judge.gone(key)
        self._on_the_way -= self._in_ring.pop(key, 0)
        if displaced_by:
            self.judge.displaced(key, displaced_by)

    def under_way(self, key: str, now: float) -> Task | None:
        """Return the work under way that brings *key* into memory; one that has not begun is taken back."""
        for workers in (self.readers, self.warmers):
            if (task := workers.tasks.get(key)) is None:
                continue
            if task.starts <= now:
                return task
            workers.take_back(key)
            self._is_no_merit(task)
        return None

    def _is_no_merit(self, task: Task) -> None:
        """Forget that *task* was begun; if its first step has brought it to the disk, that stays."""
        self._on_the_way -= self._in_ring.pop(task.key, 0)
        if task.from_upstream:
            self._on_disk_only.discard(task.key)
        if task.key not in self._on_disk_only:
            self.judge.gone(task.key)

    def run_on(self, now: float, dataset: str, bucket: str, session: int, steps: int) -> None:
        """Read ahead of somebody who reads session after session."""
        for number in range(session + 1, session + 1 + ahead(steps)):
            if number < len(self._agenda.days) and self._agenda.settled[number] <= now:
                self.read_ahead(now, key_of(dataset, bucket, self._agenda.days[number]), self._sizes.get((dataset, bucket), 0))

    def read_ahead(self, now: float, key: str, size: int) -> None:
        """Have *key* in the ring soon."""
        if self._memory.holds(key) or key in self.readers.tasks or key in self.warmers.tasks:
            return
        if self._on_the_way + size > self._memory.ring_bytes * _RING_FILL:
            return
        self._in_ring[key] = size
        self._on_the_way += size
        seconds, saves, upstream = self._work(key, size, to_memory=True)
        task = Task(0, 0, key, size, upstream, to_memory=True, ring=True, arm=RUNS, chance=1.0)
        self._submit(self.readers, now, seconds, saves, task)

    # Looking ahead

    def _look(self, look: Look) -> None:
        if look.begins:
            self._begin(look.session)
        if not self._warms:
            return
        rule = self._rule if look.to_memory and not look.begins else replace(self._rule, kappa=min(self._rule.kappa, KAPPA_NIGHT))
        options: dict[str, tuple[Candidate, Task]] = {}
        for expected in self._predictor.expected(look.session, look.slots):
            chance = self._calibration(expected.chance, expected.standing)
            if look.begins:
                self._predictions.append((expected.key, expected.chance, expected.standing, chance))
            if rule.hopeless(chance, expected.weight):
                continue
            found = self._candidate(look.at, look.session, expected.key, chance, expected.weight, look)
            if found is not None and rule.pays(found[0]):
                options[found[0].key] = found
        if look.begins:
            self._memory.policy.foresee(self._foreseen(look.session))
        for candidate in rule.chosen(self._priced(candidate, look) for candidate, _ in options.values()):
            self._act(look.at, look.session, candidate, options[candidate.key][1], arm=HABITS)

    def _foreseen(self, session: int) -> dict[str, float]:
        """Return how likely each partition that is held is asked for in *session*."""
        chances = dict.fromkeys(self._memory.held, LEAST_CHANCE)
        named = ((self._name(key, session), chance) for key, _, _, chance in self._predictions)
        return chances | {name: chance for name, chance in named if name in chances}

    def _name(self, key: RelativeKey, session: int) -> str | None:
        """Return the partition that *key* means in *session*; None where there is none."""
        if key.offset is None:
            return key_of(key.dataset, key.bucket, NO_SESSION)
        place = session + key.offset
        return key_of(key.dataset, key.bucket, self._agenda.days[place]) if 0 <= place < len(self._agenda.days) else None

    def _priced(self, candidate: Candidate, look: Look | None) -> Candidate:
        """Return *candidate* with what is expected to be lost on what leaves memory for it."""
        if look is not None and not look.to_memory:
            return candidate
        return replace(candidate, loses=self._loses(candidate.bytes))

    def _begin(self, session: int) -> None:
        """Score the predictions of the session before, and learn what a chance means."""
        for key, _, _, chance in self._predictions:
            base = self._days[key] / max(1, session)
            self.judge.predicted(chance, min(base, 1.0), happened=key in self._touched)
        self._calibration.learn((raw, standing, key in self._touched) for key, raw, standing, _ in self._predictions)
        self._pairs_mean.learn((raw, key in self._touched) for key, raw in self._pairs)
        self._predictions, self._pairs, self._touched = [], [], set()
        self.judge.session_ended()
        self._memory.policy.day_ended()
        self._demand += _LEARNED * (self._today - self._demand) if self._demand else self._today
        self._today = self._spent = 0.0

    @property
    def budget(self) -> float:
        """The background seconds that a session may take."""
        return max(_LEAST_BUDGET, _BUDGET_SHARE * self._demand)

    def _candidate(
        self, now: float, session: int, key: RelativeKey, chance: float, weight: float, look: Look | None = None
    ) -> tuple[Candidate, Task] | None:
        """Return *key* as something that may be made ready, and the work; None where there is nothing to do."""
        to_memory = look is None or look.to_memory
        name = self._name(key, session)
        if name is None or (key.offset is not None and self._agenda.settled[session + key.offset] > now):
            return None
        if name in self.warmers.tasks or name in self.readers.tasks:
            return None
        size = self._sizes.get((key.dataset, key.bucket), 0)
        if name in self._memory.held:
            if look is not None and look.begins:  # it shall not leave before it is asked for
                held = self._memory.held[name]
                self._memory.offer(item_of(name, held, self._costs.disk.of(held)), chance)
            return None
        if not to_memory and name in self._shelf.held:
            return None
        seconds, saves, upstream = self._work(name, size, to_memory=to_memory)
        candidate = Candidate(name, chance, saves, seconds, size, weight)
        return candidate, Task(0, 0, name, size, upstream, to_memory, ring=False, arm="", chance=chance)

    def _loses(self, size: int) -> float:
        """Return the seconds that are expected to be lost today on what leaves memory for *size* bytes."""
        policy = self._memory.policy
        excess = self._memory.used + size - self._memory.max_bytes
        return policy.loss(policy.victims(excess, ())) if excess > 0 else 0.0

    def _work(self, key: str, size: int, *, to_memory: bool) -> tuple[float, float, bool]:
        """Return the background seconds it takes, the seconds it saves, and whether upstream is asked."""
        costs = self._costs
        there = costs.memory.of(size) if to_memory else costs.disk.of(size)
        if key in self._shelf.held:
            return costs.disk.of(size), costs.disk.of(size) - there, False
        return costs.upstream.of(size), costs.upstream.of(size) - there, True

    def _act(self, now: float, session: int, candidate: Candidate, work: Task, arm: str) -> None:
        off = arm in self.judge.off
        if off or (self._holdout and is_withheld("replay", candidate.key, session, self._holdout)):
            self.judge.withhold(candidate.key, arm, candidate.fill_seconds, candidate.saves)
        elif self._spent + candidate.fill_seconds <= self.budget:
            self._spent += candidate.fill_seconds
            self._submit(self.warmers, now, candidate.fill_seconds, candidate.saves, work._replace(arm=arm))

    def _submit(self, workers: Workers, now: float, seconds: float, saves: float, task: Task) -> None:
        workers.submit(now, seconds, task)
        self.fill_seconds += seconds
        if not task.to_memory:
            self._on_disk_only.add(task.key)
        self.judge.acted(task.key, task.arm, seconds, saves)

    def sized(self, dataset: str, bucket: str, size: int) -> None:
        """Remember how large the partitions of a bucket are."""
        self._sizes[dataset, bucket] = size
