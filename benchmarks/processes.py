"""What processes take, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def proportional_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size of *pids* together: a page that n processes share counts 1/n for each."""
    return sum(_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids) << 10


def resident_bytes(pid: int) -> int:
    """Return what of *pid* is in memory, shared pages included."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:") << 10


def peak_bytes() -> int:
    """Return the most of this process that was in memory at a time; ``ru_maxrss`` is its parent's, where that was larger."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM:") << 10


def descriptors(pid: int) -> int:
    """Return how many files and sockets *pid* has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def available_bytes() -> int:
    """Return what can be taken without swapping."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable:") << 10


def _kilobytes(path: Path, name: str) -> int:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
