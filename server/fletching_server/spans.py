"""Coverage arithmetic: what is known about the sessions of one symbol, as sorted, disjoint runs of days. Pure.

Days are integers since 1970-01-01, both ends inclusive. A later fact replaces an earlier one where they overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

State = Literal["final", "provisional", "empty"]
FINAL: Final[State] = "final"
PROVISIONAL: Final[State] = "provisional"
EMPTY: Final[State] = "empty"

Adjacent = Callable[[int, int], bool]


class Days(NamedTuple):
    """A run of days, both ends inclusive."""

    first: int
    last: int


class Span(NamedTuple):
    """What is known about a run of sessions.

    *final*: settled, with rows; *provisional*: will be asked again; *empty*: settled, nothing there, with the reason.
    ``fetched_at`` is in seconds since 1970, UTC.
    """

    first: int
    last: int
    state: State
    reason: str
    fetched_at: float

    def usable(self, oldest: float) -> bool:
        """Return whether this fact still vouches: settled facts always, provisional ones from *oldest* on."""
        return self.state != PROVISIONAL or self.fetched_at >= oldest


Spans = tuple[Span, ...]


def overlay(spans: Spans, new: Iterable[Span], adjacent: Adjacent) -> Spans:
    """Return *spans* with the facts of *new* in place of what they overlap; equal neighbours become one."""
    fresh = sorted(new)
    kept = [part for span in spans for part in _without(span, fresh)]
    return tuple(_joined(sorted([*kept, *fresh]), adjacent))


def without(spans: Spans, first: int, last: int) -> Spans:
    """Return *spans* with nothing known between *first* and *last*."""
    return tuple(part for span in spans for part in _without(span, [Days(first, last)]))


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
    """Provisional facts keep their own age; settled ones of equal meaning may share the oldest."""
    same = one.state == other.state and one.reason == other.reason
    return same and (one.state != PROVISIONAL or one.fetched_at == other.fetched_at)


def missing(spans: Spans, wanted: Days, oldest: float) -> list[Days]:
    """Return the parts of *wanted* for which no usable fact vouches: the common case, all held, costs one comparison."""
    if len(spans) == 1:
        only = spans[0]
        if only.first <= wanted.first and only.last >= wanted.last and only.usable(oldest):
            return []
    return subtract(wanted, [span for span in spans if span.usable(oldest)])


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
