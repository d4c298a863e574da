"""A disk that is full: an error that says so, nothing lost, and work goes on once there is room."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, expected, read, weekdays, write

from fletching_schemas import Action, canonical
from fletching_schemas.errors import StoreUnwritable
from fletching_server import Engine

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


def rows(*numbers: int, **more: int) -> list[dict[str, Any]]:
    return [{"id": f"s{number}", "day": DAYS[number], "x": number, **more} for number in numbers]


def fetch(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS[3], start=DAYS[0], end=DAYS[4])


# What a user does to ``mine``, which holds 0 to 3, and to the bars of two symbols; and what mine holds once it is done.
OPERATIONS: dict[str, tuple[Callable[[Engine], object], list[int] | None]] = {
    "upsert": (lambda engine: write(engine, "mine", rows(3, 4)), [0, 1, 2, 3, 4]),
    "append": (lambda engine: write(engine, "mine", rows(5), mode="append"), [0, 1, 2, 3, 5]),
    "replace": (lambda engine: write(engine, "mine", rows(6), mode="replace"), [6]),
    "evolve": (lambda engine: write(engine, "mine", rows(7, y=1), evolve=True), [0, 1, 2, 3, 7]),
    "create": (lambda engine: write(engine, "yours", rows(8), keys=["id", "day"]), [0, 1, 2, 3]),
    "fill": (fetch, [0, 1, 2, 3]),
    "compact": (lambda engine: engine.act(Action.COMPACT, {"dataset": "mine"}), [0, 1, 2, 3]),
    "vacuum": (lambda engine: engine.act(Action.VACUUM, {"history_days": 0}), [0, 1, 2, 3]),
    "retention": (lambda engine: engine.act(Action.RETENTION, {"dataset": "mine", "history_days": 1}), [0, 1, 2, 3]),
    "invalidate": (lambda engine: engine.act(Action.INVALIDATE, {"dataset": "bars_1d"}), [0, 1, 2, 3]),
    "delete": (lambda engine: engine.act(Action.DELETE, {"dataset": "mine"}), None),
}
SMALL = {"vacuum", "retention", "invalidate", "delete"}  # the log may have room for them from before


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_a_full_disk_stops_goes_on_once_there_is_room(
    small_disk: Path, open_store: Opener, source: TableSource, name: str
) -> None:
    operation, after = OPERATIONS[name]
    engine = open_store(source)
    generations = [write(engine, "mine", rows(number), keys=["id", "day"]).generation for number in range(2)]
    engine.act(Action.COMPACT, {"dataset": "mine"})
    generations += [write(engine, "mine", rows(number)).generation for number in (2, 3)]
    bars = read(engine, symbols=SYMBOLS[:2], start=DAYS[0], end=DAYS[4])
    ballast, done = fill_up(small_disk), False
    for pages in (0, 0, 1, 1, 1, 1, 2, 2, 4, 8):  # so that room ends at one step, and at the next: a file, the log, the database
        os.truncate(ballast, ballast.stat().st_size - pages * 4096)
        if done := happens(operation, engine):
            assert pages or name in SMALL, f"{name} was acknowledged without room"
            break
        assert numbers(engine) == [0, 1, 2, 3]
        assert [numbers(engine, as_of=generation) for generation in generations] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
        assert read(engine, symbols=SYMBOLS[:2], start=DAYS[0], end=DAYS[4], on_miss="cached").equals(bars)
    ballast.unlink()
    if not done:
        operation(engine)  # without a restart
    assert numbers(engine) == after
    if after is not None:
        write(engine, "mine", rows(9))
        after = [*after, 9]
    again = open_store.again(engine, source)
    assert again.verify() == []
    assert again.store.orphans() == []
    assert numbers(again) == after
    again.close()
    open_store.finish()


def happens(operation: Callable[[Engine], object], engine: Engine) -> bool:
    """Return whether there was room for *operation*; any other trouble passes."""
    try:
        operation(engine)
    except StoreUnwritable as error:
        if "room" not in error.message:
            raise
        return False
    return True


def numbers(engine: Engine, **asked: Any) -> list[int] | None:
    """Return what ``mine`` holds; None where there is no such table."""
    return read(engine, "mine", **asked).column("x").to_pylist() if "mine" in engine.names() else None


def test_a_store_on_a_full_disk_is_not_taken_for_a_damaged_one(small_disk: Path, open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    write(engine, "mine", rows(0, 1), keys=["id", "day"])
    engine.close()
    ballast = fill_up(small_disk)
    for _ in range(2):
        with pytest.raises(StoreUnwritable, match="room"):
            open_store(source)
    ballast.unlink()
    again = open_store(source)
    assert again.verify() == []
    assert numbers(again) == [0, 1]
    assert not list(small_disk.glob("*.damaged"))
    again.close()
    open_store.finish()
