"""Background work on the clock of a trace: so many things at a time, each in its turn, and what is asked for meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple


class Task(NamedTuple):
    """Something being made ready: from when to when, of what size, for memory or for the disk only, and why."""

    starts: float
    ends: float
    key: str
    bytes: int
    from_upstream: bool
    to_memory: bool
    ring: bool
    arm: str
    chance: float


class Workers:
    """So many workers; a task begins when one of them is free. What has not begun can be taken back."""

    def __init__(self, count: int) -> None:
        self._free = [float("-inf")] * count
        self._ends: list[tuple[float, str]] = []
        self.tasks: dict[str, Task] = {}

    def submit(self, now: float, seconds: float, task: Task) -> Task:
        """Return *task* with its times."""
        starts = max(now, heappop(self._free))
        placed = task._replace(starts=starts, ends=starts + seconds)
        heappush(self._free, placed.ends)
        heappush(self._ends, (placed.ends, task.key))
        self.tasks[task.key] = placed
        return placed

    def take_back(self, key: str) -> None:
        """Forget a task: somebody could not wait for its turn. Its worker stays idle meanwhile, which errs on the safe side."""
        self.tasks.pop(key, None)

    def backlog(self, now: float) -> float:
        """Return how many seconds a new task would wait."""
        return max(0.0, self._free[0] - now)

    def ended(self, now: float) -> Iterator[Task]:
        """Yield what has ended by *now*, in order."""
        while self._ends and self._ends[0][0] <= now:
            _, key = heappop(self._ends)
            if (task := self.tasks.get(key)) is not None and task.ends <= now:
                del self.tasks[key]
                yield task
