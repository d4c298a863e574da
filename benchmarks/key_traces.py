"""Traces of keys, from real systems and from the made-up desk: which object each request wants, and how large it is."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.desk import profiles, trace
from fletching_server.clairvoyant import next_uses

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
FOLDER: Final = Path(__file__).resolve().parents[2] / "shared" / "traces"
DESKS: Final = ("desk-a", "no-pattern", "regime-shift")
_BLOCK: Final = 512  # bytes
# libCacheSim's oracleGeneral, which every peer reads: requests as they come, with the next use of the same object.
PACKED: Final = np.dtype([("second", "<u4"), ("key", "<u8"), ("bytes", "<u4"), ("next", "<i8")])


@dataclass(frozen=True, eq=False)
class KeyTrace:
    """One trace; *keys* are numbered by first use. Where all objects count the same, *sizes* are ones."""

    name: str
    keys: Numbers
    sizes: Numbers
    sized: bool
    made_up: bool = False

    def working_set(self) -> int:
        """Return the bytes of all different objects: where they count the same, how many there are."""
        _, first = np.unique(self.keys, return_index=True)
        return int(self.sizes[first].sum())

    def cut(self, requests: int) -> KeyTrace:
        """Return the first *requests*."""
        return KeyTrace(self.name, self.keys[:requests], self.sizes[:requests], self.sized, self.made_up)

    def pack(self, path: Path) -> None:
        """Write the trace for the peers; keys start at 1, and -1 says that there is no next use."""
        packed = np.empty(len(self.keys), PACKED)
        later = next_uses(self.keys)
        packed["second"] = np.arange(len(self.keys))
        packed["key"] = self.keys + 1
        packed["bytes"] = self.sizes
        packed["next"] = np.where(later == len(later), -1, later)
        packed.tofile(path)


def traces() -> Iterator[KeyTrace]:
    """Yield all traces that are there, and say of which files there are none."""
    for name, file, reader in _FILES:
        path = FOLDER / file
        if path.exists():
            yield reader(name, path)
        else:
            print(f"the trace {name} is left out: there is no {file} in {FOLDER}; the others are measured without it")
    for profile in DESKS:
        yield from _desk(profile)


def _numbered(keys: Any) -> Numbers:
    """Return keys as numbers in the order of their first use."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    places = np.empty(len(first), np.int64)
    places[first.argsort()] = np.arange(len(first))
    return np.asarray(places[inverse.ravel()])


def _unsized(name: str, keys: Any) -> KeyTrace:
    return KeyTrace(name, _numbered(keys), np.ones(len(keys), np.int64), sized=False)


def _lirs(name: str, path: Path) -> KeyTrace:
    with gzip.open(path, "rt") as lines:
        return _unsized(name, np.array([int(key) for line in lines if (key := line.strip()) not in {"", "*"}]))


def _integers(name: str, path: Path, *, kind: str) -> KeyTrace:
    with (lzma.open if path.suffix == ".xz" else gzip.open)(path) as file:
        return _unsized(name, np.frombuffer(file.read(), kind).astype(np.int64))


def _extents(path: Path) -> tuple[Numbers, Numbers]:
    """Return first block and number of blocks of each line."""
    with pa.input_stream(str(path), compression="zstd") as stream:
        fields = np.array(stream.read().split(), np.int64).reshape(-1, 4)
    return fields[:, 0], fields[:, 1]


def _blocks(name: str, path: Path) -> KeyTrace:
    first, count = _extents(path)
    inside = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    return _unsized(name, np.repeat(first, count) + inside)


def _unequal(name: str, path: Path) -> KeyTrace:
    first, count = _extents(path)
    return KeyTrace(name, _numbered(first * 1024 + count), count * _BLOCK, sized=True)


def _desk(profile: str) -> Iterator[KeyTrace]:
    """Yield what a desk reads, and what of it somebody waits for, as partitions with their bytes."""
    frame = trace.simulate(profiles.load(profile), seed=1)
    waited = frame.filter(pl.col("profile") != trace.BATCH)
    for name, rows in ((profile, frame), (f"{profile}, interactive", waited)):
        keys = rows.select(pl.struct(trace.KEY).rank("dense")).to_series().to_numpy()
        yield KeyTrace(name, _numbered(keys), rows["bytes"].to_numpy(), sized=True, made_up=True)


_Reader = Callable[[str, Path], KeyTrace]
_FILES: Final[tuple[tuple[str, str, _Reader], ...]] = (
    *((f"lirs {name}", f"caffeine/lirs/{name}.trace.gz", _lirs) for name in ("multi1", "multi2", "cs", "gli", "ps", "2_pools")),
    ("cache2k web07", "caffeine/cache2k/web07.trace.xz", partial(_integers, kind=">i4")),
    ("cache2k orm-night", "caffeine/cache2k/orm-night.trace.xz", partial(_integers, kind=">i4")),
    ("corda", "caffeine/corda/trace_vaultservice.gz", partial(_integers, kind=">i8")),
    ("ARC P3", "arc/P3.lis.zst", _blocks),
    ("ARC P3, extents", "arc/P3.lis.zst", _unequal),
)
