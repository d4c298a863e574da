"""Tables that change their columns: only when they are told to, without touching what is stored."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from tests.conftest import Opener, in_threads, read, write

from fletching_schemas import Action
from fletching_schemas.errors import InvalidRequest
from fletching_server import Engine

D1, D2 = date(2026, 11, 2), date(2026, 11, 3)
KEYS = ["id", "day"]


def rows(**columns: pa.Array) -> pa.Table:
    return pa.table({"id": ["a", "b"], "day": [D1, D2], **columns})


@pytest.fixture
def mine(engine: Engine) -> Engine:
    write(engine, "mine", rows(x=pa.array([1, 2], pa.int32())), keys=KEYS)
    return engine


WIDER = [
    (pa.int8(), pa.int16()), (pa.int16(), pa.int64()), (pa.int32(), pa.int64()), (pa.int32(), pa.float64()),
    (pa.uint8(), pa.int16()), (pa.uint32(), pa.int64()), (pa.uint16(), pa.uint64()), (pa.float32(), pa.float64()),
    (pa.int16(), pa.float32()),
]  # fmt: skip
NOT_WIDER = [
    (pa.int64(), pa.float64()),
    (pa.int64(), pa.string()),
    (pa.float64(), pa.int64()),
    (pa.int32(), pa.uint64()),
    (pa.bool_(), pa.int8()),
]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("before", "after"), WIDER, ids=str)
def test_a_column_becomes_wider(open_store: Opener, before: pa.DataType, after: pa.DataType, *, folded: bool) -> None:
    engine = open_store()
    write(engine, "mine", rows(x=pa.array([1, None], before)), keys=KEYS)
    if folded:
        engine.act(Action.COMPACT, {"dataset": "mine"})
    read(engine, "mine")  # into memory
    extreme = pa.array([2], after)
    write(engine, "mine", pa.table({"id": ["c"], "day": [D1], "x": extreme}), evolve=True)
    again = open_store.again(engine)
    for table in (read(engine := again, "mine"), read(engine, "mine", symbols=["a", "b", "c"])):
        assert table.schema.field("x").type == after
        assert table["x"].to_pylist() == [1, None, 2]
    again.act(Action.COMPACT, {"dataset": "mine"})
    assert read(again, "mine")["x"].to_pylist() == [1, None, 2]
    assert again.verify() == []


@pytest.mark.parametrize(("before", "after"), NOT_WIDER, ids=str)
def test_a_type_that_does_not_hold_the_old_values_is_no_wider_one(
    engine: Engine, before: pa.DataType, after: pa.DataType
) -> None:
    one = pa.array([1, 0], pa.int64()).cast(before)
    write(engine, "mine", rows(x=one), keys=KEYS)
    change = rows(x=pa.array([1, 0], pa.int64()).cast(after))
    try:
        write(engine, "mine", change, evolve=True)  # values that fit are taken, as without it
    except InvalidRequest as error:
        assert "x" in str(error)  # noqa: PT017  # either is right, a change of the column is not
    assert engine.schema("mine").schema.field("x").type == before


def test_a_value_that_needs_a_wider_column_names_it(mine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"x\[1\] = 5000000000 is not int32"):
        write(mine, "mine", rows(x=pa.array([1, 5_000_000_000])))
    write(mine, "mine", rows(x=pa.array([1, 5_000_000_000])), evolve=True)
    assert read(mine, "mine")["x"].to_pylist() == [1, 5_000_000_000]


def test_a_new_column_is_null_in_older_rows_and_may_be_left_out_later(open_store: Opener, mine: Engine) -> None:
    write(mine, "mine", rows(x=pa.array([3, 4], pa.int32()), note=["n", None]).slice(0, 1), evolve=True)
    write(mine, "mine", pa.table({"id": ["c"], "day": [D2], "x": pa.array([5], pa.int32())}))
    want = {"id": ["a", "b", "c"], "day": [D1, D2, D2], "x": [3, 2, 5], "note": ["n", None, None]}
    assert read(mine, "mine").to_pydict() == want
    assert read(mine, "mine", columns=["note"], symbols="b").to_pydict() == {"note": [None]}
    again = open_store.again(mine)
    again.act(Action.EVICT, {})
    assert read(again, "mine", symbols=["a", "b"]).num_rows == 2
    assert read(again, "mine").to_pydict() == want


def test_a_wide_read_from_disk_has_the_new_column_too(open_store: Opener) -> None:
    engine = open_store(memory="1KiB")
    names = [f"s{number:04}" for number in range(600)]  # more than are picked row group by row group
    write(engine, "mine", pa.table({"id": names, "day": [D1] * 600, "x": list(range(600))}), keys=KEYS)
    engine.act(Action.COMPACT, {"dataset": "mine"})
    write(engine, "mine", pa.table({"id": names[:1], "day": [D2], "x": [7], "y": [0.5]}), evolve=True)
    found = read(engine, "mine", symbols=names[:590], columns=["y", "x"])
    assert found.num_rows == 591
    assert found["y"].null_count == 590


def test_rows_in_memory_from_before_are_not_served_after(mine: Engine) -> None:
    before = read(mine, "mine")
    files = mine.store.state("mine").files
    assert all(mine.hot.holds(file.key) for file in files)
    write(mine, "mine", rows(x=pa.array([1, 2], pa.int32()), y=[1, 2]), evolve=True)
    assert {file.key for file in mine.store.state("mine").files}.isdisjoint({file.key for file in files})
    assert read(mine, "mine").num_columns == before.num_columns + 1


def test_two_who_evolve_at_once_both_have_their_column(mine: Engine) -> None:
    outcomes = in_threads(
        8, lambda n: write(mine, "mine", rows(x=pa.array([n, n], pa.int32()), **{f"y{n}": [n, n]}), evolve=True)
    )
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    table = pl.DataFrame(pl.from_arrow(read(mine, "mine")))
    assert set(table.columns) == {"id", "day", "x", *(f"y{n}" for n in range(8))}
    last = table["x"][0]
    assert table[f"y{last}"].to_list() == [last, last]


def test_evolving_needs_no_new_table_and_does_no_harm_to_one(engine: Engine) -> None:
    created = write(engine, "mine", rows(x=[1, 2]), keys=KEYS, evolve=True)
    assert created.created
    assert engine.store.state("mine").shape == 0


def test_a_column_that_cannot_be_kept_is_refused(mine: Engine) -> None:
    bad: dict[str, Any] = {"y": pa.array([1, 2], pa.decimal256(60, 2))}
    with pytest.raises(InvalidRequest, match="column y has type decimal256"):
        write(mine, "mine", rows(x=pa.array([1, 2], pa.int32()), **bad), evolve=True)
