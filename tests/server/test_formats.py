"""Stores that older releases wrote, kept as they were: each opens, says what it said, and goes on."""

from __future__ import annotations

import sqlite3
import tarfile
from datetime import date
from pathlib import Path

import pytest
from tests.conftest import read, write

from fletching_schemas import Action
from fletching_schemas.errors import HistoryGone, StoreVersion
from fletching_server import Engine, open_engine
from fletching_server.database import FORMAT_VERSION
from fletching_server.testing import ManualClock

STORES = sorted((Path(__file__).parents[1] / "formats").glob("format-*.tar.gz"))
SYMBOLS = ["000001.SZ", "600198.SH"]
FIRST, LAST = date(2026, 10, 8), date(2026, 10, 21)
MINE = [
    ("a", date(2025, 12, 31), 5),
    ("a", date(2026, 1, 1), 10),
    ("a", date(2026, 1, 2), 3),
    ("b", date(2025, 12, 30), 6),
    ("b", date(2026, 1, 1), 2),
    ("b", date(2026, 1, 2), 4),
]


def mine(engine: Engine, **asked: object) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in read(engine, "mine", **asked).to_pylist()]


@pytest.fixture(params=STORES, ids=lambda path: path.name.split(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "store", filter="data")
    return tmp_path / "store"


def test_there_is_a_store_of_every_older_format() -> None:
    assert [path.name for path in STORES] == [f"format-{number}.tar.gz" for number in range(1, FORMAT_VERSION)]


def test_an_older_store_says_what_it_said_and_goes_on(old: Path, clock: ManualClock) -> None:
    with open_engine(old, ["sim"], clock=clock) as engine:
        assert engine.verify() == []
        assert mine(engine) == MINE
        bars = read(engine, symbols=SYMBOLS, start=FIRST, end=LAST, on_miss="error")  # all of it is covered still
        assert bars.num_rows == 20
        before = engine.store.state("mine").generation
        write(engine, "mine", [{"id": "a", "day": date(2026, 1, 1), "x": 11}])
        engine.act(Action.COMPACT, {"dataset": "mine"})
        assert mine(engine, as_of=before) == MINE
        assert (11,) in {row[2:] for row in mine(engine)}
        with pytest.raises(HistoryGone, match="goes back to generation"):
            mine(engine, as_of=1)
    with open_engine(old, ["sim"], clock=clock) as again:
        assert again.verify() == []
        assert mine(again, as_of=before) == MINE
        assert read(again, symbols=SYMBOLS, start=FIRST, end=LAST, on_miss="error").equals(bars)


def test_a_newer_store_is_refused_and_left_as_it_is(old: Path, clock: ManualClock) -> None:
    with sqlite3.connect(old / "catalogue.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
    connection.close()
    before = sorted(path.name for path in old.rglob("*"))
    with pytest.raises(StoreVersion, match=f"format 99, this version reads format {FORMAT_VERSION}"):
        open_engine(old, ["sim"], clock=clock)
    assert set(before) <= {path.name for path in old.rglob("*")}
