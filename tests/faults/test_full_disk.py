"""A disk that is full: an error that says so, nothing lost, and work goes on once there is room."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, expected, read, weekdays, write

from fletching_schemas import Action, canonical
from fletching_schemas.errors import StoreUnwritable

DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder of 3 MB."""
    folder = tmp_path / "store"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Take all room that is left, and return the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return ballast


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk: Path, open_store: Opener) -> None:
    source = TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS, DAYS))
    engine = open_store(source)
    write(engine, "mine", [{"id": "a", "day": DAYS[0], "x": 1}], keys=["id", "day"])
    before = read(engine, symbols=SYMBOLS[:2], start=DAYS[0], end=DAYS[4])
    ballast = fill_up(small_disk)
    for _ in range(2):
        with pytest.raises(StoreUnwritable, match="room"):
            write(engine, "mine", [{"id": "b", "day": DAYS[1], "x": 2}])
        with pytest.raises(StoreUnwritable, match="room"):
            read(engine, symbols=SYMBOLS[2], start=DAYS[0], end=DAYS[4])
    with pytest.raises(StoreUnwritable, match="room"):
        engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert read(engine, symbols=SYMBOLS[:2], start=DAYS[0], end=DAYS[4]).equals(before)
    assert read(engine, "mine").num_rows == 1
    ballast.unlink()
    write(engine, "mine", [{"id": "b", "day": DAYS[1], "x": 2}])
    table = read(engine, symbols=SYMBOLS[:3], start=DAYS[0], end=DAYS[4])
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS[:3], DAYS[0], DAYS[4]))
    again = open_store.again(engine, source)
    assert again.verify() == []
    assert read(again, "mine").column("x").to_pylist() == [1, 2]
    assert read(again, symbols=SYMBOLS[:3], start=DAYS[0], end=DAYS[4], on_miss="error").equals(table)
    again.close()
    open_store.finish()


def test_a_disk_that_fills_while_it_is_written_leaves_whole_writes_only(small_disk: Path, open_store: Opener) -> None:
    engine = open_store()
    spare = small_disk / "spare"
    spare.write_bytes(b"x" * (256 << 10))
    acknowledged = 0
    chance = random.Random(5)  # numbers that do not compress
    days = pa.array(range(4000), pa.int32()).cast(pa.date32())

    def write_on() -> None:
        nonlocal acknowledged
        while acknowledged < 1000:
            values = pa.array([chance.getrandbits(62) for _ in range(4000)], pa.int64())
            rows = pa.table({"id": [f"{acknowledged:03}"] * 4000, "day": days, "x": values})
            write(engine, "mine", rows, keys=["id", "day"])
            acknowledged += 1

    with pytest.raises(StoreUnwritable, match="room"):
        write_on()
    assert acknowledged > 3
    spare.unlink()  # what the next start needs
    again = open_store.again(engine)
    assert again.verify() == []
    assert read(again, "mine").num_rows == acknowledged * 4000
    again.close()
    open_store.finish()
