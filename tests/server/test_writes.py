from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import SYMBOLS, Opener, TableSource, in_threads, read, write

from fletching_schemas import Action
from fletching_schemas.errors import CorruptFile, InvalidRequest, StoreUnwritable, UnknownDataset, UnknownSymbol
from fletching_server import Engine

D1, D2, D3 = date(2026, 11, 2), date(2026, 11, 3), date(2026, 11, 4)
KEYS = ["id", "day"]


def row(name: str, day: date, x: int) -> dict[str, Any]:
    return {"id": name, "day": day, "x": x}


@pytest.fixture
def engine(open_store: Opener) -> Engine:
    return open_store()


@pytest.fixture
def mine(engine: Engine) -> Engine:
    write(engine, "mine", [row("a", D1, 1), row("b", D1, 2), row("a", D2, 3)], keys=KEYS)
    return engine


def contents(engine: Engine) -> list[tuple[str, date, int]]:
    return [(found["id"], found["day"], found["x"]) for found in read(engine, "mine").to_pylist()]


# Modes


def test_a_first_write_makes_the_table(engine: Engine) -> None:
    result = write(engine, "mine", [row("b", D1, 2), row("a", D2, 3), row("a", D1, 1)], keys=KEYS)
    assert (result.table, result.rows, result.created) == ("mine", 3, True)
    assert contents(engine) == [("a", D1, 1), ("a", D2, 3), ("b", D1, 2)]
    dataset = engine.schema("mine")
    assert (dataset.keys, dataset.time, dataset.calendar, dataset.period) == (("id", "day"), "day", None, "year")


def test_an_upsert_replaces_rows_of_equal_key_and_adds_others(mine: Engine) -> None:
    result = write(mine, "mine", [row("a", D1, 10), row("c", D3, 4)])
    assert (result.rows, result.created) == (2, False)
    assert contents(mine) == [("a", D1, 10), ("a", D2, 3), ("b", D1, 2), ("c", D3, 4)]


def test_of_equal_keys_in_one_upsert_the_last_row_counts(mine: Engine) -> None:
    write(mine, "mine", [row("a", D1, 7), row("a", D1, 8), row("a", D1, 9)])
    assert contents(mine)[0] == ("a", D1, 9)


def test_an_append_adds_new_keys_and_refuses_held_ones(mine: Engine) -> None:
    write(mine, "mine", [row("c", D1, 5)], mode="append")
    with pytest.raises(InvalidRequest, match=r"1 keys are there already, the first is .*'a'.*use mode='upsert'"):
        write(mine, "mine", [row("d", D1, 6), row("a", D2, 7)], mode="append")
    assert contents(mine) == [("a", D1, 1), ("a", D2, 3), ("b", D1, 2), ("c", D1, 5)]


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_equal_keys_in_one_append_or_replace_are_refused(mine: Engine, mode: str) -> None:
    with pytest.raises(InvalidRequest, match=r"1 duplicate keys, the first at row 1: id=z"):
        write(mine, "mine", [row("z", D1, 1), row("z", D1, 2)], mode=mode)
    assert len(contents(mine)) == 3


def test_a_replace_puts_the_rows_in_place_of_the_table(mine: Engine) -> None:
    write(mine, "mine", [row("z", D3, 9)], mode="replace")
    assert contents(mine) == [("z", D3, 9)]
    mine.act(Action.VACUUM, {"history_days": 0})
    assert len(list(mine.store.root.rglob("*.parquet"))) == 1


def test_a_replace_by_nothing_leaves_an_empty_table(mine: Engine) -> None:
    empty = pa.Table.from_pylist([], schema=mine.schema("mine").schema)
    write(mine, "mine", empty, mode="replace")
    assert contents(mine) == []
    write(mine, "mine", [row("a", D1, 1)])
    assert contents(mine) == [("a", D1, 1)]


