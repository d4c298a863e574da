"""The recorded traces are read as they are meant: as many requests and objects as their page says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import key_traces, peers_policies
from benchmarks.key_traces import FOLDER, PACKED, KeyTrace

# From the page beside the traces.
COUNTS = {
    "lirs multi1": (15_858, 2_606),
    "lirs multi2": (26_311, 5_684),
    "lirs cs": (6_781, 1_409),
    "lirs gli": (6_015, 2_529),
    "lirs ps": (10_448, 3_083),
    "lirs 2_pools": (100_000, 9_939),
    "cache2k web07": (76_118, 20_484),
    "cache2k orm-night": (5_000_000, 86_466),
    "corda": (135_702, 90_468),
    "ARC P3": (3_912_296, 762_543),
}
EXTENTS = "ARC P3, extents"
FILES = {name: (file, reader) for name, file, reader in key_traces._FILES}


def read(name: str) -> KeyTrace:
    file, reader = FILES[name]
    if not (FOLDER / file).exists():
        pytest.skip(f"the trace {name} is not beside this checkout (../shared/traces)")
    return reader(name, FOLDER / file)


def test_every_file_has_its_counts_here() -> None:
    assert FILES.keys() == {*COUNTS, EXTENTS}


@pytest.mark.parametrize("name", COUNTS)
def test_a_trace_has_the_requests_and_objects_that_its_page_says(name: str) -> None:
    trace = read(name)
    assert (len(trace.keys), trace.working_set()) == COUNTS[name]
    _, first = np.unique(trace.keys, return_index=True)
    assert (np.diff(first) > 0).all()  # numbered by first use


def test_extents_as_objects_have_unequal_bytes() -> None:
    trace = read(EXTENTS)
    assert len(np.unique(trace.keys)) == 59_976
    assert trace.sizes.sum() == 512 * COUNTS["ARC P3"][0]


def test_a_packed_trace_says_when_each_object_is_used_next(tmp_path: Path) -> None:
    KeyTrace("small", np.array([0, 1, 0]), np.array([5, 7, 5]), sized=True).pack(tmp_path / "trace")
    assert np.fromfile(tmp_path / "trace", PACKED).tolist() == [(0, 1, 5, 2), (1, 2, 7, -1), (2, 1, 5, -1)]
    assert PACKED == peers_policies.PACKED  # of a child that cannot import ours


def test_a_trace_that_is_not_there_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(key_traces, "FOLDER", tmp_path)
    monkeypatch.setattr(key_traces, "DESKS", ())
    assert list(key_traces.traces()) == []
    assert "lirs multi1 is left out: there is no caffeine/lirs/multi1.trace.gz" in capsys.readouterr().out
