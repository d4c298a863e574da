"""One read under way: what it found out so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from fletching_schemas import PartRequest, ReadInfo, ReadRequest
from fletching_schemas.errors import Error
from fletching_server.gaps import Gaps, unknown
from fletching_server.noting import Fields
from fletching_server.plan import Plan
from fletching_server.progress import Progress
from fletching_server.snapshot import DatasetState


@dataclass(slots=True)
class Reading:
    """One read under way: what it found out so far."""

    info: ReadInfo
    started: float
    progress: Progress
    at: datetime
    principal: str = ""
    part: PartRequest | None = None
    demand: ReadRequest | None = None
    began: int | None = None  # the dataset's generation before anything was fetched for it
    filled: Gaps = field(default_factory=dict)
    failed: dict[str, Error] = field(default_factory=dict)
    stale: dict[str, Error] = field(default_factory=dict)
    cold: list[str] = field(default_factory=list)  # the keys of files that did not lie in memory
    warmed: tuple[bool, ...] = ()  # by file, where some were there because somebody was expected to ask
    early: bool = False  # nobody asked yet: somebody is expected to
    fetched_rows: int = 0
    noted: Fields | None = None  # once it has ended
    awaited: Callable[[], None] | None = None  # lets what arrived for it be evicted again

    def left(self, plan: Plan, state: DatasetState) -> Gaps:
        """Return the gaps that nobody has tried to close for this read.

        What it fetched or joined may be old by now, but it must be there: somebody may have set it aside.
        """
        gaps = unknown(plan.gaps, state, plan.calendar) if self.filled else plan.gaps
        return {symbol: runs for symbol, runs in gaps.items() if symbol not in self.failed} if self.failed else gaps
