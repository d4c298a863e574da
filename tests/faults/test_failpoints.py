"""Every step that persists something may fail or be the last: nothing acknowledged is lost, and work goes on.

Each failpoint is tried once with each kind of failure; ``FLETCHING_LONG=1`` tries twenty times, at other moments.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

import pytest
from tests.faults.scenario import AWAITED, Ledger, check, heard, run, run_with_failures, tell

from fletching_server import failpoints
from fletching_server.failpoints import ENVIRONMENT, NAMES

SEEDS = 20 if os.environ.get("FLETCHING_LONG") else 1
ROOT = Path(__file__).parents[2]
WAITED = {name for name in NAMES if name.partition(".")[0] in AWAITED}
TRIED = [name for name in NAMES if name not in WAITED]


@functools.cache
def reached() -> Mapping[str, int]:
    """Return how often the scenario comes by each failpoint."""
    with tempfile.TemporaryDirectory() as folder, failpoints.traced() as found:
        run(Path(folder) / "store", Ledger().hear)
    return Counter(found)


def moments(name: str, kind: str) -> list[int]:
    """Return at which of its times *name* fails: one for each seed."""
    return [random.Random(f"{name} {kind} {seed}").randint(1, reached()[name]) for seed in range(SEEDS)]


def test_the_scenario_comes_by_every_failpoint() -> None:
    assert {name for name in NAMES if not reached()[name]} == WAITED
    assert len(TRIED) >= 30


@pytest.mark.parametrize("kind", ["eio", "enospc"])
@pytest.mark.parametrize("name", TRIED)
def test_where_the_disk_fails_nothing_is_lost_and_work_goes_on(tmp_path: Path, name: str, kind: str) -> None:
    for number, moment in enumerate(moments(name, kind)):
        root, ledger = tmp_path / f"store{number}", Ledger()
        with failpoints.armed(name, kind, moment), failpoints.traced() as found:
            run_with_failures(root, ledger)
        assert found[name] >= moment
        check(root, ledger)


def dying(root: Path, place: Path, name: str, moment: int) -> None:
    """Run the scenario in a process of its own, up to the panic."""
    with failpoints.armed(name, "panic", moment):
        run(root, tell(place))


@pytest.mark.parametrize("name", TRIED)
def test_where_the_process_dies_nothing_is_lost_and_work_goes_on(tmp_path: Path, name: str) -> None:
    context = get_context("forkserver")  # it imports once, and each child is forked before any thread runs
    context.set_forkserver_preload(["tests.faults.scenario"])
    for number, moment in enumerate(moments(name, "panic")):
        root, told = tmp_path / f"store{number}", tmp_path / f"told{number}"
        child = context.Process(target=dying, args=(root, told, name, moment))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        check(root, heard(told))


def test_the_environment_arms_a_process(tmp_path: Path) -> None:
    packages = [str(ROOT), *(str(ROOT / folder) for folder in ("schemas", "client", "server"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages), ENVIRONMENT: "fold.rename:panic:2,fill.open:eio:100"}
    program = """
import sys
from pathlib import Path
from tests.faults.scenario import run, tell
run(Path(sys.argv[1]), tell(Path(sys.argv[2])))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "store"), str(tmp_path / "told")]
    child = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    ledger = heard(tmp_path / "told")
    assert ledger.reads
    check(tmp_path / "store", ledger)


def test_an_unknown_failpoint_in_the_environment_is_refused() -> None:
    with pytest.raises(LookupError, match="there is no failpoint"):
        failpoints.arm_by("fill.close:eio")
