from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bar, read, write

from fletching_schemas import Action
from fletching_server import Engine, tables
from fletching_server.changes import Fill, Swap
from fletching_server.image import build_image
from fletching_server.snapshot import Fact, StoredFile
from fletching_server.spans import FINAL, Days, Span
from fletching_server.store import Store

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)


def adjacent(last: int, first: int) -> bool:
    return first <= last + 1


@pytest.fixture
def broken(open_store: Opener, source: TableSource) -> Engine:
    """Return an engine with some rows, whose store a test is about to spoil."""
    open_store.damaged = True
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[:2], start=MON, end=FRI)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert engine.verify() == []
    return engine


def partition(engine: Engine) -> StoredFile:
    (file,) = engine.store.state("bars_1d").files
    return file


def truncate(engine: Engine) -> None:
    path = engine.store.root / partition(engine).path
    path.write_bytes(path.read_bytes()[:-1])


def remove(engine: Engine) -> None:
    (engine.store.root / partition(engine).path).unlink()


def add_a_generation(engine: Engine) -> None:
    dataset = engine.schema("bars_1d")
    image = build_image(dataset, pa.Table.from_pylist([bar(SYMBOLS[4], MON)], schema=dataset.schema))
    again = engine.store.publish(dataset, image, "partition", sync=False, period="2026")
    engine.store.commit(Swap("bars_1d", (again,), (), adjacent, 0))


def claim_rows(engine: Engine) -> None:
    span = Span(*Days(20800, 20810), FINAL, "", 0.0)
    engine.store.commit(Fill("bars_1d", "x", None, (Fact(SYMBOLS[3], span, None),), adjacent, "v", 0.0, Days(0, 1), SYMBOLS[:1]))


def misname(engine: Engine) -> None:
    file = partition(engine)
    with engine.store.catalogue._engine.begin() as connection:
        connection.execute(tables.files.update().where(tables.files.c.id == file.id).values(rows=3, period="2025"))
    engine.store.catalogue.reload()


def spoil_memory(engine: Engine) -> None:
    engine.hot._main.held += 1


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (truncate, "has checksum"),
        (remove, "cannot be read"),
        (add_a_generation, "partition 2026/0 has 2 generations at once"),
        (claim_rows, "600519.SH counts as held on 8 sessions without rows"),
        (misname, "the catalogue's rows, sessions or symbols are not the file's"),
        (spoil_memory, "hot tier counts"),
    ],
    ids=["truncated", "removed", "two generations", "claimed", "misnamed", "memory"],
)
def test_what_is_wrong_is_told(broken: Engine, spoil: Callable[[Engine], None], told: str) -> None:
    spoil(broken)
    assert any(told in problem for problem in broken.verify()), broken.verify()


def test_a_store_that_is_folded_or_deleted_while_it_is_checked_is_sound(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_store(source)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    write(engine, "zz", [{"id": "a", "day": MON}], keys=["id", "day"])
    real = Store.verify

    def meanwhile(self: Store, file: Any) -> None:
        monkeypatch.setattr(Store, "verify", real)
        engine.act(Action.COMPACT, {"dataset": "bars_1d"})
        engine.act(Action.DELETE, {"dataset": "zz"})
        real(self, file)

    monkeypatch.setattr(Store, "verify", meanwhile)
    assert engine.verify() == []
    assert engine.act(Action.VERIFY, {}) == {"problems": []}
