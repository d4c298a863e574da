"""Work that arrives together is done together: one sync for all of it, and nobody waits for more than two.

Whoever finds nobody at work leads: takes what waits, itself first, and does it. Then the next in line leads what has arrived
meanwhile; so no thread works for others for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Waiting(Generic[Item]):
    """One item, and whether it is done or its turn has come to lead."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.moved = threading.Event()


class GroupCommit(Generic[Item]):
    """A line of items, done in groups, one group at a time. Safe to use from any thread."""

    def __init__(self, work: Callable[[list[Item]], None], take: Callable[[deque[Item]], int] = len) -> None:
        """Do groups by *work*, which must not raise; *take* says how many of those that wait go together, at least one."""
        self._work, self._take = work, take
        self._lock = threading.Lock()
        self._line: deque[_Waiting[Item]] = deque()
        self._led = False

    def run(self, item: Item) -> None:
        """Return once *item* has been done, in order of arrival."""
        waiting = _Waiting(item)
        with self._lock:
            self._line.append(waiting)
            lead, self._led = not self._led, True
        if not lead:
            waiting.moved.wait()
        if not waiting.done:
            self._lead()

    def _lead(self) -> None:
        with self._lock:
            count = self._take(deque(other.item for other in self._line))
            group = [self._line.popleft() for _ in range(count)]
        try:
            self._work([waiting.item for waiting in group])
        finally:
            self._hand_over()
            for waiting in group:
                waiting.done = True
                waiting.moved.set()

    def _hand_over(self) -> None:
        with self._lock:
            following = self._line[0] if self._line else None
            self._led = following is not None
        if following is not None:
            following.moved.set()
