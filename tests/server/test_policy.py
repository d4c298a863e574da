from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fletching_server.policy import GHOSTS, SMALL_BYTES, Item, LruPolicy

STEPS = st.lists(st.tuples(st.sampled_from(["touch", "admit", "leave", "forget"]), st.sampled_from("abcdef")), max_size=60)


def item(key: str, size: int = 1, lineage: str | None = None) -> Item:
    return Item(key, key if lineage is None else lineage, size, 0.1)


@given(STEPS, st.sets(st.sampled_from("abcdef")), st.integers(0, 7))
def test_what_was_used_longest_ago_leaves_first_and_never_what_is_leased(
    steps: list[tuple[str, str]], leased: set[str], excess: int
) -> None:
    policy, held = LruPolicy(), list[str]()
    for verb, key in steps:
        getattr(policy, verb)(key if verb in {"leave", "forget"} else item(key))
        if verb == "leave" and key in held:
            held.remove(key)
        elif verb == "admit" and key not in held:
            held.append(key)
        elif verb == "touch" and key in held:
            held.remove(key)
            held.append(key)
    assert policy.victims(excess, leased) == [key for key in held if key not in leased][:excess]


def test_as_many_leave_as_their_bytes_take() -> None:
    policy = LruPolicy()
    for key, size in (("a", 10), ("b", 30), ("c", 5)):
        policy.admit(item(key, size))
    assert policy.victims(11, ()) == ["a", "b"]
    assert policy.victims(11, {"a"}) == ["b"]
    assert policy.victims(100, {"b"}) == ["a", "c"]


def test_bytes_are_those_that_were_admitted_whatever_a_use_says() -> None:
    policy = LruPolicy()
    for key in "ab":
        policy.admit(item(key, 10))
    policy.touch(item("b", 1000))
    policy.touch(item("a", 1000))
    assert policy.victims(11, ()) == ["b", "a"]
    assert policy.told("a")["bytes"] == 10


def test_a_small_file_and_one_that_is_mostly_wanted_are_held_whole_at_once() -> None:
    policy = LruPolicy()
    assert policy.wants_whole(item("a", SMALL_BYTES), 0.001)
    assert policy.wants_whole(item("a", SMALL_BYTES * 100), 0.5)
    assert not policy.wants_whole(item("a", SMALL_BYTES + 1), 0.01)


def test_a_large_file_is_held_whole_from_its_second_use_on() -> None:
    policy, large = LruPolicy(), item("a", SMALL_BYTES * 100)
    policy.touch(large)
    assert not policy.wants_whole(large, 0.01)
    policy.touch(large)
    assert policy.wants_whole(large, 0.01)
    policy.forget("a")
    assert not policy.wants_whole(large, 0.01)


def test_a_new_generation_has_the_history_of_those_before() -> None:
    policy = LruPolicy()
    policy.touch(item("first", SMALL_BYTES * 100, "bars/2024/0"))
    policy.leave("first")
    second = item("second", SMALL_BYTES * 100, "bars/2024/0")
    policy.touch(second)
    assert policy.wants_whole(second, 0.01)


def test_the_numbers_behind_a_rank_are_told() -> None:
    policy = LruPolicy()
    policy.touch(item("a", 7))
    policy.admit(item("a", 7))
    assert policy.told("a") == {"uses": 1, "refill_seconds": 0.1, "bytes": 7}
    assert policy.told("b") == {}


def test_what_left_is_remembered_within_a_bound() -> None:
    policy = LruPolicy()
    for number in range(GHOSTS + 100):
        policy.touch(item(str(number)))
    assert len(policy._uses) == GHOSTS
