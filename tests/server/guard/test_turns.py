"""Whose turn it is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import WAIT_SECONDS

from fletching_server.guard.turns import FairQueue, Turns


def job(name: str) -> Callable[[], None]:
    def run() -> None: ...

    run.__name__ = name
    return run


JOBS = st.lists(st.tuples(st.sampled_from("ABC"), st.booleans()), max_size=30)


@given(JOBS)
def test_everybody_has_a_turn_in_order_and_people_come_first(waiting: list[tuple[str, bool]]) -> None:
    queue, model = FairQueue(), {False: {}, True: {}}  # type: tuple[FairQueue, dict[bool, dict[str, deque[str]]]]
    for number, (principal, background) in enumerate(waiting):
        queue.put(principal, job(f"{principal}{number}"), background=background)
        model[background].setdefault(principal, deque()).append(f"{principal}{number}")
    assert len(queue) == len(waiting)
    for background in (False, True):
        rows = list(model[background].values())
        while rows:
            row = rows.pop(0)
            taken = queue.take()
            assert taken is not None
            assert taken.__name__ == row.popleft()
            rows += [row] if row else []
    assert queue.take() is None


@given(JOBS, st.data())
def test_a_promoted_job_waits_with_people(waiting: list[tuple[str, bool]], data: st.DataObject) -> None:
    queue, background = FairQueue(), []
    for number, (principal, behind) in enumerate(waiting):
        each = job(f"{principal}{number}")
        queue.put(principal, each, background=behind)
        background += [each] if behind else []
    if not background:
        return
    chosen = data.draw(st.sampled_from(background))
    people = sum(not behind for _, behind in waiting)
    assert queue.promote(chosen)
    assert not queue.promote(chosen)
    assert chosen in [queue.take() for _ in range(people + 1)]
    assert len(queue) == len(waiting) - people - 1


def test_one_call_of_b_waits_for_at_most_one_more_of_a() -> None:
    turns, hold, started, order = Turns("test", 1), threading.Event(), threading.Event(), []

    def first() -> None:
        started.set()
        assert hold.wait(WAIT_SECONDS)

    done = threading.Event()
    turns.submit("a", first)
    assert started.wait(WAIT_SECONDS)
    for number in range(100):
        turns.submit("a", lambda number=number: order.append(f"a{number}"))  # type: ignore[misc]
    turns.submit("b", lambda: order.append("b"))
    turns.submit("c", done.set, background=True)
    assert turns.waiting() == 102
    hold.set()
    assert done.wait(WAIT_SECONDS)
    assert order.index("b") <= 1
    assert len(order) == 101
    turns.close()


def test_after_closing_nothing_starts_and_nothing_is_taken() -> None:
    turns, hold, started, ran = Turns("test", 1), threading.Event(), threading.Event(), []

    def first() -> None:
        started.set()
        assert hold.wait(WAIT_SECONDS)
        ran.append("first")

    turns.submit("a", first)
    assert started.wait(WAIT_SECONDS)
    turns.submit("a", lambda: ran.append("second"))
    closing = threading.Thread(target=turns.close)
    closing.start()
    while turns.waiting():
        pass
    hold.set()
    closing.join(WAIT_SECONDS)
    assert ran == ["first"]
    with pytest.raises(RuntimeError, match="takes no more jobs"):
        turns.submit("a", lambda: None)


def test_a_job_that_fails_ends_nobody_elses_turn() -> None:
    turns, done = Turns("test", 1), threading.Event()
    turns.submit("a", lambda: 1 / 0)  # type: ignore[arg-type]
    turns.submit("a", done.set)
    assert done.wait(WAIT_SECONDS)
    turns.close()


@pytest.mark.parametrize(("threads", "most", "at_once"), [(1, 64, 1), (2, 64, 1), (4, 64, 3), (4, 2, 2)])
def test_the_background_has_so_many_turns_and_never_the_last(threads: int, most: int, at_once: int) -> None:
    turns, hold, begun = Turns("test", threads, most), threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        assert hold.wait(WAIT_SECONDS)

    for _ in range(6):
        turns.submit("", slow, background=True)
    assert all(begun.acquire(timeout=WAIT_SECONDS) for _ in range(at_once))
    if threads > 1:
        served = threading.Event()
        turns.submit("a", served.set)
        assert served.wait(WAIT_SECONDS)  # while the background holds all the turns it may have
    assert not begun.acquire(blocking=False)
    hold.set()
    assert all(begun.acquire(timeout=WAIT_SECONDS) for _ in range(6 - at_once))
    turns.close()


def test_a_job_of_the_background_that_somebody_wants_has_a_turn_at_once() -> None:
    turns, hold, begun, served = Turns("test", 2), threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert hold.wait(WAIT_SECONDS)

    wanted = served.set
    turns.submit("", slow, background=True)
    assert begun.wait(WAIT_SECONDS)
    turns.submit("", wanted, background=True)
    turns.promote(wanted)
    assert served.wait(WAIT_SECONDS)
    hold.set()
    turns.close()
