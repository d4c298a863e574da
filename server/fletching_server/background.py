"""A thread for work that nobody waits for: it works when it is woken or has rested, and an error does not end it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_AFTER_FAILURE_SECONDS = 60.0


class Background:
    """Calls *work* again and again: after so many seconds as it last returned, or *lull_seconds* after it was woken.

    The lull lets a storm of wakings be answered once. ``closing`` is set when the work under way should come to its end.
    """

    def __init__(self, name: str, work: Callable[[], float], first_seconds: float, lull_seconds: float = 0.0) -> None:
        self._name, self._work, self._first_seconds, self._lull_seconds = name, work, first_seconds, lull_seconds
        self._woken, self.closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, with the first rest."""
        self._thread.start()

    def wake(self) -> None:
        """Have the work done soon; returns at once."""
        self._woken.set()

    def _run(self) -> None:
        rest = self._first_seconds
        while True:
            self._woken.wait(rest)
            if self.closing.wait(self._lull_seconds if self._woken.is_set() else 0.0):
                return
            self._woken.clear()
            rest = self._worked()

    def _worked(self) -> float:
        try:
            return self._work()
        except Exception:
            log.exception("background work failed; it is tried again", work=self._name)
            return _AFTER_FAILURE_SECONDS

    def close(self) -> None:
        """Stop after the work under way; a second call does nothing."""
        self.closing.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()
