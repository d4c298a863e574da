"""The files of a plan, held in memory or read as needed: the pieces that an answer is made of.

A read takes one of three ways. What people ask for again is held, if the policy says so. What passes through once and in order,
a sweep, is held in the ring. What outgrows the ring passes step by step, the next steps being read meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from fletching_schemas import ReadRequest, Tier
from fletching_server.cold import ColdTier
from fletching_server.hot import HotTier
from fletching_server.leases import Lease
from fletching_server.pieces import Piece, Run, pieces
from fletching_server.plan import Plan
from fletching_server.policy import cheaper_whole
from fletching_server.snapshot import StoredFile
from fletching_server.sweeping import MOST_AHEAD, Passage, ReadAhead, Ready, Step, groups, steps
from fletching_server.uses import Uses

# Rows of cold files are read for as many symbols at a time as fit in this, so a large read does not need large memory.
GROUP_BYTES: Final = 32 << 20
SWEEP_SHARE: Final = 0.75  # of memory: a read that would hold more at once leaves nothing worth the name for anybody else
_RUN_STEPS: Final = 2  # in the same direction, one session after the other: chance does not do that

Held = tuple[StoredFile, Run | None]

# How many steps from one session to the next this principal has made with its last requests, this one included.
RunLength = Callable[[ReadRequest, Plan, str], int]


class Holding:
    """Holds the files of each read of one engine for as long as its rows move. Close it."""

    def __init__(self, hot: HotTier, cold: ColdTier, uses: Uses, run_length: RunLength) -> None:
        self._hot, self._cold, self._uses = hot, cold, uses
        self.run_length = run_length
        self._ahead = ReadAhead(hot.ring_bytes, GROUP_BYTES)
        self._sweep_bytes = hot.main_bytes * SWEEP_SHARE

    def tier(self, file: StoredFile) -> Tier:
        """Return where a read would find *file* now."""
        return "hot" if self._hot.holds(file.key) else "cold"

    def close(self) -> None:
        """Return once nothing is read ahead any more."""
        self._ahead.close()

    def found(
        self, request: ReadRequest, plan: Plan, principal: str, held: ExitStack
    ) -> tuple[Iterator[Piece], Sequence[Run | None]]:
        """Return the pieces of the answer, and for each file the run they lie in; None where it is not in memory.

        *held* gives back what they lie in.
        """
        sweeps = self._sweeps(request, plan, principal)
        for file in plan.files:
            self._uses.note(file)
        if sweeps and self._outgrows_ring(plan):
            return self._passing(plan, held), [None] * len(plan.files)
        hold = self._hold_in_ring if sweeps else self._hold
        files = [(file, hold(plan, file, plan.symbols, held)) for file in plan.files]
        runs = [run for _, run in files]
        if None in runs:
            return self._pieces(plan, files), runs
        return pieces(plan.dataset, plan.symbols, plan.window, [run for run in runs if run]), runs

    def _hold(self, plan: Plan, file: StoredFile, symbols: Sequence[str], held: ExitStack) -> Run | None:
        """Return *file* where it is in memory, or deserves to be; else its rows are read as needed."""
        tier: Tier = "hot"
        item = self._hot.item(file)
        lease = self._hot.lease(item)
        if lease is None and self._hot.wants_whole(item, file.share_of(symbols)):
            tier = "cold"
            lease = self._hot.load(item, lambda: self._cold.whole(plan.dataset, file))
        return _run(file, lease, tier, held)

    def _pieces(self, plan: Plan, files: Sequence[Held]) -> Iterator[Piece]:
        for symbols in groups(plan.symbols, [file for file, run in files if run is None], GROUP_BYTES):
            runs = [run or self._select(plan, file, symbols) for file, run in files]
            yield from pieces(plan.dataset, symbols, plan.window, runs)

    # Sweeps: what is read once and in order leaves alone what is read again

    def _sweeps(self, request: ReadRequest, plan: Plan, principal: str) -> bool:
        """Return whether this read passes through more than memory should hold, or is a step of somebody who does."""
        if request.profile == "backtesting":
            return True
        if self.run_length(request, plan, principal) >= _RUN_STEPS:
            return True
        if plan.held_bytes <= self._sweep_bytes:
            return False
        items = ((file, self._hot.item(file)) for file in plan.files if not self._hot.holds(file.key))
        return (
            sum(item.bytes for file, item in items if self._hot.wants_whole(item, file.share_of(plan.symbols)))
            > self._sweep_bytes
        )

    def _outgrows_ring(self, plan: Plan) -> bool:
        absent = [self._hot.item(file) for file in plan.files if not self._hot.holds(file.key)]
        return len(absent) > MOST_AHEAD or sum(item.bytes for item in absent) > self._hot.ring_bytes

    def _hold_in_ring(self, plan: Plan, file: StoredFile, symbols: Sequence[str], held: ExitStack) -> Run | None:
        """Return *file* where it is in memory, or better read whole into the ring; else its rows are read as needed."""
        tier: Tier = "hot"
        item = self._hot.item(file)
        lease = self._hot.peek(item)
        if lease is None and cheaper_whole(item, file.share_of(symbols)):
            tier = "cold"
            lease = self._hot.load(item, lambda: self._cold.whole(plan.dataset, file), ring=True)
        return _run(file, lease, tier, held)

    def _passing(self, plan: Plan, held: ExitStack) -> Iterator[Piece]:
        """Yield the pieces of an answer step by step, the next ones being read meanwhile."""
        passage = Passage(partial(steps, plan), partial(self._ready, plan), self._ahead)
        held.callback(passage.close)
        for ready in passage:
            yield from pieces(plan.dataset, ready.step.symbols, plan.window, ready.runs)

    def _ready(self, plan: Plan, step: Step) -> Ready:
        with ExitStack() as held:
            runs = [
                self._hold_in_ring(plan, file, step.symbols, held) or self._select(plan, file, step.symbols)
                for file in step.files
            ]
            return Ready(step, runs, held.pop_all())

    def _select(self, plan: Plan, file: StoredFile, symbols: Sequence[str]) -> Run:
        image = self._cold.select(plan.dataset, file, symbols, plan.window, plan.columns)
        return Run(image, "cold", file.rank, file)


def _run(file: StoredFile, lease: Lease | None, tier: Tier, held: ExitStack) -> Run | None:
    if lease is None:
        return None
    held.callback(lease.release)
    return Run(lease.image, tier, file.rank, file)
