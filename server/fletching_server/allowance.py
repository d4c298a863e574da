"""How much the background may do: seconds per slot, upstream calls and bytes per session, whatever it would gain. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_DEMAND_SHARE: Final = 1.5  # of the seconds that demand takes in a session: at most so many go into background work
_LEAST_SECONDS: Final = 120.0  # of a session, however little is asked for
_LEARNED: Final = 0.3  # the share of the newest session in what a session is taken to demand


@dataclass(frozen=True)
class Limits:
    """The bounds: seconds of fetching and loading per slot, upstream calls and fetched or loaded bytes per session."""

    seconds: float
    calls: int
    bytes: int


@dataclass
class Spent:
    """What was done since a slot, and since a session, began."""

    seconds: float = 0.0
    calls: int = 0
    bytes: int = 0
    session_seconds: float = 0.0


@dataclass
class Allowance:
    """What is left of the limits. The slot and the session begin anew when they change, in whichever direction the clock went."""

    limits: Limits
    spent: Spent = field(default_factory=Spent)
    demand: float | None = None  # seconds that a session's readers wait, or would without us; None: not known yet
    _slot: object = None
    _session: object = None

    def at(self, session: object, slot: object) -> None:
        """Begin a new slot, or session, where it is another one than last time."""
        if (session, slot) != (self._session, self._slot):
            self.spent.seconds = 0.0
        if session != self._session:
            self.spent.calls = self.spent.bytes = 0
            self.spent.session_seconds = 0.0
        self._session, self._slot = session, slot

    def learn(self, demanded: float) -> None:
        """Take the seconds that a session has demanded which is over; one on which nobody came says nothing."""
        if demanded > 0:
            self.demand = demanded if self.demand is None else self.demand + _LEARNED * (demanded - self.demand)

    def _seconds_of_session(self) -> float:
        """Return the background seconds that are left to the session: no more work than is of use to anybody."""
        if self.demand is None:
            return float("inf")
        return max(_LEAST_SECONDS, _DEMAND_SHARE * self.demand) - self.spent.session_seconds

    def refusal(self, seconds: float, calls: int, size: int) -> str | None:
        """Return why something that would take so much may not be done, or None where it may."""
        left = self.left()
        if seconds > left.seconds:
            return f"{seconds:,.1f} s of work, and {max(left.seconds, 0.0):,.1f} s are left to this slot (warm_seconds)"
        if seconds > (rest := self._seconds_of_session()):
            return f"{seconds:,.1f} s of work, and {max(rest, 0.0):,.1f} s are left to this session by what readers demand"
        if calls > left.calls:
            return f"{calls:,} upstream calls, and {max(left.calls, 0):,} are left to this session (warm_calls)"
        if size > left.bytes:
            return f"{size:,} bytes, and {max(left.bytes, 0):,} are left to this session (warm_bytes)"
        return None

    def left(self) -> Limits:
        """Return what may still be done; less than nothing where an estimate was too low."""
        limits, spent = self.limits, self.spent
        return Limits(limits.seconds - spent.seconds, limits.calls - spent.calls, limits.bytes - spent.bytes)

    def spend(self, seconds: float, calls: int, size: int) -> None:
        """Count what was done."""
        self.spent.seconds += seconds
        self.spent.session_seconds += seconds
        self.spent.calls += calls
        self.spent.bytes += size
