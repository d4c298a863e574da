"""All periods of an import, merged side by side, into whatever takes their rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import polars as pl

from fletching_server.importing.job import Job, Staged
from fletching_server.importing.merging import Group, Share, groups
from fletching_server.importing.plan import ImportPlan
from fletching_server.importing.rejects import lost_rows

AT_ONCE: Final = 2  # periods: one is prepared while another is encoded


class Taker(Protocol):
    """Takes the rows of one period, in order."""

    def add(self, frame: pl.DataFrame) -> None:
        """Take *frame*, which follows what it was given before."""
        ...


Opener = Callable[[str], AbstractContextManager[Taker]]


@dataclass
class Counts:
    """What became of the rows of an import; safe to add to from several threads."""

    kept: int = 0
    equal: int = 0  # rows that came again just as they were
    different: int = 0  # rows whose key came again with other values
    replaced: int = 0
    reduced: int = 0
    periods: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, group: Group) -> None:
        """Count *group*."""
        equal = sum(int(lost.equal.sum()) for lost in group.lost)
        lost = sum(lost.rows.height for lost in group.lost)
        with self._lock:
            self.equal += equal
            self.different += lost - equal
            self.replaced += group.replaced
            self.reduced += group.reduced
            self.kept += group.read - lost - group.reduced


def shares_by_period(job: Job, staged: Sequence[Staged]) -> dict[str, list[Share]]:
    """Return, per period, what each chunk has of it; the order of the inputs is the rank."""
    found: dict[str, list[Share]] = {}
    for rank, chunk in enumerate(staged):
        for (period,), part in job.index(chunk).partition_by("period", as_dict=True, include_key=False).items():
            found.setdefault(period, []).append(Share(job.rows(chunk), rank, part))
    return dict(sorted(found.items()))


@dataclass
class Merge:
    """Merges *shares*, about *group_rows* rows at a time, and hands them to what *opener* opens for each period."""

    plan: ImportPlan
    job: Job
    shares: Mapping[str, Sequence[Share]]
    group_rows: int
    opener: Opener
    note: Callable[[int], None]  # rows of the inputs that are done
    at_once: int = AT_ONCE
    counts: Counts = field(default_factory=Counts)

    def run(self) -> None:
        """Return when the rows of all periods were taken."""
        with ThreadPoolExecutor(min(self.at_once, max(len(self.shares), 1))) as pool:
            under_way = [pool.submit(self._period, period) for period in self.shares]
            try:
                for future in under_way:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _period(self, period: str) -> None:
        with self.opener(period) as taker, ThreadPoolExecutor(1) as behind:
            taking: Future[None] | None = None
            for group in self._groups(period):
                if taking:
                    taking.result()
                taking = behind.submit(taker.add, group.frame)
            if taking:
                taking.result()
        self.counts.periods += 1

    def _groups(self, period: str) -> Iterator[Group]:
        plan = self.plan
        found = groups(plan.dataset, self.shares[period], self.group_rows, plan.reductions, plan.mapping.seq)
        for number, group in enumerate(found):
            self.counts.add(group)
            for lost in group.lost:
                if not lost.equal.all():
                    self.job.lose(f"{period}-{number:06}", lost_rows(lost))
            self.note(group.read)
            if group.frame.height:
                yield group