def test_writes_outlive_a_restart_and_a_fold(open_store: Opener, mine: Engine) -> None:
    write(mine, "mine", [row("a", D1, 10)])
    mine.act(Action.COMPACT, {"dataset": "mine"})
    write(mine, "mine", [row("b", D1, 20)])
    again = open_store.again(mine)
    assert contents(again) == [("a", D1, 10), ("a", D2, 3), ("b", D1, 20)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "append", "replace", "compact"]),
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([D1, D2, D3]), st.integers(0, 99)), max_size=4),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_table_is_what_a_dict_would_be(mine: Engine, steps: list[tuple[str, list[tuple[str, date, int]]]]) -> None:
    write(mine, "mine", pa.Table.from_pylist([], schema=mine.schema("mine").schema), mode="replace")
    model: dict[tuple[str, date], int] = {}
    for mode, cells in steps:
        given = {(name, day): x for name, day, x in cells}
        rows = pa.Table.from_pylist([row(*cell) for cell in cells], schema=mine.schema("mine").schema)
        refused = (mode != "upsert" and len(given) < len(cells)) or (mode == "append" and bool(given.keys() & model.keys()))
        if mode == "compact":
            mine.act(Action.COMPACT, {"dataset": "mine"})
        elif refused:
            with pytest.raises(InvalidRequest):
                write(mine, "mine", rows, mode=mode)
        else:
            write(mine, "mine", rows, mode=mode)
            model = given if mode == "replace" else model | given
        assert contents(mine) == sorted((name, day, x) for (name, day), x in model.items())


# What a write must say


