"""Files that rot: what was fetched is fetched again, what a user wrote is never given up, and nothing wrong is served."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NOW, SYMBOLS, Opener, TableSource, bars, expected, read, read_info, weekdays, write

from fletching_schemas import Action, canonical
from fletching_schemas.errors import CorruptFile, HistoryGone, StoreError
from fletching_server import Engine, open_engine
from fletching_server.testing import ManualClock

DAMAGES = 100_000 if os.environ.get("FLETCHING_LONG") else 300
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


# Anything, anywhere: what a store says after damage is right, or an error of ours; it is never silently wrong.


@dataclass(frozen=True)
class Template:
    """A store as it was closed, or as a killed process left it, what it must say, and an earlier copy of its catalogue."""

    root: Path
    told: dict[str, dict[int, list[dict[str, Any]]]]  # by dataset and generation
    earlier: Path


def template(folder: Path, source: TableSource, *, killed: bool) -> Template:
    """Make a store with partitions, segments, the past of both, and columns that came later."""
    clock = ManualClock(NOW)
    root, earlier = folder / "template", folder / "earlier.sqlite"
    chosen: dict[str, Any] = {"query_memory": "64MiB", "threads": 1, "compact_segments": 10_000, "compact_idle_seconds": 3600}
    engine = open_engine(folder / "made", [source], clock=clock, **chosen)
    tables: dict[str, dict[int, list[dict[str, Any]]]] = {"mine": {}, "bars_1d": {}}
    chance = random.Random(6)  # numbers that do not compress
    for step in range(9):
        cells = chance.sample([(f"s{number:02}", day) for number in range(40) for day in DAYS], 150)
        rows = [{"id": name, "day": day, "x": chance.getrandbits(60)} for name, day in cells]
        rows = [row | ({"y": chance.random()} if step > 3 else {}) for row in rows]
        write(engine, "mine", rows, keys=["id", "day"], evolve=step == 4, mode="replace" if step == 5 else "upsert")
        read(engine, symbols=SYMBOLS[step % 3 : step % 3 + 2], start=DAYS[0], end=DAYS[min(step + 2, len(DAYS) - 1)])
        for name, told in tables.items():
            told[engine.store.state(name).generation] = read(engine, name, on_miss="cached").to_pylist()
        if step in (2, 4, 6):
            for name in ("mine", "bars_1d"):
                engine.act(Action.COMPACT, {"dataset": name})
        if step == 7:
            with closing(sqlite3.connect(engine.store.root / "catalogue.sqlite")) as catalogue:
                catalogue.execute("VACUUM INTO ?", [str(earlier)])
        clock.advance(hours=2)
    if killed:
        shutil.copytree(engine.store.root, root)
    engine.close()
    if not killed:
        (folder / "made").rename(root)
    return Template(root, tables, earlier)


def several(path: Path, chance: random.Random) -> None:
    for _ in range(chance.randrange(2, 20)):
        flip(path, chance)


def zeroed(path: Path, chance: random.Random) -> None:
    raw, size = bytearray(path.read_bytes()), chance.choice([16, 512, 4096])
    start = chance.randrange(len(raw)) // size * size
    length = len(raw[start : start + size])
    raw[start : start + length] = bytes(length)
    path.write_bytes(raw)


def copied(path: Path, chance: random.Random) -> None:
    """Put a block of the file where another one was."""
    raw, size = bytearray(path.read_bytes()), chance.choice([64, 512, 4096])
    one, other = (chance.randrange(len(raw)) // size * size for _ in range(2))
    block = raw[one : one + size]
    raw[other : other + len(block)] = block
    path.write_bytes(raw)


def longer(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.choice([1, 24, 4096])))


def swapped(path: Path, _chance: random.Random) -> None:
    raise AssertionError(f"{path} is exchanged by whoever knows the other one")


def harm(made: Template, root: Path, chance: random.Random) -> str:
    """Damage one file of the store at *root*, and return what was done."""
    data = sorted((root / "data").rglob("*.parquet")) + sorted((root / "journal").glob("*.parquet"))
    catalogue = root / "catalogue.sqlite"
    log = root / "catalogue.sqlite-wal"
    kinds: list[Path] = [catalogue, catalogue, chance.choice(data), chance.choice(data)]
    path = chance.choice([*kinds, *([log, log] if log.exists() else [])])
    how = chance.choice([flip, flip, flip, several, zeroed, zeroed, copied, cut, longer, gone, swapped])
    before = path.read_bytes()
    if how is not swapped:
        how(path, chance)
    elif path == catalogue:
        path.write_bytes(made.earlier.read_bytes())
    elif path == log:
        path.write_bytes(b"")
    else:
        other = chance.choice([other for other in data if other != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(before)
    return f"{path.relative_to(root)} {how.__name__}"


def silently_wrong(made: Template, root: Path, source: TableSource, chance: random.Random, seen: Counter[str]) -> list[str]:
    """Open the store at *root*, read, and return what was wrong and came without an error."""
    data = {path: path.read_bytes() for path in root.rglob("*.parquet")}
    chosen: dict[str, Any] = {"query_memory": "64MiB", "threads": 1, "compact_idle_seconds": 3600}
    try:
        engine = open_engine(root, [source], clock=ManualClock(NOW + timedelta(days=1)), **chosen)
    except StoreError:
        seen["refused"] += 1
        assert {path: path.read_bytes() for path in root.rglob("*.parquet")} == data, "what was refused was changed"
        return []
    wrong = []
    with engine:
        for name, told in made.told.items():
            for generation in (*chance.sample(list(told), 2), max(told)):
                wrong += wrongly(seen, told[generation], engine, name, as_of=generation)
        wrong += wrongly(seen, list(made.told["mine"].values())[-1], engine, "mine")
        want = expected(source.dataset, source.rows, SYMBOLS, DAYS[0], DAYS[-1]).to_pylist()
        wrong += wrongly(seen, want, engine, "bars_1d", symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1])
    return wrong


def wrongly(seen: Counter[str], want: list[dict[str, Any]], engine: Engine, dataset: str, **asked: Any) -> list[str]:
    """Return what is wrong with one read: nothing, where it is right or an error of ours."""
    try:
        rows = read(engine, dataset, **asked).to_pylist()
    except (CorruptFile, HistoryGone):
        seen["told"] += 1
        return []
    seen["right"] += rows == want
    return [] if rows == want else [f"{dataset} {asked.get('as_of')}: {len(rows)} rows for {len(want)}"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["a store that was closed", "a store that a kill left"])
def test_no_damage_is_silent(tmp_path: Path, source: TableSource, *, killed: bool) -> None:
    made, wrong, seen = template(tmp_path, source, killed=killed), [], Counter[str]()
    for number in range(DAMAGES // 2):
        chance, root = random.Random(2 * number + killed), tmp_path / "damaged"
        shutil.copytree(made.root, root)
        what = harm(made, root, chance)
        wrong += [f"{number}: {what}: {each}" for each in silently_wrong(made, root, source, chance, seen)]
        shutil.rmtree(root)
    assert wrong == []
    assert min(seen[each] for each in ("refused", "told", "right")) > DAMAGES / 100, seen
