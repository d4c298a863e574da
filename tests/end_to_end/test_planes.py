"""The planes differ in how bytes move, never in what is said: the same answers, types, infos and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal
from tests.end_to_end.conftest import LOCAL, PLANES

import fletching
from fletching import Cache
from fletching_schemas import FetchRequest, ReadInfo, WriteResult, canonical
from fletching_server.sources.sim import SimSource
from fletching_server.testing import ManualClock

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Rig, Rigs

DAYS = ("2024-06-03", "2024-06-07")
UNITED = ["600000.SH", "000001.SZ"]
ROWS = pl.DataFrame({
    "symbol": ["A", "A", "B"],
    "day": [date(2024, 1, 2), date(2024, 1, 3), date(2024, 1, 2)],
    "score": [1.5, None, -2.0],
    "note": ["first", "", None],
})  # fmt: skip


def sim() -> SimSource:
    return SimSource(symbols=8, first=date(2024, 1, 2))


@pytest.fixture(scope="module")
def trio(module_rigs: Rigs, noon: Callable[[], ManualClock]) -> dict[str, Rig]:
    """The same fresh cache over every plane, with the same past: what is asked of one is asked of all."""
    return {plane: module_rigs(plane, [sim()], noon()) for plane in PLANES}


@pytest.fixture
def rig(rigs: Rigs, plane: str, noon: Callable[[], ManualClock]) -> Rig:
    return rigs(plane, [sim()], noon())


@pytest.fixture
def cache(rig: Rig) -> Iterator[Cache]:
    yield rig.cache
    rig.let_go()
    assert rig.engine.hot.facts()["hot_leases"] == 0
    assert rig.engine.verify() == []


def told(value: Any) -> Any:
    """Return *value* in a form that compares: with every type, without what must differ (plane, process, durations)."""
    if isinstance(value, tuple):
        return tuple(told(part) for part in value)
    if isinstance(value, pl.DataFrame):
        return dict(value.schema), value.rows()
    if isinstance(value, pa.Table):
        return value.schema.to_string(show_field_metadata=True, show_schema_metadata=True), value.to_pylist()
    if isinstance(value, pa.RecordBatchReader):
        return told(value.read_all())
    if isinstance(value, pd.DataFrame):
        return dict(value.dtypes), value.to_csv()
    if isinstance(value, ReadInfo):
        return {name: part for name, part in asdict(value).items() if name not in {"plane", "milliseconds"}}
    if isinstance(value, pa.Schema):
        return value.to_string(show_field_metadata=True, show_schema_metadata=True)
    if isinstance(value, dict):
        different = {"process", "uptime_seconds", "store", "arrow_bytes", "fetch_seconds", "store_seconds"}
        different |= {"access_log_waiting", "access_log_bytes", "logged_reads", "warm_known_keys", "warm_coverage"}  # by now
        paths = {"files": [{**file, "path": ""} for file in value["files"]]} if isinstance(value.get("files"), list) else {}
        return {name: part for name, part in {**value, **paths}.items() if name not in different and "_ms" not in name}
    return value


def outcome(rig: Rig, call: Callable[[Cache], Any]) -> Any:
    try:
        answer = told(call(rig.cache))
    except Exception as error:  # noqa: BLE001  # errors are what is compared
        answer = (type(error), str(error))
    rig.wait_until_idle()
    return answer


def agreed(trio: dict[str, Rig], call: Callable[[Cache], Any]) -> Any:
    outcomes = {plane: outcome(rig, call) for plane, rig in trio.items()}
    for plane in ("tcp", "unix"):
        assert outcomes[plane] == outcomes["embedded"], plane
    for plane in LOCAL:
        assert without_bytes(outcomes[plane]) == without_bytes(outcomes["embedded"]), plane
    return outcomes["embedded"]


def without_bytes(value: Any) -> Any:
    """Return *value* without what sharing memory changes: a sealed image has no bitmap for a column without nulls."""
    if isinstance(value, dict):
        other = {"planes", "hot_descriptors", "hot_leases", "hot_lent_leases"}
        return {name: without_bytes(part) for name, part in value.items() if name not in other and "bytes" not in name}
    return tuple(map(without_bytes, value)) if isinstance(value, tuple) else value


def written(cache: Cache, table: str, data: Any = ROWS, **options: Any) -> Any:
    result = cache.write(table, data, keys=["symbol", "day"], **options)
    assert isinstance(result, WriteResult)
    return (result.table, result.rows, result.created), cache.read(table, info=True), cache.schema(table)


def evicted(cache: Cache, table: str) -> Any:
    cache.evict(table)
    return cache.read(table, info=True), cache.evict(table)


def twice(cache: Cache, table: str, mode: str, **options: Any) -> Any:
    cache.write(table, ROWS, keys=["symbol", "day"])
    again = ROWS.with_columns(score=pl.lit(9.0)).head(1)
    return (cache.write(table, again, mode=mode, **options).rows, cache.read(table))


ANSWERS: dict[str, Callable[[Cache], Any]] = {
    "two symbols": lambda cache: cache.read("bars_1d", UNITED, *DAYS, info=True),
    "the same from memory": lambda cache: cache.read("bars_1d", UNITED, *DAYS, info=True),
    "the same from disk": lambda cache: (cache.evict("bars_1d"), cache.read("bars_1d", UNITED, *DAYS, info=True)),
    "one symbol in another notation": lambda cache: cache.read("bars_1d", "sz000001", *DAYS, info=True),
    "all symbols": lambda cache: cache.read("bars_1d", None, *DAYS, info=True),
    "columns in an order": lambda cache: cache.read("bars_1d", UNITED, *DAYS, columns=["close", "symbol", "close"]),
    "one column": lambda cache: cache.read("bars_1d", UNITED, *DAYS, columns="volume", info=True),
    "a weekend": lambda cache: cache.read("bars_1d", UNITED, "2024-06-08", "2024-06-09", info=True),
    "the future": lambda cache: cache.read("bars_1d", UNITED, "2024-06-13", "2024-07-01", info=True),
    "not held": lambda cache: cache.read("bars_1d", "600001.SH", "2024-02-01", "2024-02-02", on_miss="cached", info=True),
    "minutes": lambda cache: cache.read("bars_1m", "000001.SZ", "2024-06-05T10:00", "2024-06-05T10:10", info=True),
    "minutes by instant": lambda cache: cache.read(
        "bars_1m", "000001.SZ", datetime(2024, 6, 5, 2, 0, tzinfo=UTC), datetime(2024, 6, 5, 2, 5, tzinfo=UTC)
    ),
    "trades": lambda cache: cache.read("trades", "000001.SZ", "2024-06-05", "2024-06-05", info=True),
    "as Arrow": lambda cache: cache.read("bars_1d", UNITED, *DAYS, output="arrow"),
    "as pandas": lambda cache: cache.read("bars_1d", UNITED, *DAYS, output="pandas"),
    "minutes as pandas": lambda cache: cache.read("bars_1m", "000001.SZ", "2024-06-05", "2024-06-05", output="pandas"),
    "as a stream": lambda cache: cache.stream("bars_1d", UNITED, *DAYS),
    "nothing as Arrow": lambda cache: cache.read("bars_1d", UNITED, "2024-06-08", "2024-06-09", output="arrow"),
    "nothing as pandas": lambda cache: cache.read("bars_1d", UNITED, "2024-06-08", "2024-06-09", output="pandas"),
    "nothing as a stream": lambda cache: cache.stream("bars_1d", UNITED, "2024-06-08", "2024-06-09"),
    "a profile": lambda cache: cache.read("bars_1d", UNITED, *DAYS, profile="trading", max_age=5, info=True),
    "datasets": lambda cache: cache.datasets(),
    "schema": lambda cache: cache.schema("quotes_l1"),
    "coverage": lambda cache: cache.coverage("bars_1d", UNITED, "2024-05-31", "2024-06-14"),
    "coverage of all": lambda cache: cache.coverage("bars_1d", None, date(2024, 5, 31), date(2024, 6, 14)),
    "coverage of nothing": lambda cache: cache.coverage("quotes_l1"),
    "explain": lambda cache: cache.explain("bars_1d", UNITED, "2024-05-31", "2024-06-07", ["close"], on_miss="error"),
    "stats": lambda cache: cache.stats(),
    "health": lambda cache: cache.health(),
    "invalidate": lambda cache: (
        cache.invalidate("bars_1d", "000001.SZ", "2024-06-05", "2024-06-05"),
        cache.coverage("bars_1d", "000001.SZ", *DAYS),
        cache.read("bars_1d", UNITED, *DAYS, info=True),
    ),
    "invalidate all": lambda cache: cache.invalidate("bars_1d"),
    "delete what a source can bring again": lambda cache: (
        cache.read("bars_1m", "600000.SH", "2024-06-04", "2024-06-04").height,
        cache.delete("bars_1m"),
        cache.coverage("bars_1m"),
        cache.read("bars_1m", "600000.SH", "2024-06-04", "2024-06-04", info=True),
    ),
    "what a wish would take": lambda cache: cache.warm("bars_1d", ["000002.SZ"], *DAYS, explain=True),
    "a wish": lambda cache: (
        told_wish(cache.warm("bars_1d", ["000002.SZ"], *DAYS, adjust="qfq")),
        cache.read("bars_1d", "000002.SZ", *DAYS, info=True),
    ),
    "a wish for the disk": lambda cache: told_wish(cache.warm("bars_1d", "600001.SH", *DAYS, memory=False)),
    "evict everything": lambda cache: cache.evict(),
    "write": lambda cache: written(cache, "scores"),
    "write Arrow": lambda cache: written(cache, "scores_arrow", ROWS.to_arrow()),
    "write a batch": lambda cache: written(cache, "scores_batch", ROWS.to_arrow().to_batches()[0]),
    "write a reader": lambda cache: written(cache, "scores_reader", ROWS.to_arrow().to_reader(1)),
    "write pandas": lambda cache: written(cache, "scores_pandas", ROWS.to_pandas(use_pyarrow_extension_array=True)),
    "write lazily": lambda cache: written(cache, "scores_lazy", ROWS.lazy()),
    "write nothing": lambda cache: written(cache, "scores_nothing", ROWS.clear()),
    "write by month": lambda cache: written(cache, "scores_month", partition="month"),
    "written, from disk": lambda cache: (told(written(cache, "scores_disk")), evicted(cache, "scores_disk")),
    "upsert": lambda cache: twice(cache, "scores_upsert", "upsert"),
    "replace": lambda cache: twice(cache, "scores_replace", "replace"),
    "append": lambda cache: (
        cache.write("scores_append", ROWS.head(1), keys=["symbol", "day"]).rows,
        cache.write("scores_append", ROWS.tail(2), mode="append").rows,
        cache.read("scores_append"),
    ),
    "delete": lambda cache: (cache.write("gone", ROWS, keys=["symbol", "day"]).created, cache.delete("gone")),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_every_plane_gives_the_same_answer(name: str, trio: dict[str, Rig]) -> None:
    answer = agreed(trio, ANSWERS[name])
    assert not (isinstance(answer, tuple) and isinstance(answer[0], type)), answer


def told_wish(done: dict[str, Any]) -> dict[str, Any]:
    assert done.pop("seconds") >= 0
    assert done["rows"] > 0
    return done


DEFECTS = pa.table({"symbol": ["A", "A"], "day": [date(2024, 1, 2)] * 2, "score": [1.0, 2.0]})
KEYS = ["symbol", "day"]
EXCEL: dict[str, Any] = {"output": "excel"}
ERRORS: dict[str, tuple[Callable[[Cache], Any], type[Exception], str]] = {
    "an unknown dataset": (lambda cache: cache.read("bars_9d"), fletching.UnknownDataset, "bars_9d.*bars_1d"),
    "a schema of none": (lambda cache: cache.schema("bars_9d"), fletching.UnknownDataset, "bars_9d.*bars_1d"),
    "coverage of none": (lambda cache: cache.coverage("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "a plan of none": (lambda cache: cache.explain("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "evicting none": (lambda cache: cache.evict("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "invalidating none": (lambda cache: cache.invalidate("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "deleting none": (lambda cache: cache.delete("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "no dataset's name": (lambda cache: cache.read("../etc"), fletching.InvalidRequest, "is not a dataset name"),
    "an unknown column": (lambda cache: cache.read("bars_1d", UNITED, columns=["clsoe"]), fletching.UnknownColumn, "clsoe.*clos"),
    "no column": (lambda cache: cache.read("bars_1d", UNITED, columns=[]), fletching.InvalidRequest, "empty list"),
    "an unknown symbol": (lambda cache: cache.read("bars_1d", "600009.SH", *DAYS), fletching.UnknownSymbol, "600009.SH"),
    "no symbol": (lambda cache: cache.read("bars_1d", [], *DAYS), fletching.InvalidRequest, "empty list"),
    "no symbol's notation": (lambda cache: cache.read("bars_1d", "?!", *DAYS), fletching.InvalidRequest, "no notation"),
    "a Chinese symbol": (lambda cache: cache.read("bars_1d", "平" * 64, *DAYS), fletching.InvalidRequest, "no notation"),
    "an ambiguous symbol": (lambda cache: cache.read("bars_1d", "999999", *DAYS), fletching.InvalidRequest, "write the one"),
    "a reversed range": (
        lambda cache: cache.read("bars_1d", UNITED, *reversed(DAYS)), fletching.InvalidRequest, "swap",
    ),
    "the year 1": (lambda cache: cache.read("bars_1d", UNITED, "0001-01-01", "9999-12-31"), fletching.OutOfCalendar, "0001"),
    "the year 9999": (lambda cache: cache.read("bars_1d", UNITED, "2024-01-01", "9999-12-31"), fletching.OutOfCalendar, "9999"),
    "before the calendar": (lambda cache: cache.read("bars_1d", UNITED, "1989-01-01"), fletching.OutOfCalendar, "XSHG"),
    "before time": (
        lambda cache: cache.read("bars_1m", UNITED, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
        fletching.InvalidRequest, "is not a date",
    ),
    "the end of time": (lambda cache: cache.read("bars_1m", UNITED, "9999-12-31T23:59:59"), fletching.OutOfCalendar, "9999"),
    "no date": (lambda cache: cache.read("bars_1d", UNITED, "yesterday"), fletching.InvalidRequest, "yesterday"),
    "a bad on_miss": (lambda cache: cache.read("bars_1d", UNITED, on_miss="guess"), fletching.InvalidRequest, "fill, cached"),
    "a bad profile": (lambda cache: cache.read("bars_1d", UNITED, profile="slow"), fletching.InvalidRequest, "trading, research"),
    "a negative age": (lambda cache: cache.read("bars_1d", UNITED, max_age=-1), fletching.InvalidRequest, "max_age=-1"),
    "an age that is no number": (
        lambda cache: cache.read("bars_1d", UNITED, max_age=float("nan")), fletching.InvalidRequest, "max_age=nan",
    ),
    "a bad output": (lambda cache: cache.read("bars_1d", **EXCEL), fletching.InvalidRequest, "polars, arrow, pandas"),
    "cells that are not held": (
        lambda cache: cache.read("bars_1d", "600001.SH", "2024-01-02", "2024-01-31", on_miss="error"),
        fletching.NotCached, "600001.SH 2024-01-02..2024-01-31",
    ),
    "adjust": (lambda cache: cache.read("bars_1d", adjust="forward"), fletching.InvalidRequest, "one of qfq, hfq"),
    "adjust_ref": (lambda cache: cache.read("bars_1d", adjust_ref="2024-01-01"), fletching.InvalidRequest, "only adjust='qfq'"),
    "adjusting factors": (lambda cache: cache.read("adj_factors", adjust="qfq"), fletching.InvalidRequest, "cannot be adjusted"),
    "as_of": (lambda cache: cache.read("bars_1d", as_of="2000-01-01"), fletching.HistoryGone, "did not exist at"),
    "streaming as_of": (lambda cache: cache.stream("bars_1d", as_of="2000-01-01"), fletching.HistoryGone, "did not exist at"),
    "explaining as_of": (lambda cache: cache.explain("bars_1d", as_of="2000-01-01"), fletching.HistoryGone, "did not exist at"),
    "a scan of what is not there": (lambda cache: cache.scan("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "a scan of a column that is not there": (lambda cache: cache.scan("bars_1d", columns=["x"]), fletching.UnknownColumn, "x"),
    "a scan, when it is run": (lambda cache: cache.scan("bars_1d", "NOPE").collect(), fletching.UnknownSymbol, "NOPE"),
    "sql": (lambda cache: cache.sql("select 1"), fletching.NotBuilt, "sql"),
    "warming nothing": (lambda cache: cache.warm(), fletching.InvalidRequest, "name the dataset"),
    "warming what is not there": (lambda cache: cache.warm("bars_9d"), fletching.UnknownDataset, "bars_9d"),
    "an unknown argument of explain": (
        lambda cache: cache.explain("bars_1d", colour="red"), fletching.InvalidRequest, "colour.*on_miss",
    ),
    "writing what a source fills": (
        lambda cache: cache.write("bars_1d", ROWS, keys=KEYS), fletching.InvalidRequest, "filled from source sim",
    ),
    "writing without keys": (lambda cache: cache.write("new_table", ROWS), fletching.InvalidRequest, "name its keys"),
    "keys that are no columns": (
        lambda cache: cache.write("new_table", ROWS, keys=["code", "day"]), fletching.InvalidRequest, "no column code",
    ),
    "a time that is no column": (
        lambda cache: cache.write("new_table", ROWS, keys=["symbol"], time="when"), fletching.InvalidRequest, "when",
    ),
    "a bad mode": (lambda cache: cache.write("new_table", ROWS, keys=KEYS, mode="merge"), fletching.InvalidRequest, "upsert"),
    "a bad partition": (
        lambda cache: cache.write("new_table", ROWS, keys=KEYS, partition="week"), fletching.InvalidRequest, "year, month, day",
    ),
    "a table without a name": (lambda cache: cache.write("", ROWS, keys=KEYS), fletching.InvalidRequest, "is not a dataset name"),
    "what is no table": (lambda cache: cache.write("new_table", [1, 2]), fletching.InvalidRequest, "cannot write a list"),
    "duplicates in an append": (
        lambda cache: cache.write("new_table", DEFECTS, keys=KEYS, mode="append"), fletching.InvalidRequest, "duplicate keys",
    ),
    "a null in a key": (
        lambda cache: cache.write("new_table", ROWS.with_columns(symbol=None), keys=KEYS), fletching.InvalidRequest, "symbol",
    ),
    "NaN": (
        lambda cache: cache.write("new_table", ROWS.with_columns(score=float("nan")), keys=KEYS),
        fletching.InvalidRequest, r"score\[0\] is NaN",
    ),
    "held keys in an append": (lambda cache: twice(cache, "scores_again", "append"), fletching.InvalidRequest, "there already"),
    "other keys": (
        lambda cache: twice(cache, "scores_keys", "upsert", keys=["day", "symbol"]), fletching.InvalidRequest, "leave keys out",
    ),
    "an unknown column in a write": (
        lambda cache: (cache.write("scores_more", ROWS, keys=KEYS), cache.write("scores_more", ROWS.with_columns(extra=1))),
        fletching.InvalidRequest, "has no column extra",
    ),
    "a value that does not fit": (
        lambda cache: (
            cache.write("scores_text", ROWS, keys=KEYS),
            cache.write("scores_text", ROWS.with_columns(score=pl.Series(["1", "2", "many"]))),
        ),
        fletching.InvalidRequest, r"score\[2\] = many is not double",
    ),
    "invalidating a user table": (
        lambda cache: (cache.write("scores_mine", ROWS, keys=KEYS), cache.invalidate("scores_mine")),
        fletching.InvalidRequest, "use delete",
    ),
    "reading what was deleted": (
        lambda cache: (cache.write("brief", ROWS, keys=KEYS), cache.delete("brief"), cache.read("brief")),
        fletching.UnknownDataset, "brief",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_every_plane_raises_the_same_error(name: str, trio: dict[str, Rig]) -> None:
    call, kind, message = ERRORS[name]
    raised, text = agreed(trio, call)
    assert raised is kind
    assert re.search(message, text), text


def test_unknown_names_are_key_errors(cache: Cache) -> None:
    with pytest.raises(KeyError):
        cache.read("nothing")
    with pytest.raises(KeyError):
        cache.read("bars_1d", "600009.SH")
    with pytest.raises(KeyError):
        cache.read("bars_1d", columns="x")


# What is said is also true


def told_apart(read: tuple[pl.DataFrame, ReadInfo]) -> tuple[list[Any], ReadInfo]:
    """Return the rows in memory of their own: what a frame maps cannot be evicted."""
    return read[0].rows(), read[1]


def test_rows_come_from_the_source_once_then_from_memory_then_from_disk(cache: Cache, plane: str) -> None:
    asked = ("bars_1d", UNITED, *DAYS)
    (first, from_source), (second, from_memory) = (told_apart(cache.read(*asked, info=True)) for _ in range(2))
    assert cache.evict()["evicted_bytes"] > 0
    third, from_disk = cache.read(*asked, info=True)
    assert [info.tier for info in (from_source, from_memory, from_disk)] == ["source", "hot", "cold"]
    assert [info.upstream_calls for info in (from_source, from_memory, from_disk)] == [1, 0, 0]
    named = "embedded" if plane == "embedded" else "local" if plane in LOCAL else "flight"
    assert {info.plane for info in (from_source, from_memory, from_disk)} == {named}
    assert second == first
    assert third.rows() == first
    assert cache.stats()["upstream_calls"] == 1


def test_what_is_read_is_what_the_source_has(cache: Cache) -> None:
    expected = sim().fetch(FetchRequest("bars_1d", tuple(UNITED), date(2024, 6, 3), date(2024, 6, 7)))
    frame = cache.read("bars_1d", UNITED, *DAYS)
    assert frame.height == 10
    assert_frame_equal(frame, pl.DataFrame(pl.from_arrow(expected)))
    assert frame["symbol"].unique(maintain_order=True).to_list() == ["000001.SZ", "600000.SH"]


@pytest.mark.parametrize("dataset", ["bars_1d", "bars_1m", "trades", "quotes_l1", "adj_factors", "instruments"])
def test_answers_have_the_standard_types(dataset: str, cache: Cache) -> None:
    frame = cache.read(dataset, "000001.SZ", "2024-06-05", "2024-06-05")
    schema = canonical(dataset, calendar="XSHG").schema
    assert frame.columns == schema.names
    assert frame["symbol"].dtype == pl.String
    assert {kind for kind in frame.dtypes if isinstance(kind, pl.Datetime)} <= {pl.Datetime("us", "UTC")}
    assert cache.schema(dataset).equals(schema, check_metadata=True)
    arrow = cache.read(dataset, "000001.SZ", "2024-06-05", "2024-06-05", output="arrow")
    assert arrow.schema.equals(schema, check_metadata=True)


def test_an_empty_answer_has_its_columns(cache: Cache) -> None:
    full = cache.read("bars_1m", UNITED, "2024-06-05", "2024-06-05")
    empty, info = cache.read("bars_1m", UNITED, "2024-06-08", "2024-06-09", info=True)
    assert (empty.height, info.rows, info.tier) == (0, 0, "none")
    assert empty.schema == full.schema
    stream = cache.stream("bars_1m", UNITED, "2024-06-08", "2024-06-09")
    assert stream.schema.names == full.columns
    assert stream.read_all().num_rows == 0


def test_what_is_written_is_read_back_with_its_types(cache: Cache) -> None:
    rows = pl.DataFrame({
        "symbol": ["B", "A"],
        "ts": [datetime(2024, 1, 2, 3, tzinfo=UTC)] * 2,
        "count": pl.Series([1, -(2**31)], dtype=pl.Int32),
        "big": pl.Series([2**63 - 1, None], dtype=pl.Int64),
        "good": [True, None],
        "text": ["平安银行", ""],
    })  # fmt: skip
    result = cache.write("signals", rows, keys=["symbol", "ts"])
    assert (result.table, result.rows, result.created) == ("signals", 2, True)
    assert_frame_equal(cache.read("signals"), rows.reverse())
    assert_frame_equal(cache.read("signals", "A", columns=["text", "big"]), rows.reverse().head(1).select("text", "big"))


def test_a_closed_cache_says_so(cache: Cache) -> None:
    cache.close()
    cache.close()
    for call in (cache.health, lambda: cache.read("bars_1d", "000001.SZ", *DAYS), lambda: cache.write("new", ROWS, keys=KEYS)):
        with pytest.raises(fletching.InvalidRequest, match="closed"):
            call()


def test_the_cache_names_where_it_is(cache: Cache, rig: Rig) -> None:
    where = str(rig.engine.store.root) if rig.service is None else rig.url
    assert repr(cache) == f"<fletching.Cache of {where}>"