def test_a_new_table_needs_keys(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"mine is a new table: name its keys, .*columns are id, day, x"):
        write(engine, "mine", [row("a", D1, 1)])
    assert engine.names() == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"keys": ["id", "dya"]}, "there is no column dya; columns are id, day, x"),
        ({"keys": ["id", "x"]}, r"name the time column: time=\.\.\.; among the keys \['id', 'x'\] none hold dates"),
        ({"keys": ["x", "day"]}, "the first key 'x' plays the symbol's part and must be a string"),
        ({"keys": ["day"]}, "must be one of the keys after the symbol"),
        ({"keys": ["id", "day"], "time": "x"}, "time 'x' must be a date or a timestamp"),
    ],
    ids=str,
)
def test_keys_that_do_not_fit_are_refused(engine: Engine, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        write(engine, "mine", [row("a", D1, 1)], **arguments)
    assert engine.names() == []


def test_the_time_becomes_a_key_where_it_was_not_named_one(engine: Engine) -> None:
    write(engine, "mine", [row("a", D1, 1)], keys=["id"], time="day")
    assert engine.schema("mine").keys == ("id", "day")


@pytest.mark.parametrize(
    ("rows", "arguments", "complaint"),
    [
        ([{"id": "a", "day": D1, "x": 1, "y": 2}], {}, r"mine has no column y \(int64\); it has id, day, x.*evolve=True"),
        ([{"id": "a", "x": 1}], {}, "column day is missing"),
        ([{"id": "a", "day": D1, "x": 1.5}], {}, r"x\[0\] = 1\.5 is not int64"),
        ([{"id": None, "day": D1, "x": 1}], {}, "id"),
        ([row("a", D1, 1)], {"keys": ["id"]}, r"mine has keys \['id', 'day'\], this write names \['id'\]"),
        ([row("a", D1, 1)], {"time": "x"}, "mine has time 'day', this write names 'x'"),
        ([row("a", D1, 1)], {"partition": "day"}, "mine is partitioned by year"),
    ],
    ids=["a column too many", "a key too few", "another type", "a null key", "other keys", "another time", "another partition"],
)
def test_rows_that_do_not_fit_the_table_are_refused(mine: Engine, rows: Any, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        write(mine, "mine", rows, **arguments)
    assert len(contents(mine)) == 3


def test_columns_that_are_left_out_become_null(mine: Engine) -> None:
    write(mine, "mine", pa.table({"day": pa.array([D3]), "id": pa.array(["a"])}))
    assert read(mine, "mine", "a", D3, D3).to_pylist() == [{"id": "a", "day": D3, "x": None}]


def test_instants_without_a_zone_are_utc(engine: Engine) -> None:
    naive, aware = datetime(2026, 11, 2, 9, 30), datetime(2026, 11, 2, 9, 30, tzinfo=UTC)  # noqa: DTZ001  # naive on purpose
    write(engine, "ticks", pa.table({"id": ["a"], "ts": pa.array([naive], pa.timestamp("ms"))}), keys=["id", "ts"])
    write(engine, "ticks", pa.table({"id": ["b"], "ts": pa.array([naive], pa.timestamp("ns"))}))
    assert read(engine, "ticks").column("ts").to_pylist() == [aware, aware]
    with pytest.raises(InvalidRequest, match=r"ts\[0\]"):
        write(engine, "ticks", pa.table({"id": ["b"], "ts": pa.array([1], pa.timestamp("ns"))}))


def test_sourced_datasets_are_not_written(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    with pytest.raises(InvalidRequest, match="bars_1d is filled from source table; write to a table of your own"):
        write(engine, "bars_1d", source.dataset.schema.empty_table(), keys=["symbol", "trading_date"])
    alone = open_store.again(engine)
    with pytest.raises(InvalidRequest, match="is filled from source table"):
        write(alone, "bars_1d", [{"symbol": "a", "trading_date": D1}], keys=["symbol", "trading_date"])


def test_a_write_that_is_too_large_is_refused(open_store: Opener) -> None:
    engine = open_store(max_write_bytes="1KiB", store="small")
    with pytest.raises(InvalidRequest, match=r"at most 1,024 \(max_write_bytes\): write in parts"):
        write(engine, "mine", [row("a", D1 + timedelta(days=n), n) for n in range(1000)], keys=KEYS)


def test_user_tables_are_read_by_their_own_symbols(mine: Engine) -> None:
    assert read(mine, "mine", "b").to_pylist() == [row("b", D1, 2)]
    assert read(mine, "mine", "a", D2, D2, columns=["x"]).to_pylist() == [{"x": 3}]
    with pytest.raises(UnknownSymbol, match="no symbol zz"):
        read(mine, "mine", "zz")


def test_a_deleted_table_is_gone_and_can_be_made_anew(mine: Engine) -> None:
    deleted = mine.act(Action.DELETE, {"dataset": "mine"})
    assert deleted["deleted_rows"] == 3
    with pytest.raises(UnknownDataset):
        read(mine, "mine")
    assert list(mine.store.root.rglob("*.parquet")) == []
    write(mine, "mine", [{"name": "a", "on": D1}], keys=["name", "on"])
    assert read(mine, "mine").column_names == ["name", "on"]


# Types: kept as they are through memory, disk and folding, or refused by name

MOMENT = datetime(2026, 11, 2, 9, 30, 1, 5, tzinfo=UTC)
TYPES: dict[str, pa.Array] = {
    "bool": pa.array([True, None]),
    "int8": pa.array([-1, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float32": pa.array([1.5, None], pa.float32()),
    "float16": pa.array([1.5, None], pa.float16()),
    "decimal128": pa.array([Decimal("123456789.123"), None], pa.decimal128(20, 3)),
    "decimal256": pa.array([Decimal("1.5"), None], pa.decimal256(50, 3)),
    "date32": pa.array([D1, None], pa.date32()),
    "date64": pa.array([D1, None], pa.date64()),
    "time32": pa.array([1000, None], pa.time32("s")),
    "time64": pa.array([1000, None], pa.time64("us")),
    "time64 ns": pa.array([1001, None], pa.time64("ns")),
    "timestamp": pa.array([MOMENT, None], pa.timestamp("us", tz="Asia/Shanghai")),
    "duration": pa.array([1000, None], pa.duration("ms")),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None], pa.month_day_nano_interval()),
    "binary": pa.array([b"\x00\xff", None]),
    "large binary": pa.array([b"\x00\xff", None], pa.large_binary()),
    "binary view": pa.array([b"\x00\xff", None], pa.binary_view()),
    "fixed binary": pa.array([b"ab", None], pa.binary(2)),
    "string": pa.array(["ü", None]),
    "large string": pa.array(["ü", None], pa.large_string()),
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "list": pa.array([[1, None], None], pa.list_(pa.int64())),
    "large list": pa.array([[1, None], None], pa.large_list(pa.int64())),
    "fixed list": pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
    "list of text": pa.array([["a", None], None], pa.list_(pa.string())),
    "struct": pa.array([{"a": 1, "b": "x"}, None], pa.struct([("a", pa.int64()), ("b", pa.string())])),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "null": pa.nulls(2),
    "run ends": pa.RunEndEncodedArray.from_arrays([1, 2], [1, 2]),
    "sparse union": pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]),
    "list of dictionary": pa.array([["a"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "extension": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16))),
}


@pytest.mark.parametrize("values", TYPES.values(), ids=TYPES.keys())
def test_a_type_is_kept_through_memory_disk_and_folding_or_refused(open_store: Opener, engine: Engine, values: pa.Array) -> None:
    rows = pa.table({"id": ["a", "b"], "day": pa.array([D1, D1]), "x": values})
    try:
        write(engine, "mine", rows, keys=KEYS)
    except InvalidRequest:
        assert engine.names() == []
        return
    want = values.to_pylist()
    assert read(engine, "mine").column("x").to_pylist() == want
    cold = open_store.again(engine, memory="1KiB")
    assert read(cold, "mine").column("x").to_pylist() == want
    assert read(cold, "mine", "b", columns=["x"]).column("x").to_pylist() == want[1:]
    write(cold, "mine", rows.slice(1, 1))
    assert read(cold, "mine").column("x").to_pylist() == want
    cold.act(Action.COMPACT, {"dataset": "mine"})
    again = open_store.again(cold)
    assert read(again, "mine").column("x").to_pylist() == want
    assert read(again, "mine").schema.equals(engine.schema("mine").schema)


@pytest.mark.parametrize("name", ["null", "sparse union", "extension", "list of dictionary"])
def test_types_that_cannot_be_kept_are_refused_by_name(engine: Engine, name: str) -> None:
    with pytest.raises(InvalidRequest, match="column x"):
        write(engine, "mine", pa.table({"id": ["a", "b"], "day": pa.array([D1, D1]), "x": TYPES[name]}), keys=KEYS)


def test_text_that_is_not_utf_8_is_refused(engine: Engine) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(InvalidRequest, match="not valid Arrow data"):
        write(engine, "mine", pa.table({"id": broken, "day": pa.array([D1])}), keys=KEYS)


def test_offsets_beyond_their_buffer_are_refused(engine: Engine) -> None:
    sink = pa.BufferOutputStream()  # as a hostile client sends it: building it here would be refused by Arrow
    rows = pa.table({"id": ["ab"], "day": pa.array([D1])})
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    raw = sink.getvalue().to_pybytes()
    offsets = (0).to_bytes(4, "little") + (2).to_bytes(4, "little")
    start = raw.rindex(offsets)
    raw = raw[:start] + (0).to_bytes(4, "little") + (65535).to_bytes(4, "little") + raw[start + 8 :]
    with pytest.raises(InvalidRequest, match="not valid Arrow data"):
        write(engine, "mine", pa.ipc.open_stream(raw).read_all(), keys=KEYS)
    assert engine.names() == []


# Races and faults


def test_of_many_appends_of_one_key_one_wins(mine: Engine) -> None:
    outcomes = in_threads(8, lambda number: write(mine, "mine", [row("new", D1, number)], mode="append"))
    winners = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
    assert len(winners) == 1
    assert all("keys are there already" in str(outcome) for outcome in outcomes if isinstance(outcome, Exception))
    assert contents(mine)[-1] == ("new", D1, winners[0])


def test_appends_of_different_keys_all_come_in(mine: Engine) -> None:
    outcomes = in_threads(6, lambda number: write(mine, "mine", [row(f"n{number}", D1, number)], mode="append"))
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert len(contents(mine)) == 9


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (pa.array([0.1], pa.float64()), r"y\[0\] = 0\.1 is not float: a double of more digits"),
        (pa.array([1e300], pa.float64()), r"y\[0\] = 1e\+300 is not float"),
        (pa.array(["0.5"]), r"y\[0\] = 0\.5 is not float: text where a float belongs"),
    ],
    ids=["digits", "range", "text"],
)
def test_a_number_is_never_narrowed_and_text_is_never_read_as_one(engine: Engine, column: pa.Array, complaint: str) -> None:
    write(engine, "mine", pa.table({"id": ["a"], "day": [D1], "y": pa.array([0.5], pa.float32())}), keys=KEYS)
    rows = pa.table({"id": ["b"], "day": [D1], "y": column})
    with pytest.raises(InvalidRequest, match=complaint):
        write(engine, "mine", rows)
    exact = pa.table(
        {
            "id": ["b"],
            "day": [D1],
            "y": pa.array(
                [
                    0.25,
                ],
                pa.float64(),
            ),
        }
    )
    write(engine, "mine", exact)
    assert read(engine, "mine")["y"].to_pylist() == [0.5, 0.25]


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["a", "b"])], ids=str)
def test_categories_are_written_as_what_they_stand_for(engine: Engine, kind: Any) -> None:
    frame = pl.DataFrame({"id": pl.Series(["b", "a"], dtype=kind), "day": [D1, D1], "x": [1, 2]})
    write(engine, "mine", frame.to_arrow(compat_level=pl.CompatLevel.newest()), keys=KEYS)
    assert contents(engine) == [("a", D1, 2), ("b", D1, 1)]


