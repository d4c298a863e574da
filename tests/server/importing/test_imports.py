"""Whole imports into a store: every form, bad rows, duplicates, tables that hold rows, interruption, damage, a full disk."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.conftest import Opener, read, write
from tests.server.importing.quotes import HEADER, WRITERS, bulk, held, in_order, lines, quotes, write_csv, write_mapping

from fletching_schemas import Action
from fletching_schemas.errors import CorruptFile, InvalidRequest, StoreUnwritable, UnknownDataset
from fletching_server import Engine, failpoints
from fletching_server.importing import ImportRequest, conversion, dry_run, plan_import, run_import, staging
from fletching_server.rebuild import rebuild


@pytest.fixture
def engine(open_store: Opener) -> Engine:
    return open_store()


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_becomes_the_same_table(engine: Engine, tmp_path: Path, name: str) -> None:
    if name == "unnamed":
        name += ".txt"
    WRITERS.get(name, write_csv)(tmp_path / name, quotes())
    report = bulk(engine, tmp_path / name)
    assert (report.read, report.kept, report.rejected, report.rejects) == (600, 600, 0, None)
    assert_frame_equal(held(engine), in_order(quotes()))


def test_a_folder_is_imported_whole_and_other_files_are_passed_over(engine: Engine, tmp_path: Path) -> None:
    frame = quotes()
    folder = tmp_path / "files"
    (folder / "deeper").mkdir(parents=True)
    frame[:200].write_parquet(folder / "a.parquet")
    write_csv(folder / "deeper" / "b.csv", frame[200:])
    (folder / "README.md").write_text("not data")
    report = bulk(engine, folder)
    assert report.files == 2
    assert_frame_equal(held(engine), in_order(frame))


def test_what_is_small_in_memory_is_merged_in_many_groups(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(4000, symbols=3)
    report = _chunked(engine, write_csv(tmp_path / "q.csv", frame), chunk_bytes=1500, memory_bytes=40_000)
    assert report.kept == 4000
    assert_frame_equal(held(engine), in_order(frame))


def test_text_longer_than_a_view_and_nulls_survive(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(300).with_columns(
        note=pl.when(pl.int_range(300) % 3 == 0)
        .then(None)
        .otherwise(pl.format("{} says something rather long", pl.int_range(300))),
        bid=pl.when(pl.int_range(300) % 7 == 0).then(None).otherwise(pl.col("bid")),
        good=pl.int_range(300) % 2 == 0,
    )
    frame.write_parquet(tmp_path / "q.parquet")
    bulk(engine, tmp_path / "q.parquet")
    assert_frame_equal(held(engine), in_order(frame))


# Bad rows


def test_bad_rows_are_counted_and_kept_with_file_row_and_reason(engine: Engine, tmp_path: Path) -> None:
    good, instant = quotes(20), "2026-03-02T20:00:00.000000Z"
    bad = [
        f"S01,{instant},abc,2,3,4",
        "S01,yesterday,1,2,3,4",
        f",{instant},1,2,3,4",
        "S01,,1,2,3,4",
        f"S01,{instant},1,2,3",
        f"S01,{instant},1,2,3.5,4",
        f"S01,{instant},nan,2,3,4",
        f"S01,{instant},inf,2,3,4",
    ]
    path = write_csv(tmp_path / "q.csv", good, *bad, *lines(quotes(21)[20:]))
    report = bulk(engine, path, mapping=write_mapping(tmp_path / "m.toml"))
    assert (report.read, report.kept, report.rejected) == (29, 21, 8)
    assert_frame_equal(held(engine), in_order(quotes(21)))
    assert report.rejects is not None
    rejects = pl.read_csv(report.rejects)
    assert rejects["file"].unique().to_list() == [str(path)]
    assert rejects["row"].to_list() == list(range(22, 30)), "lines of the file"
    assert rejects["text"].to_list() == bad
    reasons = [
        "column bid: abc is not a finite number",
        "column ts: yesterday is not a time in UTC",
        "column symbol: is missing",
        "column ts: is missing",
        "5 fields, not 6",
        "column bid_size: 3.5 is not a whole number",
        "column bid: nan is not a finite number",
        "column bid: inf is not a finite number",
    ]
    assert rejects["reason"].to_list() == reasons


def test_rows_of_bad_ones_are_counted_over_chunk_borders(engine: Engine, tmp_path: Path) -> None:
    rows = lines(quotes(400))
    for place in range(50, 400, 100):
        rows[place] = rows[place].replace(",", ",x", 1)
    path = tmp_path / "q.csv"
    path.write_text("\n".join([HEADER, *rows]))
    report = _chunked(engine, path, chunk_bytes=2000)
    assert report.rejects is not None
    assert pl.read_csv(report.rejects)["row"].to_list() == [52, 152, 252, 352]


def test_nan_in_parquet_is_rejected_unless_the_mapping_says_it_is_nothing(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(10).with_columns(bid=pl.when(pl.int_range(10) == 3).then(float("nan")).otherwise(pl.col("bid")))
    frame.write_parquet(tmp_path / "q.parquet")
    report = bulk(engine, tmp_path / "q.parquet", dataset="strict")
    assert (report.kept, report.rejected) == (9, 1)
    mapping = write_mapping(tmp_path / "m.toml", 'nulls = ["NaN"]')
    assert bulk(engine, tmp_path / "q.parquet", dataset="lenient", mapping=mapping).kept == 10
    assert held(engine, "lenient")["bid"].null_count() == 1


def test_bytes_that_are_no_text_are_a_reason(engine: Engine, tmp_path: Path) -> None:
    rows = ["symbol,ts,note", "A,2026-03-02 10:00:00,fine", "A,2026-03-02 10:00:01,caf\xe9", "A,2026-03-02 10:00:02,fine"]
    (tmp_path / "q.csv").write_bytes("\n".join(rows).encode("latin1"))
    report = bulk(engine, tmp_path / "q.csv")
    assert (report.kept, report.rejected) == (2, 1)


def test_where_nothing_can_be_imported_that_is_an_error_with_the_first_reason(engine: Engine, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "q.csv", quotes(3))
    plan = plan_import(engine, ImportRequest([path], "quotes"))
    path.write_text(HEADER + "\nA,never,1,2,3,4\n")
    with pytest.raises(InvalidRequest, match="all of 1 rows were rejected, the first as column ts: never"):
        run_import(engine, plan)
    with pytest.raises(UnknownDataset):
        read(engine, "quotes")


# Duplicates


def test_of_equal_keys_the_last_one_wins_over_chunk_and_file_borders(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(300)
    changed = frame[:60].with_columns(bid=pl.col("bid") + 1)
    first = write_csv(tmp_path / "a.csv", frame, *lines(frame[:30]))
    second = write_csv(tmp_path / "b.csv", changed)
    report = _chunked(engine, first, second, chunk_bytes=1500, memory_bytes=100_000)
    assert (report.read, report.kept, report.duplicates, report.different) == (390, 300, 0, 90)
    assert_frame_equal(held(engine), in_order(pl.concat([changed, frame[60:]])))
    assert report.rejects is not None
    rejects = pl.read_csv(report.rejects).sort("row")
    assert rejects["row"].to_list() == [*range(2, 62), *range(302, 332)]
    assert rejects["reason"].unique().to_list() == ["duplicate: a row with the same key and other values came after it"]
    assert set(rejects["file"]) == {str(first)}


def test_exact_repetitions_are_counted_only(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(50)
    report = bulk(engine, write_csv(tmp_path / "q.csv", frame, *lines(frame[:20])))
    assert (report.kept, report.duplicates, report.different, report.rejects) == (50, 20, 0, None)
    assert_frame_equal(held(engine), in_order(frame))


# Tables that hold rows


def test_rows_that_are_held_stay_and_equal_keys_are_replaced(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(400)
    old = frame[:300].with_columns(ask=pl.col("ask") + 9)
    write(engine, "quotes", old[:150].to_arrow(), keys=["symbol", "ts"], partition="day")
    engine.act(Action.COMPACT, {"dataset": "quotes"})
    write(engine, "quotes", old[150:].to_arrow())
    report = bulk(engine, write_csv(tmp_path / "q.csv", frame[200:]))
    assert (report.kept, report.replaced) == (200, 100)
    assert_frame_equal(held(engine), in_order(pl.concat([old[:200], frame[200:]])))


def test_an_import_may_be_repeated(engine: Engine, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "q.csv", quotes(100))
    bulk(engine, path)
    again = bulk(engine, path)
    assert (again.kept, again.replaced) == (100, 100)
    assert_frame_equal(held(engine), in_order(quotes(100)))
    assert len(list((engine.store.root / "data").rglob("*.parquet"))) <= 2 * again.partitions, "what was replaced may be history"


def test_a_damaged_partition_that_must_be_rewritten_is_an_error_and_stays(open_store: Opener, tmp_path: Path) -> None:
    engine = open_store()
    bulk(engine, write_csv(tmp_path / "q.csv", quotes(100, days=1)))
    engine = open_store.again(engine)
    [file] = (engine.store.root / "data").rglob("*.parquet")
    raw = bytearray(file.read_bytes())
    raw[200] ^= 1
    file.write_bytes(raw)
    open_store.damaged = True
    with pytest.raises(CorruptFile, match="restore this file"):
        bulk(engine, write_csv(tmp_path / "more.csv", quotes(200, days=1)[100:]))
    assert file.exists()


# Where it ends up


def test_a_large_period_is_divided_into_buckets_and_a_table_keeps_its_own(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(500, symbols=40, days=1)
    report = bulk(engine, write_csv(tmp_path / "q.csv", frame[:300]), buckets=4, partition="day")
    assert report.partitions == 4
    bulk(engine, write_csv(tmp_path / "more.csv", frame[300:]))
    assert engine.schema("quotes").buckets == 4
    assert_frame_equal(held(engine), in_order(frame))


def test_the_record_tells_files_mapping_and_reductions(engine: Engine, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "q.csv", quotes(100), "S01,never,1,2,3,4")
    bulk(engine, path)
    [row] = engine.act(Action.PROVENANCE, {"dataset": "quotes"}).to_pylist()  # type: ignore[union-attr]
    told = json.loads(row["arguments"])
    assert (row["function"], row["rows"], row["provider"]) == ("import", 100, "fletching")
    assert told["inputs"][0]["path"] == str(path)
    assert len(told["inputs"][0]["digest"]) == 32
    assert (told["read"], told["kept"], told["rejected"]) == (101, 100, 1)
    assert told["mapping"]["keys"] == ["symbol", "ts"]


def test_what_a_source_fills_cannot_be_imported_into(open_store: Opener, tmp_path: Path) -> None:
    engine = open_store("sim")
    with pytest.raises(InvalidRequest, match="filled from a source"):
        bulk(engine, write_csv(tmp_path / "q.csv", quotes(5)), dataset="bars_1d")


# Interruption


def test_after_a_failure_what_is_staged_is_not_parsed_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = quotes(600)
    plan = _plan(engine, write_csv(tmp_path / "q.csv", frame), chunk_bytes=2000)
    parsed: list[int] = []
    convert = conversion.convert

    def failing(raw, *rest):  # type: ignore[no-untyped-def]
        parsed.append(raw.records)
        if len(parsed) == 8:
            raise KeyboardInterrupt
        return convert(raw, *rest)

    monkeypatch.setattr(staging, "convert", failing)
    with pytest.raises(KeyboardInterrupt):
        run_import(engine, plan)
    with pytest.raises(UnknownDataset):
        read(engine, "quotes")
    staged = len(list(engine.store.root.glob("import/*/chunks/*.index.arrow")))
    assert staged >= 5
    parsed.clear()
    parsed.extend([0] * 100)
    report = run_import(engine, plan)
    assert report.resumed_chunks == staged
    chunks = len({*range(0, path_size(plan), 2000)})
    assert len(parsed) - 100 <= chunks + 2 - staged
    assert_frame_equal(held(engine), in_order(frame))


def path_size(plan) -> int:  # type: ignore[no-untyped-def]
    return sum(source.bytes for source in plan.inputs)


def test_staged_rows_that_were_torn_are_staged_anew_and_a_full_disk_is_told(open_store: Opener, tmp_path: Path) -> None:
    engine = open_store()
    frame = quotes(300)
    plan = _plan(engine, write_csv(tmp_path / "q.csv", frame), chunk_bytes=2000)
    with failpoints.armed("import.sync", "enospc"), pytest.raises(StoreUnwritable, match="No space left"):
        run_import(engine, plan)
    engine = open_store.again(engine)
    assert not list((engine.store.root / "data").rglob("*.parquet")), "what no commit will mention is gone"
    rows = sorted(engine.store.root.glob("import/*/chunks/*.rows.arrow"))
    rows[0].write_bytes(b"\0" * rows[0].stat().st_size)
    rows[1].with_name(rows[1].name.replace("rows", "index")).write_bytes(b"")
    rows[2].unlink()
    report = run_import(engine, plan)
    assert report.resumed_chunks == len(rows) - 3
    assert_frame_equal(held(engine), in_order(frame))


def test_damaged_inputs_are_named_and_nothing_is_published(engine: Engine, tmp_path: Path) -> None:
    whole = tmp_path / "q.csv.gz"
    WRITERS["q.csv.gz"](whole, quotes(5000))
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(InvalidRequest, match=r"cannot read .*q.csv.gz"):
        bulk(engine, whole)
    broken = tmp_path / "q.parquet"
    quotes(5000).write_parquet(broken)
    raw = bytearray(broken.read_bytes())
    raw[-8:] = b"\0" * 8
    broken.write_bytes(raw)
    with pytest.raises(InvalidRequest, match=r"cannot read .*q.parquet"):
        bulk(engine, broken)
    assert engine.names() == []


# Looking without writing


def test_a_dry_run_counts_everything_and_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    frame = quotes(100)
    path = write_csv(tmp_path / "q.csv", frame, *lines(frame[:7]), "S01,never,1,2,3,4")
    before = sorted(engine.store.root.rglob("*"))
    report = dry_run(plan_import(engine, ImportRequest([path], "quotes")))
    assert (report.read, report.kept, report.duplicates, report.rejected) == (108, 100, 7, 1)
    assert sorted(engine.store.root.rglob("*")) == before


def test_a_table_of_a_database_must_be_named_where_there_are_several(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    WRITERS["q.sqlite"](path, quotes(50))
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (x)")
    database.close()
    with pytest.raises(InvalidRequest, match="other, quotes: name one"):
        bulk(engine, path)
    with pytest.raises(InvalidRequest, match="not bars"):
        bulk(engine, path, table="bars")
    assert bulk(engine, Path(f"{path}:quotes")).kept == 50
    assert bulk(engine, path, table="quotes", dataset="again").kept == 50


def _plan(engine: Engine, *paths: Path, chunk_bytes: int):  # type: ignore[no-untyped-def]
    return replace(plan_import(engine, ImportRequest(paths, "quotes")), chunk_bytes=chunk_bytes)


def _chunked(engine: Engine, *paths: Path, chunk_bytes: int, memory_bytes: int = 32 << 20):  # type: ignore[no-untyped-def]
    return run_import(engine, _plan(engine, *paths, chunk_bytes=chunk_bytes), memory_bytes=memory_bytes)


def test_an_imported_table_is_rebuilt_from_its_files(open_store: Opener, tmp_path: Path) -> None:
    engine, frame = open_store(), quotes(300)
    write(engine, "quotes", frame[:50].to_arrow(), keys=["symbol", "ts"], partition="day")
    bulk(engine, write_csv(tmp_path / "q.csv", frame[:200]))
    write(engine, "quotes", frame[200:].to_arrow())
    bulk(engine, write_csv(tmp_path / "new.csv", frame), dataset="fresh")
    engine.close()
    told = rebuild(engine.settings.store)
    assert told.problems == []
    again = open_store.again(engine)
    assert_frame_equal(held(again), in_order(frame))
    assert_frame_equal(held(again, "fresh"), in_order(frame))
