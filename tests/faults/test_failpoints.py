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
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from tests.conftest import Opener, read, write
from tests.faults.scenario import Ledger, check, heard, listed, run, run_with_failures, tell

from fletching_schemas import Action
from fletching_schemas.errors import StoreUnwritable
from fletching_server import failpoints
from fletching_server.catalogue import _Pending
from fletching_server.changes import Write
from fletching_server.failpoints import ENVIRONMENT, NAMES

SEEDS = 20 if os.environ.get("FLETCHING_LONG") else 1
ROOT = Path(__file__).parents[2]


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
    assert [name for name in NAMES if not reached()[name]] == []
    assert len(NAMES) >= 30


@pytest.mark.parametrize("kind", ["eio", "enospc"])
@pytest.mark.parametrize("name", NAMES)
def test_where_the_disk_fails_nothing_is_lost_and_work_goes_on(folder: Path, name: str, kind: str) -> None:
    for number, moment in enumerate(moments(name, kind)):
        root, ledger = folder / f"store{number}", Ledger()
        with failpoints.armed(name, kind, moment), failpoints.traced() as found:
            run_with_failures(root, ledger)
        assert found[name] >= moment
        check(root, ledger)


def dying(root: Path, place: Path, name: str, moment: int) -> None:
    """Run the scenario in a process of its own, up to the panic."""
    with failpoints.armed(name, "panic", moment):
        run(root, tell(place))


@pytest.mark.parametrize("name", NAMES)
def test_where_the_process_dies_nothing_is_lost_and_work_goes_on(folder: Path, name: str) -> None:
    context = get_context("forkserver")  # it imports once, and each child is forked before any thread runs
    context.set_forkserver_preload(["tests.faults.scenario"])
    for number, moment in enumerate(moments(name, "panic")):
        root, told = folder / f"store{number}", folder / f"told{number}"
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


# An error of COMMIT leaves open what became of it.


def test_a_commit_that_fails_after_it_was_made_is_there_at_once_and_after_a_restart(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", listed({"a 2": 1}), keys=["id", "day"])
    read(engine, "mine")
    for mode, rows in (("append", {"b 3": 2}), ("upsert", {"a 2": 3}), ("replace", {"c 4": 4})):
        with failpoints.armed("catalogue.committed", "eio"), pytest.raises(StoreUnwritable, match="disk I/O error"):
            write(engine, "mine", listed(rows), mode=mode)
        held = read(engine, "mine").to_pylist()
        assert held == {"append": listed({"a 2": 1, "b 3": 2}), "upsert": listed({"a 2": 3, "b 3": 2})}.get(mode, listed(rows))
        assert engine.verify() == []
        engine = open_store.again(engine)
        assert read(engine, "mine").to_pylist() == held
        assert engine.store.orphans() == []


def test_commits_that_share_a_failed_transaction_are_not_made_twice(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", listed({"a 2": 1}), keys=["id", "day"])
    catalogue = engine.store.catalogue
    dataset = engine.schema("mine")
    one, two, three = (Write(name, (), replace(dataset, name=name), new=True) for name in ("one", "two", "three"))
    pending = [_Pending(one), _Pending(two)]
    with failpoints.armed("catalogue.committed", "enospc"):
        catalogue._commit_batch(pending)
    assert [type(each.error) for each in pending] == [StoreUnwritable] * 2  # LookupError, had they been tried again
    assert engine.names() == ["mine", "one", "two"]
    with failpoints.armed("catalogue.commit", "enospc"):
        catalogue._commit_batch([_Pending(three)])
    assert engine.names() == ["mine", "one", "two"]
    write(engine, "mine", listed({"b 3": 2}))
    assert read(engine, "mine").num_rows == 2


def test_after_a_failed_sync_of_the_catalogue_nothing_is_committed_and_reads_go_on(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", listed({"a 2": 1}), keys=["id", "day"])
    with failpoints.armed("catalogue.sync", "eio"), pytest.raises(StoreUnwritable):
        write(engine, "mine", listed({"a 2": 2}))
    with pytest.raises(StoreUnwritable, match="syncing the catalogue failed"):
        write(engine, "mine", listed({"a 2": 3}))
    with pytest.raises(StoreUnwritable, match="open the store again"):
        engine.act(Action.DELETE, {"dataset": "mine"})
    assert read(engine, "mine").to_pylist() == listed({"a 2": 1})
    engine = open_store.again(engine)
    write(engine, "mine", listed({"a 2": 3}))
    assert read(engine, "mine").to_pylist() == listed({"a 2": 3})


@pytest.mark.parametrize("kind", ["eio", "enospc"])
def test_a_file_that_cannot_be_removed_fails_nobody_and_leaves_with_the_next_start(open_store: Opener, kind: str) -> None:
    engine = open_store(history_days=0)
    write(engine, "mine", listed({"a 2": 1}), keys=["id", "day"])
    with failpoints.armed("retire.unlink", kind):
        write(engine, "mine", listed({"b 3": 2}), mode="replace")
    assert len(engine.store.orphans()) == 1
    with failpoints.armed("sweep.unlink", kind):
        engine = open_store.again(engine)
    assert read(engine, "mine").to_pylist() == listed({"b 3": 2})
    engine = open_store.again(engine)
    assert engine.store.orphans() == []
