"""How far reads are that are still fetching, by the name that their client made up."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_MOST: Final = 1024  # reads told of at a time; a client that never ends one must not grow this


class Progress:
    """The upstream calls of one read: due, done and failed. Safe to change from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due = self._done = self._failed = 0

    def add(self, *, due: int = 0, done: int = 0, failed: int = 0) -> None:
        """Count calls that became due, ended well, or failed."""
        with self._lock:
            self._due += due
            self._done += done
            self._failed += failed

    def facts(self) -> dict[str, int]:
        """Return the counts."""
        with self._lock:
            return {"due": self._due, "done": self._done, "failed": self._failed}


class ProgressBoard:
    """The reads under way that somebody wants to follow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: OrderedDict[str, Progress] = OrderedDict()

    @contextmanager
    def following(self, name: str | None) -> Iterator[Progress]:
        """Yield the progress of a read, told under *name* (None: nobody asks) until the end."""
        progress = Progress()
        if name is None:
            yield progress
            return
        with self._lock:
            self._reads[name] = progress
            while len(self._reads) > _MOST:
                self._reads.popitem(last=False)
        try:
            yield progress
        finally:
            with self._lock:
                self._reads.pop(name, None)

    def facts(self, name: str) -> dict[str, int]:
        """Return how far the read *name* is; all zero where it has not begun or has ended."""
        progress = self._reads.get(name)
        return progress.facts() if progress else Progress().facts()
