"""What a plan lacks, fetched before the read goes on; and what it means where that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fletching_schemas import Gap, ReadRequest
from fletching_schemas.errors import Error, NotCached, SourceTimeout, SourceUnavailable, copy_of
from fletching_server.calendars import from_day_number
from fletching_server.desk import Desk
from fletching_server.fills import Fills
from fletching_server.gaps import Gaps, unknown
from fletching_server.plan import Plan
from fletching_server.reading import Reading
from fletching_server.snapshot import DatasetState
from fletching_server.spans import merged
from fletching_server.stats import Stats
from fletching_server.uses import Uses

_DOWN: Final = (SourceUnavailable, SourceTimeout)  # the upstream is at fault, and not what it said


class Completion:
    """Completes what is held to what a read asks for, as far as its request wants that and upstream lets it."""

    def __init__(self, fills: Fills, desk: Desk, uses: Uses, stats: Stats) -> None:
        self._fills, self._desk, self._uses, self._stats = fills, desk, uses, stats

    def fillable(self, dataset: str) -> bool:
        """Return whether a source is there that *dataset* can be fetched from."""
        return self._desk.source(dataset) is not None

    def close_gaps(self, request: ReadRequest, plan: Plan, gaps: Gaps, state: DatasetState, reading: Reading) -> None:
        """Return once *gaps* are stored, or are known not to be had."""
        if request.on_miss == "error":
            raise NotCached(f"{request.dataset}: {_told(gaps)} not held; read with on_miss='fill' to fetch it")
        if not self.fillable(request.dataset):
            raise SourceUnavailable(
                f"{request.dataset}: {_told(gaps)} not held, and its source {state.source!r} is not configured here; "
                "start with that source, or read with on_miss='cached'"
            )
        reading.awaited = reading.awaited or self._uses.awaiting(state)
        reading.began = state.generation if reading.began is None else reading.began
        outcome = self._fills.close_gaps(state, gaps, plan.horizon, reading.progress, reading.principal, early=reading.early)
        reading.fetched_rows += outcome.rows
        reading.info.upstream_calls += outcome.calls
        reading.info.joined_calls += outcome.joined
        reading.failed |= outcome.failed
        reading.filled = _either(reading.filled, gaps)

    def judge(self, request: ReadRequest, plan: Plan, state: DatasetState, reading: Reading) -> None:
        """Decide what failed calls mean: older rows serve, a part does for who is told that it is one, else an error."""
        if not reading.failed:
            return
        lost = unknown({symbol: plan.gaps.get(symbol, ()) for symbol in reading.failed}, state, plan.calendar)
        for symbol, error in list(reading.failed.items()):
            if symbol not in lost and isinstance(error, _DOWN) and request.max_age is None:
                reading.stale[symbol] = reading.failed.pop(symbol)
        self._stats.add(stale_reads=bool(reading.stale) and not reading.early)
        if not reading.failed:
            return
        if not request.info or len(reading.failed) == len(plan.symbols):
            raise _failure(request, plan, reading.failed)
        self._stats.add(partial_reads=not reading.early)

    def refresh(self, plan: Plan, state: DatasetState) -> None:
        """Have what is due fetched again, behind the answer."""
        self._fills.refresh(state, plan.due, plan.refresh)


def _failure(request: ReadRequest, plan: Plan, failed: Mapping[str, Error]) -> Error:
    """Return the first of the errors, as one that tells about all."""
    error = next(iter(failed.values()))
    if len(failed) == len(plan.symbols) and all(other is error for other in failed.values()):
        return copy_of(error)
    kept = "what arrived is kept, so asking again goes on from there; read with info=True to get what there is"
    return copy_of(error, f"{error}. Of {request.dataset} {len(failed):,} of {len(plan.symbols):,} symbols failed; {kept}")


def _either(one: Gaps, other: Gaps) -> Gaps:
    """Return the cells of both, each once."""
    both = ((symbol, [*one.get(symbol, ()), *other.get(symbol, ())]) for symbol in {*one, *other})
    return {symbol: merged(runs, lambda last, first: first == last + 1) for symbol, runs in both}


def _told(gaps: Gaps) -> str:
    symbol, runs = next(iter(gaps.items()))
    first = Gap(symbol, from_day_number(runs[0].first), from_day_number(runs[0].last), "")
    more = sum(map(len, gaps.values())) - 1
    return str(first).strip() + (f" and {more} more ranges are" if more else " is")
