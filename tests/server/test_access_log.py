"""The access log: one event per read, told as it was, whatever happens to files, clocks and disks."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import NOW, SYMBOLS, Opener, TableSource, in_threads, read, write

from fletching_schemas import Action, PartRequest, ReadRequest
from fletching_schemas.errors import InvalidRequest, UnknownColumn, UnknownDataset
from fletching_schemas.filters import Compare, OneOf
from fletching_server import Engine, access_log, failpoints, noting, reads
from fletching_server.access import AccessEvent, Touched, group_of
from fletching_server.access_files import MANY, AccessFiles
from fletching_server.access_table import EVENTS, to_events, to_table
from fletching_server.access_trace import trace_of
from fletching_server.noting import Noted, thinned
from fletching_server.testing import ManualClock

FIRST, LAST = date(2026, 11, 2), date(2026, 11, 20)
TODAY = NOW.date()


def events(engine: Engine) -> list[AccessEvent]:
    return list(engine.access.events())


def days_since(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def stats(engine: Engine) -> dict[str, Any]:
    found = engine.act(Action.STATS, {})
    assert isinstance(found, dict)
    return found


def day_files(engine: Engine, kind: str = "events") -> list[Path]:
    return sorted(engine.access.files.root.glob(f"*/{kind}-*.pq"))


# What is told of a read


def test_a_read_is_told_with_what_it_asked_and_where_that_came_from(engine: Engine) -> None:
    asked = ReadRequest("bars_1d", ("000001", "600519"), FIRST, LAST, ("symbol", "close"), profile="trading")
    engine.read(asked, "flight", "ipv4:10.0.0.7:51234").close()
    (event,) = events(engine)
    assert (event.at, event.principal, event.profile) == (NOW.timestamp(), "ipv4:10.0.0.7", "trading")
    assert (event.dataset, event.symbols, event.columns) == ("bars_1d", ("000001.SZ", "600519.SH"), ("symbol", "close"))
    assert event.group == group_of(["600519.SH", "000001.SZ"])
    assert (event.first, event.last, event.open_end) == (days_since(FIRST), days_since(LAST), False)
    assert event.upstream_calls == 2
    assert {(part.period, part.bucket, part.tier, part.warmed) for part in event.touched} == {("", 0, "source", False)}
    assert event.request_id


def test_rows_and_bytes_are_those_of_the_answer(engine: Engine) -> None:
    answer = engine.read(ReadRequest("bars_1d", SYMBOLS, FIRST, LAST))
    rows = sum(batch.num_rows for batch in answer)
    (event,) = events(engine)
    assert (event.rows, event.bytes) == (rows, answer.info.bytes)
    assert event.rows == 75


def test_tiers_follow_the_partition(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS)
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    engine.act(Action.EVICT, {})
    for _ in range(2):
        read(engine, symbols=SYMBOLS)
    (file,) = engine.store.state("bars_1d").files
    tiers = [event.touched for event in events(engine)][1:]
    assert tiers == [(Touched("2026", 0, file.memory_bytes, tier),) for tier in ("cold", "hot")]


def test_a_read_without_bounds_says_so(engine: Engine) -> None:
    read(engine, on_miss="cached")
    read(engine, symbols="000001.SZ", start=FIRST)
    whole, one = events(engine)
    assert (whole.group, whole.symbols, whole.first, whole.open_end) == ("*", (), None, True)
    assert (one.group, one.symbols, one.first, one.last, one.open_end) == (
        *("000001.SZ", ("000001.SZ",), days_since(FIRST), days_since(LAST), True),
    )


def test_a_filter_counts_as_what_it_was_narrowed_to_and_rows_as_those_of_the_answer(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS)
    where = OneOf("symbol", ("000001.SZ", "000002.SZ"))
    table = read(engine, where=where, limit=3, columns=("symbol",))
    event = events(engine)[-1]
    assert (event.symbols, event.rows, event.columns) == (("000001.SZ", "000002.SZ"), 3, ("symbol",))
    assert table.num_rows == 3
    read(engine, where=Compare("symbol", "==", "no such"))
    nothing = events(engine)[-1]
    assert (nothing.dataset, nothing.rows, nothing.touched) == ("bars_1d", 0, ())


def test_an_adjusted_read_is_one_event_with_the_calls_for_its_factors(open_store: Opener) -> None:
    engine = open_store("sim")
    read(engine, symbols="000001.SZ", start="2024-03-01", end="2024-03-29", adjust="qfq", columns=("close",))
    (event,) = events(engine)
    assert (event.dataset, event.columns, event.upstream_calls) == ("bars_1d", ("close",), 2)


def test_parts_of_an_answer_are_one_read(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS)
    whole = ReadRequest("bars_1d", SYMBOLS, on_miss="cached")
    generation = engine.store.state("bars_1d").generation
    before = len(events(engine))
    for part in (1, 0):
        engine.read(PartRequest(whole, part, 2, generation), "flight", f"ipv4:10.0.0.7:{part}").table()
    engine.access.flush()
    assert len(events(engine)) == before  # these two had different connections, and wait for their siblings
    for part in (1, 0):
        engine.read(PartRequest(whole, part, 2, generation), "flight", "ipv4:10.0.0.7:9").table()
    event = events(engine)[-1]
    assert len(events(engine)) == before + 1
    assert (event.symbols, event.rows, event.group) == (SYMBOLS, 75, group_of(SYMBOLS))


def test_a_part_whose_siblings_never_come_is_told_in_the_end(engine: Engine, clock: ManualClock) -> None:
    read(engine, symbols=SYMBOLS)
    part = PartRequest(ReadRequest("bars_1d", SYMBOLS), 0, 2, engine.store.state("bars_1d").generation)
    engine.read(part).table()
    assert len(events(engine)) == 1
    clock.advance(minutes=2)
    assert [event.rows for event in events(engine)] == [75, 30]


def test_reads_of_nobody_are_not_told(engine: Engine) -> None:
    engine._reads.read(ReadRequest("bars_1d", SYMBOLS), "embedded", "warmer").close()
    with pytest.raises(UnknownColumn):
        read(engine, symbols=SYMBOLS, columns=("no such",))
    assert events(engine) == []


def test_without_a_log_nothing_is_written(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, access_log=False)
    read(engine, symbols=SYMBOLS)
    assert (events(engine), engine.access.files.root.exists()) == ([], False)
    assert read(engine, "system.access_log").num_rows == 0


# Listeners and groups


def test_listeners_hear_each_batch_once_and_errors_of_one_are_its_own(engine: Engine, logs: list[Any]) -> None:
    heard: list[Sequence[AccessEvent]] = []

    def fail(_: Sequence[AccessEvent]) -> None:
        raise ValueError("a bug of a listener")

    engine.access.listeners += [fail, heard.append]
    read(engine, symbols="000001.SZ")
    read(engine, symbols="000002.SZ")
    engine.access.flush()
    engine.access.flush()
    read(engine, symbols="300750.SZ")
    engine.access.flush()
    assert [[event.group for event in batch] for batch in heard] == [["000001.SZ", "000002.SZ"], ["300750.SZ"]]
    assert [event for batch in heard for event in batch] == events(engine)
    assert [line["event"] for line in logs if "listener" in line["event"]] == [
        "a listener of the access log failed; it hears of later reads"
    ] * 2


def test_a_group_is_known_by_its_members_now_and_after_a_restart(open_store: Opener) -> None:
    symbols = tuple(f"{number:06}.SZ" for number in range(1, 101))
    engine = open_store()
    write(engine, "mine", [{"symbol": name, "day": FIRST, "x": 1} for name in symbols], keys=["symbol", "day"])
    read(engine, "mine", symbols)
    read(engine, "mine", symbols)
    (event, again) = events(engine)
    assert (event.symbols, event.group) == ((), again.group)
    assert engine.access.members(event.group) == symbols
    engine = open_store.again(engine)
    assert engine.access.members(event.group) == symbols
    assert engine.access.members("000001.SZ") == ("000001.SZ",)
    assert (engine.access.members("*"), engine.access.members("#0123456789abcdef")) == ((), ())


@pytest.mark.parametrize(
    ("symbols", "group"), [(None, "*"), (["a"], "a"), (["b", "a"], "#da4ff4feb37737fe"), (["a", "b"], "#da4ff4feb37737fe")]
)
def test_groups_are_named_after_their_symbols(symbols: list[str] | None, group: str) -> None:
    assert group_of(symbols) == group


# Too many at once


def test_reads_alike_that_come_too_fast_are_counted(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS)
    engine.access.flush()
    for _ in range(1000):
        engine.read(ReadRequest("bars_1d", ("000001.SZ",), FIRST, LAST)).close()
    told = events(engine)[1:]
    assert len(told) == access_log.SINGLY
    assert sum(1 + event.repeats for event in told) == 1000
    assert (stats(engine)["logged_reads"], stats(engine)["unlogged_reads"]) == (1001, 0)


def test_reads_that_differ_are_told_up_to_a_bound_and_counted_beyond(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "SINGLY", 2)
    monkeypatch.setattr(access_log, "MOST_EVENTS", 3)
    read(engine, symbols=SYMBOLS)
    engine.access.flush()
    for symbol in SYMBOLS:
        engine.read(ReadRequest("bars_1d", (symbol,), FIRST, LAST), "flight", "a flood").close()
    engine.read(ReadRequest("bars_1d", ("000001.SZ",), FIRST, LAST), "flight", "somebody").close()
    assert [event.group for event in events(engine)[1:]] == [*SYMBOLS[:3], "000001.SZ"]
    assert stats(engine)["unlogged_reads"] == 2


@pytest.mark.parametrize("dataset", ["mine", "bars_1d"])
def test_what_waits_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    monkeypatch.setattr(noting, "MOST_WAITING", 10)
    monkeypatch.setattr(reads, "MOST_WAITING", 10)
    write(engine, "mine", [{"symbol": "a", "day": FIRST, "x": 1}], keys=["symbol", "day"])
    for number in range(15):  # a plan that is kept, or one made anew each time
        columns = ("x",) if dataset == "mine" else ("close",)
        read(engine, dataset, "a" if dataset == "mine" else SYMBOLS[number % 5], on_miss="cached", columns=columns)
    queue = engine.access.queue
    assert queue
    assert len(queue.waiting) <= 10
    assert sum(1 + event.repeats for event in events(engine)) + stats(engine)["unlogged_reads"] == 15
    assert stats(engine)["unlogged_reads"] > 0


def test_no_read_is_lost_between_threads(engine: Engine) -> None:
    read(engine, symbols=SYMBOLS)

    def some(number: int) -> None:
        for _ in range(50):
            engine.read(ReadRequest("bars_1d", (SYMBOLS[number],), FIRST, LAST), "flight", f"reader {number}").close()
            if number == 4:
                engine.access.flush()

    in_threads(5, some)
    told = [event for event in events(engine) if event.principal != "embedded"]
    assert {symbol: sum(1 + event.repeats for event in told if event.group == symbol) for symbol in SYMBOLS} == dict.fromkeys(
        SYMBOLS, 50
    )


def test_thinning_tells_all_of_a_batch_that_is_no_flood(engine: Engine) -> None:
    answers = [engine.read(ReadRequest("bars_1d", (symbol,), FIRST, LAST)) for symbol in SYMBOLS * 2]
    for answer in answers:
        answer.close()
    batch = [Noted._make(answer.reading.noted) for answer in answers if answer.reading and answer.reading.noted]
    assert len(batch) == 10
    assert thinned(batch, 100, 1000) == ([(noted, 0) for noted in batch], 0)
    told, left_out = thinned(batch, 0, 1000)
    assert (sum(1 + repeats for _, repeats in told), left_out) == (10, 0)


# Principals


def test_principals_are_hidden_behind_a_key_that_stays(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, access_hash=True)
    for principal in ("ipv4:10.0.0.7:1", "ipv4:10.0.0.7:2", "ipv4:10.0.0.8:1"):
        engine.read(ReadRequest("bars_1d", ("000001.SZ",)), "flight", principal).close()
    names = [event.principal for event in events(engine)]
    assert names[0] == names[1] != names[2]
    key = engine.access.files.root / "key"
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)
    engine = open_store.again(engine, source, access_hash=True)
    engine.read(ReadRequest("bars_1d", ("000001.SZ",)), "flight", "ipv4:10.0.0.7:3").close()
    assert sorted(event.principal for event in events(engine)) == sorted([*names, names[0]])
    assert not any(b"10.0.0" in path.read_bytes() for path in engine.access.files.root.rglob("*") if path.is_file())


def test_a_damaged_key_is_made_anew_and_that_is_said(open_store: Opener, source: TableSource, logs: list[Any]) -> None:
    engine = open_store(source, access_hash=True)
    engine.access.files.root.mkdir()
    (engine.access.files.root / "key").write_bytes(b"short")
    read(engine, symbols="000001.SZ")
    assert len(events(engine)[0].principal) == 16
    assert [line["event"] for line in logs if "pseudonyms" in line["event"]]


# Files


def test_days_that_are_over_are_one_file(engine: Engine, clock: ManualClock) -> None:
    for _ in range(5):
        read(engine, symbols=SYMBOLS)
        engine.access.flush()
        clock.advance(minutes=1)
    assert len(day_files(engine)) == 5
    before = events(engine)
    clock.advance(days=1)
    engine.access._worked()
    (file,) = day_files(engine)
    assert events(engine) == before
    frame = pl.read_parquet(file)  # any tool reads it
    assert frame["dataset"].to_list() == ["bars_1d"] * 5


def test_many_small_files_become_one(engine: Engine) -> None:
    for _ in range(MANY):
        read(engine, symbols="000001.SZ")
        engine.access.flush()
    (file,) = day_files(engine)
    assert (pq.ParquetFile(file).metadata.num_rows, len(events(engine))) == (MANY, MANY)


def test_a_join_that_is_cut_short_leaves_no_event_twice(engine: Engine, clock: ManualClock) -> None:
    for _ in range(3):
        read(engine, symbols="000001.SZ")
        engine.access.flush()
    before = events(engine)
    clock.advance(days=1)
    with failpoints.armed("retire.unlink", "eio"):
        engine.access._worked()
    assert len(day_files(engine)) == 2  # the joined one, and one that could not be removed
    assert events(engine) == before
    clock.advance(days=1)
    engine.access._worked()
    assert (len(day_files(engine)), events(engine)) == (1, before)


@pytest.mark.parametrize(
    "damage", ["flipped", "torn", "empty", "text", "other version", "no version", "other columns", "no JSON", "no list"]
)
def test_a_file_that_cannot_be_read_is_skipped_with_one_line(
    open_store: Opener, source: TableSource, logs: list[Any], damage: str
) -> None:
    engine = open_store(source)
    for symbol in SYMBOLS[:3]:
        read(engine, symbols=symbol)
        engine.access.flush()
    paths = {pq.read_table(path)["group"][0].as_py(): path for path in day_files(engine)}
    hurt(paths[SYMBOLS[1]], damage)
    engine = open_store.again(engine, source)
    for _ in range(2):
        assert [event.group for event in events(engine)] == [SYMBOLS[0], SYMBOLS[2]]
    lines = [line for line in logs if line["event"].startswith("a file of the access log")]
    assert [(line["log_level"], Path(line["file"]).name) for line in lines] == [("warning", paths[SYMBOLS[1]].name)]
    assert lines[0]["why"]
    assert read(engine, "system.access_log").num_rows == 2


def hurt(path: Path, damage: str) -> None:
    raw, table = bytearray(path.read_bytes()), pq.read_table(path)
    if damage == "flipped":
        place = raw.find(b"research")
        raw[place if place > 0 else 40] ^= 1
    raw = {"torn": raw[: len(raw) // 2], "empty": bytearray(), "text": bytearray(b"hello")}.get(damage, raw)
    path.write_bytes(raw)
    metadata = {"fletching.access_log": "1", "fletching.replaces": "[]"}
    if damage == "other version":
        pq.write_table(table.replace_schema_metadata(metadata | {"fletching.access_log": "2"}), path)
    if damage == "no version":
        pq.write_table(table.replace_schema_metadata(None), path)
    if damage in {"no JSON", "no list"}:  # as a flipped bit in a footer leaves it
        replaces = b"\xff[]" if damage == "no JSON" else b"[1]"
        pq.write_table(table.replace_schema_metadata(metadata | {"fletching.replaces": replaces}), path)
    if damage == "other columns":
        pq.write_table(table.drop_columns(["rows"]).replace_schema_metadata(metadata), path)


def test_foreign_files_and_missing_days_disturb_nobody(engine: Engine, clock: ManualClock) -> None:
    read(engine, symbols="000001.SZ")
    engine.access.flush()
    root = engine.access.files.root
    (root / "2026-11-20" / "notes.txt").write_text("mine")
    (root / "not a day").mkdir()
    (root / "2026-11-19").mkdir()
    clock.advance(days=1)
    engine.access._worked()
    assert len(events(engine)) == 1
    for path in day_files(engine):
        path.unlink()
    assert events(engine) == []


def test_a_file_where_a_day_s_folder_belongs_is_skipped_with_one_line(
    engine: Engine, clock: ManualClock, logs: list[Any]
) -> None:
    read(engine, symbols="000001.SZ")
    engine.access.flush()
    (engine.access.files.root / "2026-11-01").write_text("no folder")
    for _ in range(2):
        assert len(events(engine)) == 1
        assert read(engine, "system.access_log").num_rows == 1
        engine.access._worked()
        clock.advance(days=1)
    assert trace_of(engine.store.root).num_rows == 1
    lines = [line for line in logs if line["event"].startswith("a file of the access log")]
    assert {Path(line["file"]).name for line in lines} == {"2026-11-01"}
    assert len(lines) == 2  # one of the engine's, one of the trace's


def test_a_log_that_fails_once_is_learned_from_the_next_time(
    open_store: Opener, source: TableSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_store(source)
    read(engine, symbols="000001.SZ")
    engine.access.flush()
    engine = open_store.again(engine, source)
    learning, closing = engine.warmer._learning, threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(AccessFiles, "days", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            learning.take(closing)
    learning.take(closing)
    assert [len(habits.predictor) for habits in learning.habits.values()] == [1]


def test_what_a_process_that_died_left_is_swept(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source)
    read(engine, symbols="000001.SZ")
    engine.access.flush()
    left = engine.access.files.root / "2026-11-20" / "events-0-0-ab.pq.12345678.tmp"
    left.write_bytes(b"half")
    open_store.again(engine, source)
    assert not left.exists()


def test_a_full_disk_is_told_once_and_reads_go_on(engine: Engine, logs: list[Any]) -> None:
    for _ in range(3):
        with failpoints.armed("access.open", "enospc"):
            read(engine, symbols="000001.SZ")
            engine.access.flush()
    read(engine, symbols="000002.SZ")
    assert [event.group for event in events(engine)] == ["000002.SZ"]
    assert stats(engine)["unlogged_reads"] == 3
    told = [line["event"] for line in logs if "access log can" in line["event"]]
    assert told == [
        "the access log cannot be written; reads go on, and are not logged until it can",
        "the access log can be written again",
    ]


# Retention, bounds and clocks


def one_a_day(engine: Engine, clock: ManualClock, days: int) -> None:
    for _ in range(days):
        read(engine, symbols="000001.SZ", on_miss="cached")
        engine.access._worked()
        clock.advance(days=1)


def held_days(engine: Engine) -> list[date]:
    return engine.access.files.days()


def test_days_are_kept_as_long_as_the_settings_say(open_store: Opener, source: TableSource, clock: ManualClock) -> None:
    engine = open_store(source, access_days=3)
    one_a_day(engine, clock, 10)
    engine.access._worked()
    assert held_days(engine) == [TODAY + timedelta(days=number) for number in (6, 7, 8, 9)]
    assert len(events(engine)) == 4
    assert len(list(engine.access.events(TODAY + timedelta(days=8)))) == 2


def test_the_log_keeps_within_its_bytes_the_oldest_leave_first(
    open_store: Opener, source: TableSource, clock: ManualClock
) -> None:
    engine = open_store(source, access_disk=20_000)
    one_a_day(engine, clock, 12)
    engine.access._worked()
    assert 0 < engine.access.files.bytes() <= 20_000
    kept = held_days(engine)
    assert (kept[-1], len(kept) < 12) == (TODAY + timedelta(days=11), True)
    assert kept == [kept[0] + timedelta(days=number) for number in range(len(kept))]


def test_a_clock_that_jumps_ahead_empties_nothing_and_is_told(engine: Engine, clock: ManualClock, logs: list[Any]) -> None:
    one_a_day(engine, clock, 3)
    now = clock.now()
    clock.set(datetime(2099, 1, 1, tzinfo=UTC))
    read(engine, symbols="000001.SZ", on_miss="cached")
    engine.access._worked()
    assert len(events(engine)) == 4
    clock.set(now)
    read(engine, symbols="000001.SZ", on_miss="cached")
    engine.access._worked()
    assert [datetime.fromtimestamp(event.at, UTC).date() for event in events(engine)] == [
        TODAY + timedelta(days=number) for number in range(4)
    ]
    jumps = [line["seconds"] for line in logs if "jumped" in line["event"]]
    assert (len(jumps), jumps[0] > 0, jumps[1] < 0) == (2, True, True)
    assert "the access log has days of the future, left by a clock that was wrong: skipped" in [line["event"] for line in logs]


# The way to disk and back

texts = st.text(max_size=12)
wholes = st.integers(0, 2**62)
touches = st.builds(Touched, texts, st.integers(0, 2**31 - 1), wholes, st.sampled_from(["hot", "cold", "source"]), st.booleans())
days = st.none() | st.integers(-700_000, 2_900_000)
told_events = st.builds(
    AccessEvent,
    at=st.integers(-(2**50), 2**50).map(lambda micros: micros / 1e6),
    request_id=texts,
    principal=texts,
    profile=texts,
    dataset=texts,
    group=texts,
    symbols=st.lists(texts, max_size=5).map(tuple),
    first=days,
    last=days,
    open_end=st.booleans(),
    columns=st.lists(texts, max_size=3).map(tuple),
    touched=st.lists(touches, max_size=4).map(tuple),
    upstream_calls=st.integers(0, 2**31 - 1),
    rows=wholes,
    bytes=wholes,
    milliseconds=st.floats(0, 1e12),
    repeats=wholes,
)


@given(st.lists(told_events, max_size=12))
def test_events_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, written: list[AccessEvent]) -> None:
    files = AccessFiles(tmp_path_factory.mktemp("log"))
    for event in written:
        files.write(TODAY, "events", to_table([event]), 0)
    files.write(TODAY, "events", to_table(written), 1)
    found = [event for batch in files.read(TODAY, "events") for event in to_events(batch)]
    assert sorted(found, key=repr) == sorted(written * 2, key=repr)
    files.close_day(TODAY)
    assert len(files.files(TODAY)) == 1
    joined = [event for batch in files.read(TODAY, "events") for event in to_events(batch)]
    assert joined == found


# system.access_log


def test_the_log_is_read_like_a_dataset(engine: Engine, clock: ManualClock) -> None:
    for symbol in SYMBOLS[:3]:
        read(engine, symbols=symbol)
        clock.advance(hours=13)
    log = read(engine, "system.access_log")
    assert log.schema == engine.schema("system.access_log").schema
    assert log["group"].to_pylist() == list(SYMBOLS[:3])
    assert read(engine, "system.access_log", end="2026-11-20", columns=("group", "rows")).to_pylist() == [
        {"group": SYMBOLS[0], "rows": 15}
    ]
    between = read(engine, "system.access_log", start="2026-11-20T13:00", end=datetime(2026, 11, 21, 1, tzinfo=UTC))
    assert between["group"].to_pylist() == [SYMBOLS[1]]
    assert read(engine, "system.access_log", limit=2, columns=("rows",)).num_rows == 2
    chosen = read(engine, "system.access_log", where=Compare("group", "==", SYMBOLS[2]), columns=("rows",))
    assert (chosen.column_names, chosen.num_rows) == (["rows"], 1)
    assert read(engine, "system.access_log", start="2027-01-01").num_rows == 0
    assert len(events(engine)) == 3  # looking is not logged


@pytest.mark.parametrize(
    "arguments",
    [{"symbols": "a"}, {"adjust": "qfq"}, {"as_of": 1}, {"max_age": 1.0}, {"profile": "trading"}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_that_make_no_sense_for_a_log_are_refused(engine: Engine, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"cannot be read with {next(iter(arguments))}: it is a log"):
        read(engine, "system.access_log", **arguments)


def test_a_log_can_be_read_and_nothing_else(engine: Engine) -> None:
    for action in (Action.COVERAGE, Action.DELETE, Action.COMPACT, Action.EVICT, Action.INVALIDATE, Action.PROVENANCE):
        with pytest.raises(InvalidRequest, match="it can be read and scanned, nothing else"):
            engine.act(action, {"dataset": "system.access_log"})
    with pytest.raises(InvalidRequest, match="not a dataset name"):
        write(engine, "system.access_log", [{"symbol": "a", "day": FIRST}])
    with pytest.raises(UnknownDataset, match=r"of the cache itself there is system\.access_log"):
        read(engine, "system.no_such")
    with pytest.raises(UnknownColumn, match=r"system\.access_log has no column no_such"):
        read(engine, "system.access_log", columns=("no_such",))
    assert json.loads(json.dumps(engine.act(Action.EXPLAIN, {"dataset": "system.access_log"})))["upstream_calls"] == []
    assert engine.describe(ReadRequest("system.access_log", columns=("rows",))) == (
        pa.schema([engine.schema("system.access_log").schema.field("rows")]),
        -1,
    )


def test_a_log_cannot_be_warmed_and_that_is_said(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="it can be read and scanned, nothing else"):
        engine.act(Action.WARM, {"dataset": "system.access_log"})


def test_every_column_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/access-log.md").read_text()
    assert [name for name in EVENTS.names if f"| `{name}` |" not in page] == []
