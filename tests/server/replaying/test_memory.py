"""Memory and disk without bytes: their budgets hold whatever comes, and sweeps leave the rest alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.density import DensityPolicy
from fletching_server.policy import LruPolicy, Policy
from fletching_server.replaying.memory import Memory
from fletching_server.replaying.shelf import Shelf
from fletching_server.replaying.trace import item_of

ROOM, RING = 30, 6
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "expect", "pass", "promote", "passed"]),
        st.sampled_from("abcdefgh"),
        st.integers(0, ROOM + 5),
        st.floats(0, 1),
    ),
    max_size=60,
)


def step(memory: Memory, what: str, key: str, size: int, chance: float) -> None:
    item = item_of(key, size, 0.1)
    if what == "read":
        memory.policy.touch(item)
        memory.offer(item)
    elif what == "expect":
        memory.offer(item, chance)
    elif what == "pass":
        memory.pass_through(key, size)
    elif key in memory.ring:
        memory.passed(key) if what == "passed" else memory.promote(item)


@pytest.mark.parametrize("policy", [DensityPolicy, lambda _: LruPolicy()])
@given(steps=STEPS)
def test_neither_memory_nor_its_ring_ever_holds_more_than_it_may(
    policy: Callable[[int], Policy], steps: list[tuple[str, str, int, float]]
) -> None:
    memory = Memory(ROOM, policy(ROOM - RING), RING)
    for each in steps:
        before = {*memory.held, *memory.ring}
        step(memory, *each)
        assert memory.used == sum(memory.held.values()) <= ROOM - RING
        assert memory.ring_used == sum(memory.ring.values()) <= RING
        assert before - {*memory.held, *memory.ring} <= set(memory.evicted)
        memory.evicted.clear()


def filled() -> Memory:
    memory = Memory(ROOM, DensityPolicy(ROOM - RING), RING)
    for key in "abcd":
        step(memory, "read", key, 6, 0)
    return memory


def test_a_sweep_goes_through_the_ring_and_leaves_the_rest_alone() -> None:
    memory = filled()
    for number in range(50):
        memory.pass_through(f"sweep {number}", 2)
    assert memory.held.keys() == set("abcd")
    assert list(memory.ring) == ["sweep 47", "sweep 48", "sweep 49"]


def test_what_a_sweep_has_read_leaves_the_ring_first() -> None:
    memory = filled()
    for key in ("x", "y", "z"):
        memory.pass_through(key, 2)
    memory.passed("z")
    memory.pass_through("new", 2)
    assert list(memory.ring) == ["x", "y", "new"]


def test_what_is_wanted_by_somebody_else_leaves_the_ring_for_good() -> None:
    memory = Memory(ROOM, DensityPolicy(ROOM - RING), RING)
    memory.pass_through("x", 2)
    memory.policy.touch(item_of("x", 2, 0.1))
    memory.promote(item_of("x", 2, 0.1))
    assert (memory.ring, memory.ring_used, memory.held) == ({}, 0, {"x": 2})


def test_what_is_hardly_expected_displaces_nothing() -> None:
    memory = filled()
    assert not memory.offer(item_of("x", 24, 0.1), chance=0.01)
    assert memory.held.keys() == set("abcd")
    assert memory.offer(item_of("x", 6, 0.1), chance=0.9)
    assert memory.used == ROOM - RING


def test_what_has_grown_beyond_memory_leaves_alone() -> None:
    memory = filled()
    assert not memory.offer(item_of("a", ROOM, 0.1), chance=0.9)
    assert memory.held.keys() == set("bcd")
    assert memory.evicted == ["a"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 15)), max_size=60))
def test_the_disk_never_holds_more_than_it_may_and_keeps_what_just_came(puts: list[tuple[str, int]]) -> None:
    shelf = Shelf(12)
    for key, size in puts:
        item = item_of(key, size, 1.0)
        shelf.use(item)
        shelf.put(item)
        assert shelf.used == sum(shelf.held.values()) <= 12
        assert key in shelf.held or size > 12
