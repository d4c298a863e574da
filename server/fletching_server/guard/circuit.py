"""When a family of hosts may be asked again after it dropped, refused or ignored us. Pure: instants in, circuit out.

*closed*: calls pass. *open*: none does until ``retry_at``. *half open*: one probe passes; if it succeeds the circuit closes, if
it fails the circuit opens for twice as long. Bans last hours, so the first opening lasts half an hour and the longest a day.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

FIRST_SECONDS: Final = 1800.0
LONGEST_SECONDS: Final = 86400.0

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True)
class Circuit:
    """One family's circuit; *step* counts the openings in a row, *since* and ``retry_at`` are seconds since 1970."""

    step: int = 0
    retry_at: float | None = None
    since: float | None = None
    probing: bool = False
    why: str = ""

    def state(self, now: float) -> State:
        """Return what the circuit does with a call now."""
        if self.retry_at is None:
            return "closed"
        return "half_open" if now >= self.retry_at and not self.probing else "open"

    def probed(self) -> Circuit:
        """Return the circuit while its one probe is under way."""
        return replace(self, probing=True)

    def failed(self, now: float, why: str) -> Circuit:
        """Return the circuit after a call that shows that the upstream will not have us."""
        seconds = min(FIRST_SECONDS * 2**self.step, LONGEST_SECONDS)
        return Circuit(self.step + 1, now + seconds, now, probing=False, why=why)

    def settled(self, now: float) -> Circuit:
        """Return the circuit under a clock that was put back: what lies further ahead than any opening does is cut to one."""
        if self.retry_at is not None and self.retry_at - now > LONGEST_SECONDS:
            return replace(self, retry_at=now + LONGEST_SECONDS)
        return self


CLOSED: Final = Circuit()
