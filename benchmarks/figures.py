"""What a benchmark found: medians with their spread, ratios to a peer measured in the same rounds, and the machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

RESULTS: Final = Path(__file__).parent / "results"
PACKAGES: Final = ("fletching", "pyarrow", "polars", "duckdb", "grpcio", "SQLAlchemy", "numpy")


@dataclass(frozen=True)
class Spread:
    """The median of some samples, the middle half of them, and the 95th percentile."""

    median: float
    p25: float
    p75: float
    p95: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the spread of *samples*."""
        p25, median, p75, p95 = (float(f"{value:.5g}") for value in np.percentile(samples, [25, 50, 75, 95]))
        return cls(median, p25, p75, p95, len(samples))

    def __str__(self) -> str:
        return f"{self.median:,.4g}" + (f" ({self.p25:,.4g}-{self.p75:,.4g})" if self.samples > 1 else "")


@dataclass(frozen=True)
class Row:
    """One line of the table. ``ratio`` is taken round by round; ``limit`` says what the line runs into."""

    what: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    ratio: Spread | None = None
    target: str = ""
    met: bool | None = None
    limit: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    peer_is: str = ""
    ratio_is: str = "ours / peer"


def compared(samples: Mapping[str, Sequence[float]], ours: str, peer: str) -> tuple[Spread, Spread, Spread]:
    """Return the spread of *ours*, of *peer*, and of their ratio in each round."""
    ratios = [one / other for one, other in zip(samples[ours], samples[peer], strict=True)]
    return Spread.of(samples[ours]), Spread.of(samples[peer]), Spread.of(ratios)


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Return what each contender measured in each round; the order turns around every round, so drift cancels out."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_up, rounds):
        for name in sorted(contenders, reverse=bool(turn % 2)):
            value = contenders[name]()
            if turn >= 0:
                samples[name].append(value)
    return samples


def scaled(rounds: int, effort: float) -> int:
    """Return how many rounds *effort* pays for, at least five."""
    return max(5, round(rounds * effort))


def seconds(call: Callable[[], object]) -> float:
    """Return how long *call* takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def environment() -> dict[str, Any]:
    """Return on what and with what this was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name.lower(): version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(name: str, machine: Mapping[str, Any], rows: Sequence[Row]) -> Path:
    """Write the rows of benchmark *name* to ``results/<name>.json`` and return its path."""
    path = RESULTS / f"{name}.json"
    document = {"benchmark": name, "environment": machine, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return path
