"""The arithmetic on arrays says the same as the one on facts, whatever is known of whichever symbols."""

from __future__ import annotations

from datetime import date

from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import NOW

from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number
from fletching_server.gaps import snapped
from fletching_server.missing import Ledger
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL, UNCONFIRMED, Days, Facts, Horizon, Span, State, missing, overlay

SHANGHAI = build_calendar("XSHG", NOW.date())
FIRST, LAST = day_number(date(2026, 9, 14)), day_number(date(2026, 11, 20))  # Golden Week lies inside
SESSIONS = SHANGHAI.between(FIRST, LAST).tolist()
STATES: list[State] = [FINAL, UNCONFIRMED, PROVISIONAL, EMPTY]


def runs() -> st.SearchStrategy[Days]:
    return st.tuples(st.sampled_from(SESSIONS), st.sampled_from(SESSIONS)).map(lambda pair: Days(min(pair), max(pair)))


@st.composite
def knowledge(draw: st.DrawFn) -> Facts:
    spans: tuple[Span, ...] = ()
    for run in draw(st.lists(runs(), max_size=6)):
        span = Span(*run, draw(st.sampled_from(STATES)), "", draw(st.sampled_from([1.0, 2.0, 3.0, 9.0])))
        spans = overlay(spans, [span], SHANGHAI.adjacent)
    return Facts(spans)


HORIZONS = st.builds(
    Horizon,
    fresh=st.sampled_from([0.0, 1.5, 2.5]),
    confirm=st.sampled_from([0.0, 2.5]),
    latest=st.sampled_from([5.0, float("inf")]),
    verify=st.sampled_from([float("-inf"), 1.5]),
    settled=st.one_of(st.just(10**7), st.sampled_from(SESSIONS)),
)
WANTED = st.tuples(st.integers(FIRST - 9, LAST + 9), st.integers(FIRST - 9, LAST + 9)).map(
    lambda pair: Days(min(pair), max(pair))
)


@given(st.lists(knowledge(), max_size=8), WANTED, HORIZONS, st.data())
def test_many_symbols_at_once_miss_what_each_of_them_misses(
    known: list[Facts], wanted: Days, horizon: Horizon, data: st.DataObject
) -> None:
    symbols = [f"S{number}" for number in range(len(known))]
    coverage = dict(zip(symbols, known, strict=True))
    opened = data.draw(st.one_of(st.just([]), st.lists(WANTED, min_size=len(symbols), max_size=len(symbols))))
    found = Ledger.of(SHANGHAI, symbols, coverage).missing(wanted, horizon, opened)
    expected = {}
    for place, symbol in enumerate(symbols):
        inside = opened[place] if opened else wanted
        asked = Days(max(wanted.first, inside.first), min(wanted.last, inside.last))
        left = snapped(missing(coverage[symbol], asked, horizon), SHANGHAI) if asked.first <= asked.last else []
        if left:
            expected[symbol] = left
    assert dict(found) == expected
    assert found.runs == sum(map(len, expected.values()))
    assert list(found) == sorted(expected, key=symbols.index)


@given(st.lists(knowledge(), max_size=8), HORIZONS, HORIZONS)
def test_symbols_differ_where_one_of_their_facts_does(known: list[Facts], one: Horizon, other: Horizon) -> None:
    symbols = [f"S{number}" for number in range(len(known))]
    ledger = Ledger.of(SHANGHAI, symbols, dict(zip(symbols, known, strict=True)))
    differing = [
        symbol for symbol, spans in zip(symbols, known, strict=True) if any(s.usable(one) != s.usable(other) for s in spans)
    ]
    assert ledger.differing(one, other) == differing
