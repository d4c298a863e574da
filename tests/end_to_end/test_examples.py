"""What is offered as an example runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--workers", "2", "--symbols", "20", "--years", "2"]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_that_are_spawned_or_forked_sweep_one_universe(method: str) -> None:
    command = [sys.executable, "examples/sweep.py", *SMALL, "--method", method]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *scores, told = done.stdout.splitlines()
    assert len(scores) == 6
    assert all(line.endswith("% a day") for line in scores)
    assert told.startswith("2 workers, 9,760 bars: ")
