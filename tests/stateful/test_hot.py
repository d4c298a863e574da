"""The hot tier against a dict: main room, ring, leases and a policy that refuses, in any order of events."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from fletching_server.density import DensityPolicy
from fletching_server.hot import HotTier
from fletching_server.image import Image
from fletching_server.leases import Lease
from fletching_server.policy import Item, LruPolicy, Policy

MAX_BYTES, RING_BYTES = 100, 24
KEYS = st.sampled_from("abcdefghij")
SIZES = dict(zip("abcdefghij", (3, 5, 8, 8, 11, 13, 21, 34, 55, 80), strict=True))


def image(size: int) -> Image:
    """Return an image that claims *size* bytes; the tier looks at nothing else."""
    nothing = np.array([], dtype=np.int64)
    return Image(pa.table({}), (), nothing, nothing, nothing, size, {}, (0, -1))


class Watched:
    """Any policy: it refuses as it is told to, and what it is told to hold is noted."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.refuses = False
        self.touches = 0
        self.holds: dict[str, int] = {}
        self.leased: dict[str, int] = {}

    def touch(self, item: Item) -> None:
        self.touches += 1
        self.inner.touch(item)

    def admit(self, item: Item, chance: float | None = None) -> None:
        assert item.key not in self.holds
        self.holds[item.key] = item.bytes
        self.inner.admit(item, chance)

    def leave(self, key: str) -> None:
        del self.holds[key]
        self.inner.leave(key)

    def forget(self, lineage: str) -> None:
        self.inner.forget(lineage)

    def victims(self, excess: int, leased: Container[str]) -> list[str]:
        found = self.inner.victims(excess, leased)
        assert len(set(found)) == len(found)
        if leased != ():  # else it is asked for its ranking
            assert not any(self.leased.get(key) for key in found), "the policy names a leased key"
        return found

    def beats(self, item: Item, victims: Sequence[str], chance: float | None = None) -> bool:
        assert victims
        assert item.key not in victims
        return not self.refuses and self.inner.beats(item, victims, chance)

    def wants_whole(self, item: Item, share: float) -> bool:
        return self.inner.wants_whole(item, share)

    def told(self, key: str) -> dict[str, float]:
        return self.inner.told(key)

    def loss(self, victims: Sequence[str]) -> float:
        return self.inner.loss(victims)

    def foresee(self, chances: Mapping[str, float]) -> None:
        self.inner.foresee(chances)

    def day_ended(self) -> None:
        self.inner.day_ended()

    def facts(self) -> dict[str, object]:
        return self.inner.facts()


