"""What is read out of a replay: shares of what people waited for, and targets that every seed must meet."""

from __future__ import annotations

from typing import Any

from benchmarks import warming
from benchmarks.warming import Seed


def told(hot: int, cold: int, upstream: int, background: float = 10.0) -> dict[str, Any]:
    counts = {"requests": hot + cold + upstream, "hot": hot, "cold": cold, "upstream": upstream, "mean_ms": 5.0}
    return {
        "settled": {"interactive": counts},
        "precision": 0.75,
        "brier": 0.1,
        "background_seconds": background,
        "demand_seconds": 10.0,
        "ceiling_without_prefetch": 0.85,
    }


def seed(number: int, ours: dict[str, Any], lru: dict[str, Any]) -> Seed:
    return Seed(number, 100, {"ours": ours, "lru": lru})


def test_every_seed_must_meet_a_target() -> None:
    good, bad = told(95, 4, 1), told(89, 10, 1)
    for second, met in ((good, True), (bad, False)):
        found = [seed(1, good, told(70, 15, 15)), seed(2, second, told(70, 15, 15))]
        memory, upstream, wait = warming._compared("desk-a", found)
        assert (memory.met, upstream.met, wait.met) == (met, True, None)
        assert memory.parts["ours, seed 1"] == 95.0
        assert memory.limit == "without prefetching nothing exceeds 85.0 %"


def test_background_work_and_precision_have_targets_on_the_desk_of_the_targets() -> None:
    found = [seed(1, told(95, 4, 1, background=21.0), told(70, 15, 15))]
    assert [row.met for row in warming._predicted("desk-a", found)] == [True, False]
    assert [row.met for row in warming._predicted("us-summer", found)] == [None, None]


def test_no_desk_may_cost_more_than_a_point_against_lru() -> None:
    assert warming._against_lru("no-pattern", [seed(1, told(69, 16, 15), told(70, 15, 15))]).met is True
    assert warming._against_lru("no-pattern", [seed(1, told(68, 17, 15), told(70, 15, 15))]).met is False
