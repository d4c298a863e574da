"""Background work takes its time, so many things at once, and what has not begun can be taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fletching_server.replaying.workers import Task, Workers


def task(key: str) -> Task:
    return Task(0, 0, key, 1, from_upstream=False, to_memory=True, ring=False, arm="habits", chance=1.0)


def submitted(workers: Workers, *work: tuple[str, float]) -> list[tuple[float, float]]:
    return [(placed.starts, placed.ends) for placed in (workers.submit(10.0, seconds, task(key)) for key, seconds in work)]


def test_one_thing_after_the_other_on_as_many_workers_as_there_are() -> None:
    workers = Workers(2)
    assert submitted(workers, ("a", 5), ("b", 2), ("c", 1), ("d", 9)) == [(10, 15), (10, 12), (12, 13), (13, 22)]
    assert workers.backlog(10.0) == 5.0
    assert [each.key for each in workers.ended(13.0)] == ["b", "c"]
    assert [each.key for each in workers.ended(99.0)] == ["a", "d"]
    assert workers.tasks == {}


def test_what_was_taken_back_does_not_end_and_what_was_submitted_again_ends_once() -> None:
    workers = Workers(1)
    submitted(workers, ("a", 5), ("b", 5))
    workers.take_back("b")
    submitted(workers, ("b", 1))
    assert [each.key for each in workers.ended(20.0)] == ["a"]
    assert [(each.key, each.ends) for each in workers.ended(99.0)] == [("b", 21.0)]


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(1, 4))
def test_never_more_at_once_than_there_are_workers(seconds: list[float], count: int) -> None:
    times = submitted(Workers(count), *((str(number), each) for number, each in enumerate(seconds)))
    for starts, _ in times:
        assert sum(begun <= starts < ends for begun, ends in times) <= count