def test_of_many_first_writes_one_makes_the_table_and_the_others_go_into_it(engine: Engine) -> None:
    outcomes = in_threads(
        8, lambda number: write(engine, "mine", [{"id": f"a{number}", "day": D1, f"x{number % 2}": 1}], keys=KEYS)
    )
    made = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert sum(outcome.created for outcome in made) == 1
    assert all("mine has no column x" in str(outcome) for outcome in outcomes if isinstance(outcome, Exception))
    assert read(engine, "mine").num_rows == len(made) == 4


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_write_that_the_disk_refuses_changes_nothing(
    open_store: Opener, mine: Engine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"fletching_server.volume.os.{call}", refuse)
        with pytest.raises(StoreUnwritable, match="No space left on device"):
            write(mine, "mine", [row("a", D1, 99)])
    assert len(contents(mine)) == 3
    assert mine.store.orphans() == []
    if call == "fsync":  # the disk is not trusted any more
        mine = open_store.again(mine)
    write(mine, "mine", [row("a", D1, 99)])
    assert contents(mine)[0] == ("a", D1, 99)


def test_an_append_to_a_damaged_table_says_so(open_store: Opener, mine: Engine) -> None:
    (file,) = mine.store.state("mine").files
    mine.close()
    (mine.store.root / file.path).write_bytes(b"")
    open_store.damaged = True
    again = open_store()
    with pytest.raises(CorruptFile, match="restore this file from a backup"):
        write(again, "mine", [row("a", D1, 5)], mode="append")
    assert (again.store.root / file.path).exists()


def test_a_write_to_another_table_is_not_held_up_by_symbols(mine: Engine) -> None:
    write(mine, "other", [{"id": name, "day": D1} for name in SYMBOLS], keys=KEYS)
    assert read(mine, "other").num_rows == 5
