from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, ListingSource, Opener, TableSource, bars, read, read_info, weekdays, write

from fletching_schemas import Action, Dataset, ReadRequest, canonical
from fletching_schemas.errors import (
    BadSourceData,
    InvalidRequest,
    ServerClosing,
    SourceTimeout,
    SourceUnavailable,
    StoreError,
    StoreInUse,
    UnknownDataset,
    UnknownSymbol,
)
from fletching_server import Engine

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)


# Opening


def test_a_store_that_is_open_is_not_opened_again(open_store: Opener, engine: Engine) -> None:
    del engine
    with pytest.raises(StoreInUse, match="one process at a time"):
        open_store()


def test_two_sources_may_not_offer_one_dataset(open_store: Opener, daily: Dataset) -> None:
    with pytest.raises(InvalidRequest, match="dataset bars_1d is offered by one and by two"):
        open_store(TableSource(daily, {}, name="one"), TableSource(daily, {}, name="two"))


def test_what_is_no_source_is_refused(open_store: Opener) -> None:
    with pytest.raises(InvalidRequest, match="is not a source: it needs a name"):
        open_store({"bars": 1})  # type: ignore[arg-type]


def test_a_source_that_offers_something_else_than_datasets_is_refused(open_store: Opener, source: TableSource) -> None:
    source.dataset = "bars_1d"  # type: ignore[assignment]
    with pytest.raises(BadSourceData, match="offers 'bars_1d', which is not a"):
        open_store(source)


