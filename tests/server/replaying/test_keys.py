"""The policy driven by keys, against published figures where the traces are at hand."""

from __future__ import annotations

import gzip
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.policy import LruPolicy
from fletching_server.replaying import replay_keys

TRACES = Path(__file__).parents[3].parent / "shared" / "traces"


@given(st.lists(st.integers(0, 12)), st.integers(1, 8))
def test_unit_sized_objects_behave_as_a_textbook_lru(keys: list[int], size: int) -> None:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in keys:
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            held[key] = None
            if len(held) > size:
                held.popitem(last=False)
    assert replay_keys([(str(key), 1) for key in keys], LruPolicy(), size).hits == hits


def test_an_object_larger_than_the_budget_displaces_nothing() -> None:
    outcome = replay_keys([("a", 5), ("huge", 50), ("a", 5)], LruPolicy(), 10)
    assert (outcome.hits, outcome.refused, outcome.evictions) == (1, 1, 0)


@pytest.mark.parametrize(("name", "objects", "ratio"), [("multi1", 2606, 43.4), ("ps", 3083, 16.3), ("cs", 1409, 1.8)])
def test_published_traces_give_the_published_ratios(name: str, objects: int, ratio: float) -> None:
    trace = TRACES / "caffeine" / "lirs" / f"{name}.trace.gz"
    if not trace.exists():
        pytest.skip(f"the trace {name} is not beside this checkout (../shared/traces)")
    with gzip.open(trace, "rt") as lines:
        keys = [line.strip() for line in lines]
    outcome = replay_keys([(key, 1) for key in keys if key not in {"", "*"}], LruPolicy(), objects // 10)
    assert outcome.hit_ratio * 100 == pytest.approx(ratio, abs=0.1)
