from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import canonical
from fletching_server import tiers
from fletching_server.calendars import day_number
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.tiers import FEW, FOLD_BYTES, FULL_BYTES, Rules, bucket_of, cheapest_run, cost, prefix, worth_folding

KB, MB = 1 << 10, 1 << 20
DAY = day_number(date(2026, 3, 2))
YEARLY = canonical("bars_1d", calendar="XSHG")


def segment(
    size: int, rank: int = 1, days: tuple[int, int] = (DAY, DAY), symbols: tuple[str, ...] = ("000001.SZ",)
) -> StoredFile:
    file = StoredFile("s", "bars_1d", "segment", "", 0, "s", "", size, size, 1, *days, symbols)
    return replace(file, id=f"s{rank}", rank=rank)


def partition(period: str, bucket: int, size: int) -> StoredFile:
    return StoredFile(period + str(bucket), "bars_1d", "partition", period, bucket, "p", "", size, size, 1, DAY, DAY, ())


def journal(*sizes: int) -> list[StoredFile]:
    return [segment(size, rank) for rank, size in enumerate(sizes, 1)]


# Merging


def merged(segments: list[StoredFile], least: int) -> tuple[list[StoredFile], int]:
    """Return the journal after all merges, and how many bytes these wrote."""
    written = 0
    while run := cheapest_run(segments, least):
        start = segments.index(run[0])
        size = sum(file.bytes for file in run)
        written += size
        segments = [*segments[:start], replace(run[-1], bytes=size, memory_bytes=size), *segments[start + len(run) :]]
    return segments, written


def test_files_of_one_size_are_merged_once_there_are_enough() -> None:
    assert list(cheapest_run(journal(*[KB] * 15), 16)) == []
    assert list(cheapest_run(journal(*[KB] * 16), 16)) == journal(*[KB] * 16)


def test_a_large_file_is_left_alone_until_there_is_as_much_beside_it() -> None:
    files = journal(16 * KB, *[KB] * 15)
    assert list(cheapest_run(files, 16)) == []
    assert list(cheapest_run([*files, segment(KB, 17)], 16)) == [*files[1:], segment(KB, 17)]
    assert list(cheapest_run(journal(2 * KB, *[KB] * 3), FEW)) == journal(2 * KB, *[KB] * 3)


def test_a_merge_fits_in_memory() -> None:
    assert list(cheapest_run(journal(*[FOLD_BYTES // 2] * 3), 3)) == []
    assert len(cheapest_run(journal(*[FOLD_BYTES // 2] * 3), 2)) == 2


@given(st.lists(st.sampled_from([1, 1, 1, 1, 3, 20, 500, 10_000]), max_size=400), st.sampled_from([FEW, 16]))
def test_whatever_arrives_few_files_stay_and_each_byte_is_written_a_few_times(sizes: list[int], least: int) -> None:
    files: list[StoredFile] = []
    written = 0
    for rank, size in enumerate(sizes, 1):
        files, more = merged([*files, segment(size, rank)], least)
        written += more
    if not sizes:
        return
    doublings = (sum(sizes) // min(sizes)).bit_length()
    assert sum(file.bytes for file in files) == sum(sizes)
    assert written <= doublings * sum(sizes)  # each time a byte is written again its file is twice as large
    assert len(files) < least * doublings


@pytest.mark.parametrize(("least", "growth"), [(FEW, 2), (16, 3)])
def test_ten_thousand_small_files_become_a_handful(least: int, growth: int) -> None:
    files: list[StoredFile] = []
    written = most = 0
    for rank in range(10_000):
        files, more = merged([*files, segment(5 * KB, rank)], least)
        written, most = written + more, max(most, len(files))
    times = next(n for n in range(99) if growth**n >= 10_000)
    assert most < least * times
    assert written <= times * 10_000 * 5 * KB


# Folding


def worth(state_sizes: list[int], journal_size: int, age: float, *, quiet: bool) -> bool:
    state = DatasetState(YEARLY, None, tuple(partition("2026", place, size) for place, size in enumerate(state_sizes)))
    return worth_folding(state, [segment(journal_size)], age, Rules(16, 3600), quiet=quiet)


def test_what_is_cheap_is_folded_in_a_quiet_moment() -> None:
    assert worth([16 * MB], MB, 0, quiet=True)
    assert not worth([16 * MB], MB, 0, quiet=False)
    assert not worth([17 * MB], MB, 0, quiet=True)


def test_a_full_journal_is_folded_at_once_where_that_is_cheap() -> None:
    assert worth([FULL_BYTES], FULL_BYTES, 0, quiet=False)
    assert not worth([17 * FULL_BYTES], FULL_BYTES, 0, quiet=False)
    assert worth([99 * FULL_BYTES], FOLD_BYTES, 0, quiet=False)  # one step takes no more: waiting makes it no cheaper


def test_what_is_dear_waits_in_proportion() -> None:
    assert worth([16 * MB], MB, 3600, quiet=False)
    assert not worth([32 * MB], MB, 3600, quiet=True)
    assert not worth([32 * MB], MB, 7199, quiet=True)
    assert worth([32 * MB], MB, 7200, quiet=False)


def test_the_cost_counts_the_partitions_that_are_touched() -> None:
    dataset = canonical("bars_1d", calendar="XSHG", buckets=4)
    there = tuple(partition(period, bucket, MB) for period in ("2025", "2026", "2027") for bucket in range(4))
    state = DatasetState(dataset, None, there)
    one = segment(MB, symbols=("000001.SZ",))
    assert cost(state, [one]) == 1
    assert cost(state, [one, segment(MB, 2, (DAY - 365, DAY))]) == 2 / 2
    assert cost(state, [segment(MB, symbols=tuple(f"{number:06}.SZ" for number in range(99)))]) == 4


def test_the_oldest_that_fit_in_memory_are_folded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "FOLD_BYTES", 10)
    assert prefix(journal(4, 6, 1)) == journal(4, 6)
    assert prefix(journal(11, 1)) == journal(11)


@given(st.text(min_size=1, max_size=12), st.integers(1, 64))
def test_a_symbol_has_one_bucket(symbol: str, buckets: int) -> None:
    assert 0 <= bucket_of(symbol, buckets) < buckets
    assert bucket_of(symbol, 1) == 0


def test_buckets_are_the_same_in_every_process_and_release() -> None:
    assert [bucket_of(symbol, 64) for symbol in ("000001.SZ", "300750.SZ", "MSFT.US")] == [0, 14, 62]