def test_after_a_refusal_the_store_is_free(open_store: Opener, source: TableSource, daily: Dataset) -> None:
    with pytest.raises(InvalidRequest):
        open_store(source, TableSource(daily, {}, name="two"))
    assert read(open_store(source), symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5


def test_rows_of_one_source_are_not_mixed_with_anothers(open_store: Opener, engine: Engine, daily: Dataset) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    with pytest.raises(StoreError, match="came from source table, not from other: use another store, or delete bars_1d"):
        open_store.again(engine, TableSource(daily, {}, name="other"))


@pytest.mark.parametrize("changes", [{"buckets": 4}, {"period": "month"}], ids=str)
def test_rows_of_one_shape_are_not_mixed_with_anothers(
    open_store: Opener, engine: Engine, source: TableSource, changes: dict[str, Any]
) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    source.dataset = replace(source.dataset, **changes)
    with pytest.raises(StoreError, match="has other columns, keys or partitions than table offers"):
        open_store.again(engine, source)


def test_a_source_may_not_take_over_a_users_table(open_store: Opener, source: TableSource) -> None:
    engine = open_store()
    write(engine, "bars_1d", [{"symbol": "a", "trading_date": MON}], keys=["symbol", "trading_date"])
    with pytest.raises(StoreError, match="bars_1d is a user table of this store, and source table offers it too"):
        open_store.again(engine, source)


def test_what_a_source_promises_of_itself_may_change(open_store: Opener, engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    source.dataset = replace(source.dataset, fresh_seconds=9.0, symbols_per_call=3, description="better")
    again = open_store.again(engine, source)
    assert again.schema("bars_1d").fresh_seconds == 9.0
    assert read_info(again, symbols=SYMBOLS[0], start=MON, end=FRI)[1].upstream_calls == 0


def test_a_dataset_without_rows_may_change_its_shape(open_store: Opener, engine: Engine, source: TableSource) -> None:
    source.dataset = replace(source.dataset, buckets=4)
    assert open_store.again(engine, source).schema("bars_1d").buckets == 4


# Listing


def test_a_list_of_symbols_is_asked_for_once_a_minute(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = ListingSource(source.dataset, source.rows)
    asked: list[str] = []
    real = listing.symbols
    monkeypatch.setattr(listing, "symbols", lambda dataset: asked.append(dataset) or real(dataset))  # type: ignore[func-returns-value]
    engine = open_store(listing)
    for seconds in (0, 60, 1):
        open_store.clock.advance(seconds=seconds)
        read(engine, start=MON, end=FRI)
    assert len(asked) == 2


def test_a_list_that_fails_fails_the_read_of_all_symbols_only(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> list[str]:
        raise RuntimeError("no list today")

    listing = ListingSource(source.dataset, source.rows)
    monkeypatch.setattr(listing, "symbols", fail)
    engine = open_store(listing)
    with pytest.raises(SourceUnavailable, match="no list today"):
        read(engine, start=MON, end=FRI)
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5
    assert read(engine, start=MON, end=FRI, on_miss="cached").num_rows == 5


def test_a_list_that_hangs_is_given_up(open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = ListingSource(source.dataset, source.rows)
    listing.block()
    monkeypatch.setattr(listing, "symbols", lambda _: [str(listing._open.wait(10))])
    engine = open_store(listing, source_seconds=0.1)
    with pytest.raises(SourceTimeout):
        read(engine, start=MON, end=FRI)
    listing.unblock()


# The verbs


@pytest.mark.parametrize(
    ("action", "body", "complaint"),
    [
        (Action.STATS, {"x": 1}, "this action takes no arguments; it got x"),
        (Action.VERIFY, {"dataset": "bars_1d"}, "takes no arguments"),
        (Action.COMPACT, {}, "takes one argument, the dataset's name; it got none"),
        (Action.COMPACT, {"dataset": 1}, "takes one argument"),
        (Action.DELETE, {"dataset": "bars_1d", "really": True}, "takes one argument"),
        (Action.COVERAGE, {"symbols": "a"}, "name the dataset"),
        (Action.COVERAGE, {"dataset": "bars_1d", "columns": ["a"]}, "unknown argument columns"),
        (Action.INVALIDATE, {"dataset": "bars_1d", "start": "yesterday"}, "is not a date"),
        (Action.EXPLAIN, {"dataset": "bars_1d", "colour": 1}, "unknown argument colour"),
    ],
    ids=str,
)
def test_arguments_that_an_action_does_not_have_are_refused(
    engine: Engine, action: Action, body: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        engine.act(action, body)


@pytest.mark.parametrize(
    "action", [Action.COMPACT, Action.DELETE, Action.EVICT, Action.INVALIDATE, Action.COVERAGE, Action.EXPLAIN]
)
def test_actions_on_what_does_not_exist_say_what_does(engine: Engine, action: Action) -> None:
    with pytest.raises(UnknownDataset, match="there are: bars_1d"):
        engine.act(action, {"dataset": "nope"})


def test_coverage_tells_every_run_of_cells_with_its_state(engine: Engine, source: TableSource) -> None:
    del source.rows[SYMBOLS[0], date(2026, 11, 4)]
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    asked = len(source.requests)
    table = engine.act(Action.COVERAGE, {"dataset": "bars_1d", "symbols": SYMBOLS[0], "start": "2026-11-02", "end": "2026-11-10"})
    assert isinstance(table, pa.Table)
    rows = [(row["first"].day, row["last"].day, row["sessions"], row["state"], row["reason"]) for row in table.to_pylist()]
    assert rows == [
        (2, 3, 2, "final", None),
        (4, 4, 1, "empty", "no_trade"),
        (5, 6, 2, "final", None),
        (9, 10, 2, "missing", None),
    ]
    assert len(source.requests) == asked


def test_explaining_a_read_does_nothing_and_tells_what_it_would_cost(engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    told = engine.act(
        Action.EXPLAIN, {"dataset": "bars_1d", "symbols": list(SYMBOLS[:2]), "start": "2026-11-02", "end": "2026-11-06"}
    )
    assert isinstance(told, dict)
    assert told["upstream_calls"] == ["bars_1d 000002.SZ 2026-11-02..2026-11-06"]
    assert [(file["kind"], file["tier"], file["rows"]) for file in told["files"]] == [("segment", "hot", 5)]
    assert len(source.requests) == 1


def test_a_table_of_datasets_tells_what_is_held_where(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS[:2], start=MON, end="2026-11-09")
    write(engine, "mine", [{"id": "a", "day": MON}], keys=["id", "day"])
    table = engine.act(Action.DATASETS, {})
    assert isinstance(table, pa.Table)
    columns = ["name", "kind", "source", "symbols", "rows", "files", "first", "last"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == [
        ("bars_1d", "sourced", "table", 2, 12, 2, MON, date(2026, 11, 9)),
        ("mine", "table", None, 1, 1, 1, MON, MON),
    ]


def test_what_was_asked_in_vain_does_not_count_as_held(engine: Engine, source: TableSource) -> None:
    del source.rows[SYMBOLS[0], MON]
    read(engine, symbols=SYMBOLS[0], start=date(2026, 10, 26), end=FRI)
    table = engine.act(Action.DATASETS, {})
    assert isinstance(table, pa.Table)
    assert table.column("first").to_pylist() == [date(2026, 11, 3)]


def test_evicting_one_dataset_leaves_the_others_in_memory(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    write(engine, "mine", [{"id": "a", "day": MON}], keys=["id", "day"])
    evicted = engine.act(Action.EVICT, {"dataset": "mine"})
    assert isinstance(evicted, dict)
    assert evicted["evicted_bytes"] > 0
    assert read_info(engine, symbols=SYMBOLS[0], start=MON, end=FRI)[1].tier == "hot"
    assert read_info(engine, "mine")[1].tier == "cold"


def test_deleting_what_a_source_offers_empties_it(engine: Engine, source: TableSource) -> None:
    read(engine, symbols=SYMBOLS[0], start=MON, end=FRI)
    engine.act(Action.DELETE, {"dataset": "bars_1d"})
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI, on_miss="cached").num_rows == 0
    assert read(engine, symbols=SYMBOLS[0], start=MON, end=FRI).num_rows == 5
    assert len(source.requests) == 2


def test_a_user_table_is_not_invalidated(engine: Engine) -> None:
    write(engine, "mine", [{"id": "a", "day": MON}], keys=["id", "day"])
    with pytest.raises(InvalidRequest, match="nothing could fetch it again; use delete"):
        engine.act(Action.INVALIDATE, {"dataset": "mine"})


def test_describing_tells_rows_only_where_they_are_certain(open_store: Opener) -> None:
    dataset = canonical("bars_1d", calendar="XSHG", period="month")
    source = ListingSource(dataset, bars(SYMBOLS, weekdays(MON, FRI)))
    engine = open_store(source)
    everything = ReadRequest("bars_1d", SYMBOLS, MON, FRI)
    assert engine.describe(everything) == (dataset.schema, -1)
    read(engine, start=MON, end=FRI)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    assert engine.describe(everything) == (dataset.schema, 25)
    assert engine.describe(ReadRequest("bars_1d", SYMBOLS[:2], MON, FRI))[1] == -1


def test_a_closed_engine_does_nothing_any_more(open_store: Opener) -> None:
    engine = open_store()
    engine.close()
    with pytest.raises(ServerClosing):
        write(engine, "mine", [{"id": "a", "day": MON}], keys=["id", "day"])
    with pytest.raises(ServerClosing):
        engine.act(Action.STATS, {})


def test_a_symbol_that_nobody_lists_is_unknown_and_forgetting_it_is_too(open_store: Opener, source: TableSource) -> None:
    engine = open_store(ListingSource(source.dataset, source.rows))
    with pytest.raises(UnknownSymbol):
        read(engine, symbols="000333", start=MON, end=FRI)
