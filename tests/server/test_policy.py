from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fletching_server.policy import GHOSTS, SMALL_BYTES, LruPolicy

STEPS = st.lists(st.tuples(st.sampled_from(["touch", "admit", "leave", "forget"]), st.sampled_from("abcdef")), max_size=60)


@given(STEPS)
def test_exactly_what_is_held_is_ranked_by_its_last_use(steps: list[tuple[str, str]]) -> None:
    policy, held = LruPolicy(), list[str]()
    for verb, key in steps:
        getattr(policy, verb)(key)
        if verb in {"leave", "forget"} and key in held:
            held.remove(key)
        elif verb == "admit" and key not in held:
            held.append(key)
        elif verb == "touch" and key in held:
            held.remove(key)
            held.append(key)
    assert list(policy.coldest_first()) == held


def test_a_small_file_and_one_that_is_mostly_wanted_are_held_whole_at_once() -> None:
    policy = LruPolicy()
    assert policy.wants_whole("a", SMALL_BYTES, 0.001)
    assert policy.wants_whole("a", SMALL_BYTES * 100, 0.5)
    assert not policy.wants_whole("a", SMALL_BYTES + 1, 0.01)


def test_a_large_file_is_held_whole_from_its_second_use_on() -> None:
    policy = LruPolicy()
    policy.touch("a")
    assert not policy.wants_whole("a", SMALL_BYTES * 100, 0.01)
    policy.touch("a")
    assert policy.wants_whole("a", SMALL_BYTES * 100, 0.01)
    policy.forget("a")
    assert not policy.wants_whole("a", SMALL_BYTES * 100, 0.01)


def test_what_left_is_remembered_within_a_bound() -> None:
    policy = LruPolicy()
    for number in range(GHOSTS + 100):
        policy.touch(str(number))
    assert len(policy._uses) == GHOSTS
