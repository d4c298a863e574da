from __future__ import annotations

import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.batches import ALIGNMENT, TARGET_BYTES, aligned_note, cut, rows_per_batch

SIZES = st.lists(st.integers(1, 40), max_size=20)


def slices_of(sizes: list[int]) -> list[pa.Table]:
    whole = pa.table({"row": pa.array(range(sum(sizes)), pa.int64())})
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [whole.slice(start, size) for start, size in zip(starts, sizes, strict=True)]


@given(SIZES, st.integers(1, 30))
def test_no_row_is_lost_repeated_or_moved(sizes: list[int], size: int) -> None:
    batches = list(cut(slices_of(sizes), size))
    assert [value for batch in batches for value in batch.column(0).to_pylist()] == list(range(sum(sizes)))


@given(SIZES, st.integers(1, 30))
def test_no_batch_is_empty_or_twice_the_size_asked(sizes: list[int], size: int) -> None:
    assert all(0 < batch.num_rows < 2 * size for batch in cut(slices_of(sizes), size))


def test_long_runs_leave_as_they_lie() -> None:
    run = pa.table({"row": pa.array(range(1000), pa.int64())})
    addresses = {chunk.buffers()[1].address for chunk in run.column("row").chunks}
    batches = list(cut([run], 100))
    assert len(batches) == 10
    assert {batch.column(0).buffers()[1].address for batch in batches} == addresses


def test_many_short_runs_are_gathered_into_few_batches() -> None:
    assert [batch.num_rows for batch in cut(slices_of([1] * 100), 30)] == [30, 30, 30, 10]


def test_short_runs_before_a_long_one_keep_their_place() -> None:
    batches = list(cut(slices_of([2, 3, 50, 1]), 10))
    assert [batch.num_rows for batch in batches] == [5, 10, 10, 10, 10, 10, 1]


def test_nothing_in_nothing_out() -> None:
    assert list(cut([], 10)) == []


def test_a_batch_is_about_one_megabyte_and_at_least_a_row() -> None:
    assert rows_per_batch(1000 * 100, 1000) == TARGET_BYTES // 100
    assert rows_per_batch(100 << 20, 10) == 1
    assert rows_per_batch(0, 0) > 0


def test_gathered_batches_stay_below_the_size_from_which_they_would_arrive_misaligned() -> None:
    assert TARGET_BYTES >= 1e6
    assert 2 * TARGET_BYTES < 2 << 20


def varint(number: int) -> bytes:
    """Return *number* as protobuf writes it: seven bits a byte, the high bit says that more follow."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


@given(st.one_of(st.integers(1, 400), st.integers(16_000, 17_000)))
def test_a_note_shifts_the_body_behind_it_by_whole_words(size: int) -> None:
    note = json.dumps("x" * size).encode()
    padded = aligned_note(note)
    assert json.loads(padded) == json.loads(note)
    assert len(b"\x1a" + varint(len(padded)) + padded) % ALIGNMENT == 0
    assert len(padded) < len(note) + 2 * ALIGNMENT
