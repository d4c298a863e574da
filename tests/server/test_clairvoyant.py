"""The yardstick that knows the future: nobody is above it, and where a search through everything is possible it is exact."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.clairvoyant import belady, ceiling, compulsory, greedy, next_uses
from fletching_server.density import DensityPolicy
from fletching_server.policy import LruPolicy, Policy
from fletching_server.replaying import replay_keys

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
KEYS = st.lists(st.integers(0, 9), min_size=1, max_size=60)
SIZES = st.lists(st.integers(1, 9), min_size=10, max_size=10)


def numbers(keys: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(keys, np.int64)


def requests(keys: list[int], sizes: list[int]) -> list[tuple[str, int]]:
    return [(str(key), sizes[key]) for key in keys]


def best(keys: tuple[int, ...], sizes: tuple[int, ...], room: int) -> int:
    """Return the hits of the best of all memories: every set that fits is tried after every request."""

    @cache
    def after(place: int, held: frozenset[int]) -> int:
        if place == len(keys):
            return 0
        kept: list[frozenset[int]] = [frozenset()]
        for key in held | {keys[place]}:
            kept += [one | {key} for one in kept if sum(sizes[each] for each in one) + sizes[key] <= room]
        return (keys[place] in held) + max(after(place + 1, one) for one in kept)

    return after(0, frozenset())


@given(KEYS)
def test_the_next_use_is_the_next_request_for_the_same_key(keys: list[int]) -> None:
    expected = [
        next((later for later in range(now + 1, len(keys)) if keys[later] == key), len(keys)) for now, key in enumerate(keys)
    ]
    assert next_uses(numbers(keys)).tolist() == expected


@pytest.mark.parametrize("policy", [lambda _: LruPolicy(), DensityPolicy])
@given(KEYS, st.integers(0, 10))
def test_no_policy_does_better_than_belady(policy: Callable[[int], Policy], keys: list[int], objects: int) -> None:
    hits = int(belady(numbers(keys), objects).sum())
    assert replay_keys(requests(keys, [1] * 10), policy(objects), objects).hits <= hits <= compulsory(numbers(keys)).sum()


@given(KEYS)
def test_an_endless_memory_misses_only_what_it_never_saw(keys: list[int]) -> None:
    seen = len(keys) - len(set(keys))
    everything = [belady(numbers(keys), 10), compulsory(numbers(keys)), greedy(numbers(keys), np.ones(len(keys), np.int64), 10)]
    assert [int(flags.sum()) for flags in everything] == [seen] * 3
    assert ceiling(numbers(keys), np.ones(len(keys), np.int64), 10) == seen


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 4))
def test_belady_is_the_best_of_all(keys: list[int], objects: int) -> None:
    assert belady(numbers(keys), objects).sum() == best(tuple(keys), (1,) * 5, objects)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(1, 6), min_size=5, max_size=5), st.integers(0, 12)
)
def test_unequal_sizes_are_enclosed_by_what_can_be_reached_and_what_cannot_be_exceeded(
    keys: list[int], sizes: list[int], room: int
) -> None:
    taken = np.array(sizes, np.int64)[keys]
    optimum = best(tuple(keys), tuple(sizes), room)
    assert greedy(numbers(keys), taken, room).sum() <= optimum <= ceiling(numbers(keys), taken, room) + 1e-9


@pytest.mark.parametrize("policy", [lambda _: LruPolicy(), DensityPolicy])
@given(KEYS, SIZES, st.integers(0, 40))
def test_no_policy_is_above_the_ceiling_whatever_a_request_is_worth(
    policy: Callable[[int], Policy], keys: list[int], sizes: list[int], room: int
) -> None:
    taken = np.array(sizes, np.int64)[keys]
    outcome = replay_keys(requests(keys, sizes), policy(room), room)
    assert outcome.hits <= ceiling(numbers(keys), taken, room) + 1e-9
    assert outcome.hit_bytes <= ceiling(numbers(keys), taken, room, taken) + 1e-6


@pytest.mark.parametrize(("name", "objects", "ratio"), [("multi1", 2606, 52.7), ("ps", 3083, 54.4), ("cs", 1409, 10.1)])
def test_published_traces_give_the_published_optimum(name: str, objects: int, ratio: float) -> None:
    trace = TRACES / "caffeine" / "lirs" / f"{name}.trace.gz"
    if not trace.exists():
        pytest.skip(f"the trace {name} is not beside this checkout (../shared/traces)")
    with gzip.open(trace, "rt") as lines:
        keys = [int(line) for line in lines if line.strip() not in {"", "*"}]
    assert belady(numbers(keys), objects // 10).mean() * 100 == pytest.approx(ratio, abs=0.3)
