"""What a read tells about its answer: sessions without rows and why, how old it is, and what became of each symbol. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from fletching_schemas import Gap, SymbolStatus
from fletching_schemas.errors import Error
from fletching_server.calendars import from_day_number
from fletching_server.gaps import Gaps, uncovered
from fletching_server.plan import Plan
from fletching_server.reading import Reading
from fletching_server.snapshot import DatasetState
from fletching_server.spans import AGEING, PROVISIONAL, UNCONFIRMED, Days, Span, overlapping

_OK = SymbolStatus("ok")
Errors = Mapping[str, Error]
_NOTHING_FAILED: Errors = {}


def tell(reading: Reading, plan: Plan, state: DatasetState, now: datetime, *, fillable: bool) -> None:
    """Put into the info of *reading* what it tells about its answer; *fillable*: there is a source for what is missing."""
    info = reading.info
    info.tell_gaps(told_gaps(plan, state, "not_cached" if fillable else "no_source", reading.failed))
    info.symbols = statuses(plan, state, reading.failed, reading.stale)
    info.stale = bool(reading.stale) or any_ageing(plan.due, state)
    fetched = oldest_fetch(plan, state)
    info.age_seconds = None if fetched is None else max(0.0, now.timestamp() - fetched)


def told_gaps(plan: Plan, state: DatasetState, unfilled_reason: str, failed: Errors = _NOTHING_FAILED) -> list[Gap]:
    """Return the sessions of the range without rows, each with its reason, by symbol and time."""
    told: list[Gap] = []
    for symbol in plan.symbols:
        spans = overlapping(state.coverage.get(symbol, ()), plan.wanted)
        told += [_gap(symbol, span, span.reason) for span in spans if span.reason]
        held = [Days(span.first, span.last) for span in spans]
        told += [_gap(symbol, run, reason) for run, reason in _barred(plan, symbol, held)]
        reason = "failed" if symbol in failed else unfilled_reason
        told += [_gap(symbol, part, reason) for run in plan.gaps.get(symbol, ()) for part in uncovered(run, held, plan.calendar)]
        if plan.future:
            told.append(_gap(symbol, plan.future, "future"))
    return sorted(told, key=lambda gap: (gap.symbol, gap.first))


def _barred(plan: Plan, symbol: str, held: Sequence[Days]) -> list[tuple[Days, str]]:
    """Return the wanted sessions of which nothing is *held* and that are not asked for, each once, with the reason."""
    told: list[tuple[Days, str]] = []
    for bar, reason in plan.bars.of(symbol):
        inside = Days(max(bar.first, plan.wanted.first), min(bar.last, plan.wanted.last))
        if inside.first <= inside.last:
            known = sorted([*held, *(run for run, _ in told)])
            told += [(run, reason) for run in uncovered(inside, known, plan.calendar)]
    return told


def _gap(symbol: str, days: Days | Span, reason: str) -> Gap:
    return Gap(symbol, from_day_number(days.first), from_day_number(days.last), reason)


def statuses(plan: Plan, state: DatasetState, failed: Errors, stale: Errors) -> dict[str, SymbolStatus]:
    """Return what became of each symbol of *plan*, in order; *stale* ones are answered with rows that are older than allowed."""
    if state.is_table:
        return dict.fromkeys(plan.symbols, _OK)
    return {symbol: _status(symbol, plan, state, failed, stale) for symbol in plan.symbols}


def _status(symbol: str, plan: Plan, state: DatasetState, failed: Errors, stale: Errors) -> SymbolStatus:
    if error := failed.get(symbol):
        return SymbolStatus("failed", error.code, error.message, error.retry_at)
    if error := stale.get(symbol):
        return SymbolStatus("ok", "stale", error.message, error.retry_at)
    spans = overlapping(state.coverage.get(symbol, ()), plan.wanted)
    if any(not span.reason for span in spans):
        return _OK
    if spans:
        return SymbolStatus("empty", spans[-1].reason)
    if symbol in plan.gaps:
        return SymbolStatus("missing")
    if barred := _barred(plan, symbol, ()):
        return SymbolStatus("empty", barred[-1][1])
    return SymbolStatus("empty", "future" if plan.future else "")


def oldest_fetch(plan: Plan, state: DatasetState) -> float | None:
    """Return when the oldest cell of the range that had not settled was fetched, in seconds since 1970; None without any.

    Of settled ones only those count whose second look is overdue.
    """
    ages = [
        span.fetched_at
        for symbol in plan.symbols
        for span in state.coverage.get(symbol, ())
        if span.first <= plan.wanted.last
        and span.last >= plan.wanted.first
        and (span.state == PROVISIONAL or (span.state == UNCONFIRMED and not span.usable(plan.refresh)))
    ]
    return min(ages, default=None)


def any_ageing(due: Gaps, state: DatasetState) -> bool:
    """Return whether some *due* cells are not final: rows older than the rule are served while they are refreshed."""
    return any(
        span.state in AGEING for symbol, runs in due.items() for run in runs for span in overlapping(state.coverage[symbol], run)
    )
