from __future__ import annotations

from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.refills import BYTE_SECONDS, EACH_SECONDS, Line, Refills

SIZES = st.integers(1, 1 << 30)
LOADS = st.lists(st.tuples(SIZES, st.floats(0, 1e6)), max_size=60)


@given(LOADS, SIZES, SIZES)
def test_an_estimate_is_positive_and_grows_with_the_size_whatever_was_measured(
    loads: list[tuple[int, float]], one: int, other: int
) -> None:
    refills = Refills()
    for size, seconds in loads:
        refills.note("bars", size, seconds)
    smaller, larger = sorted((one, other))
    assert 0 < refills.seconds("bars", smaller) <= refills.seconds("bars", larger) * (1 + 1e-9)
    assert isfinite(refills.seconds("bars", larger))


@given(st.floats(1e-3, 0.5), st.floats(1e-10, 1e-7), st.lists(st.integers(100_000, 1 << 28), min_size=4, max_size=8, unique=True))
def test_loads_that_follow_a_line_are_found_out(each: float, byte: float, sizes: list[int]) -> None:
    refills, truth = Refills(), Line(each, byte)
    for _ in range(60):
        for size in sizes:
            refills.note("bars", size, truth.seconds(size))
    for size in sizes:
        assert refills.seconds("bars", size) == pytest.approx(truth.seconds(size), rel=0.25)


@given(st.floats(10, 1e6), st.sampled_from([1_000_000, 20_000_000, 200_000_000]))
def test_one_load_that_was_held_up_moves_little(seconds: float, size: int) -> None:
    refills = Refills()
    for _ in range(30):
        for usual in (1_000_000, 20_000_000, 200_000_000):
            refills.note("bars", usual, Line().seconds(usual))
    before = refills.seconds("bars", size)
    refills.note("bars", size, seconds)
    assert refills.seconds("bars", size) < 1.5 * before


def test_loads_of_one_size_are_believed_and_a_change_is_followed() -> None:
    refills = Refills()
    for seconds in (0.05, 2.0):
        for _ in range(60):
            refills.note("bars", 8_000_000, seconds)
        assert refills.seconds("bars", 8_000_000) == pytest.approx(seconds, rel=0.1)


def test_datasets_are_apart_and_one_that_was_never_loaded_is_an_ordinary_disk() -> None:
    refills = Refills()
    for _ in range(60):
        refills.note("slow", 1_000_000, 3.0)
    assert refills.seconds("bars", 1_000_000) == pytest.approx(EACH_SECONDS + BYTE_SECONDS * 1_000_000)


def test_a_shift_is_told_once() -> None:
    refills = Refills()
    told = [refills.note("bars", 1_000_000, 0.5) for _ in range(100)]
    assert any(told[:5])
    assert not any(told[60:])
