"""Value density: what is told and what leaves are what plain sums say; seldom worse than LRU, never above its budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf, log, log2
from random import Random

import pytest
from benchmarks import key_traces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fletching_server.clairvoyant import belady
from fletching_server.density import DensityPolicy
from fletching_server.histories import HALF_LIVES
from fletching_server.policy import SMALL_BYTES, Item, LruPolicy, Policy
from fletching_server.replaying import replay_keys

ROOM = 20
LINEAGES = st.sampled_from("abcdefgh")
SIZES = st.integers(1, 9)
SECONDS = st.sampled_from([0.0, 0.01, 0.5, 4.0])
TRACES = {name: (file, reader) for name, file, reader in key_traces._FILES}


def item(lineage: str, size: int = 1, seconds: float = 1.0, generation: int = 0) -> Item:
    return Item(f"{lineage}{generation}", lineage, size, seconds)


def held(policy: Policy, *items: Item) -> None:
    for each in items:
        policy.touch(each)
        policy.admit(each)


class Ranking(RuleBasedStateMachine):
    """The policy beside sums of powers that are worked out anew each time."""

    @initialize(leader=st.integers(0, len(HALF_LIVES) + 2))
    def begin(self, leader: int) -> None:
        self.policy = DensityPolicy(ROOM)
        self.policy._contest.put_in_charge(leader)
        self.asked = 0
        self.uses: dict[str, list[list[tuple[int, float]]]] = {}  # per half-life: when, and how many
        self.last: dict[str, int] = {}
        self.ranked: dict[str, Item] = {}  # as its last use said, by lineage
        self.items: dict[str, Item] = {}

    def count(self, lineage: str, place: int) -> float:
        life = HALF_LIVES[place] * ROOM
        return float(sum(weight * 2.0 ** ((at - self.asked) / life) for at, weight in self.uses[lineage][place]))

    @rule(lineage=LINEAGES, size=SIZES, seconds=SECONDS, generation=st.integers(0, 1))
    def touch(self, lineage: str, size: int, seconds: float, generation: int) -> None:
        self.used = item(lineage, size, seconds, generation)
        self.policy.touch(self.used)
        self.policy.facts()  # works it out
        self.asked += size
        assert self.policy._keys.get(lineage) not in self.policy._expected
        for uses in self.uses.setdefault(lineage, [[] for _ in HALF_LIVES]):
            uses.append((self.asked, 1.0))
        self.last[lineage] = self.asked
        self.ranked[lineage] = self.used

    @rule(lineage=LINEAGES, size=SIZES, seconds=SECONDS, generation=st.integers(0, 1), expected=st.booleans())
    def admit(self, lineage: str, size: int, seconds: float, generation: int, expected: bool) -> None:
        new = item(lineage, size, seconds, generation)
        self.items[new.key] = new
        self.policy.admit(new, 0.5 if expected else None)
        if not expected:
            return
        known = self.uses.setdefault(lineage, [[] for _ in HALF_LIVES])
        for place, life in enumerate(HALF_LIVES):
            pretended = 2 * log(2) * life / log(2)
            if pretended > self.count(lineage, place):
                known[place] = [(self.asked, pretended)]
        self.last.setdefault(lineage, self.asked)
        self.ranked[lineage] = new

    @rule()
    def end_the_day(self) -> None:
        self.policy.day_ended()
        assert not self.policy._expected

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.items)))
        del self.items[key]
        self.policy.leave(key)

    @rule(lineage=LINEAGES)
    def forget(self, lineage: str) -> None:
        self.policy.forget(lineage)
        for known in (self.uses, self.last, self.ranked):
            known.pop(lineage, None)

    @rule(excess=st.integers(0, 60), leased=st.sets(LINEAGES))
    def some_leave(self, excess: int, leased: set[str]) -> None:
        busy = {f"{lineage}0" for lineage in leased}
        chosen = self.policy.victims(excess, busy)
        sizes = [self.items[key].bytes for key in chosen]
        assert not busy & set(chosen)
        assert sum(sizes[:-1]) < max(excess, 1), "one more left than had to"
        assert sum(sizes) >= excess or set(chosen) == self.items.keys() - busy
        assert chosen == [key for key in self.policy.victims(10**9, ()) if key not in busy][: len(chosen)]

    @invariant()
    def everything_can_leave_once_and_first_what_plain_sums_rank_lowest(self) -> None:
        if not hasattr(self, "policy"):
            return
        order = self.policy.victims(10**9, ())  # asked once: to ask puts the heap right
        assert sorted(order) == sorted(self.items)
        ghost = self.policy._contest.leader.held
        ranks = [self.rank(key) for key in order]
        assert all(before <= after + 1e-6 for before, after in pairwise(ranks))
        apart = {*self.policy._strays, *self.policy._expected}
        assert all(self.items[key].lineage in ghost for key in self.items if key not in apart)

    @invariant()
    def what_is_expected_is_counted_and_leaves_room(self) -> None:
        if hasattr(self, "policy"):
            expected = self.policy._expected
            assert self.policy._expected_bytes == sum(self.items[key].bytes for key in expected) <= 0.7 * ROOM

    def rank(self, key: str) -> float:
        if key in self.policy._strays:
            return -inf
        if key in self.policy._expected:
            return inf
        lineage = self.items[key].lineage
        place = self.policy._contest.places[self.policy._contest.number]
        if place == 0:
            return self.last[lineage]
        ranked = self.ranked[lineage]
        return log2(self.count(lineage, place - 1)) + log2(max(ranked.refill_seconds, 1e-6) / ranked.bytes)

    @invariant()
    def told_is_the_sum_of_decayed_uses(self) -> None:
        for key, each in getattr(self, "items", {}).items():
            told = self.policy.told(key)
            count = self.count(each.lineage, 1) if each.lineage in self.uses else 0.0
            assert told["uses"] == pytest.approx(count, abs=1e-3)
            assert told["density"] == pytest.approx(count * each.refill_seconds / each.bytes, rel=1e-6, abs=1e-12)

    @invariant()
    def heaps_stay_small(self) -> None:
        if hasattr(self, "policy"):
            assert len(self.policy._heap) <= 2 * len(self.items) + 66


TestRanking = Ranking.TestCase
TestRanking.settings = settings(max_examples=50, stateful_step_count=40)


def test_what_is_likely_stays_until_it_is_asked_for_or_the_day_is_over() -> None:
    policy = DensityPolicy(ROOM)
    for lineage, chance in (("often", 0.9), ("seldom", 0.2), ("hardly", 0.05)):
        policy.admit(item(lineage), chance)
    held(policy, *(item(lineage) for lineage in "abc"))
    assert policy.victims(99, ())[-2:] == ["seldom0", "often0"]
    policy.touch(item("seldom"))
    assert policy.victims(99, ())[-1:] == ["often0"]
    policy.day_ended()
    assert policy.victims(99, ())[-1:] == ["seldom0"]


def test_the_older_generation_leaves_first_even_when_the_newer_one_is_gone_and_another_ranking_takes_over() -> None:
    policy = DensityPolicy(ROOM)
    held(policy, item("a"), item("a", generation=1), item("b"))
    assert policy.victims(1, ()) == ["a0"]
    policy.leave("a1")
    policy._contest._credit[1] = 1e9
    policy.touch(item("something else", ROOM))  # enough is asked for, that they are compared
    assert policy.facts()["ranking"] == "half-life 1"
    assert policy.victims(9, ()) == ["a0", "b0"]


@given(st.lists(st.tuples(LINEAGES, SIZES, SECONDS), min_size=1, max_size=40), st.integers(1, 30))
def test_ranks_keep_their_order_as_time_passes(uses: list[tuple[str, int, float]], passes: int) -> None:
    policy = DensityPolicy(ROOM)
    items = {lineage: item(lineage, size, seconds) for lineage, size, seconds in uses}
    for lineage, _, _ in uses:
        held(policy, items[lineage])
    before = {each.key: policy.told(each.key)["density"] for each in items.values()}
    policy.touch(item("something else", passes))
    after = {key: policy.told(key)["density"] for key in before}
    faded = 2.0 ** (-passes / ROOM / HALF_LIVES[1])
    assert after == pytest.approx({key: density * faded for key, density in before.items()})


@given(st.lists(LINEAGES, max_size=60))
def test_uses_that_wait_to_be_worked_out_count_as_many_as_those_that_do_not(uses: list[str]) -> None:
    at_once, later = DensityPolicy(1000), DensityPolicy(1000)
    for lineage in uses:
        at_once.touch(item(lineage))
        at_once.facts()
        later.touch(item(lineage))
    for lineage in set(uses):
        for policy in (at_once, later):
            policy.admit(item(lineage))
        assert later.told(f"{lineage}0")["uses"] == pytest.approx(at_once.told(f"{lineage}0")["uses"], rel=0.05)


def test_what_is_expected_must_be_worth_more_than_all_that_leave_for_it_together() -> None:
    policy = DensityPolicy(ROOM)
    held(policy, *(item(lineage, 5) for lineage in "abcd"))
    likely, victims = item("x", ROOM), ["a0", "b0", "c0", "d0"]
    alone = [policy.beats(likely, victims[:1], chance) for chance in (0.01, 0.3, 0.9)]
    together = [policy.beats(likely, victims, chance) for chance in (0.01, 0.3, 0.9)]
    assert alone == [False, True, True]
    assert together == [False, False, False]  # four that were used just now are worth more than one that is expected
    policy.foresee(dict.fromkeys("abcd", 0.2))
    assert [policy.beats(likely, victims, chance) for chance in (0.01, 0.3, 0.9)] == [False, False, True]
    assert policy.beats(likely, [], 0.0)


def test_a_large_file_is_held_whole_from_its_second_use_on_and_not_after_it_is_forgotten() -> None:
    policy, large = DensityPolicy(SMALL_BYTES * 1000), item("a", SMALL_BYTES * 10)
    wanted = []
    for _ in range(2):
        policy.touch(large)
        wanted.append(policy.wants_whole(large, 0.01))
    policy.forget("a")
    assert [*wanted, policy.wants_whole(large, 0.01)] == [False, True, False]


def test_what_is_often_used_costs_more_to_lose() -> None:
    policy = DensityPolicy(1000)
    held(policy, item("often"), item("once"))
    for _ in range(20):
        policy.touch(item("often"))
    often, once = policy.loss(["often0"]), policy.loss(["once0"])
    assert 0 < once < often < 1
    assert policy.loss(["often0", "once0"]) == pytest.approx(often + once)


def test_histories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching_server.histories._MOST_KNOWN", 1000)
    policy = DensityPolicy(ROOM)
    held(policy, item("held"))
    for number in range(20_000):
        policy.touch(item(str(number)))
    assert policy.facts()["known"] <= 1000 + 256  # type: ignore[operator]
    assert "held" in policy._histories.uses


@pytest.mark.parametrize("size", [0, ROOM + 1, 2**62])
def test_sizes_of_nothing_and_of_more_than_everything_do_no_harm(size: int) -> None:
    policy = DensityPolicy(ROOM)
    held(policy, item("a"), item("strange", size))
    policy.touch(item("a"))
    assert set(policy.victims(2**63, ())) == {"a0", "strange0"}


def loop(random: Random) -> list[int]:
    length = random.randint(30, 300)
    return [number % length for number in range(6000)]


def zipf(random: Random) -> list[int]:
    return random.choices(range(1000), [1 / (rank + 1) for rank in range(1000)], k=6000)


def scans(random: Random) -> list[int]:
    """Popular objects, and now and then all of many that nobody wants again."""
    keys: list[int] = []
    while len(keys) < 6000:
        keys += random.choices(range(60), k=random.randint(50, 400))
        keys += range(10_000 + len(keys), 10_000 + len(keys) + random.randint(0, 200))
    return keys


def shift(random: Random) -> list[int]:
    """What is popular changes all at once."""
    return [1000 * (number // 1500) + min(int(random.expovariate(0.02)), 999) for number in range(6000)]


def ratios(keys: list[int], objects: int) -> tuple[float, float]:
    requests = [(str(key), 1) for key in keys]
    return tuple(replay_keys(requests, policy, objects).hit_ratio for policy in (DensityPolicy(objects), LruPolicy()))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [loop, zipf, scans, shift])
def test_made_up_traces_do_not_do_worse_than_under_lru(kind: Callable[[Random], list[int]], seed: int) -> None:
    keys = kind(Random(seed))
    for objects in (10, 40, 100):
        ours, lru = ratios(keys, objects)
        assert ours >= lru - 0.01, (objects, ours, lru)


def test_a_loop_that_does_not_fit_keeps_a_part_of_itself() -> None:
    ours, lru = ratios([number % 100 for number in range(6000)], 50)
    assert lru == 0
    assert ours > 0.3


@pytest.mark.parametrize("name", ["lirs multi1", "lirs multi2", "lirs cs", "lirs gli", "lirs ps"])
def test_published_traces_have_never_fewer_hits_than_under_lru(name: str) -> None:
    file, reader = TRACES[name]
    if not (key_traces.FOLDER / file).exists():
        pytest.skip(f"the trace {name} is not beside this checkout (../shared/traces)")
    trace = reader(name, key_traces.FOLDER / file)
    for percent in (1, 5, 10, 25):
        objects = trace.working_set() * percent // 100
        ours, lru = ratios(trace.keys.tolist(), objects)
        assert lru - 0.005 <= ours <= belady(trace.keys, objects).mean(), (percent, ours, lru)
