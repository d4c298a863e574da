from __future__ import annotations

import os
import threading

from tests.conftest import WAIT_SECONDS, Background, in_threads

from fletching_server.group_commit import GroupCommit


class Work:
    """Records its groups; the first waits until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.leaders: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, group: list[int]) -> None:
        self.groups.append(group)
        self.leaders.append(threading.get_ident())
        if len(self.groups) == 1:
            self.begun.set()
            assert self.go_on.wait(WAIT_SECONDS)


def waiting(line: GroupCommit[int], count: int) -> None:
    while len(line._line) < count:
        os.sched_yield()


def test_what_arrives_meanwhile_is_done_together_in_order() -> None:
    work = Work()
    line = GroupCommit(work)
    first = Background(lambda: line.run(0))
    assert work.begun.wait(WAIT_SECONDS)
    others = []
    for number in range(1, 6):
        others.append(Background(lambda number=number: line.run(number)))  # type: ignore[misc]
        waiting(line, number)
    work.go_on.set()
    for call in (first, *others):
        call.result()
    assert work.groups == [[0], [1, 2, 3, 4, 5]]


def test_nobody_works_for_others_for_ever() -> None:
    work = Work()
    line = GroupCommit(work, take=lambda _waiting: 1)
    first = Background(lambda: line.run(0))
    assert work.begun.wait(WAIT_SECONDS)
    others = []
    for number in range(1, 4):
        others.append(Background(lambda number=number: line.run(number)))  # type: ignore[misc]
        waiting(line, number)
    work.go_on.set()
    for call in (first, *others):
        call.result()
    assert work.groups == [[0], [1], [2], [3]]
    assert len(set(work.leaders)) == 4


def test_every_item_is_done_once() -> None:
    done: list[int] = []
    line: GroupCommit[int] = GroupCommit(done.extend)

    def work(thread: int) -> None:
        for step in range(200):
            line.run(thread * 1000 + step)

    in_threads(8, work)
    assert sorted(done) == [thread * 1000 + step for thread in range(8) for step in range(200)]
    assert all(done.index(t * 1000 + s) < done.index(t * 1000 + s + 1) for t in range(8) for s in range(0, 199, 37))