class HotTierMachine(RuleBasedStateMachine):
    leases: Bundle[tuple[str, Lease]] = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.policy = Watched(self.inner())
        self.tier = HotTier(MAX_BYTES, self.policy, ring_bytes=RING_BYTES)
        self.ring: dict[str, int] = {}  # in the order in which they came
        self.doomed: set[str] = set()

    def inner(self) -> Policy:
        return LruPolicy()

    @property
    def leased(self) -> dict[str, int]:
        return self.policy.leased

    def took(self, key: str, lease: Lease | None) -> tuple[str, Lease]:
        if lease is None:
            return multiple()  # type: ignore[return-value]  # nothing to add to the bundle
        assert lease.image.nbytes == SIZES[key]
        self.leased[key] = self.leased.get(key, 0) + 1
        return key, lease

    def noticed_move(self, key: str) -> None:
        if key in self.policy.holds:
            self.ring.pop(key, None)

    @rule(refuses=st.booleans())
    def change_its_mind(self, refuses: bool) -> None:
        self.policy.refuses = refuses

    @rule(target=leases, key=KEYS)
    def lease(self, key: str) -> tuple[str, Lease]:
        there = self.tier.holds(key)
        lease = self.tier.lease(Item(key, key, SIZES[key], 0.1))
        assert (lease is not None) == there
        self.noticed_move(key)
        return self.took(key, lease)

    @rule(target=leases, key=KEYS)
    def peek(self, key: str) -> tuple[str, Lease]:
        before = dict(self.policy.holds), self.policy.touches
        lease = self.tier.peek(Item(key, key, SIZES[key], 0.1))
        assert (lease is not None) == (key in self.policy.holds or key in self.ring)
        assert (self.policy.holds, self.policy.touches) == before
        return self.took(key, lease)

    @rule(target=leases, key=KEYS, chance=st.none() | st.just(0.5))
    def load(self, key: str, chance: float | None) -> tuple[str, Lease]:
        before = dict(self.policy.holds)
        there = self.tier.holds(key)
        lease = self.tier.load(Item(key, key, SIZES[key], 0.1), lambda: image(SIZES[key]), chance=chance)
        free = MAX_BYTES - RING_BYTES - sum(before.values())
        if there or SIZES[key] <= free:
            assert lease is not None
        if lease is None or self.policy.refuses:
            assert {*before} <= {*self.policy.holds}, "nothing leaves for what is not let in"
        self.noticed_move(key)
        return self.took(key, lease)

    @rule(target=leases, key=KEYS)
    def sweep(self, key: str) -> tuple[str, Lease]:
        before = dict(self.policy.holds), self.policy.touches
        lease = self.tier.load(Item(key, key, SIZES[key], 0.1), lambda: image(SIZES[key]), ring=True)
        assert (lease is not None) == self.sweep_model(key)
        assert (self.policy.holds, self.policy.touches) == before, "a sweep leaves the main room alone"
        return self.took(key, lease)

    def sweep_model(self, key: str) -> bool:
        if key in self.policy.holds or key in self.ring:
            return True
        stays = sum(size for name, size in self.ring.items() if self.leased.get(name))
        if stays + SIZES[key] > RING_BYTES:
            return False
        while sum(self.ring.values()) + SIZES[key] > RING_BYTES:
            del self.ring[next(name for name in self.ring if not self.leased.get(name))]
        self.ring[key] = SIZES[key]
        return True

    @rule(key=KEYS)
    def offer(self, key: str) -> None:
        self.tier.offer(Item(key, key, SIZES[key], 0.1), image(SIZES[key]))

    @rule(taken=consumes(leases))
    def release(self, taken: tuple[str, Lease]) -> None:
        key, lease = taken
        lease.release()
        lease.release()
        self.leased[key] -= 1
        if not self.leased[key] and key in self.doomed:
            self.doomed.discard(key)
            self.ring.pop(key, None)

    @rule(keys=st.sets(KEYS), forget=st.booleans())
    def evict(self, keys: set[str], forget: bool) -> None:
        held = {**self.policy.holds, **self.ring}
        going = {key for key in keys & held.keys() if not self.leased.get(key)}
        if forget:
            self.tier.drop(keys)
        else:
            assert self.tier.evict(keys) == sum(held[key] for key in going)
        self.doomed |= (keys & held.keys()) - going
        for key in going:
            self.ring.pop(key, None)

    @invariant()
    def books_add_up(self) -> None:
        assert self.tier.check() == []
        held = {**self.policy.holds, **self.ring}
        assert {key for key in SIZES if self.tier.holds(key)} == held.keys()
        facts = self.tier.facts()
        assert facts["hot_bytes"] == sum(held.values()) == sum(SIZES[key] for key in held)
        assert facts["hot_ring_bytes"] == sum(self.ring.values()) <= RING_BYTES
        assert sum(self.policy.holds.values()) <= MAX_BYTES - RING_BYTES
        assert facts["hot_reserved_bytes"] == 0
        assert facts["hot_leases"] == sum(self.leased.values())
        assert {key for key, count in self.leased.items() if count} <= held.keys()

    @invariant()
    def the_policy_ranks_all_that_is_held(self) -> None:
        assert sorted(self.policy.inner.victims(MAX_BYTES, ())) == sorted(self.policy.holds)
        assert sorted(lineage for lineage, _ in self.tier.ranked()) == sorted(self.policy.holds)


class DensityMachine(HotTierMachine):
    """The same, with the policy that refuses by itself."""

    def inner(self) -> Policy:
        return DensityPolicy(MAX_BYTES - RING_BYTES)


TestHotTier = HotTierMachine.TestCase
TestHotTierByDensity = DensityMachine.TestCase
TestHotTier.settings = TestHotTierByDensity.settings = settings(max_examples=80, stateful_step_count=40)
