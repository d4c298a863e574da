"""Scores of policies: where they lie between LRU and the optimum, and what becomes of a peer that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import hit_ratio
from benchmarks.hit_ratio import Found
from benchmarks.key_traces import KeyTrace

from fletching_server.replaying import Costs

LOOP = np.tile(np.arange(10), 50)  # LRU with room for 8 misses everything


def found(*, sized: bool = False, made_up: bool = False) -> Found:
    sizes = np.full(len(LOOP), 1_000_000) if sized else np.ones(len(LOOP), np.int64)
    trace = KeyTrace("loop", LOOP, sizes, sized, made_up)
    return Found(trace, 0.8, int(0.8 * trace.working_set()))


def test_a_loop_that_does_not_fit_is_zero_for_lru_and_one_for_the_optimum() -> None:
    one = found()
    hit_ratio._drive_ours(one)
    hit_ratio._look_ahead(one)
    assert one.points("lru") == 0
    assert (one.score("lru"), one.score("optimum")) == (0.0, 1.0)
    assert 0.2 < (one.score("density") or 0) <= 1
    assert one.hits["endless"] == len(LOOP) - 10


def test_seconds_saved_are_those_of_the_tiers() -> None:
    one = found(sized=True)
    hit_ratio._look_ahead(one)
    costs = Costs()
    each = costs.disk.of(1_000_000) - costs.memory.of(1_000_000)
    assert one.seconds("optimum") == pytest.approx(one.hits["optimum"] * each)
    assert one.hits["optimum"] <= one.beyond


def test_a_policy_under_lru_misses_the_target_and_a_desk_has_none() -> None:
    for made_up in (False, True):
        one = found(made_up=made_up)
        one.hits = {"lru": 100, "optimum": 300, "density": 96, "theine": 90}
        ours, theirs = hit_ratio._summary([one])
        assert (ours.met, theirs.met) == (None if made_up else False, None)
        assert ours.parts["points above LRU at worst"] == pytest.approx(-0.8)
        assert ours.ours.median == pytest.approx(-0.02)


def test_a_peer_that_fails_says_why() -> None:
    answer = hit_ratio._child(Path(sys.executable), {"policy": "crystal ball", "trace": "none", "room": 1, "sized": False})
    assert answer == "ended with 1: KeyError: 'crystal ball'"


def test_a_peer_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forever = tmp_path / "python"
    forever.write_text("#!/bin/sh\nexec sleep 1000\n")
    forever.chmod(0o700)
    monkeypatch.setattr(hit_ratio, "_PEER_SECONDS", 0.05)
    assert hit_ratio._child(forever, {}) == "did not end within 0.05 seconds"


def test_another_lru_that_is_not_ours_stops_everything() -> None:
    one = found()
    one.hits = {"lru": 5, "LRU": 5, "cachetools LRU": 6}
    with pytest.raises(RuntimeError, match="loop at 80%: cachetools LRU has 6 hits, ours 5"):
        hit_ratio._check_lru(one)
