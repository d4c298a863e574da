"""What a chance stands for: what came of it, never falling, and the latest sessions most."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.calibration import BINS, Calibration

CHANCES = st.floats(0.0, 1.0)
SESSIONS = st.lists(st.lists(st.tuples(CHANCES, st.booleans()), max_size=40), max_size=8)


def learned(sessions: list[list[tuple[float, bool]]]) -> Calibration:
    calibration = Calibration()
    for outcomes in sessions:
        calibration.learn(outcomes)
    return calibration


@given(SESSIONS, st.lists(CHANCES, min_size=2))
def test_whatever_comes_a_larger_chance_never_stands_for_less(
    sessions: list[list[tuple[float, bool]]], asked: list[float]
) -> None:
    calibration = learned(sessions)
    told = [calibration(chance) for chance in sorted(asked)]
    assert all(0.0 <= chance <= 1.0 for chance in told)
    assert all(before <= after + 1e-12 for before, after in pairwise(told))


@given(st.floats(0.0, 0.95))
def test_without_outcomes_a_chance_stands_for_itself(chance: float) -> None:
    assert Calibration()(chance) == pytest.approx(chance)
    assert learned([[], [], []])(chance) == pytest.approx(chance)


def test_it_comes_to_say_what_was_observed() -> None:
    random = Random(1)
    asked = [random.random() for _ in range(20_000)]
    outcomes = [(chance, random.random() < chance**2) for chance in asked]  # too confident throughout
    calibration = learned([outcomes[start : start + 500] for start in range(0, len(outcomes), 500)])
    for chance in (0.15, 0.35, 0.55, 0.75, 0.9):
        assert calibration(chance) == pytest.approx(chance**2, abs=0.05)


def test_what_was_true_long_ago_does_not_count_for_long() -> None:
    never, always = [(0.5, False)] * 50, [(0.5, True)] * 50
    turned = learned([never] * 60 + [always] * 60)
    assert learned([never] * 60)(0.5) < 0.1
    assert turned(0.5) > 0.8


def test_a_handful_of_outcomes_moves_little() -> None:
    assert learned([[(0.5, True)] * 3])(0.5) == pytest.approx(0.5, abs=0.1)


def test_bins_tell_what_was_predicted_and_what_came() -> None:
    bins = learned([[(0.31, True), (0.39, False), (1.0, True)]]).bins()
    assert len(bins) == BINS
    assert [round(weight, 9) for _, _, weight in bins] == [20, 20, 20, 22, 20, 20, 20, 20, 20, 21]
    predicted, observed, _ = bins[3]
    assert predicted == pytest.approx(0.35)
    assert observed == pytest.approx((0.35 * 20 + 1) / 22)
