"""How good it has been: cases made by hand, hold-outs by hash, arms that switch themselves off and on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.judging import SESSIONS, Judge, is_withheld

ARM = "habits"


def judged(judge: Judge, *names: str) -> list[object]:
    figures = judge.figures()
    return [figures[name] for name in names]


def test_what_was_made_ready_and_used_is_precision_and_what_came_too_late_is_told() -> None:
    judge = Judge()
    for key in "abcd":
        judge.acted(key, ARM, 2.0, 1.5)
    assert judge.used("a") == 2.0
    assert judge.used("b", late_seconds=0.5) == 2.0
    assert judge.used("c", late_seconds=9.0) == 2.0
    assert judged(judge, "acted", "used", "late", "fill_seconds") == [4, 3, 2, 8.0]
    assert judged(judge, "precision", "timeliness") == [0.75, pytest.approx(1 / 3)]
    assert judged(judge, "late_seconds", "saved_seconds") == [9.5, 1.5 + 1.0 + 0.0]


def test_only_the_first_use_counts_and_none_of_what_has_left() -> None:
    judge = Judge()
    for key in "ab":
        judge.acted(key, ARM, 2.0, 1.0)
    judge.gone("b")
    assert [judge.used(key) for key in "aab"] == [2.0, 0.0, 0.0]
    assert judged(judge, "used", "precision") == [1, 0.5]


def test_two_steps_are_one_decision_and_the_next_day_is_another() -> None:
    judge = Judge()
    judge.acted("a", ARM, 3.0, 2.0)
    judge.acted("a", ARM, 0.5, 0.4)
    assert judge.used("a") == 3.5
    assert judged(judge, "acted", "used", "saved_seconds") == [1, 1, 2.4]
    judge.acted("a", ARM, 1.0, 1.0)
    assert judged(judge, "acted", "fill_seconds") == [2, 4.5]


def test_pollution_is_a_wait_for_what_had_to_leave_in_the_same_session() -> None:
    judge = Judge()
    for key in "ab":
        judge.displaced(key, ARM)
    judge.missed("a")
    judge.missed("a")
    judge.missed("c")
    judge.session_ended()
    judge.missed("b")
    assert judged(judge, "polluted") == [1]


def test_uplift_is_what_those_wait_for_whose_decision_was_withheld_less_what_was_spared() -> None:
    judge = Judge(kappa=0.1)
    for number in range(10):
        judge.withhold(str(number), ARM, 4.0, 3.0)
    for number in range(6):
        judge.missed(str(number))
        judge.missed(str(number))
    assert judged(judge, "withheld", "missed", "missed_seconds") == [10, 6, 18.0]
    assert judged(judge, "uplift_seconds") == [pytest.approx((18 - 0.1 * 40) / 10)]


def test_withholding_the_same_again_is_no_second_decision() -> None:
    judge = Judge(kappa=0.1)
    for _ in range(5):
        judge.withhold("a", ARM, 4.0, 3.0)
    assert judged(judge, "withheld", "withheld_fill_seconds") == [1, 4.0]
    judge.missed("a")
    judge.withhold("a", ARM, 4.0, 3.0)
    assert judged(judge, "withheld") == [2]


def test_nothing_is_told_of_nothing() -> None:
    names = ("precision", "timeliness", "uplift_seconds", "brier", "brier_skill")
    assert judged(Judge(), *names) == [None] * len(names)
    assert judged(Judge(), "acted", "arms", "off") == [0, {}, []]


def session(judge: Judge, *, misses: bool, decisions: int = 10) -> list[str]:
    for number in range(decisions):
        judge.withhold(str(number), ARM, 4.0, 3.0)
        if misses:
            judge.missed(str(number))
    return judge.session_ended()


def test_an_arm_that_is_worth_nothing_is_switched_off_and_on_again_when_it_would_be() -> None:
    judge = Judge()
    told = [session(judge, misses=False) for _ in range(SESSIONS)]
    assert told[:-1] == [[]] * (SESSIONS - 1)
    assert ARM in told[-1][0]
    assert "off" in told[-1][0]
    assert judge.off == {ARM}
    assert session(judge, misses=False) == []
    back = [line for _ in range(SESSIONS) for line in session(judge, misses=True)]
    assert len(back) == 1
    assert "on again" in back[0]
    assert judge.off == set()


def test_an_arm_is_not_judged_by_a_handful_of_decisions() -> None:
    judge = Judge()
    assert [session(judge, misses=False, decisions=1) for _ in range(SESSIONS)] == [[]] * SESSIONS
    assert judge.off == set()


def test_arms_are_told_apart_and_together() -> None:
    judge = Judge()
    judge.acted("a", "runs", 1.0, 1.0)
    judge.session_ended()
    judge.acted("b", "habits", 2.0, 1.0)
    figures = judge.figures()
    assert [(arm, told["acted"], told["fill_seconds"]) for arm, told in figures["arms"].items()] == [
        ("habits", 1, 2.0),
        ("runs", 1, 1.0),
    ]
    assert (figures["acted"], figures["fill_seconds"]) == (2, 3.0)


def test_predictions_are_scored_by_their_squares_against_base_rates() -> None:
    judge = Judge()
    judge.predicted(0.9, 0.5, happened=True)
    judge.predicted(0.2, 0.5, happened=False)
    assert judged(judge, "brier", "brier_skill", "predictions") == [pytest.approx(0.025), pytest.approx(0.9), 2]


def test_what_was_used_is_not_remembered_for_ever() -> None:
    judge = Judge()
    for number in range(100):
        judge.acted(str(number), ARM, 1.0, 1.0)
        judge.used(str(number))
    assert judge._acted == {}


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_share_withheld_is_what_was_said(share: float) -> None:
    found = [is_withheld("salt", f"bars/2026-11/{number}", number % 7, share) for number in range(20_000)]
    assert sum(found) / len(found) == pytest.approx(share, rel=0.1)


@given(st.text(), st.text(), st.integers(0, 10**6))
def test_a_replay_withholds_the_same(salt: str, key: str, number: int) -> None:
    assert is_withheld(salt, key, number, 0.5) == is_withheld(salt, key, number, 0.5)
    assert is_withheld(salt, key, number, 1.0)
    assert not is_withheld(salt, key, number, 0.0)


def test_the_hash_is_the_same_in_every_process() -> None:
    assert [number for number in range(100) if is_withheld("salt", "a", number, 0.05)] == [4, 41, 66, 98]
