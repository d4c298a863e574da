"""A catalogue that says something else than was written is refused, and nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, read, write

from fletching_schemas import Action
from fletching_schemas.errors import StoreError
from fletching_server import Engine
from fletching_server import tables as t

DAY = date(2026, 11, 2)


@pytest.fixture
def catalogue(engine: Engine) -> Iterator[Path]:
    """Yield the catalogue of a closed store with a row or more in each table that ``harmed`` changes."""
    for number in range(3):
        write(engine, "mine", [{"id": "a", "day": DAY, "x": number}], keys=["id", "day"], key=f"key {number}")
        engine.act(Action.COMPACT, {"dataset": "mine"})
    read(engine, symbols=SYMBOLS)
    engine.close()
    path = engine.store.root / "catalogue.sqlite"
    sound = path.read_bytes()
    yield path
    path.write_bytes(sound)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE coverage SET last_day = last_day + 1 WHERE id = 1",
        "UPDATE coverage SET symbol = '000001.SH' WHERE symbol = '000001.SZ'",
        "DELETE FROM coverage WHERE id = 1",
        "INSERT INTO commits SELECT seq - 1000, dataset, at FROM commits WHERE seq = 3",
        "UPDATE files SET first_day = first_day + 64 WHERE dataset = 'bars_1d'",
        "UPDATE files SET retired = NULL WHERE retired IS NOT NULL",
        "UPDATE commits SET at = at + 4096 WHERE seq = 3",
        "UPDATE bases SET through = through + 1",
        "DELETE FROM writes WHERE key = 'key 1'",
        "UPDATE meta SET value = '2'",
        "UPDATE sums SET rows = rows + 1 WHERE name = 'datasets'",
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_told(
    catalogue: Path, open_store: Opener, source: TableSource, statement: str
) -> None:
    with closing(sqlite3.connect(catalogue)) as connection:
        connection.create_function("fingerprint", -1, lambda *_row: 0)
        connection.execute(statement)
        connection.commit()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is damaged: table .* has \d+ rows.*doctor --rebuild-catalogue"):
            open_store(source)


def test_what_the_triggers_keep_is_what_a_count_finds(engine: Engine) -> None:
    write(engine, "mine", [{"id": "a", "day": DAY, "x": 1}], keys=["id", "day"])
    read(engine, symbols=SYMBOLS)
    for action in (Action.COMPACT, Action.INVALIDATE, Action.DELETE):
        engine.act(action, {"dataset": "bars_1d"})
        assert engine.store.catalogue.integrity() == []


def test_the_statements_that_made_the_tables_count(catalogue: Path, open_store: Opener, source: TableSource) -> None:
    with closing(sqlite3.connect(catalogue)) as connection:
        connection.execute("DROP TRIGGER coverage_delete")
        connection.commit()
    with pytest.raises(StoreError, match="table sqlite_master"):
        open_store(source)


def test_an_index_that_lost_a_row_is_told(catalogue: Path, open_store: Opener, source: TableSource) -> None:
    with closing(sqlite3.connect(catalogue)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        hidden = "UPDATE sqlite_master SET sql = ? WHERE name = 'ix_coverage_file'"
        (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'ix_coverage_file'").fetchone()
        connection.execute(hidden, [f"{made} WHERE symbol > 'zzz'"])
        connection.commit()
    with closing(sqlite3.connect(catalogue)) as connection:
        connection.execute("REINDEX ix_coverage_file")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(hidden, [made])
        connection.commit()
    with pytest.raises(StoreError, match="index ix_coverage_file"):
        open_store(source)


def test_an_older_catalogue_in_place_of_the_present_one_is_told(open_store: Opener, engine: Engine, source: TableSource) -> None:
    write(engine, "mine", [{"id": "a", "day": DAY, "x": 1}], keys=["id", "day"])
    again = open_store.again(engine, source)
    path = again.store.root / "catalogue.sqlite"
    older = path.read_bytes()
    write(again, "mine", [{"id": "b", "day": DAY, "x": 2}])
    again.close()
    newer = path.read_bytes()
    path.write_bytes(older)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"ends with commit .* was acknowledged"):
            open_store(source)
    path.write_bytes(newer)
    assert read(open_store(source), "mine").num_rows == 2


def test_a_mark_that_is_damaged_or_gone_stops_nobody(open_store: Opener, engine: Engine, source: TableSource) -> None:
    mark = engine.store.root / "COMMITTED"
    for harm in (b"", b"garbage", b"00000000000000009999 0123456789abcdef0123456789abcdef\n"):
        engine.close()
        mark.write_bytes(harm)
        engine = open_store(source)
    engine.close()
    mark.unlink()
    assert open_store(source).verify() == []


@pytest.mark.parametrize("table", t.metadata.sorted_tables, ids=str)
def test_every_table_but_that_of_the_sums_has_its_triggers(engine: Engine, table: object) -> None:
    with engine.store.catalogue._engine.connect() as connection:
        names = {row[0] for row in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    made = {f"{table}_{event}" for event in ("insert", "update", "delete")}
    assert names & made == (set() if table is t.sums else made)


def test_a_whole_number_in_a_column_of_floats_is_the_row_that_is_read(engine: Engine) -> None:
    with engine.store.catalogue._engine.begin() as connection:
        connection.execute(t.commits.insert().values(seq=99, dataset="mine", at=5))
    assert engine.store.catalogue.integrity() == []
