"""Time, passed in: nothing else in the server asks what time it is."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the server needs of time."""

    def now(self) -> datetime:
        """Return the present instant in UTC, for finality, ages and records."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go backwards, for durations."""
        ...

    def wait(self, seconds: float, until: threading.Event) -> bool:
        """Let so much time pass, but return at once, and True, when *until* is set."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the present instant in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()

    def wait(self, seconds: float, until: threading.Event) -> bool:
        """Wait on the machine's clock."""
        return until.wait(seconds)
