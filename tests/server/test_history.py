"""What a dataset was: as of a generation, of an instant, after folds, replaced tables, and for as long as it is kept."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from tests.conftest import NOW, SYMBOLS, Opener, TableSource, bars, expected, read, read_info, weekdays, write

from fletching_schemas import Action, canonical
from fletching_schemas.errors import HistoryGone, InvalidRequest, UnknownDataset, UnknownSymbol
from fletching_server import Engine
from fletching_server.testing import ManualClock

D1, D2, D3 = date(2026, 11, 2), date(2026, 11, 3), date(2026, 11, 4)
KEYS = ["id", "day"]
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))

Contents = list[tuple[str, date, int]]


def row(name: str, day: date, x: int) -> dict[str, Any]:
    return {"id": name, "day": day, "x": x}


def contents(engine: Engine, **asked: Any) -> Contents:
    return [(r["id"], r["day"], r["x"]) for r in read(engine, "mine", **asked).to_pylist()]


def compact(engine: Engine, dataset: str = "mine") -> None:
    engine.act(Action.COMPACT, {"dataset": dataset})


@pytest.fixture
def engine(open_store: Opener) -> Engine:
    return open_store()


def filled(engine: Engine) -> list[tuple[int, Contents]]:
    """Write in all ways, folding between; return each generation with what the table was then."""
    told: list[tuple[int, Contents]] = []
    steps: list[tuple[str, list[dict[str, Any]]]] = [
        ("upsert", [row("a", D1, 1), row("b", D1, 1)]),
        ("upsert", [row("a", D1, 2)]),
        ("append", [row("a", D2, 2)]),
        ("fold", []),
        ("upsert", [row("b", D1, 3), row("c", D3, 3)]),
        ("fold", []),
        ("upsert", [row("c", D3, 4)]),
        ("replace", [row("z", D2, 5)]),
        ("upsert", [row("a", D1, 6)]),
        ("fold", []),
        ("upsert", [row("z", D2, 7)]),
    ]
    for mode, rows in steps:
        if mode == "fold":
            compact(engine)
            continue
        result = write(engine, "mine", rows, mode=mode, keys=None if told else KEYS)
        told.append((result.generation, contents(engine)))
    return told


def test_every_generation_is_read_as_it_was(open_store: Opener, engine: Engine) -> None:
    told = filled(engine)
    assert len({str(rows) for _, rows in told}) == len(told)
    assert [contents(engine, as_of=generation) for generation, _ in told] == [rows for _, rows in told]
    again = open_store.again(engine)
    assert [contents(again, as_of=generation) for generation, _ in told] == [rows for _, rows in told]
    assert contents(again) == told[-1][1]


def test_a_generation_between_two_is_the_earlier_one(engine: Engine) -> None:
    first, second = write(engine, "mine", [row("a", D1, 1)], keys=KEYS), write(engine, "other", [row("q", D1, 0)], keys=KEYS)
    third = write(engine, "mine", [row("a", D1, 2)])
    assert first.generation < second.generation < third.generation
    assert contents(engine, as_of=second.generation) == [("a", D1, 1)]


def test_a_read_tells_the_generation_that_repeats_it(engine: Engine) -> None:
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    before, info = read_info(engine, "mine")
    write(engine, "mine", [row("a", D1, 2)])
    again, then = read_info(engine, "mine", as_of=info.generation)
    assert again.equals(before)
    assert then.generation == info.generation


def test_an_instant_means_what_was_committed_by_then(engine: Engine, clock: ManualClock) -> None:
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    clock.advance(hours=1)
    write(engine, "mine", [row("a", D1, 2)])
    clock.advance(days=1)
    write(engine, "mine", [row("a", D1, 3)])
    assert contents(engine, as_of=NOW) == [("a", D1, 1)]
    assert contents(engine, as_of=NOW + timedelta(minutes=59)) == [("a", D1, 1)]
    assert contents(engine, as_of=(NOW + timedelta(hours=1)).isoformat()) == [("a", D1, 2)]
    assert contents(engine, as_of=NOW.date()) == [("a", D1, 2)]  # the end of that day
    assert contents(engine, as_of=clock.now()) == [("a", D1, 3)]


def test_a_naive_instant_is_exchange_time(open_store: Opener, clock: ManualClock) -> None:
    source = TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS[:1], DAYS))
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[0], start=D1, end=D1)
    clock.advance(hours=1)
    read(engine, symbols=SYMBOLS[0], start=D2, end=D2)
    shanghai = datetime(2026, 11, 20, 20, 30)  # noqa: DTZ001  # naive on purpose: half past twelve in UTC
    assert read(engine, symbols=SYMBOLS[0], start=D1, end=D2, as_of=shanghai).num_rows == 1
    assert read(engine, symbols=SYMBOLS[0], start=D1, end=D2, as_of=shanghai.date()).num_rows == 2
    for moment in (shanghai.replace(tzinfo=UTC), date(2026, 11, 21)):
        with pytest.raises(InvalidRequest, match="lies in the future"):
            read(engine, symbols=SYMBOLS[0], as_of=moment)


def test_a_sourced_dataset_is_read_as_it_was_held(open_store: Opener) -> None:
    source = TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS, DAYS))
    engine = open_store(source)
    _, first = read_info(engine, symbols=SYMBOLS[:2], start=D1, end=D2)
    compact(engine, "bars_1d")
    _, second = read_info(engine, symbols=SYMBOLS, start=D1, end=D3)
    source.rows |= bars(SYMBOLS, DAYS, 1)  # restated
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d"})
    _, third = read_info(engine, symbols=SYMBOLS, start=D1, end=D3)
    compact(engine, "bars_1d")
    calls = len(source.requests)
    for info, names, last, version in ((first, SYMBOLS[:2], D2, 0), (second, SYMBOLS, D3, 0), (third, SYMBOLS, D3, 1)):
        rows, told = read_info(engine, symbols=list(names), start=D1, end=D3, as_of=info.generation)
        assert rows.equals(expected(source.dataset, bars(SYMBOLS, DAYS, version), list(names), D1, last))
        assert told.upstream_calls == 0
    assert len(source.requests) == calls


def test_what_is_older_than_it_is_kept_is_gone_and_so_are_its_files(engine: Engine, clock: ManualClock) -> None:
    told = filled(engine)
    clock.advance(days=8)
    last = write(engine, "mine", [row("y", D1, 8)])
    kept = contents(engine)
    compact(engine)
    before = engine.store.disk_bytes()
    freed = engine.act(Action.VACUUM, {})["freed_bytes"]
    assert freed == before - engine.store.disk_bytes() > 0
    assert contents(engine, as_of=told[-1][0]) == told[-1][1]  # what it was when the kept time began
    assert contents(engine, as_of=last.generation) == kept
    with pytest.raises(HistoryGone, match=r"goes back to generation \d+; how long it is kept is set by history_days"):
        contents(engine, as_of=told[0][0])
    listed = {str(path.relative_to(engine.store.root)) for path in engine.store.root.rglob("*.parquet")}
    assert listed == engine.store.catalogue.paths()


def test_a_vacuum_of_all_leaves_the_present_alone(engine: Engine) -> None:
    told = filled(engine)
    compact(engine)
    engine.act(Action.VACUUM, {"dataset": "mine", "history_days": 0})
    assert contents(engine) == told[-1][1]
    assert engine.store.history_bytes() == 0
    assert len(list(engine.store.root.rglob("*.parquet"))) == len(engine.store.state("mine").files)


def test_a_reader_of_the_past_keeps_its_files(engine: Engine) -> None:
    told = filled(engine)
    with engine.store.pinned_past("mine", told[0][0]) as state:
        engine.act(Action.VACUUM, {"history_days": 0})
        assert all((engine.store.root / file.path).exists() for file in state.files)
    assert not any((engine.store.root / file.path).exists() for file in state.files)


def test_retention_is_said_per_dataset_and_outlives_a_restart(open_store: Opener, engine: Engine) -> None:
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    first = write(engine, "mine", [row("a", D1, 2)])
    assert engine.act(Action.RETENTION, {"dataset": "mine", "history_days": 0}) == {"dataset": "mine", "history_days": 0}
    again = open_store.again(engine)
    compact(again)
    assert again.store.history_bytes() == 0
    with pytest.raises(HistoryGone):
        contents(again, as_of=first.generation)
    assert again.act(Action.RETENTION, {"dataset": "mine"}) == {"dataset": "mine", "history_days": 7}


@pytest.mark.parametrize(
    "body", [{"dataset": "mine", "history_days": -1}, {"dataset": "mine", "days": 3}, {"dataset": "mine", "history_days": True}]
)
def test_a_retention_that_is_none_is_refused(engine: Engine, body: dict[str, Any]) -> None:
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    for action in (Action.RETENTION, Action.VACUUM):
        with pytest.raises(InvalidRequest, match="history_days"):
            engine.act(action, body)


def test_what_has_no_past_says_so(engine: Engine) -> None:
    first = write(engine, "first", [row("a", D1, 1)], keys=KEYS)
    result = write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    with pytest.raises(HistoryGone, match="did not exist"):
        contents(engine, as_of=NOW - timedelta(days=1))
    with pytest.raises(HistoryGone, match=f"goes back to generation {result.generation}"):
        contents(engine, as_of=first.generation)
    with pytest.raises(InvalidRequest, match=f"no generation 999 yet; the present one is {result.generation}"):
        contents(engine, as_of=999)
    with pytest.raises(UnknownDataset):
        read(engine, "nothing", as_of=1)


def test_a_deleted_table_takes_its_past_with_it(engine: Engine) -> None:
    old = write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    engine.act(Action.DELETE, {"dataset": "mine"})
    assert list(engine.store.root.rglob("*.parquet")) == []
    write(engine, "mine", [row("a", D1, 2)], keys=KEYS)
    with pytest.raises(HistoryGone):
        contents(engine, as_of=old.generation)


def test_a_table_is_read_with_the_columns_it_had(engine: Engine) -> None:
    old = write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    write(engine, "mine", [{**row("b", D1, 2), "y": 0.5}], evolve=True)
    assert read(engine, "mine", as_of=old.generation).to_pylist() == [row("a", D1, 1)]
    assert read(engine, "mine", columns=["y"]).to_pylist() == [{"y": None}, {"y": 0.5}]


def test_partitions_between_two_bases_leave(engine: Engine, clock: ManualClock) -> None:
    told: list[tuple[int, Contents]] = []
    for number in range(30):  # one fold every six hours
        result = write(engine, "mine", [row("a", D1, number)], keys=KEYS if number == 0 else None)
        told.append((result.generation, contents(engine)))
        compact(engine)
        clock.advance(hours=6)
    partitions = list((engine.store.root / "data").rglob("*.parquet"))
    assert 7 <= len(partitions) <= 30 / 4 + 3
    assert [contents(engine, as_of=generation) for generation, _ in told] == [rows for _, rows in told]


def test_a_generation_is_read_the_same_again_after_folds_have_changed_its_files(engine: Engine) -> None:
    told: dict[int, Contents] = {}
    for number in range(4):
        generation = write(engine, "mine", [row("a", D1, number), row("b", D2, number)], keys=KEYS).generation
        told[generation] = contents(engine)
        compact(engine)
        for _ in range(2):
            engine.act(Action.EVICT, {})
            assert {generation: contents(engine, as_of=generation) for generation in told} == told


def test_what_was_looked_up_before_a_fold_is_not_believed_after_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = write(engine, "mine", [row("a", D1, 1)], keys=KEYS).generation
    compact(engine)
    write(engine, "mine", [row("a", D1, 2)])
    looking_up = engine.store.catalogue.past

    def slowly(dataset: str, generation: int) -> Any:
        found = looking_up(dataset, generation)
        monkeypatch.undo()
        compact(engine)  # the partitions in what was found leave, after this reader
        return found

    monkeypatch.setattr(engine.store.catalogue, "past", slowly)
    for _ in range(2):
        engine.act(Action.EVICT, {})
        assert contents(engine, as_of=generation) == [("a", D1, 1)]


def test_a_read_of_symbols_without_rows_can_be_repeated(open_store: Opener) -> None:
    source = TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS[:1], DAYS))
    engine = open_store(source)
    asked: dict[str, Any] = {"symbols": SYMBOLS[:2], "start": DAYS[0], "end": DAYS[4]}
    rows, info = read_info(engine, **asked)
    assert set(rows.column("symbol").to_pylist()) == {SYMBOLS[0]}
    assert read(engine, **asked, as_of=info.generation).equals(rows)
    with pytest.raises(UnknownSymbol):
        read(engine, **asked | {"symbols": SYMBOLS[2]}, as_of=info.generation)
