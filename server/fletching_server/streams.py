"""How many answers each principal has under way, and no more than it may."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

from fletching_schemas.errors import Overloaded


class Streams:
    """Counts open answers by principal; ``Overloaded`` beyond *most*. Safe to use from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    def enter(self, principal: str) -> Callable[[], None]:
        """Count one more for *principal*, and return what ends it, to be called once."""
        with self._lock:
            under_way = self._open[principal]
            if under_way < self._most:
                self._open[principal] += 1
                return partial(self._leave, principal)
        raise Overloaded(
            f"{under_way} streams of {principal or 'this client'} are open, and no more are allowed (streams_per_principal): "
            "read those to their end, cancel them or let go of their readers, then ask again"
        )

    def _leave(self, principal: str) -> None:
        with self._lock:
            self._open[principal] -= 1
            if not self._open[principal]:
                del self._open[principal]

    def open(self) -> dict[str, int]:
        """Return how many are open, by principal; none that has none."""
        with self._lock:
            return dict(self._open)
