"""What deciding costs: each access at 20,000 known partitions, a look ahead, and a replay of 300,000 accesses."""

from __future__ import annotations

import random
from datetime import date, time, timedelta
from zoneinfo import ZoneInfo

from benchmarks.desk import profiles, trace
from benchmarks.figures import Row, Spread, scaled, seconds
from fletching_server.agenda import Agenda, Slot, of_days
from fletching_server.calendars import day_number
from fletching_server.coaccess import CoAccess
from fletching_server.density import DensityPolicy
from fletching_server.policy import Item, LruPolicy, Policy
from fletching_server.predictor import Predictor, RelativeKey
from fletching_server.replaying import Plan, replay, replay_keys, trace_of

KNOWN = 20_000  # partitions
ROOM = 2_000  # of them in memory
ACCESSES = 60_000
REPLAYED = 300_000
MOST_MICROSECONDS = 20.0
MOST_SECONDS = 60.0


def run(effort: float = 1.0) -> list[Row]:
    """Return microseconds per access and seconds per replay."""
    rounds = scaled(7, effort)
    return [_policies(rounds), *_predictor(rounds), _replay(max(1, round(3 * effort)))]


def _policies(rounds: int) -> Row:
    """Ten accesses of eleven go to one partition of eleven, and one in three misses: most of the work is choosing who leaves."""
    items = [Item(f"d/{number}/0", f"d/{number}/0", 1, 1.0) for number in range(KNOWN)]
    ours, peer = [], []
    for turn in range(rounds):
        asked = _skewed(items, turn)
        ours.append(_per_access(asked, DensityPolicy(ROOM), items))
        peer.append(_per_access(asked, LruPolicy(), items))
    ratio = Spread.of([one / other for one, other in zip(ours, peer, strict=True)])
    met = Spread.of(ours).median < MOST_MICROSECONDS
    what = f"policy, one access, {KNOWN:,} known partitions, {ROOM:,} held"
    target = f"< {MOST_MICROSECONDS:g}"
    return Row(what, "us", Spread.of(ours), Spread.of(peer), ratio, target, met, "seven ghosts see each use", {}, "LRU, ours")


def _skewed(items: list[Item], seed: int) -> list[tuple[str, int]]:
    chosen = random.Random(seed)  # a workload, no secret
    few = len(items) // 11
    places = (chosen.randrange(few) if chosen.random() < 10 / 11 else chosen.randrange(len(items)) for _ in range(ACCESSES))
    return [(items[place].key, 1) for place in places]


def _per_access(asked: list[tuple[str, int]], policy: Policy, items: list[Item]) -> float:
    for item in items:
        policy.touch(item)
    return seconds(lambda: replay_keys(asked, policy, ROOM)) / len(asked) * 1e6


def _predictor(rounds: int) -> list[Row]:
    """Learning from one access, and one look at everything, of 40 people with a hundred names each."""
    agenda, noting, looking = _agenda(), [], []
    for turn in range(rounds):
        predictor, together = Predictor(agenda), CoAccess()
        touches = _touches(turn)
        for principal, _, at, key in touches[: KNOWN // 2]:
            predictor.note(principal, agenda.moment(at), key)
        rest = touches[KNOWN // 2 :]

        def note(predictor: Predictor = predictor, together: CoAccess = together, rest: list[_Touch] = rest) -> None:
            for principal, _, at, key in rest:
                predictor.note(principal, agenda.moment(at), key)
                together.note(principal, at, key)

        noting.append(seconds(note) / len(rest) * 1e6)
        looking.append(seconds(lambda predictor=predictor: list(predictor.expected(30, (Slot.ANY,)))) * 1e3)  # type: ignore[misc]
    met = Spread.of(noting).median < MOST_MICROSECONDS
    return [
        Row("predictor, learning from one access", "us", Spread.of(noting), None, None, f"< {MOST_MICROSECONDS:g}", met),
        Row("predictor, one look at a session", "ms", Spread.of(looking), limit="in the background, some times a day"),
    ]


_Touch = tuple[str, int, float, RelativeKey]


def _agenda() -> Agenda:
    days = [day_number(date(2026, 1, 5) + timedelta(days=day)) for day in range(60)]
    return of_days([day for day in days if (day + 3) % 7 < 5], ZoneInfo("UTC"), time(9, 30), time(16), timedelta())


def _touches(seed: int) -> list[_Touch]:
    """Return touches of 40 principals with 100 names each, over 30 sessions."""
    chosen, agenda = random.Random(seed), _agenda()  # a workload, no secret
    touches = []
    for session in range(30):
        for _ in range(KNOWN // 15):
            who = chosen.randrange(40)
            key = RelativeKey("ticks", f"S{who}-{chosen.randrange(100)}", -chosen.choice((1, 1, 1, 2, 5)))
            touches.append((f"p{who}", session, agenda.opens[session] + chosen.randrange(6 * 3600), key))
    return sorted(touches, key=lambda touch: touch[2])


def _replay(rounds: int) -> Row:
    """One desk's 80 sessions with warming, which is replayed twice: with, and without to compare."""
    frame = trace.simulate(profiles.load("desk-a"), 1).head(REPLAYED)
    asked, memory = trace_of(frame, "desk-a"), trace.memory(frame)
    samples = [seconds(lambda: replay(asked, Plan(memory, 150 << 30))) for _ in range(rounds)]
    what = f"replay of {len(asked):,} accesses, policy, warming, and once more without"
    met = Spread.of(samples).median < MOST_SECONDS
    return Row(what, "s", Spread.of(samples), None, None, f"< {MOST_SECONDS:g}", met)
