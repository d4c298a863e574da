"""What is asked for together: seen several times, by the same reader, within ten minutes, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server import coaccess
from fletching_server.coaccess import WITHIN_SECONDS, CoAccess
from fletching_server.predictor import RelativeKey

HOUR = 3600.0


def key(name: str) -> RelativeKey:
    return RelativeKey("bars", name, 0)


def seen(*touches: tuple[str, float, str]) -> CoAccess:
    together = CoAccess()
    for principal, at, name in touches:
        together.note(principal, at, key(name))
    return together


def pair_seen(times: int, reader: str = "ann", apart: float = 60.0) -> CoAccess:
    return seen(*(touch for n in range(times) for touch in ((reader, n * HOUR, "a"), (reader, n * HOUR + apart, "b"))))


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.floats(0, 1e4), st.sampled_from("abcde")), max_size=120))
def test_chances_are_chances_and_the_likeliest_comes_first_even_when_the_clock_jumps(
    touches: list[tuple[str, float, str]],
) -> None:
    together = seen(*touches)
    for name in "abcde":
        chances = [chance for _, chance in together.following(key(name))]
        assert all(0 < chance <= 1 for chance in chances)
        assert chances == sorted(chances, reverse=True)


def test_a_pair_seen_once_is_no_pattern() -> None:
    assert pair_seen(1).following(key("a")) == []
    assert [found for found, _ in pair_seen(2).following(key("a"))] == [key("b")]


def test_the_more_often_the_likelier() -> None:
    chances = [pair_seen(times).following(key("a"))[0][1] for times in (2, 5, 20)]
    assert chances == sorted(chances)
    assert chances[-1] > 0.8


def test_what_follows_is_not_what_came_before() -> None:
    assert pair_seen(9).following(key("b")) == []


def test_a_pair_is_what_one_reader_asks_for_within_ten_minutes() -> None:
    assert pair_seen(9, apart=WITHIN_SECONDS + 1).following(key("a")) == []
    others = seen(*(touch for n in range(9) for touch in (("ann", n * HOUR, "a"), ("bob", n * HOUR + 60, "b"))))
    assert others.following(key("a")) == []


def test_asking_again_within_ten_minutes_is_nothing_new() -> None:
    together = CoAccess()
    assert [together.note("ann", at, key("a")) for at in (0.0, 1.0, 599.0, 1300.0)] == [True, False, False, True]
    assert together.note("bob", 1300.0, key("a"))


def test_what_does_not_follow_any_more_fades() -> None:
    together = pair_seen(10)
    before = together.following(key("a"))[0][1]
    for n in range(10, 60):
        together.note("ann", n * HOUR, key("a"))
    after = together.following(key("a"))
    assert not after or after[0][1] < before / 3


def test_keys_and_partners_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coaccess, "_MOST_KEYS", 50)
    together = pair_seen(5)
    for n in range(200):
        for name in ("hub", f"spoke {n}"):  # each pair twice, or it would not be told
            together.note(f"reader {n}", n, key(name))
            together.note(f"other {n}", n, key(name))
    assert together.following(key("a")) == []
    assert len(together.following(key("hub"))) <= 50
    assert len(together._recent) <= 50
