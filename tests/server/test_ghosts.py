"""Caches without bytes: never over their budget, exact in what leaves, whatever scores do."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from fletching_server.ghosts import Entry, Ghost

ROOM = 20
SCORES = st.integers(-8, 8).map(float)
ENTRIES = st.builds(Entry, SCORES, SCORES, st.integers(0, ROOM + 5))
USES = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | ENTRIES), max_size=80)  # None: it is dropped


def after(ghost: Ghost, uses: Iterable[tuple[str, Entry | None]]) -> Ghost:
    for key, entry in uses:
        if entry is None:
            ghost.drop(key)
        else:
            ghost.use(key, entry)
    return ghost


def lowest(held: dict[str, Entry]) -> str:
    return min(held, key=lambda key: (held[key].score, key))


def used_by(held: dict[str, Entry]) -> int:
    return sum(entry.bytes for entry in held.values())


def naively(held: dict[str, Entry], key: str, entry: Entry, *, compares: bool) -> dict[str, Entry]:
    """Return what is held after one use, looking at everything each time."""
    if key in held:
        held = {**held, key: entry}
        if entry.bytes > ROOM:
            del held[key]
        while used_by(held) > ROOM:
            del held[lowest(held)]
        return held
    if entry.bytes > ROOM:
        return held
    left, lost = dict(held), 0.0
    while used_by(left) + entry.bytes > ROOM:
        lost += 2.0 ** (left.pop(lowest(left)).worth - entry.worth)
    return held if compares and lost > 1 else {**left, key: entry}


@given(USES, st.booleans())
def test_it_holds_what_a_look_at_everything_would_hold(uses: list[tuple[str, Entry | None]], compares: bool) -> None:
    ghost, held = Ghost(ROOM, compares=compares), dict[str, Entry]()
    for key, entry in uses:
        if entry is None:
            ghost.drop(key)
            held.pop(key, None)
        else:
            before = held
            assert ghost.use(key, entry) == (key in held)
            held = naively(held, key, entry, compares=compares)
            assert set(ghost.gone) == before.keys() - held.keys()
        assert ghost.held == held


@given(USES, st.booleans(), st.integers(1, 4))
def test_the_budget_is_never_exceeded_and_the_sum_is_that_of_what_is_held(
    uses: list[tuple[str, Entry | None]], compares: bool, every: int
) -> None:
    ghost = Ghost(ROOM, compares=compares, every=every)
    for use in uses:
        after(ghost, [use])
        assert ghost.used == used_by(ghost.held) <= ROOM


def test_an_insert_must_be_worth_more_than_all_that_leave_for_it_together() -> None:
    small = [(key, Entry(0.0, 0.0, 5)) for key in "abcd"]  # worth 1 each
    assert "x" not in after(Ghost(ROOM), [*small, ("x", Entry(9.0, 1.9, ROOM))]).held
    assert after(Ghost(ROOM), [*small, ("x", Entry(9.0, 2.1, ROOM))]).held.keys() == {"x"}
    assert after(Ghost(ROOM, compares=False), [*small, ("x", Entry(9.0, -5.0, ROOM))]).held.keys() == {"x"}


def test_of_a_loop_that_does_not_fit_a_part_stays_where_few_come_in() -> None:
    loop = [(str(number % 30), Entry(float(number), float(number), 1)) for number in range(3000)]
    plain, few = Ghost(ROOM, compares=False), Ghost(ROOM, compares=False, every=32)
    assert sum(plain.use(*use) for use in loop) == 0
    assert sum(few.use(*use) for use in loop) > len(loop) / 3


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    ghost = Ghost(ROOM)
    for number in range(5000):
        after(ghost, [(f"key {number}", Entry(1.0, 1.0, 1)), (f"key {number}", None)])
        after(ghost, [("kept", Entry(-float(number), 0.0, 1))])  # falls each time
    assert len(ghost._heap) < 100
