"""Answers that are sent again: never one that is too old, from another picture, or beyond the bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import ReadInfo
from fletching_schemas.local import LASTS_SECONDS
from fletching_server.vouched import Vouched

REQUESTS = st.sampled_from([b"one", b"two", b"three"])
STEPS = st.lists(st.tuples(REQUESTS, st.integers(1, 60), st.booleans(), st.floats(0, LASTS_SECONDS)), max_size=40)


@given(STEPS)
def test_only_the_newest_answer_to_the_same_request_of_the_same_picture_within_a_second(
    steps: list[tuple[bytes, int, bool, float]],
) -> None:
    vouched, number, now = Vouched(100), 0, 0.0
    model: dict[bytes, tuple[bytes, int, float]] = {}
    for request, size, committed, passed in steps:
        now, number = now + passed, number + 2 * committed
        found = vouched.get(request, number, now)
        if found is not None:  # what is dropped for room is only slower
            frames, kept_number, kept_at = model[request]
            assert (found.frames, kept_number) == (frames, number)
            assert now < kept_at + LASTS_SECONDS
        frames = bytes(size) + request
        vouched.keep(request, frames, ReadInfo("bars"), number, now)
        model[request] = (frames, number, now)
        assert vouched._bytes == sum(len(sent.frames) for sent in vouched._kept.values()) <= 100
    vouched.clear()
    assert (vouched._bytes, len(vouched._kept)) == (0, 0)


def test_an_answer_is_good_at_once_and_not_a_second_later() -> None:
    vouched = Vouched(100)
    vouched.keep(b"one", b"rows", ReadInfo("bars"), 2, 10.0)
    assert vouched.get(b"one", 2, 10.0) is not None
    assert vouched.get(b"one", 2, 10.0 + LASTS_SECONDS) is None
    assert vouched.get(b"one", 4, 10.0) is None
    assert vouched.get(b"two", 2, 10.0) is None
