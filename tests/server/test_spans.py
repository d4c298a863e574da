from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fletching_server.spans import (
    AGEING,
    EMPTY,
    FINAL,
    PROVISIONAL,
    UNCONFIRMED,
    Days,
    Horizon,
    Span,
    Spans,
    merged,
    missing,
    overlapping,
    overlay,
    subtract,
    without,
)

DAYS = st.integers(0, 40)
AGES = st.sampled_from([100.0, 200.0, 300.0])
KINDS = st.sampled_from(
    [(FINAL, ""), (PROVISIONAL, ""), (UNCONFIRMED, ""), (PROVISIONAL, "nothing_yet"), (EMPTY, "nothing_upstream")]
)


def runs() -> st.SearchStrategy[Days]:
    return st.tuples(DAYS, DAYS).map(lambda pair: Days(min(pair), max(pair)))


def facts() -> st.SearchStrategy[Span]:
    return st.tuples(runs(), KINDS, AGES).map(lambda parts: Span(*parts[0], *parts[1], parts[2]))


def next_day(last: int, first: int) -> bool:
    return first <= last + 1


def by_day(spans: Spans) -> dict[int, tuple[str, str]]:
    """Return the model of *spans*: what is known about each day, one by one."""
    return {day: (span.state, span.reason) for span in spans for day in range(span.first, span.last + 1)}


def laid(facts: list[Span]) -> Spans:
    spans: Spans = ()
    for fact in facts:
        spans = overlay(spans, [fact], next_day)
    return spans


def days_of(parts: list[Days]) -> list[int]:
    return [day for part in parts for day in range(part.first, part.last + 1)]


@given(st.lists(facts(), max_size=12))
def test_later_facts_replace_earlier_ones_day_by_day(news: list[Span]) -> None:
    model: dict[int, tuple[str, str]] = {}
    for fact in news:
        model |= by_day((fact,))
    assert by_day(laid(news)) == model


@given(st.lists(facts(), max_size=12))
def test_spans_stay_sorted_and_disjoint_and_equal_settled_neighbours_are_one(news: list[Span]) -> None:
    spans = laid(news)
    for one, other in itertools.pairwise(spans):
        assert one.last < other.first
        if other.first == one.last + 1 and one.state == other.state not in AGEING:
            assert one.reason != other.reason


@given(st.lists(facts(), max_size=12))
def test_a_provisional_day_keeps_the_age_of_its_own_fact_and_a_settled_one_never_looks_younger(news: list[Span]) -> None:
    model: dict[int, Span] = {}
    for fact in news:
        model |= dict.fromkeys(range(fact.first, fact.last + 1), fact)
    for span in laid(news):
        ages = {model[day].fetched_at for day in range(span.first, span.last + 1)}
        if span.state in AGEING:
            assert ages == {span.fetched_at}
        else:
            assert span.fetched_at <= min(ages)


@given(st.lists(facts(), max_size=8), runs())
def test_without_forgets_exactly_the_days_named(news: list[Span], hole: Days) -> None:
    left = by_day(without(laid(news), *hole))
    assert left == {day: known for day, known in by_day(laid(news)).items() if not hole.first <= day <= hole.last}


@given(runs(), st.lists(runs(), max_size=8))
def test_subtract_leaves_exactly_the_days_that_no_hole_covers(wanted: Days, holes: list[Days]) -> None:
    parts = subtract(wanted, sorted(holes))
    covered = set(days_of(holes))
    assert days_of(parts) == [day for day in range(wanted.first, wanted.last + 1) if day not in covered]
    assert all(part.first <= part.last for part in parts)


@given(st.lists(facts(), max_size=10), runs(), st.sampled_from([50.0, 150.0, 250.0, 350.0]))
def test_missing_names_the_days_that_no_usable_fact_vouches_for(news: list[Span], wanted: Days, oldest: float) -> None:
    model: dict[int, Span] = {}
    for fact in news:
        model |= dict.fromkeys(range(fact.first, fact.last + 1), fact)
    held = {day for day, fact in model.items() if fact.state not in AGEING or fact.fetched_at >= oldest}
    absent = missing(laid(news), wanted, Horizon(oldest, oldest))
    assert days_of(absent) == [d for d in range(wanted.first, wanted.last + 1) if d not in held]


@given(st.lists(facts(), max_size=10), runs())
def test_overlapping_cuts_facts_to_the_range(news: list[Span], wanted: Days) -> None:
    cut = by_day(tuple(overlapping(laid(news), wanted)))
    assert cut == {day: known for day, known in by_day(laid(news)).items() if wanted.first <= day <= wanted.last}


@given(st.lists(runs(), max_size=10))
def test_merged_runs_cover_the_same_days_once(parts: list[Days]) -> None:
    joined = merged(parts, next_day)
    assert days_of(joined) == sorted(set(days_of(parts)))
    assert all(other.first > one.last + 1 for one, other in itertools.pairwise(joined))


def test_neighbours_join_across_days_without_a_session() -> None:
    friday, monday = Span(4, 4, FINAL, "", 1.0), Span(7, 7, FINAL, "", 2.0)
    assert overlay((friday,), [monday], lambda last, first: (last, first) == (4, 7)) == (Span(4, 7, FINAL, "", 1.0),)
    assert overlay((friday,), [monday], next_day) == (friday, monday)


def test_each_kind_of_fact_ages_by_its_own_rule() -> None:
    horizon = Horizon(fresh=100.0, confirm=50.0, latest=200.0, verify=10.0)
    for state, oldest in ((PROVISIONAL, 100.0), (UNCONFIRMED, 50.0), (FINAL, 10.0), (EMPTY, 10.0)):
        assert Span(1, 1, state, "", oldest).usable(horizon)
        assert not Span(1, 1, state, "", oldest - 0.5).usable(horizon)


def test_what_ages_and_comes_from_the_future_was_recorded_under_a_wrong_clock() -> None:
    horizon = Horizon(fresh=100.0, confirm=50.0, latest=200.0)
    assert [Span(1, 1, state, "", 200.5).usable(horizon) for state in (PROVISIONAL, UNCONFIRMED, FINAL)] == [False, False, True]


def test_a_session_that_has_not_settled_cannot_be_final() -> None:
    spans = (Span(1, 5, FINAL, "", 0.0),)
    assert missing(spans, Days(2, 5), Horizon(0.0, 0.0, settled=5)) == []
    assert missing(spans, Days(2, 5), Horizon(0.0, 0.0, settled=3)) == [Days(4, 5)]
    assert missing((Span(1, 5, PROVISIONAL, "", 0.0),), Days(2, 5), Horizon(0.0, 0.0, settled=3)) == []
