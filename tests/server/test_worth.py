"""One rule: what is expected to be saved against what it costs."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fletching_server.worth import KAPPA, Candidate, Rule

AMOUNTS = st.floats(0, 1e4)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    fill = draw(AMOUNTS)
    saves = draw(st.floats(0, 1)) * fill  # what takes so long cannot save more
    return Candidate(
        draw(st.text("abc", min_size=1, max_size=3)),
        draw(st.floats(0, 1)),
        saves,
        fill,
        draw(st.integers(0, 10**9)),
        draw(st.sampled_from([0.2, 1.0, 5.0])),
        draw(st.one_of(st.just(0.0), AMOUNTS)),
    )


RULES = st.builds(Rule, st.floats(0, 1), st.none() | st.floats(0, 1))


@given(candidates(), st.floats(0, 1))
def test_it_pays_from_the_break_even_chance_on(candidate: Candidate, kappa: float) -> None:
    assert Rule(kappa).pays(candidate) == (candidate.gain > candidate.price(kappa))
    assume(candidate.saves * candidate.weight > 1e-6)
    break_even = candidate.break_even(kappa)
    assume(abs(candidate.chance - break_even) > 1e-9 * (1 + break_even))
    assert Rule(kappa).pays(candidate) == (candidate.chance > break_even)


@given(candidates(), RULES)
def test_what_is_called_hopeless_never_pays(candidate: Candidate, rule: Rule) -> None:
    if rule.hopeless(candidate.chance, candidate.weight):
        assert not rule.pays(candidate)


@given(candidates(), candidates(), RULES)
def test_a_likelier_one_pays_where_a_less_likely_one_does(one: Candidate, other: Candidate, rule: Rule) -> None:
    likelier = Candidate(one.key, max(one.chance, other.chance), one.saves, one.fill_seconds, one.bytes, one.weight, one.loses)
    assert rule.pays(likelier) >= rule.pays(one)


@given(st.lists(candidates(), max_size=12), RULES)
def test_those_that_pay_are_done_the_most_seconds_per_byte_first(found: list[Candidate], rule: Rule) -> None:
    chosen = rule.chosen(found)
    assert sorted(map(id, chosen)) == sorted(id(one) for one in found if rule.pays(one))
    rates = [one.gain / max(one.bytes, 1) for one in chosen]
    assert rates == sorted(rates, reverse=True)
    assert rule.chosen(reversed(found)) == chosen or len({one.key for one in found}) < len(found)


def test_a_fixed_confidence_asks_for_nothing_else() -> None:
    rule = Rule(min_confidence=0.7)
    free, dear = Candidate("a", 0.69, 5.0, 0.0, 1), Candidate("b", 0.7, 0.0, 1e6, 1, loses=1e6)
    assert (rule.pays(free), rule.pays(dear)) == (False, True)
    assert (rule.hopeless(0.69, 5.0), rule.hopeless(0.7, 0.2)) == (True, False)


def test_what_has_to_leave_for_it_is_part_of_the_price() -> None:
    alone = Candidate("a", 0.5, 4.0, 4.0, 100)
    instead = Candidate("a", 0.5, 4.0, 4.0, 100, loses=1.7)
    assert alone.break_even() == pytest.approx(KAPPA)
    assert instead.price() == pytest.approx(alone.price() + 1.7)
    assert (Rule().pays(alone), Rule().pays(instead)) == (True, False)
