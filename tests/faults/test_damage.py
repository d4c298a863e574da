"""Files that rot: what was fetched is fetched again, what a user wrote is never given up, and nothing wrong is served."""

from __future__ import annotations

import os
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, expected, read, read_info, weekdays, write

from fletching_schemas import Action, canonical
from fletching_schemas.errors import CorruptFile, StoreError
from fletching_server import Engine

FLIPS = 3000 if os.environ.get("FLETCHING_LONG") else 150
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))


@pytest.fixture
def source() -> TableSource:
    return TableSource(canonical("bars_1d", calendar="XSHG", period="month", symbols_per_call=2), bars(SYMBOLS, DAYS))


def filled(open_store: Opener, source: TableSource) -> Engine:
    """Return an engine that holds a partition, and a journal over it."""
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[:3], start=DAYS[0], end=DAYS[9])
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    read(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1])
    source.requests.clear()
    return engine


def files(engine: Engine, kind: str) -> list[Path]:
    return [engine.store.root / file.path for file in engine.store.state("bars_1d").files if file.kind == kind]


def flip(path: Path, chance: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def gone(path: Path, _chance: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip, cut, gone], ids=["flipped", "torn", "gone"])
def test_harmed_segments_are_dropped_with_the_coverage_that_rests_on_them(
    open_store: Opener, source: TableSource, harm: Any
) -> None:
    engine = filled(open_store, source)
    engine.close()
    chance = random.Random(1)
    victims = files(engine, "segment")[::2]
    for path in victims:
        harm(path, chance)
    again = open_store(source)
    assert again.verify() == []
    assert [path for path in victims if path.exists()] == []
    table, info = read_info(again, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1])
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS, DAYS[0], DAYS[-1]))
    assert info.upstream_calls > 0


@pytest.mark.parametrize("harm", [flip, cut, gone], ids=["flipped", "torn", "gone"])
def test_harmed_partitions_are_found_by_the_read_that_needs_them(open_store: Opener, source: TableSource, harm: Any) -> None:
    engine = filled(open_store, source)
    engine.close()
    (victim,) = files(engine, "partition")
    harm(victim, random.Random(2))
    again = open_store(source)
    assert len(again.verify()) >= 1
    assert read(again, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1]).equals(
        expected(source.dataset, source.rows, SYMBOLS, DAYS[0], DAYS[-1])
    )
    assert again.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [True, False], ids=["found after a restart", "while the server runs"])
def test_no_flipped_bit_is_ever_served(open_store: Opener, source: TableSource, *, restarted: bool) -> None:
    engine = filled(open_store, source)
    want = expected(source.dataset, source.rows, SYMBOLS, DAYS[0], DAYS[-1])
    chance = random.Random(3)  # which bits, not a secret
    for number in range(FLIPS if restarted else FLIPS // 2):
        victim = chance.choice(files(engine, "partition") + files(engine, "segment"))
        sound = victim.read_bytes()
        flip(victim, chance)
        if restarted:
            engine.store._trusted.clear()  # as after a restart, without the time that it takes
        engine.act(Action.EVICT, {})
        columns = ["symbol", "trading_date", chance.choice(["open", "close", "volume"])]
        table, info = read_info(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1], columns=columns)
        assert table.equals(want.select(columns)), f"flip {number} was served"
        assert info.upstream_calls > 0 or not restarted, f"flip {number} went unnoticed"
        if victim.exists():  # the bit lies where nobody looked
            victim.write_bytes(sound)
        if number % 10 == 0:
            engine.act(Action.COMPACT, {"dataset": "bars_1d"})


@pytest.mark.parametrize("place", [-1, -5, -9, -40, -200])
def test_a_footer_that_breaks_while_the_server_runs_is_found_out(open_store: Opener, source: TableSource, place: int) -> None:
    engine = filled(open_store, source)
    (victim,) = files(engine, "partition")
    raw = bytearray(victim.read_bytes())
    raw[place] ^= 0x40
    victim.write_bytes(raw)
    engine.act(Action.EVICT, {})
    table, info = read_info(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1])
    assert table.equals(expected(source.dataset, source.rows, SYMBOLS, DAYS[0], DAYS[-1]))
    assert info.upstream_calls > 0


def test_a_flipped_bit_in_a_users_table_is_told_and_the_file_is_kept(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", [{"id": "a", "day": DAYS[0], "x": 1}], keys=["id", "day"])
    write(engine, "other", [{"id": "a", "day": DAYS[0], "x": 1}], keys=["id", "day"])
    (file,) = engine.store.state("mine").files
    path = engine.store.root / file.path
    sound = path.read_bytes()
    engine.close()
    chance = random.Random(4)
    for _ in range(3):
        path.write_bytes(sound)
        flip(path, chance)
        harmed = path.read_bytes()
        again = open_store()
        for _ in range(2):
            with pytest.raises(CorruptFile, match="restore this file from a backup, or delete the table mine"):
                read(again, "mine")
        with pytest.raises(CorruptFile):
            again.act(Action.COMPACT, {"dataset": "mine"})
        assert read(again, "other").num_rows == 1
        again.close()
        assert path.read_bytes() == harmed
    path.write_bytes(sound)
    assert read(open_store(), "mine").to_pylist() == [{"id": "a", "day": DAYS[0], "x": 1}]


@pytest.mark.parametrize("harm", ["missing", "empty", "garbage", "cut"])
def test_without_its_catalogue_a_store_is_refused_and_kept_as_it_is(open_store: Opener, source: TableSource, harm: str) -> None:
    engine = filled(open_store, source)
    engine.close()
    catalogue = engine.store.root / "catalogue.sqlite"
    sound = catalogue.read_bytes()
    if harm == "missing":
        catalogue.unlink()
    else:
        catalogue.write_bytes({"empty": b"", "garbage": b"garbage! " * 999, "cut": sound[:50]}[harm])
    data = {path: path.read_bytes() for path in engine.store.root.rglob("*.parquet")}
    for _ in range(2):
        with pytest.raises(StoreError, match="catalogue"):
            open_store(source)
    assert {path: path.read_bytes() for path in engine.store.root.rglob("*.parquet")} == data
    catalogue.write_bytes(sound)
    assert read_info(open_store(source), symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1])[1].upstream_calls == 0


def test_a_lost_segment_does_not_bring_back_what_it_had_replaced(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[0], start=DAYS[0], end=DAYS[4])
    source.rows.clear()
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d"})
    assert read(engine, symbols=SYMBOLS[0], start=DAYS[0], end=DAYS[4]).num_rows == 0
    engine.close()
    (later,) = [engine.store.root / file.path for file in engine.store.state("bars_1d").files if not file.rows]
    later.unlink()
    again = open_store(source)
    table, info = read_info(again, symbols=SYMBOLS[0], start=DAYS[0], end=DAYS[4])
    assert (table.num_rows, info.upstream_calls) == (0, 1)
