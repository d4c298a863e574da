"""Who reads session after session is a sweep; who reads the newest one every morning is none."""

from __future__ import annotations

from fletching_server import sweeps
from fletching_server.sweeps import MOST_AHEAD, PAUSE_SECONDS, STEPS, RunDetector, ahead


def steps(*read: tuple[int, float], runs: RunDetector | None = None) -> list[int]:
    runs = runs or RunDetector()
    return [runs.note("ann", "bars", "AAPL", session, at) for session, at in read]


def test_steps_of_one_session_count_and_reading_one_again_changes_nothing() -> None:
    assert steps((5, 0), (6, 1), (6, 2), (7, 3), (8, 4)) == [0, 1, 1, 2, 3]


def test_whoever_jumps_or_turns_back_begins_anew() -> None:
    assert steps((5, 0), (6, 1), (8, 2), (9, 3), (8, 4), (9, 5)) == [0, 1, 0, 1, 0, 1]


def test_whoever_comes_a_session_further_each_day_is_no_sweep() -> None:
    assert steps(*((session, session * 86_400.0) for session in range(5))) == [0] * 5
    assert steps((0, 0.0), (1, PAUSE_SECONDS), (2, 2 * PAUSE_SECONDS)) == [0, 1, 2]


def test_readers_datasets_and_buckets_are_apart() -> None:
    runs = RunDetector()
    for session in range(3):
        for reader in (("ann", "bars", "A"), ("bob", "bars", "A"), ("ann", "books", "A"), ("ann", "bars", "B")):
            assert runs.note(*reader, session, float(session)) == session


def test_readers_are_remembered_within_a_bound() -> None:
    runs = RunDetector()
    assert steps((0, 0), (1, 1), runs=runs) == [0, 1]
    for number in range(sweeps._MOST_RUNS):
        runs.note(f"reader {number}", "bars", "AAPL", 0, 2)
    assert steps((2, 3), runs=runs) == [0]
    assert len(runs._runs) == sweeps._MOST_RUNS


def test_the_longer_a_run_the_further_ahead_within_a_limit() -> None:
    reach = [ahead(count) for count in range(20)]
    assert reach[:STEPS] == [0] * STEPS
    assert reach == sorted(reach)
    assert (reach[STEPS], reach[-1]) == (4, MOST_AHEAD)
