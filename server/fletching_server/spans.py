"""Coverage arithmetic: what is known about the sessions of one symbol, as sorted, disjoint runs of days. Pure.

Days are integers since 1970-01-01, both ends inclusive. A later fact replaces an earlier one where they overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np

State = Literal["final", "unconfirmed", "provisional", "empty"]
FINAL: Final[State] = "final"
UNCONFIRMED: Final[State] = "unconfirmed"
PROVISIONAL: Final[State] = "provisional"
EMPTY: Final[State] = "empty"
CODES: Final[dict[State, int]] = {FINAL: 0, UNCONFIRMED: 1, PROVISIONAL: 2, EMPTY: 3}
AGEING: Final = frozenset({PROVISIONAL, UNCONFIRMED})

Adjacent = Callable[[int, int], bool]


class Days(NamedTuple):
    """A run of days, both ends inclusive."""

    first: int
    last: int


class Horizon(NamedTuple):
    """Down to which instant of fetching facts still vouch, by what kind they are; seconds since 1970.

    *fresh* for sessions that had not settled, *confirm* for those that had but are not final: when the last session that has
    settled did so, because then one look at the earlier ones is due; *verify* for those that are final or empty for good.
    Facts later than *latest* (now) were recorded under a clock that was wrong, and so were final ones of sessions after
    *settled*, the last that has settled by now.
    """

    fresh: float
    confirm: float
    latest: float = float("inf")
    verify: float = float("-inf")
    settled: int = 10**7


ANY_AGE: Final = Horizon(float("-inf"), float("-inf"))


class Span(NamedTuple):
    """What is known about a run of sessions.

    *final*: settled and seen twice, or fetched when a later session had settled too; *unconfirmed*: settled, and asked for
    once more when the next session has settled; *provisional*: not settled, asked for again soon; *empty*: nothing there, for
    good. A *reason* says why there are no rows, "" that there are. ``fetched_at`` is in seconds since 1970, UTC.
    """

    first: int
    last: int
    state: State
    reason: str
    fetched_at: float

    def usable(self, horizon: Horizon) -> bool:
        """Return whether this fact still vouches for its sessions."""
        if self.state not in AGEING:
            return self.fetched_at >= horizon.verify
        return (horizon.fresh if self.state == PROVISIONAL else horizon.confirm) <= self.fetched_at <= horizon.latest

    def trusted(self, horizon: Horizon) -> Span:
        """Return the part of it that can be true: a session that has not settled cannot be final."""
        if self.last <= horizon.settled or self.state in AGEING:
            return self
        return self._replace(last=horizon.settled)


Spans = tuple[Span, ...]


class Columns(NamedTuple):
    """The facts of one symbol as arrays: first day, last day and code of the state in the rows of *days*."""

    days: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    fetched: np.ndarray[tuple[int], np.dtype[np.float64]]


class Facts(tuple[Span, ...]):  # noqa: SLOT001  # it keeps something beside its items
    """Sorted, disjoint facts of one symbol, which remember themselves as arrays once somebody needs these."""

    @cached_property
    def columns(self) -> Columns:
        """The facts as arrays."""
        days = [(span.first, span.last, CODES[span.state]) for span in self]
        fetched = np.array([span.fetched_at for span in self], np.float64)
        return Columns(np.array(days, np.int64).reshape(-1, 3).T, fetched)


def facts(spans: Spans) -> Facts:
    """Return *spans* as facts."""
    return spans if isinstance(spans, Facts) else Facts(spans)


def overlay(spans: Spans, new: Iterable[Span], adjacent: Adjacent) -> Spans:
    """Return *spans* with the facts of *new* in place of what they overlap; equal neighbours become one."""
    fresh = sorted(new)
    kept = [part for span in spans for part in _without(span, fresh)]
    return Facts(_joined(sorted([*kept, *fresh]), adjacent))


def without(spans: Spans, first: int, last: int) -> Spans:
    """Return *spans* with nothing known between *first* and *last*."""
    return Facts(part for span in spans for part in _without(span, [Days(first, last)]))


def _without(span: Span, holes: Sequence[Days | Span]) -> Iterator[Span]:
    for days in subtract(Days(span.first, span.last), holes):
        yield span._replace(first=days.first, last=days.last)


def subtract(days: Days, holes: Sequence[Days | Span]) -> list[Days]:
    """Return the parts of *days* that no one of the sorted, disjoint *holes* covers."""
    parts, first = [], days.first
    for hole in holes:
        if hole.last < first:
            continue
        if hole.first > days.last:
            break
        if hole.first > first:
            parts.append(Days(first, hole.first - 1))
        first = hole.last + 1
    if first <= days.last:
        parts.append(Days(first, days.last))
    return parts


def _joined(spans: Iterable[Span], adjacent: Adjacent) -> Iterator[Span]:
    held: Span | None = None
    for span in spans:
        if held is not None and _alike(held, span) and adjacent(held.last, span.first):
            held = held._replace(last=span.last, fetched_at=min(held.fetched_at, span.fetched_at))
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


def _alike(one: Span, other: Span) -> bool:
    """Facts that age keep their own instant; final ones of equal meaning may share the oldest."""
    same = one.state == other.state and one.reason == other.reason
    return same and (one.state not in AGEING or one.fetched_at == other.fetched_at)


def missing(spans: Spans, wanted: Days, horizon: Horizon) -> list[Days]:
    """Return the parts of *wanted* for which no usable fact vouches: the common case, all held, costs one comparison."""
    if len(spans) == 1:
        only = spans[0]
        if only.first <= wanted.first and only.last >= wanted.last <= horizon.settled and only.usable(horizon):
            return []
    trusted = (span.trusted(horizon) for span in spans if span.usable(horizon))
    return subtract(wanted, [span for span in trusted if span.first <= span.last])


def overlapping(spans: Spans, wanted: Days) -> list[Span]:
    """Return the facts about *wanted*, cut to it."""
    return [
        span._replace(first=max(span.first, wanted.first), last=min(span.last, wanted.last))
        for span in spans
        if span.first <= wanted.last and span.last >= wanted.first
    ]


def merged(runs: Iterable[Days], adjacent: Adjacent) -> list[Days]:
    """Return *runs* sorted, with those joined that overlap or touch."""
    result: list[Days] = []
    for run in sorted(runs):
        if result and (run.first <= result[-1].last or adjacent(result[-1].last, run.first)):
            result[-1] = Days(result[-1].first, max(result[-1].last, run.last))
        else:
            result.append(run)
    return result
