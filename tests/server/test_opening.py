"""What the start of a store costs: it follows the journal, and not the store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Opener, read, write

from fletching_schemas import Action
from fletching_server import Engine

FIRST = date(2024, 1, 1)

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else "")


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Return the paths of all files that Python opens during the test; an audit hook cannot be taken back, only silenced."""
    global _opened  # noqa: PLW0603  # the hook is the process's
    if _note not in _hooks:
        sys.addaudithook(_note)
        _hooks.append(_note)
    _opened = []
    yield _opened
    _opened = None


_hooks: list[Any] = []


def grown(open_store: Opener, partitions: int, segments: int) -> Engine:
    """Return a closed engine whose store has so many partitions, and so many writes in its journal."""
    engine = open_store(store=f"{partitions}-{segments}")
    days = [FIRST + timedelta(days=number) for number in range(partitions)]
    rows = [{"id": id_, "day": day, "value": 1.0} for day in days for id_ in "abc"]
    write(engine, "mine", rows, keys=["id", "day"], partition="day")
    engine.act(Action.COMPACT, {"dataset": "mine"})
    for number in range(segments):
        write(engine, "mine", [{"id": "a", "day": FIRST, "value": float(number)}], keys=["id", "day"])
    engine.close()
    return engine


def data_files(paths: list[str], engine: Engine) -> list[str]:
    folders = [str(engine.store.root / name) for name in ("journal", "data")]
    return [path for path in paths if any(path.startswith(folder) for folder in folders)]


@pytest.mark.parametrize(("partitions", "segments"), [(2, 3), (200, 3), (2, 30)])
def test_only_the_journal_is_read_at_the_start(open_store: Opener, opened: list[str], partitions: int, segments: int) -> None:
    engine = grown(open_store, partitions, segments)
    opened.clear()
    again = open_store(store=engine.settings.store.name)
    found = data_files(opened, engine)
    files = again.store.state("mine").files
    assert [file.kind for file in files].count("partition") == partitions
    assert set(found) == {str(engine.store.root / file.path) for file in files if file.kind == "segment"}
    assert len(found) == 3 * segments  # its digest, and twice its end: the footer and where that begins


def test_whatever_else_is_opened_does_not_grow_with_the_store(open_store: Opener, opened: list[str]) -> None:
    counts = []
    for partitions in (2, 200):
        engine = grown(open_store, partitions, 3)
        opened.clear()
        open_store(store=engine.settings.store.name)
        counts.append(len(opened))
    assert counts[1] <= counts[0]


def test_a_partition_is_checked_when_it_is_first_read(open_store: Opener, opened: list[str]) -> None:
    engine = grown(open_store, 5, 0)
    again = open_store(store=engine.settings.store.name)
    opened.clear()
    assert read(again, "mine", start=FIRST, end=FIRST).num_rows == 3
    assert {Path(path).parent.name for path in data_files(opened, engine)} == {FIRST.isoformat()}


def test_partitions_of_one_universe_share_its_symbols(open_store: Opener) -> None:
    engine = grown(open_store, 5, 0)
    again = open_store(store=engine.settings.store.name)
    assert len({id(file.symbols) for file in again.store.state("mine").files}) == 1
