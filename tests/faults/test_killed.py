"""Processes killed by SIGKILL at any moment lose nothing that they had acknowledged, and leave nothing half done.

What they do and how that is checked is in ``worker.py``. ``FLETCHING_LONG=1`` kills 10,000 times instead of 200.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = bool(os.environ.get("FLETCHING_LONG"))
KILLS = 10_000 if LONG else 200
SIDE_BY_SIDE = 2  # they wait for the disk most of the time
PER_STORE = 100  # then another begins
ROOT = Path(__file__).parents[2]


def killing(folder: Path, seed: int) -> subprocess.Popen[str]:
    """Start a parent of children that are killed; it has no thread, so it may fork."""
    packages = [ROOT, *(ROOT / folder for folder in ("schemas", "client", "server"))]  # of this tree, whatever is installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages))}
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(folder), str(PER_STORE), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, KILLS // PER_STORE, SIDE_BY_SIDE))
def test_what_was_acknowledged_is_there_after_any_kill(tmp_path: Path, first: int) -> None:
    started = [killing(tmp_path / str(seed), seed) for seed in range(first, first + SIDE_BY_SIDE)]
    told = [process.communicate()[0] for process in started]
    for process, said in zip(started, told, strict=True):
        assert process.returncode == 0, said
