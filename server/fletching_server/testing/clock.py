"""A clock that moves when it is told to, so that no test sleeps."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta


class ManualClock:
    """Time that stands still until ``advance`` or ``set`` moves it; safe to use from any thread."""

    def __init__(self, now: datetime) -> None:
        """Start at *now*, which must have a time zone."""
        if now.tzinfo is None:
            raise ValueError("a clock needs an instant with a time zone")
        self._lock = threading.Lock()
        self._now = now.astimezone(UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Return the instant that was set, in UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds by which the clock was advanced; setting it back does not change them."""
        return self._monotonic

    def advance(self, **duration: float) -> None:
        """Move on by a ``timedelta``: ``advance(days=1)``."""
        step = timedelta(**duration)
        with self._lock:
            self._now += step
            self._monotonic += step.total_seconds()

    def wait(self, seconds: float, until: threading.Event) -> bool:
        """Move on by *seconds* instead of waiting, unless *until* is set."""
        if not until.is_set():
            self.advance(seconds=seconds)
        return until.is_set()

    def set(self, now: datetime) -> None:
        """Put the wall clock to *now*, forwards or back, as a machine's clock may jump."""
        with self._lock:
            self._now = now.astimezone(UTC)
